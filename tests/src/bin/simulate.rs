//! `cargo xtask simulate`: runs seeds, and shows a small version of the first that fails.

use anyhow::{Context as _, Result, bail};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use tollgate_tests::simulate::{self, Options, Outcome, Scenario, Summary};

/// Failing seeds that are made small and shown; the others are named.
const MAX_SHOWN: u64 = 1;

fn main() -> ExitCode {
    match run() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// What comes of `seeds` seeds from `from` on, as they come to their ends: on all processors.
fn outcomes(from: u64, seeds: u64, options: Options) -> impl Iterator<Item = (u64, Outcome)> {
    let next = Arc::new(AtomicU64::new(from));
    let end = from.saturating_add(seeds);
    let (tell, told) = mpsc::channel();
    for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
        let (next, tell) = (Arc::clone(&next), tell.clone());
        thread::spawn(move || {
            loop {
                let seed = next.fetch_add(1, Ordering::SeqCst);
                if seed >= end {
                    break;
                }
                let outcome = simulate::run(&Scenario::of(seed), &options);
                if tell.send((seed, outcome)).is_err() {
                    break;
                }
            }
        });
    }
    told.into_iter()
}

/// Lines of the history that are shown of a small version.
const SHOWN_LINES: usize = 40;
const USAGE: &str = "usage: simulate [--seeds N] [--from SEED] [--trace] [--database]";

fn run() -> Result<u64> {
    let (mut seeds, mut from, mut trace, mut database) = (500, 1, false, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || -> Result<u64> {
            let value = arguments.next().context(USAGE)?;
            value
                .parse()
                .with_context(|| format!("`{value}` is not a number"))
        };
        match argument.as_str() {
            "--seeds" => seeds = number()?,
            "--from" => from = number()?,
            "--trace" => trace = true,
            "--database" => database = true,
            _ => bail!(USAGE),
        }
    }
    let options = Options {
        trace,
        database,
        ..Options::default()
    };
    let mut summary = Summary::default();
    let mut shown = 0;
    for (seed, outcome) in outcomes(from, seeds, options) {
        let scenario = Scenario::of(seed);
        summary.add(&outcome);
        for line in &outcome.trace {
            println!("{line}");
        }
        let Some(violation) = outcome.violations.first() else {
            continue;
        };
        println!("seed {seed}: {violation}");
        if shown < MAX_SHOWN && !trace {
            shown += 1;
            let (small, outcome) = simulate::shrink(&scenario, &options);
            println!("made small: {small:?}");
            let skipped = outcome.trace.len().saturating_sub(SHOWN_LINES);
            for line in outcome.trace.iter().skip(skipped) {
                println!("{line}");
            }
            for violation in &outcome.violations {
                println!("{violation}");
            }
        }
        println!("again: cargo xtask simulate --seeds 1 --from {seed} [--trace]");
    }
    println!(
        "{} calls let through, {} refused",
        summary.allowed, summary.denied
    );
    println!("{summary}");
    Ok(summary.violations)
}
