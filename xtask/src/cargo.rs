//! Cargo as a subprocess: the same one that started us, asked where its artifacts are instead of guessing.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::root;

/// A cargo command in the checkout.
#[must_use]
pub fn cargo(subcommand: &str) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(root()).arg(subcommand);
    command
}

/// Builds one package and gives the path of the artifact of its target `target_name` that ends in `extension` (empty: an executable).
///
/// # Errors
/// When the build fails or makes no such artifact.
pub fn build(
    package: &str,
    target_name: &str,
    extension: &str,
    arguments: &[&str],
) -> Result<PathBuf> {
    let mut command = cargo("build");
    command
        .args([
            "--quiet",
            "--package",
            package,
            "--message-format",
            "json-render-diagnostics",
        ])
        .args(arguments);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(
        output.status.success(),
        "building `{package}` failed: see the compiler's messages above"
    );

    #[derive(Deserialize)]
    struct Message {
        reason: String,
        target: Option<Target>,
        #[serde(default)]
        filenames: Vec<PathBuf>,
        executable: Option<PathBuf>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }

    String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter(|message| message.reason == "compiler-artifact")
        .filter(|message| {
            message
                .target
                .as_ref()
                .is_some_and(|target| target.name == target_name)
        })
        .find_map(|message| match extension {
            "" => message.executable,
            _ => message
                .filenames
                .into_iter()
                .find(|file| file.extension().is_some_and(|found| found == extension)),
        })
        .with_context(|| {
            format!("cargo built `{package}` but named no `{target_name}` {extension} artifact")
        })
}
