//! What a decision costs by itself, beside other policy engines, and what policies cost before it: `tests/compare`, built for speed.

use std::path::Path;

use anyhow::Result;
use xtask::{cargo, process, progress, root};

const TITLE: &str = "## Policy decisions";

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
        "{TITLE}\n\n`cargo xtask bench --only policy`: one call decided on facts that are parsed already, native, on one core, the least of many rounds; \
         each engine with the same policy, compiled before ([tests/compare](tests/compare/src/main.rs)). Tollgate gives all reasons, the others \
         a verdict.\n\n{table}"
    );
    print!("{section}");
    output.map_or(Ok(()), |report| super::write_section(report, &section))
}
