//! `tollgate diff`: what a new set of policies changes, for whom, and whether it narrows or widens.

use crate::{folder, offline, replay};
use anyhow::{Context as _, Result};
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};
use tollgate_policy::{Change, Document};

/// Say what a new set of policies changes, for whom, and whether it narrows or widens. Exit code 0, whatever differs.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The policies as they are: a file, or a folder, searched with what is below it.
    #[arg(value_name = "OLD")]
    old: PathBuf,
    /// The policies as they would be.
    #[arg(value_name = "NEW")]
    new: PathBuf,
    /// Decide recorded calls again, and say which would now be decided otherwise: an export of `tollgate audit export`.
    #[arg(long, value_name = "EXPORT")]
    replay: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let (old, new) = (documents(&args.old)?, documents(&args.new)?);
    let changes = tollgate_policy::diff(&old, &new);
    let replayed = match &args.replay {
        Some(export) => Some(replay::replay(&old, &new, export)?),
        None => None,
    };
    match (args.json, &replayed) {
        (true, None) => println!("{}", serde_json::to_string_pretty(&changes)?),
        (true, Some(replayed)) => {
            let both = json!({"changes": changes, "replay": replayed});
            println!("{}", serde_json::to_string_pretty(&both)?);
        }
        (false, _) => {
            let replayed = replayed.map(|replayed| format!("\n{}", replayed.in_words()));
            print!("{}{}", in_words(&changes), replayed.unwrap_or_default());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The policies of a file, or of a folder and what is below it.
fn documents(path: &Path) -> Result<Vec<Document>> {
    let files = folder::policies(&[path.to_owned()])?;
    offline::documents(&files).with_context(|| format!("in `{}`", path.display()))
}

fn in_words(changes: &[Change]) -> String {
    if changes.is_empty() {
        return "no difference\n".to_string();
    }
    let mut out = String::new();
    let mut last = None;
    for change in changes {
        let document = (&change.document, &change.scope);
        if last != Some(document) {
            out += &format!("{} ({})\n", change.document, change.scope);
            last = Some(document);
        }
        let colon = if change.rule.is_empty() { "" } else { ": " };
        out += &format!(
            "  {:7}  {}{colon}{}\n",
            change.effect.to_string(),
            change.rule,
            change.message
        );
    }
    out
}
