//! What a gate runs: documents compiled, immutable, digest-named, signed.
//!
//! A [`Bundle`] exists only verified: [`Bundle::closed`] denies everything, [`Bundle::install`] replaces it by a newer one
//! or says why not. An older, foreign, expired or differently signed one never replaces a good one.

mod documents;
mod part;
mod short;
mod texts;

pub use documents::Documents;
pub use part::{Part, Silent};
pub use short::Short;
pub use texts::Texts;

use crate::{
    address::{Place, Range},
    automaton::Compiled,
    bytes::Digest,
    condition::Program,
    envelope::{self, OpenError, PublicKey},
    halt::Halt,
    json,
    ledger::{Span, Unit, Window},
    price::{Price, PriceTable},
    sorted::sort_by,
    time::Time,
};
use alloc::{boxed::Box, format, string::String, vec::Vec};
use core::fmt;
use serde::{Deserialize, Serialize};

/// The format this engine reads and the policy compiler writes.
pub const FORMAT: u32 = 4;

/// How far ahead of its own clock a gate accepts an issue time: five minutes, the usual bound of clock skew (RFC 4120 §1.6 uses the same).
pub const CLOCK_SKEW_SECS: i64 = 300;

/// How far a revision may jump at once. A control plane publishes a revision per change and per re-signing; a million of them is
/// decades. Without a cap one stolen signature with revision `u64::MAX` would lock out every later bundle (TUF: "fast-forward").
pub const MAX_REVISION_JUMP: u64 = 1_000_000;

/// Bytes of a bundle envelope a gate looks at. 1 MiB of signed policy verifies in about 1.5 ms inside a V8 worker.
pub const MAX_ENVELOPE_BYTES: usize = 4 << 20;

/// The signed payload.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Payload {
    /// [`FORMAT`].
    pub format: u32,
    /// The tenant, `ws-<uuid>`.
    pub workspace: String,
    /// A workspace may publish several; a gate follows one.
    pub channel: String,
    /// Grows with every bundle of the channel; never names two different ones.
    pub revision: u64,
    /// Seconds since the Unix epoch.
    pub issued_at: i64,
    /// Seconds since the Unix epoch; from then on a gate denies.
    pub expires_at: i64,
    /// The policy.
    pub documents: Documents,
    /// Documents that are tried out: what they would have said is recorded, and nothing more.
    #[serde(default, skip_serializing_if = "Documents::is_empty")]
    pub shadow: Documents,
    /// Every pattern that the documents name, compiled, by its text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub automata: Vec<Compiled>,
    /// Day edges of every time zone that a limit counts in.
    pub calendars: Vec<Calendar>,
    /// What models cost.
    pub prices: PriceTable,
    /// Keys that sign agent tokens.
    pub token_keys: Vec<PublicKey>,
    /// Agents whose tokens no longer count, by UUID, sorted.
    pub revoked_agents: Vec<String>,
    /// Whose calls an operator has stopped, or which runs, broadest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub halts: Vec<Halt>,
}

/// One policy document, compiled. Every field can only narrow what the others allow. Small, because a call looks at all of a document, and among
/// thousands they are in no cache: what few documents have is a [`Part`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// As its author named it; every [`crate::decide::Reason`] carries it.
    pub name: String,
    /// Whom it applies to.
    pub scope: Scope,
    /// When calls may be made; `None` for always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<Box<ActiveHours>>,
    /// Where calls may go.
    #[serde(default, skip_serializing_if = "Part::is_absent")]
    pub network: Part<Network>,
    /// `model:` capabilities.
    #[serde(default, skip_serializing_if = "Names::is_open")]
    pub models: Names,
    /// `mcp_tool:` capabilities.
    #[serde(default, skip_serializing_if = "Part::is_absent")]
    pub mcp_tools: Part<Names>,
    /// Which tools may be used.
    #[serde(default, skip_serializing_if = "Part::is_absent")]
    pub tools: Part<Tools>,
    /// What content may pass.
    #[serde(default, skip_serializing_if = "Part::is_absent")]
    pub data: Part<Data>,
    /// Budgets and rates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<Limit>,
}

/// `network`, and the capability to use it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Hosts that may be called; `None` where the document does not list them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Vec<HostPattern>>,
    /// Hosts that may not be called, also where they are among those that may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub denied_hosts: Vec<HostPattern>,
    /// Addresses that may not be called, however they are spelt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub denied_addresses: Vec<Range>,
    /// `capabilities.deny: network_outbound`: no host at all.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub denied: bool,
}

impl Silent for Network {
    const SILENT: &'static Network = &Network {
        hosts: None,
        denied_hosts: Vec::new(),
        denied_addresses: Vec::new(),
        denied: false,
    };
}

impl Network {
    /// Whether there is a list of hosts that may be called, and `host` is not on it.
    pub fn omits(&self, host: &str) -> bool {
        let listed = |hosts: &Vec<HostPattern>| hosts.iter().any(|pattern| pattern.matches(host));
        !self.hosts.as_ref().is_none_or(listed)
    }

    /// Whether `host` is among those that may not be called.
    pub fn denies(&self, host: &str) -> bool {
        let (hosts, ranges) = (&self.denied_hosts, &self.denied_addresses);
        hosts.iter().any(|pattern| pattern.matches(host))
            || !ranges.is_empty()
                && match Place::of(host) {
                    Place::Name => false,
                    Place::Address(address) => ranges.iter().any(|range| range.contains(address)),
                    // Whatever a library makes of it may be in the range.
                    Place::Unclear => true,
                }
    }
}

/// `tools`, but for the limits of their use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tools {
    /// Those with `allow: false`.
    #[serde(default, skip_serializing_if = "Texts::is_empty")]
    pub denied: Texts,
    /// What holds for every tool but those that are named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub others: Option<OtherTools>,
    /// Those with `requires_approval_if`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<Approval>,
    /// What their calls over MCP cost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub costs: Vec<ToolCost>,
}

impl Silent for Tools {
    const SILENT: &'static Tools = &Tools {
        denied: Texts::NONE,
        others: None,
        approvals: Vec::new(),
        costs: Vec::new(),
    };
}

/// `data`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// `sensitive_patterns`, in order; regular expressions that the compiler has checked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patterns: Vec<String>,
    /// Patterns whose matches are taken out of what is sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redactions: Vec<Redaction>,
    /// `applies_to`: in what patterns are looked for.
    #[serde(default, skip_serializing_if = "Searched::is_both")]
    pub searched_in: Searched,
    /// `exempt_tools`: MCP tools in whose calls patterns are not looked for.
    #[serde(default, skip_serializing_if = "Texts::is_empty")]
    pub unsearched_tools: Texts,
    /// `tool_output_is_data`: models are told so.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub tool_output_is_data: bool,
    /// `agent.audit.include_message_content`: what passes is put on record.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub recorded: bool,
}

impl Silent for Data {
    const SILENT: &'static Data = &Data {
        patterns: Vec::new(),
        redactions: Vec::new(),
        searched_in: Searched::Both,
        unsearched_tools: Texts::NONE,
        tool_output_is_data: false,
        recorded: false,
    };
}

impl Document {
    /// All patterns that content is searched for.
    pub fn searched(&self) -> impl Iterator<Item = &str> {
        let redacted = self.data.redactions.iter();
        let redacted = redacted.flat_map(|redaction| &redaction.patterns);
        let blocked = self.data.patterns.iter();
        blocked.chain(redacted).map(String::as_str)
    }

    /// Whether the request of a call of this MCP tool (`None`: any other call) is searched for them.
    pub fn searches(&self, mcp_tool: Option<&str>) -> bool {
        !self.data.is_absent()
            && self.data.searched_in != Searched::Responses
            && !self.exempts(mcp_tool)
    }

    /// Whether the answer to it is.
    pub fn searches_answers(&self, mcp_tool: Option<&str>) -> bool {
        self.watches() && !self.exempts(mcp_tool)
    }

    /// Whether any answers are.
    pub fn watches(&self) -> bool {
        self.data.searched_in != Searched::Requests && self.searched().next().is_some()
    }

    /// Whether `limit`, one of this document's, is about calls that use `tools`.
    pub fn counts<'t>(&self, limit: &Limit, mut tools: impl Iterator<Item = &'t str>) -> bool {
        let is_other = |used| {
            let others = self.tools.others.as_ref();
            others.is_none_or(|others| others.includes(used))
        };
        limit.tool.as_deref().is_none_or(|tool| {
            tools.any(|used| match within_in(tool) {
                Some(("", _)) => is_other(used),
                Some((tool, _)) => used.eq_ignore_ascii_case(tool),
                None => used.eq_ignore_ascii_case(tool),
            })
        })
    }

    /// The condition that `rule` (`tools.<name>.requires_approval_if`) stands for here.
    pub(crate) fn approval(&self, rule: &str) -> Option<&Program> {
        let (tool, field) = rule.strip_prefix("tools.")?.rsplit_once('.')?;
        let named = |approval: &&Approval| approval.tool == tool;
        let condition = match tool {
            "*" => self.tools.others.as_ref()?.approval.as_ref(),
            _ => Some(&self.tools.approvals.iter().find(named)?.condition),
        };
        condition.filter(|_| field == "requires_approval_if")
    }

    /// What one call of this MCP tool costs, in nano-USD, where the document says so.
    pub fn tool_cost(&self, tool: &str) -> Option<u64> {
        let is_it = |cost: &&ToolCost| cost.tool.eq_ignore_ascii_case(tool);
        let named = self
            .tools
            .costs
            .iter()
            .find(is_it)
            .map(|cost| cost.nano_usd);
        let others = || {
            self.tools
                .others
                .as_ref()
                .filter(|others| others.includes(tool))?
                .cost_nano_usd
        };
        named.or_else(others)
    }

    /// Whether it looks for nothing in calls of this MCP tool, nor in the answers to them.
    pub(crate) fn exempts(&self, mcp_tool: Option<&str>) -> bool {
        mcp_tool.is_some_and(|tool| {
            let mut names = self.data.unsearched_tools.iter();
            names.any(|name| name.eq_ignore_ascii_case(tool))
        })
    }
}

/// What a scope names; a UUID has 36 bytes.
pub type Id = Short<38>;

/// Whom a document applies to; in text `global`, `org:<id>`, `team:<id>`, `agent:<uuid>` or `tool:<name>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every call of the workspace.
    Global,
    /// Every agent of an organisation.
    Org(Id),
    /// Every agent of a team.
    Team(Id),
    /// One agent, by UUID.
    Agent(Id),
    /// Calls that use this tool, of any agent.
    Tool(Id),
}

impl Scope {
    /// Reads the text form; the identifier must not be empty. (That an agent's is a UUID is the compiler's to check.)
    pub fn parse(text: &str) -> Option<Scope> {
        if text == "global" {
            return Some(Scope::Global);
        }
        let (kind, id) = text.split_once(':')?;
        if id.is_empty() {
            return None;
        }
        let id = Id::from(id);
        match kind {
            "org" => Some(Scope::Org(id)),
            "team" => Some(Scope::Team(id)),
            "agent" => Some(Scope::Agent(id)),
            "tool" => Some(Scope::Tool(id)),
            _ => None,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Global => f.write_str("global"),
            Scope::Org(id) => write!(f, "org:{id}"),
            Scope::Team(id) => write!(f, "team:{id}"),
            Scope::Agent(id) => write!(f, "agent:{id}"),
            Scope::Tool(id) => write!(f, "tool:{id}"),
        }
    }
}

impl Serialize for Scope {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Scope, D::Error> {
        let text = String::deserialize(deserializer)?;
        Scope::parse(&text).ok_or_else(|| {
            serde::de::Error::custom("expected global, org:, team:, agent: or tool: with an id")
        })
    }
}

/// `schedule.active_hours` as instants: a gate compares integers and knows no zones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActiveHours {
    /// For people: `09:00-18:00 Europe/Berlin`.
    pub hours: String,
    /// Every stretch in which calls may be made, from before the bundle's issue to after its expiry.
    pub open: Vec<Span>,
}

impl ActiveHours {
    /// Whether calls may be made at `now`. A time that no stretch reaches is closed.
    pub fn is_open(&self, now: Time) -> bool {
        let now = now.secs();
        self.open
            .iter()
            .any(|span| span.start <= now && now < span.end)
    }

    /// When they may be made next, as far as the bundle knows.
    pub fn opens_after(&self, now: Time) -> Option<Time> {
        let starts = self.open.iter().map(|span| span.start);
        starts
            .filter(|start| *start > now.secs())
            .min()
            .map(Time::from_secs)
    }
}

/// In what patterns are looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Searched {
    /// In what an agent sends and in what it gets.
    #[default]
    Both,
    /// In what it sends.
    Requests,
    /// In what it gets.
    Responses,
}

impl Searched {
    fn is_both(&self) -> bool {
        *self == Searched::Both
    }
}

/// Patterns whose matches are taken out of what is sent, and what says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redaction {
    /// The field that says so, such as `data.sensitive_patterns[0]`; becomes a reason's rule.
    pub rule: String,
    /// Regular expressions that the compiler has checked.
    pub patterns: Vec<String>,
}

/// A tool whose use somebody must approve where a condition holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// The tool's name as its author wrote it; case does not matter.
    pub tool: String,
    /// When.
    pub condition: Program,
}

/// What one call of an MCP tool costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolCost {
    /// The tool's name as its author wrote it; case does not matter.
    pub tool: String,
    /// In nano-USD.
    pub nano_usd: u64,
}

/// Stands for a tool's name, in limits and accounts, where its use is counted only in calls that `document` is about: one of a tool, which counts
/// another beside it. Without a name all tools that the document does not name are counted together: callers make up names of tools, and an account
/// for each would be memory without end. No tool that a policy names has a `*` in its name.
pub fn within(tool: &str, document: &str) -> String {
    format!("{tool}{WITHIN}{document}")
}

const WITHIN: char = '*';

/// The tool and the document that [`within`] was made of; `None` where `tool` is one tool's name.
pub(crate) fn within_in(tool: &str) -> Option<(&str, &str)> {
    tool.split_once(WITHIN)
}

/// `tools."*"`: what holds for the tools that `tools` does not name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtherTools {
    /// Those it names, as their author wrote them; case does not matter.
    pub named: Texts,
    /// Whether the others may not be used.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub denied: bool,
    /// When somebody must approve the use of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<Program>,
    /// What one call of one over MCP costs, in nano-USD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_nano_usd: Option<u64>,
}

impl OtherTools {
    /// Whether `tool` is one of them.
    pub fn includes(&self, tool: &str) -> bool {
        !self
            .named
            .iter()
            .any(|named| named.eq_ignore_ascii_case(tool))
    }
}

/// A host, or every host below one. Lower-case ASCII without a trailing dot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HostPattern(pub String);

impl HostPattern {
    /// Whether `host` (normalised: lower-case ASCII, no port, no trailing dot) is meant.
    /// `*.example.com` means one or more labels below `example.com` and not `example.com` itself.
    pub fn matches(&self, host: &str) -> bool {
        match self.0.strip_prefix("*.") {
            Some(apex) => host
                .strip_suffix(apex)
                .and_then(|labels| labels.strip_suffix('.'))
                .is_some_and(|labels| !labels.is_empty()),
            None => self.0 == host,
        }
    }
}

/// Allow and deny lists of names. `*` stands for any run of characters. Deny beats allow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Names {
    /// `None`: everything not denied. Compared exactly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<Texts>,
    /// Compared without regard to ASCII case: a provider that reads names that way must not be a way round.
    #[serde(default, skip_serializing_if = "Texts::is_empty")]
    pub deny: Texts,
}

impl Silent for Names {
    const SILENT: &'static Names = &Names {
        allow: None,
        deny: Texts::NONE,
    };
}

impl Names {
    /// Whether the lists say nothing.
    pub fn is_open(&self) -> bool {
        self.allow.is_none() && self.deny.is_empty()
    }

    /// Whether a deny entry names `name`.
    pub fn denies(&self, name: &str) -> bool {
        self.deny.iter().any(|pattern| glob(pattern, name, true))
    }

    /// Whether there is an allow list and nothing in it names `name`.
    pub fn omits(&self, name: &str) -> bool {
        self.allow
            .as_ref()
            .is_some_and(|allow| !allow.iter().any(|pattern| glob(pattern, name, false)))
    }
}

/// Matches `*` as any run of bytes. Time is at most pattern × name; both are short.
fn glob(pattern: &str, name: &str, ignore_case: bool) -> bool {
    let same = |a: u8, b: u8| a == b || (ignore_case && a.eq_ignore_ascii_case(&b));
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut at, mut seen) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while let Some(&byte) = name.get(seen) {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, seen));
                at += 1;
            }
            Some(&wanted) if same(wanted, byte) => {
                at += 1;
                seen += 1;
            }
            _ => match star {
                Some((star_at, star_seen)) => {
                    star = Some((star_at, star_seen + 1));
                    at = star_at + 1;
                    seen = star_seen + 1;
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(at).all(|byte| *byte == b'*')
}

/// Whose spending a limit counts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The whole workspace.
    Workspace,
    /// The caller's organisation.
    Org,
    /// The caller's team.
    Team,
    /// The caller.
    Agent,
}

impl Level {
    /// The name used in accounts and policies.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Workspace => "workspace",
            Level::Org => "org",
            Level::Team => "team",
            Level::Agent => "agent",
        }
    }
}

/// At most `amount` of `unit` per `window`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// The field that says so, such as `budget.daily_limit_usd`; becomes a reason's rule.
    pub rule: String,
    /// Whose spending is counted together.
    pub per: Level,
    /// What is counted.
    pub unit: Unit,
    /// Over what time.
    pub window: Window,
    /// Counts only calls that use this tool, in lower case, or tools as [`within`] names them. Those only per agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// Counts each model by itself, and no calls but those to models. Not beside `tool`, nor of a run.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub each_model: bool,
    /// The limit itself, in `unit`.
    pub amount: u64,
    /// Once a call does not fit beside what has been used, no call at all passes until the window ends or an operator lifts it. Only for tokens
    /// and money.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub suspend: bool,
    /// It only warns: no call is refused by it. Only for tokens and money.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub alert: bool,
    /// The parts of it, in percent, whose use is put on record; those of [`WARN_AT`] where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warn_at: Vec<u8>,
    /// What a lost gate holds of it, and does not count as used or under way, may be spent by others. For the control plane; gates are not concerned.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub release_lost: bool,
    /// What a model costs that the price table does not know; `None` denies it. Only for money.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown_model: Option<Price>,
    /// A call that it does not cover goes out with as many output tokens as it covers, if those are enough to be of use. Only for tokens and money.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub lowers: bool,
}

/// The parts of a limit, in percent, whose use is put on record unless it names others.
pub const WARN_AT: [u8; 2] = [80, 90];

impl Limit {
    /// The parts of it, in percent, whose use is put on record. Of one that only warns, the whole among them.
    pub fn warnings(&self) -> impl Iterator<Item = u8> {
        let parts = match self.warn_at.is_empty() {
            // There is nothing between a goal and half of it.
            _ if self.unit == Unit::Goals => &[],
            true => &WARN_AT[..],
            false => &self.warn_at,
        };
        let whole = (self.alert && !parts.contains(&100)).then_some(100);
        parts.iter().copied().chain(whole)
    }
}

/// The days, weeks and months of one time zone, as far as limits count in them. Instants, in seconds since the Unix epoch, ascending, from
/// before the bundle's issue to after its expiry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calendar {
    /// IANA name, canonical spelling.
    pub zone: String,
    /// Midnights.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<i64>,
    /// Midnights on which a Monday begins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weeks: Vec<i64>,
    /// Midnights on which a month begins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub months: Vec<i64>,
}

impl Payload {
    /// What a pattern was compiled to; the list is sorted in a [`Bundle`].
    pub fn compiled(&self, pattern: &str) -> Option<&Compiled> {
        let by_text = |compiled: &Compiled| compiled.pattern.as_str().cmp(pattern);
        let at = self.automata.binary_search_by(by_text).ok()?;
        self.automata.get(at)
    }
}

/// Why a bundle was not installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstallError {
    /// Larger than [`MAX_ENVELOPE_BYTES`].
    TooLarge,
    /// Not signed by a trusted key, or not an envelope.
    Envelope(OpenError),
    /// Signed, but not a bundle this engine reads.
    Malformed,
    /// Written in a format this engine does not know.
    Format,
    /// Of another workspace.
    ForeignWorkspace,
    /// Of another channel.
    ForeignChannel,
    /// An older revision than the one that runs.
    Rollback,
    /// Same revision as the one that runs, different content.
    Mixed,
    /// A revision too far ahead to be real.
    FastForward,
    /// Its time is over.
    Expired,
    /// Issued in the future: this clock or the signer's is wrong.
    FromTheFuture,
    /// A pattern in it is not compiled, or not to what this engine reads.
    Pattern,
}

impl InstallError {
    /// A short name for metrics.
    pub const fn name(self) -> &'static str {
        match self {
            InstallError::TooLarge => "too_large",
            InstallError::Envelope(OpenError::Malformed) => "not_an_envelope",
            InstallError::Envelope(OpenError::WrongType) => "wrong_type",
            InstallError::Envelope(OpenError::Unsigned) => "unsigned",
            InstallError::Envelope(OpenError::Untrusted) => "untrusted",
            InstallError::Malformed => "malformed",
            InstallError::Format => "format",
            InstallError::ForeignWorkspace => "foreign_workspace",
            InstallError::ForeignChannel => "foreign_channel",
            InstallError::Rollback => "rollback",
            InstallError::Mixed => "mixed",
            InstallError::FastForward => "fast_forward",
            InstallError::Expired => "expired",
            InstallError::FromTheFuture => "from_the_future",
            InstallError::Pattern => "pattern",
        }
    }
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InstallError::TooLarge => write!(f, "larger than {MAX_ENVELOPE_BYTES} bytes"),
            InstallError::Envelope(why) => why.fmt(f),
            InstallError::Malformed => f.write_str("signed, but not a bundle"),
            InstallError::Format => write!(f, "not in bundle format {FORMAT}"),
            InstallError::ForeignWorkspace => f.write_str("of another workspace"),
            InstallError::ForeignChannel => f.write_str("of another channel"),
            InstallError::Rollback => f.write_str("older than the bundle that runs"),
            InstallError::Mixed => {
                f.write_str("same revision as the bundle that runs, with other content")
            }
            InstallError::FastForward => {
                write!(f, "more than {MAX_REVISION_JUMP} revisions ahead")
            }
            InstallError::Expired => f.write_str("expired"),
            InstallError::FromTheFuture => {
                f.write_str("issued in the future; compare this clock with the control plane's")
            }
            InstallError::Pattern => {
                f.write_str("a pattern in it is not compiled to what this gate reads")
            }
        }
    }
}

/// A verified bundle, or the closed one.
#[derive(Clone, Debug)]
pub struct Bundle {
    payload: Option<Payload>,
    digest: Digest,
}

impl Bundle {
    /// The bundle before the first: it denies everything.
    pub fn closed() -> Bundle {
        Bundle {
            payload: None,
            digest: Digest([0; 32]),
        }
    }

    /// A bundle that was not signed because it never travelled: made by the compiler in the same process (`tollgate decide`, tests).
    pub fn local(payload: Payload) -> Bundle {
        Bundle::of(payload, Digest([0; 32]))
    }

    /// Puts in order what is searched later: a list that came unsorted must not hide a revocation.
    fn of(mut payload: Payload, digest: Digest) -> Bundle {
        sort_by(&mut payload.revoked_agents, Ord::cmp);
        sort_by(&mut payload.automata, |a, b| a.pattern.cmp(&b.pattern));
        for calendar in &mut payload.calendars {
            for edges in [
                &mut calendar.days,
                &mut calendar.weeks,
                &mut calendar.months,
            ] {
                sort_by(edges, Ord::cmp);
            }
        }
        Bundle {
            payload: Some(payload),
            digest,
        }
    }

    /// Verifies `envelope` and, when it may take the place of this bundle, returns it. Same bytes again are fine.
    pub fn successor(
        &self,
        envelope: &[u8],
        trust: &[PublicKey],
        workspace: &str,
        channel: &str,
        now: Time,
    ) -> Result<Bundle, InstallError> {
        if envelope.len() > MAX_ENVELOPE_BYTES {
            return Err(InstallError::TooLarge);
        }
        let payload = envelope::open(envelope, envelope::BUNDLE_TYPE, trust)
            .map_err(InstallError::Envelope)?;
        let digest = Digest::of(&payload);
        let payload: Payload =
            json::read(&payload).map_err(|_| match json::read_member(&payload, "format") {
                Ok(FORMAT) | Err(_) => InstallError::Malformed,
                Ok(_) => InstallError::Format,
            })?;
        if payload.format != FORMAT {
            return Err(InstallError::Format);
        }
        if payload.workspace != workspace {
            return Err(InstallError::ForeignWorkspace);
        }
        if payload.channel != channel {
            return Err(InstallError::ForeignChannel);
        }
        if let Some(running) = &self.payload {
            if payload.revision < running.revision {
                return Err(InstallError::Rollback);
            }
            if payload.revision == running.revision && digest != self.digest {
                return Err(InstallError::Mixed);
            }
            if payload.revision.saturating_sub(running.revision) > MAX_REVISION_JUMP {
                return Err(InstallError::FastForward);
            }
        }
        if now.secs() >= payload.expires_at {
            return Err(InstallError::Expired);
        }
        if payload.issued_at > now.secs().saturating_add(CLOCK_SKEW_SECS) {
            return Err(InstallError::FromTheFuture);
        }
        Ok(Bundle::of(payload, digest))
    }

    /// What to decide by at `now`; `Err` names why everything is denied.
    pub fn at(&self, now: Time) -> Result<&Payload, Unusable> {
        let payload = self.payload.as_ref().ok_or(Unusable::Missing)?;
        if now.secs() >= payload.expires_at {
            return Err(Unusable::Expired);
        }
        Ok(payload)
    }

    /// The payload, expired or not; `None` when closed.
    pub fn payload(&self) -> Option<&Payload> {
        self.payload.as_ref()
    }

    /// Its revision; 0 when closed.
    pub fn revision(&self) -> u64 {
        self.payload.as_ref().map_or(0, |payload| payload.revision)
    }

    /// The entity tag under which the control plane serves it (RFC 9110 §8.8.3); `None` when closed.
    pub fn etag(&self) -> Option<String> {
        self.payload
            .as_ref()
            .map(|payload| etag(payload.revision, self.digest))
    }
}

/// The entity tag of a bundle: revision and content, so that neither can change without the other.
pub fn etag(revision: u64, digest: Digest) -> String {
    format!("\"{revision}-{digest}\"")
}

/// Why a gate has nothing to decide by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// No bundle has arrived yet.
    Missing,
    /// The last one is over its time and no newer one arrived.
    Expired,
}
