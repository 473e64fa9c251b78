//! The WIT component in wasmtime, driven by its interface alone, as a host would that has nothing of the engine.

use super::{
    Host,
    case::{AnswerEnd, BundleState, Case, Seen, Step as Script},
    control_plane::ControlPlane,
    native,
};
use crate::{
    built,
    component::{
        Component, Instance,
        calls::{CellOp, End, Output, Refusal, Refused, Span, Step, Want},
        upkeep::{Ask, Response},
    },
};
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::BTreeMap;
use tollgate_engine::time::Time;
use wasmtime::component::ResourceAny;

/// The component host.
pub struct InWasmtime(Component);

impl InWasmtime {
    /// Builds and compiles the component.
    ///
    /// # Errors
    /// When wasmtime refuses it.
    pub fn new() -> Result<InWasmtime> {
        Component::load(built::component()).map(InWasmtime)
    }
}

impl Host for InWasmtime {
    fn name(&self) -> &'static str {
        "component"
    }

    fn run(&self, case: &Case) -> Result<Vec<Seen>> {
        let start = case.start()?;
        let mut control_plane = ControlPlane::new(case)?;
        let (settings, secrets) = super::control_plane::settings(case.upstream);
        let secrets: Vec<(String, String)> = secrets
            .into_iter()
            .map(|(name, value)| (name.to_string(), value))
            .collect();
        let mut instance = self.0.instance()?;
        let gate = instance
            .calls(|calls, store| calls.gate().call_open(store, settings.as_bytes(), &secrets))?
            .map_err(anyhow::Error::msg)?;
        if case.bundle != BundleState::Missing {
            let envelope = control_plane.bundle(1)?;
            instance
                .calls(|calls, store| {
                    calls
                        .gate()
                        .call_install(store, gate, &envelope, start.micros())
                })?
                .map_err(|error| anyhow::anyhow!("the bundle is refused: {}", error.message))?;
        }
        let holder =
            instance.upkeep(|upkeep, store| upkeep.holder().call_constructor(store, (0, 1)))?;
        let errands = instance.upkeep(|upkeep, store| upkeep.errands().call_constructor(store))?;
        let mut node = Node {
            instance,
            gate,
            holder,
            errands,
            journal: None,
            cells: BTreeMap::new(),
            swap: Vec::new(),
            control_plane,
        };
        case.steps
            .iter()
            .enumerate()
            .map(|(index, step)| {
                node.step(step, start.plus_secs(step.at), index as u64)
                    .with_context(|| format!("step {}", index + 1))
            })
            .collect()
    }
}

/// A gate with everything a host adds to it: a store, a line to the control plane.
struct Node {
    instance: Instance,
    gate: ResourceAny,
    holder: ResourceAny,
    errands: ResourceAny,
    journal: Option<ResourceAny>,
    /// Account and cell, by key.
    cells: BTreeMap<String, (String, Vec<u8>)>,
    /// What was to be changed last.
    swap: Vec<CellOp>,
    control_plane: ControlPlane,
}

impl Node {
    fn step(&mut self, script: &Script, now: Time, entropy: u64) -> Result<Seen> {
        let call = &script.call;
        let body = call.bytes()?;
        let token = self.control_plane.begin(script)?;
        let headers = call.headers(token.as_deref(), body.as_ref().map(Vec::len))?;
        let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = vec![
            (b":method".to_vec(), call.method.clone().into_bytes()),
            (b":path".to_vec(), call.path.clone().into_bytes()),
            (b":authority".to_vec(), call.authority.clone().into_bytes()),
            (b":scheme".to_vec(), b"http".to_vec()),
        ];
        pairs.extend(
            headers
                .iter()
                .map(|(name, value)| (name.clone().into_bytes(), value.clone())),
        );
        let gate = self.gate;
        let mut time = now.micros();
        let (exchange, mut step) = self.instance.calls(|calls, store| {
            let has_body = body.is_some();
            calls
                .exchange()
                .call_begin(store, gate, &pairs, has_body, time, (0, entropy))
        })?;
        let mut seen = Seen::default();
        loop {
            step = match step {
                Step::NeedBody(_) => self.instance.calls(|calls, store| {
                    let body = body.as_deref().unwrap_or_default();
                    calls
                        .exchange()
                        .call_body(store, exchange, gate, body, time)
                })?,
                Step::Swap(ops) => {
                    let outcome = self.swap(&ops, time)?;
                    self.swap = ops;
                    let outcome = match &outcome {
                        Ok(cells) => Ok(cells.as_slice()),
                        Err(refused) => Err(*refused),
                    };
                    self.instance.calls(|calls, store| {
                        calls
                            .exchange()
                            .call_swapped(store, exchange, gate, outcome, time)
                    })?
                }
                Step::AwaitLease(wait) => {
                    self.apply_all(&wait.undo, time)?;
                    if !wait.wants.is_empty()
                        && !self.lease(&wait.wants, script.control_plane, time)?
                    {
                        time = wait.deadline;
                    }
                    self.instance
                        .calls(|calls, store| calls.exchange().call_retry(store, exchange))?
                }
                Step::Forward(forward) => {
                    seen.upstream = Some(native::sent(
                        call,
                        &headers,
                        &forward.head.remove,
                        forward.head.set,
                        forward.body.as_deref().or(body.as_deref()),
                    ));
                    self.respond(script, exchange, &mut seen)?;
                    break;
                }
                Step::Reply(reply) => {
                    self.apply_all(&reply.undo, time)?;
                    native::answered(
                        &mut seen,
                        (reply.status, &reply.headers, String::from_utf8(reply.body)?),
                    )?;
                    break;
                }
            };
        }
        let end = match script.answer.end {
            AnswerEnd::Whole => End::Complete,
            AnswerEnd::ClientLeaves => End::ClientLeft,
            AnswerEnd::UpstreamBreaks => End::UpstreamBroken,
        };
        let finished = self
            .instance
            .calls(|calls, store| calls.exchange().call_finish(store, exchange, end, time))?;
        self.apply_all(&finished.ops, time)?;
        self.deliver(finished.record, time)?;
        self.report(time)?;
        let records = self.control_plane.take_records();
        let [record] = records.as_slice() else {
            bail!("{} records of one call", records.len());
        };
        seen.record = serde_json::from_slice(record)?;
        seen.spent = self.control_plane.spent().0;
        Ok(seen.normalise())
    }

    fn respond(&mut self, script: &Script, exchange: ResourceAny, seen: &mut Seen) -> Result<()> {
        let answer = &script.answer;
        let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = vec![
            (b":status".to_vec(), answer.status.to_string().into_bytes()),
            (
                b"content-type".to_vec(),
                answer.content_type.clone().into_bytes(),
            ),
        ];
        pairs.extend(
            answer
                .headers
                .iter()
                .map(|(name, value)| (name.clone().into_bytes(), value.clone().into_bytes())),
        );
        let head = self
            .instance
            .calls(|calls, store| calls.exchange().call_response_head(store, exchange, &pairs))?;
        let header = |wanted: &str| {
            let mut set = head.head.set.iter();
            set.find(|(name, _)| name == wanted)
                .map(|(_, value)| value.clone())
        };
        seen.limits = header("ratelimit-policy");
        seen.left = header("ratelimit");
        let gate = self.gate;
        let chunks = answer.chunks()?;
        let size: usize = chunks.iter().map(Vec::len).sum();
        if head.hold.is_some_and(|cap| size as u64 > cap) {
            let output = self
                .instance
                .calls(|calls, store| calls.exchange().call_response_over_cap(store, exchange))?;
            let Output::Answer(reply) = output else {
                bail!("an answer over the cap is not replaced");
            };
            return native::answered(
                seen,
                (reply.status, &reply.headers, String::from_utf8(reply.body)?),
            );
        }
        let mut chunks: Vec<(&[u8], bool)> = chunks.iter().map(|chunk| (&**chunk, false)).collect();
        if answer.end == AnswerEnd::Whole {
            chunks.push((b"", true));
        }
        let mut body = Vec::new();
        for (chunk, last) in chunks {
            let output = self.instance.calls(|calls, store| {
                calls
                    .exchange()
                    .call_response_chunk(store, exchange, gate, chunk, last)
            })?;
            match output {
                Output::Pass => body.extend_from_slice(chunk),
                Output::Replace(bytes) => body.extend(bytes),
                Output::Cut(bytes) => {
                    body.extend(bytes);
                    break;
                }
                Output::Answer(reply) => {
                    return native::answered(
                        seen,
                        (reply.status, &reply.headers, String::from_utf8(reply.body)?),
                    );
                }
            }
        }
        seen.status = answer.status;
        seen.content_type = Some(answer.content_type.clone());
        seen.body = String::from_utf8_lossy(&body).into_owned();
        Ok(())
    }

    fn apply(&mut self, op: &CellOp, now: i64) -> Result<Result<Vec<u8>, Refusal>> {
        let old = self.cells.get(&op.key).map(|(_, cell)| cell.as_slice());
        let new = self
            .instance
            .calls(|calls, store| calls.call_apply(store, &op.op, old, now))?;
        Ok(new.inspect(|new| {
            self.cells
                .insert(op.key.clone(), (op.account.clone(), new.clone()));
        }))
    }

    fn swap(&mut self, ops: &[CellOp], now: i64) -> Result<Result<Vec<Vec<u8>>, Refused>> {
        let mut cells = Vec::new();
        for (at, op) in (0..).zip(ops) {
            match self.apply(op, now)? {
                Ok(cell) => cells.push(cell),
                Err(why) => return Ok(Err(Refused { at, why })),
            }
        }
        Ok(Ok(cells))
    }

    /// Operations that cannot be refused.
    fn apply_all(&mut self, ops: &[CellOp], now: i64) -> Result<()> {
        for op in ops {
            let outcome = self.apply(op, now)?;
            ensure!(outcome.is_ok(), "refused {outcome:?}: {op:?}");
        }
        Ok(())
    }

    /// Asks for what a call waits for; whether an answer came. As with every host, nobody asks where there is enough, or none to be had.
    fn lease(&mut self, wants: &[Want], answered: bool, now: i64) -> Result<bool> {
        let mut asks = Vec::new();
        for want in wants {
            let mut ops = self.swap.iter();
            let op = ops.find(|op| op.account == want.account);
            let op = op.context("what is wanted was to be changed")?;
            let old = self.cells.get(&op.key).map(|(_, cell)| cell.as_slice());
            let outcome = self
                .instance
                .calls(|calls, store| calls.call_apply(store, &op.op, old, now))?;
            if let Err(Refusal::NoLease | Refusal::Short) = outcome {
                asks.extend(self.ask(&want.account, want.span, (0, want.amount), now)?);
            }
        }
        Ok(answered && self.exchange_leases(&asks, now)?)
    }

    /// Reports what was used, and asks for what will be needed.
    fn report(&mut self, now: i64) -> Result<()> {
        let errands = self.errands;
        let mut planned = Vec::new();
        let mut forgotten = Vec::new();
        for (key, (account, cell)) in &self.cells {
            let may_go = self.instance.upkeep(|upkeep, store| {
                upkeep
                    .errands()
                    .call_may_forget(store, errands, account, cell, now)
            })?;
            if may_go {
                forgotten.push(key.clone());
                continue;
            }
            planned.extend(self.instance.upkeep(|upkeep, store| {
                upkeep
                    .errands()
                    .call_plan(store, errands, account, cell, now)
            })?);
        }
        self.cells.retain(|key, _| !forgotten.contains(key));
        let mut asks = Vec::new();
        for want in planned {
            asks.extend(self.ask(&want.account, want.span, (want.amount, 0), now)?);
        }
        if !asks.is_empty() {
            self.exchange_leases(&asks, now)?;
        }
        Ok(())
    }

    /// Notes the ask in its cell; nothing when somebody has asked already.
    fn ask(
        &mut self,
        account: &str,
        span: Span,
        (amount, needed): (u64, u64),
        now: i64,
    ) -> Result<Option<Ask>> {
        let want = Want {
            account: account.to_string(),
            span,
            amount,
        };
        let op = self
            .instance
            .upkeep(|upkeep, store| upkeep.call_ask_op(store, &want))?
            .context("not an account")?;
        if self.apply(&op, now)?.is_err() {
            return Ok(None);
        }
        let (_, cell) = self.cells.get(&op.key).context("a cell")?;
        Ok(Some(Ask {
            want,
            needed,
            cell: cell.clone(),
        }))
    }

    fn exchange_leases(&mut self, asks: &[Ask], now: i64) -> Result<bool> {
        let (gate, holder, errands) = (self.gate, self.holder, self.errands);
        let errand = self
            .instance
            .upkeep(|upkeep, store| upkeep.call_lease_request(store, gate, holder, asks))?;
        let response = self.answer(&errand.path, &errand.body, now)?;
        let leased = self.instance.upkeep(|upkeep, store| {
            upkeep
                .errands()
                .call_leases_answered(store, errands, gate, holder, &response, now, 0)
        })?;
        let Some(leased) = leased else {
            return Ok(false);
        };
        if let Some(epoch) = leased.epoch {
            self.instance
                .upkeep(|upkeep, store| upkeep.holder().call_greeted(store, holder, epoch))?;
        }
        self.apply_all(&leased.refills, now)?;
        Ok(true)
    }

    fn deliver(&mut self, record: Vec<u8>, now: i64) -> Result<()> {
        let (gate, holder, errands) = (self.gate, self.holder, self.errands);
        let journal = match self.journal {
            Some(journal) => journal,
            None => self.instance.upkeep(|upkeep, store| {
                upkeep.holder().call_greeted(&mut *store, holder, 1)?;
                upkeep.journal().call_constructor(store, gate, holder)
            })?,
        };
        self.journal = Some(journal);
        let errand = self
            .instance
            .upkeep(|upkeep, store| {
                upkeep.journal().call_seal(
                    &mut *store,
                    journal,
                    gate,
                    holder,
                    &[record],
                    0,
                    now,
                )?;
                upkeep
                    .errands()
                    .call_next_journal(store, errands, gate, journal, now)
            })?
            .context("a sealed batch is due")?;
        let response = self.answer(&errand.path, &errand.body, now)?;
        self.instance.upkeep(|upkeep, store| {
            upkeep
                .errands()
                .call_journal_answered(store, errands, gate, journal, &response, now, 0)
        })?;
        Ok(())
    }

    fn answer(&mut self, path: &str, body: &[u8], now: i64) -> Result<Response> {
        let now = Time::from_micros(now);
        let (status, body) = self.control_plane.answer(path, body, now)?;
        Ok(Response { status, body })
    }
}
