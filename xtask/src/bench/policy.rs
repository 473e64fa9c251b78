//! What a decision costs by itself, beside other policy engines, and what policies cost before it: `tests/compare`, built for speed.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use xtask::{cargo, process, progress, root};

/// Where this section begins in a report. It is the last, so everything from here on is replaced.
const TITLE: &str = "\n## Policy decisions\n";

pub(crate) fn run(output: Option<&Path>) -> Result<()> {
    progress::say("Building", "other policy engines, for comparison");
    let table = process::capture(
        cargo::cargo("run")
            .args(["--quiet", "--release", "--locked", "--manifest-path"])
            .arg(root().join("tests/compare/Cargo.toml"))
            .arg("--target-dir")
            .arg(root().join("target/compare")),
    )?;
    let section = format!(
        "{TITLE}\n`cargo xtask bench --only policy`: one call decided on facts that are parsed already, native, on one core, the least of many rounds; \
         each engine with the same policy, compiled before ([tests/compare](tests/compare/src/main.rs)). Tollgate gives all reasons, the others \
         a verdict.\n\n{table}"
    );
    print!("{section}");
    if let Some(file) = output {
        let report = fs::read_to_string(file)
            .with_context(|| format!("cannot read `{}`", file.display()))?;
        let kept = report.split(TITLE).next().unwrap_or_default();
        fs::write(file, format!("{}\n{section}", kept.trim_end()))?;
    }
    Ok(())
}
