//! What a new set of documents changes: for whom, and whether it narrows or widens.

use crate::{
    document::{
        Audit, Budget, BudgetLimit, Capabilities, Capability, Data, Document, Exceeded, Execution,
        ModelPrice, OTHERS, Rate, Rollout, Run, RunLimit, Tool,
    },
    money,
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};
use tollgate_engine::{
    bundle::{Scope, Searched},
    ledger::Unit,
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
    let (before, after) = (rules(old), rules(new));
    let mut change = |rule: &str, effect: Effect, message: String| {
        changes.push(Change {
            document: new.name.clone(),
            scope: new.scope.clone(),
            rule: rule.to_string(),
            effect: felt(old, new, effect),
            message,
        });
    };
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for rule in keys {
        match (before.get(rule), after.get(rule)) {
            (None, Some(now)) => {
                let effect = now.0.beside(&before);
                change(rule, effect, format!("is new: {}", now.1.shown()));
            }
            (Some(was), None) => {
                let effect = was.0.beside(&after).opposite();
                change(rule, effect, format!("is gone: {}", was.1.shown()));
            }
            (Some(was), Some(now)) => was.becomes(now, rule, &mut change),
            (None, None) => {}
        }
    }
}

/// What a field does where it appears; where it goes, the opposite.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    /// Less passes.
    Restricts,
    /// More passes, if there is a restriction whose name begins so.
    Permits(&'static [&'static str]),
    /// Other calls pass, or nothing that a gate decides.
    Either,
}

/// What the permissions of `budget` loosen.
const BUDGETS: &[&str] = &["budget.", "agent.budget."];
/// What those of `data` do.
const DATA: &[&str] = &["data."];

impl Does {
    /// What the field does beside those of a document that does not have it.
    fn beside(self, rules: &BTreeMap<String, Rule>) -> Effect {
        match self {
            Does::Restricts => Effect::Narrows,
            Does::Permits(what) => {
                let loosened = |(name, rule): (&String, &Rule)| {
                    rule.0 == Does::Restricts && what.iter().any(|begin| name.starts_with(begin))
                };
                match rules.iter().any(loosened) {
                    true => Effect::Widens,
                    false => Effect::Alters,
                }
            }
            Does::Either => Effect::Alters,
        }
    }

    /// What its being more or there does, whatever else there is.
    fn effect(self) -> Effect {
        match self {
            Does::Restricts => Effect::Narrows,
            Does::Permits(_) => Effect::Widens,
            Does::Either => Effect::Alters,
        }
    }
}

/// A field: what it does, and its value.
struct Rule(Does, Value);

/// A field's value, by what makes it more or less.
#[derive(PartialEq, Eq)]
enum Value {
    /// Does what the field does to everything but these.
    AllBut(Vec<String>),
    /// Does it to these.
    These(Vec<String>),
    /// Does it beyond this much.
    Most(u64, Unit),
    /// Does it by so much, in nano-USD.
    Cost(u64),
    /// Something that is there or not, or is different.
    Text(String),
}

impl Value {
    fn shown(&self) -> String {
        match self {
            Value::AllBut(names) | Value::These(names) if names.is_empty() => "none".to_string(),
            Value::AllBut(names) | Value::These(names) => names.join(", "),
            Value::Most(amount, unit) => unit.in_words(*amount),
            Value::Cost(amount) => Unit::NanoUsd.in_words(*amount),
            Value::Text(text) => text.clone(),
        }
    }
}

impl Rule {
    fn becomes(&self, now: &Rule, rule: &str, change: &mut impl FnMut(&str, Effect, String)) {
        let (Rule(did, was), Rule(does, is)) = (self, now);
        if was == is {
            return;
        }
        let effect = match (did.effect(), does.effect()) {
            (did, does) if did == does => does,
            // Over what is default, from one side to the other.
            (Effect::Widens, Effect::Narrows) => Effect::Narrows,
            (Effect::Narrows, Effect::Widens) => Effect::Widens,
            _ => Effect::Alters,
        };
        let (was, is, more) = match (was, is) {
            (Value::AllBut(was), Value::AllBut(is)) => (was, is, effect.opposite()),
            (Value::These(was), Value::These(is)) => (was, is, effect),
            _ => {
                let grows = match (was, is) {
                    (Value::Most(was, _), Value::Most(is, _)) => Some(is < was),
                    (Value::Cost(was), Value::Cost(is)) => Some(is > was),
                    // Something else, which is neither more nor less.
                    _ if did.effect() == does.effect() => None,
                    _ => Some(true),
                };
                let effect = match grows {
                    Some(true) => effect,
                    Some(false) => effect.opposite(),
                    None => Effect::Alters,
                };
                let message = format!("from {} to {}", was.shown(), is.shown());
                return change(rule, effect, message);
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
            let less = more.opposite();
            change(rule, less, format!("removes {}", removed.join(", ")));
        }
        // Another order, or an entry twice, means the same.
    }
}

/// Everything that a document says, by field. Documents and their parts are taken apart whole, so that a new field cannot be forgotten here.
#[derive(Default)]
struct Rules(BTreeMap<String, Rule>);

impl Rules {
    fn add(&mut self, name: impl Into<String>, does: Does, value: Value) {
        self.0.insert(name.into(), Rule(does, value));
    }

    /// What is said by default is not listed.
    fn text(&mut self, name: &str, does: Does, text: Option<&str>) {
        if let Some(text) = text {
            self.add(name, does, Value::Text(text.to_string()));
        }
    }

    fn flag(&mut self, name: &str, does: Does, set: bool) {
        self.text(name, does, set.then_some("true"));
    }

    fn list<T: ToString>(&mut self, name: &str, does: Does, list: &[T]) {
        if !list.is_empty() {
            let names = list.iter().map(ToString::to_string).collect();
            self.add(name, does, Value::These(names));
        }
    }

    fn capabilities(&mut self, capabilities: &Capabilities) {
        let Capabilities { allow, deny } = capabilities;
        // Its kind, what allowing and denying one of it does, and its name. Nothing closes what no gate sees, and allowing `network_outbound`
        // closes nothing.
        let of = |capability: &Capability| match capability {
            Capability::Model(name) => ("model", [Does::Restricts; 2], name.clone()),
            Capability::McpTool(name) => ("mcp_tool", [Does::Restricts; 2], name.clone()),
            Capability::NetworkOutbound => {
                let does = [Does::Either, Does::Restricts];
                ("network_outbound", does, "all".to_string())
            }
            Capability::OutOfSight(name) => {
                ("not visible to a gate", [Does::Either; 2], name.to_string())
            }
        };
        let mut listed: BTreeMap<(&str, bool), (Does, Vec<String>)> = BTreeMap::new();
        let allowed = allow.iter().map(|capability| (true, of(capability)));
        let denied = deny.iter().map(|capability| (false, of(capability)));
        for (allows, (kind, [allowing, denying], name)) in allowed.chain(denied) {
            let does = if allows { allowing } else { denying };
            let (_, names) = listed
                .entry((kind, allows))
                .or_insert_with(|| (does, Vec::new()));
            names.push(name);
        }
        for ((kind, allows), (does, names)) in listed {
            match allows {
                true => {
                    let name = format!("capabilities.allow ({kind})");
                    self.add(name, does, Value::AllBut(names));
                }
                false => self.list(&format!("capabilities.deny ({kind})"), does, &names),
            }
        }
    }

    fn tools(&mut self, document: &Document) {
        let tools = &document.tools;
        if tools.iter().any(|tool| tool.name == OTHERS) {
            let named = tools.iter().filter(|tool| tool.name != OTHERS);
            let named = named.map(|tool| tool.name.clone()).collect();
            let name = "tools (not under `*`)";
            self.add(name, Does::Restricts, Value::AllBut(named));
        }
        for tool in tools {
            let Tool {
                name,
                allow,
                limit_per_hour,
                cost_nano_usd,
                requires_approval_if,
                approvals,
            } = tool;
            let field = |field: &str| format!("tools.{name}.{field}");
            let denied = (!allow).then_some("false");
            self.text(&field("allow"), Does::Restricts, denied);
            if let Some(limit) = limit_per_hour {
                let limit = Value::Most(*limit, Unit::Calls);
                self.add(field("limit_per_hour"), Does::Restricts, limit);
            }
            // Budgets are used up sooner.
            if let Some(cost) = cost_nano_usd {
                self.add(field("cost_usd"), Does::Restricts, Value::Cost(*cost));
            }
            let rule = field("requires_approval_if");
            let condition = requires_approval_if.as_ref();
            let condition = condition.map(|condition| &*condition.text);
            self.text(&rule, Does::Restricts, condition);
            if approvals.is_some() {
                let asked = document.approvals_of(&rule).to_string();
                self.text(&field("approval_config"), Does::Either, Some(&asked));
            }
        }
    }

    fn data(&mut self, data: &Data) {
        let Data {
            patterns,
            redact,
            mask_pii,
            applies_to,
            exempt_tools,
            tool_output_is_data,
        } = data;
        let patterns: Vec<&String> = patterns.iter().map(|pattern| &pattern.normal).collect();
        let what = match redact {
            false => "data.sensitive_patterns",
            true => "data.sensitive_patterns (taken out)",
        };
        self.list(what, Does::Restricts, &patterns);
        // With patterns their name says so.
        let idle = (*redact && patterns.is_empty()).then_some("redact");
        self.text("data.action", Does::Either, idle);
        self.flag("data.mask_pii", Does::Restricts, *mask_pii);
        let told = "data.tool_output_is_data";
        self.flag(told, Does::Restricts, *tool_output_is_data);
        let applies_to = match applies_to {
            Searched::Both => None,
            Searched::Requests => Some("requests"),
            Searched::Responses => Some("responses"),
        };
        self.text("data.applies_to", Does::Permits(DATA), applies_to);
        self.list("data.exempt_tools", Does::Permits(DATA), exempt_tools);
    }

    fn budget(&mut self, budget: &Budget) {
        let Budget {
            limits,
            per,
            each_model,
            timezone,
            unknown_model,
            action,
            warn_at,
            releases,
            lowers,
        } = budget;
        // Limits that only warn refuse nothing.
        let (limiting, exceeded, lowering) = match action {
            Exceeded::Deny => (Does::Restricts, None, Does::Permits(BUDGETS)),
            Exceeded::Suspend => (
                Does::Restricts,
                Some((Does::Restricts, "suspend")),
                Does::Permits(BUDGETS),
            ),
            Exceeded::Alert => (
                Does::Either,
                Some((Does::Permits(BUDGETS), "alert")),
                Does::Permits(&["agent.budget."]),
            ),
        };
        for limit in limits {
            let BudgetLimit {
                field,
                unit,
                period: _,
                amount,
            } = limit;
            let whose = format!("per {}{}, {timezone}", per.name(), each(*each_model));
            let name = format!("budget.{field} ({whose})");
            self.add(name, limiting, Value::Most(*amount, *unit));
        }
        if let Some((does, exceeded)) = exceeded {
            self.text("budget.action_on_exceed", does, Some(exceeded));
        }
        self.flag("budget.lower_max_tokens", lowering, *lowers);
        let released = releases.then_some("release");
        self.text("budget.on_lost", Does::Permits(BUDGETS), released);
        let parts = warn_at.iter().map(|part| format!("{part} %"));
        let parts: Vec<String> = parts.collect();
        self.list("budget.warn_at", Does::Either, &parts);
        let unknown = unknown_model.map(|of| {
            let sides = (of.input, of.output);
            price(sides, of.cached_input, of.max_output_tokens)
        });
        let does = Does::Permits(BUDGETS);
        self.text("budget.unknown_model", does, unknown.as_deref());
    }

    fn run(&mut self, run: &Run) {
        let Run { limits, stops } = run;
        for limit in limits {
            let RunLimit { rule, unit, amount } = limit;
            self.add(rule, Does::Restricts, Value::Most(*amount, *unit));
        }
        let stopping = "agent.termination.on_budget_exceeded";
        self.flag(stopping, Does::Restricts, *stops);
    }

    /// What has a value whether it is said or not, and lets no call pass that did not before.
    fn conduct(&mut self, document: &Document) {
        let Document {
            version,
            description,
            replaces,
            approvals,
            audit,
            execution,
            ..
        } = document;
        let Audit {
            include_message_content,
            retention_days,
        } = audit;
        let Execution { pause, cancel } = execution;
        let said =
            |text: Option<&String>| text.map_or("none".to_string(), |text| format!("{text:?}"));
        let replaces = replaces.as_ref().map(|replaces| &replaces.version);
        for (name, value) in [
            (
                "agent.audit.include_message_content",
                include_message_content.to_string(),
            ),
            (
                "agent.audit.retention_days",
                retention_days.map_or("for ever".to_string(), |days| days.to_string()),
            ),
            ("agent.execution.enable_cancel", cancel.to_string()),
            ("agent.execution.enable_pause", pause.to_string()),
            ("approval", approvals.to_string()),
            ("metadata.description", said(description.as_ref())),
            ("metadata.replaces", said(replaces)),
            ("metadata.version", said(version.as_ref())),
        ] {
            self.add(name, Does::Either, Value::Text(value));
        }
    }
}

/// What a limit says of models, behind whose calls it counts.
fn each(model: bool) -> &'static str {
    if model { ", each model" } else { "" }
}

/// A price in the units that authors write it in.
fn price(
    (input, output): (u64, u64),
    cached_input: Option<u64>,
    max_output_tokens: Option<u64>,
) -> String {
    let usd = money::usd_per_million;
    let mut words = format!("input ${}, output ${}", usd(input), usd(output));
    if let Some(cached) = cached_input {
        words += &format!(", cached input ${}", usd(cached));
    }
    words += " per million tokens";
    if let Some(most) = max_output_tokens {
        words += &format!(", at most {most} output tokens");
    }
    words
}

fn rules(document: &Document) -> BTreeMap<String, Rule> {
    let Document {
        // Compared before.
        name: _,
        rollout: _,
        scope: _,
        // Say nothing.
        at: _,
        flat: _,
        active_hours,
        network,
        denied_hosts,
        capabilities,
        tools: _,
        data,
        prices,
        budget,
        rate,
        run,
        version: _,
        description: _,
        replaces: _,
        approvals: _,
        audit: _,
        execution: _,
    } = document;
    let mut rules = Rules::default();
    let hours = active_hours.as_ref().map(ToString::to_string);
    let schedule = "schedule.active_hours";
    rules.text(schedule, Does::Restricts, hours.as_deref());
    if let Some(hosts) = network {
        let hosts = hosts.iter().map(ToString::to_string).collect();
        let name = "network.allowlist";
        rules.add(name, Does::Restricts, Value::AllBut(hosts));
    }
    rules.list("network.denylist", Does::Restricts, denied_hosts);
    rules.capabilities(capabilities);
    rules.tools(document);
    rules.data(data);
    for said in prices {
        let ModelPrice {
            model,
            input,
            output,
            cached_input,
            max_output_tokens,
        } = said;
        let words = price((*input, *output), *cached_input, *max_output_tokens);
        rules.text(&format!("prices.{model}"), Does::Either, Some(&words));
    }
    if let Some(budget) = budget {
        rules.budget(budget);
    }
    if let Some(rate) = rate {
        let Rate {
            requests_per_minute,
            per,
            each_model,
        } = rate;
        let whose = format!("per {}{}", per.name(), each(*each_model));
        let name = format!("rate.requests_per_minute ({whose})");
        let most = Value::Most(*requests_per_minute, Unit::Calls);
        rules.add(name, Does::Restricts, most);
    }
    rules.run(run);
    rules.conduct(document);
    rules.0
}
