//! The `tollgate` command.

mod api;
mod approval;
mod audit;
mod check;
mod decide;
mod diff;
mod folder;
mod halt;
mod meter;
mod offline;
mod once;
mod operate;
mod policy;
mod replay;
mod schema;
mod serve;
mod table;
mod test;
mod who;

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
    Serve(serve::Args),
    Status(operate::Status),
    Workspace(operate::Workspace),
    Operator(operate::Operator),
    Agent(operate::Agent),
    Gate(operate::Gate),
    Policy(policy::Policy),
    /// Let no new call pass; what is under way comes to its end.
    Pause(halt::Args),
    /// Let calls pass again.
    Resume(halt::Args),
    /// Let no new call pass, and end event streams that are under way.
    Kill(halt::Args),
    Approval(approval::Approval),
    Budget(operate::Budget),
    Usage(operate::Usage),
    Audit(audit::Audit),
    Check(check::Args),
    Decide(decide::Args),
    Explain(decide::Explain),
    Test(test::Args),
    Diff(diff::Args),
    Schema(schema::Args),
    Meter(meter::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Status(command) => command.run(),
        Command::Workspace(command) => command.run(),
        Command::Operator(command) => command.run(),
        Command::Agent(command) => command.run(),
        Command::Gate(command) => command.run(),
        Command::Policy(command) => command.run(),
        Command::Pause(args) => halt::run(args, halt::Order::Pause),
        Command::Resume(args) => halt::run(args, halt::Order::Resume),
        Command::Kill(args) => halt::run(args, halt::Order::Kill),
        Command::Approval(command) => command.run(),
        Command::Budget(command) => command.run(),
        Command::Usage(command) => command.run(),
        Command::Audit(command) => command.run(),
        Command::Check(args) => check::run(args),
        Command::Decide(args) => decide::run(args),
        Command::Explain(args) => decide::explain(args),
        Command::Test(args) => test::run(args),
        Command::Diff(args) => diff::run(args),
        Command::Schema(args) => schema::run(args),
        Command::Meter(args) => meter::run(args),
    };
    done.unwrap_or_else(|error| {
        policy::print_findings(&error);
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}
