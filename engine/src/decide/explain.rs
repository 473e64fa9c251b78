//! Why a decision is what it is: every document the call met, what each of its rules says to this call, and what would turn that.
//!
//! Runs the very checks of [`super::decide`], one document at a time, and describes them in words. For people; no gate calls it on the way
//! of a call.

use super::{Cause, Charge, Check, Cost, Lacks, Limits, Reason, called, limits, shown};
use crate::{
    bundle::{Document, Documents, Limit, Names, Payload, Scope, Searched},
    facts::{Facts, Head},
    identity::Caller,
    ledger::Unit,
    scan::Hits,
    time::Time,
};
use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use serde::Serialize;

/// One document against one call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Met {
    /// Its name.
    pub document: String,
    /// Whom it applies to.
    pub scope: Scope,
    /// Whether it is only tried out: what it says has no effect.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub shadow: bool,
    /// Whether the call falls under it; all its rules are silent otherwise.
    pub applies: bool,
    /// Its rules, in the order they are checked.
    pub rules: Vec<Ruled>,
}

/// One rule against one call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ruled {
    /// Such as `network.allowlist`.
    pub rule: String,
    /// What it says to this call.
    pub verdict: Verdict,
    /// What it says to any call.
    pub says: String,
    /// What would turn the verdict: where it refuses, what lets the call pass; where it does not, what it would refuse.
    pub otherwise: String,
}

/// What a rule says to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is met.
    Passes,
    /// It is why the call does not pass.
    Refuses,
    /// It lets the call pass without a part of its content.
    Redacts,
    /// It wants the call approved.
    Holds,
    /// It is about something this call does not do.
    Silent,
}

/// What every one of `documents`, all of a bundle that are enforced or all that are in shadow, says to a call, in their order; the other
/// arguments are those of [`super::decide`].
pub fn explain(
    (payload, documents): (&Payload, &Documents),
    patterns: &[String],
    caller: &Caller,
    head: &Head,
    facts: &Facts,
    hits: &Hits,
    now: Time,
) -> Vec<Met> {
    let met = super::met(documents, caller, facts);
    let cost = Cost::of(payload, &met, facts);
    let limits = limits(
        (&payload.calendars, &met),
        (caller, head.run.as_deref()),
        facts,
        &cost,
        now,
    );
    let met: Vec<&str> = met.iter().map(|document| document.name.as_str()).collect();
    let call = Call {
        patterns,
        caller,
        estimate: cost.worst_nano_usd,
        head,
        facts,
        hits,
        now,
        limits: &limits,
    };
    documents
        .iter()
        .map(|document| {
            let applies = met.contains(&document.name.as_str());
            Met {
                document: document.name.clone(),
                scope: document.scope.clone(),
                shadow: false,
                applies,
                rules: call.rules(document, applies),
            }
        })
        .collect()
}

/// A call and what the limits say to it.
struct Call<'c> {
    patterns: &'c [String],
    caller: &'c Caller,
    estimate: Option<u64>,
    head: &'c Head,
    facts: &'c Facts,
    hits: &'c Hits,
    now: Time,
    limits: &'c Limits,
}

impl Call<'_> {
    fn rules(&self, document: &Document, applies: bool) -> Vec<Ruled> {
        let mut rules = Vec::new();
        self.schedule(document, &mut rules);
        self.network(document, &mut rules);
        self.model(document, &mut rules);
        self.tools(document, &mut rules);
        self.data(document, &mut rules);
        self.approval(document, &mut rules);
        self.limits(document, &mut rules);
        if !applies {
            for rule in &mut rules {
                rule.verdict = Verdict::Silent;
                rule.otherwise.clear();
            }
        }
        rules
    }

    fn schedule(&self, document: &Document, rules: &mut Vec<Ruled>) {
        let Some(active) = &document.active else {
            return;
        };
        rules.push(ruled(
            "schedule.active_hours",
            &refusals(document, |check| check.schedule(self.now)),
            true,
            format!("calls may be made at {}", active.hours),
            "call within these hours".to_string(),
            "a call outside these hours".to_string(),
        ));
    }

    fn network(&self, document: &Document, rules: &mut Vec<Ruled>) {
        let refused = refusals(document, |check| check.network(self.head, self.facts));
        let network = &document.network;
        if let Some(hosts) = &network.hosts {
            let hosts = hosts.iter().map(|host| host.0.as_str());
            rules.push(ruled(
                "network.allowlist",
                &refused,
                true,
                format!("hosts that may be called: {}", listed(hosts)),
                format!(
                    "add {} to the list, or name only hosts on it",
                    self.hosts(|host| network.omits(host))
                ),
                "a host that is not listed".to_string(),
            ));
        }
        let hosts = network.denied_hosts.iter().map(|host| host.0.clone());
        let addresses = network.denied_addresses.iter().map(ToString::to_string);
        let denied: Vec<String> = hosts.chain(addresses).collect();
        if !denied.is_empty() {
            rules.push(ruled(
                "network.denylist",
                &refused,
                true,
                format!(
                    "hosts that may not be called: {}",
                    listed(denied.iter().map(String::as_str))
                ),
                format!(
                    "name other hosts, or take what means {} off the list",
                    self.hosts(|host| network.denies(host))
                ),
                "a host on the list".to_string(),
            ));
        }
        if network.denied {
            rules.push(ruled(
                "capabilities.deny",
                &refused,
                true,
                "no outbound connections".to_string(),
                "remove `network_outbound` from the list".to_string(),
                String::new(),
            ));
        }
    }

    /// Those that the call goes to and that are `meant`, in words.
    fn hosts(&self, meant: impl Fn(&str) -> bool) -> String {
        let mut hosts: Vec<String> = Vec::new();
        for host in called(self.head, self.facts).filter(|host| meant(host)) {
            let host = format!("`{host}`");
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        listed(hosts.iter().map(String::as_str))
    }

    fn model(&self, document: &Document, rules: &mut Vec<Ruled>) {
        let refused = refusals(document, |check| check.model(self.facts));
        let model = self.facts.said.model.as_deref();
        names("model", &document.models, model, &refused, rules);
        if !document.models.is_open() && refused.iter().any(|r| r.rule == "capabilities.model") {
            rules.push(ruled(
                "capabilities.model",
                &refused,
                true,
                "a call to an LLM API must name its model".to_string(),
                "name a model in the request".to_string(),
                String::new(),
            ));
        }
    }

    fn tools(&self, document: &Document, rules: &mut Vec<Ruled>) {
        let refused = refusals(document, |check| check.tools(self.facts));
        for tool in document.tools.denied.iter() {
            rules.push(ruled(
                &format!("tools.{tool}.allow"),
                &refused,
                self.facts.tools().next().is_some(),
                format!("the tool `{tool}` may not be used"),
                format!("leave `{tool}` out of the request, or remove the rule"),
                format!("a call that offers or calls `{tool}`"),
            ));
        }
        if let Some(others) = document
            .tools
            .others
            .as_ref()
            .filter(|others| others.denied)
        {
            rules.push(ruled(
                "tools.*.allow",
                &refused,
                self.facts.tools().next().is_some(),
                format!("no tools may be used but {}", listed(others.named.iter())),
                "leave other tools out of the request, or name them in the policy".to_string(),
                "a call that offers or calls another tool".to_string(),
            ));
        }
        if refused.iter().any(|r| r.rule == "capabilities.mcp_tool") {
            rules.push(ruled(
                "capabilities.mcp_tool",
                &refused,
                true,
                "a provider may not be told to call MCP servers itself".to_string(),
                "call the MCP server through the gate".to_string(),
                String::new(),
            ));
        }
        let tool = self.facts.said.mcp_tool.as_deref();
        names("MCP tool", &document.mcp_tools, tool, &refused, rules);
    }

    fn data(&self, document: &Document, rules: &mut Vec<Ruled>) {
        let refused = refusals(document, |check| {
            check.data(self.facts, self.patterns, self.hits);
        });
        let unsearchable = refused.iter().any(|r| r.rule == "data.unsearchable");
        if unsearchable {
            rules.push(ruled(
                "data.unsearchable",
                &refused,
                true,
                "content must be searched for sensitive patterns to its end".to_string(),
                "send less, or write the patterns so that they begin with what is fixed"
                    .to_string(),
                String::new(),
            ));
        }
        let tool = self.facts.said.mcp_tool.as_deref();
        // Of what was not searched to its end a pattern that was not found says nothing.
        let concerned = document.searches(tool) && !unsearchable;
        let (what, mut matching, where_else) = match document.data.searched_in {
            Searched::Both => (
                "content that matches",
                "content that matches it",
                "such as the path",
            ),
            Searched::Requests => (
                "requests that match",
                "a request that matches it",
                "such as the path",
            ),
            Searched::Responses => (
                "answers that match",
                "an answer that matches it",
                "such as a key",
            ),
        };
        if document.exempts(tool) {
            matching = EXEMPT;
        }
        for index in 0..document.data.patterns.len() {
            rules.push(ruled(
                &format!("data.sensitive_patterns[{index}]"),
                &refused,
                concerned,
                format!("{what} this pattern may not pass"),
                "take what matches out of the request".to_string(),
                matching.to_string(),
            ));
        }
        for redaction in &document.data.redactions {
            rules.push(ruled(
                &redaction.rule,
                &refused,
                concerned,
                "what matches is taken out of the content".to_string(),
                "take what matches out of the request".to_string(),
                format!("{matching} where it cannot be taken out, {where_else}"),
            ));
        }
        if document.data.tool_output_is_data {
            rules.push(ruled(
                "data.tool_output_is_data",
                &refused,
                self.facts.said.tools_at_work,
                "models are told that the output of tools is data".to_string(),
                String::new(),
                String::new(),
            ));
        }
    }

    fn approval(&self, document: &Document, rules: &mut Vec<Ruled>) {
        let refused = refusals(document, |check| {
            check.approval(self.caller, self.head, self.facts, self.estimate, self.now);
        });
        for approval in &document.tools.approvals {
            let tool = &approval.tool;
            let mut used = self.facts.tools();
            rules.push(ruled(
                &format!("tools.{tool}.requires_approval_if"),
                &refused,
                used.any(|used| used.eq_ignore_ascii_case(tool)),
                format!("the use of `{tool}` needs approval where a condition holds"),
                format!(
                    "leave `{tool}` out, change what the condition asks about, or have the call approved"
                ),
                "a call for which the condition holds, or cannot be known".to_string(),
            ));
        }
        self.other_approvals(document, &refused, rules);
    }

    fn other_approvals(&self, document: &Document, refused: &[Reason], rules: &mut Vec<Ruled>) {
        let Some(others) = &document.tools.others else {
            return;
        };
        if others.approval.is_some() {
            rules.push(ruled(
                "tools.*.requires_approval_if",
                refused,
                self.facts.tools().any(|used| others.includes(used)),
                format!(
                    "the use of tools but {} needs approval where a condition holds",
                    listed(others.named.iter())
                ),
                "leave other tools out, change what the condition asks about, or have the call approved"
                    .to_string(),
                "a call with another tool for which the condition holds, or cannot be known"
                    .to_string(),
            ));
        }
    }

    fn limits(&self, document: &Document, rules: &mut Vec<Ruled>) {
        let refused: Vec<Reason> = self
            .limits
            .refused
            .iter()
            .filter(|reason| reason.document.as_ref() == Some(&document.name))
            .cloned()
            .collect();
        for limit in &document.limits {
            let charge = self.limits.charges.iter().find(|charge| {
                charge.account.unit == limit.unit
                    && charge.account.window == limit.window
                    && charge.account.level == limit.per
                    && charge.account.tool == limit.tool
                    && charge.account.model.is_some() == limit.each_model
            });
            let lacks = Lacks::of(limit, document, self.caller, self.head.run.as_deref());
            rules.push(ruled(
                &limit.rule,
                &refused,
                charge.is_some(),
                says(limit),
                raised(limit, lacks, charge),
                exceeded(limit, charge),
            ));
        }
        // What keeps a limit from being reckoned at all stands beside the limits.
        for (place, reason) in refused.iter().enumerate() {
            let alike =
                |other: &Reason| (&other.rule, &other.message) == (&reason.rule, &reason.message);
            let told = refused.iter().take(place).any(alike);
            let mut limits = document.limits.iter();
            if !told && !limits.any(|limit| limit.rule == reason.rule) {
                rules.push(Ruled {
                    rule: reason.rule.to_string(),
                    verdict: Verdict::Refuses,
                    says: "what a limit counts must be known before the call".to_string(),
                    otherwise: reckoned(reason).to_string(),
                });
            }
        }
    }
}

/// What a pattern refuses, in a call that it is not looked for in.
const EXEMPT: &str = "what matches it in a call of another tool";

/// What lets a call pass that `limit` refuses.
fn raised(limit: &Limit, lacks: Option<Lacks>, charge: Option<&Charge>) -> String {
    match (lacks, charge) {
        (Some(Lacks::Run), _) => "name a run in `x-tollgate-run`".to_string(),
        (Some(Lacks::Team), _) => {
            "give the agent a team, or count by something else (`per`)".to_string()
        }
        (Some(Lacks::Org), _) => {
            "give the agent an organisation, or count by something else (`per`)".to_string()
        }
        (None, Some(charge)) if matches!(limit.unit, Unit::Tokens | Unit::NanoUsd) => format!(
            "ask for at most {} instead of {}, or raise the limit",
            limit.unit.in_words(limit.amount),
            limit.unit.in_words(charge.amount)
        ),
        (None, _) => "raise the limit".to_string(),
    }
}

/// What `limit` refuses.
fn exceeded(limit: &Limit, charge: Option<&Charge>) -> String {
    match (charge, limit.unit) {
        // It only warns.
        _ if limit.alert => String::new(),
        (Some(charge), Unit::Tokens | Unit::NanoUsd) => format!(
            "less than {} left of it: what this call may take",
            limit.unit.in_words(charge.amount)
        ),
        (Some(_), _) => "this call, once nothing is left of it".to_string(),
        (None, _) => "a call that takes more from it than is left".to_string(),
    }
}

/// What lets a call pass of which a limit cannot know what it takes.
fn reckoned(reason: &Reason) -> &str {
    match &*reason.rule {
        "budget.unmetered_route" => "call an endpoint whose use is metered, or remove the budget",
        "budget.service_tier" => "leave the dearer service tier out of the request",
        "budget.hosted_tools" => "leave the tools that the provider runs itself out of the request",
        "budget.unknown_model" => {
            "use a model with a known price, or set one: `budget.unknown_model`, `prices`"
        }
        _ => &reason.message,
    }
}

/// What one group of checks says of `document`.
fn refusals(document: &Document, check: impl FnOnce(&mut Check<'_>)) -> Vec<Reason> {
    let mut reasons = Vec::new();
    check(&mut Check {
        document,
        reasons: &mut reasons,
    });
    reasons
}

fn ruled(
    rule: &str,
    refused: &[Reason],
    concerned: bool,
    says: String,
    pass: String,
    refuse: String,
) -> Ruled {
    let verdict = match refused.iter().find(|reason| reason.rule == rule) {
        Some(reason) if reason.cause == Cause::Approval => Verdict::Holds,
        Some(reason) if reason.cause == Cause::Redaction => Verdict::Redacts,
        Some(_) => Verdict::Refuses,
        None if concerned => Verdict::Passes,
        None => Verdict::Silent,
    };
    Ruled {
        rule: rule.to_string(),
        verdict,
        says,
        otherwise: match verdict {
            Verdict::Refuses | Verdict::Redacts | Verdict::Holds => pass,
            Verdict::Passes | Verdict::Silent => refuse,
        },
    }
}

fn names(
    kind: &str,
    names: &Names,
    said: Option<&str>,
    refused: &[Reason],
    rules: &mut Vec<Ruled>,
) {
    let named = said.map_or_else(|| "it".to_string(), |said| format!("`{}`", shown(said)));
    if !names.deny.is_empty() {
        rules.push(ruled(
            "capabilities.deny",
            refused,
            said.is_some(),
            format!("{kind}s denied: {}", listed(names.deny.iter())),
            format!("use another {kind}, or remove what names {named} from the list"),
            format!("a {kind} on the list"),
        ));
    }
    if let Some(allow) = &names.allow {
        rules.push(ruled(
            "capabilities.allow",
            refused,
            said.is_some(),
            format!("{kind}s allowed: {}", listed(allow.iter())),
            format!("use a {kind} on the list, or add {named} to it"),
            format!("a {kind} that is not listed"),
        ));
    }
}

fn listed<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let names: Vec<&str> = names.collect();
    match names.as_slice() {
        [] => "none".to_string(),
        names => names.join(", "),
    }
}

fn says(limit: &Limit) -> String {
    format!(
        "{} {}{} per {} and {}",
        match limit.alert {
            true => "a warning beyond",
            false => "at most",
        },
        limit.unit.in_words(limit.amount),
        limit.tool.as_ref().map_or(String::new(), |tool| format!(
            " that use {}",
            super::tools_in_words(tool)
        )),
        match limit.each_model {
            true => format!("{} and model", limit.per.name()),
            false => limit.per.name().to_string(),
        },
        super::window_name(&limit.window)
    )
}
