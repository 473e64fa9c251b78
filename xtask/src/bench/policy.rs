//! What a decision costs by itself, beside other policy engines, and what policies cost before it: `tests/compare`, built for speed.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;
use xtask::run_folder::RunFolder;
use xtask::stack::{Plan, Stack};
use xtask::stand_in::StandIn;
use xtask::{cargo, process, progress, root};

const TITLE: &str = "## Policy decisions";

/// Agents with a document of their own.
const DOCUMENTS: usize = 10_000;
/// Documents in a file; a file may have 50,000 values.
const PER_FILE: usize = 2_500;
/// Bundles that are put into service one after the other.
const SWAPS: usize = 9;
/// How long a bundle may take on its way.
const DEADLINE: Duration = Duration::from_secs(60);

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
    let section = section + &in_envoy()?;
    print!("{section}");
    output.map_or(Ok(()), |report| super::write_section(report, &section))
}

/// How long a real Envoy's filter takes over a bundle of many documents.
fn in_envoy() -> Result<String> {
    let run_folder = RunFolder::new("bench-policy")?;
    let folder = run_folder.path();
    let programs = super::programs()?;
    let stand_in = StandIn::start(&folder.join("stand-in.log"), &["--release"])?;
    let plan = Plan::new(folder.join("gate"), programs, stand_in.upstream());
    let stack = Stack::start(plan, |control_plane| {
        control_plane.create_workspace("bench")
    })?;
    let workspace = &stack.workspace;
    let gauge = |name: &str| {
        let name = format!("{name}.workspace.{}.channel.default", workspace.id);
        stack.envoy.stat(&format!("wasmcustom.{name}"))
    };
    progress::say("Loading", format!("{DOCUMENTS} documents, {SWAPS} times"));
    let mut times = Vec::new();
    for swap in 0..SWAPS {
        let before = gauge("tollgate_bundle_revision")?;
        stack.control_plane.call(
            &workspace.operator_key,
            "POST",
            &format!("/v1/workspaces/{}/policies", workspace.id),
            &json!({"files": files(swap)}).to_string(),
        )?;
        process::wait_until("the bundle", DEADLINE, || {
            (gauge("tollgate_bundle_revision").ok()? > before).then_some(())
        })?;
        let took = gauge("tollgate_bundle_install_us")?;
        times.push(took.context("Envoy does not say how long the bundle took")?);
    }
    times.sort_unstable();
    let mut out = String::new();
    let middle = times.get(times.len() / 2).copied().unwrap_or_default();
    let last = times.last().copied().unwrap_or_default();
    writeln!(
        out,
        "\nThe same on a real Envoy, as `tollgate_bundle_install_us` shows it: a bundle of {DOCUMENTS} documents is verified, read and ready to decide in \
         {:.1} ms, the middle of {SWAPS}; {:.1} ms at the most (goal: 50 ms).",
        middle as f64 / 1_000.0,
        last as f64 / 1_000.0,
    )?;
    drop((stack, stand_in));
    run_folder.remove()?;
    Ok(out)
}

/// One rule for each of many agents, another one in each `swap`.
fn files(swap: usize) -> Vec<serde_json::Value> {
    let document = |agent: usize| {
        format!(
            "---\napiVersion: tollgate/v1\nkind: Policy\nmetadata: {{name: a{agent}}}\nspec: {{scope: 'agent:00000000-0000-4000-8000-{agent:012x}', tools: {{t{swap}: {{allow: false}}}}}}\n"
        )
    };
    let numbers: Vec<usize> = (0..DOCUMENTS).collect();
    numbers
        .chunks(PER_FILE)
        .enumerate()
        .map(|(number, agents)| {
            let text: String = agents.iter().map(|agent| document(*agent)).collect();
            json!({"path": format!("agents-{number}.yaml"), "text": text})
        })
        .collect()
}
