//! Recorded calls, decided again by another set of policies.
//!
//! A record says who called where with which model and tools, and how it was decided. It holds neither content nor arguments nor what was
//! left of a budget. Where a rule asks for those, the record itself helps: what a rule said then it says again, if it stands in the old
//! set as in the new one. What a call may cost it says where both sets have the same prices for it. Everything else cannot be told, and is
//! counted as that.

use crate::offline;
use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
};
use tollgate_engine::{
    bundle::{Data, Document, Payload, Tools},
    condition::{self, Fact, Instruction, Program},
    decide::{self, Outcome},
    facts::{BodyKind, Dialect, Facts, Head, Route},
    identity::{Caller, GovernanceLevel},
    ledger::Unit,
    meter::Provider,
    price::Price,
    scan::Hits,
    sorted::Map,
    time::Time,
};

/// Tools that a record names at most; with as many, there may have been more.
const RECORDED_TOOLS: usize = 8;

const DAY_SECS: i64 = 86_400;

/// Calls listed by name in each group; the counts are of all.
const LISTED: usize = 100;

/// What came of a replay.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Replay {
    /// Calls that policies decided then.
    pub(crate) calls: usize,
    /// Decided the same by the new set.
    pub(crate) same: usize,
    /// Decided otherwise by the new set.
    pub(crate) otherwise: usize,
    /// What the record holds does not decide it.
    pub(crate) cannot_tell: usize,
    /// Refused before any policy was asked: no identity, no single reading, no bundle, no lease.
    pub(crate) before_policy: usize,
    /// The first of those decided otherwise.
    pub(crate) changed: Vec<Changed>,
    /// Calls that cannot be told, by the rules that stand in the way.
    pub(crate) because_of: BTreeMap<String, usize>,
}

/// A call that would be decided otherwise.
#[derive(Debug, Serialize)]
pub(crate) struct Changed {
    /// Its decision's id.
    pub(crate) id: String,
    /// When it was.
    pub(crate) at: String,
    /// The calling agent.
    pub(crate) agent: String,
    /// Where it went.
    pub(crate) to: String,
    /// How it was decided.
    pub(crate) was: String,
    /// How it would be.
    pub(crate) now: Outcome,
    /// By which rules.
    pub(crate) reasons: Vec<String>,
}

/// What is read of a record; the rest of it decides nothing.
#[derive(Deserialize)]
struct Record {
    id: String,
    at_ms: i64,
    agent: Option<String>,
    team: Option<String>,
    org: Option<String>,
    level: Option<String>,
    #[serde(default)]
    acts_for: Vec<RecordedAgent>,
    run: Option<String>,
    #[serde(default)]
    done: bool,
    method: Option<String>,
    host: Option<String>,
    path: Option<String>,
    route: Option<String>,
    model: Option<String>,
    mcp_method: Option<String>,
    tools: Vec<String>,
    outcome: String,
    reasons: Vec<Reason>,
    /// What asked for the approval that let it through.
    #[serde(default)]
    approved: Vec<Reason>,
    reserved_nano_usd: Option<String>,
    #[serde(default)]
    uninspected: bool,
}

/// An agent for whom a recorded caller acted.
#[derive(Deserialize)]
struct RecordedAgent {
    agent: String,
    team: Option<String>,
    org: Option<String>,
    level: String,
}

impl RecordedAgent {
    fn caller(&self) -> Option<Caller> {
        Some(Caller {
            workspace: String::new(),
            agent: self.agent.clone(),
            org: self.org.clone(),
            team: self.team.clone(),
            level: GovernanceLevel::parse(&self.level)?,
            acts_for: Vec::new(),
        })
    }
}

#[derive(Deserialize)]
struct Reason {
    rule: String,
    document: Option<String>,
}

/// A rule that asks for what a record does not hold. Two are the same when everything is: document, field and content.
#[derive(PartialEq, Eq)]
struct Unknown {
    rule: String,
    document: String,
    content: String,
    /// What the rule makes of a call that it is about.
    makes: Outcome,
    /// Tokens or money, where it counts what prices are about.
    counts: Option<Unit>,
}

/// What a set has on what a call may cost.
#[derive(PartialEq)]
struct Prices<'s> {
    /// Of its model, or of models that the table does not know.
    model: Option<Price>,
    /// All of them, where nobody knows which model it is.
    all: Option<&'s Map<String, Price>>,
    /// Of its tool over MCP.
    tool_nano_usd: u64,
}

impl Prices<'_> {
    /// Whether a limit in `unit` counts a call by both alike.
    fn count_alike(&self, other: &Prices<'_>, unit: Unit) -> bool {
        let bounds = |price: &Price| (price.max_input_tokens, price.max_output_tokens);
        match unit {
            Unit::Tokens => {
                let of = |prices: &Self| prices.model.as_ref().map(bounds);
                of(self) == other.model.as_ref().map(bounds) && self.all == other.all
            }
            _ => self == other,
        }
    }
}

/// What a call may cost by the prices of a set.
#[derive(Clone, Copy)]
enum Cost {
    /// In nano-USD; `None` where a gate does not know it either.
    Known(Option<u64>),
    /// A gate may know it, and the record does not say it.
    Untold,
}

/// Decides every call of an export again, by what both sets of documents say at its time.
pub(crate) fn replay(
    old: &[tollgate_policy::Document],
    new: &[tollgate_policy::Document],
    export: &Path,
) -> Result<Replay> {
    let file = File::open(export).with_context(|| format!("cannot read `{}`", export.display()))?;
    let mut replay = Replay::default();
    let mut is_export = false;
    // Hours of schedules are compiled for a day at a time. Calls of one day stand together in an export, or nearly.
    let mut of_day: Option<(i64, Set, Set)> = None;
    for line in BufReader::new(file).lines() {
        let line = line.with_context(|| format!("cannot read `{}`", export.display()))?;
        is_export |= line.starts_with("{\"tollgate_export\":");
        // Between records stand the first and last lines of batches.
        let Ok(record) = serde_json::from_str::<Record>(&line) else {
            continue;
        };
        let day = Time::from_millis(record.at_ms).secs().div_euclid(DAY_SECS);
        if of_day.as_ref().is_none_or(|(known, ..)| *known != day) {
            let midnight = Time::from_secs(day.saturating_mul(DAY_SECS));
            let set = |documents| anyhow::Ok(Set::of(offline::payload(documents, midnight)?));
            of_day = Some((day, set(old)?, set(new)?));
        }
        if let Some((_, old, new)) = &of_day {
            replay.add(&record, old, new);
        }
    }
    ensure!(
        is_export,
        "`{}` is no export; `tollgate audit export -o FILE` writes one",
        export.display()
    );
    Ok(replay)
}

impl Record {
    /// What policies made of it, before anybody approved it.
    fn verdict(&self) -> &str {
        match self.approved.is_empty() {
            true => &self.outcome,
            false => Outcome::Hold.name(),
        }
    }
}

impl Replay {
    fn add(&mut self, record: &Record, old: &Set, new: &Set) {
        let by_gate = |reason: &Reason| reason.document.is_none() && reason.rule != "policy.none";
        let call = Call::of(record).filter(|_| !record.reasons.iter().any(by_gate));
        let Some(call) = call else {
            self.before_policy += 1;
            return;
        };
        self.calls += 1;
        let (was, is) = (old.prices(&call), new.prices(&call));
        let (mut now, mut reasons) = new.known(&call, call.cost(&is, &was));
        let before = old.unknown(&call, call.cost(&was, &was));
        let mut open = Vec::new();
        for rule in new.unknown(&call, call.cost(&is, &was)) {
            let counts_alike = rule.counts.is_none_or(|unit| was.count_alike(&is, unit));
            let mut reasons_then = record.reasons.iter().chain(&record.approved);
            let named = reasons_then.any(|reason| {
                let same = reason.rule == rule.rule
                    || (rule.rule.starts_with("budget.") && reason.rule.starts_with("budget."));
                same && reason.document.as_deref() == Some(rule.document.as_str())
            });
            match counts_alike && before.contains(&rule) {
                true if named => {
                    now = now.max(rule.makes);
                    reasons.push(format!("{} @ {}", rule.rule, rule.document));
                }
                // What was let through, or held, every rule had been asked about.
                true if record.outcome != "deny" => {}
                _ => open.push(rule),
            }
        }
        open.retain(|rule| rule.makes > now);
        if !open.is_empty() {
            self.cannot_tell += 1;
            for rule in open {
                *self
                    .because_of
                    .entry(format!("{} @ {}", rule.rule, rule.document))
                    .or_default() += 1;
            }
        } else if now.name() == record.verdict() {
            self.same += 1;
        } else {
            self.otherwise += 1;
            if self.changed.len() < LISTED {
                self.changed.push(Changed {
                    id: record.id.clone(),
                    at: call.at.to_string(),
                    agent: call.caller.agent.clone(),
                    to: format!("{} {}{}", call.head.method, call.head.host, call.head.path),
                    was: record.verdict().to_string(),
                    now,
                    reasons,
                });
            }
        }
    }

    /// For people.
    pub(crate) fn in_words(&self) -> String {
        let mut out = format!(
            "{} recorded calls: {} the same, {} otherwise, {} cannot be told; {} more were refused before any policy was asked\n",
            self.calls, self.same, self.otherwise, self.cannot_tell, self.before_policy
        );
        for call in &self.changed {
            out += &format!(
                "  {}  {}  {}  {}: was {}, now {}{}{}\n",
                call.at,
                call.id,
                call.agent,
                call.to,
                call.was,
                call.now.name(),
                if call.reasons.is_empty() { "" } else { " by " },
                call.reasons.join(", ")
            );
        }
        if self.otherwise > self.changed.len() {
            out += &format!("  and {} more\n", self.otherwise - self.changed.len());
        }
        if !self.because_of.is_empty() {
            out += "records hold no content, arguments or balances, so these rules leave calls open:\n";
        }
        for (rule, calls) in &self.because_of {
            out += &format!("  {rule}: {calls}\n");
        }
        out
    }
}

/// A recorded call, as far as it is known.
struct Call {
    caller: Caller,
    head: Head,
    facts: Facts,
    at: Time,
    /// What it might have cost at most, by the prices of then.
    cost_nano_usd: Cost,
    /// Model and tools are known: the body was read.
    read: bool,
    /// All tools are known.
    all_tools: bool,
}

impl Call {
    /// `None` for what was not decided by policy.
    fn of(record: &Record) -> Option<Call> {
        let (route, dialect) = match record.route.as_deref()? {
            "openai_chat" => (Route::Llm(Provider::OpenAiChat), Dialect::OpenAi),
            "anthropic_messages" => (Route::Llm(Provider::AnthropicMessages), Dialect::Anthropic),
            "anthropic_count_tokens" => (Route::CountTokens, Dialect::Anthropic),
            "llm_unknown" => (Route::LlmUnknown, Dialect::OpenAi),
            "mcp" => (Route::Mcp, Dialect::Mcp),
            "plain" => (Route::Plain, Dialect::Problem),
            _ => return None,
        };
        let path = record.path.clone()?;
        let head = Head {
            method: record.method.clone()?,
            host: record.host.clone()?,
            target: path.clone().into_bytes(),
            path,
            route,
            dialect,
            body: BodyKind::Json,
            mcp_method: None,
            mcp_name: None,
            run: record.run.clone(),
            done: record.done,
        };
        let mut facts = Facts::of_head(&head, record.uninspected);
        facts.said.model = record.model.clone();
        facts.said.mcp_method = record.mcp_method.clone();
        match route {
            Route::Mcp => facts.said.mcp_tool = record.tools.first().cloned(),
            Route::Llm(_) | Route::CountTokens | Route::LlmUnknown | Route::Plain => {
                facts.said.tools = record.tools.clone();
            }
        }
        let silent = match route {
            Route::Llm(_) | Route::CountTokens => record.model.is_none(),
            Route::Mcp => record.mcp_method.is_none(),
            Route::LlmUnknown | Route::Plain => false,
        };
        Some(Call {
            caller: Caller {
                workspace: String::new(),
                agent: record.agent.clone()?,
                org: record.org.clone(),
                team: record.team.clone(),
                level: GovernanceLevel::parse(record.level.as_deref()?)?,
                acts_for: record
                    .acts_for
                    .iter()
                    .map(RecordedAgent::caller)
                    .collect::<Option<_>>()?,
            },
            at: Time::from_millis(record.at_ms),
            cost_nano_usd: match record
                .reasons
                .iter()
                .any(|reason| reason.document.is_none())
            {
                // Nobody had asked what it costs.
                true => Cost::Untold,
                false => Cost::Known(
                    record
                        .reserved_nano_usd
                        .as_ref()
                        .and_then(|amount| amount.parse().ok()),
                ),
            },
            read: !record.uninspected && !silent,
            all_tools: record.tools.len() < RECORDED_TOOLS,
            head,
            facts,
        })
    }
}

impl Call {
    /// What it may cost by the prices `now`; `then` are those by which the record says it.
    fn cost(&self, now: &Prices<'_>, then: &Prices<'_>) -> Cost {
        match self.facts.route {
            Route::Llm(_) if now != then => Cost::Untold,
            Route::Llm(_) => self.cost_nano_usd,
            Route::LlmUnknown => Cost::Known(None),
            Route::Mcp => Cost::Known(Some(now.tool_nano_usd)),
            Route::CountTokens | Route::Plain => Cost::Known(Some(0)),
        }
    }
}

/// A set of policies, taken apart by what a record can say about them.
struct Set {
    whole: Payload,
    /// Without what asks for content, arguments or balances.
    known: Payload,
    /// And without what asks for the body at all.
    of_head: Payload,
}

impl Set {
    fn of(whole: Payload) -> Set {
        let mut known = whole.clone();
        known.documents.change(|documents| {
            for document in documents {
                document.data.patterns.clear();
                document.data.redactions.clear();
                document.tools.approvals.clear();
                if let Some(others) = &mut document.tools.others {
                    others.approval = None;
                }
                // A rate of none needs no balance.
                document
                    .limits
                    .retain(|limit| limit.unit == Unit::Calls && limit.amount == 0);
            }
        });
        let mut of_head = known.clone();
        of_head.documents.change(|documents| {
            for document in documents {
                document.models = Default::default();
                document.mcp_tools = Default::default();
                document.tools = Default::default();
                document.limits.retain(|limit| limit.tool.is_none());
            }
        });
        Set {
            whole,
            known,
            of_head,
        }
    }

    fn prices(&self, call: &Call) -> Prices<'_> {
        let said = &call.facts.said;
        let generates = matches!(call.facts.route, Route::Llm(_));
        let table = &self.whole.prices;
        let unknown = || {
            let limits = self.applying(call).flat_map(|document| &document.limits);
            let prices = limits.filter_map(|limit| limit.unknown_model);
            prices.reduce(Price::dearest)
        };
        let model = said.model.as_deref().filter(|_| generates);
        let tool = said.mcp_tool.as_deref();
        let costs = self
            .applying(call)
            .filter_map(|document| document.tool_cost(tool?));
        Prices {
            model: model.and_then(|model| table.find(model).copied().or_else(unknown)),
            all: (generates && model.is_none()).then_some(&table.models),
            tool_nano_usd: costs.max().unwrap_or(0),
        }
    }

    /// What the set says to a call by what is known of it.
    fn known(&self, call: &Call, cost: Cost) -> (Outcome, Vec<String>) {
        let payload = if call.read {
            &self.known
        } else {
            &self.of_head
        };
        let decision = decide::decide(
            payload,
            &[],
            &call.caller,
            &call.head,
            &call.facts,
            &Hits::default(),
            call.at,
        );
        let reasons = decision
            .reasons
            .iter()
            .map(|reason| match &reason.document {
                Some(document) => format!("{} @ {document}", reason.rule),
                None => reason.rule.to_string(),
            });
        let mut reasons: Vec<String> = reasons.collect();
        let mut outcome = decision.outcome;
        for document in self.applying(call) {
            for asked in asked(document, call, cost) {
                // Offered to a model, a tool has no arguments yet, for a gate as little as for us.
                let offered = !matches!(call.facts.route, Route::Mcp);
                if asked.holds == Ok(true) || (offered && asked.holds.is_err() && !asked.untold) {
                    outcome = outcome.max(Outcome::Hold);
                    reasons.push(format!("{} @ {}", asked.rule, document.name));
                }
            }
        }
        (outcome, reasons)
    }

    fn applying<'s>(&'s self, call: &Call) -> impl Iterator<Item = &'s Document> {
        let documents = &self.whole.documents;
        documents.met(&call.caller, call.facts.tools()).into_iter()
    }

    /// The rules over a call that ask for more than is known of it.
    fn unknown(&self, call: &Call, cost: Cost) -> Vec<Unknown> {
        let mut unknown = Vec::new();
        let generates = matches!(call.facts.route, Route::Llm(_) | Route::LlmUnknown);
        let priced = self.applying(call).any(|document| {
            let mut tools = call.facts.tools();
            tools.any(|tool| document.tool_cost(tool).is_some())
        });
        for document in self.applying(call) {
            // Whole, so that a new field cannot be forgotten here.
            let Document {
                name,
                scope: _,
                active: _,
                network: _,
                models,
                mcp_tools,
                tools,
                data,
                limits,
            } = document;
            let Tools {
                denied: denied_tools,
                others: other_tools,
                approvals: _,
                costs: _,
            } = &**tools;
            let Data {
                patterns,
                redactions,
                // Answers are in no record.
                searched_in: _,
                unsearched_tools: _,
                tool_output_is_data: _,
                recorded: _,
            } = &**data;
            let mut add = |rule: String, content: String, makes: Outcome, counts: Option<Unit>| {
                unknown.push(Unknown {
                    rule,
                    document: name.clone(),
                    content,
                    makes,
                    counts,
                });
            };
            let searched = document.searches(call.facts.said.mcp_tool.as_deref());
            for (index, pattern) in patterns.iter().enumerate().filter(|_| searched) {
                let rule = format!("data.sensitive_patterns[{index}]");
                add(rule, pattern.clone(), Outcome::Deny, None);
            }
            for redaction in redactions.iter().filter(|_| searched) {
                let patterns = format!("{:?}", redaction.patterns);
                add(redaction.rule.clone(), patterns, Outcome::Redact, None);
            }
            for limit in limits.iter().filter(|limit| !limit.alert) {
                let other_tool = !document.counts(limit, call.facts.tools());
                let counts = match limit.unit {
                    Unit::Calls | Unit::Errors | Unit::Seconds | Unit::Goals | Unit::Approvals => {
                        true
                    }
                    Unit::NanoUsd if priced => true,
                    Unit::Tokens | Unit::NanoUsd => generates || limit.suspend,
                };
                let none = limit.unit == Unit::Calls && limit.amount == 0;
                if counts && !(other_tool && call.read) && !none {
                    let by_price = matches!(limit.unit, Unit::Tokens | Unit::NanoUsd);
                    let content = format!("{limit:?}");
                    add(
                        limit.rule.clone(),
                        content,
                        Outcome::Deny,
                        by_price.then_some(limit.unit),
                    );
                }
            }
            for asked in asked(document, call, cost) {
                let called = matches!(call.facts.route, Route::Mcp);
                if asked.untold || (called && asked.holds.is_err()) {
                    let condition = format!("{:?}", asked.condition);
                    add(asked.rule, condition, Outcome::Hold, None);
                }
            }
            // The body was not read then, or had more tools than a record names.
            if !call.read && !models.is_open() {
                let rule = "capabilities".to_owned();
                add(rule, format!("{models:?}"), Outcome::Deny, None);
            }
            let others_denied = other_tools.as_ref().filter(|others| others.denied);
            let restricts_tools =
                !denied_tools.is_empty() || !mcp_tools.is_open() || others_denied.is_some();
            if !(call.read && call.all_tools) && restricts_tools {
                let content = format!("{denied_tools:?} {mcp_tools:?} {others_denied:?}");
                add("tools".to_owned(), content, Outcome::Deny, None);
            }
        }
        unknown
    }
}

/// A condition that a document asks about a tool that the call uses.
struct Asked<'d> {
    rule: String,
    condition: &'d Program,
    /// As far as that is known without arguments.
    holds: Result<bool, ()>,
    /// It asks for what the call may cost, which a gate knows and the record does not say.
    untold: bool,
}

fn asked<'d>(document: &'d Document, call: &Call, cost: Cost) -> Vec<Asked<'d>> {
    let ask = |name: &str, tool: &str, condition: &'d Program| {
        let holds = decide::holds(
            condition,
            &document.scope,
            &condition::Call {
                caller: &call.caller,
                head: &call.head,
                facts: &call.facts,
                tool,
                args: None,
                cost_nano_usd: match cost {
                    Cost::Known(cost) => cost,
                    Cost::Untold => None,
                },
                now: call.at,
            },
        )
        .map_err(|_| ());
        let of_cost = Instruction::Fact(Fact::EstimatedCostUsd);
        let asks = matches!(cost, Cost::Untold) && condition.0.contains(&of_cost);
        Asked {
            rule: format!("tools.{name}.requires_approval_if"),
            condition,
            untold: asks && holds.is_err(),
            holds,
        }
    };
    let mut asked = Vec::new();
    for approval in &document.tools.approvals {
        let mut used = call.facts.tools();
        if let Some(tool) = used.find(|used| used.eq_ignore_ascii_case(&approval.tool)) {
            asked.push(ask(&approval.tool, tool, &approval.condition));
        }
    }
    if let Some(others) = &document.tools.others
        && let Some(condition) = &others.approval
    {
        let used = call.facts.tools().filter(|tool| others.includes(tool));
        asked.extend(used.map(|tool| ask("*", tool, condition)));
    }
    asked
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offline::{Request, Who};
    use tollgate_engine::exchange::End;

    /// What the engine writes down is what is read here.
    #[test]
    fn a_record_of_the_engine_is_read() {
        let policy = b"scope: global\ntools: {bash: {allow: false}}\n";
        let documents = tollgate_policy::parse("all.yaml", policy, false).documents;
        let now = Time::from_secs(1_795_176_000);
        let body = r#"{"model":"gpt-5-mini","messages":[],"tools":[{"type":"function","function":{"name":"bash"}}]}"#;
        let request =
            serde_json::json!({"url": "https://api.openai.com/v1/chat/completions", "body": body});
        let request: Request = serde_json::from_value(request).unwrap();
        let who = Who::nobody_in_particular();
        let decided = offline::decide(&documents, &who, false, &request, now).unwrap();
        let exchange = decided.exchange;
        let line = exchange.finish(End::Complete, now).record;

        let record: Record = serde_json::from_slice(&line).unwrap();
        assert_eq!(record.tools, ["bash"]);
        let set = |documents| Set::of(offline::payload(documents, now).unwrap());
        let mut replay = Replay::default();
        replay.add(&record, &set(&documents), &set(&documents));
        assert_eq!((replay.calls, replay.same), (1, 1));
        let without = tollgate_policy::parse("all.yaml", b"scope: global\n", false).documents;
        replay.add(&record, &set(&documents), &set(&without));
        let changed = replay.changed.first().unwrap();
        assert_eq!(
            (changed.was.as_str(), changed.now),
            ("deny", Outcome::Allow)
        );
    }
}
