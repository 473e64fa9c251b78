//! `cargo xtask simulate`: runs seeds, and shows a small version of the first that fails.

use anyhow::{Context as _, Result, bail};
use std::process::ExitCode;
use tollgate_tests::simulate::{self, Options, Scenario, Summary};

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

fn run() -> Result<u64> {
    let (mut seeds, mut from) = (500, 1);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments
            .next()
            .context("usage: simulate [--seeds N] [--from SEED]")?;
        let number: u64 = value
            .parse()
            .with_context(|| format!("`{value}` is not a number"))?;
        match argument.as_str() {
            "--seeds" => seeds = number,
            "--from" => from = number,
            _ => bail!("usage: simulate [--seeds N] [--from SEED]"),
        }
    }
    let mut summary = Summary::default();
    let mut shown = 0;
    for seed in from..from.saturating_add(seeds) {
        let scenario = Scenario::of(seed);
        let outcome = simulate::run(&scenario, &Options::default());
        summary.add(&outcome);
        let Some(violation) = outcome.violations.first() else {
            continue;
        };
        println!("seed {seed}: {violation}");
        if shown < MAX_SHOWN {
            shown += 1;
            let (small, outcome) = simulate::shrink(&scenario, &Options::default());
            println!("made small: {small:?}");
            for line in &outcome.trace {
                println!("{line}");
            }
            for violation in &outcome.violations {
                println!("{violation}");
            }
        }
        println!("again: cargo xtask simulate --seeds 1 --from {seed}");
    }
    println!(
        "{} calls let through, {} refused",
        summary.allowed, summary.denied
    );
    println!("{summary}");
    Ok(summary.violations)
}
