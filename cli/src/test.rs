//! `tollgate test`: cases beside policies, decided by the engine as a gate would.
//!
//! ```yaml
//! # platform.test.yaml
//! policies: [platform.yaml]            # files or folders, from where this file is; every policy file beside it when absent
//! at: 2026-11-20T10:00:00Z             # when, for all cases
//! agent: {team: platform, level: L1}   # who, for all cases
//! cases:
//! - name: gpt-4o is denied
//!   call: {url: https://api.openai.com/v1/chat/completions, body: {model: gpt-4o, messages: []}}
//!   expect: {outcome: deny, reasons: [capabilities.deny @ platform-llm]}
//! ```

use crate::{
    folder,
    offline::{self, Request, Who},
};
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

/// Run the test cases beside policies (`*.test.yaml`, `*.test.yml`, `*.test.json`). Exit code 0: all passed; 1: some failed or could not be
/// run; 2: nothing could be run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A folder, searched with what is below it, or one test file, whatever its name.
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

/// One test file and what came of it: its cases, or why it could not be run.
struct Tested {
    file: String,
    cases: Result<Vec<Ran>, String>,
}

/// One case.
struct Ran {
    name: String,
    end: End,
}

/// How a case ended.
enum End {
    Passed,
    /// What was not as expected.
    Differs(Vec<String>),
    /// Why it could not be run.
    NotRun(String),
}

impl End {
    /// What to say of a case that has not passed.
    fn complaints(&self) -> Vec<String> {
        match self {
            End::Passed => Vec::new(),
            End::Differs(differences) => differences.clone(),
            End::NotRun(why) => vec![format!("cannot be run: {why}")],
        }
    }
}

/// Which rules have refused a call in some case.
#[derive(Default)]
struct Coverage(BTreeMap<String, bool>);

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let files = match args.dir.is_file() {
        true => vec![args.dir.clone()],
        false => folder::tests(&args.dir)?,
    };
    ensure!(
        !files.is_empty(),
        "no test file (*.test.yaml, *.test.yml, *.test.json) in `{}` or below it",
        args.dir.display()
    );
    let mut coverage = Coverage::default();
    let mut all = Vec::new();
    for path in files {
        let cases = suite(&path, &mut coverage).map_err(|error| format!("{error:#}"));
        let file = path.to_string_lossy().into_owned();
        if let Err(why) = &cases {
            eprintln!("error: in the test file `{file}`: {why}");
        }
        all.push(Tested { file, cases });
    }
    print!("{}", report(&all, &coverage));
    if let Some(path) = &args.junit {
        fs::write(path, junit(&all))
            .with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    let ends = || all.iter().flat_map(|tested| tested.cases.iter().flatten());
    let run = ends().any(|ran| !matches!(ran.end, End::NotRun(_)));
    let good = all.iter().all(|tested| tested.cases.is_ok())
        && ends().all(|ran| matches!(ran.end, End::Passed));
    Ok(ExitCode::from(match (run, good) {
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => 2,
    }))
}

fn suite(file: &Path, coverage: &mut Coverage) -> Result<Vec<Ran>> {
    let text = fs::read_to_string(file).context("cannot be read")?;
    let suite: Suite = serde_saphyr::from_str(&text).map_err(|error| anyhow::anyhow!("{error}"))?;
    ensure!(!suite.cases.is_empty(), "it has no cases");
    let dir = folder::parent(file);
    let policies = match &suite.policies {
        Some(named) => {
            let named: Vec<PathBuf> = named.iter().map(|name| dir.join(name)).collect();
            folder::policies(&named)?
        }
        None => folder::policies_beside(file)?,
    };
    let documents = offline::documents(&policies)?;
    let cases = suite.cases.iter().map(|case| Ran {
        name: case.name.clone(),
        end: match differences(&suite, case, &documents, coverage) {
            Ok(differences) if differences.is_empty() => End::Passed,
            Ok(differences) => End::Differs(differences),
            Err(error) => End::NotRun(format!("{error:#}")),
        },
    });
    Ok(cases.collect())
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

fn report(all: &[Tested], coverage: &Coverage) -> String {
    let mut out = String::new();
    let (mut passed, mut failed, mut unread) = (0_usize, 0_usize, 0_usize);
    for Tested { file, cases } in all {
        let Ok(cases) = cases else {
            unread += 1;
            continue;
        };
        for case in cases {
            if matches!(case.end, End::Passed) {
                passed += 1;
                continue;
            }
            failed += 1;
            out += &format!("FAIL {file}: {}\n", case.name);
            for line in case.end.complaints() {
                out += &format!("  {line}\n");
            }
        }
    }
    out += &format!("{passed} passed, {failed} failed");
    out += &match unread {
        0 => "\n".to_string(),
        1 => ", 1 file could not be run\n".to_string(),
        more => format!(", {more} files could not be run\n"),
    };
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

/// The JUnit XML that CI systems read (the common subset: suites, cases, failures, errors). A file that could not be run is a case with an
/// error.
fn junit(all: &[Tested]) -> String {
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
    for Tested { file, cases } in all {
        let unread;
        let cases = match cases {
            Ok(cases) => cases,
            Err(why) => {
                unread = vec![Ran {
                    name: "the test file".to_string(),
                    end: End::NotRun(why.clone()),
                }];
                &unread
            }
        };
        let file = escaped(file);
        let count = |wanted: fn(&End) -> bool| cases.iter().filter(|ran| wanted(&ran.end)).count();
        let failures = count(|end| matches!(end, End::Differs(_)));
        let errors = count(|end| matches!(end, End::NotRun(_)));
        out += &format!(
            "  <testsuite name=\"{file}\" tests=\"{}\" failures=\"{failures}\" errors=\"{errors}\">\n",
            cases.len()
        );
        for case in cases {
            let name = escaped(&case.name);
            out += &format!("    <testcase classname=\"{file}\" name=\"{name}\"");
            let kind = match case.end {
                End::Passed => {
                    out += "/>\n";
                    continue;
                }
                End::Differs(_) => "failure",
                End::NotRun(_) => "error",
            };
            let complaints = case.end.complaints();
            out += &format!(
                ">\n      <{kind} message=\"{}\">{}</{kind}>\n    </testcase>\n",
                escaped(complaints.first().map_or("", String::as_str)),
                escaped(&complaints.join("\n"))
            );
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
