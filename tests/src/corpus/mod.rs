//! The corpus: one set of case files, run by every host, that must agree byte for byte.
//!
//! A case is a file a user could have written: policies, a script of calls with the upstream's answers, and what has to come of them.
//! A [`Host`] says only how to carry a script out; everything else (keys, tokens, bundles, the control plane's side) is here and the same
//! for all. `tests/corpus/README.md` describes the format.

pub mod caller;
pub mod case;
pub mod component;
pub mod control_plane;
pub mod envoy;
pub mod native;
pub mod random;
pub mod spin;
pub mod upstream;
pub mod wire;
pub mod workerd;

use anyhow::{Context as _, Result, bail};
use case::{AnswerEnd, Case, Seen};
use component::InWasmtime;
use envoy::InEnvoy;
use native::Native;
use spin::InSpin;
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};
use workerd::InWorkerd;

/// All hosts, the reference first.
pub const HOSTS: [&str; 5] = ["native", "component", "envoy", "workerd", "spin"];

/// The host of that name.
///
/// # Errors
/// When there is none, or what it runs does not build.
pub fn host(name: &str) -> Result<Box<dyn Host>> {
    Ok(match name {
        "native" => Box::new(Native),
        "component" => Box::new(InWasmtime::new()?),
        "envoy" => Box::new(InEnvoy),
        "workerd" => Box::new(InWorkerd),
        "spin" => Box::new(InSpin),
        _ => bail!("no host `{name}`"),
    })
}

/// A way to carry out a case; several at once.
pub trait Host: Sync {
    /// The name given to `--host`.
    fn name(&self) -> &'static str;

    /// The cases that this host cannot run, by the beginning of their names, and why it cannot.
    fn skipped(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    /// Why this host cannot run `case`, where it cannot; printed and counted.
    fn skips(&self, case: &Case) -> Option<&'static str> {
        let mut skipped = self.skipped().iter();
        skipped
            .find(|(name, _)| case.name.starts_with(name))
            .map(|(_, why)| *why)
    }

    /// Runs the script and tells what was seen, one per step.
    fn run(&self, case: &Case) -> Result<Vec<Seen>>;
}

/// How a run of the corpus went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Case files run; of cases that were drawn, the calls in them.
    pub cases: usize,
    /// Hosts they ran on.
    pub hosts: usize,
    /// Expectations not met, and disagreements with the first host.
    pub differences: usize,
    /// Cases left out by a host.
    pub skipped: usize,
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "corpus: {} cases, {} hosts, {} differences, {} skipped",
            self.cases, self.hosts, self.differences, self.skipped
        )
    }
}

/// Every case below `folder` whose name contains `filter`, by name.
pub fn load(folder: &Path, filter: &str) -> Result<Vec<Case>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)
            .with_context(|| format!("cannot read {}", folder.display()))?
        {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path
                .extension()
                .is_some_and(|extension| extension == "yaml")
            {
                files.push(path);
            }
        }
    }
    files.sort();
    let mut cases = Vec::new();
    for file in files {
        let name = file.strip_prefix(folder)?.with_extension("");
        let name = name.to_string_lossy().replace('\\', "/");
        if name.contains(filter) {
            let text = std::fs::read_to_string(&file)?;
            let case = Case::read(&name, &text).with_context(|| format!("case {name}"))?;
            cases.push(case);
        }
    }
    if cases.is_empty() {
        bail!("no case in {} matches `{filter}`", folder.display());
    }
    Ok(cases)
}

/// Cases run at the same time: gates in Envoy and workerd spend most of a case waiting for their timers, and two cores are busy with so many.
const AT_ONCE: usize = 8;

/// Runs `cases` on `hosts`; prints every difference and every skip, in the order of the cases.
pub fn run(cases: &[Case], hosts: &[Box<dyn Host>]) -> Summary {
    let next = AtomicUsize::new(0);
    let told = Mutex::new(Told {
        next: 0,
        waiting: BTreeMap::new(),
        summary: Summary {
            cases: cases.iter().map(Case::count).sum(),
            hosts: hosts.len(),
            ..Summary::default()
        },
    });
    let run_some = || {
        let next_case = || {
            let index = next.fetch_add(1, Ordering::Relaxed);
            Some((index, cases.get(index)?))
        };
        for (index, case) in std::iter::from_fn(next_case) {
            let found = compare(case, hosts);
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            told.hear(index, found);
        }
    };
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(run_some);
        }
    });
    told.into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .summary
}

/// What was said so far, so that a long run says early what it finds.
struct Told {
    /// The case that is told next.
    next: usize,
    waiting: BTreeMap<usize, Findings>,
    summary: Summary,
}

impl Told {
    fn hear(&mut self, index: usize, found: Findings) {
        self.waiting.insert(index, found);
        while let Some(found) = self.waiting.remove(&self.next) {
            self.next += 1;
            for skip in &found.skips {
                println!("skipped: {skip}");
            }
            for difference in &found.differences {
                println!("difference: {difference}");
            }
            if let Some(case) = &found.drawn {
                println!("{case}");
            }
            self.summary.skipped += found.skips.len();
            self.summary.differences += found.differences.len();
        }
    }
}

/// What there is to say of one case.
#[derive(Debug, Default)]
struct Findings {
    skips: Vec<String>,
    differences: Vec<String>,
    /// The case, where it is in no file and there is something to look into.
    drawn: Option<String>,
}

/// Runs one case on all hosts, one after the other.
fn compare(case: &Case, hosts: &[Box<dyn Host>]) -> Findings {
    let mut found = Findings::default();
    let mut reference: Option<(&'static str, Vec<Seen>)> = None;
    for host in hosts {
        let place = format!("{} on {}", case.name, host.name());
        if let Some(why) = host.skips(case) {
            found.skips.push(format!("{place}: {why}"));
            continue;
        }
        let seen = match host.run(case) {
            Ok(seen) => seen,
            Err(error) => {
                found.differences.push(format!("{place}: {error:#}"));
                continue;
            }
        };
        let complaints = case.judge(&seen).into_iter();
        found
            .differences
            .extend(complaints.map(|complaint| format!("{place}: {complaint}")));
        match &reference {
            None => reference = Some((host.name(), seen)),
            Some((first, expected)) => {
                let complaints = disagreements(case, expected, &seen).into_iter();
                found.differences.extend(
                    complaints
                        .map(|complaint| format!("{place} disagrees with {first}: {complaint}")),
                );
            }
        }
    }
    if !found.differences.is_empty() && case.steps.iter().any(|step| step.expect.is_none()) {
        found.drawn = Some(case.told());
    }
    found
}

fn disagreements(case: &Case, expected: &[Seen], seen: &[Seen]) -> Vec<String> {
    let text = |seen: &Seen| serde_json::to_string(seen).unwrap_or_default();
    // How much of a broken answer still gets through is for the HTTP stack to say. What of it was metered is in the record.
    let broken = |step: usize| {
        let step = case.steps.get(step);
        step.is_some_and(|step| step.answer.end == AnswerEnd::UpstreamBreaks)
    };
    let alike = |step: usize, expected: &Seen, seen: &Seen| {
        if broken(step) && expected.body.starts_with(&seen.body) {
            let body = expected.body.clone();
            return text(expected)
                == text(&Seen {
                    body,
                    ..seen.clone()
                });
        }
        // Where nothing of it does, as of one that was held, what the caller gets instead is the host's own.
        if broken(step) && expected.body.is_empty() && seen.status == 502 {
            return text(expected)
                == text(&Seen {
                    upstream: seen.upstream.clone(),
                    record: seen.record.clone(),
                    spent: seen.spent.clone(),
                    ..expected.clone()
                });
        }
        text(expected) == text(seen)
    };
    if expected.len() != seen.len() {
        return vec![format!("{} steps, not {}", seen.len(), expected.len())];
    }
    expected
        .iter()
        .zip(seen)
        .enumerate()
        .filter(|(step, (expected, seen))| !alike(*step, expected, seen))
        .map(|(step, (expected, seen))| {
            format!("step {}:\n  {}\n  {}", step + 1, text(expected), text(seen))
        })
        .collect()
}
