//! The `agent:` block: an agent's tools, budget, termination, execution and audit in one place, for everything the document's scope covers.
//!
//! Its tools mean what entries of `tools` mean: `enabled: false` is `allow: false`, `requires_approval: true` a condition that always holds,
//! and `"*"` is every tool without an entry. Its budget and its termination are counted over each run of the agent by itself.

use crate::{
    decode::{Field, Findings, Table, name_problem},
    diagnostic::{Position, codes},
    document::{
        ApprovalConfig, Audit, Condition, Execution, MAX_COUNT, OTHERS, Run, RunLimit, Tool,
        elsewhere, is_hyphenated_uuid, money_above_zero, names,
    },
    money,
    yaml::shown,
};
use tollgate_engine::ledger::{MAX_RUN_SECS, Unit};

/// How entries of `tools` say what those of `agent.tools` say otherwise.
const OF_TOOLS: [(&str, &str); 4] = [
    ("allow", "write `enabled`"),
    (
        "requires_approval_if",
        "write `requires_approval`, or the tool under `tools`",
    ),
    ("limit_per_hour", "write the tool under `tools`"),
    ("cost_usd", "write the tool under `tools`"),
];

/// What a document takes from the block.
#[derive(Default)]
pub(crate) struct Agent {
    /// The agent that it is for, by UUID in lower case, and where that stood.
    pub(crate) id: Option<(String, Position)>,
    /// `agent.tools`.
    pub(crate) tools: Vec<Tool>,
    /// What each run may use.
    pub(crate) run: Run,
    /// What is put on record, and kept.
    pub(crate) audit: Audit,
    /// Whether operators may stop it.
    pub(crate) execution: Execution,
}

impl Agent {
    /// Reads a whole number that is the most of something in a run.
    fn count(
        &mut self,
        table: &mut Table<'_>,
        key: &'static str,
        unit: Unit,
        findings: &mut Findings,
    ) {
        let most = match unit {
            Unit::Seconds => MAX_RUN_SECS.unsigned_abs(),
            Unit::Calls
            | Unit::Tokens
            | Unit::NanoUsd
            | Unit::Errors
            | Unit::Goals
            | Unit::Approvals => MAX_COUNT,
        };
        if let Some(field) = table.take(key)
            && let Some(amount) = findings.integer(&field, 1, most)
        {
            self.run.limit(&field, unit, amount);
        }
    }
}

pub(crate) fn read(field: &Field<'_>, findings: &mut Findings) -> Agent {
    let mut agent = Agent::default();
    let Some(mut table) = findings.table(field) else {
        return agent;
    };
    let id = table.take("id");
    agent.id = id.as_ref().and_then(|id| uuid(id, findings));
    if let Some(name) = table.take("name")
        && findings.name(&name).is_some()
        && id.is_none()
    {
        let message = "is only for people; the policy is for every agent that its scope covers, unless `id` is the UUID of one";
        findings.warn(name.key_at, &name.path, codes::NO_EFFECT, message);
    }
    if let Some(list) = table.take("tools") {
        agent.tools = tools(&list, findings);
    }
    for (key, read) in [
        (
            "budget",
            budget as fn(&Field<'_>, &mut Agent, &mut Findings),
        ),
        ("termination", termination),
        ("execution", execution),
    ] {
        if let Some(part) = table.take(key) {
            read(&part, &mut agent, findings);
        }
    }
    if let Some(part) = table.take("audit") {
        agent.audit = audit(&part, findings);
    }
    table.finish(findings);
    agent
}

fn uuid(field: &Field<'_>, findings: &mut Findings) -> Option<(String, Position)> {
    let text = findings.text(field)?;
    if is_hyphenated_uuid(text) {
        return Some((text.to_ascii_lowercase(), field.node.at));
    }
    // For more agents than meant, never for fewer: a document only narrows.
    let message = format!(
        "`{}` is not the UUID of an agent (`tollgate agent list`), so the policy is for every agent that its scope covers",
        shown(text)
    );
    findings.warn(field.node.at, &field.path, codes::NO_EFFECT, message);
    None
}

fn tools(list: &Field<'_>, findings: &mut Findings) -> Vec<Tool> {
    let mut tools: Vec<Tool> = Vec::new();
    let mut named_only = Vec::new();
    let errors = findings.errors();
    for entry in findings.list(list).unwrap_or_default() {
        let Some(mut table) = findings.table(&entry) else {
            continue;
        };
        let name = table.take("name");
        if name.is_none() {
            let message = "`name` is missing; write the tool's, or `\"*\"` for all others";
            let path = format!("{}.name", entry.path);
            findings.error(entry.node.at, &path, codes::MISSING, message);
        }
        let name = name.and_then(|name| tool_name(&name, &tools, findings));
        if table.is_empty() {
            named_only.push(entry);
        }
        let enabled = table.take("enabled");
        let enabled = enabled.and_then(|enabled| findings.boolean(&enabled));
        let approval = table.take("requires_approval");
        let approval = approval.and_then(|approval| findings.boolean(&approval));
        let needed = approval == Some(true);
        let config = table.take("approval_config");
        let approvals = config.and_then(|config| approval_config(&config, needed, findings));
        elsewhere(&mut table, "`agent.tools`", &OF_TOOLS, findings);
        table.finish(findings);
        if let Some(name) = name {
            tools.push(Tool {
                name,
                allow: enabled.unwrap_or(true),
                limit_per_hour: None,
                cost_nano_usd: None,
                requires_approval_if: needed.then(Condition::always),
                approvals,
            });
        }
    }
    // Beside `*` such an entry takes its tool out of what that says.
    if findings.errors() == errors && !tools.iter().any(|tool| tool.name == OTHERS) {
        for entry in named_only {
            let message = "has no effect: it says nothing about the tool; write `enabled: false` to refuse it";
            findings.warn(entry.key_at, &entry.path, codes::NO_EFFECT, message);
        }
    }
    tools
}

fn tool_name(field: &Field<'_>, before: &[Tool], findings: &mut Findings) -> Option<String> {
    let name = findings.text(field)?;
    let problem = match name_problem(name) {
        Some(problem) => Some(problem),
        None if name != OTHERS && name.contains('*') => {
            let message = "a tool's name stands for itself; `\"*\"` alone means all others";
            Some((codes::BAD_NAME, message.to_string()))
        }
        None if before.iter().any(|tool| tool.name == name) => {
            let message = format!("`{}` has an entry already; remove one", shown(name));
            Some((codes::DUPLICATE_KEY, message))
        }
        None => None,
    };
    match problem {
        None => Some(name.to_string()),
        Some((code, message)) => {
            findings.error(field.node.at, &field.path, code, message);
            None
        }
    }
}

/// How an approval of one tool is asked for and given.
fn approval_config(
    field: &Field<'_>,
    needed: bool,
    findings: &mut Findings,
) -> Option<ApprovalConfig> {
    let mut table = findings.table(field)?;
    let mut approvals = ApprovalConfig::default();
    if let Some(timeout) = table.take("timeout_seconds") {
        approvals.timeout_secs = findings.integer(&timeout, 1, MAX_COUNT);
    }
    if let Some(deny) = table.take("auto_deny_on_timeout") {
        approvals.waits = findings.boolean(&deny).map(|deny| !deny);
    }
    if let Some(channels) = table.take("notify_channels") {
        approvals.channels = Some(names(&channels, findings));
    }
    table.finish(findings);
    if !needed {
        let message = "has no effect: the tool does not need approval";
        findings.warn(field.key_at, &field.path, codes::NO_EFFECT, message);
    }
    Some(approvals)
}

/// `agent.budget`.
fn budget(field: &Field<'_>, agent: &mut Agent, findings: &mut Findings) {
    let Some(mut table) = findings.table(field) else {
        return;
    };
    agent.count(&mut table, "max_tokens", Unit::Tokens, findings);
    if let Some(most) = table.take("max_cost_usd")
        && let Some(amount) = money_above_zero(&most, findings, money::nano_usd)
    {
        agent.run.limit(&most, Unit::NanoUsd, amount);
    }
    agent.count(&mut table, "max_iterations", Unit::Calls, findings);
    table.finish(findings);
}

/// `agent.termination`.
fn termination(field: &Field<'_>, agent: &mut Agent, findings: &mut Findings) {
    let Some(mut table) = findings.table(field) else {
        return;
    };
    if let Some(goal) = table.take("on_goal_achieved")
        && findings.boolean(&goal) == Some(true)
    {
        agent.run.limit(&goal, Unit::Goals, 1);
    }
    if let Some(exceeded) = table.take("on_budget_exceeded") {
        agent.run.stops = findings.boolean(&exceeded).unwrap_or(false);
        let budgeted = |limit: &RunLimit| matches!(limit.unit, Unit::Tokens | Unit::NanoUsd);
        if agent.run.stops && !agent.run.limits.iter().any(budgeted) {
            let message = "has no effect: the agent has no `budget` of tokens or money";
            findings.warn(exceeded.key_at, &exceeded.path, codes::NO_EFFECT, message);
        }
    }
    agent.count(&mut table, "on_timeout", Unit::Seconds, findings);
    agent.count(&mut table, "max_iterations", Unit::Calls, findings);
    agent.count(&mut table, "error_threshold", Unit::Errors, findings);
    table.finish(findings);
}

/// `agent.execution`.
fn execution(field: &Field<'_>, agent: &mut Agent, findings: &mut Findings) {
    let Some(mut table) = findings.table(field) else {
        return;
    };
    agent.count(&mut table, "timeout_seconds", Unit::Seconds, findings);
    for (key, enabled) in [
        ("enable_pause", &mut agent.execution.pause),
        ("enable_cancel", &mut agent.execution.cancel),
    ] {
        if let Some(field) = table.take(key) {
            *enabled = findings.boolean(&field).unwrap_or(true);
        }
    }
    table.finish(findings);
}

fn audit(field: &Field<'_>, findings: &mut Findings) -> Audit {
    let mut audit = Audit::default();
    let Some(mut table) = findings.table(field) else {
        return audit;
    };
    if let Some(all) = table.take("log_all_events")
        && findings.boolean(&all) == Some(false)
    {
        let message = "has no effect: every call is recorded";
        findings.warn(all.key_at, &all.path, codes::NO_EFFECT, message);
    }
    if let Some(days) = table.take("retention_days") {
        audit.retention_days = findings.integer(&days, 1, MAX_COUNT);
    }
    if let Some(content) = table.take("include_message_content") {
        audit.include_message_content = findings.boolean(&content) == Some(true);
    }
    table.finish(findings);
    audit
}
