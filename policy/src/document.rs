//! The policy language: what a document may say, and reading it with everything that is wrong told at once.
//!
//! Three forms are read: the envelope of `agent-assembly/v1`, the flat form of the same language, and the envelope of `tollgate/v1`, which
//! adds fields to it. A field that is valid but not enforced by this version is an error, not silence: a policy that looks enforced
//! and is not is the worst outcome a policy can have.

use crate::{
    agent, condition,
    decode::{Field, Findings, Shape, Table, name_problem, nearest},
    diagnostic::{Position, codes},
    host::{Denied, Host},
    money,
    pattern::{MAX_FILE_PATTERNS, MAX_PATTERNS, Pattern},
    pii,
    yaml::{Node, Value, child, shown},
    zone,
};
use std::{cmp::Ordering, fmt};
use tollgate_engine::{
    bundle::{Level, Redaction, Scope, Searched},
    condition::{Instruction, Program},
    ledger::Unit,
    price::Price,
    redact::REPLACEMENT,
};

/// The reference language, in envelope or flat form.
pub const AGENT_ASSEMBLY_V1: &str = "agent-assembly/v1";
/// Its superset.
pub const TOLLGATE_V1: &str = "tollgate/v1";

/// One policy as its author wrote it, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// `metadata.name`, or the file's stem for a flat document.
    pub name: String,
    /// Where the name stood, or the document began.
    pub at: Position,
    /// Whether it brings no name, and is named as its file.
    pub flat: bool,
    /// The author's revision; says nothing to a gate.
    pub version: Option<String>,
    /// For people.
    pub description: Option<String>,
    /// Whether it has effect.
    pub rollout: Rollout,
    /// `metadata.replaces`, and where it stood.
    pub replaces: Option<Replaces>,
    /// Whom it applies to; an agent's UUID is in lower case.
    pub scope: Scope,
    /// `schedule.active_hours`.
    pub active_hours: Option<ActiveHours>,
    /// `network.allowlist`; `None` where the document restricts no hosts by it, and empty allows nothing.
    pub network: Option<Vec<Host>>,
    /// `network.denylist`.
    pub denied_hosts: Vec<Denied>,
    /// What calls may use.
    pub capabilities: Capabilities,
    /// `tools`, as they stand.
    pub tools: Vec<Tool>,
    /// What content may hold.
    pub data: Data,
    /// `prices`: what models cost this workspace.
    pub prices: Vec<ModelPrice>,
    /// Spending limits.
    pub budget: Option<Budget>,
    /// Calls per minute.
    pub rate: Option<Rate>,
    /// What each run of an agent may use.
    pub run: Run,
    /// How approvals are given that it asks for.
    pub approvals: Approvals,
    /// What is put on record, and kept.
    pub audit: Audit,
    /// Whether operators may stop the agents that it covers.
    pub execution: Execution,
}

/// `agent.audit`. Every call is recorded, whatever it says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// `include_message_content`: records hold the begin of what passed.
    pub include_message_content: bool,
    /// `retention_days`: how long records are kept; `None`: for ever.
    pub retention_days: Option<u64>,
}

/// `agent.execution`, but for its timeout, which is a limit of runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Execution {
    /// `enable_pause`.
    pub pause: bool,
    /// `enable_cancel`.
    pub cancel: bool,
}

impl Default for Execution {
    fn default() -> Execution {
        Execution {
            pause: true,
            cancel: true,
        }
    }
}

impl Document {
    /// How the approval is given that a rule of this document (`tools.<name>.requires_approval_if`) asks for.
    pub fn approvals_of(&self, rule: &str) -> Approvals {
        let field = rule.strip_prefix("tools.");
        let name = field.and_then(|rest| rest.strip_suffix(".requires_approval_if"));
        let tool = self.tools.iter().find(|tool| Some(&*tool.name) == name);
        let own = tool.and_then(|tool| tool.approvals.clone());
        let Some(own) = own else {
            return self.approvals.clone();
        };
        let whole = &self.approvals;
        Approvals {
            timeout_secs: own.timeout_secs.or(whole.timeout_secs),
            escalation_role: whole.escalation_role.clone(),
            waits: own.waits.unwrap_or(whole.waits),
            channels: own.channels.unwrap_or_else(|| whole.channels.clone()),
        }
    }
}

/// `approval_config` of one tool: what is otherwise than the document has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApprovalConfig {
    /// `timeout_seconds`.
    pub timeout_secs: Option<u64>,
    /// `auto_deny_on_timeout`, the other way round.
    pub waits: Option<bool>,
    /// `notify_channels`.
    pub channels: Option<Vec<String>>,
}

/// How approvals are given: who is asked, and how long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Approvals {
    /// How long a request waits, and what it grants is good for; seconds. `approval.timeout_seconds`, else `approval_timeout_secs`; of one tool
    /// `approval_config.timeout_seconds`.
    pub timeout_secs: Option<u64>,
    /// `approval.escalation_role`: which operators may grant it; `None` for any.
    pub escalation_role: Option<String>,
    /// `auto_deny_on_timeout: false`: a request waits until somebody has decided it.
    pub waits: bool,
    /// `notify_channels`: who is told of requests.
    pub channels: Vec<String>,
}

impl fmt::Display for Approvals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "within {} s", self.timeout_secs())?;
        if self.waits {
            f.write_str(", or later")?;
        }
        if let Some(role) = &self.escalation_role {
            write!(f, ", by {role}")?;
        }
        if !self.channels.is_empty() {
            write!(f, ", told to {}", self.channels.join(", "))?;
        }
        Ok(())
    }
}

impl Approvals {
    /// `approval_timeout_secs` where a document does not say.
    pub const DEFAULT_TIMEOUT_SECS: u64 = 300;

    /// How long a request waits; seconds.
    pub fn timeout_secs(&self) -> u64 {
        self.timeout_secs.unwrap_or(Self::DEFAULT_TIMEOUT_SECS)
    }
}

/// What a document's verdicts are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rollout {
    /// They count.
    #[default]
    Enforce,
    /// They are recorded, for somebody to see what the document would do.
    Shadow,
}

/// The version of the document of the same name whose place a document is to take: if another is there, its author has not seen that one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaces {
    /// Its `metadata.version`.
    pub version: String,
    /// Where that was said.
    pub at: Position,
}

/// `data`: what is looked for in the content of calls, and what becomes of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Data {
    /// `sensitive_patterns`.
    pub patterns: Vec<Pattern>,
    /// `action: redact`: what they match is taken out, and the call passes.
    pub redact: bool,
    /// `mask_pii`: what looks like personal data is taken out.
    pub mask_pii: bool,
    /// `applies_to`: in what all this is looked for.
    pub applies_to: Searched,
    /// `exempt_tools`.
    pub exempt_tools: Vec<String>,
    /// `tool_output_is_data`: models are told not to follow what tools put out.
    pub tool_output_is_data: bool,
}

impl Data {
    /// Whether nothing is looked for in content, and models are told nothing.
    fn is_idle(&self) -> bool {
        self.patterns.is_empty() && !self.mask_pii && !self.tool_output_is_data
    }

    /// Everything that content is searched for, in normal form: what blocks, and what is taken out with the rule that says so.
    pub fn searched(&self) -> (Vec<String>, Vec<Redaction>) {
        let own = self.patterns.iter().map(|pattern| pattern.normal.clone());
        let masked = self.mask_pii.then(|| Redaction {
            rule: "data.mask_pii".to_string(),
            patterns: pii::patterns().to_vec(),
        });
        if !self.redact {
            return (own.collect(), masked.into_iter().collect());
        }
        let own = own.enumerate().map(|(index, pattern)| Redaction {
            rule: format!("data.sensitive_patterns[{index}]"),
            patterns: vec![pattern],
        });
        (Vec::new(), own.chain(masked).collect())
    }
}

/// `capabilities`: an allow list closes only the kinds it names, deny beats allow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// `capabilities.allow`.
    pub allow: Vec<Capability>,
    /// `capabilities.deny`.
    pub deny: Vec<Capability>,
}

/// One capability string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capability {
    /// `network_outbound`.
    NetworkOutbound,
    /// `model:<name>`; `*` stands for any run of characters.
    Model(String),
    /// `mcp_tool:<name>`; `*` stands for any run of characters.
    McpTool(String),
    /// `file_read` and its like: known, but nothing that passes a gate shows them.
    OutOfSight(&'static str),
}

/// Capabilities of the host an agent runs on, which no network call shows.
const OUT_OF_SIGHT: [&str; 5] = [
    "file_read",
    "file_write",
    "network_inbound",
    "terminal_exec",
    "agent_spawn",
];

/// `schedule.active_hours`: clocks of the zone show a time from `start` up to and not including `end`, over midnight where `end` comes first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveHours {
    /// Minutes since midnight.
    pub start: u32,
    /// Minutes since midnight; never `start`.
    pub end: u32,
    /// Canonical IANA name.
    pub timezone: String,
}

impl fmt::Display for ActiveHours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clock = |minutes: u32| format!("{:02}:{:02}", minutes / 60, minutes % 60);
        let (start, end) = (clock(self.start), clock(self.end));
        write!(f, "{start}-{end} {}", self.timezone)
    }
}

/// One entry of `tools`, or of `agent.tools`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool {
    /// Its name, as written; [`OTHERS`] for those that no other entry names.
    pub name: String,
    /// `allow`; true where absent.
    pub allow: bool,
    /// `limit_per_hour`: calls of one agent that use the tool.
    pub limit_per_hour: Option<u64>,
    /// `cost_usd` of one call over MCP, in nano-USD.
    pub cost_nano_usd: Option<u64>,
    /// `requires_approval_if`.
    pub requires_approval_if: Option<Condition>,
    /// `approval_config`. Only of entries of `agent.tools`.
    pub approvals: Option<ApprovalConfig>,
}

/// The name that stands for every tool that has no entry of its own.
pub const OTHERS: &str = "*";

/// A condition, as written and compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// As written.
    pub text: String,
    /// As a gate runs it.
    pub program: Program,
}

impl Condition {
    /// One that always holds.
    pub(crate) fn always() -> Condition {
        Condition {
            text: "true".to_string(),
            program: Program(vec![Instruction::Bool(true)]),
        }
    }
}

/// One entry of `prices`, instead of the price table's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelPrice {
    /// The model, by the name that calls have.
    pub model: String,
    /// pico-USD per token of input.
    pub input: u64,
    /// …of output.
    pub output: u64,
    /// …of input read from the provider's cache; `None`: as other input.
    pub cached_input: Option<u64>,
    /// Most tokens it puts out; `None`: as the price table has it.
    pub max_output_tokens: Option<u64>,
}

/// `budget`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Its limits, each above zero.
    pub limits: Vec<BudgetLimit>,
    /// Whose spending is counted together; the reference caps each agent.
    pub per: Level,
    /// `each: model`: each model by itself.
    pub each_model: bool,
    /// Canonical IANA name; days, weeks and months begin at its midnights.
    pub timezone: String,
    /// What a model costs that has no price; `None` denies it.
    pub unknown_model: Option<Price>,
    /// `action_on_exceed`.
    pub action: Exceeded,
    /// `warn_at`, in percent; empty where it is not said.
    pub warn_at: Vec<u8>,
    /// `on_lost: release`: what a lost gate held may be spent by others.
    pub releases: bool,
    /// `lower_max_tokens`: a call that a limit does not cover goes out with as many output tokens as it covers.
    pub lowers: bool,
}

/// What happens when a budget does not cover a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exceeded {
    /// The call is refused.
    #[default]
    Deny,
    /// From then on every call is refused.
    Suspend,
    /// It passes, and that is put on record.
    Alert,
}

/// One limit of a [`Budget`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetLimit {
    /// The field, such as `daily_limit_usd`.
    pub field: &'static str,
    /// Tokens in and out, or money.
    pub unit: Unit,
    /// Over what time.
    pub period: Period,
    /// In `unit`.
    pub amount: u64,
}

/// How long a budget lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Period {
    /// A full hour UTC.
    Hour,
    /// A day of the budget's time zone.
    Day,
    /// A week from Monday there.
    Week,
    /// A calendar month there.
    Month,
}

/// Limits of a budget, from the shortest period to the longest of each unit, and whether the reference has them.
const BUDGET_LIMITS: [(&str, Unit, Period, bool); 8] = [
    ("hourly_limit_usd", Unit::NanoUsd, Period::Hour, false),
    ("daily_limit_usd", Unit::NanoUsd, Period::Day, true),
    ("weekly_limit_usd", Unit::NanoUsd, Period::Week, false),
    ("monthly_limit_usd", Unit::NanoUsd, Period::Month, true),
    ("hourly_limit_tokens", Unit::Tokens, Period::Hour, false),
    ("daily_limit_tokens", Unit::Tokens, Period::Day, false),
    ("weekly_limit_tokens", Unit::Tokens, Period::Week, false),
    ("monthly_limit_tokens", Unit::Tokens, Period::Month, false),
];

/// `rate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Calls let through per minute; above zero.
    pub requests_per_minute: u64,
    /// Whose calls are counted together.
    pub per: Level,
    /// `each: model`: those to each model by itself.
    pub each_model: bool,
}

/// What `agent` sets for each run of an agent by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Its limits.
    pub limits: Vec<RunLimit>,
    /// `termination.on_budget_exceeded`: no call of a run passes any more once one has not fitted into its tokens or money.
    pub stops: bool,
}

/// One limit of a [`Run`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunLimit {
    /// The field, such as `agent.budget.max_tokens`.
    pub rule: String,
    /// What is counted. Calls are those to models.
    pub unit: Unit,
    /// In `unit`.
    pub amount: u64,
}

impl Run {
    /// Whether one of its limits is in one of these units.
    fn counts(&self, units: &[Unit]) -> bool {
        self.limits.iter().any(|limit| units.contains(&limit.unit))
    }

    pub(crate) fn limit(&mut self, field: &Field<'_>, unit: Unit, amount: u64) {
        // Named alike in the flat form and under `spec`.
        let rule = field.path.strip_prefix("spec.").unwrap_or(&field.path);
        self.limits.push(RunLimit {
            rule: rule.to_string(),
            unit,
            amount,
        });
    }
}

/// Which language a document says it is written in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Language {
    AgentAssemblyV1,
    TollgateV1,
}

const LEVELS: [(&str, Level); 4] = [
    ("agent", Level::Agent),
    ("team", Level::Team),
    ("org", Level::Org),
    ("workspace", Level::Workspace),
];

/// Most of any counter: ledgers add in signed 64-bit integers.
pub(crate) const MAX_COUNT: u64 = i64::MAX as u64;

/// Keys a flat document may have; under an envelope they belong into `spec`.
const BODY_KEYS: [&str; 12] = [
    "scope",
    "agent",
    "network",
    "schedule",
    "prices",
    "budget",
    "rate",
    "data",
    "tools",
    "capabilities",
    "approval_timeout_secs",
    "approval",
];

/// Said of a document without a rule. Agents under no document may call nothing, so it does something.
const OPEN: &str = "restricts nothing: whoever the policy covers may make every call that no other one stops; add rules, unless that is meant";

/// Settings that people bring from elsewhere, and where they have them here. As unknown keys they would be mere warnings.
const ELSEWHERE: [(&str, &str); 4] = [
    (
        "circuit_breaker",
        "no verdict over a call depends on how the last one ended; sparing an upstream that fails is for the proxy (Envoy: outlier detection)",
    ),
    (
        "offline_mode",
        "a gate always goes on without the control plane, as long as its bundle and leases last (docs/operations.md)",
    ),
    ("tool_costs_usd", "write `cost_usd` under `tools.<name>`"),
    (
        "token_cost_usd",
        "write `budget.unknown_model`; models of the price table need no estimate",
    ),
];

/// How entries of `agent.tools` say what those of `tools` say otherwise.
const OF_AGENT_TOOLS: [(&str, &str); 3] = [
    ("enabled", "write `allow`"),
    (
        "requires_approval",
        "write `requires_approval_if: \"true\"`",
    ),
    (
        "approval_config",
        "write `approval` for the whole policy, or the tool under `agent.tools`",
    ),
];

/// Reads one document. `flat_name` is the name it has when it brings none.
pub(crate) fn read(node: &Node, flat_name: &str, findings: &mut Findings) -> Option<Document> {
    let Some(mut top) = Table::of_document(node) else {
        if !matches!(node.value, Value::Refused) {
            let message = "a policy is a mapping with `apiVersion`, `kind`, `metadata` and `spec`, \
                           or the flat form of it";
            findings.error(node.at, "", codes::WRONG_TYPE, message);
        }
        return None;
    };
    let enveloped = ["apiVersion", "kind", "metadata", "spec"]
        .iter()
        .any(|key| top.has(key));
    let errors = findings.errors();
    if !enveloped {
        // Other files lie in a folder of policies too. As one whose keys are all unknown such a file would open everything.
        if errors == 0 && !BODY_KEYS.iter().any(|key| top.has(key)) {
            let message = "there is no policy here: none of its keys is a field of policies, such as `scope`, `network` or `budget`; \
                           write some, or keep the file apart from policies";
            findings.error(node.at, "", codes::NO_DOCUMENT, message);
        }
        let body = body(top, Language::AgentAssemblyV1, findings);
        if findings.errors() == errors && body.is_open() {
            findings.warn(node.at, "", codes::BROAD, OPEN);
        }
        let (name, named) = match name_problem(flat_name) {
            None => (flat_name, true),
            Some((code, message)) => {
                let message = format!(
                    "a flat policy is named as its file, and `{}` is no name: {message}",
                    shown(flat_name)
                );
                findings.error(node.at, "", code, message);
                (flat_name, false)
            }
        };
        return named.then(|| Document {
            flat: true,
            ..body.into_document(name, node.at, None)
        });
    }

    let language = api_version(&mut top, findings);
    match top.take("kind") {
        Some(kind) => {
            findings.choice(&kind, &[("Policy", ())]);
        }
        None => missing(findings, &top, "kind", "write `kind: Policy`"),
    }
    let metadata = match top.take("metadata") {
        Some(metadata) => read_metadata(&metadata, language, findings),
        None => {
            missing(
                findings,
                &top,
                "metadata",
                "give the policy a name in `metadata.name`",
            );
            None
        }
    };
    let spec_field = top.take("spec");
    let spec = match &spec_field {
        Some(spec) => findings
            .table(spec)
            .map(|table| body(table, language, findings)),
        None => {
            missing(findings, &top, "spec", "put the rules under `spec`");
            None
        }
    };
    not_in_spec(&mut top, findings);
    not_in_metadata(&mut top, findings);
    top.finish(findings);
    let (metadata, spec) = (metadata?, spec?);
    if let Some(field) = spec_field.filter(|_| findings.errors() == errors && spec.is_open()) {
        findings.warn(field.key_at, &field.path, codes::BROAD, OPEN);
    }
    let mut document = spec.into_document(metadata.name, metadata.name_at, metadata.description);
    document.version = metadata.version.or(document.version);
    document.rollout = metadata.rollout;
    document.replaces = metadata.replaces;
    Some(document)
}

fn api_version(top: &mut Table<'_>, findings: &mut Findings) -> Language {
    let versions = [
        (AGENT_ASSEMBLY_V1, Language::AgentAssemblyV1),
        (TOLLGATE_V1, Language::TollgateV1),
    ];
    // After an error the wider language is assumed, so that its fields are not reported on top.
    match top.take("apiVersion") {
        Some(field) => {
            let Some(text) = findings.written(&field) else {
                return Language::TollgateV1;
            };
            match versions.iter().find(|(name, _)| *name == text) {
                Some((name, language)) => {
                    findings.asked(&field.path, Shape::Choice(vec![*name]));
                    *language
                }
                None => {
                    let message = format!(
                        "`{}` is not a version this reads; write `{AGENT_ASSEMBLY_V1}` or `{TOLLGATE_V1}`",
                        shown(text)
                    );
                    findings.error(field.node.at, &field.path, codes::API_VERSION, message);
                    Language::TollgateV1
                }
            }
        }
        None => {
            let advice =
                format!("write `apiVersion: {AGENT_ASSEMBLY_V1}` or `apiVersion: {TOLLGATE_V1}`");
            missing(findings, top, "apiVersion", &advice);
            Language::TollgateV1
        }
    }
}

struct Metadata<'n> {
    name: &'n str,
    name_at: Position,
    version: Option<String>,
    description: Option<String>,
    rollout: Rollout,
    replaces: Option<Replaces>,
}

fn read_metadata<'n>(
    field: &Field<'n>,
    language: Language,
    findings: &mut Findings,
) -> Option<Metadata<'n>> {
    let mut table = findings.table(field)?;
    let name = match table.take("name") {
        Some(name) => findings.name(&name).map(|text| (text, name.node.at)),
        None => {
            missing(
                findings,
                &table,
                "name",
                "every reason and record names the policy by it",
            );
            None
        }
    };
    let version = optional_text(&mut table, "version", findings);
    let description = optional_text(&mut table, "description", findings);
    let rollout = take_added(&mut table, "rollout", language, findings);
    let rollouts = [("enforce", Rollout::Enforce), ("shadow", Rollout::Shadow)];
    let rollout = rollout.and_then(|field| findings.choice(&field, &rollouts));
    let replaces = take_added(&mut table, "replaces", language, findings).and_then(|field| {
        let version = findings.name(&field)?.to_string();
        let at = field.node.at;
        Some(Replaces { version, at })
    });
    not_in_spec(&mut table, findings);
    table.finish(findings);
    let (name, name_at) = name?;
    Some(Metadata {
        name,
        name_at,
        version,
        description,
        rollout: rollout.unwrap_or_default(),
        replaces,
    })
}

/// Text for people, which may as well be left empty.
fn optional_text(
    table: &mut Table<'_>,
    key: &'static str,
    findings: &mut Findings,
) -> Option<String> {
    let field = table.take(key)?;
    findings.asked(&field.path, Shape::Remark);
    if field.node.is_null() {
        return None;
    }
    findings.written(&field).map(str::to_string)
}

fn missing(findings: &mut Findings, table: &Table<'_>, key: &'static str, advice: &str) {
    let path = child(&table.path, key);
    let message = format!("`{key}` is missing; {advice}");
    findings.error(table.at, &path, codes::MISSING, message);
}

pub(crate) fn not_enforced(findings: &mut Findings, field: &Field<'_>, instead: &str) {
    let message = format!("is not enforced by this version; remove it or {instead}");
    findings.error(field.key_at, &field.path, codes::NOT_ENFORCED, message);
}

/// Refuses settings that have another place, each with that place. As unknown keys they would be mere warnings, and somebody relies on them.
pub(crate) fn elsewhere(
    table: &mut Table<'_>,
    of: &str,
    settings: &[(&str, &str)],
    findings: &mut Findings,
) {
    for (setting, instead) in settings {
        if let Some(field) = table.take_silently(setting) {
            let message = format!("is not a field of {of}: {instead}");
            findings.error(field.key_at, &field.path, codes::ELSEWHERE, message);
        }
    }
}

/// Refuses fields of `spec` that stand elsewhere.
fn not_in_spec(table: &mut Table<'_>, findings: &mut Findings) {
    for key in BODY_KEYS {
        if let Some(stray) = table.take_silently(key) {
            let message = format!(
                "`{key}` stands outside `spec`, where it would be ignored; move it under `spec`"
            );
            findings.error(stray.key_at, &stray.path, codes::MISPLACED, message);
        }
    }
}

/// Refuses fields of `metadata` that stand elsewhere and would have effect there.
fn not_in_metadata(table: &mut Table<'_>, findings: &mut Findings) {
    for key in ["rollout", "replaces"] {
        if let Some(stray) = table.take_silently(key) {
            let message = format!(
                "`{key}` stands outside `metadata`, where it would be ignored; move it under `metadata`, in a document of `{TOLLGATE_V1}`"
            );
            findings.error(stray.key_at, &stray.path, codes::MISPLACED, message);
        }
    }
}

/// Takes a field that only `tollgate/v1` has. In the older language it would be an unknown key, and ignoring it would let calls
/// through that its author meant to stop.
fn take_added<'n>(
    table: &mut Table<'n>,
    key: &'static str,
    language: Language,
    findings: &mut Findings,
) -> Option<Field<'n>> {
    if language == Language::TollgateV1 {
        return table.take(key);
    }
    let field = table.take_silently(key);
    if let Some(field) = &field {
        let message = format!(
            "`{key}` is a field of `{TOLLGATE_V1}`; write `apiVersion: {TOLLGATE_V1}`, with `kind`, `metadata` and `spec`"
        );
        findings.error(field.key_at, &field.path, codes::NEEDS_TOLLGATE_V1, message);
    }
    field
}

/// What both forms share: the fields of `spec`.
#[derive(Default)]
struct Body {
    version: Option<String>,
    scope: Option<Scope>,
    active_hours: Option<ActiveHours>,
    network: Option<Vec<Host>>,
    denied_hosts: Vec<Denied>,
    capabilities: Capabilities,
    tools: Vec<Tool>,
    data: Data,
    prices: Vec<ModelPrice>,
    budget: Option<Budget>,
    rate: Option<Rate>,
    run: Run,
    approvals: Approvals,
    audit: Audit,
    execution: Execution,
}

impl Body {
    /// Whether nothing of it stops a call, counts it, changes it, or sets how it is recorded or priced.
    fn is_open(&self) -> bool {
        let closes = |capability: &Capability| match capability {
            Capability::Model(_) | Capability::McpTool(_) => true,
            Capability::NetworkOutbound | Capability::OutOfSight(_) => false,
        };
        let stops = |capability: &Capability| !matches!(capability, Capability::OutOfSight(_));
        let rules = |tool: &Tool| {
            !tool.allow
                || tool.limit_per_hour.is_some()
                || tool.cost_nano_usd.is_some()
                || tool.requires_approval_if.is_some()
        };
        self.active_hours.is_none()
            && self.network.is_none()
            && self.denied_hosts.is_empty()
            && !self.capabilities.allow.iter().any(closes)
            && !self.capabilities.deny.iter().any(stops)
            && !self.tools.iter().any(rules)
            && self.data.is_idle()
            && self.prices.is_empty()
            && self
                .budget
                .as_ref()
                .is_none_or(|budget| budget.limits.is_empty())
            && self.rate.is_none()
            && self.run == Run::default()
            && self.audit == Audit::default()
            && self.execution == Execution::default()
    }

    fn into_document(self, name: &str, at: Position, description: Option<String>) -> Document {
        Document {
            name: name.to_string(),
            at,
            flat: false,
            version: self.version,
            description,
            rollout: Rollout::Enforce,
            replaces: None,
            scope: self.scope.unwrap_or(Scope::Global),
            active_hours: self.active_hours,
            network: self.network,
            denied_hosts: self.denied_hosts,
            capabilities: self.capabilities,
            tools: self.tools,
            data: self.data,
            prices: self.prices,
            budget: self.budget,
            rate: self.rate,
            run: self.run,
            approvals: self.approvals,
            audit: self.audit,
            execution: self.execution,
        }
    }
}

/// Reads the fields. What is wrong is in `findings`, and then the result is not used.
fn body(mut table: Table<'_>, language: Language, findings: &mut Findings) -> Body {
    let mut body = Body {
        version: optional_text(&mut table, "version", findings),
        ..Body::default()
    };
    if let Some(field) = table.take("scope") {
        body.scope = scope(&field, findings);
    }
    if let Some(field) = table.take("network") {
        (body.network, body.denied_hosts) = network(&field, language, findings);
    }
    if let Some(field) = table.take("schedule") {
        body.active_hours = schedule(&field, language, findings);
    }
    let agent = table
        .take("agent")
        .map(|field| (agent::read(&field, findings), field));
    let no_run = Run::default();
    let run = agent.as_ref().map_or(&no_run, |(agent, _)| &agent.run);
    let budget_field = table.take("budget");
    if let Some(field) = &budget_field {
        body.budget = budget(field, run, language, findings);
    }
    let rate_field = take_added(&mut table, "rate", language, findings);
    if let Some(field) = &rate_field {
        body.rate = rate(field, findings);
    }
    if let Some(Scope::Tool(tool)) = &body.scope
        && tool.contains('|')
    {
        let counted = [
            (&budget_field, body.budget.as_ref().map(|budget| budget.per)),
            (&rate_field, body.rate.map(|rate| rate.per)),
        ];
        for (field, per) in counted {
            let of_several = per.is_some_and(|per| per != Level::Agent);
            if let Some(field) = field.as_ref().filter(|_| of_several) {
                // Its account could be another's.
                let instead = "count a tool with `|` in its name per agent";
                not_enforced(findings, field, instead);
            }
        }
    }
    let prices_field = take_added(&mut table, "prices", language, findings);
    if let Some(field) = &prices_field {
        body.prices = prices(field, findings);
    }
    if let Some(field) = table.take("data") {
        body.data = data(&field, language, findings);
    }
    if let Some(field) = table.take("tools") {
        body.tools = tools(&field, language, findings);
    }
    if let Some((agent, field)) = agent {
        match (&body.scope, agent.id) {
            (_, None) => {}
            (None, Some((id, _))) => body.scope = Some(Scope::Agent(id.as_str().into())),
            (Some(_), Some((_, at))) => {
                let path = child(&field.path, "id");
                let message = "whom the policy is for is said twice; remove `scope` or `id`";
                findings.error(at, &path, codes::SCOPE, message);
            }
        }
        // Of two entries for a tool, in two places, nobody would look for the other.
        if !agent.tools.is_empty() && !body.tools.is_empty() {
            let path = child(&field.path, "tools");
            let message = "tools are configured in `tools` already; write them all in one place";
            findings.error(field.key_at, &path, codes::MISPLACED, message);
        }
        body.tools.extend(agent.tools);
        if !agent.run.limits.is_empty() && matches!(body.scope, Some(Scope::Tool(_))) {
            not_enforced(
                findings,
                &field,
                "put it into a document of a broader scope",
            );
        }
        body.run = agent.run;
        (body.audit, body.execution) = (agent.audit, agent.execution);
    }
    if let Some(field) = table.take("capabilities") {
        body.capabilities = capabilities(&field, findings);
    }
    if let (Some(field), Some(Scope::Org(_) | Scope::Team(_) | Scope::Agent(_) | Scope::Tool(_))) =
        (&prices_field, &body.scope)
    {
        let message =
            "what a model costs it costs everybody; put prices into a document of `scope: global`";
        findings.error(field.key_at, &field.path, codes::SCOPE, message);
    }
    elsewhere(&mut table, "policies", &ELSEWHERE, findings);
    not_in_metadata(&mut table, findings);
    let needed = body
        .tools
        .iter()
        .any(|tool| tool.requires_approval_if.is_some());
    let configures = |field: &Field<'_>, findings: &mut Findings| {
        if !needed {
            let message = "has no effect: no tool of this policy needs approval";
            findings.warn(field.key_at, &field.path, codes::NO_EFFECT, message);
        }
    };
    if let Some(field) = table.take("approval_timeout_secs") {
        body.approvals.timeout_secs = findings.integer(&field, 1, MAX_COUNT);
        if body.approvals.timeout_secs.is_some() {
            configures(&field, findings);
        }
    }
    if let Some(field) = table.take("approval") {
        approval(&field, &mut body.approvals, language, findings);
        configures(&field, findings);
    }
    table.finish(findings);
    body
}

fn scope(field: &Field<'_>, findings: &mut Findings) -> Option<Scope> {
    const KINDS: [&str; 5] = ["global", "org", "team", "agent", "tool"];
    let text = findings.text(field)?;
    let kind = text.split_once(':').map_or(text, |(kind, _)| kind);
    let mut problem = |message: String| {
        findings.error(field.node.at, &field.path, codes::SCOPE, message);
        None
    };
    match Scope::parse(text) {
        Some(Scope::Global) => Some(Scope::Global),
        Some(Scope::Agent(id)) if !is_hyphenated_uuid(&id) => problem(format!(
            "`{}` is not a UUID such as 01234567-89ab-cdef-0123-456789abcdef",
            shown(&id)
        )),
        Some(Scope::Agent(id)) => Some(Scope::Agent(id.to_ascii_lowercase().as_str().into())),
        Some(scope @ (Scope::Org(_) | Scope::Team(_) | Scope::Tool(_))) => {
            let id = text.split_once(':').map_or("", |(_, id)| id);
            match name_problem(id) {
                None if id.contains('*') => problem(format!(
                    "`*` stands for itself in a scope, so this covers nothing; name one {kind} in each document, or write `global`"
                )),
                None => Some(scope),
                Some((_, why)) => problem(format!("the identifier after `{kind}:`: {why}")),
            }
        }
        None if KINDS.contains(&kind) && kind != "global" => problem(format!(
            "`{kind}:` needs an identifier behind it, such as `{kind}:<id>`"
        )),
        None => {
            let meant = nearest(kind, &KINDS)
                .map_or(String::new(), |kind| format!("; did you mean `{kind}`?"));
            problem(format!(
                "must be `global`, `org:<id>`, `team:<id>`, `agent:<uuid>` or `tool:<name>`, found `{}`{meant}",
                shown(text)
            ))
        }
    }
}

/// Eight, four, four, four and twelve hexadecimal digits (RFC 9562 §4).
pub(crate) fn is_hyphenated_uuid(text: &str) -> bool {
    let groups = [8, 4, 4, 4, 12];
    let mut parts = text.split('-');
    groups.iter().all(|digits| {
        parts.next().is_some_and(|part| {
            part.len() == *digits && part.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
    }) && parts.next().is_none()
}

/// The hosts that `network` allows, and those it denies. Where it only denies, it allows all others.
fn network(
    field: &Field<'_>,
    language: Language,
    findings: &mut Findings,
) -> (Option<Vec<Host>>, Vec<Denied>) {
    let Some(mut table) = findings.table(field) else {
        return (None, Vec::new());
    };
    let allowlist = table.take("allowlist");
    let denylist = take_added(&mut table, "denylist", language, findings);
    table.finish(findings);
    let allowed = match (&allowlist, &denylist) {
        (None, Some(_)) => None,
        (list, _) => Some(host_list(list.as_ref(), findings, Host::allowed)),
    };
    for (host, entry) in allowed.iter().flatten() {
        let broad = match host {
            Host::Any => true,
            Host::Below(domain) => !domain.contains('.'),
            Host::Exact(_) => false,
        };
        if broad {
            let message = format!("`{host}` allows hosts that anybody can register");
            findings.warn(entry.node.at, &entry.path, codes::BROAD, message);
        }
    }
    if let Some(list) = denylist.as_ref().filter(|list| list.node.is_empty_list()) {
        let message = "has no effect: an empty list denies no host";
        findings.warn(list.key_at, &list.path, codes::NO_EFFECT, message);
    }
    let denied = host_list(denylist.as_ref(), findings, Denied::parse);
    let hosts = allowed.map(|hosts| hosts.into_iter().map(|(host, _)| host).collect());
    (
        hosts,
        denied.into_iter().map(|(denied, _)| denied).collect(),
    )
}

/// The entries of a list of hosts that can be read.
fn host_list<'n, T>(
    list: Option<&Field<'n>>,
    findings: &mut Findings,
    read: fn(&str) -> Result<T, &'static str>,
) -> Vec<(T, Field<'n>)> {
    let mut hosts = Vec::new();
    for entry in list
        .and_then(|list| findings.list(list))
        .unwrap_or_default()
    {
        let Some(text) = findings.text(&entry) else {
            continue;
        };
        if text.trim().is_empty() {
            findings.error(
                entry.node.at,
                &entry.path,
                codes::EMPTY,
                "must not be empty",
            );
            continue;
        }
        match read(text) {
            Ok(host) => hosts.push((host, entry)),
            Err(why) => {
                let message = format!("`{}`: {why}", shown(text));
                findings.error(entry.node.at, &entry.path, codes::HOST, message);
            }
        }
    }
    hosts
}

fn schedule(field: &Field<'_>, language: Language, findings: &mut Findings) -> Option<ActiveHours> {
    let mut table = findings.table(field)?;
    let hours = table.take("active_hours");
    if hours.is_none() {
        let message = "has no effect: without `active_hours` calls pass at any time";
        findings.warn(field.key_at, &field.path, codes::NO_EFFECT, message);
    }
    let hours = hours.and_then(|hours| active_hours(&hours, language, findings));
    table.finish(findings);
    hours
}

fn active_hours(
    field: &Field<'_>,
    language: Language,
    findings: &mut Findings,
) -> Option<ActiveHours> {
    let mut table = findings.table(field)?;
    let mut edge = |key: &'static str, findings: &mut Findings| match table.take(key) {
        Some(time) => {
            time_of_day(&time, findings).map(|minutes| (minutes, time.path, time.node.at))
        }
        None => {
            missing(findings, &table, key, "write it as HH:MM, 24-hour");
            None
        }
    };
    let start = edge("start", findings);
    let end = edge("end", findings);
    if let (Some((start, ..)), Some((end, path, at))) = (&start, &end) {
        let problem = match end.cmp(start) {
            Ordering::Greater => None,
            Ordering::Equal => Some("must not be the same as `start`".to_string()),
            Ordering::Less if language == Language::TollgateV1 => None,
            Ordering::Less => Some(format!(
                "must be later than `start`; hours over midnight need `apiVersion: {TOLLGATE_V1}`"
            )),
        };
        if let Some(message) = problem {
            findings.error(*at, path, codes::TIME_OF_DAY, message);
        }
    }
    let timezone = match table.take("timezone") {
        Some(zone) => time_zone(&zone, findings),
        None => {
            missing(
                findings,
                &table,
                "timezone",
                "write an IANA name such as `Europe/Berlin`",
            );
            None
        }
    };
    table.finish(findings);
    Some(ActiveHours {
        start: start?.0,
        end: end?.0,
        timezone: timezone?,
    })
}

/// Minutes since midnight.
fn time_of_day(field: &Field<'_>, findings: &mut Findings) -> Option<u32> {
    let text = findings.text(field)?;
    let two_digits = |text: &str, below: u32| {
        let plain = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|number| plain && *number < below)
    };
    let minutes = text.split_once(':').and_then(|(hours, minutes)| {
        let hours: u32 = two_digits(hours, 24)?;
        let minutes: u32 = two_digits(minutes, 60)?;
        Some(hours * 60 + minutes)
    });
    if minutes.is_none() {
        let message = format!("must be HH:MM from 00:00 to 23:59, found `{}`", shown(text));
        findings.error(field.node.at, &field.path, codes::TIME_OF_DAY, message);
    }
    minutes
}

fn time_zone(field: &Field<'_>, findings: &mut Findings) -> Option<String> {
    let text = findings.text(field)?;
    let zone = zone::canonical(text);
    if zone.is_none() {
        let meant = match findings.is_full() {
            true => None,
            false => zone::nearest(text),
        };
        let advice = match &meant {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => "write one such as `Europe/Berlin` or `UTC`".to_string(),
        };
        let message = format!("`{}` is not an IANA time zone; {advice}", shown(text));
        findings.suggest(field, codes::TIME_ZONE, message, meant);
    }
    zone
}

/// An amount of money that must be more than nothing, as `read` scales it.
pub(crate) fn money_above_zero(
    field: &Field<'_>,
    findings: &mut Findings,
    read: fn(&str) -> Result<u64, money::MoneyError>,
) -> Option<u64> {
    let amount = money(field, findings, read)?;
    if amount == 0 {
        findings.error(
            field.node.at,
            &field.path,
            codes::MONEY,
            "must be more than 0",
        );
        return None;
    }
    Some(amount)
}

fn money(
    field: &Field<'_>,
    findings: &mut Findings,
    read: fn(&str) -> Result<u64, money::MoneyError>,
) -> Option<u64> {
    let text = findings.text(field)?;
    match read(text) {
        Ok(amount) => Some(amount),
        Err(why) => {
            let message = format!("`{}` {why}", shown(text));
            findings.error(field.node.at, &field.path, codes::MONEY, message);
            None
        }
    }
}

/// Some of it is also for what `run` limits.
fn budget(
    field: &Field<'_>,
    run: &Run,
    language: Language,
    findings: &mut Findings,
) -> Option<Budget> {
    let errors = findings.errors();
    let mut table = findings.table(field)?;
    let mut limits: Vec<BudgetLimit> = Vec::new();
    for (field, unit, period, in_reference) in BUDGET_LIMITS {
        let taken = match in_reference {
            true => table.take(field),
            false => take_added(&mut table, field, language, findings),
        };
        let Some(limit) = taken else {
            continue;
        };
        let amount = match unit {
            Unit::NanoUsd => money_above_zero(&limit, findings, money::nano_usd),
            Unit::Tokens
            | Unit::Calls
            | Unit::Errors
            | Unit::Seconds
            | Unit::Goals
            | Unit::Approvals => findings.integer(&limit, 1, MAX_COUNT),
        };
        let Some(amount) = amount else {
            continue;
        };
        let shorter = limits.iter().rfind(|shorter| shorter.unit == unit);
        if let Some(shorter) = shorter.filter(|shorter| amount < shorter.amount) {
            let message = format!("must not be less than `{}`", shorter.field);
            findings.error(limit.node.at, &limit.path, codes::LIMITS_CROSSED, message);
        }
        limits.push(BudgetLimit {
            field,
            unit,
            period,
            amount,
        });
    }
    let zone = match table.take("timezone") {
        Some(zone) => time_zone(&zone, findings),
        None => Some("UTC".to_string()),
    };
    let action = table.take("action_on_exceed");
    let action = action.and_then(|action| action_on_exceed(&action, language, findings));
    let warn_at = take_added(&mut table, "warn_at", language, findings);
    if let Some(list) = warn_at.as_ref().filter(|list| list.node.is_empty_list()) {
        let message =
            "has no effect: an empty list is as none, and then 80 and 90 percent are told";
        findings.warn(list.key_at, &list.path, codes::NO_EFFECT, message);
    }
    let warn_at = warn_at.map_or(Vec::new(), |list| percents(&list, findings));
    let on_lost = take_added(&mut table, "on_lost", language, findings);
    let releases = on_lost
        .and_then(|choice| findings.choice(&choice, &[("forfeit", false), ("release", true)]));
    let lower = take_added(&mut table, "lower_max_tokens", language, findings);
    let lowers = lower
        .as_ref()
        .and_then(|lower| findings.boolean(lower))
        .unwrap_or(false);
    if let (Some(lower), true, Some(Exceeded::Alert)) = (&lower, lowers, action) {
        let message = "has no effect where `action_on_exceed` is `alert`: no call is refused";
        findings.warn(lower.key_at, &lower.path, codes::NO_EFFECT, message);
    }
    let per = match take_added(&mut table, "per", language, findings) {
        Some(per) => findings.choice(&per, &LEVELS),
        None => Some(Level::Agent),
    };
    let each_model = each(take_added(&mut table, "each", language, findings), findings);
    let unknown_model = take_added(&mut table, "unknown_model", language, findings);
    let in_usd = limits.iter().any(|limit| limit.unit == Unit::NanoUsd);
    let prices_run = unknown_model.is_some() && run.counts(&[Unit::NanoUsd]);
    let lowers_run = lowers && run.counts(&[Unit::Tokens, Unit::NanoUsd]);
    let idle = limits.is_empty() && !prices_run && !lowers_run;
    if let Some(field) = &unknown_model
        && !(in_usd || prices_run || idle)
    {
        let message = "has no effect without a valid limit in US dollars";
        findings.warn(field.key_at, &field.path, codes::NO_EFFECT, message);
    }
    let unknown_model = unknown_model.and_then(|field| price(&field, findings));
    table.finish(findings);
    if idle && findings.errors() == errors {
        let message = "has no effect: it sets no limit; write one, such as `daily_limit_usd`";
        findings.warn(field.key_at, &field.path, codes::NO_EFFECT, message);
    }
    Some(Budget {
        limits,
        per: per?,
        each_model,
        timezone: zone?,
        unknown_model,
        action: action.unwrap_or_default(),
        warn_at,
        releases: releases.unwrap_or(false),
        lowers,
    })
}

/// `each`: what is counted by itself.
fn each(field: Option<Field<'_>>, findings: &mut Findings) -> bool {
    field
        .and_then(|field| findings.choice(&field, &[("model", true)]))
        .unwrap_or(false)
}

/// `unknown_model`: `deny`, or a price.
fn price(field: &Field<'_>, findings: &mut Findings) -> Option<Price> {
    if !matches!(field.node.value, Value::Map(_)) {
        findings.choice(field, &[("deny", ())]);
        return None;
    }
    let mut table = findings.table(field)?;
    let sides = price_sides(&mut table, findings);
    table.finish(findings);
    let (input, output) = sides?;
    // Nobody knows what it does; it may reason.
    Some(Price {
        reasons: true,
        ..Price::flat(input, output)
    })
}

/// What tokens cost that go in and that come out.
fn price_sides(table: &mut Table<'_>, findings: &mut Findings) -> Option<(u64, u64)> {
    let mut side = |key: &'static str| match table.take(key) {
        Some(price) => money(&price, findings, money::pico_usd_per_token),
        None => {
            missing(
                findings,
                table,
                key,
                "write US dollars per million tokens, such as `2.50`",
            );
            None
        }
    };
    let (input, output) = (
        side("input_usd_per_million"),
        side("output_usd_per_million"),
    );
    Some((input?, output?))
}

fn prices(field: &Field<'_>, findings: &mut Findings) -> Vec<ModelPrice> {
    let mut prices = Vec::new();
    let Some(mut table) = findings.table(field) else {
        return prices;
    };
    for (model, price) in table.take_all() {
        if let Some((code, message)) = name_problem(model) {
            findings.error(price.key_at, &price.path, code, message);
        } else if model.contains('*') {
            let message = "a price is of one model; write its name as calls have it";
            findings.error(price.key_at, &price.path, codes::BAD_NAME, message);
        }
        let Some(mut inner) = findings.table(&price) else {
            continue;
        };
        let sides = price_sides(&mut inner, findings);
        let cached = inner.take("cached_input_usd_per_million");
        let cached_input =
            cached.and_then(|price| money(&price, findings, money::pico_usd_per_token));
        let most = inner.take("max_output_tokens");
        let max_output_tokens = most.and_then(|most| findings.integer(&most, 1, MAX_COUNT));
        inner.finish(findings);
        if let Some((input, output)) = sides {
            prices.push(ModelPrice {
                model: model.to_string(),
                input,
                output,
                cached_input,
                max_output_tokens,
            });
        }
    }
    table.finish(findings);
    prices
}

/// `None` where it sets no limit.
fn rate(field: &Field<'_>, findings: &mut Findings) -> Option<Rate> {
    let mut table = findings.table(field)?;
    let requests = match table.take("requests_per_minute") {
        Some(number) => {
            let requests = findings.integer(&number, 0, MAX_COUNT);
            if requests == Some(0) {
                let message = "0 sets no limit; to let no call through, deny the capability `network_outbound`";
                findings.warn(number.node.at, &number.path, codes::NO_EFFECT, message);
            }
            requests
        }
        None => {
            missing(
                findings,
                &table,
                "requests_per_minute",
                "write a whole number; 0 sets no limit",
            );
            None
        }
    };
    let per = match table.take("per") {
        Some(per) => findings.choice(&per, &LEVELS),
        None => Some(Level::Agent),
    };
    let each_model = each(table.take("each"), findings);
    table.finish(findings);
    Some(Rate {
        requests_per_minute: requests.filter(|requests| *requests > 0)?,
        per: per?,
        each_model,
    })
}

fn action_on_exceed(
    field: &Field<'_>,
    language: Language,
    findings: &mut Findings,
) -> Option<Exceeded> {
    let mut actions = vec![("deny", Exceeded::Deny), ("suspend", Exceeded::Suspend)];
    if language == Language::TollgateV1 {
        actions.push(("alert", Exceeded::Alert));
    }
    findings.choice(field, &actions)
}

/// Parts of something, from 1 to 100 percent, each once.
fn percents(list: &Field<'_>, findings: &mut Findings) -> Vec<u8> {
    let entries = findings.list(list).unwrap_or_default();
    if entries.len() > 100 {
        let message = "there are no more than 100 percents; remove what stands twice";
        findings.error(list.key_at, &list.path, codes::OVER_LIMIT, message);
        return Vec::new();
    }
    let mut percents: Vec<u8> = entries
        .iter()
        .filter_map(|entry| u8::try_from(findings.integer(entry, 1, 100)?).ok())
        .collect();
    percents.sort_unstable();
    percents.dedup();
    percents
}

fn data(field: &Field<'_>, language: Language, findings: &mut Findings) -> Data {
    let Some(mut table) = findings.table(field) else {
        return Data::default();
    };
    let errors = findings.errors();
    let list = table.take("sensitive_patterns");
    let action = take_added(&mut table, "action", language, findings);
    let action =
        action.and_then(|action| findings.choice(&action, &[("block", false), ("redact", true)]));
    let redact = action.unwrap_or(false);
    let patterns = list.map_or(Vec::new(), |list| {
        sensitive_patterns(&list, redact, findings)
    });
    let mask_pii = take_added(&mut table, "mask_pii", language, findings);
    let mask_pii = mask_pii.and_then(|field| findings.boolean(&field));
    let applies_to = take_added(&mut table, "applies_to", language, findings);
    let applies_to = applies_to.and_then(|applies_to| {
        let choices = [
            ("both", Searched::Both),
            ("requests", Searched::Requests),
            ("responses", Searched::Responses),
        ];
        findings.choice(&applies_to, &choices)
    });
    let told = take_added(&mut table, "tool_output_is_data", language, findings);
    let told = told.and_then(|field| findings.boolean(&field));
    let exempt = take_added(&mut table, "exempt_tools", language, findings);
    let exempt = exempt
        .and_then(|list| findings.list(&list))
        .unwrap_or_default();
    let exempt_tools = exempt
        .iter()
        .filter_map(|tool| {
            let name = findings.name(tool)?;
            if name.contains('*') {
                let message = "a tool's name stands for itself here; name each that is exempt";
                findings.error(tool.node.at, &tool.path, codes::BAD_NAME, message);
            }
            Some(name.to_string())
        })
        .collect();
    table.finish(findings);
    let data = Data {
        patterns,
        redact,
        mask_pii: mask_pii.unwrap_or(false),
        applies_to: applies_to.unwrap_or_default(),
        exempt_tools,
        tool_output_is_data: told.unwrap_or(false),
    };
    if data.is_idle() && findings.errors() == errors {
        let message =
            "has no effect: there is nothing to look for; write some `sensitive_patterns`";
        findings.warn(field.key_at, &field.path, codes::NO_EFFECT, message);
    }
    data
}

fn sensitive_patterns(list: &Field<'_>, redact: bool, findings: &mut Findings) -> Vec<Pattern> {
    let mut patterns = Vec::new();
    let Some(entries) = findings.list(list) else {
        return patterns;
    };
    findings.patterns = findings.patterns.saturating_add(entries.len());
    let limits = [
        (entries.len(), MAX_PATTERNS, "a policy"),
        (findings.patterns, MAX_FILE_PATTERNS, "a file"),
    ];
    for (count, most, place) in limits {
        if count > most {
            let message = format!("{count} patterns are more than the {most} of {place}; split it");
            findings.error(list.key_at, &list.path, codes::OVER_LIMIT, message);
            return patterns;
        }
    }
    for entry in &entries {
        let Some(text) = findings.text(entry) else {
            continue;
        };
        match Pattern::parse(text) {
            Ok(pattern) if redact && pattern.finds(REPLACEMENT) => {
                let message = format!(
                    "matches `{REPLACEMENT}`, which stands for what is taken out, so no call with a match would ever pass; make it more exact"
                );
                findings.error(
                    entry.node.at,
                    &entry.path,
                    codes::PATTERN_POINTLESS,
                    message,
                );
            }
            Ok(pattern) => patterns.push(pattern),
            Err(why) => {
                let at = why.at.map_or(entry.node.at, |at| entry.node.character(at));
                findings.error(at, &entry.path, why.code, why.message);
            }
        }
    }
    patterns
}

/// In a document of one tool (`scope`), only of that one calls can be counted: it hears of no others.
fn tools(field: &Field<'_>, language: Language, findings: &mut Findings) -> Vec<Tool> {
    let mut tools = Vec::new();
    let Some(mut table) = findings.table(field) else {
        return tools;
    };
    let others = table.has(OTHERS);
    for (name, tool) in table.take_all() {
        if let Some((code, message)) = name_problem(name) {
            findings.error(tool.key_at, &tool.path, code, message);
        } else if name == OTHERS {
            if language == Language::AgentAssemblyV1 {
                let message = format!("`*`, for all other tools, is of `{TOLLGATE_V1}`");
                findings.error(tool.key_at, &tool.path, codes::NEEDS_TOLLGATE_V1, message);
            }
        } else if name.contains('*') {
            let message = "a tool's name stands for itself here; \
                           write `mcp_tool:` with a `*` under `capabilities` to mean several";
            findings.error(tool.key_at, &tool.path, codes::BAD_NAME, message);
        }
        let Some(mut inner) = findings.table(&tool) else {
            continue;
        };
        // Beside `*` an empty entry takes its tool out of what that says.
        if inner.is_empty() && !others {
            let message =
                "has no effect: it says nothing about the tool; write `allow: false` to refuse it";
            findings.warn(tool.key_at, &tool.path, codes::NO_EFFECT, message);
        }
        let allow = inner.take("allow");
        let allow = allow.and_then(|allow| findings.boolean(&allow));
        let limit = inner.take("limit_per_hour");
        let limit_per_hour = limit.and_then(|limit| findings.integer(&limit, 0, MAX_COUNT));
        let cost = take_added(&mut inner, "cost_usd", language, findings);
        let cost_nano_usd =
            cost.and_then(|cost| money_above_zero(&cost, findings, money::nano_usd));
        let requires_approval_if = inner
            .take("requires_approval_if")
            .and_then(|field| condition(&field, findings));
        elsewhere(&mut inner, "`tools`", &OF_AGENT_TOOLS, findings);
        inner.finish(findings);
        tools.push(Tool {
            name: name.to_string(),
            allow: allow.unwrap_or(true),
            limit_per_hour,
            cost_nano_usd,
            requires_approval_if,
            approvals: None,
        });
    }
    table.finish(findings);
    tools
}

fn condition(field: &Field<'_>, findings: &mut Findings) -> Option<Condition> {
    let text = findings.text(field)?;
    if text.trim().is_empty() {
        findings.error(
            field.node.at,
            &field.path,
            codes::CONDITION,
            "must not be empty",
        );
        return None;
    }
    match condition::compile(text) {
        Ok(program) => Some(Condition {
            text: text.to_string(),
            program,
        }),
        Err(errors) => {
            for why in errors {
                let at = field.node.character(why.at);
                findings.error(at, &field.path, codes::CONDITION, why.to_string());
            }
            None
        }
    }
}

fn capabilities(field: &Field<'_>, findings: &mut Findings) -> Capabilities {
    let Some(mut table) = findings.table(field) else {
        return Capabilities::default();
    };
    let allow = table.take("allow");
    if let Some(field) = allow.as_ref().filter(|list| list.node.is_empty_list()) {
        let message = "an empty list closes nothing; a list closes the kinds it names";
        findings.warn(field.key_at, &field.path, codes::NO_EFFECT, message);
    }
    let allow = capability_list(allow, findings);
    let deny = capability_list(table.take("deny"), findings);
    table.finish(findings);
    Capabilities { allow, deny }
}

fn capability_list(list: Option<Field<'_>>, findings: &mut Findings) -> Vec<Capability> {
    let mut capabilities = Vec::new();
    for entry in list
        .and_then(|list| findings.list(&list))
        .unwrap_or_default()
    {
        let Some(text) = findings.text(&entry) else {
            continue;
        };
        match capability(text) {
            Ok(capability) => {
                if let Capability::OutOfSight(name) = &capability {
                    let message = format!(
                        "`{name}` is not visible to a gate: nothing here allows or stops it"
                    );
                    findings.warn(entry.node.at, &entry.path, codes::NOT_VISIBLE, message);
                }
                capabilities.push(capability);
            }
            Err(message) => {
                findings.error(entry.node.at, &entry.path, codes::CAPABILITY, message);
            }
        }
    }
    capabilities
}

fn capability(text: &str) -> Result<Capability, String> {
    if text == "network_outbound" {
        return Ok(Capability::NetworkOutbound);
    }
    if let Some(known) = OUT_OF_SIGHT.iter().find(|known| **known == text) {
        return Ok(Capability::OutOfSight(known));
    }
    let kind: fn(String) -> Capability = match text.split_once(':') {
        Some(("model", _)) => Capability::Model,
        Some(("mcp_tool", _)) => Capability::McpTool,
        _ => {
            let mut known = OUT_OF_SIGHT.to_vec();
            known.extend(["network_outbound", "model:", "mcp_tool:"]);
            let word = match text.split_once(':') {
                Some((kind, _)) => format!("{kind}:"),
                None => text.to_string(),
            };
            let meant = nearest(&word, &known)
                .map_or(String::new(), |known| format!("; did you mean `{known}`?"));
            return Err(format!("`{}` is not a capability{meant}", shown(text)));
        }
    };
    let name = text.split_once(':').map_or("", |(_, name)| name);
    match name_problem(name) {
        None => Ok(kind(name.to_string())),
        Some((_, why)) => Err(format!("the name after the colon: {why}")),
    }
}

/// A list of names.
pub(crate) fn names(list: &Field<'_>, findings: &mut Findings) -> Vec<String> {
    let entries = findings.list(list).unwrap_or_default();
    let named = entries.iter().filter_map(|entry| findings.name(entry));
    named.map(str::to_string).collect()
}

/// Who may grant approvals that the document asks for, and how long they are waited for.
fn approval(
    field: &Field<'_>,
    approvals: &mut Approvals,
    language: Language,
    findings: &mut Findings,
) {
    let Some(mut table) = findings.table(field) else {
        return;
    };
    if let Some(timeout) = table.take("timeout_seconds") {
        let timeout = findings.integer(&timeout, 1, MAX_COUNT);
        approvals.timeout_secs = timeout.or(approvals.timeout_secs);
    }
    if let Some(role) = table.take("escalation_role") {
        approvals.escalation_role = findings.name(&role).map(str::to_string);
    }
    if let Some(waits) = take_added(&mut table, "auto_deny_on_timeout", language, findings) {
        approvals.waits = findings.boolean(&waits) == Some(false);
    }
    if let Some(channels) = take_added(&mut table, "notify_channels", language, findings) {
        approvals.channels = names(&channels, findings);
    }
    table.finish(findings);
}
