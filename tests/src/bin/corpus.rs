//! `cargo xtask corpus`: runs the corpus, or cases drawn by dice, on every host and compares.

use anyhow::{Context as _, Result, bail, ensure};
use std::process::ExitCode;
use tollgate_tests::corpus::{self, HOSTS, random};

const USAGE: &str = "usage: corpus [--host NAME]… [--filter TEXT] [--random CALLS [--seed SEED]]";

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool> {
    let (mut wanted, mut filter) = (Vec::new(), String::new());
    let (mut drawn, mut seed) = (None, 1);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().context(USAGE)?;
        let number = || {
            value
                .parse::<u64>()
                .with_context(|| format!("not a number: `{value}`"))
        };
        match argument.as_str() {
            "--host" => {
                ensure!(
                    HOSTS.contains(&value.as_str()),
                    "no host `{value}`; there are {}",
                    HOSTS.join(", ")
                );
                wanted.push(value);
            }
            "--filter" => filter = value,
            "--random" => drawn = Some(usize::try_from(number()?)?),
            "--seed" => seed = number()?,
            _ => bail!(USAGE),
        }
    }
    let cases = match drawn {
        None => corpus::load(&xtask::root().join("tests/corpus"), &filter)?,
        Some(calls) => {
            let mut cases = random::cases(calls, seed);
            cases.retain(|case| case.name.contains(&filter));
            ensure!(
                !cases.is_empty(),
                "no case of seed {seed} matches `{filter}`"
            );
            cases
        }
    };
    let is_wanted = |name: &&str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    let hosts = HOSTS.into_iter().filter(is_wanted).map(corpus::host);
    let hosts = hosts.collect::<Result<Vec<_>>>()?;
    let summary = corpus::run(&cases, &hosts);
    println!("{summary}");
    Ok(summary.differences == 0)
}
