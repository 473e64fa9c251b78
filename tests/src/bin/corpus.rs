//! `cargo xtask corpus`: runs the corpus on every host and compares.

use anyhow::{Result, ensure};
use std::process::ExitCode;
use tollgate_tests::corpus::{self, Host, component::InWasmtime, envoy::InEnvoy, native::Native};

const HOSTS: [&str; 3] = ["native", "component", "envoy"];

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
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), arguments.next()) {
            ("--host", Some(name)) => {
                ensure!(
                    HOSTS.contains(&name.as_str()),
                    "no host `{name}`; there are {}",
                    HOSTS.join(", ")
                );
                wanted.push(name);
            }
            ("--filter", Some(text)) => filter = text,
            _ => anyhow::bail!("usage: corpus [--host NAME]… [--filter TEXT]"),
        }
    }
    let cases = corpus::load(&xtask::root().join("tests/corpus"), &filter)?;
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    let mut hosts: Vec<Box<dyn Host>> = Vec::new();
    if is_wanted("native") {
        hosts.push(Box::new(Native));
    }
    if is_wanted("component") {
        hosts.push(Box::new(InWasmtime::new()?));
    }
    if is_wanted("envoy") {
        hosts.push(Box::new(InEnvoy));
    }
    let summary = corpus::run(&cases, &hosts);
    println!("{summary}");
    Ok(summary.differences == 0)
}
