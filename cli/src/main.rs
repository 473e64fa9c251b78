//! The `tollgate` command.

mod check;
mod decide;
mod meter;
mod serve;

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
    Decide(decide::Args),
    Meter(meter::Args),
    Serve(serve::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Check(args) => check::run(args),
        Command::Decide(args) => decide::run(args),
        Command::Meter(args) => meter::run(args),
        Command::Serve(args) => serve::run(args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}
