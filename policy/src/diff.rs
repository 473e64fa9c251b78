//! What a new set of documents changes: for whom, and whether it narrows or widens.

use crate::document::{Capability, Document, Exceeded, OTHERS, Rollout};
use serde::Serialize;
use std::{collections::BTreeMap, fmt};
use tollgate_engine::{
    bundle::{Scope, Searched},
    ledger::Unit,
    price,
};

/// One difference between two sets of documents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The document's name.
    pub document: String,
    /// Whom it concerns.
    pub scope: Scope,
    /// The field; empty where the document as a whole is meant.
    pub rule: String,
    /// What it does to those it concerns.
    pub effect: Effect,
    /// In words.
    pub message: String,
}

/// What a change does to what may be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Less passes than before.
    Narrows,
    /// More passes than before.
    Widens,
    /// Other calls pass than before, or nothing that a gate decides.
    Alters,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Effect::Narrows => "narrows",
            Effect::Widens => "widens",
            Effect::Alters => "alters",
        })
    }
}

/// What is different in `new`, by document and field. Documents are the same by their names.
pub fn diff(old: &[Document], new: &[Document]) -> Vec<Change> {
    let by_name = |documents: &[Document]| -> BTreeMap<String, Document> {
        let named = documents.iter().map(|d| (d.name.clone(), d.clone()));
        named.collect()
    };
    let (old, new) = (by_name(old), by_name(new));
    let mut changes = Vec::new();
    for (name, document) in &old {
        match new.get(name) {
            None => whole(document, Effect::Widens, "is gone", &mut changes),
            Some(next) if next.rollout != document.rollout => {
                // What else has changed never was, or is no longer, in force.
                let (effect, what) = match next.rollout {
                    Rollout::Enforce => (Effect::Narrows, "was in shadow and is enforced now"),
                    Rollout::Shadow => (Effect::Widens, "was enforced and is in shadow now"),
                };
                changes.push(Change {
                    effect,
                    ..about(document, what)
                });
            }
            Some(next) if next.scope != document.scope => {
                // Whom it left and whom it reached are two changes.
                let left = format!("no longer applies to {}", document.scope);
                whole(document, Effect::Widens, &left, &mut changes);
                let reached = format!("now applies to {}", next.scope);
                whole(next, Effect::Narrows, &reached, &mut changes);
            }
            Some(next) => compare(document, next, &mut changes),
        }
    }
    for (name, document) in &new {
        if !old.contains_key(name) {
            let what = match document.rollout {
                Rollout::Enforce => "is new",
                Rollout::Shadow => "is new, in shadow",
            };
            whole(document, Effect::Narrows, what, &mut changes);
        }
    }
    changes
}

fn whole(document: &Document, effect: Effect, what: &str, changes: &mut Vec<Change>) {
    changes.push(Change {
        effect: felt(document, effect),
        ..about(document, what)
    });
}

/// A document as a whole.
fn about(document: &Document, what: &str) -> Change {
    Change {
        document: document.name.clone(),
        scope: document.scope.clone(),
        rule: String::new(),
        effect: Effect::Alters,
        message: what.to_string(),
    }
}

/// What is left of an effect: a document in shadow neither lets anything pass nor stops it.
fn felt(document: &Document, effect: Effect) -> Effect {
    match document.rollout {
        Rollout::Enforce => effect,
        Rollout::Shadow => Effect::Alters,
    }
}

fn compare(old: &Document, new: &Document, changes: &mut Vec<Change>) {
    let before = rules(old);
    let after = rules(new);
    let mut change = |rule: &str, effect: Effect, message: String| {
        changes.push(Change {
            document: new.name.clone(),
            scope: new.scope.clone(),
            rule: rule.to_string(),
            effect: felt(new, effect),
            message,
        });
    };
    let keys = before.keys().chain(after.keys());
    let mut keys: Vec<&String> = keys.collect();
    keys.sort_unstable();
    keys.dedup();
    for rule in keys {
        match (before.get(rule), after.get(rule)) {
            (None, Some(now)) => change(rule, Effect::Narrows, format!("is new: {}", now.shown())),
            (Some(was), None) => {
                change(rule, Effect::Widens, format!("is gone: {}", was.shown()));
            }
            (Some(was), Some(now)) => {
                if was != now {
                    was.becomes(now, rule, &mut change);
                }
                let (was, now) = (old.approvals_of(rule), new.approvals_of(rule));
                if rule.ends_with(".requires_approval_if") && was != now {
                    let message = format!("asked for {was}; now {now}");
                    change(rule, Effect::Alters, message);
                }
            }
            (None, None) => {}
        }
    }
    for (was, now) in conduct(old).into_iter().zip(conduct(new)) {
        if was != now {
            change(
                now.0,
                Effect::Alters,
                format!("from {} to {}", was.1, now.1),
            );
        }
    }
    // With patterns and allow lists gone or come, the rules above have said so; what remains is for people.
    if old.version != new.version || old.description != new.description {
        change(
            "metadata",
            Effect::Alters,
            "version or description".to_string(),
        );
    }
}

/// What a document says of records and operators: no call passes for it that did not before.
fn conduct(document: &Document) -> [(&'static str, String); 4] {
    let days = document.audit.retention_days;
    [
        (
            "agent.audit.include_message_content",
            document.audit.include_message_content.to_string(),
        ),
        (
            "agent.audit.retention_days",
            days.map_or("for ever".to_string(), |days| days.to_string()),
        ),
        (
            "agent.execution.enable_pause",
            document.execution.pause.to_string(),
        ),
        (
            "agent.execution.enable_cancel",
            document.execution.cancel.to_string(),
        ),
    ]
}

/// A field's value, by what makes it wider or narrower.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    /// Only these pass.
    Allowed(Vec<String>),
    /// These do not pass.
    Denied(Vec<String>),
    /// At most this much.
    Limit(u64, Option<Unit>),
    /// Something that is there or not, or is different.
    Text(String),
}

impl Rule {
    fn shown(&self) -> String {
        match self {
            Rule::Allowed(names) | Rule::Denied(names) if names.is_empty() => "none".to_string(),
            Rule::Allowed(names) | Rule::Denied(names) => names.join(", "),
            Rule::Limit(amount, None) => amount.to_string(),
            Rule::Limit(amount, Some(Unit::NanoUsd)) => price::usd(*amount),
            Rule::Limit(amount, Some(unit)) => format!("{amount} {}", unit.name()),
            Rule::Text(text) => text.clone(),
        }
    }

    fn becomes(&self, now: &Rule, rule: &str, change: &mut impl FnMut(&str, Effect, String)) {
        let (was, is, more, less) = match (self, now) {
            (Rule::Allowed(was), Rule::Allowed(is)) => (was, is, Effect::Widens, Effect::Narrows),
            (Rule::Denied(was), Rule::Denied(is)) => (was, is, Effect::Narrows, Effect::Widens),
            (Rule::Limit(was, _), Rule::Limit(is, _)) => {
                let effect = if is < was {
                    Effect::Narrows
                } else {
                    Effect::Widens
                };
                let message = format!("from {} to {}", self.shown(), now.shown());
                return change(rule, effect, message);
            }
            _ => {
                let message = format!("from {} to {}", self.shown(), now.shown());
                return change(rule, Effect::Alters, message);
            }
        };
        let missing = |from: &[String], other: &[String]| -> Vec<String> {
            let gone = from.iter().filter(|name| !other.contains(name));
            gone.cloned().collect()
        };
        let (added, removed) = (missing(is, was), missing(was, is));
        if !added.is_empty() {
            change(rule, more, format!("adds {}", added.join(", ")));
        }
        if !removed.is_empty() {
            change(rule, less, format!("removes {}", removed.join(", ")));
        }
        // Another order, or an entry twice, means the same.
    }
}

/// Everything a document restricts, by field.
/// What a limit says of models, behind whose calls it counts.
fn each(model: bool) -> &'static str {
    if model { ", each model" } else { "" }
}

fn rules(document: &Document) -> BTreeMap<String, Rule> {
    let mut rules = BTreeMap::new();
    let mut rule = |name: String, rule: Rule| {
        rules.insert(name, rule);
    };
    if let Some(hours) = &document.active_hours {
        rule(
            "schedule.active_hours".to_string(),
            Rule::Text(hours.to_string()),
        );
    }
    if let Some(hosts) = &document.network {
        let hosts = hosts.iter().map(ToString::to_string).collect();
        rule("network.allowlist".to_string(), Rule::Allowed(hosts));
    }
    if !document.denied_hosts.is_empty() {
        let hosts = document.denied_hosts.iter().map(ToString::to_string);
        rule(
            "network.denylist".to_string(),
            Rule::Denied(hosts.collect()),
        );
    }
    type Named = fn(&Capability) -> Option<&str>;
    let kinds: [(&str, Named); 3] = [
        ("model", |capability| match capability {
            Capability::Model(name) => Some(name),
            _ => None,
        }),
        ("mcp_tool", |capability| match capability {
            Capability::McpTool(name) => Some(name),
            _ => None,
        }),
        ("network_outbound", |capability| match capability {
            Capability::NetworkOutbound => Some("all"),
            _ => None,
        }),
    ];
    for (kind, of_kind) in kinds {
        let listed = |list: &[Capability]| -> Vec<String> {
            let names = list.iter().filter_map(of_kind);
            names.map(str::to_string).collect()
        };
        let allow = listed(&document.capabilities.allow);
        let deny = listed(&document.capabilities.deny);
        // Allowing `network_outbound` closes nothing.
        if !allow.is_empty() && kind != "network_outbound" {
            rule(format!("capabilities.allow ({kind})"), Rule::Allowed(allow));
        }
        if !deny.is_empty() {
            rule(format!("capabilities.deny ({kind})"), Rule::Denied(deny));
        }
    }
    if document.tools.iter().any(|tool| tool.name == OTHERS) {
        let named = document.tools.iter().filter(|tool| tool.name != OTHERS);
        let named = named.map(|tool| tool.name.clone()).collect();
        rule("tools (not under `*`)".to_string(), Rule::Allowed(named));
    }
    for tool in &document.tools {
        let name = &tool.name;
        if !tool.allow {
            rule(
                format!("tools.{name}.allow"),
                Rule::Text("false".to_string()),
            );
        }
        if let Some(limit) = tool.limit_per_hour {
            rule(
                format!("tools.{name}.limit_per_hour"),
                Rule::Limit(limit, Some(Unit::Calls)),
            );
        }
        if let Some(cost) = tool.cost_nano_usd {
            rule(
                format!("tools.{name}.cost_usd"),
                Rule::Text(Unit::NanoUsd.in_words(cost)),
            );
        }
        if let Some(condition) = &tool.requires_approval_if {
            rule(
                format!("tools.{name}.requires_approval_if"),
                Rule::Text(condition.text.clone()),
            );
        }
    }
    let data = &document.data;
    let patterns = data.patterns.iter();
    let patterns: Vec<String> = patterns.map(|pattern| pattern.normal.clone()).collect();
    if !patterns.is_empty() {
        let what = match data.redact {
            false => "data.sensitive_patterns",
            true => "data.sensitive_patterns (taken out)",
        };
        rule(what.to_string(), Rule::Denied(patterns));
    }
    for (field, set) in [
        ("data.mask_pii", data.mask_pii),
        ("data.tool_output_is_data", data.tool_output_is_data),
    ] {
        if set {
            rule(field.to_string(), Rule::Text("true".to_string()));
        }
    }
    let applies_to = match data.applies_to {
        Searched::Both => None,
        Searched::Requests => Some("requests"),
        Searched::Responses => Some("responses"),
    };
    if let Some(applies_to) = applies_to {
        rule(
            "data.applies_to".to_string(),
            Rule::Text(applies_to.to_string()),
        );
    }
    if !data.exempt_tools.is_empty() {
        rule(
            "data.exempt_tools".to_string(),
            Rule::Allowed(data.exempt_tools.clone()),
        );
    }
    for price in &document.prices {
        rule(
            format!("prices.{}", price.model),
            Rule::Text(format!(
                "{} and {} pico-USD per token",
                price.input, price.output
            )),
        );
    }
    if let Some(rate) = document.rate {
        rule(
            format!(
                "rate.requests_per_minute (per {}{})",
                rate.per.name(),
                each(rate.each_model)
            ),
            Rule::Limit(rate.requests_per_minute, Some(Unit::Calls)),
        );
    }
    if let Some(budget) = &document.budget {
        for limit in &budget.limits {
            rule(
                format!(
                    "budget.{} (per {}{}, {})",
                    limit.field,
                    budget.per.name(),
                    each(budget.each_model),
                    budget.timezone
                ),
                Rule::Limit(limit.amount, Some(limit.unit)),
            );
        }
        if budget.releases {
            rule(
                "budget.on_lost".to_string(),
                Rule::Text("release".to_string()),
            );
        }
        if budget.lowers {
            rule(
                "budget.lower_max_tokens".to_string(),
                Rule::Text("true".to_string()),
            );
        }
        let action = match budget.action {
            Exceeded::Deny => None,
            Exceeded::Suspend => Some("suspend"),
            Exceeded::Alert => Some("alert"),
        };
        if let Some(action) = action {
            rule(
                "budget.action_on_exceed".to_string(),
                Rule::Text(action.to_string()),
            );
        }
        if !budget.warn_at.is_empty() {
            let parts: Vec<String> = budget
                .warn_at
                .iter()
                .map(|part| format!("{part} %"))
                .collect();
            rule("budget.warn_at".to_string(), Rule::Text(parts.join(", ")));
        }
        if let Some(price) = &budget.unknown_model {
            rule(
                "budget.unknown_model".to_string(),
                Rule::Text(format!(
                    "{} and {} pico-USD per token",
                    price.input, price.output
                )),
            );
        }
    }
    for limit in &document.run.limits {
        rule(
            limit.rule.clone(),
            Rule::Limit(limit.amount, Some(limit.unit)),
        );
    }
    if document.run.stops {
        rule(
            "agent.termination.on_budget_exceeded".to_string(),
            Rule::Text("true".to_string()),
        );
    }
    rules
}
