//! Author-time core of Tollgate: reads policy documents, says everything that is wrong with them, and compiles them into what a gate runs.
//!
//! ```
//! let text = b"scope: team:platform\nnetwork:\n  allowlist: [api.openai.com]\n";
//! let parsed = tollgate_policy::parse("platform.yaml", text, false);
//! assert!(parsed.diagnostics.is_empty());
//! let compiled = tollgate_policy::compile(&parsed.documents, 1_795_132_800, 1_795_219_200)?;
//! assert_eq!(compiled.documents[0].name, "platform");
//! # Ok::<(), tollgate_policy::CompileError>(())
//! ```
//!
//! It never reaches a gate: YAML, time zones and pattern checks stay here, and the engine gets integers, names and patterns in normal form.
//! It reads no files and no clock; both are arguments.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

mod agent;
mod compile;
pub mod condition;
mod decode;
mod diagnostic;
mod diff;
mod document;
mod host;
pub mod money;
mod pattern;
mod pii;
pub mod prices;
mod report;
mod schema;
mod yaml;
pub mod zone;

pub use compile::{CompileError, Compiled, MAX_CALENDAR_DAYS, MAX_DOCUMENTS, compile};
pub use decode::{MAX_DIAGNOSTICS, MAX_NAME_BYTES};
pub use diagnostic::{Diagnostic, Position, Severity, codes};
pub use diff::{Change, Effect, diff, diff_of_some};
pub use document::{
    AGENT_ASSEMBLY_V1, ActiveHours, Approvals, Audit, Budget, BudgetLimit, Capabilities,
    Capability, Condition, Document, Exceeded, Execution, OTHERS, Period, Rate, Replaces, Rollout,
    Run, RunLimit, TOLLGATE_V1, Tool,
};
pub use host::{Denied, Host};
pub use pattern::{
    MAX_AUTOMATON_BYTES, MAX_FILE_PATTERNS, MAX_PATTERN_CHARS, MAX_PATTERNS, MAX_REPETITION,
    Pattern, PatternError,
};
pub use report::{FileReport, Finding, Report};
pub use schema::json_schema;
pub use yaml::{MAX_DEPTH, MAX_FILE_BYTES, MAX_NODES, MAX_SCALAR_BYTES, unix_lines};

/// The policy that a new workspace starts with, named [`GUARDRAILS_NAME`].
pub const GUARDRAILS: &str = include_str!("guardrails.yaml");
/// Its name.
pub const GUARDRAILS_NAME: &str = "default-guardrails";

use decode::Findings;
use std::{collections::HashSet, path::Path};
use tollgate_engine::scan;

/// What a file held.
#[derive(Clone, Debug, Default)]
pub struct Parsed {
    /// Its documents, in order; none when any finding is an error, so that nobody uses half a file.
    pub documents: Vec<Document>,
    /// Errors and warnings, in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
}

impl Parsed {
    /// Whether the file is refused.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }

    fn error(&mut self, at: Position, path: &str, code: &'static str, message: String) {
        self.documents.clear();
        self.diagnostics.push(Diagnostic {
            severity: Severity::Error,
            code,
            path: path.to_string(),
            message,
            line: at.line,
            column: at.column,
            suggestion: None,
        });
    }
}

/// Reads a YAML or JSON file of one or more documents. `strict` makes unknown keys errors.
///
/// A flat document is named as the file (`platform.yaml` gives `platform`), the second and later ones of a file with `#2`, `#3` behind.
pub fn parse(file_name: &str, bytes: &[u8], strict: bool) -> Parsed {
    let mut syntax = Vec::new();
    let nodes = yaml::read(bytes, &mut syntax);
    let mut findings = Findings::new(syntax, strict);
    if nodes.is_empty() && findings.errors() == 0 {
        let at = Position { line: 1, column: 1 };
        findings.error(
            at,
            "",
            codes::NO_DOCUMENT,
            "there is no policy in this file",
        );
    }
    let stem = Path::new(file_name)
        .file_stem()
        .map_or(file_name.into(), |stem| stem.to_string_lossy());
    let mut documents = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        let flat_name = match index {
            0 => stem.to_string(),
            _ => format!("{stem}#{}", index.saturating_add(1)),
        };
        documents.extend(document::read(node, &flat_name, &mut findings));
    }
    let (diagnostics, refused) = findings.finish();
    if refused {
        documents.clear();
    }
    let mut parsed = Parsed {
        documents,
        diagnostics,
    };
    check_together(std::slice::from_mut(&mut parsed));
    parsed
}

/// Finds what is wrong only with files taken together: names used twice, too many documents, patterns too large in all.
/// Adds an error to the later file, or to the last one.
pub fn check_together(files: &mut [Parsed]) {
    let mut names: HashSet<String> = HashSet::new();
    let mut count = 0;
    let mut patterns: Vec<(Rollout, Vec<String>)> = Vec::new();
    for file in files.iter_mut() {
        let mut twice = None;
        for document in &file.documents {
            count += 1;
            let (blocking, redacted) = document.data.searched();
            let redacted = redacted
                .into_iter()
                .flat_map(|redaction| redaction.patterns);
            let all = blocking.into_iter().chain(redacted).collect();
            patterns.push((document.rollout, all));
            if !names.insert(document.name.clone()) && twice.is_none() {
                twice = Some((document.at, document.flat, document.name.clone()));
            }
        }
        if let Some((at, flat, name)) = twice {
            let (path, advice) = match flat {
                true => ("", "a flat policy is named as its file, so rename a file"),
                false => ("metadata.name", "rename one"),
            };
            let message = format!("another policy is named `{name}` already; {advice}");
            file.error(at, path, codes::DUPLICATE_NAME, message);
        }
        if count > MAX_DOCUMENTS {
            let message = format!("more than {MAX_DOCUMENTS} policies; join some");
            let at = Position { line: 1, column: 1 };
            file.error(at, "", codes::TOO_MANY_DOCUMENTS, message);
            return;
        }
    }
    let fit = |rollout: Rollout| {
        let of_it = patterns.iter().filter(|(of, _)| *of == rollout);
        let texts = of_it.flat_map(|(_, patterns)| patterns).map(String::as_str);
        let compile = |text: &&str| pattern::compile(text, false);
        let compiled: Option<Vec<_>> = scan::distinct(texts).iter().map(compile).collect();
        compiled.is_some_and(|compiled| pattern::fit_together(compiled.iter()))
    };
    if !(fit(Rollout::Enforce) && fit(Rollout::Shadow))
        && let Some(last) = files.iter_mut().rfind(|file| !file.documents.is_empty())
    {
        let at = Position { line: 1, column: 1 };
        let message = CompileError::Patterns.to_string();
        last.error(at, "", codes::PATTERN_TOO_LARGE, message);
    }
}
