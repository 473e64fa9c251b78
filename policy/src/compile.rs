//! Documents into what a gate runs.

use crate::{
    document::{ActiveHours, Capability, Document, Exceeded, OTHERS, Period, Rollout, Tool},
    host::{Denied, Host},
    pattern, prices, zone,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    error::Error,
    fmt,
};
use tollgate_engine::{
    automaton::Compiled as Pattern,
    bundle::{self, Calendar, HostPattern, Level, Limit, Names, Scope, Texts},
    ledger::{Span, Unit, Window},
    price::PriceTable,
    scan,
};

/// Documents of one bundle: one for each of 10,000 agents and room to spare. A gate finds those that a call meets by their scopes, so what
/// grows with them is the bundle and the time to load it.
pub const MAX_DOCUMENTS: usize = 16_384;
/// Days a calendar may span. Bundles live hours to days; a year and a month would already be a mistake.
pub const MAX_CALENDAR_DAYS: i64 = 400;

const DAY_SECS: i64 = 86_400;

/// The parts of a bundle that policies decide; the rest of [`bundle::Payload`] is the control plane's.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Broadest scope first, by name within a scope.
    pub documents: bundle::Documents,
    /// Those in shadow, in the same order.
    pub shadow: bundle::Documents,
    /// The patterns of both, by their text.
    pub automata: Vec<Pattern>,
    /// One per time zone that a limit counts in, by name.
    pub calendars: Vec<Calendar>,
    /// What models cost: the built-in table, and over it what the documents say.
    pub prices: PriceTable,
}

/// Why documents that are each fine do not make a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompileError {
    /// Two documents of this name: a reason could not say which one it means.
    DuplicateName(String),
    /// More than [`MAX_DOCUMENTS`].
    TooManyDocuments(usize),
    /// The patterns of all documents together are more than a gate compiles.
    Patterns,
    /// No calendar for this time zone over the time asked for: at most [`MAX_CALENDAR_DAYS`].
    Calendar(String),
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CompileError::DuplicateName(name) => {
                write!(f, "two documents are named `{name}`; rename one")
            }
            CompileError::TooManyDocuments(count) => write!(
                f,
                "{count} documents are more than the {MAX_DOCUMENTS} of one bundle; join some"
            ),
            CompileError::Patterns => f.write_str(
                "the sensitive patterns of all documents together are more than a gate compiles; remove some or lower their repetition counts",
            ),
            CompileError::Calendar(zone) => write!(
                f,
                "no days of `{zone}` for the life of this bundle, which may be {MAX_CALENDAR_DAYS} days at most"
            ),
        }
    }
}

impl Error for CompileError {}

/// Compiles documents for a bundle that lives from `issued_at` to `expires_at`, in seconds since the Unix epoch.
///
/// The result depends on nothing else, the order of `documents` included.
pub fn compile(
    documents: &[Document],
    issued_at: i64,
    expires_at: i64,
) -> Result<Compiled, CompileError> {
    if documents.len() > MAX_DOCUMENTS {
        return Err(CompileError::TooManyDocuments(documents.len()));
    }
    let mut names = HashSet::new();
    if let Some(twice) = documents.iter().find(|d| !names.insert(d.name.as_str())) {
        return Err(CompileError::DuplicateName(twice.name.clone()));
    }
    let life = Life::around(issued_at, expires_at);
    let compiled = |rollout: Rollout| -> Result<Vec<bundle::Document>, CompileError> {
        let mut compiled: Vec<bundle::Document> = documents
            .iter()
            .filter(|given| given.rollout == rollout)
            .map(|given| document(given, life))
            .collect::<Result<_, _>>()?;
        compiled.sort_by(|a, b| (breadth(&a.scope), &a.name).cmp(&(breadth(&b.scope), &b.name)));
        Ok(compiled)
    };
    let (enforced, shadow) = (compiled(Rollout::Enforce)?, compiled(Rollout::Shadow)?);
    let calendars = calendars(enforced.iter().chain(&shadow), life)?;
    let automata = automata(&enforced, &shadow).ok_or(CompileError::Patterns)?;
    Ok(Compiled {
        automata,
        documents: enforced.into(),
        shadow: shadow.into(),
        calendars,
        prices: prices::with(documents),
    })
}

/// The patterns of all documents, compiled. `None` where a gate would not take them: the author should hear it first.
fn automata(enforced: &[bundle::Document], shadow: &[bundle::Document]) -> Option<Vec<Pattern>> {
    // Only what is enforced is taken out of anything.
    let redactions = enforced
        .iter()
        .flat_map(|document| &document.data.redactions);
    let redacted: HashSet<&String> = redactions
        .flat_map(|redaction| &redaction.patterns)
        .collect();
    let mut automata: BTreeMap<&str, Pattern> = BTreeMap::new();
    for documents in [enforced, shadow] {
        let texts = scan::distinct(documents.iter().flat_map(bundle::Document::searched));
        for text in &texts {
            if !automata.contains_key(text) {
                let backward = redacted.contains(&text.to_string());
                automata.insert(text, pattern::compile(text, backward)?);
            }
        }
        let of_these = texts.iter().filter_map(|text| automata.get(text));
        if !pattern::fit_together(of_these) {
            return None;
        }
    }
    Some(automata.into_values().collect())
}

/// The time a bundle may be asked about: its life and a day more on both sides, for a gate's clock may differ.
/// `None` where that is no time a calendar has, or more than [`MAX_CALENDAR_DAYS`].
#[derive(Clone, Copy)]
struct Life(Option<(i64, i64)>);

impl Life {
    fn around(issued_at: i64, expires_at: i64) -> Life {
        let life = || {
            let from = issued_at.checked_sub(DAY_SECS)?;
            let until = expires_at.checked_add(DAY_SECS)?;
            let most = MAX_CALENDAR_DAYS.checked_mul(DAY_SECS)?;
            (until.checked_sub(from)? <= most).then_some((from, until))
        };
        Life(life())
    }

    /// What `read` makes of a zone over this time, `days` longer on both sides.
    fn in_zone<T>(
        self,
        zone: &str,
        days: i64,
        read: impl FnOnce(&str, i64, i64) -> Option<T>,
    ) -> Result<T, CompileError> {
        self.0
            .and_then(|(from, until)| {
                let more = days.checked_mul(DAY_SECS)?;
                read(zone, from.checked_sub(more)?, until.checked_add(more)?)
            })
            .ok_or_else(|| CompileError::Calendar(zone.to_string()))
    }
}

/// The edges of every window that a limit counts in. Those of weeks and months reach one further, because a call that began in the window
/// before is still settled in it.
fn calendars<'d>(
    documents: impl Iterator<Item = &'d bundle::Document>,
    life: Life,
) -> Result<Vec<Calendar>, CompileError> {
    let windows: BTreeSet<&Window> = documents
        .flat_map(|document| &document.limits)
        .map(|limit| &limit.window)
        .collect();
    let mut calendars: BTreeMap<&str, Calendar> = BTreeMap::new();
    for window in windows {
        let zone = match window {
            Window::Minute | Window::Hour | Window::Run => continue,
            Window::Day(zone) | Window::Week(zone) | Window::Month(zone) => zone.as_str(),
        };
        let calendar = calendars.entry(zone).or_insert_with(|| Calendar {
            zone: zone.to_string(),
            days: Vec::new(),
            weeks: Vec::new(),
            months: Vec::new(),
        });
        match window {
            Window::Minute | Window::Hour | Window::Run => {}
            Window::Day(_) => calendar.days = life.in_zone(zone, 0, zone::midnights)?,
            Window::Week(_) => calendar.weeks = life.in_zone(zone, 7, zone::mondays)?,
            Window::Month(_) => calendar.months = life.in_zone(zone, 31, zone::months)?,
        }
    }
    Ok(calendars.into_values().collect())
}

fn active(hours: &ActiveHours, life: Life) -> Result<bundle::ActiveHours, CompileError> {
    let open = life.in_zone(&hours.timezone, 0, |zone, from, until| {
        zone::open_hours(zone, hours.start, hours.end, from, until)
    })?;
    Ok(bundle::ActiveHours {
        hours: hours.to_string(),
        open: open
            .into_iter()
            .map(|(start, end)| Span { start, end })
            .collect(),
    })
}

fn breadth(scope: &Scope) -> u8 {
    match scope {
        Scope::Global => 0,
        Scope::Org(_) => 1,
        Scope::Team(_) => 2,
        Scope::Agent(_) => 3,
        Scope::Tool(_) => 4,
    }
}

fn document(document: &Document, life: Life) -> Result<bundle::Document, CompileError> {
    let capabilities = &document.capabilities;
    let (patterns, redactions) = document.data.searched();
    Ok(bundle::Document {
        name: document.name.clone(),
        scope: document.scope.clone(),
        active: document
            .active_hours
            .as_ref()
            .map(|hours| active(hours, life).map(Box::new))
            .transpose()?,
        network: bundle::Network {
            hosts: document.network.as_deref().and_then(hosts),
            denied_hosts: denied(document, |denied| denied.hosts()),
            denied_addresses: denied(document, |denied| denied.addresses()),
            denied: capabilities.deny.contains(&Capability::NetworkOutbound),
        }
        .into(),
        models: names(document, |capability| match capability {
            Capability::Model(name) => Some(name),
            _ => None,
        }),
        mcp_tools: names(document, |capability| match capability {
            Capability::McpTool(name) => Some(name),
            _ => None,
        })
        .into(),
        tools: tools(document).into(),
        data: bundle::Data {
            patterns,
            redactions,
            searched_in: document.data.applies_to,
            unsearched_tools: document.data.exempt_tools.iter().collect(),
            tool_output_is_data: document.data.tool_output_is_data,
            recorded: document.audit.include_message_content,
        }
        .into(),
        limits: limits(document),
    })
}

fn tools(document: &Document) -> bundle::Tools {
    bundle::Tools {
        denied: named_tools(document)
            .filter(|tool| !tool.allow)
            .map(|tool| &tool.name)
            .collect(),
        others: other_tools(document),
        approvals: named_tools(document)
            .filter_map(|tool| {
                Some(bundle::Approval {
                    tool: tool.name.clone(),
                    condition: tool.requires_approval_if.as_ref()?.program.clone(),
                })
            })
            .collect(),
        costs: named_tools(document)
            .filter_map(|tool| {
                Some(bundle::ToolCost {
                    tool: tool.name.clone(),
                    nano_usd: tool.cost_nano_usd?,
                })
            })
            .collect(),
    }
}

fn named_tools(document: &Document) -> impl Iterator<Item = &Tool> {
    document.tools.iter().filter(|tool| tool.name != OTHERS)
}

/// `None` where nothing is said of the others that matters.
fn other_tools(document: &Document) -> Option<bundle::OtherTools> {
    let others = document.tools.iter().find(|tool| tool.name == OTHERS)?;
    let approval = others.requires_approval_if.as_ref();
    let counts = others.cost_nano_usd.is_some() || others.limit_per_hour.is_some();
    let says = !others.allow || approval.is_some() || counts;
    says.then(|| bundle::OtherTools {
        named: named_tools(document).map(|tool| &tool.name).collect(),
        denied: !others.allow,
        approval: approval.map(|condition| condition.program.clone()),
        cost_nano_usd: others.cost_nano_usd,
    })
}

/// `None` where a `*` makes the list no restriction.
fn hosts(allowlist: &[Host]) -> Option<Vec<HostPattern>> {
    allowlist
        .iter()
        .map(|host| match host {
            Host::Any => None,
            Host::Exact(_) | Host::Below(_) => Some(HostPattern(host.to_string())),
        })
        .collect()
}

/// What the denylist says of one kind, each once.
fn denied<T: PartialEq>(document: &Document, of_kind: fn(&Denied) -> Vec<T>) -> Vec<T> {
    let mut all = Vec::new();
    for one in document.denied_hosts.iter().flat_map(of_kind) {
        if !all.contains(&one) {
            all.push(one);
        }
    }
    all
}

/// The names of one kind. An allow list closes a kind only where it names one of it.
fn names(document: &Document, of_kind: fn(&Capability) -> Option<&String>) -> Names {
    let listed = |list: &[Capability]| -> Texts { list.iter().filter_map(of_kind).collect() };
    let allow = listed(&document.capabilities.allow);
    Names {
        allow: (!allow.is_empty()).then_some(allow),
        deny: listed(&document.capabilities.deny),
    }
}

fn limits(document: &Document) -> Vec<Limit> {
    let mut limits = Vec::new();
    // A document of one tool counts the calls that use it. A tool is the same in any case, and so must its account be.
    let counted = match &document.scope {
        Scope::Tool(tool) => Some(tool.to_ascii_lowercase()),
        Scope::Global | Scope::Org(_) | Scope::Team(_) | Scope::Agent(_) => None,
    };
    if let Some(rate) = document.rate {
        limits.push(Limit {
            per: rate.per,
            each_model: rate.each_model,
            tool: counted.clone(),
            ..plain(
                "rate.requests_per_minute".to_string(),
                Unit::Calls,
                Window::Minute,
                rate.requests_per_minute,
            )
        });
    }
    for tool in &document.tools {
        if let Some(amount) = tool.limit_per_hour {
            limits.push(Limit {
                tool: Some(match (&*tool.name, &counted) {
                    (OTHERS, _) => bundle::within("", &document.name),
                    (name, Some(counted)) if !name.eq_ignore_ascii_case(counted) => {
                        bundle::within(&name.to_ascii_lowercase(), &document.name)
                    }
                    (name, _) => name.to_ascii_lowercase(),
                }),
                ..plain(
                    format!("tools.{}.limit_per_hour", tool.name),
                    Unit::Calls,
                    Window::Hour,
                    amount,
                )
            });
        }
    }
    if let Some(budget) = &document.budget {
        let zone = &budget.timezone;
        limits.extend(budget.limits.iter().map(|limit| Limit {
            rule: format!("budget.{}", limit.field),
            per: budget.per,
            each_model: budget.each_model,
            unit: limit.unit,
            window: match limit.period {
                Period::Hour => Window::Hour,
                Period::Day => Window::Day(zone.clone()),
                Period::Week => Window::Week(zone.clone()),
                Period::Month => Window::Month(zone.clone()),
            },
            tool: counted.clone(),
            amount: limit.amount,
            suspend: budget.action == Exceeded::Suspend,
            alert: budget.action == Exceeded::Alert,
            warn_at: budget.warn_at.clone(),
            release_lost: budget.releases,
            unknown_model: budget.unknown_model.filter(|_| limit.unit == Unit::NanoUsd),
            lowers: budget.lowers && budget.action != Exceeded::Alert,
        }));
    }
    limits.extend(document.run.limits.iter().map(|limit| {
        let spent = matches!(limit.unit, Unit::Tokens | Unit::NanoUsd);
        let budget = document.budget.as_ref();
        let unknown_model = budget.and_then(|budget| budget.unknown_model);
        Limit {
            lowers: spent && budget.is_some_and(|budget| budget.lowers),
            suspend: document.run.stops && spent,
            unknown_model: unknown_model.filter(|_| limit.unit == Unit::NanoUsd),
            ..plain(limit.rule.clone(), limit.unit, Window::Run, limit.amount)
        }
    }));
    limits
}

/// A limit of each agent that refuses calls, and no more than that.
fn plain(rule: String, unit: Unit, window: Window, amount: u64) -> Limit {
    Limit {
        rule,
        per: Level::Agent,
        unit,
        window,
        tool: None,
        each_model: false,
        amount,
        suspend: false,
        alert: false,
        warn_at: Vec::new(),
        release_lost: false,
        unknown_model: None,
        lowers: false,
    }
}
