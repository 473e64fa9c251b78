//! One whole, with the gate in Spin or what stands in for it.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use tollgate_tests::spin_host::{App, Clock, Reuse, SpinHost, Values};
use tollgate_tests::stand_in::StandIn;
use tollgate_tests::whole::{PROVIDER_KEY, Whole, upstream, wait_for};
use tollgate_tests::{Scratch, built};
use xtask::control_plane::{ControlPlane, Workspace};
use xtask::process::Process;
use xtask::stack::{self, LOOPBACK};

pub(crate) struct Scene {
    pub(crate) gate: Gate,
    pub(crate) control_plane: ControlPlane,
    workspace: Workspace,
    provider: StandIn,
    pub(crate) token: String,
    /// What is in the stand-in's store.
    pub(crate) values: Values,
    _scratch: Scratch,
}

/// What runs the component.
pub(crate) enum Gate {
    StandIn(SpinHost),
    Spin {
        listen: SocketAddr,
        _process: Process,
    },
}

impl Gate {
    fn start(scratch: &Scratch, app: App) -> Gate {
        match std::env::var_os("SPIN_BIN") {
            None => Gate::StandIn(SpinHost::start(built::spin(), app).unwrap()),
            Some(spin) => Gate::start_spin(&spin, scratch, &app),
        }
    }

    /// As `spin.toml` says it, with the variables that an operator would set.
    fn start_spin(spin: &std::ffi::OsStr, scratch: &Scratch, app: &App) -> Gate {
        built::spin();
        // Spin does not tell which port it was given.
        let free = TcpListener::bind(LOOPBACK).unwrap();
        let listen = free.local_addr().unwrap();
        drop(free);
        let mut command = Command::new(spin);
        command
            .arg("up")
            .arg("--from")
            .arg(xtask::root().join("edge-worker/spin/spin.toml"))
            .args(["--listen", &listen.to_string()])
            .args([
                "--max-instance-reuse-count",
                &app.reuse.requests.to_string(),
            ])
            .arg("--state-dir")
            .arg(scratch.path().join("spin"));
        for (name, value) in &app.variables {
            command.env(format!("SPIN_VARIABLE_{}", name.to_uppercase()), value);
        }
        let process = Process::spawn("Spin", command, &scratch.path().join("spin.log")).unwrap();
        wait_for("Spin", || TcpStream::connect(listen).ok());
        Gate::Spin {
            listen,
            _process: process,
        }
    }

    pub(crate) fn listen(&self) -> SocketAddr {
        match self {
            Gate::StandIn(host) => host.listen,
            Gate::Spin { listen, .. } => *listen,
        }
    }
}

impl Scene {
    /// Everything up.
    pub(crate) fn start(name: &str, policy: &str, reuse: Reuse) -> Scene {
        Scene::start_as(name, policy, reuse, |_| {})
    }

    /// The same with an app of its own.
    pub(crate) fn start_as(
        name: &str,
        policy: &str,
        reuse: Reuse,
        change: impl FnOnce(&mut App),
    ) -> Scene {
        let scratch = Scratch::new(&format!("spin-{name}"));
        let provider = StandIn::start(LOOPBACK, PROVIDER_KEY).unwrap();
        let control_plane = start_control_plane(&scratch, LOOPBACK);
        let workspace = control_plane.create_workspace(name).unwrap();
        let agent = control_plane
            .create_agent(&workspace, "robot", "robots")
            .unwrap();
        control_plane.apply_policy(&workspace, policy).unwrap();
        let token = control_plane.issue_token(&workspace, &agent).unwrap();
        let upstream = upstream(&provider);
        let hosts = [
            format!("http://{}", provider.address()),
            format!("http://{}", control_plane.address),
        ];
        let secrets = stack::gate_secrets(&workspace, &upstream).into_iter();
        let mut variables: BTreeMap<String, String> = secrets
            .map(|(name, value)| {
                let name = name.to_str().unwrap().to_lowercase();
                (name, value.to_str().unwrap().to_owned())
            })
            .collect();
        let settings = stack::gate_settings(&workspace, &upstream);
        variables.insert("gate".to_owned(), settings.to_string());
        variables.insert("upstream".to_owned(), hosts[0].clone());
        variables.insert("control_plane".to_owned(), hosts[1].clone());
        let mut app = App {
            variables,
            allowed_outbound_hosts: hosts.to_vec(),
            values: Values::default(),
            reuse,
            clock: Clock::default(),
            optimised: false,
        };
        change(&mut app);
        let values = app.values.clone();
        let gate = Gate::start(&scratch, app);
        Scene {
            gate,
            control_plane,
            workspace,
            provider,
            token,
            values,
            _scratch: scratch,
        }
    }

    /// Kills the control plane and starts it again on the same state, or starts it when it is dead.
    pub(crate) fn restart_control_plane(&mut self) {
        self.control_plane.process.kill().unwrap();
        self.control_plane = start_control_plane(&self._scratch, self.control_plane.address);
    }
}

impl Whole for Scene {
    fn gate(&self) -> SocketAddr {
        self.gate.listen()
    }

    fn token(&self) -> &str {
        &self.token
    }

    fn provider(&self) -> &StandIn {
        &self.provider
    }

    fn control_plane(&self) -> (&ControlPlane, &Workspace) {
        (&self.control_plane, &self.workspace)
    }
}

impl Drop for Scene {
    /// No call may have ended in a trap: it would have taken others along.
    fn drop(&mut self) {
        if let Gate::StandIn(host) = &self.gate {
            let traps = host.traps();
            if std::thread::panicking() {
                eprintln!("the gate says: {}\n{}", host.log(), traps.join("\n"));
            } else {
                assert_eq!(traps, [] as [String; 0], "{}", host.log());
            }
        }
    }
}

fn start_control_plane(scratch: &Scratch, listen: SocketAddr) -> ControlPlane {
    let mut serve = Command::new(built::tollgate());
    serve.arg("serve");
    let log = scratch.path().join("control-plane.log");
    ControlPlane::start(serve, &scratch.path().join("data"), listen, &log).unwrap()
}
