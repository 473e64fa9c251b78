//! `tollgate schema`: the JSON Schema of policies, for editors.

use anyhow::Result;
use std::process::ExitCode;

/// Print the JSON Schema of policies, for editors. It knows their shape; `tollgate check` knows the rest.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: Args) -> Result<ExitCode> {
    println!(
        "{}",
        serde_json::to_string_pretty(&tollgate_policy::json_schema())?
    );
    Ok(ExitCode::SUCCESS)
}
