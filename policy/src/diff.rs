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

impl Effect {
    fn opposite(self) -> Effect {
        match self {
            Effect::Narrows => Effect::Widens,
            Effect::Widens => Effect::Narrows,
            Effect::Alters => Effect::Alters,
        }
    }
}

/// What is different in `new`, by document and field. Documents are the same by their names; there are no others in service.
pub fn diff(old: &[Document], new: &[Document]) -> Vec<Change> {
    let (before, after) = (Enforced::among(old), Enforced::among(new));
    differences(old, new, &before, &after)
}

/// The same of documents beside which there may be others, which nobody knows.
pub fn diff_of_some(old: &[Document], new: &[Document]) -> Vec<Change> {
    let unknown = Enforced(None);
    differences(old, new, &unknown, &unknown)
}

fn differences(
    old: &[Document],
    new: &[Document],
    before: &Enforced<'_>,
    after: &Enforced<'_>,
) -> Vec<Change> {
    let (old, new) = (by_name(old), by_name(new));
    let mut changes = Vec::new();
    for (name, document) in &old {
        match new.get(name) {
            None => GOES.of(document, "is gone", after, &mut changes),
            Some(next) => {
                place(document, next, before, after, &mut changes);
                compare(document, next, &mut changes);
            }
        }
    }
    for (name, document) in &new {
        if !old.contains_key(name) {
            let what = match document.rollout {
                Rollout::Enforce => "is new",
                Rollout::Shadow => "is new, in shadow",
            };
            COMES.of(document, what, before, &mut changes);
        }
    }
    changes
}

fn by_name(documents: &[Document]) -> BTreeMap<&str, &Document> {
    let named = documents.iter().map(|document| (&*document.name, document));
    named.collect()
}

/// What a document does that begins or ceases to apply to agents.
struct Turn {
    /// To those who are under another one too.
    effect: Effect,
    /// To those who are not, in words: who is under none may call nothing.
    alone: &'static str,
}

const COMES: Turn = Turn {
    effect: Effect::Narrows,
    alone: "agents under no other document could call nothing, and may now call what it leaves open",
};

const GOES: Turn = Turn {
    effect: Effect::Widens,
    alone: "agents under no other document may now call nothing",
};

impl Turn {
    /// `beside` are those of the set without it: the old one where it comes, the new one where it goes.
    fn of(
        &self,
        document: &Document,
        what: &str,
        beside: &Enforced<'_>,
        changes: &mut Vec<Change>,
    ) {
        let mut change = |effect: Effect, message: String| {
            changes.push(Change {
                document: document.name.clone(),
                scope: document.scope.clone(),
                rule: String::new(),
                effect,
                message,
            });
        };
        if document.rollout == Rollout::Shadow {
            return change(Effect::Alters, what.to_string());
        }
        let others = beside.others_over(document);
        if others != Cover::Nobody {
            change(self.effect, what.to_string());
        }
        if others != Cover::Everybody {
            change(self.effect.opposite(), format!("{what}; {}", self.alone));
        }
    }
}

/// The documents of a set that let agents call anything; `None` where nobody knows them.
struct Enforced<'d>(Option<Vec<&'d Document>>);

/// How many of a scope are under some document.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cover {
    Everybody,
    /// Some may be, some may not.
    Somebody,
    Nobody,
}

impl<'d> Enforced<'d> {
    fn among(documents: &'d [Document]) -> Enforced<'d> {
        // Under a document of a tool alone nobody may call anything.
        let lets = |document: &&Document| {
            document.rollout == Rollout::Enforce && !matches!(document.scope, Scope::Tool(_))
        };
        Enforced(Some(documents.iter().filter(lets).collect()))
    }

    /// How many of those that `document` is about are under another one.
    fn others_over(&self, document: &Document) -> Cover {
        // One of a tool is about calls that need another document anyway.
        if matches!(document.scope, Scope::Tool(_)) {
            return Cover::Everybody;
        }
        let Some(enforced) = &self.0 else {
            return Cover::Somebody;
        };
        let others = || {
            let others = enforced.iter().filter(|other| other.name != document.name);
            others.map(|other| &other.scope)
        };
        if others().any(|other| covers(other, &document.scope)) {
            Cover::Everybody
        } else if others().any(|other| meets(other, &document.scope)) {
            Cover::Somebody
        } else {
            Cover::Nobody
        }
    }
}

/// Whether everything that a document of scope `narrow` applies to is certain to be in `wide`. Who is in a team is in no document.
fn covers(wide: &Scope, narrow: &Scope) -> bool {
    match (wide, narrow) {
        (Scope::Global, _) => true,
        (Scope::Tool(one), Scope::Tool(other)) => one.eq_ignore_ascii_case(other),
        _ => wide == narrow,
    }
}

/// Whether a call can be in both scopes. An agent has one organisation and one team.
fn meets(one: &Scope, other: &Scope) -> bool {
    match (one, other) {
        (Scope::Org(_), Scope::Org(_))
        | (Scope::Team(_), Scope::Team(_))
        | (Scope::Agent(_), Scope::Agent(_)) => one == other,
        _ => true,
    }
}

/// Whom a document is for, and whether it counts.
fn place(
    old: &Document,
    new: &Document,
    before: &Enforced<'_>,
    after: &Enforced<'_>,
    changes: &mut Vec<Change>,
) {
    let whom = |scope: &Scope| match old.scope == new.scope {
        true => String::new(),
        false => format!(", for {scope},"),
    };
    match (old.rollout, new.rollout) {
        (Rollout::Shadow, Rollout::Enforce) => {
            let what = format!("was in shadow{} and is enforced now", whom(&old.scope));
            COMES.of(new, &what, before, changes);
        }
        (Rollout::Enforce, Rollout::Shadow) => {
            let now = whom(&new.scope);
            let what = format!(
                "was enforced and is in shadow now{}",
                now.trim_end_matches(',')
            );
            GOES.of(old, &what, after, changes);
        }
        (Rollout::Enforce, Rollout::Enforce) | (Rollout::Shadow, Rollout::Shadow) => {
            // Whom it left and whom it reached are two changes.
            if !covers(&new.scope, &old.scope) {
                let what = format!("no longer applies to {}", old.scope);
                GOES.of(old, &what, after, changes);
            }
            if !covers(&old.scope, &new.scope) {
                let what = format!("now applies to {}", new.scope);
                COMES.of(new, &what, before, changes);
            }
        }
    }
}

/// What is left of a field's effect: a document in shadow neither lets anything pass nor stops it, and who was not under the old one had nothing of it.
fn felt(old: &Document, new: &Document, effect: Effect) -> Effect {
    let in_force = [old, new].map(|document| document.rollout == Rollout::Enforce);
    match in_force == [true, true] && meets(&old.scope, &new.scope) {
        true => effect,
        false => Effect::Alters,
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
            effect: felt(old, new, effect),
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
