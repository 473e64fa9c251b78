//! One governed call, from its first header to its record.
//!
//! An [`Exchange`] is driven by the host and never calls back. The contract:
//!
//! 1. [`Exchange::begin`] with the request's headers. It returns a [`Step`]; carry it out and hand in what it asks for, until the step is
//!    [`Step::Forward`] or [`Step::Reply`].
//! 2. After `Forward`: [`Exchange::response_head`] once, [`Exchange::response_chunk`] for every chunk, the last one with `end` set or answered
//!    with [`Output::Cut`] or [`Output::Answer`]. Follow the newest bundle before each. Where the head is to be held, see [`ResponseHead::hold`].
//! 3. [`Exchange::finish`] always, exactly once, also when the client left or nothing came back. It consumes the exchange, so a call cannot
//!    settle twice. Carry out its cell operations and append its record to the journal.
//!
//! Cells are changed only by applying a [`CellOp`] in one atomic swap. When an operation of [`Step::Swap`] is refused, stop there and hand
//! in what was refused; `undo` operations cannot be refused.

mod answer;
mod body;
mod content;
mod record;

pub use body::TOOL_OUTPUT_IS_DATA;
pub use content::MAX_CONTENT_BYTES;

use crate::{
    approval,
    bundle::Unusable,
    decide::{self, Cause, Charge, Decision, LEAST_OUTPUT_TOKENS, Outcome, Reason},
    facts::{self, Dialect, Facts, GOAL_HEADER, Head, Headers, RUN_HEADER, Route, Said},
    gate::{Found, Gate, Search, Watches},
    halt,
    identity::{self, Caller, TOKEN_HEADER},
    ledger::{Account, Cell, Op, Refusal, Span, Unit, Window},
    meter::{Meter, Metered, Provider},
    price::Price,
    quota,
    reply::{self, Reply},
    rpc,
    sift::Sift,
    sse,
    time::Time,
};
use alloc::{
    format,
    rc::Rc,
    string::{String, ToString},
    vec::Vec,
};
use body::{Changes, keep_to, read_body, search_target};
use content::Content;
use core::fmt;
use serde::Serialize;

/// How long a call waits for a lease that nobody here has: one second. A round trip takes milliseconds; whoever needs longer is down.
pub const LEASE_WAIT_MS: i64 = 1_000;

/// When to try again to begin a run: by then some of those of the last hour are older.
const RUN_WAIT_SECS: i64 = 60;

/// Headers that never reach the upstream.
const NEVER_SENT: [&str; 11] = [
    TOKEN_HEADER,
    RUN_HEADER,
    GOAL_HEADER,
    // What was judged must be what the upstream reads: some take another method or path from these…
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-url",
    "x-rewrite-url",
    // …or another host.
    "forwarded",
    "x-forwarded-host",
    // For the next hop alone (RFC 9110 §11.7.1), which is this one.
    "proxy-authorization",
];

/// Headers that say who calls, or who pays. They do not go along with the gate's own key.
const CREDENTIALS: [&str; 7] = [
    "authorization",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "cookie",
    "openai-organization",
    "openai-project",
];

/// Does not go along where the answer must be read.
const COMPRESSED: &str = "accept-encoding";

/// What the host must do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Buffer the whole request body, at most `cap` bytes, and hand it to [`Exchange::body`]; past the cap call
    /// [`Exchange::body_over_cap`]. Send nothing on meanwhile.
    NeedBody {
        /// Bytes.
        cap: usize,
    },
    /// Apply these in order, stop at the first that is refused, and tell [`Exchange::swapped`].
    Swap(Vec<CellOp>),
    /// Apply `undo`, hold the call, fetch leases for `wants`, then (or at `deadline` at the latest) call [`Exchange::retry`]. Where nothing is
    /// wanted, at once: the call asks for less.
    AwaitLease {
        /// Gives back what was reserved before the refusal.
        undo: Vec<CellOp>,
        /// What to ask the control plane for.
        wants: Vec<Want>,
        /// When to give up.
        deadline: Time,
    },
    /// Send the request on, changed like this.
    Forward(Forward),
    /// Apply `undo` and answer the caller; nothing goes upstream.
    Reply {
        /// The answer.
        reply: Reply,
        /// Gives back what was reserved.
        undo: Vec<CellOp>,
    },
}

/// One change of one cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellOp {
    /// Whose cell; its key is [`Account::cell_key`].
    pub account: Account,
    /// The change.
    pub op: Op,
}

/// Spending rights that a call needs and nobody here has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// From which account.
    pub account: Account,
    /// In which window.
    pub span: Span,
    /// How much.
    pub amount: u64,
}

impl Want {
    /// Whether to ask for it, by what lies in the cell now: there is not enough, and the control plane has not said that there is no more.
    pub fn is_worth_asking(&self, mut cell: Cell, now: Time) -> bool {
        let reserve = Op::Reserve {
            span: self.span,
            amount: self.amount,
        };
        matches!(
            reserve.change(&mut cell, now),
            Err(Refusal::NoLease | Refusal::Short)
        )
    }
}

/// How to change a request before it is sent on.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Forward {
    /// Header names to take out, lower case. Each is there, and none of them is among those to set.
    pub remove: Vec<&'static str>,
    /// Headers to set, replacing what was there.
    pub set: Vec<(&'static str, String)>,
    /// A new body (its length is among `set`); `None` leaves it.
    pub body: Option<Vec<u8>>,
}

impl fmt::Debug for Forward {
    /// Without values and body: the provider's key is among the headers, and the body is the caller's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set: Vec<&str> = self.set.iter().map(|(name, _)| *name).collect();
        f.debug_struct("Forward")
            .field("remove", &self.remove)
            .field("set", &set)
            .field("body_bytes", &self.body.as_ref().map(Vec::len))
            .finish()
    }
}

/// How to change a response's head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResponseHead {
    /// Header names to take out.
    pub remove: Vec<&'static str>,
    /// Headers to set.
    pub set: Vec<(&'static str, String)>,
    /// Send neither head nor body on until the body is whole and [`Exchange::response_chunk`] has had all of it, in one piece or in several; if it
    /// has more bytes than this, call [`Exchange::response_over_cap`]. What goes out then is what the chunks were answered with, or an
    /// [`Output::Answer`] in place of it all.
    pub hold: Option<usize>,
}

/// How an exchange came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The whole response passed.
    Complete,
    /// The caller went away first.
    ClientLeft,
    /// The response did not come, or broke off.
    UpstreamBroken,
}

/// What is left to do when an exchange is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Settlements; apply each (they cannot be refused).
    pub ops: Vec<CellOp>,
    /// One line of JSON for the journal, without a newline.
    pub record: Vec<u8>,
    /// For metrics.
    pub observed: Observed,
}

/// What metrics count of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The outcome.
    pub outcome: Outcome,
    /// What a denial was about.
    pub cause: Option<Cause>,
    /// Time from the first header to the decision, the wait for body and lease included.
    pub decide_us: i64,
    /// A body passed that nobody looked at.
    pub uninspected: bool,
    /// Settled on an estimate.
    pub estimated: bool,
}

/// What an exchange waits for. Whatever else it is given comes from a host that is driven out of order: it changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaiting {
    Body,
    Swap,
    Lease,
    /// The verdict has been given and stands.
    Nothing,
}

/// One call.
pub struct Exchange {
    id: String,
    started: Time,
    decided: Time,
    revision: u64,
    head: Option<Head>,
    facts: Option<Facts>,
    found: Found,
    /// What of the call a pattern matches and a record would hold.
    veiled: Vec<String>,
    dialect: Dialect,
    caller: Option<Rc<Caller>>,
    /// All that decided is kept, for [`Exchange::explain`].
    explained: bool,
    /// Headers that carry the agent's token.
    token_in: Vec<&'static str>,
    /// Which of the headers that may have to be taken out the request has.
    removable: Vec<&'static str>,
    awaiting: Awaiting,
    decision: Decision,
    /// What documents in shadow would have made of it.
    shadow: Option<Decision>,
    forward: Forward,
    hide_usage: bool,
    /// How many stretches of the body were taken out.
    redacted: u64,
    /// The model was told what tool output is.
    instructed: bool,
    /// The output tokens that one answer was kept to, because a budget covers no more.
    lowered: Option<u64>,
    /// The body that goes out, before it is asked for its usage, as long as it may have to be lowered.
    lowerable: Option<Vec<u8>>,
    /// How often it may still be lowered: a refusal of each account makes it less.
    lowerings_left: usize,
    /// The name of the approval that it needs; [`Decision::charges`] begin with what takes it.
    approval: Option<String>,
    /// What asked for it, once it is granted.
    approved: Vec<Reason>,
    reserved: bool,
    /// What was taken of each limit once this call had its share.
    taken: Vec<u64>,
    /// Closes the account that refused the call, where its limit says so.
    suspend: Option<CellOp>,
    waiting_until: Option<Time>,
    /// What goes on record of its content.
    content: Option<Content>,
    sent: bool,
    answered: Option<u16>,
    upstream_status: Option<u16>,
    meter: Option<Meter>,
    metered: Option<Metered>,
    /// The answer to a JSON-RPC request, where a limit counts those that fail.
    rpc: Option<rpc::Answer>,
    /// What is looked for in the answer.
    watches: Watches,
    /// How many bytes of it are held at most.
    answer_cap: usize,
    /// Searches it, once it comes…
    sift: Option<Sift>,
    /// …and for documents in shadow, whose word changes nothing.
    observer: Option<Sift>,
    /// Why nobody can: it ends at its first byte.
    answer_refused: Option<Reason>,
    /// The answer passes though nobody looks at it.
    answer_uninspected: bool,
    /// The response, where it is one of events: it may be ended early.
    stream: Option<Stream>,
    /// It was.
    cut: bool,
}

/// What to send on for a chunk of the response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// The chunk as it is.
    Pass,
    /// These bytes instead; possibly none.
    Replace(Vec<u8>),
    /// These bytes instead, and then nothing more: end the response here, and the upstream's with it.
    Cut(Vec<u8>),
    /// In place of the whole response, of which nothing has been sent yet; give the upstream's up.
    Answer(Reply),
}

/// A response of events on its way.
#[derive(Clone, Copy, Debug)]
enum Stream {
    /// It can be ended between two of them, with a last one that says why.
    Events(sse::Place),
    /// Compressed, so nothing can be put behind what came.
    Encoded,
}

impl fmt::Debug for Exchange {
    /// Which call this is and where it stands; never what is in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange")
            .field("id", &self.id)
            .field("head", &self.head)
            .field("awaiting", &self.awaiting)
            .field("outcome", &self.decision.outcome)
            .finish_non_exhaustive()
    }
}

impl Exchange {
    /// Starts a call with an agent token among its headers. `has_body` is whether anything follows the headers; `entropy` names the decision
    /// and must not repeat.
    pub fn begin(
        gate: &mut Gate,
        headers: Headers<'_, '_>,
        has_body: bool,
        now: Time,
        entropy: u128,
    ) -> (Exchange, Step) {
        let mut exchange = Exchange::new(now, entropy);
        let step = exchange.identify(gate, headers, has_body, now);
        (exchange, step)
    }

    /// Starts a call whose caller is known otherwise (`tollgate decide`), and that may be asked to [`Exchange::explain`] itself.
    pub fn begin_as(
        gate: &mut Gate,
        caller: Caller,
        headers: Headers<'_, '_>,
        has_body: bool,
        now: Time,
        entropy: u128,
    ) -> (Exchange, Step) {
        let mut exchange = Exchange::new(now, entropy);
        exchange.caller = Some(Rc::new(caller));
        exchange.explained = true;
        let step = exchange.identify(gate, headers, has_body, now);
        (exchange, step)
    }

    fn new(now: Time, entropy: u128) -> Exchange {
        Exchange {
            id: format!("d-{entropy:032x}"),
            started: now,
            decided: now,
            revision: 0,
            head: None,
            facts: None,
            found: Found::default(),
            veiled: Vec::new(),
            dialect: Dialect::Problem,
            caller: None,
            explained: false,
            token_in: Vec::new(),
            removable: Vec::new(),
            awaiting: Awaiting::Body,
            decision: Decision::default(),
            shadow: None,
            forward: Forward::default(),
            hide_usage: false,
            redacted: 0,
            instructed: false,
            lowered: None,
            lowerable: None,
            lowerings_left: 0,
            approval: None,
            approved: Vec::new(),
            reserved: false,
            taken: Vec::new(),
            suspend: None,
            waiting_until: None,
            content: None,
            sent: false,
            answered: None,
            upstream_status: None,
            meter: None,
            metered: None,
            rpc: None,
            watches: Watches::default(),
            answer_cap: 0,
            sift: None,
            observer: None,
            answer_refused: None,
            answer_uninspected: false,
            stream: None,
            cut: false,
        }
    }

    /// Names the decision; also in the answer's `x-tollgate-decision` and in the record.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The decision so far.
    pub fn decision(&self) -> &Decision {
        &self.decision
    }

    /// What documents in shadow would have made of it; `None` where none applies, or it was not judged.
    pub fn shadow(&self) -> Option<&Decision> {
        self.shadow.as_ref()
    }

    /// What every document of the running bundle says to this call at `now`; empty when no document was asked (nobody known, nothing
    /// readable).
    pub fn explain(&self, gate: &Gate, now: Time) -> Vec<decide::Met> {
        match (gate.payload(now), &self.caller, &self.head, &self.facts) {
            (Ok(payload), Some(caller), Some(head), Some(facts)) => {
                let explain = |documents, search: &Search, hits| {
                    decide::explain(
                        (payload, documents),
                        &search.patterns,
                        caller,
                        head,
                        facts,
                        hits,
                        now,
                    )
                };
                let enforced = explain(&payload.documents, &gate.enforced, &self.found.enforced);
                let shadow = explain(&payload.shadow, &gate.shadow, &self.found.shadow);
                let shadow = shadow.into_iter().map(|met| decide::Met {
                    shadow: true,
                    ..met
                });
                enforced.into_iter().chain(shadow).collect()
            }
            _ => Vec::new(),
        }
    }

    fn identify(
        &mut self,
        gate: &mut Gate,
        headers: Headers<'_, '_>,
        has_body: bool,
        now: Time,
    ) -> Step {
        self.revision = gate.bundle().revision();
        let removable = NEVER_SENT
            .into_iter()
            .chain(CREDENTIALS)
            .chain([COMPRESSED]);
        self.removable = removable.filter(|name| headers.has(name)).collect();
        let head = match Head::read(headers, &gate.config.upstream) {
            Ok(head) => head,
            Err(why) => return self.malformed(why, now),
        };
        self.dialect = head.dialect;
        // Whatever becomes of the call, its path is put on record.
        if gate.searches() && gate.matches(&facts::percent_decoded(&head.path)) {
            self.veiled.push(head.path.clone());
        }
        self.head = Some(head);
        if let Err(why) = gate.payload(now) {
            return self.deny(vec_of(unusable(why)), None, now);
        }
        if self.caller.is_none() {
            let proven = identity::find_token(headers)
                .and_then(|token| gate.verify(token, now).map(|caller| (token, caller)));
            match proven {
                Ok((token, caller)) => {
                    self.caller = Some(caller);
                    // Wherever it stands: a client may send it in its own header and as the API key.
                    self.token_in = ["authorization", "x-api-key"]
                        .into_iter()
                        .filter(|name| {
                            let value = headers.only(name).ok().flatten();
                            value.is_some_and(|value| holds(value, token))
                        })
                        .collect();
                }
                Err(why) => {
                    let reason = Reason::of_gate(Cause::Identity, why.rule(), why.message());
                    return self.deny(vec_of(reason), None, now);
                }
            }
        }
        if let Some((_, refusal)) = self.halt(gate) {
            return self.deny(vec_of(refusal), None, now);
        }
        let Some(head) = &self.head else {
            return self.deny(Vec::new(), None, now);
        };
        let concerns_body = gate.bodies_matter
            || !matches!(head.route, Route::Plain)
            || head.dialect == Dialect::Mcp;
        if has_body && concerns_body {
            let cap = gate.config.body_cap_bytes;
            let declared = headers
                .first("content-length")
                .and_then(|length| length.parse::<usize>().ok());
            if declared.is_some_and(|declared| declared > cap) {
                return self.body_over_cap(gate, now);
            }
            return Step::NeedBody { cap };
        }
        let facts = Facts::of_head(head, has_body);
        let found = search_target(head, gate);
        self.evaluate(gate, facts, found, &[], now)
    }

    /// Hands in the whole body that [`Step::NeedBody`] asked for.
    pub fn body(&mut self, gate: &mut Gate, body: &[u8], now: Time) -> Step {
        let (Some(head), Awaiting::Body) = (&self.head, self.awaiting) else {
            return self.out_of_order(now);
        };
        if body.len() > gate.config.body_cap_bytes {
            return self.body_over_cap(gate, now);
        }
        if body.is_empty() {
            let facts = Facts::of_head(head, false);
            let found = search_target(head, gate);
            return self.evaluate(gate, facts, found, body, now);
        }
        match read_body(head, gate, body) {
            Ok((facts, found, edited)) => {
                self.dialect = facts.dialect;
                if let Some(edited) = edited {
                    self.hide_usage = true;
                    self.forward.body = Some(edited);
                }
                self.evaluate(gate, facts, found, body, now)
            }
            Err(why) => self.malformed(why, now),
        }
    }

    /// The body is larger than the cap.
    pub fn body_over_cap(&mut self, gate: &Gate, now: Time) -> Step {
        if self.awaiting != Awaiting::Body {
            return self.out_of_order(now);
        }
        let reason = Reason::of_gate(
            Cause::TooLarge,
            "request.body_too_large",
            format!(
                "the body is larger than the {} bytes this gate inspects",
                gate.config.body_cap_bytes
            ),
        );
        self.deny(vec_of(reason), None, now)
    }

    /// What an operator has stopped the caller or its run with, as of the newest bundle, and what the caller is told.
    fn halt(&self, gate: &Gate) -> Option<(halt::Kind, Reason)> {
        let caller = self.caller.as_deref()?;
        let run = self.head.as_ref().and_then(|head| head.run.as_deref());
        let halt = halt::on(gate.bundle().payload()?, caller, run)?;
        Some((halt.kind, halt.refusal(caller)))
    }

    fn evaluate(
        &mut self,
        gate: &mut Gate,
        mut facts: Facts,
        found: Found,
        body: &[u8],
        now: Time,
    ) -> Step {
        let (Some(head), Some(caller)) = (&self.head, &self.caller) else {
            return self.deny(Vec::new(), None, now);
        };
        // The bundle may have changed while the body came in; the one that runs now decides.
        self.revision = gate.bundle().revision();
        // Who is stopped need not be judged, and without a usable bundle nobody is.
        if let (Ok(_), Some((_, refusal))) = (gate.payload(now), self.halt(gate)) {
            return self.deny(vec_of(refusal), None, now);
        }
        let mut decision = match judge(gate, caller, head, &facts, &found, now) {
            Ok((decision, shadow)) => {
                self.shadow = shadow;
                decision
            }
            Err(why) => return self.deny(vec_of(unusable(why)), None, now),
        };
        let changes = Changes::of(gate, caller, &facts, &found, &decision, now);
        let mut changed_body = None;
        if !changes.is_empty() {
            match changes.make(head, gate, &facts, body) {
                Ok(changed) => {
                    self.redacted = changed.redacted;
                    self.instructed = changes.instruct;
                    self.forward.body = changed.edited.or_else(|| Some(changed.body.clone()));
                    facts = changed.facts;
                    changed_body = Some(changed.body);
                    // What goes out is what is paid for, and what somebody may have to approve.
                    if let Ok((mut again, _)) = judge(gate, caller, head, &facts, &found, now) {
                        again.still_asks(decision);
                        decision = again;
                    }
                }
                Err(message) => decision.insist(message),
            }
        }
        let watches = match decision.outcome {
            Outcome::Allow | Outcome::Redact | Outcome::Hold => gate.watch(caller, &facts).ok(),
            Outcome::Deny => Some(Watches::default()),
        };
        if decision.outcome == Outcome::Hold {
            // What goes out is what somebody approves, whatever it is lowered to.
            let body = changed_body.as_deref().unwrap_or(body);
            let name = approval::name(caller, head, &facts, body, &decision.demands);
            self.approval = Some(name);
        }
        let passes = decision.outcome < Outcome::Deny && reads_content(&facts);
        if let (true, Ok(payload)) = (passes && gate.records, gate.payload(now))
            && decide::records(&payload.documents, caller, &facts)
        {
            self.content = Some(Content::of(changed_body.as_deref().unwrap_or(body)));
        }
        if !found.is_empty() {
            let names = facts.names().filter(|name| gate.matches(name.as_bytes()));
            self.veiled.extend(names.map(String::from));
        }
        self.facts = Some(facts);
        self.found = found;
        self.answer_cap = gate.config.body_cap_bytes;
        let Some(watches) = watches else {
            return self.deny(vec_of(unsearchable()), None, now);
        };
        self.watches = watches;
        let lowers = decision.charges.iter().any(|charge| charge.lowers);
        if lowers || decision.lower.is_some() {
            self.lowerable = Some(changed_body.unwrap_or_else(|| body.to_vec()));
            self.lowerings_left = decision.charges.len();
        }
        if let Some(lower) = decision.lower.take() {
            decision = match self.lower(gate, lower.most, decision.price.as_ref(), now) {
                Some(lowered) => lowered,
                None => Decision::against(vec_of(lower.otherwise)),
            };
        }
        if decision.outcome == Outcome::Deny {
            self.decision.worst_case_nano_usd = decision.worst_case_nano_usd;
            return self.deny(decision.reasons, None, now);
        }
        self.decision = self.with_approval(decision);
        if self.decision.charges.is_empty() {
            return self.send(gate, now);
        }
        self.reserve()
    }

    /// Keeps each answer to `most` output tokens, and reads the new body as if it had come so. The decision on it, where it passes and needs
    /// nothing more; `None` leaves everything as it is.
    fn lower(
        &mut self,
        gate: &mut Gate,
        most: u64,
        price: Option<&Price>,
        now: Time,
    ) -> Option<Decision> {
        let (head, caller) = (self.head.as_ref()?, self.caller.as_ref()?);
        let (facts, body) = (self.facts.as_ref()?, self.lowerable.as_ref()?);
        if most < LEAST_OUTPUT_TOKENS {
            return None;
        }
        let reasons = price.is_some_and(|price| price.reasons);
        let body = keep_to(most, facts.route, reasons, body)?;
        let (read, found, edited) = read_body(head, gate, &body).ok()?;
        let likewise = Facts {
            said: Said {
                max_output_tokens: facts.said.max_output_tokens,
                ..read.said.clone()
            },
            ..read.clone()
        };
        if read.said.max_output_tokens != Some(most) || !likewise.decides_like(facts) {
            return None;
        }
        // The number itself may be what a pattern looks for.
        let (verdict, _) = judge(gate, caller, head, &read, &found, now).ok()?;
        let mut objections = verdict.reasons.iter();
        if objections.any(|reason| reason.cause != Cause::Approval) {
            return None;
        }
        let (decision, _) = judge(gate, caller, head, &read, &self.found, now).ok()?;
        if decision.outcome == Outcome::Deny || decision.lower.is_some() {
            return None;
        }
        self.forward.body = edited.or_else(|| Some(body.clone()));
        self.lowerable = Some(body);
        self.facts = Some(read);
        self.lowered = Some(most);
        Some(decision)
    }

    /// A decision, with what takes the approval first where it needs one.
    fn with_approval(&self, mut decision: Decision) -> Decision {
        let is_approval = |reason: &&Reason| reason.cause == Cause::Approval;
        let asks = decision.reasons.iter().find(is_approval);
        if let (Some(reason), Some(name), Some(caller)) = (asks, &self.approval, &self.caller) {
            let charge = approval::charge(caller, name, reason);
            decision.charges.insert(0, charge);
        }
        decision
    }

    fn reserve(&mut self) -> Step {
        self.awaiting = Awaiting::Swap;
        Step::Swap(
            self.decision
                .charges
                .iter()
                .map(|charge| CellOp {
                    account: charge.account.clone(),
                    op: charge.reserve(),
                })
                .collect(),
        )
    }

    /// Tells how [`Step::Swap`] went: `Ok` when all were applied, with [`Op::taken`] of each, else the place of the refused operation and why.
    pub fn swapped(
        &mut self,
        gate: &mut Gate,
        result: Result<Vec<u64>, (usize, Refusal)>,
        now: Time,
    ) -> Step {
        if self.awaiting != Awaiting::Swap {
            return self.out_of_order(now);
        }
        let (refused, refusal) = match result {
            Ok(taken) => {
                self.reserved = true;
                self.taken = taken;
                if self.approval.is_some() {
                    self.approved = self.decision.approved();
                }
                return self.send(gate, now);
            }
            Err(refused) => refused,
        };
        let undo: Vec<CellOp> = self
            .decision
            .charges
            .iter()
            .take(refused)
            .map(|charge| CellOp {
                account: charge.account.clone(),
                op: Op::Void {
                    start: charge.span.start,
                    reserved: charge.reserved(),
                },
            })
            .collect();
        if let Refusal::Exhausted { left, .. } = refusal
            && self.lower_to(refused, left, gate, now)
        {
            self.awaiting = Awaiting::Lease;
            return Step::AwaitLease {
                undo,
                wants: Vec::new(),
                deadline: now.plus_millis(LEASE_WAIT_MS),
            };
        }
        let Some(charge) = self.decision.charges.get(refused) else {
            return self.deny(Vec::new(), None, now);
        };
        match refusal {
            // Nobody has granted it.
            Refusal::Exhausted { .. } if charge.account.unit == Unit::Approvals => {
                let reasons = core::mem::take(&mut self.decision.reasons);
                with_undo(self.deny(reasons, None, now), undo)
            }
            // The end of a run that may not begin.
            Refusal::Exhausted { retry_ms: 0, .. } if charge.account.run.is_some() => {
                let reason = Reason::of_gate(
                    Cause::Rate,
                    "run.too_many",
                    "the agent has begun as many runs within an hour as it may; go on with one of them, or wait",
                );
                with_undo(self.deny(vec_of(reason), Some(RUN_WAIT_SECS), now), undo)
            }
            Refusal::Exhausted { .. } => {
                self.suspend = charge.suspend.then(|| CellOp {
                    account: charge.account.clone(),
                    op: Op::Suspend {
                        start: charge.span.start,
                        limit: charge.limit,
                        amount: charge.amount,
                    },
                });
                let reason = charge.refused();
                // A run that is over stays so.
                let resets = charge.account.window != Window::Run;
                let wait = resets.then(|| charge.span.end.saturating_sub(now.secs()));
                // Whatever is left, it is not enough.
                let limit = quota::headers([(charge, charge.limit)].into_iter(), now);
                let mut step = with_undo(self.deny(vec_of(reason), wait, now), undo);
                if let Step::Reply { reply, .. } = &mut step {
                    reply.headers.extend(limit);
                }
                step
            }
            Refusal::NoLease | Refusal::Short | Refusal::AlreadyAsked => {
                let deadline = *self
                    .waiting_until
                    .get_or_insert(now.plus_millis(LEASE_WAIT_MS));
                // A clock that was put back meanwhile must not make the caller wait for it to come round again.
                if now >= deadline || deadline.millis_since(now) > LEASE_WAIT_MS {
                    let (reasons, wait) = match charge.account.unit {
                        // Whether it has been granted or not: it waits for that.
                        Unit::Approvals => (core::mem::take(&mut self.decision.reasons), None),
                        _ => (vec_of(no_lease(charge)), Some(1)),
                    };
                    return with_undo(self.deny(reasons, wait, now), undo);
                }
                // What only counts needs no lease, and what waits for approval nothing but that.
                let waits = charge.account.unit == Unit::Approvals;
                let charges = self.decision.charges.iter();
                let wants = charges
                    .filter(|charge| !charge.alert)
                    .filter(|charge| !waits || charge.account.unit == Unit::Approvals)
                    .map(|charge| Want {
                        account: charge.account.clone(),
                        span: charge.span,
                        amount: charge.amount,
                    })
                    .collect();
                self.awaiting = Awaiting::Lease;
                Step::AwaitLease {
                    undo,
                    wants,
                    deadline,
                }
            }
        }
    }

    /// Whether the call can go on with fewer output tokens, which `left` of what the charge at `refused` takes from covers. It does then.
    fn lower_to(&mut self, refused: usize, left: u64, gate: &mut Gate, now: Time) -> bool {
        let (Some(charge), Some(facts)) = (self.decision.charges.get(refused), &self.facts) else {
            return false;
        };
        let Some(lowerings_left) = self.lowerings_left.checked_sub(1) else {
            return false;
        };
        if !charge.lowers {
            return false;
        }
        let price = self.decision.price;
        let most = decide::covered(charge.account.unit, left, &facts.said, price.as_ref());
        self.lowerings_left = lowerings_left;
        match self.lower(gate, most, price.as_ref(), now) {
            Some(decision) => {
                self.decision = self.with_approval(decision);
                true
            }
            None => false,
        }
    }

    /// A lease may have arrived, or the wait is over: tries the reservations again.
    pub fn retry(&mut self) -> Step {
        if self.awaiting != Awaiting::Lease {
            return self.out_of_order(self.decided);
        }
        self.reserve()
    }

    /// The name of the approval that the call waits for, or was let through by.
    fn approval(&self) -> Option<&str> {
        let waits = self.decision.outcome == Outcome::Hold;
        let granted = !self.approved.is_empty();
        self.approval.as_deref().filter(|_| waits || granted)
    }

    fn send(&mut self, gate: &Gate, now: Time) -> Step {
        self.decided = now;
        self.awaiting = Awaiting::Nothing;
        self.sent = true;
        self.lowerable = None;
        let mut forward = core::mem::take(&mut self.forward);
        if !self.explained {
            self.forget_content();
        }
        if let Some(body) = &forward.body {
            let length = body.len().to_string();
            forward.set.push(("content-length", length));
        }
        let mut unwanted = core::mem::take(&mut self.token_in);
        unwanted.extend(NEVER_SENT);
        let route = self.facts.as_ref().map(|facts| facts.route);
        let read = self.watches.enforced.is_some() || self.content.is_some();
        if matches!(route, Some(Route::Llm(_))) || read {
            // What must be read must not come compressed.
            unwanted.push(COMPRESSED);
        }
        if let (Some(head), true) = (&self.head, gate.config.upstream.llm) {
            let provider = match head.dialect {
                Dialect::Anthropic => Provider::AnthropicMessages,
                Dialect::OpenAi | Dialect::Mcp | Dialect::Problem => Provider::OpenAiChat,
            };
            if let Some(credential) = gate.config.credential(provider) {
                unwanted.extend(CREDENTIALS);
                forward.set.push(credential);
            }
        }
        // For a host each is a call of its own.
        forward.remove = core::mem::take(&mut self.removable);
        let replaced = |name: &str| forward.set.iter().any(|(set, _)| *set == name);
        forward
            .remove
            .retain(|name| unwanted.contains(name) && !replaced(name));
        Step::Forward(forward)
    }

    /// What only deciding needed may be as large as the body, and the upstream may take its time.
    fn forget_content(&mut self) {
        if let Some(head) = &mut self.head {
            head.target = Vec::new();
        }
        if let Some(facts) = &mut self.facts {
            facts.said.mcp_arguments = None;
            facts.said.connects = Vec::new();
            facts.said.tools.truncate(record::MAX_TOOLS);
        }
    }

    /// The verdict, once given, stands, and so do the reservations that are settled by it. What was never decided is denied.
    fn out_of_order(&mut self, now: Time) -> Step {
        if self.awaiting != Awaiting::Nothing {
            return self.deny(Vec::new(), None, now);
        }
        Step::Reply {
            reply: reply::denial(
                self.dialect,
                &[driven_out_of_order()],
                &self.id,
                None,
                None,
                None,
            ),
            undo: Vec::new(),
        }
    }

    fn malformed(&mut self, why: facts::Unreadable, now: Time) -> Step {
        let reason = Reason::of_gate(Cause::Malformed, why.rule, why.message);
        self.deny(vec_of(reason), None, now)
    }

    fn deny(&mut self, mut reasons: Vec<Reason>, retry_after: Option<i64>, now: Time) -> Step {
        if reasons.is_empty() {
            reasons.push(driven_out_of_order());
        }
        self.decided = now;
        self.awaiting = Awaiting::Nothing;
        // What does not go out was not changed.
        (self.redacted, self.instructed, self.lowered) = (0, false, None);
        self.lowerable = None;
        self.decision = Decision {
            worst_case_nano_usd: self.decision.worst_case_nano_usd,
            ..Decision::against(reasons)
        };
        // What was not to pass is not kept either.
        self.content = self
            .content
            .take()
            .filter(|_| self.decision.outcome == Outcome::Hold);
        let mcp_id = self
            .facts
            .as_ref()
            .and_then(|facts| facts.said.mcp_id.as_deref());
        let reply = reply::denial(
            self.dialect,
            &self.decision.reasons,
            &self.id,
            mcp_id,
            retry_after,
            self.approval(),
        );
        self.answered = Some(reply.status);
        Step::Reply {
            reply,
            undo: Vec::new(),
        }
    }
}

fn vec_of(reason: Reason) -> Vec<Reason> {
    Vec::from([reason])
}

fn with_undo(step: Step, operations: Vec<CellOp>) -> Step {
    match step {
        Step::Reply { reply, undo } => Step::Reply {
            reply,
            undo: [undo, operations].concat(),
        },
        other => other,
    }
}

/// Whether the bodies of a call, and of its answer, are messages.
fn reads_content(facts: &Facts) -> bool {
    !matches!(facts.route, Route::Plain)
}

/// Whether `part`, not empty, stands in `text`.
fn holds(text: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && text.windows(part.len()).any(|window| window == part)
}

fn unsearchable() -> Reason {
    Reason::of_gate(
        Cause::Policy,
        "data.unsearchable",
        "the answer to this call could not be searched for sensitive patterns",
    )
}

fn driven_out_of_order() -> Reason {
    Reason::of_gate(
        Cause::Unavailable,
        "gate.state",
        "the gate was driven out of order",
    )
}

fn unusable(why: Unusable) -> Reason {
    match why {
        Unusable::Missing => Reason::of_gate(
            Cause::Unavailable,
            "bundle.missing",
            "this gate has not received a policy bundle yet",
        ),
        Unusable::Expired => Reason::of_gate(
            Cause::Unavailable,
            "bundle.expired",
            "this gate's policy bundle has expired and no newer one has arrived",
        ),
    }
}

fn no_lease(charge: &Charge) -> Reason {
    Reason {
        rule: charge.rule.clone().into(),
        document: Some(charge.document.clone()),
        message:
            "the control plane did not answer in time, and without a lease nothing may be spent"
                .into(),
        cause: Cause::Unavailable,
    }
}

/// What the running bundle makes of a call, and what its documents in shadow would have made of it.
fn judge(
    gate: &Gate,
    caller: &Caller,
    head: &Head,
    facts: &Facts,
    found: &Found,
    now: Time,
) -> Result<(Decision, Option<Decision>), Unusable> {
    let payload = gate.payload(now)?;
    let patterns = &gate.enforced.patterns;
    let decision = decide::decide(payload, patterns, caller, head, facts, &found.enforced, now);
    let patterns = &gate.shadow.patterns;
    let shadow = decide::shadow(payload, patterns, caller, head, facts, &found.shadow, now);
    Ok((decision, shadow))
}
