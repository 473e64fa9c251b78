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
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_of_a_crate) {
            command.env_remove(name);
        }
    }
    command
}

/// Whether cargo sets this variable for the crate that it runs: us. Build scripts of dependencies look at some (`ring`'s does), and what one cargo has
/// built would be built anew by another that inherits them, under the feet of the first.
fn is_of_a_crate(variable: &str) -> bool {
    const SET: [&str; 3] = [
        "CARGO_CRATE_NAME",
        "CARGO_PRIMARY_PACKAGE",
        "CARGO_TARGET_TMPDIR",
    ];
    const BEGIN: [&str; 3] = ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_"];
    SET.contains(&variable) || BEGIN.iter().any(|begin| variable.starts_with(begin))
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
    command.args(["--package", package]).args(arguments);
    artifact(command, package, target_name, extension)
}

/// The program `name` of the `tests` crate, as `cargo test` has built it: asked for by itself, cargo would build most of the house again, with
/// fewer features.
///
/// # Errors
/// When the build fails or makes no such program.
pub fn program_of_tests(name: &str) -> Result<PathBuf> {
    let mut command = cargo("test");
    command.args(["--workspace", "--no-run", "--test", name]);
    artifact(command, "tollgate-tests", name, "")
}

/// What `command` builds of this name.
fn artifact(
    mut command: Command,
    package: &str,
    target_name: &str,
    extension: &str,
) -> Result<PathBuf> {
    let output = command
        .args(["--quiet", "--message-format", "json-render-diagnostics"])
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
        kind: Vec<String>,
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
        // A test may have the name of a program.
        .filter(|message| {
            let is_test = |target: &Target| target.kind.iter().any(|kind| kind == "test");
            !message.target.as_ref().is_some_and(is_test)
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
