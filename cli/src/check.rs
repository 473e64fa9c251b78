//! `tollgate check`: everything that is wrong with policy files, before they go anywhere.

mod formats;

use crate::{folder, offline};
use std::{
    fmt::Write as _,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};
use tollgate_policy::{Diagnostic, Parsed, Report, Severity};

/// Characters of a source line that are shown; a JSON policy may be one long line.
const SHOWN_CHARS: usize = 100;

/// Check policy files. Exit code 0: usable, perhaps with warnings; 1: errors; 2: a file cannot be read.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Policy files, YAML or JSON, or folders, searched with what is below them; all are checked as one set.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Take unknown keys for errors.
    #[arg(long)]
    strict: bool,
    /// For people, for programs, as annotations of a GitHub workflow, or for code scanning.
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Human,
    Json,
    Github,
    Sarif,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let paths = folder::policies(&args.files)?;
    let sources = paths
        .iter()
        .map(|path| offline::read_policy(path))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut files: Vec<Parsed> = paths
        .iter()
        .zip(&sources)
        .map(|(path, bytes)| tollgate_policy::parse(&path.to_string_lossy(), bytes, args.strict))
        .collect();
    tollgate_policy::check_together(&mut files);

    let report = match args.format {
        Format::Human => human(&paths, &sources, &files),
        Format::Json => json(&paths, &files)?,
        Format::Github => formats::github(&paths, &files),
        Format::Sarif => {
            let log = formats::sarif(&paths, &files);
            serde_json::to_string_pretty(&log)? + "\n"
        }
    };
    io::stdout().write_all(report.as_bytes())?;
    Ok(match files.iter().any(Parsed::has_errors) {
        true => ExitCode::from(1),
        false => ExitCode::SUCCESS,
    })
}

fn json(paths: &[PathBuf], files: &[Parsed]) -> anyhow::Result<String> {
    let names: Vec<_> = paths.iter().map(|path| path.to_string_lossy()).collect();
    let named = names.iter().map(AsRef::as_ref).zip(files);
    let mut text = serde_json::to_string_pretty(&Report::of(named))?;
    text.push('\n');
    Ok(text)
}

fn human(paths: &[PathBuf], sources: &[Vec<u8>], files: &[Parsed]) -> String {
    let mut out = String::new();
    let (mut errors, mut warnings, mut policies) = (0, 0, 0);
    for ((path, source), file) in paths.iter().zip(sources).zip(files) {
        let source = String::from_utf8_lossy(source);
        policies += file.documents.len();
        for diagnostic in &file.diagnostics {
            match diagnostic.severity {
                Severity::Error => errors += 1,
                Severity::Warning => warnings += 1,
            }
            out.push_str(&rendered(path, &source, diagnostic));
        }
    }
    // Writing to a string cannot fail.
    let _ = match (errors, warnings) {
        (0, 0) => writeln!(out, "ok: {}", counted(policies, "policy", "policies")),
        _ => writeln!(
            out,
            "{}, {}",
            counted(errors, "error", "errors"),
            counted(warnings, "warning", "warnings")
        ),
    };
    out
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// One finding with the line it is about and a caret below the place.
fn rendered(path: &Path, source: &str, diagnostic: &Diagnostic) -> String {
    let severity = severity(diagnostic.severity);
    let colon = if diagnostic.path.is_empty() { "" } else { ": " };
    let mut out = format!(
        "{severity}[{}]: {}{colon}{}\n",
        diagnostic.code, diagnostic.path, diagnostic.message
    );
    let number = diagnostic.line.to_string();
    let margin = " ".repeat(number.len());
    let (line, column) = (diagnostic.line, diagnostic.column);
    out.push_str(&format!("{margin}--> {}:{line}:{column}\n", path.display()));
    // Lines are counted as YAML ends them.
    let source = tollgate_policy::unix_lines(source);
    let text = diagnostic
        .line
        .checked_sub(1)
        .and_then(|index| source.lines().nth(index));
    if let Some(text) = text {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let before = diagnostic.column.saturating_sub(1);
        // The place stays in view, with some of what is in front of it.
        let skipped = before.saturating_sub(SHOWN_CHARS / 2);
        let shown: String = text
            .chars()
            .skip(skipped)
            .take(SHOWN_CHARS)
            .map(|c| match c {
                '\t' => ' ',
                c if c.is_control() => '\u{fffd}',
                c => c,
            })
            .collect();
        let caret = " ".repeat(before.saturating_sub(skipped));
        out.push_str(&format!(
            "{margin} |\n{number} | {}\n{margin} | {caret}^\n",
            shown.trim_end()
        ));
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_shown_below_its_line() {
        let source = "network: {}\nnetwrok: {}\n";
        let parsed = tollgate_policy::parse("p.yaml", source.as_bytes(), false);
        let text = human(
            &[PathBuf::from("p.yaml")],
            &[source.as_bytes().to_vec()],
            &[parsed],
        );
        assert_eq!(
            text,
            "warning[P101]: netwrok: unknown key `netwrok`, which is ignored; did you mean `network`?\n \
             --> p.yaml:2:1\n  \
             |\n\
             2 | netwrok: {}\n  \
             | ^\n\
             \n\
             0 errors, 1 warning\n"
        );
    }

    #[test]
    fn the_line_that_is_shown_is_that_of_the_finding_however_lines_end() {
        for source in [
            "network: {}\r\nnetwrok: {}\r\n",
            "network: {}\rnetwrok: {}\r",
        ] {
            let parsed = tollgate_policy::parse("p.yaml", source.as_bytes(), false);
            let text = rendered(Path::new("p.yaml"), source, &parsed.diagnostics[0]);
            assert!(text.contains(" --> p.yaml:2:1\n"), "{text}");
            assert!(text.contains("\n2 | netwrok: {}\n"), "{text}");
        }
    }

    #[test]
    fn json_has_the_promised_shape() {
        let source = b"scope: nobody\nextra: 1\n";
        let parsed = tollgate_policy::parse("p.yaml", source, false);
        let text = json(&[PathBuf::from("p.yaml")], &[parsed]).expect("serialises");
        let value: serde_json::Value = serde_json::from_str(&text).expect("is JSON");
        let file = &value["files"][0];
        assert_eq!(file["path"], "p.yaml");
        assert_eq!(file["errors"][0]["code"], "P201");
        assert_eq!(file["errors"][0]["path"], "scope");
        assert_eq!(file["errors"][0]["line"], 1);
        assert_eq!(file["errors"][0]["column"], 8);
        assert_eq!(file["warnings"][0]["code"], "P101");
        assert_eq!(file["warnings"][0]["line"], 2);
    }

    #[test]
    fn a_long_line_is_cut_around_the_place() {
        let source = format!("{{\"{}\": 1, \"scope\": \"nobody\"}}", "x".repeat(300));
        let parsed = tollgate_policy::parse("p.json", source.as_bytes(), false);
        let error = parsed.diagnostics.iter().find(|d| d.is_error());
        let text = rendered(Path::new("p.json"), &source, error.expect("a bad scope"));
        assert!(
            text.lines().all(|line| line.chars().count() < 200),
            "{text}"
        );
        // The value stands 50 characters into what is shown: half of SHOWN_CHARS, behind the margin `1 | `.
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[3].chars().skip(4 + 50).take(8).collect::<String>(),
            "\"nobody\""
        );
        assert_eq!(lines[4].find('^'), Some(4 + 50));
    }
}
