//! The interface `calls`: gates and exchanges.

use crate::{Component, bindings::exports::tollgate::policy::calls as wit};
use std::cell::RefCell;
use tollgate_engine::{
    decide,
    exchange::{self, Step},
    facts::Headers,
    gate::Config,
    identity::{Caller, GovernanceLevel},
    ledger::{self, Cell, Op, Refusal},
    reply::Reply,
    time::Time,
};

/// A gate behind a handle. Borrowing cannot fail: a component that imports nothing is never entered again from within.
pub(crate) struct Gate(pub(crate) RefCell<tollgate_engine::gate::Gate>);

/// An exchange behind a handle.
pub(crate) struct Exchange(RefCell<exchange::Exchange>);

impl wit::Guest for Component {
    type Gate = Gate;
    type Exchange = Exchange;

    fn apply(op: Vec<u8>, old: Option<Vec<u8>>, now: wit::Time) -> Result<Vec<u8>, wit::Refusal> {
        let op = Op::decode(&op).ok_or(wit::Refusal::Unreadable)?;
        op.apply(old.as_deref(), time(now))
            .map_err(|refusal| match refusal {
                Refusal::NoLease => wit::Refusal::NoLease,
                Refusal::Short => wit::Refusal::Short,
                Refusal::Exhausted { retry_ms, left } => {
                    let retry = Time::from_millis(retry_ms).micros();
                    wit::Refusal::Exhausted(wit::Exhausted { retry, left })
                }
                Refusal::AlreadyAsked => wit::Refusal::AlreadyAsked,
            })
    }

    fn decide(
        gate: wit::GateBorrow<'_>,
        caller: wit::Caller,
        headers: Vec<wit::Header>,
        body: Option<Vec<u8>>,
        now: wit::Time,
    ) -> wit::Decision {
        let mut gate = gate.get::<Gate>().0.borrow_mut();
        let now = time(now);
        let workspace = &gate.config.workspace;
        let one = |agent, org, team, level, acts_for| Caller {
            workspace: workspace.clone(),
            agent,
            org,
            team,
            level: match level {
                wit::GovernanceLevel::L0 => GovernanceLevel::L0,
                wit::GovernanceLevel::L1 => GovernanceLevel::L1,
                wit::GovernanceLevel::L2 => GovernanceLevel::L2,
                wit::GovernanceLevel::L3 => GovernanceLevel::L3,
            },
            acts_for,
        };
        let principals = caller.acts_for.into_iter();
        let acts_for = principals
            .map(|of| one(of.agent, of.org, of.team, of.level, Vec::new()))
            .collect();
        let caller = one(
            caller.agent,
            caller.org,
            caller.team,
            caller.level,
            acts_for,
        );
        let headers = borrowed(&headers);
        let (mut exchange, step) = exchange::Exchange::begin_as(
            &mut gate,
            caller,
            Headers(&headers),
            body.is_some(),
            now,
            0,
        );
        if let Step::NeedBody { .. } = step {
            exchange.body(&mut gate, &body.unwrap_or_default(), now);
        }
        decision(exchange.decision())
    }
}

impl wit::GuestGate for Gate {
    fn open(settings: Vec<u8>, secrets: Vec<wit::Secret>) -> Result<wit::Gate, String> {
        let look_up = |wanted: &str| {
            secrets
                .iter()
                .find(|(name, _)| name == wanted)
                .map(|(_, value)| value.clone())
        };
        let config = Config::read(&settings, look_up)?;
        let gate = tollgate_engine::gate::Gate::new(config);
        Ok(wit::Gate::new(Gate(RefCell::new(gate))))
    }

    fn install(&self, envelope: Vec<u8>, now: wit::Time) -> Result<(), wit::InstallError> {
        self.0
            .borrow_mut()
            .install(&envelope, time(now))
            .map_err(|error| wit::InstallError {
                name: error.name().to_string(),
                message: error.to_string(),
            })
    }

    fn revision(&self) -> u64 {
        self.0.borrow().bundle().revision()
    }

    fn etag(&self) -> Option<String> {
        self.0.borrow().bundle().etag()
    }
}

impl wit::GuestExchange for Exchange {
    fn begin(
        gate: wit::GateBorrow<'_>,
        headers: Vec<wit::Header>,
        has_body: bool,
        now: wit::Time,
        entropy: wit::Entropy,
    ) -> (wit::Exchange, wit::Step) {
        let headers = borrowed(&headers);
        let (exchange, next) = exchange::Exchange::begin(
            &mut gate.get::<Gate>().0.borrow_mut(),
            Headers(&headers),
            has_body,
            time(now),
            self::entropy(entropy),
        );
        let exchange = wit::Exchange::new(Exchange(RefCell::new(exchange)));
        (exchange, step(next))
    }

    fn body(&self, gate: wit::GateBorrow<'_>, body: Vec<u8>, now: wit::Time) -> wit::Step {
        let mut gate = gate.get::<Gate>().0.borrow_mut();
        step(self.0.borrow_mut().body(&mut gate, &body, time(now)))
    }

    fn body_over_cap(&self, gate: wit::GateBorrow<'_>, now: wit::Time) -> wit::Step {
        let gate = gate.get::<Gate>().0.borrow();
        step(self.0.borrow_mut().body_over_cap(&gate, time(now)))
    }

    fn swapped(
        &self,
        gate: wit::GateBorrow<'_>,
        outcome: Result<Vec<Vec<u8>>, wit::Refused>,
        now: wit::Time,
    ) -> wit::Step {
        let outcome = outcome.map_err(|refused| {
            let refusal = match refused.why {
                wit::Refusal::NoLease | wit::Refusal::Unreadable => Refusal::NoLease,
                wit::Refusal::Short => Refusal::Short,
                wit::Refusal::Exhausted(exhausted) => Refusal::Exhausted {
                    retry_ms: time(exhausted.retry).millis(),
                    left: exhausted.left,
                },
                wit::Refusal::AlreadyAsked => Refusal::AlreadyAsked,
            };
            (size(refused.at), refusal)
        });
        let mut gate = gate.get::<Gate>().0.borrow_mut();
        let mut exchange = self.0.borrow_mut();
        let outcome = outcome.map(|cells| {
            let charges = exchange.decision().charges.iter().zip(&cells);
            charges
                .map(|(charge, cell)| charge.reserve().taken(&Cell::decode(cell)))
                .collect()
        });
        step(exchange.swapped(&mut gate, outcome, time(now)))
    }

    fn retry(&self) -> wit::Step {
        step(self.0.borrow_mut().retry())
    }

    fn wants_response(&self) -> bool {
        self.0.borrow().wants_response()
    }

    fn response_head(&self, headers: Vec<wit::Header>) -> wit::ResponseHead {
        let headers = borrowed(&headers);
        let head = self.0.borrow_mut().response_head(Headers(&headers));
        wit::ResponseHead {
            head: head_edits(head.remove, head.set),
            hold: head.hold.map(|cap| cap as u64),
        }
    }

    fn response_chunk(&self, gate: wit::GateBorrow<'_>, chunk: Vec<u8>, end: bool) -> wit::Output {
        let gate = gate.get::<Gate>().0.borrow();
        output(self.0.borrow_mut().response_chunk(&gate, &chunk, end))
    }

    fn response_over_cap(&self) -> wit::Output {
        output(self.0.borrow_mut().response_over_cap())
    }

    fn id(&self) -> String {
        self.0.borrow().id().to_string()
    }

    fn decision(&self) -> wit::Decision {
        decision(self.0.borrow().decision())
    }

    fn finish(exchange: wit::Exchange, end: wit::End, now: wit::Time) -> wit::Finished {
        let end = match end {
            wit::End::Complete => exchange::End::Complete,
            wit::End::ClientLeft => exchange::End::ClientLeft,
            wit::End::UpstreamBroken => exchange::End::UpstreamBroken,
        };
        let exchange = exchange.into_inner::<Exchange>().0.into_inner();
        let finished = exchange.finish(end, time(now));
        wit::Finished {
            ops: cell_ops(finished.ops),
            record: finished.record,
            observed: wit::Observed {
                outcome: outcome(finished.observed.outcome),
                cause: finished.observed.cause.map(cause),
                decide_us: finished.observed.decide_us,
                uninspected: finished.observed.uninspected,
                estimated: finished.observed.estimated,
            },
        }
    }
}

fn output(output: exchange::Output) -> wit::Output {
    match output {
        exchange::Output::Pass => wit::Output::Pass,
        exchange::Output::Replace(bytes) => wit::Output::Replace(bytes),
        exchange::Output::Cut(bytes) => wit::Output::Cut(bytes),
        exchange::Output::Answer(answer) => wit::Output::Answer(reply(answer, Vec::new())),
    }
}

pub(crate) fn time(micros: wit::Time) -> Time {
    Time::from_micros(micros)
}

pub(crate) fn entropy((high, low): wit::Entropy) -> u128 {
    u128::from(high) << 64 | u128::from(low)
}

/// A count of the host's. `usize` is no narrower on any target a component is built for.
pub(crate) fn size(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

pub(crate) fn set_headers(headers: Vec<(&'static str, String)>) -> Vec<wit::SetHeader> {
    headers
        .into_iter()
        .map(|(name, value)| (name.to_string(), value))
        .collect()
}

pub(crate) fn span(span: ledger::Span) -> wit::Span {
    wit::Span {
        start: span.start,
        end: span.end,
    }
}

pub(crate) fn cell_op(cell_op: exchange::CellOp) -> wit::CellOp {
    wit::CellOp {
        account: cell_op.account.to_string(),
        key: cell_op.account.cell_key(),
        op: cell_op.op.encode(),
    }
}

pub(crate) fn cell_ops(ops: Vec<exchange::CellOp>) -> Vec<wit::CellOp> {
    ops.into_iter().map(cell_op).collect()
}

fn borrowed(headers: &[wit::Header]) -> Vec<(&[u8], &[u8])> {
    headers
        .iter()
        .map(|(name, value)| (name.as_slice(), value.as_slice()))
        .collect()
}

fn head_edits(remove: Vec<&'static str>, set: Vec<(&'static str, String)>) -> wit::HeadEdits {
    wit::HeadEdits {
        remove: remove.into_iter().map(str::to_string).collect(),
        set: set_headers(set),
    }
}

fn step(step: Step) -> wit::Step {
    match step {
        Step::NeedBody { cap } => wit::Step::NeedBody(u64::try_from(cap).unwrap_or(u64::MAX)),
        Step::Swap(ops) => wit::Step::Swap(cell_ops(ops)),
        Step::AwaitLease {
            undo,
            wants,
            deadline,
        } => wit::Step::AwaitLease(wit::AwaitLease {
            undo: cell_ops(undo),
            wants: wants
                .into_iter()
                .map(|want| wit::Want {
                    account: want.account.to_string(),
                    span: span(want.span),
                    amount: want.amount,
                })
                .collect(),
            deadline: deadline.micros(),
        }),
        Step::Forward(forward) => wit::Step::Forward(wit::Forward {
            head: head_edits(forward.remove, forward.set),
            body: forward.body,
        }),
        Step::Reply {
            reply: answer,
            undo,
        } => wit::Step::Reply(reply(answer, undo)),
    }
}

fn reply(reply: Reply, undo: Vec<exchange::CellOp>) -> wit::Reply {
    wit::Reply {
        status: reply.status,
        headers: set_headers(reply.headers),
        body: reply.body.into_bytes(),
        undo: cell_ops(undo),
    }
}

fn decision(decision: &decide::Decision) -> wit::Decision {
    wit::Decision {
        outcome: outcome(decision.outcome),
        reasons: decision
            .reasons
            .iter()
            .map(|reason| wit::Reason {
                rule: reason.rule.to_string(),
                document: reason.document.clone(),
                message: reason.message.to_string(),
                cause: cause(reason.cause),
            })
            .collect(),
        worst_case_nano_usd: decision.worst_case_nano_usd,
    }
}

fn outcome(outcome: decide::Outcome) -> wit::Outcome {
    match outcome {
        decide::Outcome::Allow => wit::Outcome::Allow,
        decide::Outcome::Redact => wit::Outcome::Redact,
        decide::Outcome::Hold => wit::Outcome::Hold,
        decide::Outcome::Deny => wit::Outcome::Deny,
    }
}

fn cause(cause: decide::Cause) -> wit::Cause {
    match cause {
        decide::Cause::Identity => wit::Cause::Identity,
        decide::Cause::Halted => wit::Cause::Halted,
        decide::Cause::Policy => wit::Cause::Policy,
        decide::Cause::Redaction => wit::Cause::Redaction,
        decide::Cause::Approval => wit::Cause::Approval,
        decide::Cause::Rate => wit::Cause::Rate,
        decide::Cause::Budget => wit::Cause::Budget,
        decide::Cause::Malformed => wit::Cause::Malformed,
        decide::Cause::TooLarge => wit::Cause::TooLarge,
        decide::Cause::Unavailable => wit::Cause::Unavailable,
    }
}
