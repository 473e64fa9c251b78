//! Whose calls an operator has stopped: paused, or killed.
//!
//! A halt travels in the bundle, so that it reaches a gate as policy does: signed, never older than what was there, and kept while the control
//! plane is away. It comes before every document, and no document can lift it.

use crate::{
    bundle::{Payload, Scope},
    decide::{Cause, Reason, covers, covers_one, on_behalf},
    identity::Caller,
};
use alloc::{
    format,
    string::{String, ToString},
};
use serde::{Deserialize, Serialize};

/// Longest reason, in characters: it goes into every refusal.
pub const MAX_REASON_CHARS: usize = 300;

/// How far a halt reaches. The later beats the earlier where two meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// No new call. What is under way comes to its end.
    Paused,
    /// No new call, and event streams that are under way are ended.
    Killed,
}

impl Kind {
    /// The name used in the API and in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Paused => "paused",
            Kind::Killed => "killed",
        }
    }
}

/// What an operator has stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Halt {
    /// Whose calls. [`Scope::Global`] is the whole workspace; a tool's calls are not stopped this way, a document denies them.
    pub scope: Scope,
    /// Only their calls of the run of this name. Absent where all are meant, so that gates of before read such a bundle; one that names a run
    /// they refuse, and keep the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// How far.
    pub kind: Kind,
    /// Why, in the operator's words. The caller reads it.
    pub reason: String,
}

impl Halt {
    /// What `caller` is told.
    pub fn refusal(&self, caller: &Caller) -> Reason {
        let rule = match self.kind {
            Kind::Paused => "halt.paused",
            Kind::Killed => "halt.killed",
        };
        let (level, id) = whom(&self.scope);
        let whom = match (covers_one(&self.scope, caller), &self.run) {
            (true, None) => format!("this {level}"),
            (true, Some(_)) => "this run".to_string(),
            (false, None) => on_behalf(level, id),
            (false, Some(_)) => format!("this run of {}", on_behalf(level, id)),
        };
        let message = format!(
            "an operator has {} {whom}: {}",
            self.kind.name(),
            self.reason
        );
        Reason::of_gate(Cause::Halted, rule, message)
    }
}

/// The level of a scope and whom of it, in words.
fn whom(scope: &Scope) -> (&'static str, &str) {
    match scope {
        Scope::Global => ("workspace", ""),
        Scope::Org(id) => ("organisation", id),
        Scope::Team(id) => ("team", id),
        Scope::Agent(id) => ("agent", id),
        Scope::Tool(id) => ("tool", id),
    }
}

/// The halt that stops a call of this caller in this run, or one for whom it acts: a kill before a pause, the broadest of each. A call belongs to
/// the run of its name of everybody for whom it is made, as it counts in the budgets of each.
pub fn on<'p>(payload: &'p Payload, caller: &Caller, run: Option<&str>) -> Option<&'p Halt> {
    let mut found: Option<&Halt> = None;
    for halt in &payload.halts {
        let of_run = halt.run.is_none() || halt.run.as_deref() == run;
        if of_run && covers(&halt.scope, caller) && found.is_none_or(|found| found.kind < halt.kind)
        {
            found = Some(halt);
        }
    }
    found
}
