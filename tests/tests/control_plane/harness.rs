//! A control plane in this process, a workspace in it, and a gate that speaks for itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use serde_json::{Value, json};
use sqlx::Connection as _;
use tollgate_control_plane::{ControlPlane, Settings};
use tollgate_engine::envelope::{self, LEASES_TYPE, PublicKey};
use tollgate_engine::journal::{self, Position, SealKey};
use tollgate_engine::lease::{Answer, Ask, Request as LeaseRequest};
use tollgate_engine::time::Time;
use tollgate_tests::Scratch;
use tower::ServiceExt as _;

/// 2026-11-20T08:00:00Z. A day boundary in UTC is 57,600 s away.
pub(crate) const START: i64 = 1_795_161_600;

pub(crate) struct Plane {
    pub(crate) scratch: Scratch,
    pub(crate) state: ControlPlane,
    settings: Settings,
    app: Router,
    now: Arc<AtomicI64>,
    names: AtomicU32,
}

pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// The body, which must be JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!(
                "{}: {error}: {}",
                self.status,
                String::from_utf8_lossy(&self.body)
            )
        })
    }

    /// The last word of a problem's type.
    pub(crate) fn problem(&self) -> String {
        assert_eq!(
            self.headers["content-type"], "application/problem+json",
            "{}",
            self.status
        );
        let kind = self.json()["type"].as_str().unwrap().to_owned();
        kind.strip_prefix("urn:tollgate:problem:")
            .unwrap()
            .to_owned()
    }
}

impl Plane {
    pub(crate) async fn new() -> Plane {
        Plane::with(Settings::default()).await
    }

    pub(crate) async fn with(settings: Settings) -> Plane {
        let scratch = Scratch::new("control-plane");
        let now = Arc::new(AtomicI64::new(START * 1_000_000));
        let clock = now.clone();
        let settings = Settings {
            clock: Arc::new(move || Time::from_micros(clock.load(Ordering::SeqCst))),
            ..settings
        };
        let opened = ControlPlane::open(scratch.path(), settings.clone()).await;
        let state = opened.unwrap();
        Plane {
            app: tollgate_control_plane::app(state.clone()),
            scratch,
            state,
            settings,
            now,
            names: AtomicU32::new(0),
        }
    }

    /// Stops it, and starts it again so many seconds later.
    pub(crate) async fn restarted(self, after_secs: i64) -> Plane {
        // Whoever has a copy of its state has the data directory too.
        drop(self.app);
        self.state.close().await;
        self.now.fetch_add(after_secs * 1_000_000, Ordering::SeqCst);
        let opened = ControlPlane::open(self.scratch.path(), self.settings.clone()).await;
        let state = opened.unwrap();
        Plane {
            app: tollgate_control_plane::app(state.clone()),
            state,
            ..self
        }
    }

    pub(crate) fn now(&self) -> Time {
        Time::from_micros(self.now.load(Ordering::SeqCst))
    }

    pub(crate) fn advance(&self, secs: i64) {
        self.now.fetch_add(secs * 1_000_000, Ordering::SeqCst);
    }

    /// Changes the database behind the control plane's back, for what no route can bring about.
    pub(crate) async fn execute(&self, statement: &'static str) {
        let mut database = self.database().await;
        sqlx::query(statement).execute(&mut database).await.unwrap();
        database.close().await.unwrap();
    }

    /// Its database, as another program has it.
    pub(crate) async fn database(&self) -> sqlx::SqliteConnection {
        let file = self.scratch.path().join("tollgate.db");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
        sqlx::SqliteConnection::connect_with(&options)
            .await
            .unwrap()
    }

    /// A name not used before.
    pub(crate) fn name(&self) -> String {
        format!("n{}", self.names.fetch_add(1, Ordering::SeqCst))
    }

    pub(crate) fn root_key(&self) -> String {
        let key = std::fs::read_to_string(self.scratch.path().join("root.key")).unwrap();
        key.trim().to_owned()
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Reply {
        let response = self.app.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        Reply {
            status: parts.status,
            headers: parts.headers,
            body: to_bytes(body, usize::MAX).await.unwrap().to_vec(),
        }
    }

    /// A call with a key (empty: none) and a body of JSON (null: none).
    pub(crate) async fn call(&self, key: &str, method: &str, path: &str, body: Value) -> Reply {
        let mut request = Request::builder().method(method).uri(path);
        if !key.is_empty() {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let body = match body {
            Value::Null => Body::empty(),
            body => {
                request = request.header("content-type", "application/json");
                Body::from(body.to_string())
            }
        };
        self.send(request.body(body).unwrap()).await
    }

    pub(crate) async fn get(&self, key: &str, path: &str) -> Reply {
        self.call(key, "GET", path, Value::Null).await
    }

    /// Bytes as they are.
    pub(crate) async fn bytes(&self, key: &str, method: &str, path: &str, body: &[u8]) -> Reply {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {key}"))
            .body(Body::from(body.to_vec()));
        self.send(request.unwrap()).await
    }

    pub(crate) async fn workspace(&self) -> Workspace<'_> {
        let made = self
            .call(
                &self.root_key(),
                "POST",
                "/v1/workspaces",
                json!({"name": self.name(), "guardrails": false}),
            )
            .await;
        assert_eq!(made.status, 201);
        let made = made.json();
        Workspace {
            plane: self,
            id: text(&made["id"]),
            operator: text(&made["operator"]["key"]),
        }
    }
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

pub(crate) struct Workspace<'p> {
    pub(crate) plane: &'p Plane,
    pub(crate) id: String,
    pub(crate) operator: String,
}

impl Workspace<'_> {
    pub(crate) fn path(&self, rest: &str) -> String {
        format!("/v1/workspaces/{}{rest}", self.id)
    }

    pub(crate) async fn get(&self, rest: &str) -> Value {
        let reply = self.plane.get(&self.operator, &self.path(rest)).await;
        assert_eq!(reply.status, 200, "{rest}");
        reply.json()
    }

    pub(crate) async fn post(&self, rest: &str, body: Value) -> Reply {
        let path = self.path(rest);
        self.plane.call(&self.operator, "POST", &path, body).await
    }

    /// Applies policies and gives the answer.
    pub(crate) async fn apply(&self, policy: &str) -> Reply {
        let path = self.path("/policies?name=test");
        let body = policy.as_bytes();
        self.plane.bytes(&self.operator, "PUT", &path, body).await
    }

    pub(crate) async fn agent(&self, team: &str) -> String {
        let name = self.plane.name();
        let body = json!({"name": name, "team": team, "level": "L2"});
        let agent = self.post("/agents", body).await;
        assert_eq!(agent.status, 201);
        text(&agent.json()["id"])
    }

    pub(crate) async fn gate(&self) -> Gate<'_> {
        let made = self
            .post("/gates", json!({"name": self.plane.name()}))
            .await;
        assert_eq!(made.status, 201);
        let made = made.json();
        Gate {
            workspace: self,
            id: text(&made["id"]),
            key: text(&made["key"]),
            trust: serde_json::from_value(made["trust"].clone()).unwrap(),
        }
    }
}

/// What is left of a workspace and its gate when their control plane stops: they are the same with the next.
pub(crate) struct Known {
    workspace: (String, String),
    gate: (String, String, Vec<PublicKey>),
}

impl Known {
    pub(crate) fn of(workspace: &Workspace<'_>, gate: &Gate<'_>) -> Known {
        Known {
            workspace: (workspace.id.clone(), workspace.operator.clone()),
            gate: (gate.id.clone(), gate.key.clone(), gate.trust.clone()),
        }
    }

    pub(crate) fn workspace<'p>(&self, plane: &'p Plane) -> Workspace<'p> {
        let (id, operator) = self.workspace.clone();
        Workspace {
            plane,
            id,
            operator,
        }
    }

    pub(crate) fn gate<'p>(&self, workspace: &'p Workspace<'p>) -> Gate<'p> {
        let (id, key, trust) = self.gate.clone();
        Gate {
            workspace,
            id,
            key,
            trust,
        }
    }
}

/// A gate's enrolment.
pub(crate) struct Gate<'p> {
    pub(crate) workspace: &'p Workspace<'p>,
    pub(crate) id: String,
    pub(crate) key: String,
    pub(crate) trust: Vec<PublicKey>,
}

/// The name of the holder with this number.
pub(crate) fn holder(number: u32) -> String {
    format!("h-{number:032x}")
}

pub(crate) fn ask(account: &str, window_start: i64, seq: u64, settled: u64, want: u64) -> Ask {
    Ask {
        account: tollgate_engine::ledger::Account::parse(account).unwrap(),
        window_start,
        seq,
        epoch: 0,
        granted: 0,
        returned: 0,
        settled,
        reserved: 0,
        want,
        ahead: false,
    }
}

impl Gate<'_> {
    pub(crate) async fn lease(
        &self,
        holder: &str,
        epoch: u64,
        asks: Vec<Ask>,
    ) -> Result<Answer, Reply> {
        let request = LeaseRequest {
            holder: holder.to_owned(),
            epoch,
            revision: 1,
            asks: asks.into_iter().map(|ask| Ask { epoch, ..ask }).collect(),
        };
        let workspace = self.workspace;
        let reply = workspace
            .plane
            .call(
                &self.key,
                "POST",
                &workspace.path("/gate/leases"),
                serde_json::to_value(&request).unwrap(),
            )
            .await;
        if reply.status != 200 {
            return Err(reply);
        }
        let payload = envelope::open(&reply.body, LEASES_TYPE, &self.trust).unwrap();
        let answer: Answer = serde_json::from_slice(&payload).unwrap();
        assert!(answer.is_for(&workspace.id, holder, workspace.plane.now()));
        Ok(answer)
    }

    /// The answer, which must be one.
    pub(crate) async fn leased(&self, holder: &str, epoch: u64, asks: Vec<Ask>) -> Answer {
        match self.lease(holder, epoch, asks).await {
            Ok(answer) => answer,
            Err(reply) => panic!("{}: {}", reply.status, reply.json()),
        }
    }

    pub(crate) async fn submit(&self, batch: &[u8]) -> Reply {
        let path = self.workspace.path("/gate/audit");
        let plane = self.workspace.plane;
        plane.bytes(&self.key, "POST", &path, batch).await
    }

    pub(crate) fn journal(&self, holder: &str, epoch: u64) -> Journal {
        Journal {
            workspace: self.workspace.id.clone(),
            key: SealKey::derive(&SealKey::root(&self.key), holder),
            holder: holder.to_owned(),
            epoch,
            position: Position::start(&self.workspace.id, holder, epoch),
        }
    }
}

/// What a gate keeps of its journal.
#[derive(Clone)]
pub(crate) struct Journal {
    pub(crate) workspace: String,
    pub(crate) key: SealKey,
    pub(crate) holder: String,
    pub(crate) epoch: u64,
    pub(crate) position: Position,
}

impl Journal {
    /// Seals records, each `{"id": …}`.
    pub(crate) fn seal(&mut self, ids: &[&str]) -> Vec<u8> {
        let records: Vec<Value> = ids.iter().map(|id| json!({"id": id})).collect();
        self.seal_records(&records, 0)
    }

    pub(crate) fn seal_records(&mut self, records: &[Value], dropped: u64) -> Vec<u8> {
        let records: Vec<Vec<u8>> = records
            .iter()
            .map(|record| record.to_string().into_bytes())
            .collect();
        journal::seal(
            &self.key,
            &self.workspace,
            &self.holder,
            self.epoch,
            &mut self.position,
            &records,
            dropped,
            Time::from_secs(START),
        )
    }
}
