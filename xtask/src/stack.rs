//! Everything running together: a control plane, and a gate of one workspace, an Envoy or an edge worker, in front of one upstream.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, Workspace};
use crate::envoy::{self, Envoy, Origin};
use crate::workerd::{self, Workerd};

/// How long the gate may take to fetch its first bundle.
const BUNDLE_DEADLINE: Duration = Duration::from_secs(30);

/// A free port on the loopback.
pub const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// What `cargo xtask up` starts with.
pub const DEMO_POLICY: &str = include_str!("../demo/policy.yaml");

/// The programs of which it is made.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The `tollgate` command.
    pub tollgate: PathBuf,
    /// The Envoy filter.
    pub filter: PathBuf,
    /// Envoy.
    pub envoy: PathBuf,
}

/// Where the gate passes calls on to, and the provider's keys that it adds.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Where it is.
    pub origin: Origin,
    /// Sent with calls to OpenAI's API.
    pub openai_key: Option<String>,
    /// Sent with calls to Anthropic's API.
    pub anthropic_key: Option<String>,
}

/// Where everything listens.
#[derive(Clone, Copy, Debug)]
pub struct Listen {
    /// The gate.
    pub gate: SocketAddr,
    /// Envoy's admin interface.
    pub admin: SocketAddr,
    /// The control plane.
    pub control_plane: SocketAddr,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            gate: LOOPBACK,
            admin: LOOPBACK,
            control_plane: LOOPBACK,
        }
    }
}

/// What to start.
#[derive(Clone, Debug)]
pub struct Plan {
    /// State and logs.
    pub folder: PathBuf,
    /// What to run.
    pub programs: Programs,
    /// Where calls go.
    pub upstream: Upstream,
    /// Where it listens.
    pub listen: Listen,
    /// More for `tollgate serve`.
    pub serve_options: Vec<String>,
    /// Environment variables for control plane and Envoy alike, such as a test's clock.
    pub environment: Vec<(OsString, OsString)>,
}

/// The running whole. Dropping it ends every process.
#[derive(Debug)]
pub struct Stack {
    /// The gate. First, so that it goes first and no call is let through by a gate that nobody hears of.
    pub envoy: Envoy,
    /// The control plane.
    pub control_plane: ControlPlane,
    /// The gate's workspace.
    pub workspace: Workspace,
    plan: Plan,
}

impl Stack {
    /// Starts the control plane on the state in the plan's folder, has `prepare` give it a workspace, starts the gate and waits for
    /// its bundle.
    ///
    /// # Errors
    /// When something does not come up; with the end of its log.
    pub fn start(
        mut plan: Plan,
        prepare: impl FnOnce(&ControlPlane) -> Result<Workspace>,
    ) -> Result<Self> {
        fs::create_dir_all(&plan.folder)
            .with_context(|| format!("cannot create `{}`", plan.folder.display()))?;
        let control_plane = plan.start_control_plane()?;
        // A later start has to be where the gate looks for it.
        plan.listen.control_plane = control_plane.address;
        let workspace = prepare(&control_plane)?;
        let envoy = plan.start_gate(&workspace)?;
        plan.listen.gate = envoy.listen;
        Ok(Self {
            envoy,
            control_plane,
            workspace,
            plan,
        })
    }

    /// Kills the control plane and starts it again on the same state, or starts it when it is dead.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart_control_plane(&mut self) -> Result<()> {
        self.control_plane.process.kill()?;
        self.control_plane = self.plan.start_control_plane()?;
        Ok(())
    }

    /// Kills Envoy and starts it again, or starts it when it is dead.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart_gate(&mut self) -> Result<()> {
        self.envoy.process.kill()?;
        self.envoy = self.plan.start_gate(&self.workspace)?;
        Ok(())
    }
}

impl Plan {
    /// Everything on free ports, with nothing special.
    #[must_use]
    pub fn new(folder: PathBuf, programs: Programs, upstream: Upstream) -> Self {
        let (listen, serve_options, environment) = (Listen::default(), Vec::new(), Vec::new());
        Self {
            folder,
            programs,
            upstream,
            listen,
            serve_options,
            environment,
        }
    }

    fn start_control_plane(&self) -> Result<ControlPlane> {
        let mut command = Command::new(&self.programs.tollgate);
        command
            .arg("serve")
            .args(&self.serve_options)
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        let log = self.folder.join("control-plane.log");
        ControlPlane::start(
            command,
            &self.folder.join("data"),
            self.listen.control_plane,
            &log,
        )
    }

    fn start_gate(&self, workspace: &Workspace) -> Result<Envoy> {
        let settings = envoy::Settings {
            listen: self.listen.gate,
            admin: self.listen.admin,
            filter: self.programs.filter.clone(),
            configuration: gate_settings(workspace, &self.upstream),
            upstream: self.upstream.origin.clone(),
            control_plane: self.listen.control_plane.into(),
            access_log: self.folder.join("access.log"),
        };
        let run = envoy::Run {
            binary: self.programs.envoy.clone(),
            folder: self.folder.clone(),
            concurrency: 2,
            environment: [
                gate_secrets(workspace, &self.upstream),
                self.environment.clone(),
            ]
            .concat(),
        };
        let mut envoy = Envoy::start(&run, &settings.render()?)?;
        envoy.wait_for_bundle(BUNDLE_DEADLINE)?;
        Ok(envoy)
    }
}

/// What an edge worker in front of a control plane is started with.
#[derive(Clone, Debug)]
pub struct EdgePlan {
    /// State and logs.
    pub folder: PathBuf,
    /// The `tollgate` command.
    pub tollgate: PathBuf,
    /// workerd.
    pub workerd: PathBuf,
    /// The worker's files.
    pub worker: PathBuf,
    /// Where calls go.
    pub upstream: Upstream,
    /// Where the gate listens.
    pub gate: SocketAddr,
    /// Where the control plane listens.
    pub control_plane: SocketAddr,
    /// Where cold isolates find their bundle.
    pub bundles: Option<SocketAddr>,
    /// Whether a worker that only passes calls on stands beside the gate.
    pub pass_through: bool,
    /// Environment variables for control plane and workerd alike, such as a test's clock.
    pub environment: Vec<(OsString, OsString)>,
}

/// The running whole with an edge worker as its gate. Dropping it ends every process.
#[derive(Debug)]
pub struct EdgeStack {
    /// The gate.
    pub gate: Workerd,
    /// The control plane.
    pub control_plane: ControlPlane,
    /// The gate's workspace.
    pub workspace: Workspace,
    plan: EdgePlan,
}

impl EdgeStack {
    /// As [`Stack::start`].
    ///
    /// # Errors
    /// When something does not come up; with the end of its log.
    pub fn start(
        mut plan: EdgePlan,
        prepare: impl FnOnce(&ControlPlane) -> Result<Workspace>,
    ) -> Result<Self> {
        fs::create_dir_all(&plan.folder)
            .with_context(|| format!("cannot create `{}`", plan.folder.display()))?;
        let control_plane = plan.start_control_plane()?;
        plan.control_plane = control_plane.address;
        let workspace = prepare(&control_plane)?;
        let gate = plan.start_gate(&workspace)?;
        plan.gate = gate.listen;
        Ok(Self {
            gate,
            control_plane,
            workspace,
            plan,
        })
    }

    /// Kills the control plane and starts it again on the same state, or starts it when it is dead.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart_control_plane(&mut self) -> Result<()> {
        self.control_plane.process.kill()?;
        self.control_plane = self.plan.start_control_plane()?;
        Ok(())
    }

    /// Kills workerd and starts it again on the same state, or starts it when it is dead.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart_gate(&mut self) -> Result<()> {
        self.gate.process.kill()?;
        self.gate = self.plan.start_gate(&self.workspace)?;
        Ok(())
    }
}

impl EdgePlan {
    fn start_control_plane(&self) -> Result<ControlPlane> {
        let mut command = Command::new(&self.tollgate);
        command
            .arg("serve")
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        ControlPlane::start(
            command,
            &self.folder.join("data"),
            self.control_plane,
            &self.folder.join("control-plane.log"),
        )
    }

    fn start_gate(&self, workspace: &Workspace) -> Result<Workerd> {
        let mut gate = Workerd::start(&workerd::Run {
            binary: self.workerd.clone(),
            worker: self.worker.clone(),
            folder: self.folder.clone(),
            listen: self.gate,
            gate: gate_settings(workspace, &self.upstream),
            upstream: self.upstream.origin.clone(),
            control_plane: self.control_plane.into(),
            bundles: self.bundles,
            pass_through: self.pass_through,
            environment: [
                gate_secrets(workspace, &self.upstream),
                self.environment.clone(),
            ]
            .concat(),
        })?;
        gate.wait_for_bundle(BUNDLE_DEADLINE)?;
        Ok(gate)
    }
}

/// The gate's settings. They name its secrets, see [`gate_secrets`].
#[must_use]
pub fn gate_settings(workspace: &Workspace, upstream: &Upstream) -> Value {
    let mut keys = json!({});
    if upstream.openai_key.is_some() {
        keys["openai"] = "env:OPENAI_API_KEY".into();
    }
    if upstream.anthropic_key.is_some() {
        keys["anthropic"] = "env:ANTHROPIC_API_KEY".into();
    }
    json!({
        "workspace": workspace.id,
        "trust": workspace.trust,
        "enrolment_key": "env:TOLLGATE_ENROLMENT_KEY",
        "upstream": {"host": upstream.origin.host, "llm": true, "keys": keys},
    })
}

/// The environment that holds the secrets which the gate's settings name.
#[must_use]
pub fn gate_secrets(workspace: &Workspace, upstream: &Upstream) -> Vec<(OsString, OsString)> {
    let named = [
        ("TOLLGATE_ENROLMENT_KEY", Some(&workspace.enrolment_key)),
        ("OPENAI_API_KEY", upstream.openai_key.as_ref()),
        ("ANTHROPIC_API_KEY", upstream.anthropic_key.as_ref()),
    ];
    named
        .into_iter()
        .filter_map(|(name, value)| Some((name.into(), value?.into())))
        .collect()
}

/// Writes a file that only its owner can read, old or new and never half.
///
/// # Errors
/// When it cannot be written.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    let staged = path.with_extension("part");
    let write = || -> std::io::Result<()> {
        let _ = fs::remove_file(&staged);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&staged)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&staged, path)
    };
    write().with_context(|| format!("cannot write `{}`", path.display()))
}
