//! The control plane as it is: the service without its socket, on its database, at the simulator's time.
//!
//! What has random names there (the workspace, the agents, a gate's enrolment) gets those of the simulator, behind the service's back.

use super::{
    plane::{AGENTS, ENROLMENT_KEY, Plane, WORKSPACE, token},
    scenario::Limits,
};
use crate::Scratch;
use axum::{
    body::{Body, to_bytes},
    http::Request,
};
use ed25519_dalek::SigningKey;
use serde_json::{Value, json};
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};
use tokio::runtime::{Builder, Runtime};
use tollgate_control_plane::{ControlPlane, Settings, leases::rules};
use tollgate_engine::{
    bytes::{from_base64, to_hex},
    envelope::PublicKey,
    journal::SealKey,
    time::Time,
    upkeep::{Errand, RECALL},
};
use tower::ServiceExt as _;

/// A control plane on SQLite.
pub(super) struct Real {
    runtime: Runtime,
    scratch: Scratch,
    service: Option<ControlPlane>,
    settings: Settings,
    now_us: Arc<AtomicI64>,
    root: String,
    operator: String,
    gate: String,
    trust: Vec<PublicKey>,
    backed_up: bool,
    recalls: u64,
}

impl Real {
    pub(super) fn new(term_secs: u32, now: Time) -> Real {
        let now_us = Arc::new(AtomicI64::new(now.micros()));
        let clock = Arc::clone(&now_us);
        let settings = Settings {
            lease_term_secs: term_secs,
            clock: Arc::new(move || Time::from_micros(clock.load(Ordering::SeqCst))),
            // A run lasts hours, and nothing signs bundles anew in it.
            bundle_ttl_secs: 2 * 86_400,
            ..Settings::default()
        };
        let mut real = Real {
            runtime: must(Builder::new_current_thread().enable_all().build()),
            scratch: Scratch::new("simulate"),
            service: None,
            settings,
            now_us,
            root: String::new(),
            operator: String::new(),
            gate: String::new(),
            trust: Vec::new(),
            backed_up: false,
            recalls: 0,
        };
        real.start();
        real.enrol(now);
        real
    }

    fn start(&mut self) {
        self.recalls = 0;
        let opened = ControlPlane::open(self.scratch.path(), self.settings.clone());
        self.service = Some(must(self.runtime.block_on(opened)));
    }

    fn stop(&mut self) {
        if let Some(service) = self.service.take() {
            self.runtime.block_on(service.close());
        }
    }

    fn enrol(&mut self, now: Time) {
        let made = now.millis();
        self.execute(&format!(
            "INSERT INTO workspaces (id, name, created_ms) VALUES ('{WORKSPACE}', 'simulated', {made})"
        ));
        for (agent, team) in AGENTS {
            self.execute(&format!(
                "INSERT INTO agents (workspace, id, name, team, level, created_ms) VALUES ('{WORKSPACE}', '{agent}', '{agent}', '{team}', 'L0', {made})"
            ));
        }
        let root = must(fs::read_to_string(self.scratch.path().join("root.key")));
        self.root = root.trim().to_owned();
        let workspace = format!("/v1/workspaces/{WORKSPACE}");
        let post = |real: &Real, key: &str, path: &str| -> Value {
            let body = json!({"name": "simulator"}).to_string();
            let json = [("content-type", "application/json")];
            let (status, answer) = real.call(key, "POST", path, &json, body.as_bytes());
            assert_eq!(status, 201, "{}", String::from_utf8_lossy(&answer));
            must(serde_json::from_slice(&answer))
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let operator = post(self, &self.root, &format!("{workspace}/operators"));
        self.operator = text(&operator["key"]);
        let gate = post(self, &self.operator, &format!("{workspace}/gates"));
        self.gate = text(&gate["key"]);
        self.trust = must(serde_json::from_value(gate["trust"].clone()));
        let seal_root = to_hex(&SealKey::root(ENROLMENT_KEY));
        self.execute(&format!("UPDATE gates SET seal_root = x'{seal_root}'"));
    }

    /// Changes the database behind the service's back.
    fn execute(&self, statement: &str) {
        let options = SqliteConnectOptions::new().filename(self.database());
        must(self.runtime.block_on(async {
            let mut database = SqliteConnection::connect_with(&options).await?;
            sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned()))
                .execute(&mut database)
                .await?;
            database.close().await
        }));
    }

    fn database(&self) -> PathBuf {
        self.scratch.path().join("tollgate.db")
    }

    fn copy(&self) -> PathBuf {
        self.scratch.path().join("backup.db")
    }

    fn call(
        &self,
        key: &str,
        method: &str,
        path: &str,
        headers: &[(&'static str, &str)],
        body: &[u8],
    ) -> (u16, Vec<u8>) {
        let Some(service) = &self.service else {
            return (0, Vec::new());
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {key}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = must(request.body(Body::from(body.to_vec())));
        let app = tollgate_control_plane::app(service.clone());
        self.runtime.block_on(async {
            let response = match app.oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            let status = response.status().as_u16();
            let body = must(to_bytes(response.into_body(), usize::MAX).await);
            (status, body.to_vec())
        })
    }
}

impl Plane for Real {
    fn publish(&mut self, limits: &Limits, now: Time) {
        self.now_us.store(now.micros(), Ordering::SeqCst);
        let path = format!("/v1/workspaces/{WORKSPACE}/policies");
        let policy = limits.policy();
        let (status, answer) = self.call(&self.operator, "PUT", &path, &[], policy.as_bytes());
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
    }

    fn answer(&mut self, errand: &Errand, now: Time) -> (u16, Vec<u8>) {
        self.now_us.store(now.micros(), Ordering::SeqCst);
        // Whom nothing has changed for waits in the simulator's time, not here.
        let path = match errand.path.split_once("&wait=") {
            Some((path, _)) => path,
            None => &errand.path,
        };
        let headers: Vec<(&'static str, &str)> = errand
            .headers
            .iter()
            .filter(|(name, _)| *name != "authorization")
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        match self.call(&self.gate, errand.method, path, &headers, &errand.body) {
            // To who does not wait the service says so at once; who does hears of it from the world.
            (RECALL, body) => (304, body),
            answer => answer,
        }
    }

    fn recalled(&mut self) -> bool {
        let (status, metrics) = self.call(&self.root, "GET", "/metrics", &[], &[]);
        assert!(status == 200 || self.service.is_none(), "{status}");
        let metrics = String::from_utf8_lossy(&metrics);
        let mut lines = metrics.lines();
        let counted = lines.find_map(|line| line.strip_prefix("tollgate_recalls_total "));
        let recalls = counted.and_then(|count| count.parse().ok()).unwrap_or(0);
        // The service counts from its own start.
        let before = std::mem::replace(&mut self.recalls, recalls);
        recalls > before
    }

    fn back_up(&mut self) {
        let copy = self.copy();
        let _ = fs::remove_file(&copy);
        self.execute(&format!("VACUUM INTO '{}'", copy.display()));
        self.backed_up = true;
    }

    fn restore(&mut self, now: Time) -> Option<i64> {
        if !self.backed_up {
            return None;
        }
        self.now_us.store(now.micros(), Ordering::SeqCst);
        self.stop();
        let database = self.database();
        for part in ["-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{part}", database.display()));
        }
        must(fs::copy(self.copy(), &database));
        self.start();
        Some(rules::learning_ms(
            i64::from(self.settings.lease_term_secs) * 1_000,
        ))
    }

    fn restart(&mut self, now: Time) {
        self.now_us.store(now.micros(), Ordering::SeqCst);
        self.stop();
        self.start();
    }

    fn token(&self, agent: &str, team: &str, now: Time) -> String {
        let file = must(fs::read_to_string(self.scratch.path().join("signing.key")));
        let secret = from_base64(file.trim()).and_then(|secret| secret.try_into().ok());
        let key = SigningKey::from_bytes(&secret.unwrap_or_default());
        let id = self.trust.first().map(|key| key.key_id.clone());
        token(&key, id.unwrap_or_default(), (agent, team), now)
    }

    fn trust(&self) -> Vec<PublicKey> {
        self.trust.clone()
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The machine has to do its part; what a run shows without it is nothing.
#[track_caller]
fn must<T, E: std::fmt::Debug>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("{error:?}"))
}
