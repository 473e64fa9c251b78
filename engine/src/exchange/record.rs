//! The end of a call: what it used, and its line in the journal.

use super::{CellOp, Content, End, Exchange, Finished, Observed, content::RecordedContent, vec_of};
use crate::{
    decide::{Cause, Charge, Decision, Outcome, Reason, most_prompt},
    facts::{Facts, Route, Said},
    identity,
    ledger::{Op, Unit},
    meter::Usage,
    price,
    redact::REPLACEMENT,
    reply, rpc,
    sift::Sift,
    time::Time,
};
use alloc::{
    string::{String, ToString},
    vec::Vec,
};
use serde::Serialize;

impl Exchange {
    /// The end, whatever came before.
    pub fn finish(mut self, end: End, now: Time) -> Finished {
        if !self.sent && self.answered.is_none() {
            // It did not come to a decision, and so nothing passed.
            let reason = Reason::of_gate(
                Cause::Malformed,
                "request.abandoned",
                "the caller left before the call was decided",
            );
            self.decided = now;
            self.decision = Decision::against(vec_of(reason));
        }
        if let Some(meter) = self.meter.take() {
            self.metered = Some(meter.finish());
        }
        if let Some(sift) = &self.sift {
            for reason in sift.reasons() {
                self.decision.outcome = self.decision.outcome.max(Outcome::Redact);
                // The same may have been taken out of the request.
                let alike =
                    |known: &Reason| known.rule == reason.rule && known.document == reason.document;
                if !self.decision.reasons.iter().any(alike) {
                    self.decision.reasons.push(reason.clone());
                }
            }
        }
        if let Some(observer) = self.observer.take() {
            let reasons: Vec<Reason> = observer.reasons().cloned().collect();
            if !reasons.is_empty() {
                self.shadowed(reasons);
            }
        }
        let said_so = self.rpc.take().is_some_and(rpc::Answer::failed);
        let mut settlement = self.settle(end);
        settlement.failed |= said_so;
        settlement.done = self.head.as_ref().is_some_and(|head| head.done);
        let record = self.record(&settlement, end, now);
        let charges = core::mem::take(&mut self.decision.charges);
        let settled = charges.into_iter().filter(|_| self.reserved);
        let mut ops: Vec<CellOp> = settled
            .map(|charge| CellOp {
                op: Op::Settle {
                    start: charge.span.start,
                    reserved: charge.reserved(),
                    used: settlement.used(&charge),
                },
                account: charge.account,
            })
            .collect();
        ops.extend(self.suspend.take());
        let cause = match self.decision.outcome {
            Outcome::Allow | Outcome::Redact => None,
            Outcome::Hold | Outcome::Deny => Some(reply::cause_of(&self.decision.reasons)),
        };
        let observed = Observed {
            outcome: self.decision.outcome,
            cause,
            decide_us: self.decided.micros().saturating_sub(self.started.micros()),
            uninspected: self.uninspected() && self.sent,
            estimated: settlement.estimated,
        };
        Finished {
            ops,
            record,
            observed,
        }
    }

    /// Whether a body passed, or would have, that nobody looked at.
    fn uninspected(&self) -> bool {
        self.answer_uninspected || self.facts.as_ref().is_some_and(|facts| facts.uninspected)
    }

    /// What the call used. Where the provider did not say, the answer errs towards what was reserved, and never to zero.
    fn settle(&self, end: End) -> Settlement {
        let mut settlement = Settlement::default();
        let route = self.facts.as_ref().map(|facts| facts.route);
        let generated = matches!(route, Some(Route::Llm(_)));
        settlement.generated = generated;
        settlement.failed = match self.upstream_status {
            Some(status) => status >= 400 || (end == End::UpstreamBroken && !self.ended()),
            // Nobody waited for the answer.
            None => end != End::ClientLeft,
        };
        if let (true, Some(Route::Mcp)) = (self.sent, route) {
            // What a tool costs it costs by the call, unless its server has refused it.
            let cost = self.decision.worst_case_nano_usd;
            settlement.nano_usd = match self.upstream_status.is_some_and(is_refusal) {
                true => cost.map(|_| 0),
                false => cost,
            };
        }
        if !self.sent || !generated {
            return settlement;
        }
        let metered = self.metered.as_ref();
        let usage = metered.map(|metered| metered.usage).unwrap_or_default();
        settlement.usage = usage;
        if self.upstream_status.is_some_and(is_refusal) && usage == Usage::default() {
            settlement.tokens = Some(0);
            settlement.nano_usd = Some(0);
            return settlement;
        }
        let whole =
            end == End::Complete && !self.cut && metered.is_some_and(|metered| metered.complete);
        settlement.estimated = !whole;
        let said = self.facts.as_ref().map(|facts| &facts.said);
        let price = self.decision.price.as_ref();
        let bound = |said: &Said| self.most_output(said);
        // All of it has come here.
        let passed = end == End::Complete && !self.ended();
        // What was seen bounds what was put out only where everything is shown. An error shows nothing.
        let shows_all = price.is_some_and(|price| !price.reasons)
            && self.upstream_status.is_none_or(|status| status < 400);
        let input = usage
            .input_tokens
            .or(said.and_then(|said| most_prompt(said, price)));
        let output = usage
            .output_tokens
            .filter(|_| whole)
            .or_else(|| {
                let counted = metered
                    .filter(|metered| shows_all && (metered.counts_all || passed))
                    .map(|metered| metered.output_content_bytes)?;
                let seen = usage.output_tokens.unwrap_or(0);
                let cap = said.and_then(bound).unwrap_or(u64::MAX);
                Some(counted.min(cap).max(seen))
            })
            .or_else(|| said.and_then(bound));
        settlement.tokens = match (input, output) {
            (Some(input), Some(output)) => Some(input.saturating_add(output)),
            _ => None,
        };
        if let Some(price) = price {
            let charged = Usage {
                input_tokens: input,
                output_tokens: output,
                ..usage
            };
            settlement.nano_usd = price::cost(&charged, price);
        }
        settlement
    }

    fn record(&self, settlement: &Settlement, end: End, now: Time) -> Vec<u8> {
        let head = self.head.as_ref();
        let facts = self.facts.as_ref();
        let caller = self.caller.as_deref();
        let usage = &settlement.usage;
        let record = Record {
            id: &self.id,
            at_ms: self.started.millis(),
            kind: "exchange",
            revision: self.revision,
            agent: caller.map(|caller| caller.agent.as_str()),
            team: caller.and_then(|caller| caller.team.as_deref()),
            org: caller.and_then(|caller| caller.org.as_deref()),
            level: caller.map(|caller| caller.level),
            acts_for: caller
                .into_iter()
                .flat_map(|caller| &caller.acts_for)
                .map(|one| RecordedAgent {
                    agent: &one.agent,
                    team: one.team.as_deref(),
                    org: one.org.as_deref(),
                    level: one.level,
                })
                .collect(),
            run: head.and_then(|head| head.run.as_deref()),
            done: head.is_some_and(|head| head.done),
            method: head.map(|head| bounded(&head.method, MAX_METHOD_BYTES)),
            host: head.map(|head| head.host.as_str()),
            path: self.recorded_path(),
            route: facts
                .map(|facts| facts.route)
                .or(head.map(|head| head.route))
                .map(Route::name),
            model: facts
                .and_then(|facts| facts.said.model.as_deref())
                .map(|model| bounded(self.shown(model), MAX_NAME_BYTES)),
            mcp_method: facts
                .and_then(|facts| facts.said.mcp_method.as_deref())
                .map(|method| bounded(self.shown(method), MAX_NAME_BYTES)),
            tools: facts
                .into_iter()
                .flat_map(Facts::tools)
                .take(MAX_TOOLS)
                .map(|tool| bounded(self.shown(tool), MAX_NAME_BYTES))
                .collect(),
            outcome: self.decision.outcome,
            approval: self.approval(),
            approved: recorded(&self.approved),
            reasons: recorded(&self.decision.reasons),
            asked_by_more: asking_for_approval(&self.decision.reasons).saturating_sub(MAX_REASONS),
            warnings: self
                .exceeded()
                .take(MAX_REASONS)
                .map(|alert| RecordedReason {
                    rule: bounded(&alert.rule, MAX_REASON_BYTES),
                    document: Some(bounded(&alert.document, MAX_REASON_BYTES)),
                })
                .collect(),
            shadow: self.shadow.as_ref().map(|shadow| RecordedShadow {
                outcome: shadow.outcome,
                reasons: recorded(&shadow.reasons),
            }),
            status: self.answered.or(self.upstream_status),
            upstream_status: self.upstream_status,
            usage: RecordedUsage {
                input_tokens: usage.input_tokens,
                output_tokens: usage.output_tokens,
                cached_input_tokens: usage.cached_input_tokens,
                cache_write_tokens: usage.cache_write_tokens,
                reasoning_tokens: usage.reasoning_tokens,
            },
            cost_nano_usd: settlement.nano_usd.map(|amount| amount.to_string()),
            estimated: settlement.estimated,
            reserved_nano_usd: self
                .decision
                .worst_case_nano_usd
                .map(|amount| amount.to_string()),
            uninspected: self.uninspected(),
            content: self.content.as_ref().map(Content::recorded),
            redacted: self.redacted,
            redacted_answer: self.sift.as_ref().map_or(0, Sift::taken_out),
            instructed: self.instructed,
            lowered_max_tokens: self.lowered,
            decide_us: self.decided.micros().saturating_sub(self.started.micros()),
            latency_ms: now.millis_since(self.started),
            end: match (self.answered, end) {
                (Some(_), _) => "answered_here",
                (None, _) if self.cut => "cut",
                (None, End::Complete) => "complete",
                (None, End::ClientLeft) => "client_left",
                (None, End::UpstreamBroken) => "upstream_broken",
            },
        };
        serde_json::to_vec(&record).unwrap_or_default()
    }

    /// The path as it is on record: without the query and what a pattern matches, cut after 256 bytes. `None` where the head could not be read.
    pub fn recorded_path(&self) -> Option<&str> {
        let head = self.head.as_ref()?;
        Some(bounded(self.shown(&head.path), MAX_PATH_BYTES))
    }

    /// What stands in a record for this.
    fn shown<'t>(&self, text: &'t str) -> &'t str {
        match self.veiled.iter().any(|veiled| veiled == text) {
            true => REPLACEMENT,
            false => text,
        }
    }
}

/// Whether a provider that answers with this status has not worked, and bills nothing. Gateways have others of their own, which may come after
/// the request was passed on (502 and 504 of any; 520 to 527 and 530 of Cloudflare, which stands before OpenAI); 529 is Anthropic's "overloaded".
const fn is_refusal(status: u16) -> bool {
    matches!(status, 400..=501 | 503 | 529)
}

/// Longest path in a record. Identifiers beyond it tell nobody more.
const MAX_PATH_BYTES: usize = 256;
/// Longest method in a record; the longest registered one (`UPDATEREDIRECTREF`) has 17.
const MAX_METHOD_BYTES: usize = 32;
/// Longest name in a record.
const MAX_NAME_BYTES: usize = 128;
/// Tools named in a record; a call may offer hundreds.
pub(super) const MAX_TOOLS: usize = 8;
/// Reasons in a record.
const MAX_REASONS: usize = 16;
/// Longest part of a reason: the names of a document and of a tool have at most 200 bytes, and the field of the tool 24.
const MAX_REASON_BYTES: usize = 256;

/// Those that ask for approval before others, since who may approve is looked up by them; in their order.
fn recorded(reasons: &[Reason]) -> Vec<RecordedReason<'_>> {
    let mut asking = MAX_REASONS;
    let mut others = MAX_REASONS.saturating_sub(asking_for_approval(reasons));
    let name = |text| bounded(text, MAX_REASON_BYTES);
    reasons
        .iter()
        .filter(|reason| {
            let room = match asks(reason) {
                true => &mut asking,
                false => &mut others,
            };
            let taken = *room > 0;
            *room = room.saturating_sub(1);
            taken
        })
        .map(|reason| RecordedReason {
            rule: name(&reason.rule),
            document: reason.document.as_deref().map(name),
        })
        .collect()
}

fn asks(reason: &Reason) -> bool {
    reason.cause == Cause::Approval
}

fn asking_for_approval(reasons: &[Reason]) -> usize {
    reasons.iter().filter(|reason| asks(reason)).count()
}

fn is_zero<N: Default + PartialEq>(count: &N) -> bool {
    *count == N::default()
}

/// The first `max` bytes of `text`, cut at a character.
fn bounded(text: &str, max: usize) -> &str {
    text.get(..text.floor_char_boundary(max)).unwrap_or(text)
}

/// What a call used.
#[derive(Debug, Default)]
struct Settlement {
    /// The call was one that uses tokens.
    generated: bool,
    /// It was answered with an error, or not to its end.
    failed: bool,
    /// Its agent said that with it the run is done.
    done: bool,
    usage: Usage,
    tokens: Option<u64>,
    nano_usd: Option<u64>,
    estimated: bool,
}

impl Settlement {
    /// In the unit of `charge`; what is not known costs what was reserved.
    fn used(&self, charge: &Charge) -> u64 {
        match charge.account.unit {
            Unit::Calls | Unit::Approvals => charge.amount,
            Unit::Errors => u64::from(self.failed),
            Unit::Goals => u64::from(self.done),
            Unit::Seconds => 0,
            Unit::Tokens if !self.generated => 0,
            Unit::NanoUsd if !self.generated => self.nano_usd.unwrap_or(0),
            Unit::Tokens => self.tokens.unwrap_or(charge.amount),
            Unit::NanoUsd => self.nano_usd.unwrap_or(charge.amount),
        }
    }
}

/// One line of the journal. No content unless a policy asks for it, no credential, no query string.
#[derive(Serialize)]
struct Record<'r> {
    id: &'r str,
    at_ms: i64,
    kind: &'static str,
    revision: u64,
    agent: Option<&'r str>,
    team: Option<&'r str>,
    org: Option<&'r str>,
    level: Option<identity::GovernanceLevel>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    acts_for: Vec<RecordedAgent<'r>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<&'r str>,
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    done: bool,
    method: Option<&'r str>,
    host: Option<&'r str>,
    path: Option<&'r str>,
    route: Option<&'static str>,
    model: Option<&'r str>,
    mcp_method: Option<&'r str>,
    tools: Vec<&'r str>,
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    approval: Option<&'r str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    approved: Vec<RecordedReason<'r>>,
    reasons: Vec<RecordedReason<'r>>,
    /// So many more ask for approval than stand here.
    #[serde(skip_serializing_if = "is_zero")]
    asked_by_more: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<RecordedReason<'r>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shadow: Option<RecordedShadow<'r>>,
    status: Option<u16>,
    upstream_status: Option<u16>,
    usage: RecordedUsage,
    cost_nano_usd: Option<String>,
    estimated: bool,
    reserved_nano_usd: Option<String>,
    uninspected: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<RecordedContent>,
    #[serde(skip_serializing_if = "is_zero")]
    redacted: u64,
    #[serde(skip_serializing_if = "is_zero")]
    redacted_answer: u64,
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    instructed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    lowered_max_tokens: Option<u64>,
    decide_us: i64,
    latency_ms: i64,
    end: &'static str,
}

/// An agent for whom the caller acts.
#[derive(Serialize)]
struct RecordedAgent<'r> {
    agent: &'r str,
    team: Option<&'r str>,
    org: Option<&'r str>,
    level: identity::GovernanceLevel,
}

#[derive(Serialize)]
struct RecordedReason<'r> {
    rule: &'r str,
    document: Option<&'r str>,
}

#[derive(Serialize)]
struct RecordedShadow<'r> {
    outcome: Outcome,
    reasons: Vec<RecordedReason<'r>>,
}

#[derive(Serialize)]
struct RecordedUsage {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cached_input_tokens: Option<u64>,
    cache_write_tokens: Option<u64>,
    reasoning_tokens: Option<u64>,
}
