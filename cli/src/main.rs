//! The `tollgate` command.

mod check;
mod meter;

use clap::Parser as _;
use std::process::ExitCode;

/// Policy, budgets and proof for the calls of AI agents.
#[derive(clap::Parser)]
#[command(name = "tollgate", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Check(check::Args),
    Meter(meter::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Check(args) => check::run(args),
        Command::Meter(args) => meter::run(args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}
