//! `cargo xtask up`: the whole thing on this machine, with something to try.

mod tour;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use xtask::control_plane::{ControlPlane, Workspace};
use xtask::envoy::Origin;
use xtask::process::Process;
use xtask::stack::{self, EdgePlan, EdgeStack, LOOPBACK, Listen, Plan, Programs, Stack, Upstream};
use xtask::stand_in::StandIn;
use xtask::{cargo, progress, root, tools, wasm};

/// A token lives an hour; the next is there before it ends.
const TOKEN_RENEWAL: Duration = Duration::from_secs(50 * 60);

#[derive(Args)]
pub(crate) struct Options {
    /// The LLM API behind the gate, such as https://api.openai.com; a bundled stand-in when absent. Its key is read from
    /// OPENAI_API_KEY or ANTHROPIC_API_KEY and stays with the gate.
    #[arg(long, value_name = "URL")]
    upstream: Option<Origin>,
    /// Run the gate on an edge platform instead of in Envoy.
    #[arg(long, value_name = "PLATFORM")]
    edge: Option<Edge>,
    /// Use this Envoy instead of the pinned one.
    #[arg(long, env = "ENVOY", value_name = "PATH")]
    envoy: Option<PathBuf>,
    /// Where agents connect; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value_t = LOOPBACK)]
    gate: SocketAddr,
    /// Where the control plane listens.
    #[arg(long, value_name = "ADDRESS", default_value_t = LOOPBACK)]
    control_plane: SocketAddr,
    /// Where Envoy's admin interface, metrics included, listens.
    #[arg(long, value_name = "ADDRESS", default_value_t = LOOPBACK)]
    admin: SocketAddr,
    /// Where the state is kept from one run to the next.
    #[arg(long, value_name = "FOLDER", default_value_os_t = root().join(".tollgate"))]
    state: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Edge {
    /// As a Cloudflare Worker, in workerd.
    Cloudflare,
}

/// What was started.
enum Running {
    Envoy(Stack),
    Cloudflare(EdgeStack),
}

impl Running {
    fn gate(&self) -> String {
        match self {
            Running::Envoy(stack) => stack.envoy.url(""),
            Running::Cloudflare(stack) => stack.gate.url(""),
        }
    }

    /// Where metrics are, when they are anywhere.
    fn admin(&self) -> Option<SocketAddr> {
        match self {
            Running::Envoy(stack) => Some(stack.envoy.admin),
            Running::Cloudflare(_) => None,
        }
    }

    fn control_plane(&self) -> (&ControlPlane, &Workspace) {
        match self {
            Running::Envoy(stack) => (&stack.control_plane, &stack.workspace),
            Running::Cloudflare(stack) => (&stack.control_plane, &stack.workspace),
        }
    }

    /// The gate first, so that no call is let through by one that nobody hears of.
    fn processes(&mut self) -> [&mut Process; 2] {
        match self {
            Running::Envoy(stack) => [&mut stack.envoy.process, &mut stack.control_plane.process],
            Running::Cloudflare(stack) => {
                [&mut stack.gate.process, &mut stack.control_plane.process]
            }
        }
    }

    fn stop(self) -> Result<()> {
        let processes = match self {
            Running::Envoy(stack) => [stack.envoy.process, stack.control_plane.process],
            Running::Cloudflare(stack) => [stack.gate.process, stack.control_plane.process],
        };
        for process in processes {
            process.stop()?;
        }
        Ok(())
    }
}

/// What a later run finds again.
#[derive(Serialize, Deserialize)]
struct State {
    workspace: Workspace,
    agent: String,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    // Before anything is started: from here on a Ctrl-C is a message, and every way out of this function ends what it started.
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let (sender, stop) = mpsc::channel();
    thread::spawn(move || signals.forever().try_for_each(|signal| sender.send(signal)));

    let folder = options.state.as_path();
    fs::create_dir_all(folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
    let tollgate = tollgate()?;

    let (mut stand_in, upstream) = match &options.upstream {
        Some(origin) => (None, provider(origin)?),
        None => {
            let stand_in = StandIn::start(&folder.join("stand-in.log"), &[])?;
            let upstream = stand_in.upstream();
            (Some(stand_in), upstream)
        }
    };
    if stop.try_recv().is_ok() {
        bail!("interrupted");
    }
    let mut agent = String::new();
    let prepare = |control_plane: &ControlPlane| {
        let state = find_or_make_state(control_plane, folder)?;
        agent = state.agent;
        Ok(state.workspace)
    };
    let mut running = match options.edge {
        None => Running::Envoy(envoy(options, &tollgate, &upstream, prepare)?),
        Some(Edge::Cloudflare) => {
            Running::Cloudflare(cloudflare(options, &tollgate, &upstream, prepare)?)
        }
    };

    write_environment(&running, &agent, folder)?;
    progress::say("Ready", format!("agents connect to {}", running.gate()));
    println!(
        "{}",
        tour::what_to_try(
            &running.gate(),
            running.admin(),
            &upstream,
            stand_in.is_some(),
            &tollgate,
            folder
        )
    );

    let mut renewed = Instant::now();
    loop {
        match stop.recv_timeout(Duration::from_secs(1)) {
            Ok(_) | Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let stand_in = stand_in.as_mut().map(|stand_in| &mut stand_in.process);
        for process in running.processes().into_iter().chain(stand_in) {
            if let Some(status) = process.exit_status()? {
                bail!(
                    "a process ended by itself ({status}); its log is `{}`",
                    process.log().display()
                );
            }
        }
        if renewed.elapsed() > TOKEN_RENEWAL {
            write_environment(&running, &agent, folder)?;
            renewed = Instant::now();
        }
    }
    progress::say(
        "Stopping",
        format!("everything; the state stays in {}", folder.display()),
    );
    running.stop()
}

fn envoy(
    options: &Options,
    tollgate: &Path,
    upstream: &Upstream,
    prepare: impl FnOnce(&ControlPlane) -> Result<Workspace>,
) -> Result<Stack> {
    let programs = Programs {
        envoy: tools::envoy(options.envoy.as_deref())?,
        filter: wasm::filter()?,
        tollgate: tollgate.to_owned(),
    };
    progress::say("Starting", "the control plane and the gate");
    let mut plan = Plan::new(options.state.clone(), programs, upstream.clone());
    plan.listen = Listen {
        gate: options.gate,
        admin: options.admin,
        control_plane: options.control_plane,
    };
    Stack::start(plan, prepare)
}

fn cloudflare(
    options: &Options,
    tollgate: &Path,
    upstream: &Upstream,
    prepare: impl FnOnce(&ControlPlane) -> Result<Workspace>,
) -> Result<EdgeStack> {
    let plan = EdgePlan {
        folder: options.state.clone(),
        tollgate: tollgate.to_owned(),
        workerd: tools::workerd()?,
        worker: wasm::cloudflare()?,
        upstream: upstream.clone(),
        gate: options.gate,
        control_plane: options.control_plane,
        bundles: None,
        pass_through: false,
        environment: Vec::new(),
    };
    progress::say("Starting", "the control plane and the gate");
    EdgeStack::start(plan, prepare)
}

fn tollgate() -> Result<PathBuf> {
    progress::say("Building", "the control plane");
    cargo::build("tollgate", "tollgate", "", &[])
}

fn provider(origin: &Origin) -> Result<Upstream> {
    let key = |name: &str| std::env::var(name).ok().filter(|key| !key.is_empty());
    let upstream = Upstream {
        origin: origin.clone(),
        openai_key: key("OPENAI_API_KEY"),
        anthropic_key: key("ANTHROPIC_API_KEY"),
    };
    ensure!(
        upstream.openai_key.is_some() || upstream.anthropic_key.is_some(),
        "`--upstream` needs the provider's key in OPENAI_API_KEY or ANTHROPIC_API_KEY"
    );
    Ok(upstream)
}

fn find_or_make_state(control_plane: &ControlPlane, folder: &Path) -> Result<State> {
    let path = folder.join("workspace.json");
    if let Ok(text) = fs::read_to_string(&path) {
        return serde_json::from_str(&text).with_context(|| {
            format!(
                "`{}` is damaged: remove `{}` to start anew",
                path.display(),
                folder.display()
            )
        });
    }
    progress::say("Making", "a workspace, a team, an agent and a policy");
    let workspace = control_plane.create_workspace("demo")?;
    control_plane.apply_policy(&workspace, stack::DEMO_POLICY)?;
    let agent = control_plane.create_agent(&workspace, "demo", "demo")?;
    let state = State { workspace, agent };
    stack::write_private(&path, &serde_json::to_string_pretty(&state)?)?;
    Ok(state)
}

/// What the printed lines refer to, in a file so that no key stands on the screen.
fn write_environment(running: &Running, agent: &str, folder: &Path) -> Result<()> {
    let (control_plane, workspace) = running.control_plane();
    let token = control_plane.issue_token(workspace, agent)?;
    let text = format!(
        "export TOLLGATE_URL={} TOLLGATE_WORKSPACE={} TOLLGATE_KEY={} TOKEN={token}\n",
        control_plane.url(""),
        workspace.id,
        workspace.operator_key,
    );
    stack::write_private(&folder.join("env"), &text)
}
