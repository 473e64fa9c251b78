//! `cargo xtask simulate`: runs seeds, and shows a small version of the first that fails.

use anyhow::{Context as _, Result, bail};
use std::ops::ControlFlow;
use std::process::ExitCode;
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
    let tell = |seed: u64, outcome: Outcome| {
        let scenario = Scenario::of(seed);
        summary.add(&outcome);
        for line in &outcome.trace {
            println!("{line}");
        }
        let Some(violation) = outcome.violations.first() else {
            return ControlFlow::Continue(());
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
        let on = if database { " --database" } else { "" };
        println!("again: cargo xtask simulate --seeds 1 --from {seed}{on} [--trace]");
        ControlFlow::Continue(())
    };
    if let Some(more) = seeds.checked_sub(1) {
        simulate::run_all(from..=from.saturating_add(more), &options, tell);
    }
    println!(
        "{} calls let through, {} refused",
        summary.allowed, summary.denied
    );
    println!("{summary}");
    Ok(summary.violations)
}
