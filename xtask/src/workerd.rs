//! The Cloudflare Worker in a workerd of our own: configured, started, asked.
//!
//! workerd is what Cloudflare runs workers in. Durable Objects keep their state on disk here, so that a killed one comes back with what it had.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::envoy::Origin;
use crate::http;
use crate::process::Process;

/// It takes a fraction of a second on an idle machine; test machines are not idle.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// What a workerd is started with.
#[derive(Clone, Debug)]
pub struct Run {
    /// workerd.
    pub binary: PathBuf,
    /// The worker's files, as [`crate::wasm::cloudflare`] makes them.
    pub worker: PathBuf,
    /// Configuration, state and log. State that is there is gone on with.
    pub folder: PathBuf,
    /// Where agents connect. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The engine's gate settings as JSON. Secrets are named in it (`env:NAME`) and stand in `environment`.
    pub gate: Value,
    /// Where allowed calls go.
    pub upstream: Origin,
    /// Where bundles, leases and audit batches are exchanged.
    pub control_plane: Origin,
    /// A server that speaks workerd's KV protocol, where cold isolates find their bundle; they ask the keeper when there is none.
    pub bundles: Option<SocketAddr>,
    /// Whether a worker that only passes calls on stands beside the gate, to compare it with.
    pub pass_through: bool,
    /// Environment variables. Those whose names the gate's settings mention become the worker's secrets.
    pub environment: Vec<(OsString, OsString)>,
}

/// A running workerd.
#[derive(Debug)]
pub struct Workerd {
    /// The process, for tests that kill it.
    pub process: Process,
    /// Where agents connect, with the real port.
    pub listen: SocketAddr,
    /// Where the worker listens that only passes calls on.
    pub pass_through: Option<SocketAddr>,
}

impl Workerd {
    /// Starts one and waits until it listens.
    ///
    /// # Errors
    /// When it does not come up; with the end of its log.
    pub fn start(run: &Run) -> Result<Self> {
        let configuration = write_configuration(run)?;
        let mut command = Command::new(&run.binary);
        command
            .arg("serve")
            .arg(&configuration)
            // The keeper's alarm, and KV at an address of our own, are both what `wrangler dev` does it with.
            .arg("--experimental")
            .arg("--control-fd=1")
            .arg(format!("--socket-addr=http={}", run.listen))
            .envs(run.environment.iter().map(|(name, value)| (name, value)));
        let mut process = Process::spawn("workerd", command, &run.folder.join("workerd.log"))?;
        let mut address = |of: &str| -> Result<SocketAddr> {
            let port = process.wait_for_line("workerd's address", START_DEADLINE, |line| {
                let event: Value = serde_json::from_str(line).ok()?;
                (event["event"] == "listen" && event["socket"] == of)
                    .then(|| event["port"].as_u64())
                    .flatten()
            })?;
            Ok(SocketAddr::new(run.listen.ip(), u16::try_from(port)?))
        };
        let listen = address("http")?;
        let pass_through = run
            .pass_through
            .then(|| address("pass-through"))
            .transpose()?;
        Ok(Self {
            process,
            listen,
            pass_through,
        })
    }

    /// Waits until the gate runs a bundle; before, it answers everything with 503.
    ///
    /// # Errors
    /// When it has none at the deadline; with the end of the log.
    pub fn wait_for_bundle(&mut self, deadline: Duration) -> Result<()> {
        let url = self.url("/");
        self.process
            .wait_until("the gate's first bundle", deadline, || {
                // Nobody's call. It is answered by policy as soon as there is one.
                http::get(&url)
                    .ok()
                    .filter(|response| response.status != 503)
            })?;
        Ok(())
    }

    /// The URL of `path` at the gate.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.listen)
    }
}

/// Writes the configuration and copies the worker's files beside it: workerd takes what is embedded relative to it.
fn write_configuration(run: &Run) -> Result<PathBuf> {
    let worker = run.folder.join("worker");
    let state = run.folder.join("keeper");
    fs::create_dir_all(&state)?;
    let mut modules = Vec::new();
    copy_modules(&run.worker, &worker, "", &mut modules)?;
    // The first is the one whose exports count.
    modules.sort_by_key(|name| name != "entry.js");
    ensure!(
        modules.first().is_some_and(|name| name == "entry.js"),
        "`{}` is no worker: it has no entry.js",
        run.worker.display()
    );
    let modules: Vec<String> = modules
        .iter()
        .map(|name| {
            let kind = if name.ends_with(".wasm") {
                "wasm"
            } else {
                "esModule"
            };
            format!("(name = \"{name}\", {kind} = embed \"worker/{name}\")")
        })
        .collect();
    let gate = run.gate.to_string();
    let mut bindings = vec![
        format!("(name = \"GATE\", json = {})", text(&gate)),
        format!(
            "(name = \"UPSTREAM\", text = {})",
            text(&run.upstream.url())
        ),
        format!(
            "(name = \"CONTROL_PLANE\", text = {})",
            text(&run.control_plane.url())
        ),
        "(name = \"KEEPER\", durableObjectNamespace = \"Keeper\")".to_owned(),
    ];
    for (name, _) in &run.environment {
        let name = name.to_string_lossy();
        if gate.contains(&format!("\"env:{name}\"")) {
            bindings.push(format!("(name = \"{name}\", fromEnvironment = \"{name}\")"));
        }
    }
    let mut services = vec![
        "(name = \"gate\", worker = .gate)".to_owned(),
        "(name = \"network\", network = (allow = [\"public\", \"private\", \"local\"], tlsOptions = (trustBrowserCas = true)))"
            .to_owned(),
        format!(
            "(name = \"disk\", disk = (path = {}, writable = true))",
            text(state.to_str().context("the state's path is not UTF-8")?)
        ),
    ];
    if let Some(address) = run.bundles {
        bindings.push("(name = \"BUNDLES\", kvNamespace = \"bundles\")".to_owned());
        services.push(format!(
            "(name = \"bundles\", external = (address = \"{address}\", http = ()))"
        ));
    }
    let mut sockets = vec!["(name = \"http\", http = (), service = \"gate\")".to_owned()];
    let mut workers = String::new();
    if run.pass_through {
        services.push("(name = \"pass-through\", worker = .passThrough)".to_owned());
        sockets.push(
            "(name = \"pass-through\", address = \"127.0.0.1:0\", http = (), service = \"pass-through\")"
                .to_owned(),
        );
        workers = format!(
            "
const passThrough :Workerd.Worker = (
  serviceWorkerScript = {script},
  compatibilityDate = \"{COMPATIBILITY_DATE}\",
  bindings = [(name = \"UPSTREAM\", text = {upstream})],
  globalOutbound = \"network\",
);
",
            script = text(PASS_THROUGH),
            upstream = text(&run.upstream.url()),
        );
    }
    let configuration = format!(
        "using Workerd = import \"/workerd/workerd.capnp\";

const config :Workerd.Config = (
  services = [
    {services}
  ],
  sockets = [
    {sockets}
  ],
);

const gate :Workerd.Worker = (
  modules = [
    {modules}
  ],
  compatibilityDate = \"{COMPATIBILITY_DATE}\",
  bindings = [
    {bindings}
  ],
  durableObjectNamespaces = [(className = \"Keeper\", uniqueKey = \"tollgate-keeper\", enableSql = true)],
  durableObjectStorage = (localDisk = \"disk\"),
  globalOutbound = \"network\",
);
{workers}",
        sockets = sockets.join(",\n    "),
        services = services.join(",\n    "),
        modules = modules.join(",\n    "),
        bindings = bindings.join(",\n    "),
    );
    let path = run.folder.join("workerd.capnp");
    fs::write(&path, configuration)
        .with_context(|| format!("cannot write `{}`", path.display()))?;
    Ok(path)
}

/// The least that a gate could do.
const PASS_THROUGH: &str = r#"addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  event.respondWith(fetch(new Request(UPSTREAM + url.pathname + url.search, event.request)));
});"#;

/// As in `edge-worker/cloudflare/wrangler.toml`.
const COMPATIBILITY_DATE: &str = "2026-04-01";

/// Copies the modules below `from`, and notes their names.
fn copy_modules(from: &Path, to: &Path, prefix: &str, names: &mut Vec<String>) -> Result<()> {
    fs::create_dir_all(to)?;
    let entries =
        fs::read_dir(from).with_context(|| format!("cannot read `{}`", from.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let full_name = format!("{prefix}{name}");
        let target = to.join(&name);
        if entry.file_type()?.is_dir() {
            copy_modules(&entry.path(), &target, &format!("{full_name}/"), names)?;
        } else if name.ends_with(".js") || name.ends_with(".wasm") {
            fs::copy(entry.path(), target)?;
            names.push(full_name);
        }
    }
    Ok(())
}

/// In quotes. Cap'n Proto's escapes are C's, and of those JSON needs only what both have.
fn text(value: &str) -> String {
    let mut quoted = String::from("\"");
    for character in value.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}
