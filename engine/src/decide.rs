//! The decision: one function over values.
//!
//! The order of checks is fixed here and nowhere else: schedule → network → capability, model, tool → data → approval → rate → budget.
//! (Identity and halts come before, in [`crate::exchange`]: who is not known cannot be judged, and who is stopped need not be.)
//! Every reason is collected; the most restrictive outcome wins.

mod explain;

pub use explain::{Met, Ruled, Verdict, explain};

use crate::{
    approval,
    bundle::{self, Calendar, Document, Documents, Level, Limit, Payload, Scope},
    condition,
    facts::{Facts, Head, Route, Said},
    identity::Caller,
    json,
    ledger::{Account, OTHER_MODELS, Op, Span, Unit, Window},
    price::{self, Price},
    scan::{self, Hits},
    sorted::sort_by,
    time::Time,
};
use alloc::{
    borrow::Cow,
    format,
    string::{String, ToString},
    vec::Vec,
};
use serde::Serialize;

/// What to do with a call, from least to most restrictive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Let it pass.
    #[default]
    Allow,
    /// Let it pass with parts removed.
    Redact,
    /// Ask somebody first.
    Hold,
    /// Refuse it.
    Deny,
}

impl Outcome {
    /// As records, metrics and people have it.
    pub const fn name(self) -> &'static str {
        match self {
            Outcome::Allow => "allow",
            Outcome::Redact => "redact",
            Outcome::Hold => "hold",
            Outcome::Deny => "deny",
        }
    }
}

/// What kind of obstacle a denial met; it decides the status and what the caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The caller did not say who it is, or not credibly.
    Identity,
    /// An operator has stopped the caller.
    Halted,
    /// A rule forbids it.
    Policy,
    /// It may pass without a part of its content.
    Redaction,
    /// Somebody must approve it first.
    Approval,
    /// Too many calls for now.
    Rate,
    /// The budget is used up.
    Budget,
    /// The request has no single reading.
    Malformed,
    /// The body is over the cap.
    TooLarge,
    /// The gate lacks what it needs to decide: a bundle, a lease.
    Unavailable,
}

impl Cause {
    /// The name used in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Cause::Identity => "identity",
            Cause::Halted => "halted",
            Cause::Policy => "policy",
            Cause::Redaction => "redaction",
            Cause::Approval => "approval",
            Cause::Rate => "rate",
            Cause::Budget => "budget",
            Cause::Malformed => "malformed",
            Cause::TooLarge => "too_large",
            Cause::Unavailable => "unavailable",
        }
    }

    /// What it makes of a call.
    pub const fn outcome(self) -> Outcome {
        match self {
            Cause::Redaction => Outcome::Redact,
            Cause::Approval => Outcome::Hold,
            Cause::Identity
            | Cause::Halted
            | Cause::Policy
            | Cause::Rate
            | Cause::Budget
            | Cause::Malformed
            | Cause::TooLarge
            | Cause::Unavailable => Outcome::Deny,
        }
    }

    /// HTTP status of a denial (RFC 9110 §15, RFC 6585 §4).
    pub const fn status(self) -> u16 {
        match self {
            Cause::Identity => 401,
            Cause::Halted | Cause::Policy | Cause::Redaction | Cause::Approval => 403,
            Cause::Rate | Cause::Budget => 429,
            Cause::Malformed => 400,
            Cause::TooLarge => 413,
            Cause::Unavailable => 503,
        }
    }
}

/// Why. Names the rule and the document it stands in; never contains matched text, tokens or keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// Such as `network.allowlist` or `tools.bash.allow`.
    pub rule: Cow<'static, str>,
    /// The document's name; `None` for what no document says.
    pub document: Option<String>,
    /// For people.
    pub message: Cow<'static, str>,
    /// What kind of obstacle it is.
    #[serde(skip)]
    pub cause: Cause,
}

impl Reason {
    /// A reason that no document gives.
    pub fn of_gate(
        cause: Cause,
        rule: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) -> Reason {
        Reason {
            rule: rule.into(),
            document: None,
            message: message.into(),
            cause,
        }
    }
}

/// What an allowed call takes from an account before it goes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    /// From which account.
    pub account: Account,
    /// Whose account it is: the caller's, 0, or that of the first, second… for whom it acts.
    pub principal: usize,
    /// In which window.
    pub span: Span,
    /// The worst case.
    pub amount: u64,
    /// The limit, for messages.
    pub limit: u64,
    /// Whether it suspends when the account cannot bear it.
    pub suspend: bool,
    /// Whether it only counts, because nothing but alerts are set on the account.
    pub alert: bool,
    /// Whether the call may go out with fewer output tokens when the account cannot bear it.
    pub lowers: bool,
    /// The field that sets it.
    pub rule: String,
    /// The document it stands in.
    pub document: String,
}

impl Charge {
    /// What takes it from its account.
    pub fn reserve(&self) -> Op {
        match (self.alert, self.account.unit.is_looked_at()) {
            (true, _) => Op::Count { span: self.span },
            (false, true) => Op::Look { span: self.span },
            (false, false) => Op::Reserve {
                span: self.span,
                amount: self.amount,
            },
        }
    }

    /// What [`Charge::reserve`] sets aside.
    pub fn reserved(&self) -> u64 {
        match self.alert || self.account.unit.is_looked_at() {
            true => 0,
            false => self.amount,
        }
    }

    /// The reason to give when the account cannot bear it.
    pub fn refused(&self) -> Reason {
        if self.account.window == Window::Run {
            return self.run_over();
        }
        let (cause, what) = match self.account.unit {
            Unit::Calls | Unit::Errors | Unit::Seconds | Unit::Goals | Unit::Approvals => {
                (Cause::Rate, "call rate")
            }
            Unit::Tokens => (Cause::Budget, "token budget"),
            Unit::NanoUsd => (Cause::Budget, "budget"),
        };
        let limit = self.account.unit.in_words(self.limit);
        let window = window_name(&self.account.window);
        let level = self.account.level.name();
        let whom = match self.principal {
            0 => format!("this {level}"),
            _ => on_behalf(level, &self.account.id),
        };
        Reason {
            rule: self.rule.clone().into(),
            document: Some(self.document.clone()),
            message: format!(
                "the {what} of {whom}{tool}{model}, {limit} per {window}, does not cover the call; it resets at {at}{suspended}",
                tool = self.account.tool.as_ref().map_or(String::new(), |tool| format!(" for {}", tools_in_words(tool))),
                model = self.account.model.as_ref().map_or(String::new(), |model| match model.as_str() {
                    OTHER_MODELS => " for models without a known price".to_string(),
                    model => format!(" for the model `{}`", shown(model)),
                }),
                at = Time::from_secs(self.span.end),
                // What is larger than the whole limit was refused before anything was asked of the account.
                suspended = match self.suspend && self.amount <= self.limit {
                    true => ", and once it is used up every call is refused until then",
                    false => "",
                },
            )
            .into(),
            cause,
        }
    }

    /// The reason to give when the account of a run cannot bear it.
    fn run_over(&self) -> Reason {
        let limit = self.account.unit.in_words(self.limit);
        let message = match self.account.unit {
            Unit::Calls => format!("the run has made the {limit} it may make to models"),
            Unit::Tokens | Unit::NanoUsd => {
                format!("the budget of the run, {limit}, does not cover the call")
            }
            Unit::Errors => format!("too many calls of the run have failed: {limit} are the most"),
            Unit::Seconds => format!("the run has lasted the {limit} that it may last"),
            Unit::Goals => "the run is done: its agent has said so".to_string(),
            Unit::Approvals => "nobody has approved the call".to_string(),
        };
        Reason {
            rule: self.rule.clone().into(),
            document: Some(self.document.clone()),
            message: message.into(),
            cause: Cause::Budget,
        }
    }
}

/// A principal's agent, team or organisation, in words.
pub(crate) fn on_behalf(level: &str, id: &str) -> String {
    format!("the {level} `{}` (for which this agent acts)", shown(id))
}

/// The tools that an account of `tool` counts, in words.
fn tools_in_words(tool: &str) -> String {
    match bundle::within_in(tool) {
        Some(("", document)) => format!("all tools that `{}` does not name", shown(document)),
        Some((tool, document)) => format!(
            "the tool `{}` in calls that `{}` is about",
            shown(tool),
            shown(document)
        ),
        None => format!("the tool `{}`", shown(tool)),
    }
}

/// A window in words.
fn window_name(window: &Window) -> String {
    match window {
        Window::Minute => "minute".to_string(),
        Window::Hour => "hour".to_string(),
        Window::Day(zone) => format!("day ({zone})"),
        Window::Week(zone) => format!("week ({zone})"),
        Window::Month(zone) => format!("month ({zone})"),
        Window::Run => "run".to_string(),
    }
}

/// The verdict on one call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// What to do.
    pub outcome: Outcome,
    /// Why not simply allow; empty on a plain allow.
    pub reasons: Vec<Reason>,
    /// What to reserve first; empty unless the call may go out, or could once somebody approves it.
    pub charges: Vec<Charge>,
    /// Limits that only warn, on accounts that the charges take from.
    pub alerts: Vec<Alert>,
    /// What the call may cost at most, in nano-USD, where the model's price is known.
    pub worst_case_nano_usd: Option<u64>,
    /// What its tokens are charged by: the model's price, or the dearest that a limit over it sets for models that the table does not know.
    pub price: Option<Price>,
    /// How many output tokens it has to be kept to before it may go out; judge it again then.
    pub lower: Option<Lower>,
    /// What asks for approval, each rule with its condition; of a call that is held.
    pub demands: Vec<Vec<u8>>,
}

/// A call whose worst case is unknown, or more than a whole limit that [lowers](Limit::lowers).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lower {
    /// Most output tokens of one answer that every such limit covers.
    pub most: u64,
    /// Why it is refused where it cannot be kept to them.
    pub otherwise: Reason,
}

/// Fewer output tokens than this are no answer: some fifty words. A call that is not covered with so many is refused.
pub const LEAST_OUTPUT_TOKENS: u64 = 64;

/// Most bytes by which a body grows when a gate writes into it how much may be put out: `,"max_completion_tokens":` has 25, the number at most ten
/// digits; rounded up.
const LOWERING_BYTES: u64 = 40;

/// Most tokens the prompt can come to; `None` where nothing bounds them. Files come to no more than the model takes in.
pub(crate) fn most_prompt(said: &Said, price: Option<&Price>) -> Option<u64> {
    let bound = said.prompt_tokens_bound;
    match said.files {
        true => Some(bound.max(price?.max_input_tokens?)),
        false => Some(bound),
    }
}

/// Most output tokens of one answer that `left` of `unit` covers, for tokens and money. No model puts out 2³².
pub(crate) fn covered(unit: Unit, left: u64, said: &Said, price: Option<&Price>) -> u64 {
    let grows = match said.max_output_tokens {
        Some(_) => 0,
        None => LOWERING_BYTES,
    };
    let Some(prompt) = most_prompt(said, price) else {
        return 0;
    };
    let prompt = prompt.saturating_add(grows);
    let fits = |most: u64| {
        let output = most.saturating_mul(said.answers);
        let needed = match (unit, price) {
            (Unit::Tokens, _) => Some(output.saturating_add(prompt)),
            (Unit::NanoUsd, Some(price)) => Some(price::worst_case(prompt, output, price)),
            (Unit::NanoUsd, None)
            | (Unit::Calls | Unit::Errors | Unit::Seconds | Unit::Goals | Unit::Approvals, _) => {
                None
            }
        };
        needed.is_some_and(|needed| needed <= left)
    };
    // What fits, fits with less.
    let bits = (0..32).rev().map(|bit| 1_u64 << bit);
    bits.fold(
        0,
        |most, bit| if fits(most | bit) { most | bit } else { most },
    )
}

/// A limit that only warns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    /// On which account.
    pub account: Account,
    /// Beyond what.
    pub limit: u64,
    /// The field that sets it.
    pub rule: String,
    /// The document it stands in.
    pub document: String,
}

impl Decision {
    /// What these reasons make of a call: the most restrictive of them decides, and without any it passes.
    pub fn of(reasons: Vec<Reason>) -> Decision {
        let outcomes = reasons.iter().map(|reason| reason.cause.outcome());
        Decision {
            outcome: outcomes.max().unwrap_or_default(),
            reasons,
            ..Decision::default()
        }
    }

    /// The same of a call that does not pass: without a reason it is denied.
    pub fn against(reasons: Vec<Reason>) -> Decision {
        match reasons.is_empty() {
            true => Decision {
                outcome: Outcome::Deny,
                ..Decision::default()
            },
            false => Decision::of(reasons),
        }
    }

    /// What the call, as it came, needed approval for, it needs as it goes out.
    pub(crate) fn still_asks(&mut self, before: Decision) {
        let asked = |reason: &Reason| reason.cause == Cause::Approval;
        for reason in before.reasons.into_iter().filter(asked) {
            let alike =
                |known: &Reason| (&known.rule, &known.document) == (&reason.rule, &reason.document);
            if !self.reasons.iter().any(alike) {
                self.reasons.push(reason);
            }
        }
        for demand in before.demands {
            if !self.demands.contains(&demand) {
                self.demands.push(demand);
            }
        }
        sort_by(&mut self.demands, Vec::cmp);
        let outcomes = self.reasons.iter().map(|reason| reason.cause.outcome());
        self.outcome = outcomes.fold(self.outcome, Outcome::max);
    }

    /// Somebody has approved what asks for approval: what is left of a call that was held.
    /// Gives the reasons to ask.
    pub(crate) fn approved(&mut self) -> Vec<Reason> {
        let reasons = core::mem::take(&mut self.reasons);
        let (asked, left) = reasons
            .into_iter()
            .partition(|reason| reason.cause == Cause::Approval);
        self.reasons = left;
        let outcomes = self.reasons.iter().map(|reason| reason.cause.outcome());
        self.outcome = outcomes.max().unwrap_or_default();
        asked
    }

    /// The body was to be changed and cannot be, so the call does not pass; `message` says why.
    pub fn insist(&mut self, message: &'static str) {
        let mut told = false;
        for reason in &mut self.reasons {
            if reason.cause == Cause::Redaction {
                reason.cause = Cause::Policy;
                reason.message = message.into();
                told = true;
            }
        }
        if !told {
            let reason = Reason::of_gate(Cause::Policy, "data.tool_output_is_data", message);
            self.reasons.push(reason);
        }
        *self = Decision {
            worst_case_nano_usd: self.worst_case_nano_usd,
            ..Decision::of(core::mem::take(&mut self.reasons))
        };
    }
}

/// Those of `documents` that a call meets.
fn met<'d>(documents: &'d Documents, caller: &Caller, facts: &Facts) -> Vec<&'d Document> {
    documents.met(caller, facts.tools())
}

/// Decides one call. `patterns` numbers the bundle's patterns as in [`crate::scan::distinct`]; `hits` are those found in the call.
pub fn decide(
    payload: &Payload,
    patterns: &[String],
    caller: &Caller,
    head: &Head,
    facts: &Facts,
    hits: &Hits,
    now: Time,
) -> Decision {
    let met = met(&payload.documents, caller, facts);
    let governed = |one| met.iter().any(|document| covers_one(&document.scope, one));
    if !caller.all().all(governed) {
        return Decision::against(Vec::from([Reason::of_gate(
            Cause::Policy,
            "policy.none",
            "no policy applies to this agent; nothing is allowed until one does",
        )]));
    }
    let question = Question {
        payload,
        met: &met,
        patterns,
        caller,
        head,
        facts,
        hits,
        now,
    };
    question.decide()
}

/// The patterns whose matches have to be taken out of a call that is decided with these facts and hits; the arguments are those of [`decide`].
pub fn redacted(
    payload: &Payload,
    patterns: &[String],
    caller: &Caller,
    facts: &Facts,
    hits: &Hits,
) -> Vec<String> {
    let found = met(&payload.documents, caller, facts)
        .into_iter()
        .filter(|document| document.searches(facts.said.mcp_tool.as_deref()))
        .flat_map(|document| &document.data.redactions)
        .flat_map(|redaction| &redaction.patterns)
        .map(String::as_str)
        .filter(|pattern| scan::has(patterns, hits, pattern));
    scan::distinct(found)
        .into_iter()
        .map(String::from)
        .collect()
}

/// The documents that look for something in the answer to a call.
pub(crate) fn watching<'d>(
    documents: &'d Documents,
    caller: &Caller,
    facts: &Facts,
) -> Vec<&'d Document> {
    let mut met = met(documents, caller, facts);
    met.retain(|document| document.searches_answers(facts.said.mcp_tool.as_deref()));
    met
}

/// Whether the model that a call goes to has to be told what tool output is.
pub(crate) fn instructs(documents: &Documents, caller: &Caller, facts: &Facts) -> bool {
    matches!(facts.route, Route::Llm(_) | Route::CountTokens)
        && facts.said.tools_at_work
        && met(documents, caller, facts)
            .iter()
            .any(|document| document.data.tool_output_is_data)
}

/// Whether the content of a call is put on record.
pub(crate) fn records(documents: &Documents, caller: &Caller, facts: &Facts) -> bool {
    let met = met(documents, caller, facts);
    met.iter().any(|document| document.data.recorded)
}

/// What the documents in shadow would have made of a call; `None` where none of them applies. `patterns` and `hits` are theirs. Nothing is
/// taken from accounts, so a limit speaks only where it cannot hold the call whatever was spent before.
pub fn shadow(
    payload: &Payload,
    patterns: &[String],
    caller: &Caller,
    head: &Head,
    facts: &Facts,
    hits: &Hits,
    now: Time,
) -> Option<Decision> {
    let met = met(&payload.shadow, caller, facts);
    if met.is_empty() {
        return None;
    }
    let question = Question {
        payload,
        met: &met,
        patterns,
        caller,
        head,
        facts,
        hits,
        now,
    };
    Some(Decision::of(question.decide().reasons))
}

/// A call and what it is judged by.
struct Question<'q> {
    payload: &'q Payload,
    met: &'q [&'q Document],
    patterns: &'q [String],
    caller: &'q Caller,
    head: &'q Head,
    facts: &'q Facts,
    hits: &'q Hits,
    now: Time,
}

impl Question<'_> {
    fn decide(&self) -> Decision {
        let cost = Cost::of(self.payload, self.met, self.facts);
        let mut reasons = Vec::new();
        for document in self.met {
            let mut check = Check {
                document,
                reasons: &mut reasons,
            };
            check.schedule(self.now);
            check.network(self.head, self.facts);
            check.model(self.facts);
            check.tools(self.facts);
            check.data(self.facts, self.patterns, self.hits);
            check.approval(
                self.caller,
                self.head,
                self.facts,
                cost.worst_nano_usd,
                self.now,
            );
        }
        let limits = limits(
            (&self.payload.calendars, self.met),
            (self.caller, self.head.run.as_deref()),
            self.facts,
            &cost,
            self.now,
        );
        reasons.extend(limits.refused);
        let verdict = Decision::of(reasons);
        let worst_case_nano_usd = limits.worst_case_nano_usd;
        match verdict.outcome {
            Outcome::Allow | Outcome::Redact | Outcome::Hold => Decision {
                demands: approval::demands(self.met, &verdict.reasons),
                charges: limits.charges,
                alerts: limits.alerts,
                lower: limits.lower,
                worst_case_nano_usd,
                price: match self.facts.route {
                    Route::Llm(_) => cost.price.copied().or_else(|| dearest_unknown(self.met)),
                    Route::LlmUnknown | Route::CountTokens | Route::Mcp | Route::Plain => None,
                },
                ..verdict
            },
            Outcome::Deny => Decision {
                worst_case_nano_usd,
                ..verdict
            },
        }
    }
}

/// What a call may cost, as far as that can be known.
struct Cost<'p> {
    /// The name that the table has the model under.
    known_as: Option<&'p str>,
    /// Of the model, where the table knows it.
    price: Option<&'p Price>,
    /// Most tokens its prompt can come to.
    prompt: Option<u64>,
    /// Most tokens the call can make a model put out, all answers together.
    output: Option<u64>,
    /// At most, in nano-USD. What generates nothing costs nothing.
    worst_nano_usd: Option<u64>,
}

impl<'p> Cost<'p> {
    fn of(payload: &'p Payload, met: &[&Document], facts: &Facts) -> Cost<'p> {
        let said = &facts.said;
        let entry = said
            .model
            .as_deref()
            .and_then(|model| payload.prices.entry(model));
        let (known_as, price) = entry.unzip();
        let output = said
            .max_output_tokens
            .or_else(|| price?.max_output_tokens)
            .map(|tokens| tokens.saturating_mul(said.answers));
        let prompt = most_prompt(said, price);
        let worst_nano_usd = match facts.route {
            // Of what the provider adds nobody knows.
            Route::Llm(_) if said.hosted => None,
            Route::Llm(_) => price
                .zip(output)
                .zip(prompt)
                .map(|((price, output), prompt)| price::worst_case(prompt, output, price)),
            Route::LlmUnknown => None,
            Route::Mcp => Some(tool_cost(met, facts)),
            Route::CountTokens | Route::Plain => Some(0),
        };
        Cost {
            known_as,
            price,
            prompt,
            output,
            worst_nano_usd,
        }
    }
}

/// What the call of a tool costs: the most that a document over it says, in nano-USD.
fn tool_cost(met: &[&Document], facts: &Facts) -> u64 {
    let Some(tool) = &facts.said.mcp_tool else {
        return 0;
    };
    let costs = met.iter().filter_map(|document| document.tool_cost(tool));
    costs.max().unwrap_or(0)
}

/// Whether a document of this scope applies to everything `caller` does, or one for whom it acts.
pub(crate) fn covers(scope: &Scope, caller: &Caller) -> bool {
    caller.all().any(|one| covers_one(scope, one))
}

/// Whether a document of this scope applies to everything this agent does, whoever it acts for.
pub fn covers_one(scope: &Scope, caller: &Caller) -> bool {
    match scope {
        Scope::Global => true,
        Scope::Org(org) => caller.org.as_deref() == Some(org),
        Scope::Team(team) => caller.team.as_deref() == Some(team),
        Scope::Agent(agent) => caller.agent == **agent,
        Scope::Tool(_) => false,
    }
}

/// Those of a caller (0) and all it acts for (1, 2…) whom a document of this scope is about. One of a tool is about all.
fn concerned<'c>(scope: &Scope, caller: &'c Caller) -> impl Iterator<Item = (usize, &'c Caller)> {
    let of_tool = matches!(scope, Scope::Tool(_));
    let all = caller.all().enumerate();
    all.filter(move |(_, one)| of_tool || covers_one(scope, one))
}

/// Whether a condition of a document of this scope holds for one of those it is about; the error says why that cannot be known.
pub fn holds(
    condition: &condition::Program,
    scope: &Scope,
    call: &condition::Call<'_>,
) -> Result<bool, &'static str> {
    concerned(scope, call.caller)
        .map(|(_, caller)| condition.holds(&condition::Call { caller, ..*call }))
        .find(|holds| *holds != Ok(false))
        .unwrap_or(Ok(false))
}

/// The hosts that a call goes to: the one it is sent to, and those that the provider is told to go to for it.
fn called<'c>(head: &'c Head, facts: &'c Facts) -> impl Iterator<Item = &'c String> {
    core::iter::once(&head.host).chain(&facts.said.connects)
}

/// One document against one call.
struct Check<'c> {
    document: &'c Document,
    reasons: &'c mut Vec<Reason>,
}

impl Check<'_> {
    fn refuse(&mut self, rule: impl Into<Cow<'static, str>>, message: String) {
        self.object(Cause::Policy, rule.into(), message);
    }

    fn object(&mut self, cause: Cause, rule: Cow<'static, str>, message: String) {
        self.reasons.push(Reason {
            rule,
            document: Some(self.document.name.clone()),
            message: message.into(),
            cause,
        });
    }

    fn schedule(&mut self, now: Time) {
        let Some(active) = &self.document.active else {
            return;
        };
        if !active.is_open(now) {
            let next = active
                .opens_after(now)
                .map_or(String::new(), |at| format!("; they begin again at {at}"));
            self.refuse(
                "schedule.active_hours",
                format!("it is outside the active hours, {}{next}", active.hours),
            );
        }
    }

    /// Where the call goes, and where the provider is told to go for it.
    fn network(&mut self, head: &Head, facts: &Facts) {
        let network = &self.document.network;
        if network.is_absent() {
            return;
        }
        for host in called(head, facts) {
            if network.omits(host) {
                self.refuse(
                    "network.allowlist",
                    format!("the host `{host}` is not on the allowlist"),
                );
            }
            if network.denies(host) {
                self.refuse(
                    "network.denylist",
                    format!("the host `{host}` is on the denylist"),
                );
            }
        }
        if network.denied {
            self.refuse(
                "capabilities.deny",
                "outbound network connections are denied".to_string(),
            );
        }
    }

    fn model(&mut self, facts: &Facts) {
        let models = &self.document.models;
        if models.is_open() {
            return;
        }
        match (&facts.said.model, facts.route) {
            (Some(model), _) if models.denies(model) => {
                self.refuse(
                    "capabilities.deny",
                    format!("the model `{}` is denied", shown(model)),
                );
            }
            (Some(model), _) if models.omits(model) => self.refuse(
                "capabilities.allow",
                format!("the model `{}` is not among those allowed", shown(model)),
            ),
            (None, Route::Llm(_) | Route::CountTokens | Route::LlmUnknown) => self.refuse(
                "capabilities.model",
                "the call names no model, and this policy restricts models".to_string(),
            ),
            (Some(_), _) | (None, Route::Mcp | Route::Plain) => {}
        }
    }

    fn tools(&mut self, facts: &Facts) {
        let tools = &self.document.tools;
        for tool in facts.tools().filter(|_| !tools.is_absent()) {
            let denied = tools
                .denied
                .iter()
                .find(|denied| denied.eq_ignore_ascii_case(tool));
            if let Some(denied) = denied {
                let rule = format!("tools.{denied}.allow");
                self.refuse(rule, format!("the tool `{}` is not allowed", shown(denied)));
            } else if let Some(others) = &tools.others
                && others.denied
                && others.includes(tool)
            {
                self.refuse(
                    "tools.*.allow",
                    format!("the tool `{}` is not among those allowed", shown(tool)),
                );
            }
        }
        if !facts.said.connects.is_empty() && !self.document.mcp_tools.is_open() {
            self.refuse(
                "capabilities.mcp_tool",
                "the provider is told to call MCP servers itself, and this policy restricts MCP tools"
                    .to_string(),
            );
        }
        if let Some(tool) = &facts.said.mcp_tool {
            if self.document.mcp_tools.denies(tool) {
                self.refuse(
                    "capabilities.deny",
                    format!("the MCP tool `{}` is denied", shown(tool)),
                );
            } else if self.document.mcp_tools.omits(tool) {
                self.refuse(
                    "capabilities.allow",
                    format!("the MCP tool `{}` is not among those allowed", shown(tool)),
                );
            }
        }
    }

    fn data(&mut self, facts: &Facts, patterns: &[String], hits: &Hits) {
        if !self.document.searches(facts.said.mcp_tool.as_deref()) {
            return;
        }
        if hits.is_unfinished() && self.document.searched().next().is_some() {
            self.refuse(
                "data.unsearchable",
                "searching the content for sensitive patterns takes more effort than a gate spends on one call".to_string(),
            );
        }
        for (index, pattern) in self.document.data.patterns.iter().enumerate() {
            if scan::has(patterns, hits, pattern) {
                self.refuse(
                    format!("data.sensitive_patterns[{index}]"),
                    "the content matches a sensitive pattern".to_string(),
                );
            }
        }
        for redaction in &self.document.data.redactions {
            let mut looked_for = redaction.patterns.iter();
            if looked_for.any(|pattern| scan::has(patterns, hits, pattern)) {
                self.object(
                    Cause::Redaction,
                    redaction.rule.clone().into(),
                    "what matches a sensitive pattern is taken out of the content".to_string(),
                );
            }
        }
    }
}

impl Check<'_> {
    fn approval(
        &mut self,
        caller: &Caller,
        head: &Head,
        facts: &Facts,
        cost_nano_usd: Option<u64>,
        now: Time,
    ) {
        let document = self.document;
        let named = document.tools.approvals.iter().filter_map(|approval| {
            let is_it = |used: &&str| used.eq_ignore_ascii_case(&approval.tool);
            let tool = facts.tools().find(is_it)?;
            Some((
                tool,
                approval.tool.as_str(),
                approval.tool.as_str(),
                &approval.condition,
            ))
        });
        let others = document.tools.others.iter().flat_map(|others| {
            let used = facts.tools().filter(|tool| others.includes(tool));
            let each = used.zip(core::iter::repeat(others.approval.as_ref()));
            each.filter_map(|(tool, condition)| Some((tool, tool, "*", condition?)))
        });
        for (tool, name, field, condition) in named.chain(others) {
            // A tool that is called has arguments; one that is only offered may be called with any, so what depends on them cannot be known.
            let called = facts
                .said
                .mcp_tool
                .as_deref()
                .is_some_and(|called| called.eq_ignore_ascii_case(tool));
            let arguments = facts.said.mcp_arguments.as_ref().filter(|_| called);
            let parsed =
                arguments.and_then(|arguments| json::parse(arguments.json().as_bytes()).ok());
            let call = condition::Call {
                caller,
                head,
                facts,
                tool,
                args: parsed.as_ref().map(json::Document::root),
                cost_nano_usd,
                now,
            };
            let shown = shown(name);
            let message = match holds(condition, &document.scope, &call) {
                Ok(false) => continue,
                Ok(true) => format!("the use of the tool `{shown}` needs approval"),
                Err(why) => format!(
                    "whether the use of the tool `{shown}` needs approval cannot be known, so it does: {why}"
                ),
            };
            let rule = format!("tools.{field}.requires_approval_if");
            self.object(Cause::Approval, rule.into(), message);
        }
    }
}

/// Longest name quoted in a message.
const SHOWN_CHARS: usize = 64;

/// A caller-chosen name, fit for a message or a header: printable ASCII, bounded.
fn shown(name: &str) -> String {
    let mut out: String = name
        .chars()
        .take(SHOWN_CHARS)
        .map(|c| {
            if c == ' ' || c.is_ascii_graphic() {
                c
            } else {
                '?'
            }
        })
        .collect();
    if name.chars().nth(SHOWN_CHARS).is_some() {
        out.push_str("...");
    }
    out
}

/// What the limits say to a call.
#[derive(Default)]
struct Limits {
    /// What to reserve.
    charges: Vec<Charge>,
    /// Limits that only warn.
    alerts: Vec<Alert>,
    /// What the call may cost at most, where that is known.
    worst_case_nano_usd: Option<u64>,
    /// How it has to be changed first.
    lower: Option<Lower>,
    /// Why it cannot be reserved, whatever is left.
    refused: Vec<Reason>,
}

/// The budgets and rates of the documents that a call falls under, each account once with its smallest limit.
fn limits(
    (calendars, met): (&[Calendar], &[&Document]),
    (caller, run): (&Caller, Option<&str>),
    facts: &Facts,
    cost: &Cost<'_>,
    now: Time,
) -> Limits {
    let said = &facts.said;
    let output = cost.output;
    let mut out = Limits {
        worst_case_nano_usd: match facts.route {
            Route::Llm(_) => cost.worst_nano_usd,
            Route::Mcp => cost.worst_nano_usd.filter(|cost| *cost > 0),
            Route::LlmUnknown | Route::CountTokens | Route::Plain => None,
        },
        ..Limits::default()
    };
    let of_tool = match facts.route {
        Route::Mcp => cost.worst_nano_usd.unwrap_or(0),
        Route::Llm(_) | Route::LlmUnknown | Route::CountTokens | Route::Plain => 0,
    };
    let model = counted_as(facts, cost.known_as);
    for (limit, document) in in_force(met.iter().copied()) {
        if limit.each_model && model.is_none() {
            continue;
        }
        if !document.counts(limit, facts.tools()) {
            continue;
        }
        let mut refuse = |rule: &str, message: &'static str| {
            // What cannot be counted cannot be warned of, and no more than that.
            if limit.alert {
                return;
            }
            out.refused.push(Reason {
                rule: rule.to_string().into(),
                document: Some(document.name.clone()),
                message: message.into(),
                cause: Cause::Policy,
            });
        };
        let generates = match (limit.unit, facts.route) {
            // The loops of an agent are its calls to models.
            (Unit::Calls, Route::CountTokens | Route::Mcp | Route::Plain)
                if limit.window == Window::Run =>
            {
                continue;
            }
            (Unit::Calls | Unit::Errors | Unit::Seconds | Unit::Goals | Unit::Approvals, _) => {
                false
            }
            (_, Route::Llm(_)) => true,
            (_, Route::LlmUnknown) => {
                refuse(
                    "budget.unmetered_route",
                    "this endpoint may generate and its use cannot be metered, so no budget can cover it",
                );
                continue;
            }
            (Unit::NanoUsd, Route::Mcp) if of_tool > 0 => false,
            // It uses nothing, but nothing passes where the account is suspended.
            (_, Route::CountTokens | Route::Mcp | Route::Plain) if limit.suspend => false,
            (_, Route::CountTokens | Route::Mcp | Route::Plain) => continue,
        };
        if limit.unit == Unit::NanoUsd && generates && said.premium {
            refuse(
                "budget.service_tier",
                "the call asks for a dearer service tier, whose price is not known",
            );
            continue;
        }
        if generates && said.hosted {
            refuse(
                "budget.hosted_tools",
                "the provider runs tools of this call itself, and nothing bounds what that adds to it, so no budget can cover it",
            );
            continue;
        }
        if let Some(lacks) = Lacks::of(limit, document, caller, run) {
            // A limit that could be escaped by belonging nowhere would be none.
            refuse(&limit.rule, lacks.in_words());
            continue;
        }
        let Some(span) = span_of(&limit.window, calendars, now) else {
            refuse(
                "budget.calendar",
                "the policy bundle does not cover today in this budget's time zone",
            );
            continue;
        };
        if generates && cost.prompt.is_none() {
            refuse(
                "budget.unbounded",
                "the call has files and how much the model takes in is unknown; send what is in them as text",
            );
            continue;
        }
        // What is not bounded is more than any limit.
        let unbounded = (limit.lowers && generates && output.is_none()).then_some(u64::MAX);
        let amount = match limit.unit {
            Unit::Calls | Unit::Errors | Unit::Seconds | Unit::Goals | Unit::Approvals => Some(1),
            Unit::NanoUsd if of_tool > 0 => Some(of_tool),
            // As much as shows that something is left.
            Unit::Tokens | Unit::NanoUsd if !generates => Some(1),
            Unit::Tokens => output
                .zip(cost.prompt)
                .map(|(output, prompt)| output.saturating_add(prompt))
                .or(unbounded),
            // Settlement charges the dearest of the prices set for unknown models, so every reservation covers it.
            Unit::NanoUsd => match cost
                .price
                .copied()
                .or_else(|| limit.unknown_model.and_then(|_| dearest_unknown(met)))
            {
                Some(price) => output
                    .zip(cost.prompt)
                    .map(|(output, prompt)| price::worst_case(prompt, output, &price))
                    .or(unbounded),
                None => {
                    refuse(
                        "budget.unknown_model",
                        "the model has no known price, so the budget cannot cover it",
                    );
                    continue;
                }
            },
        };
        let Some(amount) = amount else {
            refuse(
                "budget.unbounded",
                "the call sets no max_tokens and the model's limit is unknown; set max_tokens",
            );
            continue;
        };
        // A call that costs nothing goes on when the money is out, but for accounts that are suspended.
        if amount == 0 && limit.unit == Unit::NanoUsd && !limit.suspend {
            continue;
        }
        for (principal, one) in concerned(&document.scope, caller) {
            let Some(account) = account_of(limit, one, run, model) else {
                continue;
            };
            let charge = Charge {
                account,
                principal,
                span,
                amount,
                limit: limit.amount,
                suspend: limit.suspend,
                alert: limit.alert,
                lowers: limit.lowers && generates,
                rule: limit.rule.clone(),
                document: document.name.clone(),
            };
            if limit.alert {
                out.alerts.push(Alert {
                    account: charge.account.clone(),
                    limit: charge.limit,
                    rule: charge.rule.clone(),
                    document: charge.document.clone(),
                });
            }
            match out
                .charges
                .iter_mut()
                .find(|other| other.account == charge.account)
            {
                // What is counted for another anyway is counted once.
                Some(_) if charge.alert => {}
                Some(other) if other.alert => *other = charge,
                // Of two that are alike, the one that suspends.
                Some(other) if (other.limit, !other.suspend) <= (charge.limit, !charge.suspend) => {
                }
                Some(other) => *other = charge,
                None => out.charges.push(charge),
            }
        }
    }
    // A fixed order, so that two calls never hold what the other needs: rates before budgets, broad before narrow.
    sort_by(&mut out.charges, |a, b| {
        (a.account.unit, &a.account).cmp(&(b.account.unit, &b.account))
    });
    // What can never be covered needs no lease to be refused.
    let price = cost.price.copied().or_else(|| dearest_unknown(met));
    for charge in out.charges.iter().filter(|charge| !charge.alert) {
        if charge.amount <= charge.limit {
            continue;
        }
        let otherwise = charge.refused();
        match covered(charge.account.unit, charge.limit, said, price.as_ref()) {
            most if charge.lowers && most >= LEAST_OUTPUT_TOKENS => {
                if out.lower.as_ref().is_none_or(|lower| most < lower.most) {
                    out.lower = Some(Lower { most, otherwise });
                }
            }
            _ => out.refused.push(otherwise),
        }
    }
    out
}

/// What a call does not have, though a limit counts by it.
#[derive(Clone, Copy)]
enum Lacks {
    Run,
    Team,
    Org,
}

impl Lacks {
    fn of(limit: &Limit, document: &Document, caller: &Caller, run: Option<&str>) -> Option<Lacks> {
        if limit.window == Window::Run && run.is_none() {
            return Some(Lacks::Run);
        }
        let mut all = concerned(&document.scope, caller);
        if all.all(|(_, one)| id_of(limit.per, one).is_some()) {
            return None;
        }
        match limit.per {
            Level::Team => Some(Lacks::Team),
            Level::Org => Some(Lacks::Org),
            // Every caller has these.
            Level::Agent | Level::Workspace => None,
        }
    }

    const fn in_words(self) -> &'static str {
        match self {
            Lacks::Run => {
                "this limit counts by run, and the call names none; send `x-tollgate-run`"
            }
            Lacks::Team => "this limit counts by team, and the agent belongs to none",
            Lacks::Org => "this limit counts by organisation, and the agent belongs to none",
        }
    }
}

/// Every limit of these documents, with its document.
fn in_force<'p>(
    met: impl Iterator<Item = &'p Document>,
) -> impl Iterator<Item = (&'p Limit, &'p Document)> {
    met.flat_map(|document| document.limits.iter().map(move |limit| (limit, document)))
}

/// What a call is counted as where each model is counted by itself: as the price table names the model, so that there are no more accounts than it
/// has models, and one for all others. `None` where no model is called.
fn counted_as<'m>(facts: &Facts, known_as: Option<&'m str>) -> Option<&'m str> {
    match facts.route {
        Route::Llm(_) | Route::LlmUnknown | Route::CountTokens => Some(
            known_as
                .filter(|name| !name.contains('|'))
                .unwrap_or(OTHER_MODELS),
        ),
        Route::Mcp | Route::Plain => None,
    }
}

/// What of `caller` an account of this level belongs to, if it has such a thing.
fn id_of(level: Level, caller: &Caller) -> Option<&String> {
    match level {
        Level::Workspace => Some(&caller.workspace),
        Level::Org => caller.org.as_ref(),
        Level::Team => caller.team.as_ref(),
        Level::Agent => Some(&caller.agent),
    }
}

/// The account a limit counts `caller` in, whoever it acts for; `None` when the caller has no such entity (no team, say), or the call belongs to
/// no run.
fn account_of(
    limit: &Limit,
    caller: &Caller,
    run: Option<&str>,
    model: Option<&str>,
) -> Option<Account> {
    let id = id_of(limit.per, caller)?;
    let run = match limit.window {
        Window::Run => Some(run?.to_string()),
        _ => None,
    };
    Some(Account {
        level: limit.per,
        id: id.clone(),
        unit: limit.unit,
        window: limit.window.clone(),
        tool: limit.tool.clone(),
        model: match limit.each_model {
            true => Some(model?.to_string()),
            false => None,
        },
        run,
    })
}

/// The window around `now`; `None` when the calendars do not reach.
pub fn span_of(window: &Window, calendars: &[Calendar], now: Time) -> Option<Span> {
    let calendar = |zone: &str| calendars.iter().find(|calendar| calendar.zone == *zone);
    let edges = match window {
        Window::Minute => return Some(full(60, now)),
        Window::Hour => return Some(full(3_600, now)),
        Window::Day(zone) => &calendar(zone)?.days,
        Window::Week(zone) => &calendar(zone)?.weeks,
        Window::Month(zone) => &calendar(zone)?.months,
        Window::Run => return Some(Span::RUN),
    };
    let next = edges.partition_point(|edge| *edge <= now.secs());
    Some(Span {
        start: *edges.get(next.checked_sub(1)?)?,
        end: *edges.get(next)?,
    })
}

/// The stretch of `secs` around `now`, counted from the Unix epoch.
fn full(secs: i64, now: Time) -> Span {
    let start = now.secs().div_euclid(secs).saturating_mul(secs);
    Span {
        start,
        end: start.saturating_add(secs),
    }
}

/// The limit on `account` for a caller: the smallest in force that refuses calls. `None` when there is none.
pub fn limit_on(payload: &Payload, caller: &Caller, account: &Account) -> Option<u64> {
    limits_on(payload, caller, account)
        .filter(|limit| !limit.alert)
        .map(|limit| limit.amount)
        .min()
}

/// Every limit on `account` for a caller, those that only warn included.
pub fn limits_on<'p>(
    payload: &'p Payload,
    caller: &'p Caller,
    account: &'p Account,
) -> impl Iterator<Item = &'p Limit> {
    // A model that no call can be counted as has no account.
    let model = account.model.as_deref();
    let model =
        model.filter(|model| *model == OTHER_MODELS || payload.prices.models.contains_key(*model));
    let tools = account.tool.as_deref().into_iter();
    // What a document of a tool counts beside it is counted by that document alone.
    let within = account.tool.as_deref().and_then(bundle::within_in);
    let beside = within.into_iter().flat_map(|(_, name)| {
        let documents = payload.documents.iter();
        documents.filter(move |document| {
            matches!(document.scope, Scope::Tool(_)) && document.name == name
        })
    });
    let met = payload.documents.met(caller, tools);
    in_force(met.into_iter().chain(beside))
        .filter(move |(limit, document)| {
            concerned(&document.scope, caller).any(|(_, one)| {
                let counted_in = account_of(limit, one, account.run.as_deref(), model);
                counted_in.as_ref() == Some(account)
            })
        })
        .map(|(limit, _)| limit)
}

/// The dearest of the prices that limits in force set for models the table does not know: none makes cheaper what another one counts.
fn dearest_unknown(met: &[&Document]) -> Option<Price> {
    in_force(met.iter().copied())
        .filter_map(|(limit, _)| limit.unknown_model)
        .reduce(Price::dearest)
}
