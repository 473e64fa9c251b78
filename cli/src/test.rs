//! `tollgate test`: cases beside policies, decided by the engine as a gate would.
//!
//! ```yaml
//! # platform.test.yaml
//! policies: [platform.yaml]            # beside this file; every policy file of the folder when absent
//! at: 2026-11-20T10:00:00Z             # when, for all cases
//! agent: {team: platform, level: L1}   # who, for all cases
//! cases:
//! - name: gpt-4o is denied
//!   call: {url: https://api.openai.com/v1/chat/completions, body: {model: gpt-4o, messages: []}}
//!   expect: {outcome: deny, reasons: [capabilities.deny @ platform-llm]}
//! ```

use crate::offline::{self, Request, Who};
use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};
use tollgate_engine::decide::Verdict;
use tollgate_policy::Document;

/// When a case happens that does not say: a Monday noon, so that the answer is the same on every day.
const DEFAULT_AT: &str = "2026-01-05T12:00:00Z";

/// Folders inside each other that are searched.
const MAX_DEPTH: usize = 16;

/// Run the test cases beside policies (`*.test.yaml`). Exit code 0: all passed; 1: some failed; 2: nothing could be run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A folder, searched with what is below it, or one test file.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Write the results as JUnit XML.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

/// A test file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Suite {
    #[serde(default)]
    policies: Option<Vec<PathBuf>>,
    #[serde(default)]
    at: Option<String>,
    #[serde(default)]
    agent: Option<Who>,
    /// The gate stands in front of an LLM API.
    #[serde(default)]
    llm: bool,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[serde(default)]
    at: Option<String>,
    #[serde(default)]
    agent: Option<Who>,
    call: Request,
    expect: Expect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    /// `allow`, `redact`, `hold` or `deny`.
    outcome: String,
    /// In order; each `rule @ document`, or `rule` alone where no document gives it.
    #[serde(default)]
    reasons: Vec<String>,
    #[serde(default)]
    status: Option<u16>,
}

/// One case run: what differed; nothing when it passed.
struct Ran {
    name: String,
    differences: Vec<String>,
}

/// Which rules have refused a call in some case.
#[derive(Default)]
struct Coverage(BTreeMap<String, bool>);

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let mut files = Vec::new();
    if args.dir.is_file() {
        files.push(args.dir.clone());
    } else {
        find(&args.dir, MAX_DEPTH, &mut files)?;
    }
    files.sort();
    ensure!(
        !files.is_empty(),
        "no *.test.yaml in `{}` or below it",
        args.dir.display()
    );
    let mut coverage = Coverage::default();
    let mut suites = Vec::new();
    for file in files {
        let ran = suite(&file, &mut coverage)
            .with_context(|| format!("in the test file `{}`", file.display()))?;
        suites.push((file.to_string_lossy().into_owned(), ran));
    }
    print!("{}", report(&suites, &coverage));
    if let Some(path) = &args.junit {
        fs::write(path, junit(&suites))
            .with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    let failed = suites
        .iter()
        .flat_map(|(_, ran)| ran)
        .any(|ran| !ran.differences.is_empty());
    Ok(ExitCode::from(u8::from(failed)))
}

fn find(dir: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(dir).with_context(|| format!("cannot read the folder `{}`", dir.display()))?;
    for entry in entries {
        let entry = entry?;
        // A link is not followed: it may lead back up.
        let kind = entry.file_type()?;
        if kind.is_dir() && depth > 0 {
            find(&entry.path(), depth - 1, files)?;
        } else if kind.is_file() && offline::is_test(&entry.path()) {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn suite(file: &Path, coverage: &mut Coverage) -> Result<Vec<Ran>> {
    let text = fs::read_to_string(file).context("cannot be read")?;
    let suite: Suite = serde_saphyr::from_str(&text).map_err(|error| anyhow::anyhow!("{error}"))?;
    let dir = match file.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let policies = match &suite.policies {
        Some(named) => named.iter().map(|name| dir.join(name)).collect(),
        None => offline::policies_in(dir)?,
    };
    let documents = offline::documents(&policies)?;
    suite
        .cases
        .iter()
        .map(|case| {
            let differences = differences(&suite, case, &documents, coverage)
                .with_context(|| format!("case `{}`", case.name))?;
            Ok(Ran {
                name: case.name.clone(),
                differences,
            })
        })
        .collect()
}

fn differences(
    suite: &Suite,
    case: &Case,
    documents: &[Document],
    coverage: &mut Coverage,
) -> Result<Vec<String>> {
    let expect = &case.expect;
    if !["allow", "redact", "hold", "deny"].contains(&expect.outcome.as_str()) {
        bail!("`outcome` must be allow, redact, hold or deny");
    }
    let at = case.at.as_deref().or(suite.at.as_deref());
    let now = offline::instant(at.unwrap_or(DEFAULT_AT)).context("at")?;
    let nobody = Who::nobody_in_particular();
    let who = case.agent.as_ref().or(suite.agent.as_ref());
    let decided = offline::decide(
        documents,
        who.unwrap_or(&nobody),
        suite.llm,
        &case.call,
        now,
    )?;
    for met in decided.exchange.explain(&decided.gate, now) {
        for rule in met.rules {
            let refused = matches!(rule.verdict, Verdict::Refuses | Verdict::Holds);
            *coverage
                .0
                .entry(format!("{} @ {}", rule.rule, met.document))
                .or_default() |= refused;
        }
    }

    let decision = decided.exchange.decision();
    let mut differences = Vec::new();
    let outcome = serde_json::to_value(decision.outcome)?;
    let outcome = outcome.as_str().unwrap_or_default();
    if outcome != expect.outcome {
        differences.push(format!(
            "outcome: expected {}, found {outcome}",
            expect.outcome
        ));
    }
    let reasons: Vec<String> = decision
        .reasons
        .iter()
        .map(|reason| match &reason.document {
            Some(document) => format!("{} @ {document}", reason.rule),
            None => reason.rule.to_string(),
        })
        .collect();
    if reasons != expect.reasons {
        differences.push("reasons:".to_string());
        let missing = expect.reasons.iter().filter(|r| !reasons.contains(r));
        differences.extend(missing.map(|reason| format!("  - {reason}")));
        for (reason, given) in reasons.iter().zip(&decision.reasons) {
            let mark = match expect.reasons.contains(reason) {
                true => ' ',
                false => '+',
            };
            differences.push(format!("  {mark} {reason}: {}", given.message));
        }
    }
    // A call that goes out has no status yet.
    if expect.status.is_some() && expect.status != decided.status {
        let shown = |status: Option<u16>| status.map_or("none".to_string(), |s| s.to_string());
        differences.push(format!(
            "status: expected {}, found {}",
            shown(expect.status),
            shown(decided.status)
        ));
    }
    Ok(differences)
}

fn report(suites: &[(String, Vec<Ran>)], coverage: &Coverage) -> String {
    let mut out = String::new();
    let (mut passed, mut failed) = (0_usize, 0_usize);
    for (file, ran) in suites {
        for case in ran {
            if case.differences.is_empty() {
                passed += 1;
                continue;
            }
            failed += 1;
            out += &format!("FAIL {file}: {}\n", case.name);
            for line in &case.differences {
                out += &format!("  {line}\n");
            }
        }
    }
    out += &format!("{passed} passed, {failed} failed\n");
    let refused = coverage.0.values().filter(|refused| **refused).count();
    out += &format!(
        "{refused} of {} rules refused a call in some case\n",
        coverage.0.len()
    );
    for (rule, _) in coverage.0.iter().filter(|(_, refused)| !**refused) {
        out += &format!("  never refused: {rule}\n");
    }
    out
}

/// The JUnit XML that CI systems read (the common subset: suites, cases, failures).
fn junit(suites: &[(String, Vec<Ran>)]) -> String {
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
    for (file, ran) in suites {
        let file = escaped(file);
        let failures = ran.iter().filter(|ran| !ran.differences.is_empty()).count();
        out += &format!(
            "  <testsuite name=\"{file}\" tests=\"{}\" failures=\"{failures}\">\n",
            ran.len()
        );
        for case in ran {
            let name = escaped(&case.name);
            out += &format!("    <testcase classname=\"{file}\" name=\"{name}\"");
            match case.differences.first() {
                None => out += "/>\n",
                Some(first) => {
                    out += &format!(
                        ">\n      <failure message=\"{}\">{}</failure>\n    </testcase>\n",
                        escaped(first),
                        escaped(&case.differences.join("\n"))
                    );
                }
            }
        }
        out += "  </testsuite>\n";
    }
    out + "</testsuites>\n"
}

/// Text for XML, in attributes too. Control characters have no place in XML 1.0, not even escaped.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push_str("&#10;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
