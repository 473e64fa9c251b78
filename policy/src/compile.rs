//! Documents into what a gate runs.

use crate::{
    document::{Budget, Capability, Document},
    host::Host,
    pattern::fit_together,
    zone,
};
use std::{
    collections::{BTreeSet, HashSet},
    error::Error,
    fmt,
};
use tollgate_engine::{
    bundle::{self, Calendar, HostPattern, Limit, Names, Scope},
    ledger::{Unit, Window},
};

/// Documents of one bundle. The largest tier of the reference has 100 per workspace; a gate walks all of them for every call.
pub const MAX_DOCUMENTS: usize = 1_024;
/// Days a calendar may span. Bundles live hours to days; a year and a month would already be a mistake.
pub const MAX_CALENDAR_DAYS: i64 = 400;

const DAY_SECS: i64 = 86_400;

/// The parts of a bundle that policies decide; the rest of [`bundle::Payload`] is the control plane's.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Broadest scope first, by name within a scope.
    pub documents: Vec<bundle::Document>,
    /// One per time zone that a limit counts in, by name.
    pub calendars: Vec<Calendar>,
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
    let mut compiled: Vec<bundle::Document> = documents.iter().map(document).collect();
    compiled.sort_by(|a, b| (breadth(&a.scope), &a.name).cmp(&(breadth(&b.scope), &b.name)));
    // A gate that cannot compile the patterns would refuse the bundle; the author should hear it first.
    if !fit_together(compiled.iter().map(|document| document.patterns.as_slice())) {
        return Err(CompileError::Patterns);
    }

    let zones: BTreeSet<&str> = compiled
        .iter()
        .flat_map(|document| &document.limits)
        .filter_map(|limit| match &limit.window {
            Window::Day(zone) => Some(zone.as_str()),
            Window::Minute => None,
        })
        .collect();
    let calendars = zones
        .into_iter()
        .map(|zone| {
            calendar(zone, issued_at, expires_at)
                .ok_or_else(|| CompileError::Calendar(zone.to_string()))
        })
        .collect::<Result<_, _>>()?;
    Ok(Compiled {
        documents: compiled,
        calendars,
    })
}

/// A day more on both sides: a gate's clock may differ, and it must find the day that now is in.
fn calendar(zone: &str, issued_at: i64, expires_at: i64) -> Option<Calendar> {
    let from = issued_at.checked_sub(DAY_SECS)?;
    let until = expires_at.checked_add(DAY_SECS)?;
    if until.checked_sub(from)? > MAX_CALENDAR_DAYS.checked_mul(DAY_SECS)? {
        return None;
    }
    Some(Calendar {
        zone: zone.to_string(),
        days: zone::midnights(zone, from, until)?,
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

fn document(document: &Document) -> bundle::Document {
    let capabilities = &document.capabilities;
    bundle::Document {
        name: document.name.clone(),
        scope: document.scope.clone(),
        hosts: document.network.as_deref().and_then(hosts),
        no_network: capabilities.deny.contains(&Capability::NetworkOutbound),
        models: names(document, |capability| match capability {
            Capability::Model(name) => Some(name),
            _ => None,
        }),
        mcp_tools: names(document, |capability| match capability {
            Capability::McpTool(name) => Some(name),
            _ => None,
        }),
        denied_tools: document.denied_tools.clone(),
        patterns: document
            .sensitive_patterns
            .iter()
            .map(|pattern| pattern.normal.clone())
            .collect(),
        limits: limits(document),
    }
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

/// The names of one kind. An allow list closes a kind only where it names one of it.
fn names(document: &Document, of_kind: fn(&Capability) -> Option<&String>) -> Names {
    let listed =
        |list: &[Capability]| -> Vec<String> { list.iter().filter_map(of_kind).cloned().collect() };
    let allow = listed(&document.capabilities.allow);
    Names {
        allow: (!allow.is_empty()).then_some(allow),
        deny: listed(&document.capabilities.deny),
    }
}

fn limits(document: &Document) -> Vec<Limit> {
    let mut limits = Vec::new();
    if let Some(rate) = document.rate {
        limits.push(Limit {
            rule: "rate.requests_per_minute".to_string(),
            per: rate.per,
            unit: Unit::Calls,
            window: Window::Minute,
            amount: rate.requests_per_minute,
            unknown_model: None,
        });
    }
    if let Some(budget) = &document.budget {
        let daily = |rule: &str, unit: Unit, amount: u64, budget: &Budget| Limit {
            rule: rule.to_string(),
            per: budget.per,
            unit,
            window: Window::Day(budget.timezone.clone()),
            amount,
            unknown_model: budget.unknown_model.filter(|_| unit == Unit::NanoUsd),
        };
        if let Some(amount) = budget.daily_limit_tokens {
            limits.push(daily(
                "budget.daily_limit_tokens",
                Unit::Tokens,
                amount,
                budget,
            ));
        }
        if let Some(amount) = budget.daily_limit_nano_usd {
            limits.push(daily(
                "budget.daily_limit_usd",
                Unit::NanoUsd,
                amount,
                budget,
            ));
        }
    }
    limits
}
