//! One whole: control plane, workspace, agent, gate, provider.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tollgate_tests::spin_host::{App, Clock, Reuse, SpinHost, Values};
use tollgate_tests::stand_in::StandIn;
use tollgate_tests::stand_in::requests::Received;
use tollgate_tests::{Scratch, built, process};
use ureq::Agent;
use ureq::http::{HeaderMap, Request, Response};
use xtask::control_plane::{ControlPlane, Workspace};
use xtask::process::Process;
use xtask::stack::{self, LOOPBACK, Upstream};

/// How long anything may take that happens by itself.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// What the stand-in wants to see. Opens nothing.
pub(crate) const PROVIDER_KEY: &str = "provider-key-of-a-test";

/// The model of the tests: 250 nano-USD per input token, 2,000 per output token (`policy/prices`).
pub(crate) const MODEL: &str = "gpt-5-mini";

pub(crate) struct Scene {
    pub(crate) gate: Gate,
    pub(crate) control_plane: ControlPlane,
    pub(crate) workspace: Workspace,
    pub(crate) provider: StandIn,
    pub(crate) token: String,
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
        wait_for("Spin", || std::net::TcpStream::connect(listen).ok());
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

/// What a caller got.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).map(|value| value.to_str());
        value.and_then(Result::ok).unwrap_or_default()
    }

    /// Status and first reason.
    pub(crate) fn verdict(&self) -> (u16, &str) {
        (self.status, self.header("x-tollgate-reason"))
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
        let upstream = Upstream {
            origin: provider.address().into(),
            openai_key: Some(PROVIDER_KEY.to_owned()),
            anthropic_key: Some(PROVIDER_KEY.to_owned()),
        };
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
        };
        change(&mut app);
        let gate = Gate::start(&scratch, app);
        Scene {
            gate,
            control_plane,
            workspace,
            provider,
            token,
            _scratch: scratch,
        }
    }

    /// Kills the control plane and starts it again on the same state, or starts it when it is dead.
    pub(crate) fn restart_control_plane(&mut self) {
        self.control_plane.process.kill().unwrap();
        self.control_plane = start_control_plane(&self._scratch, self.control_plane.address);
    }

    /// A chat completion, as OpenAI's SDK would ask for it.
    pub(crate) fn chat(&self, prompt: &str) -> Answer {
        self.send(
            "/v1/chat/completions",
            chat_body(prompt).to_string().as_bytes(),
            &[],
        )
    }

    /// Any body with the agent's token.
    pub(crate) fn send(&self, path: &str, body: &[u8], headers: &[(&str, &str)]) -> Answer {
        answer(self.request(path, headers).body(body.to_vec()).unwrap())
    }

    pub(crate) fn request(
        &self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> ureq::http::request::Builder {
        let mut request = Request::post(format!("http://{}{path}", self.gate.listen()))
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request
    }

    /// What reached the provider.
    pub(crate) fn reached(&self) -> Vec<Received> {
        self.provider.requests()
    }

    /// An operator's `GET` below the workspace.
    pub(crate) fn ask(&self, path: &str) -> Value {
        let path = format!("/v1/workspaces/{}/{path}", self.workspace.id);
        self.control_plane
            .call(&self.workspace.operator_key, "GET", &path, "")
            .unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// The records, oldest first, once there are this many.
    pub(crate) fn records(&self, count: usize) -> Vec<Value> {
        wait_for("the records", || {
            let answer = self.ask("audit?limit=1000");
            let records = answer["records"].as_array()?;
            let records = records.iter().map(|entry| entry["record"].clone());
            Some(records.collect::<Vec<_>>()).filter(|records| records.len() >= count)
        })
    }

    /// The budget whose account ends in this, as the control plane has it.
    pub(crate) fn budget(&self, account: &str) -> Option<Value> {
        let budgets = self.ask("budgets");
        let mut budgets = budgets.as_array()?.iter();
        budgets
            .find(|budget| {
                budget["account"]
                    .as_str()
                    .is_some_and(|name| name.ends_with(account))
            })
            .cloned()
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

/// A chat completion with a bound, so that its worst case is known.
pub(crate) fn chat_body(prompt: &str) -> Value {
    json!({
        "model": MODEL,
        "max_completion_tokens": 100,
        "messages": [{"role": "user", "content": prompt}],
    })
}

/// Sends a request; every status is an answer.
pub(crate) fn answer(request: Request<Vec<u8>>) -> Answer {
    read(client().run(request).unwrap())
}

/// Reads a response to its end.
pub(crate) fn read(mut response: Response<ureq::Body>) -> Answer {
    let mut body = Vec::new();
    response
        .body_mut()
        .as_reader()
        .read_to_end(&mut body)
        .unwrap();
    Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body: String::from_utf8(body).unwrap(),
    }
}

/// A client with connections of its own.
pub(crate) fn client() -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(DEADLINE))
        .proxy(None)
        .build()
        .into()
}

/// Sends `count` requests at once, each on a connection of its own, and gives the answers.
pub(crate) fn at_once(count: usize, request: impl Fn() -> Request<Vec<u8>> + Sync) -> Vec<Answer> {
    let start = std::sync::Barrier::new(count);
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..count)
            .map(|_| {
                scope.spawn(|| {
                    let request = request();
                    start.wait();
                    answer(request)
                })
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    })
}

/// Looks until there is something.
pub(crate) fn wait_for<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    process::wait_until(what, DEADLINE, probe).unwrap_or_else(|error| panic!("{error:#}"))
}
