//! The control plane as a process, and the calls that set up a workspace in it: the same HTTP API that `tollgate` itself uses.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::http;
use crate::process::Process;

/// A first start makes keys and migrates the database.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// A running control plane.
#[derive(Debug)]
pub struct ControlPlane {
    /// The process, for tests that kill it.
    pub process: Process,
    /// Where it listens, with the real port.
    pub address: SocketAddr,
    /// What makes workspaces and nothing else.
    pub root_key: String,
}

/// A workspace with a gate in it. All that a later run needs to find it again; the keys cannot be asked for a second time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Workspace {
    /// `ws-<uuid>`.
    pub id: String,
    /// What an operator's calls present.
    pub operator_key: String,
    /// What the gate presents.
    pub enrolment_key: String,
    /// The keys whose signatures the gate accepts, as its settings want them.
    pub trust: Value,
}

impl ControlPlane {
    /// Runs `serve`, a `tollgate serve` with whatever options, on `data`, made when missing, and waits until it answers. Port 0 takes a
    /// free one.
    ///
    /// # Errors
    /// When it ends or does not answer in time; with the end of its log.
    pub fn start(serve: Command, data: &Path, listen: SocketAddr, log: &Path) -> Result<Self> {
        let mut command = serve;
        command
            .arg("--data")
            .arg(data)
            .arg("--listen")
            .arg(listen.to_string());
        let mut process = Process::spawn("the control plane", command, log)?;
        let address =
            process.wait_for_line("the control plane's address", START_DEADLINE, address_in)?;
        process.wait_until("the control plane to be ready", START_DEADLINE, || {
            http::get(&format!("http://{address}/readyz"))
                .ok()
                .filter(|response| response.status == 200)
        })?;
        let root_key = data.join("root.key");
        let root_key = fs::read_to_string(&root_key)
            .with_context(|| format!("cannot read `{}`", root_key.display()))?;
        Ok(Self {
            process,
            address,
            root_key: root_key.trim().to_owned(),
        })
    }

    /// The URL of `path`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// A call with a key. Gives the answer's JSON, null for an empty one.
    ///
    /// # Errors
    /// When nothing answers, or what answers is not a success; the message has the problem's own words.
    pub fn call(&self, key: &str, method: &str, path: &str, body: &str) -> Result<Value> {
        let authorization = format!("Bearer {key}");
        let content_type = if body.starts_with('{') {
            "application/json"
        } else {
            "application/yaml"
        };
        let headers = [
            ("authorization", authorization.as_str()),
            ("content-type", content_type),
        ];
        let response = http::send(method, &self.url(path), &headers, body)?;
        ensure!(
            (200..300).contains(&response.status),
            "{method} {path} was answered {}: {}",
            response.status,
            response.body
        );
        if response.body.is_empty() {
            Ok(Value::Null)
        } else {
            Ok(serde_json::from_str(&response.body)?)
        }
    }

    /// Makes a workspace and enrols one gate in it.
    ///
    /// # Errors
    /// When the control plane refuses; for example when the name is taken.
    pub fn create_workspace(&self, name: &str) -> Result<Workspace> {
        let made = self.call(
            &self.root_key,
            "POST",
            "/v1/workspaces",
            &json!({"name": name, "guardrails": false}).to_string(),
        )?;
        let (id, operator_key) = (text(&made, "/id")?, text(&made, "/operator/key")?);
        let gate = self.call(
            &operator_key,
            "POST",
            &format!("/v1/workspaces/{id}/gates"),
            &json!({"name": "gate"}).to_string(),
        )?;
        Ok(Workspace {
            enrolment_key: text(&gate, "/key")?,
            trust: gate["trust"].clone(),
            id,
            operator_key,
        })
    }

    /// Registers an agent and gives its id.
    ///
    /// # Errors
    /// When the control plane refuses; for example when the name is taken.
    pub fn create_agent(&self, workspace: &Workspace, name: &str, team: &str) -> Result<String> {
        let body = json!({"name": name, "team": team, "level": "L2"}).to_string();
        let agent = self.call(
            &workspace.operator_key,
            "POST",
            &format!("/v1/workspaces/{}/agents", workspace.id),
            &body,
        )?;
        text(&agent, "/id")
    }

    /// A token of an agent's, good for an hour.
    ///
    /// # Errors
    /// When the control plane refuses.
    pub fn issue_token(&self, workspace: &Workspace, agent: &str) -> Result<String> {
        let path = format!("/v1/workspaces/{}/agents/{agent}/tokens", workspace.id);
        text(
            &self.call(&workspace.operator_key, "POST", &path, "")?,
            "/token",
        )
    }

    /// Puts the policies of a file into service.
    ///
    /// # Errors
    /// When the control plane refuses; the message says what is wrong with the policy.
    pub fn apply_policy(&self, workspace: &Workspace, policy: &str) -> Result<()> {
        self.call(
            &workspace.operator_key,
            "PUT",
            &format!("/v1/workspaces/{}/policies", workspace.id),
            policy,
        )?;
        Ok(())
    }
}

fn text(value: &Value, pointer: &str) -> Result<String> {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found
        .map(str::to_owned)
        .with_context(|| format!("the control plane's answer has no `{pointer}`"))
}

/// The address in the line that says where the control plane listens.
fn address_in(line: &str) -> Option<SocketAddr> {
    serde_json::from_str::<Value>(line)
        .ok()?
        .get("listening")?
        .as_str()?
        .parse()
        .ok()
}
