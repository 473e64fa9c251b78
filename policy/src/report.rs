//! What is wrong with files, for programs: the shape that `tollgate check --format json` prints and a browser gets.

use crate::{Diagnostic, Parsed, Severity};
use serde::Serialize;

/// Every finding about every file.
#[derive(Clone, Debug, Serialize)]
pub struct Report<'r> {
    /// In the order given.
    pub files: Vec<FileReport<'r>>,
}

/// The findings about one file.
#[derive(Clone, Debug, Serialize)]
pub struct FileReport<'r> {
    /// As it was given.
    pub path: &'r str,
    /// What keeps it from being used.
    pub errors: Vec<Finding<'r>>,
    /// What its author should look at again.
    pub warnings: Vec<Finding<'r>>,
}

/// One finding.
#[derive(Clone, Debug, Serialize)]
pub struct Finding<'r> {
    /// Stable name of the kind of finding.
    pub code: &'r str,
    /// The field, such as `spec.tools.bash.limit_per_hour`; empty when the file as a whole is meant.
    pub path: &'r str,
    /// What is wrong and what to do.
    pub message: &'r str,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
}

impl<'r> Report<'r> {
    /// What was found in files that have been read.
    pub fn of(files: impl Iterator<Item = (&'r str, &'r Parsed)>) -> Report<'r> {
        let file = |(path, parsed): (&'r str, &'r Parsed)| {
            let of = |severity: Severity| {
                let found = parsed.diagnostics.iter();
                let found = found.filter(|diagnostic| diagnostic.severity == severity);
                found.map(Finding::of).collect()
            };
            FileReport {
                path,
                errors: of(Severity::Error),
                warnings: of(Severity::Warning),
            }
        };
        Report {
            files: files.map(file).collect(),
        }
    }
}

impl<'r> Finding<'r> {
    fn of(diagnostic: &'r Diagnostic) -> Finding<'r> {
        Finding {
            code: diagnostic.code,
            path: &diagnostic.path,
            message: &diagnostic.message,
            line: diagnostic.line,
            column: diagnostic.column,
        }
    }
}
