//! The engine in this process: the reference that other hosts are compared with.

use super::{
    Host,
    case::{AnswerEnd, BundleState, CREDENTIALS, Case, Seen, SeenUpstream, Step as Script},
    control_plane::ControlPlane,
};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use tollgate_engine::{
    exchange::{CellOp, End, Exchange, Output, Step, Want},
    facts::Headers,
    gate::{Config, Gate},
    ledger::{Account, Cell, Op, Refusal},
    reply::{DECISION_HEADER, REASON_HEADER},
    time::Time,
    upkeep::{self, Holder, Journal, Response, Upkeep},
};

/// The native host.
#[derive(Debug, Default)]
pub struct Native;

impl Host for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn run(&self, case: &Case) -> Result<Vec<Seen>> {
        let start = case.start()?;
        let mut control_plane = ControlPlane::new(case)?;
        let (settings, secrets) = super::control_plane::settings(case.upstream);
        let config = Config::read(settings.as_bytes(), |name| {
            secrets
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| value.clone())
        })
        .map_err(anyhow::Error::msg)?;
        let mut gate = Gate::new(config);
        if case.bundle != BundleState::Missing {
            gate.install(&control_plane.bundle(1)?, start)
                .map_err(|error| anyhow::anyhow!("the bundle is refused: {error}"))?;
        }
        let mut node = Node {
            gate,
            cells: BTreeMap::new(),
            holder: Holder::new(1),
            journal: None,
            upkeep: Upkeep::default(),
            control_plane,
        };
        case.steps
            .iter()
            .enumerate()
            .map(|(index, step)| {
                node.step(step, start.plus_secs(step.at), index as u128)
                    .with_context(|| format!("step {}", index + 1))
            })
            .collect()
    }
}

/// A gate with everything a host adds to it: a store, a holder, a line to the control plane.
struct Node {
    gate: Gate,
    cells: BTreeMap<Account, Vec<u8>>,
    holder: Holder,
    journal: Option<Journal>,
    upkeep: Upkeep,
    control_plane: ControlPlane,
}

impl Node {
    fn step(&mut self, script: &Script, now: Time, entropy: u128) -> Result<Seen> {
        let call = &script.call;
        let body = call.bytes()?;
        let token = self.control_plane.begin(script)?;
        let headers = call.headers(token.as_deref(), body.as_ref().map(Vec::len))?;
        let mut pairs: Vec<(&[u8], &[u8])> = vec![
            (b":method", call.method.as_bytes()),
            (b":path", call.path.as_bytes()),
            (b":authority", call.authority.as_bytes()),
            (b":scheme", b"http"),
        ];
        pairs.extend(
            headers
                .iter()
                .map(|(name, value)| (name.as_bytes(), value.as_slice())),
        );
        let (mut exchange, mut step) = Exchange::begin(
            &mut self.gate,
            Headers(&pairs),
            body.is_some(),
            now,
            entropy,
        );
        let mut seen = Seen::default();
        let mut time = now;
        loop {
            step = match step {
                Step::NeedBody { .. } => {
                    exchange.body(&mut self.gate, body.as_deref().unwrap_or_default(), time)
                }
                Step::Swap(ops) => {
                    let result = self.swap(&ops, time);
                    exchange.swapped(&mut self.gate, result, time)
                }
                Step::AwaitLease {
                    undo,
                    wants,
                    deadline,
                } => {
                    self.undo(&undo, time);
                    if !wants.is_empty() && !self.lease(&wants, script.control_plane, time)? {
                        time = deadline;
                    }
                    exchange.retry()
                }
                Step::Forward(forward) => {
                    seen.upstream = Some(sent(
                        call,
                        &headers,
                        &forward.remove,
                        forward.set,
                        forward.body.as_deref().or(body.as_deref()),
                    ));
                    self.respond(script, &mut exchange, &mut seen)?;
                    break;
                }
                Step::Reply { reply, undo } => {
                    self.undo(&undo, time);
                    answered(&mut seen, (reply.status, &reply.headers, reply.body))?;
                    break;
                }
            };
        }
        let end = match script.answer.end {
            AnswerEnd::Whole => End::Complete,
            AnswerEnd::ClientLeaves => End::ClientLeft,
            AnswerEnd::UpstreamBreaks => End::UpstreamBroken,
        };
        let finished = exchange.finish(end, time);
        self.undo(&finished.ops, time);
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

    fn respond(&self, script: &Script, exchange: &mut Exchange, seen: &mut Seen) -> Result<()> {
        let answer = &script.answer;
        let status = answer.status.to_string();
        let mut pairs: Vec<(&[u8], &[u8])> = vec![
            (b":status", status.as_bytes()),
            (b"content-type", answer.content_type.as_bytes()),
        ];
        pairs.extend(
            answer
                .headers
                .iter()
                .map(|(name, value)| (name.as_bytes(), value.as_bytes())),
        );
        let head = exchange.response_head(Headers(&pairs));
        let header = |wanted: &str| {
            let mut set = head.set.iter();
            set.find(|(name, _)| *name == wanted)
                .map(|(_, value)| value.clone())
        };
        seen.limits = header("ratelimit-policy");
        seen.left = header("ratelimit");
        let mut body = Vec::new();
        let chunks = answer.chunks()?;
        let size: usize = chunks.iter().map(Vec::len).sum();
        if head.hold.is_some_and(|cap| size > cap) {
            let Output::Answer(reply) = exchange.response_over_cap() else {
                bail!("an answer over the cap is not replaced");
            };
            return answered(seen, (reply.status, &reply.headers, reply.body));
        }
        let mut chunks: Vec<(&[u8], bool)> = chunks.iter().map(|chunk| (&**chunk, false)).collect();
        if answer.end == AnswerEnd::Whole {
            chunks.push((b"", true));
        }
        for (chunk, last) in chunks {
            match exchange.response_chunk(&self.gate, chunk, last) {
                Output::Pass => body.extend_from_slice(chunk),
                Output::Replace(bytes) => body.extend(bytes),
                Output::Cut(bytes) => {
                    body.extend(bytes);
                    break;
                }
                Output::Answer(reply) => {
                    return answered(seen, (reply.status, &reply.headers, reply.body));
                }
            }
        }
        seen.status = answer.status;
        seen.content_type = Some(answer.content_type.clone());
        seen.body = String::from_utf8_lossy(&body).into_owned();
        Ok(())
    }

    /// What is taken of the limit then.
    fn apply(&mut self, op: &CellOp, now: Time) -> Result<u64, Refusal> {
        let old = self.cells.get(&op.account).map(Vec::as_slice);
        let new = op.op.apply(old, now)?;
        let taken = op.op.taken(&Cell::decode(&new));
        self.cells.insert(op.account.clone(), new);
        Ok(taken)
    }

    fn swap(&mut self, ops: &[CellOp], now: Time) -> Result<Vec<u64>, (usize, Refusal)> {
        ops.iter()
            .enumerate()
            .map(|(index, op)| self.apply(op, now).map_err(|refusal| (index, refusal)))
            .collect()
    }

    /// Operations that cannot be refused.
    fn undo(&mut self, ops: &[CellOp], now: Time) {
        for op in ops {
            assert!(self.apply(op, now).is_ok(), "{op:?}");
        }
    }

    /// Asks for what a call waits for; whether an answer came, if one is to come.
    fn lease(&mut self, wants: &[Want], answered: bool, now: Time) -> Result<bool> {
        let mut asks = Vec::new();
        for want in wants {
            let stored = self.cells.get(&want.account);
            let cell = stored.map(|stored| Cell::decode(stored));
            if !want.is_worth_asking(cell.unwrap_or_default(), now) {
                continue;
            }
            let ask = CellOp {
                account: want.account.clone(),
                op: Op::Ask { span: want.span },
            };
            if self.apply(&ask, now).is_ok() {
                let cell = Cell::decode(self.cells.get(&want.account).context("a cell")?);
                let slot = cell.slot(want.span.start).context("a slot")?;
                asks.push(upkeep::ask_for(&want.account, slot, 0, want.amount));
            }
        }
        Ok(answered && self.exchange_leases(asks, now)?)
    }

    /// Reports what was used, and asks for what will be needed; cells of runs that nobody has needed for a while go, as with every host.
    fn report(&mut self, now: Time) -> Result<()> {
        self.cells
            .retain(|account, cell| account.run.is_none() || !Cell::decode(cell).is_forgotten(now));
        let accounts: Vec<Account> = self.cells.keys().cloned().collect();
        let mut asks = Vec::new();
        for account in accounts {
            let cell = Cell::decode(self.cells.get(&account).context("a cell")?);
            for (span, wanted) in self.upkeep.plan(&cell, now) {
                let ask = CellOp {
                    account: account.clone(),
                    op: Op::Ask { span },
                };
                if self.apply(&ask, now).is_ok() {
                    let cell = Cell::decode(self.cells.get(&account).context("a cell")?);
                    let slot = cell.slot(span.start).context("a slot")?;
                    asks.push(upkeep::ask_for(&account, slot, wanted, 0));
                }
            }
        }
        if !asks.is_empty() {
            self.exchange_leases(asks, now)?;
        }
        Ok(())
    }

    fn exchange_leases(
        &mut self,
        asks: Vec<tollgate_engine::lease::Ask>,
        now: Time,
    ) -> Result<bool> {
        let errand = upkeep::lease_request(&self.gate, &self.holder, asks);
        let (status, body) = self.control_plane.answer(&errand.path, &errand.body, now)?;
        let response = Response {
            status,
            body: &body,
        };
        let Some((refills, epoch)) =
            self.upkeep
                .leases_answered(&self.gate, &self.holder, response, now, 0)
        else {
            return Ok(false);
        };
        if let Some(epoch) = epoch {
            self.holder.epoch = epoch;
        }
        self.undo(&refills, now);
        Ok(true)
    }

    fn deliver(&mut self, record: Vec<u8>, now: Time) -> Result<()> {
        let workspace = self.gate.config.workspace.clone();
        let mut journal = match self.journal.take() {
            Some(journal) => journal,
            None => {
                self.holder.epoch = 1;
                Journal::start(&workspace, &self.holder)
            }
        };
        journal.seal(&self.gate, &self.holder, &[record], 0, now);
        let errand = self
            .upkeep
            .next_journal(&self.gate, &journal, now)
            .context("a sealed batch is due")?;
        let (status, body) = self.control_plane.answer(&errand.path, &errand.body, now)?;
        let response = Response {
            status,
            body: &body,
        };
        self.upkeep
            .journal_answered(&self.gate, &mut journal, response, now, 0);
        self.journal = Some(journal);
        Ok(())
    }
}

/// Notes an answer of the gate's own.
pub(super) fn answered<N: AsRef<str>>(
    seen: &mut Seen,
    (status, headers, body): (u16, &[(N, String)], String),
) -> Result<()> {
    let header = |wanted: &str| {
        headers
            .iter()
            .find(|(name, _)| name.as_ref() == wanted)
            .map(|(_, value)| value.clone())
    };
    header(DECISION_HEADER).context("a reply without its decision")?;
    seen.status = status;
    seen.reason = header(REASON_HEADER);
    seen.retry_after = header("retry-after");
    seen.limits = header("ratelimit-policy");
    seen.left = header("ratelimit");
    seen.content_type = header("content-type");
    seen.body = body;
    Ok(())
}

/// What the upstream gets of a call that is sent on with these header edits and this body.
pub fn sent<N: AsRef<str>>(
    call: &super::case::Call,
    headers: &[(String, Vec<u8>)],
    remove: &[N],
    set: Vec<(N, String)>,
    body: Option<&[u8]>,
) -> SeenUpstream {
    let mut kept: BTreeMap<String, String> = headers
        .iter()
        .filter(|(name, _)| !remove.iter().any(|removed| removed.as_ref() == name))
        .map(|(name, value)| (name.clone(), String::from_utf8_lossy(value).into_owned()))
        .collect();
    for (name, value) in set {
        kept.insert(name.as_ref().to_string(), value);
    }
    let body = body
        .map(|body| String::from_utf8_lossy(body).into_owned())
        .unwrap_or_default();
    SeenUpstream {
        method: call.method.clone(),
        path: call.path.clone(),
        credentials: CREDENTIALS
            .into_iter()
            .filter_map(|name| Some((name.to_string(), kept.get(name)?.clone())))
            .collect(),
        accept_encoding: kept.get("accept-encoding").cloned(),
        body,
    }
}
