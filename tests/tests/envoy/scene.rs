//! One whole: control plane, workspace, agent, gate, provider.

use std::fs;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use serde_json::{Value, json};
use tollgate_tests::stand_in::StandIn;
use tollgate_tests::stand_in::requests::Received;
use tollgate_tests::{Scratch, built, process};
use ureq::Agent;
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use xtask::envoy::{self, Run};
use xtask::stack::{LOOPBACK, Plan, Programs, Stack, Upstream};

/// How long anything may take that happens by itself.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// What the stand-in wants to see. Opens nothing.
pub(crate) const PROVIDER_KEY: &str = "provider-key-of-a-test";

/// The model of the tests: 250 nano-USD per input token, 2,000 per output token (`policy/prices`).
pub(crate) const MODEL: &str = "gpt-5-mini";

pub(crate) struct Scene {
    pub(crate) stack: Stack,
    pub(crate) provider: StandIn,
    pub(crate) agent: String,
    pub(crate) token: String,
    scratch: Scratch,
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

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// Status and first reason.
    pub(crate) fn verdict(&self) -> (u16, &str) {
        (self.status, self.header("x-tollgate-reason"))
    }
}

impl Scene {
    /// Everything up, the policy in the gate.
    pub(crate) fn start(name: &str, policy: &str) -> Scene {
        Scene::start_as(name, policy, |_| {})
    }

    /// …with changes to the usual plan.
    pub(crate) fn start_as(name: &str, policy: &str, change: impl FnOnce(&mut Plan)) -> Scene {
        let scratch = Scratch::new(name);
        let provider = StandIn::start(LOOPBACK, PROVIDER_KEY).unwrap();
        let mut agent = String::new();
        let mut plan = Plan::new(scratch.path().to_owned(), programs(), upstream(&provider));
        change(&mut plan);
        let stack = Stack::start(plan, |control_plane| {
            let workspace = control_plane.create_workspace(name)?;
            agent = control_plane.create_agent(&workspace, "robot", "robots")?;
            control_plane.apply_policy(&workspace, policy)?;
            Ok(workspace)
        })
        .unwrap_or_else(|error| panic!("{error:#}"));
        let token = stack
            .control_plane
            .issue_token(&stack.workspace, &agent)
            .unwrap();
        Scene {
            stack,
            provider,
            agent,
            token,
            scratch,
        }
    }

    /// A chat completion, as OpenAI's SDK would ask for it.
    pub(crate) fn chat(&self, prompt: &str, headers: &[(&str, &str)]) -> Answer {
        self.post("/v1/chat/completions", &chat_body(prompt), headers)
    }

    /// A JSON body with the agent's token.
    pub(crate) fn post(&self, path: &str, body: &Value, headers: &[(&str, &str)]) -> Answer {
        self.send(path, body.to_string().as_bytes(), headers)
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
        let mut request = Request::post(self.stack.envoy.url(path))
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
        let Stack {
            control_plane,
            workspace,
            ..
        } = &self.stack;
        let path = format!("/v1/workspaces/{}/{path}", workspace.id);
        control_plane
            .call(&workspace.operator_key, "GET", &path, "")
            .unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// All records, by the time their calls began, once there are this many. (The journal has them worker by worker.)
    pub(crate) fn records(&self, count: usize) -> Vec<Value> {
        wait_for("the records", || {
            let answer = self.ask("audit?limit=1000");
            let entries = answer["records"].as_array()?.iter();
            let mut records: Vec<_> = entries.map(|entry| entry["record"].clone()).collect();
            records.sort_by_key(|record| record["at_ms"].as_i64());
            Some(records).filter(|records| records.len() >= count)
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

    /// A file of this scene's.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }
}

fn programs() -> Programs {
    Programs {
        tollgate: built::tollgate().to_owned(),
        filter: built::filter().to_owned(),
        envoy: built::envoy().to_owned(),
    }
}

pub(crate) fn upstream(provider: &StandIn) -> Upstream {
    Upstream {
        origin: provider.address().into(),
        openai_key: Some(PROVIDER_KEY.to_owned()),
        anthropic_key: Some(PROVIDER_KEY.to_owned()),
    }
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

/// A chat completion over HTTP/2 without a `content-length`: status and body.
pub(crate) fn over_http2(
    scene: &Scene,
    body: &str,
    with_trailers: bool,
) -> anyhow::Result<(u16, String)> {
    let call = async {
        let mut connection = Http2::open(scene).await?;
        let mut response = connection.call(body, &[], with_trailers).await?;
        let mut answer = Vec::new();
        while let Some(chunk) = next_chunk(&mut response).await {
            answer.extend_from_slice(&chunk?);
        }
        anyhow::Ok((response.status().as_u16(), String::from_utf8(answer)?))
    };
    runtime()?.block_on(call)
}

/// For tests that hold several streams at once.
pub(crate) fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// One connection, all of whose streams go to one of Envoy's workers.
pub(crate) struct Http2 {
    client: h2::client::SendRequest<Bytes>,
    token: String,
}

impl Http2 {
    pub(crate) async fn open(scene: &Scene) -> anyhow::Result<Http2> {
        let connection = tokio::net::TcpStream::connect(scene.stack.envoy.listen).await?;
        let (client, connection) = h2::client::handshake(connection).await?;
        tokio::spawn(connection);
        Ok(Http2 {
            client: client.ready().await?,
            token: scene.token.clone(),
        })
    }

    /// A chat completion; gives its head.
    pub(crate) async fn call(
        &mut self,
        body: &str,
        headers: &[(&str, &str)],
        with_trailers: bool,
    ) -> anyhow::Result<Response<h2::RecvStream>> {
        let mut request = Request::post("http://gate/v1/chat/completions")
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (response, mut stream) = self.client.send_request(request.body(())?, false)?;
        // An answer may come, and end the stream, before all of the body has gone.
        let _ = stream.send_data(Bytes::copy_from_slice(body.as_bytes()), !with_trailers);
        if with_trailers {
            let trailers = HeaderMap::from_iter([(
                HeaderName::from_static("x-checksum"),
                HeaderValue::from_static("0"),
            )]);
            let _ = stream.send_trailers(trailers);
        }
        Ok(response.await?)
    }
}

/// What comes next of an answer; `None` at its end.
pub(crate) async fn next_chunk(
    response: &mut Response<h2::RecvStream>,
) -> Option<Result<Bytes, h2::Error>> {
    let body = response.body_mut();
    let chunk = body.data().await?;
    if let Ok(chunk) = &chunk {
        let _ = body.flow_control().release_capacity(chunk.len());
    }
    Some(chunk)
}

/// Looks until there is something.
pub(crate) fn wait_for<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    process::wait_until(what, DEADLINE, probe).unwrap_or_else(|error| panic!("{error:#}"))
}

/// The UTC minute it is, for tests whose limits count by the minute.
pub(crate) fn minute() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap().as_secs() / 60
}

/// Runs `attempt` until no minute has begun in its middle.
pub(crate) fn within_a_minute<T>(mut attempt: impl FnMut() -> T) -> T {
    let begun = Instant::now();
    loop {
        let before = minute();
        let result = attempt();
        if minute() == before {
            return result;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(120),
            "never within one minute"
        );
    }
}

/// Another Envoy in a scene, with this gate.
pub(crate) fn alone(scene: &Scene, gate: Value) -> (envoy::Settings, Run) {
    let folder = scene.file("alone");
    fs::create_dir_all(&folder).unwrap();
    let settings = envoy::Settings {
        listen: LOOPBACK,
        admin: LOOPBACK,
        filter: built::filter().to_owned(),
        configuration: gate,
        upstream: scene.provider.address().into(),
        control_plane: scene.stack.control_plane.address.into(),
        access_log: folder.join("access.log"),
    };
    let run = Run {
        binary: built::envoy().to_owned(),
        folder,
        concurrency: 2,
        environment: Vec::new(),
    };
    (settings, run)
}
