//! `cargo xtask test`: the phases, in the order in which they are cheap to fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use xtask::control_plane::ControlPlane;
use xtask::run_folder::RunFolder;
use xtask::spin::{App, Spin};
use xtask::stack::{self, EdgePlan, EdgeStack, LOOPBACK, Plan, Programs, Stack};
use xtask::stand_in::StandIn;
use xtask::{cargo, process, progress, root, tools, wasm};

#[derive(Args)]
pub(crate) struct Options {
    /// Run one phase only; may be repeated.
    #[arg(long, value_name = "PHASE")]
    only: Vec<Phase>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Phase {
    /// The source is formatted.
    Format,
    /// clippy has nothing to say.
    Lint,
    /// The filter and the component build.
    Wasm,
    /// `cargo test`: units, house rules, corpus, end to end on a real Envoy.
    Rust,
    /// Two hundred and fifty simulated installations, others than `cargo test` has run.
    Simulate,
    /// The vendors' Python SDKs through the gate.
    Sdk,
    /// The examples in `examples/`: the component decides a call in a Rust, a Python and a JavaScript program.
    Examples,
    /// The policy checker for browsers, in node.
    Checker,
    /// Patterns against RE2, conditions against another CEL, days and hours against Python's zoneinfo.
    Oracles,
    /// What wrangler would upload to Cloudflare: the whole of the worker.
    Deploy,
    /// The control plane's HTTP API against its own description, by schemathesis.
    Api,
}

/// What a phase that did not fail has to say.
enum Outcome {
    Passed(String),
    Skipped(String),
}

pub(crate) fn run(options: &Options) -> Result<()> {
    // A skip is fine at a desk and a hole in CI.
    let strict = std::env::var_os("CI").is_some_and(|value| value == "true");
    let mut summary = Vec::new();
    let mut failed = 0;
    for &phase in Phase::value_variants() {
        if !options.only.is_empty() && !options.only.contains(&phase) {
            continue;
        }
        progress::say("Testing", phase.name());
        let start = Instant::now();
        let (verdict, detail) = match phase.run() {
            Ok(Outcome::Passed(detail)) => ("ok", detail),
            Ok(Outcome::Skipped(why)) if !strict => ("skipped", why),
            Ok(Outcome::Skipped(why)) => {
                failed += 1;
                ("FAILED", format!("skipped, which CI=true forbids: {why}"))
            }
            Err(error) => {
                failed += 1;
                ("FAILED", format!("{error:#}"))
            }
        };
        summary.push(format!(
            "{:<8} {verdict:<8} {:>5} s  {detail}",
            phase.name(),
            start.elapsed().as_secs()
        ));
    }
    for line in &summary {
        println!("{line}");
    }
    ensure!(failed == 0, "{failed} of {} phases failed", summary.len());
    Ok(())
}

impl Phase {
    fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }

    fn run(self) -> Result<Outcome> {
        match self {
            Phase::Format => format(),
            Phase::Lint => lint(),
            Phase::Wasm => build_wasm(),
            Phase::Rust => rust(),
            Phase::Simulate => simulate(),
            Phase::Sdk => sdk(),
            Phase::Examples => examples(),
            Phase::Checker => checker(),
            Phase::Oracles => oracles(),
            Phase::Deploy => deploy(),
            Phase::Api => api(),
        }
    }
}

fn format() -> Result<Outcome> {
    process::run(cargo::cargo("fmt").args(["--all", "--check"]))
        .context("run `cargo fmt --all`")?;
    passed("")
}

fn lint() -> Result<Outcome> {
    process::run(cargo::cargo("clippy").args([
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))?;
    passed("")
}

fn build_wasm() -> Result<Outcome> {
    let (filter, component, spin) = (wasm::filter()?, wasm::component()?, wasm::spin()?);
    passed(format!(
        "{}, {}, {}",
        wasm::describe(&filter)?,
        wasm::describe(&component)?,
        wasm::describe(&spin)?
    ))
}

fn rust() -> Result<Outcome> {
    // Fetched here, where it is announced, rather than in the middle of some test.
    tools::envoy(None)?;
    process::run(cargo::cargo("test").args(["--quiet", "--workspace", "--no-fail-fast"]))?;
    passed("")
}

fn simulate() -> Result<Outcome> {
    let output = Command::new(cargo::program_of_tests("simulate")?)
        .args(["--seeds", "250", "--from", "501"])
        .stderr(Stdio::inherit())
        .output()?;
    let said = String::from_utf8(output.stdout)?;
    // Also what fails: each line names the seed that shows it again.
    print!("{said}");
    let summary = said.lines().last().unwrap_or_default();
    ensure!(output.status.success(), "{summary}");
    passed(summary)
}

fn sdk() -> Result<Outcome> {
    let python = match tools::python() {
        Ok(python) => python,
        Err(error) => return skipped(format!("{error:#}")),
    };
    let folder = RunFolder::new("sdk")?;
    let tollgate = tollgate()?;
    let stand_in = StandIn::start(&folder.path().join("stand-in.log"), &[])?;
    let mut tokens = Vec::new();
    let mut prepare = |control_plane: &ControlPlane| {
        let workspace = control_plane.create_workspace("sdk")?;
        control_plane.apply_policy(&workspace, stack::DEMO_POLICY)?;
        for name in ["agent", "spender"] {
            let agent = control_plane.create_agent(&workspace, name, "demo")?;
            tokens.push(control_plane.issue_token(&workspace, &agent)?);
        }
        Ok(workspace)
    };
    let programs = Programs {
        envoy: tools::envoy(None)?,
        filter: wasm::filter()?,
        tollgate: tollgate.clone(),
    };
    let plan = Plan::new(folder.path().join("envoy"), programs, stand_in.upstream());
    let envoy = Stack::start(plan, &mut prepare)?;
    let plan = EdgePlan {
        folder: folder.path().join("workerd"),
        tollgate: tollgate.clone(),
        workerd: tools::workerd()?,
        worker: wasm::cloudflare()?,
        upstream: stand_in.upstream(),
        gate: LOOPBACK,
        control_plane: LOOPBACK,
        bundles: None,
        pass_through: false,
        environment: Vec::new(),
    };
    let workerd = EdgeStack::start(plan, &mut prepare)?;
    let at_spin = folder.path().join("spin");
    fs::create_dir_all(&at_spin)?;
    let mut serve = Command::new(tollgate);
    serve.arg("serve");
    let log = at_spin.join("control-plane.log");
    let control_plane = ControlPlane::start(serve, &at_spin.join("data"), LOOPBACK, &log)?;
    let workspace = prepare(&control_plane)?;
    let upstream = stand_in.upstream();
    let app = App::gate(
        wasm::spin()?,
        &stack::gate_settings(&workspace, &upstream),
        &upstream.origin,
        control_plane.address,
        &stack::gate_secrets(&workspace, &upstream),
    );
    let spin = Spin::start(&app, &at_spin, &[])?;

    let [at_envoy, at_workerd, at_spin] = tokens.as_chunks::<2>().0 else {
        bail!("two agents at each gate, two tokens")
    };
    for (gate, [token, spender_token]) in [
        (envoy.envoy.url(""), at_envoy),
        (workerd.gate.url(""), at_workerd),
        (spin.url(""), at_spin),
    ] {
        process::run(
            Command::new(&python)
                .args(["-m", "unittest", "test_sdks"])
                .current_dir(root().join("tests/sdk"))
                .env("PYTHONDONTWRITEBYTECODE", "1")
                .env("TOLLGATE_GATE", gate)
                .env("TOLLGATE_TOKEN", token)
                .env("TOLLGATE_SPENDER_TOKEN", spender_token),
        )
        .with_context(|| format!("the logs are in `{}`", folder.path().display()))?;
    }
    drop((envoy, workerd, spin, control_plane, stand_in));
    folder.remove()?;
    passed("openai and anthropic, whole and streamed, through Envoy, workerd and Spin's stand-in")
}

/// A model that the example's policy allows, one that it does not, and what every program has to say to each.
const EXAMPLES: [(&str, &str); 2] = [
    ("gpt-5-mini", "allow"),
    ("gpt-5", "deny capabilities.allow"),
];

const EXAMPLE_POLICY: &str = "
apiVersion: tollgate/v1
kind: Policy
metadata:
  name: example
spec:
  scope: global
  capabilities:
    allow: ['model:gpt-5-mini']
";

fn examples() -> Result<Outcome> {
    let (python, jco) = match (tools::python(), tools::jco()) {
        (Ok(python), Ok(jco)) => (python, jco),
        (Err(error), _) | (_, Err(error)) => return skipped(format!("{error:#}")),
    };
    let folder = RunFolder::new("examples")?;
    let component = wasm::component()?;
    let javascript = folder.path().join("javascript");
    process::capture(
        Command::new(jco)
            .args(["transpile", "--quiet", "--name", "tollgate", "--out-dir"])
            .arg(&javascript)
            .arg(&component),
    )?;
    // Its glue is a module, and has to be called one.
    fs::write(javascript.join("package.json"), r#"{"type": "module"}"#)?;
    let mut serve = Command::new(tollgate()?);
    serve.arg("serve");
    let control_plane = ControlPlane::start(
        serve,
        &folder.path().join("data"),
        LOOPBACK,
        &folder.path().join("control-plane.log"),
    )?;
    let workspace = control_plane.create_workspace("examples")?;
    control_plane.apply_policy(&workspace, EXAMPLE_POLICY)?;
    // As a gate gets it: a program that decides by itself has to fetch it like any gate.
    let path = format!("/v1/workspaces/{}/gate/bundle", workspace.id);
    let bundle = control_plane.call(&workspace.enrolment_key, "GET", &path, "")?;
    let upstream = stack::Upstream {
        origin: LOOPBACK.into(),
        openai_key: None,
        anthropic_key: None,
    };
    let [settings_file, bundle_file] =
        ["settings.json", "bundle.json"].map(|name| folder.path().join(name));
    let mut settings = stack::gate_settings(&workspace, &upstream);
    settings["upstream"]["host"] = "api.openai.com".into();
    fs::write(&settings_file, settings.to_string())?;
    fs::write(&bundle_file, bundle.to_string())?;
    let example = |name: &str| root().join("examples").join(name);
    let programs = || -> [(Command, PathBuf); 3] {
        let mut rust = cargo::cargo("run");
        rust.args([
            "--quiet",
            "--package",
            "tollgate-tests",
            "--example",
            "decide",
            "--",
        ]);
        let mut in_python = Command::new(&python);
        in_python.arg(example("decide.py"));
        let mut in_javascript = Command::new("node");
        in_javascript.arg(example("decide.js"));
        [
            (rust, component.clone()),
            (in_python, component.clone()),
            (in_javascript, javascript.join("tollgate.js")),
        ]
    };
    for (model, expected) in EXAMPLES {
        for (mut program, gate) in programs() {
            let said = process::capture(
                program
                    .arg(gate)
                    .args([&settings_file, &bundle_file])
                    .arg(model)
                    .envs(stack::gate_secrets(&workspace, &upstream)),
            )?;
            ensure!(
                said.trim_end() == expected,
                "{program:?} says `{}` to {model}, not `{expected}`",
                said.trim_end()
            );
        }
    }
    drop(control_plane);
    folder.remove()?;
    passed("Rust, Python and JavaScript agree")
}

fn checker() -> Result<Outcome> {
    if process::capture(Command::new("node").arg("--version")).is_err() {
        return skipped("this needs node 20 or newer");
    }
    let folder = wasm::checker()?;
    process::run(
        Command::new("node")
            .arg("--test")
            .arg(root().join("policy/checker/check.test.mjs"))
            .env("CHECKER", &folder)
            .env("TOLLGATE", tollgate()?),
    )?;
    passed(wasm::describe(&folder.join("tollgate_checker_bg.wasm"))?)
}

fn oracles() -> Result<Outcome> {
    let (python, cel) = match (tools::python(), tools::cel()) {
        (Ok(python), Ok(cel)) => (python, cel),
        (Err(error), _) | (_, Err(error)) => return skipped(format!("{error:#}")),
    };
    let oracle = cargo::build("tollgate-policy", "oracle", "", &["--example", "oracle"])?;
    let mut said = Vec::new();
    let folder = root().join("tests/oracles");
    for script in ["patterns.py", "zones.py"] {
        said.push(process::capture(
            Command::new(&python)
                .arg(folder.join(script))
                .env("PYTHONDONTWRITEBYTECODE", "1")
                .env("TOLLGATE_ORACLE", &oracle),
        )?);
    }
    said.push(process::capture(
        Command::new("node")
            .arg(folder.join("conditions.mjs"))
            .env("TOLLGATE_CEL", cel)
            .env("TOLLGATE_ORACLE", &oracle),
    )?);
    let said: Vec<&str> = said.iter().map(|line| line.trim()).collect();
    passed(said.join("; "))
}

fn deploy() -> Result<Outcome> {
    let wrangler = match tools::wrangler() {
        Ok(wrangler) => wrangler,
        Err(error) => return skipped(format!("{error:#}")),
    };
    let worker = wasm::cloudflare()?;
    let folder = RunFolder::new("deploy")?;
    let uploaded = folder.path().join("uploaded");
    // A home of its own: nobody's account is asked for, and nothing is left there.
    let said = process::capture(
        Command::new(wrangler)
            .args(["deploy", "--dry-run", "--config"])
            .arg(root().join("edge-worker/cloudflare/wrangler.toml"))
            .arg("--outdir")
            .arg(&uploaded)
            .stdin(Stdio::null())
            .env("HOME", folder.path())
            .env("CI", "1")
            .env("WRANGLER_SEND_METRICS", "false")
            .env("WRANGLER_HIDE_BANNER", "true"),
    )?;
    let (made, uploaded) = (files_below(&worker)?, files_below(&uploaded)?);
    let missing: Vec<_> = made
        .iter()
        .filter(|file| {
            file.extension()
                .is_some_and(|kind| kind == "js" || kind == "wasm")
        })
        .filter(|file| !uploaded.contains(file))
        .collect();
    ensure!(missing.is_empty(), "would not be uploaded: {missing:?}");
    folder.remove()?;
    let total = said.lines().find(|line| line.starts_with("Total Upload"));
    passed(total.unwrap_or_default())
}

/// Their paths from `folder` on.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = PathBuf::from(entry.file_name());
        if entry.file_type()?.is_dir() {
            files.extend(
                files_below(&entry.path())?
                    .iter()
                    .map(|file| name.join(file)),
            );
        } else {
            files.push(name);
        }
    }
    Ok(files)
}

fn api() -> Result<Outcome> {
    let python = match tools::python() {
        Ok(python) => python,
        Err(error) => return skipped(format!("{error:#}")),
    };
    let folder = RunFolder::new("api")?;
    let mut serve = Command::new(tollgate()?);
    serve.arg("serve");
    let control_plane = ControlPlane::start(
        serve,
        &folder.path().join("data"),
        LOOPBACK,
        &folder.path().join("control-plane.log"),
    )?;
    let workspace = control_plane.create_workspace("api")?;
    // Fetched here, since not even the description is open to whoever has no key.
    let description = folder.path().join("openapi.json");
    fs::write(
        &description,
        control_plane
            .call(&workspace.operator_key, "GET", "/openapi.json", "")?
            .to_string(),
    )?;
    process::run(
        Command::new(python.with_file_name("schemathesis"))
            .arg("--config-file")
            .arg(root().join("tests/api/schemathesis.toml"))
            .arg("run")
            .arg(&description)
            .args(["--url", &control_plane.url(""), "--checks", "all"])
            .current_dir(folder.path())
            .env("TOLLGATE_WORKSPACE", &workspace.id)
            .env("TOLLGATE_KEY", &workspace.operator_key)
            .env("TOLLGATE_ENROLMENT_KEY", &workspace.enrolment_key),
    )
    .with_context(|| {
        format!(
            "the control plane's log is in `{}`",
            folder.path().display()
        )
    })?;
    drop(control_plane);
    folder.remove()?;
    passed("schemathesis, all checks")
}

fn tollgate() -> Result<PathBuf> {
    progress::say("Building", "the control plane");
    cargo::build("tollgate", "tollgate", "", &[])
}

fn passed(detail: impl Into<String>) -> Result<Outcome> {
    Ok(Outcome::Passed(detail.into()))
}

fn skipped(why: impl Into<String>) -> Result<Outcome> {
    Ok(Outcome::Skipped(why.into()))
}
