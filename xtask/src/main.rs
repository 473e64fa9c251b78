//! `cargo xtask`: everything around the product that takes more than one command.

mod bench;
mod test;
mod up;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::{cargo, process, progress, tools, wasm};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Builds, tests and runs Tollgate from a checkout.",
    disable_help_subcommand = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start everything on this machine and say what to try.
    Up(up::Options),
    /// Fetch what cargo does not bring: Envoy, workerd, Rust's wasm targets, the Python packages of the tests.
    Tools {
        /// Use this Envoy instead of the pinned one.
        #[arg(long, env = "ENVOY", value_name = "PATH")]
        envoy: Option<PathBuf>,
    },
    /// Build the Envoy filter, the WIT component, the Cloudflare Worker, the Spin component and the policy checker for browsers.
    Wasm,
    /// Run every check there is; what a change must pass.
    Test(test::Options),
    /// Measure what the gate costs.
    Bench(bench::Options),
    /// Run the corpus of case files on every host and compare their decisions.
    Corpus {
        /// Passed on: `--host NAME` (repeatable), `--filter TEXT`, `--random CALLS` with `--seed SEED`.
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "OPTIONS"
        )]
        options: Vec<String>,
    },
    /// Run simulated installations through crashes, lost messages and wrong clocks, and audit every step.
    Simulate {
        /// Passed on: `--seeds N`, `--from SEED`.
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "OPTIONS"
        )]
        options: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Up(options) => up::run(&options),
        Command::Tools { envoy } => {
            let envoy = tools::envoy(envoy.as_deref())?;
            progress::say("Envoy", envoy.display());
            let workerd = tools::workerd()?;
            progress::say("workerd", workerd.display());
            let python = tools::python()?;
            progress::say("Python", python.display());
            wasm::targets()
        }
        Command::Wasm => {
            for module in [
                wasm::filter()?,
                wasm::component()?,
                wasm::cloudflare()?.join("index_bg.wasm"),
                wasm::spin()?,
                wasm::checker()?.join("tollgate_checker_bg.wasm"),
            ] {
                progress::say("Built", wasm::describe(&module)?);
            }
            Ok(())
        }
        Command::Test(options) => test::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Corpus { options } => run_of_tests("corpus", &options),
        Command::Simulate { options } => run_of_tests("simulate", &options),
    }
}

/// Builds a program of the `tests` crate and runs it.
fn run_of_tests(program: &str, options: &[String]) -> Result<()> {
    process::run(
        cargo::cargo("run")
            .args(["--quiet", "--package", "tollgate-tests", "--bin", program])
            .arg("--")
            .args(options),
    )
}
