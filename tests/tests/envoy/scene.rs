//! One whole, with the gate in Envoy.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use axum::body::Bytes;
use serde_json::Value;
use tollgate_tests::stand_in::StandIn;
use tollgate_tests::whole::{PROVIDER_KEY, Whole, upstream};
use tollgate_tests::{Scratch, built};
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use xtask::control_plane::{ControlPlane, Workspace};
use xtask::envoy::{self, Run};
use xtask::stack::{LOOPBACK, Plan, Programs, Stack};

pub(crate) struct Scene {
    pub(crate) stack: Stack,
    pub(crate) provider: StandIn,
    pub(crate) agent: String,
    pub(crate) token: String,
    scratch: Scratch,
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

    /// A file of this scene's.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }
}

impl Whole for Scene {
    fn gate(&self) -> SocketAddr {
        self.stack.envoy.listen
    }

    fn token(&self) -> &str {
        &self.token
    }

    fn provider(&self) -> &StandIn {
        &self.provider
    }

    fn control_plane(&self) -> (&ControlPlane, &Workspace) {
        (&self.stack.control_plane, &self.stack.workspace)
    }
}

fn programs() -> Programs {
    Programs {
        tollgate: built::tollgate().to_owned(),
        filter: built::filter().to_owned(),
        envoy: built::envoy().to_owned(),
    }
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
        // RFC 9113 §6.5.2: what every stream begins with.
        Http2::open_with(scene, 65_535).await
    }

    /// …whose streams take this many bytes of an answer's body before they ask for more.
    pub(crate) async fn open_with(scene: &Scene, window: u32) -> anyhow::Result<Http2> {
        let connection = tokio::net::TcpStream::connect(scene.stack.envoy.listen).await?;
        let mut settings = h2::client::Builder::new();
        let (client, connection) = settings
            .initial_window_size(window)
            .handshake(connection)
            .await?;
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
