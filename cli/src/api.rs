//! The control plane's HTTP API, as the other commands use it.

use anyhow::{Context as _, anyhow, bail, ensure};
use serde_json::Value;
use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};
use ureq::{
    Agent, Body,
    http::{Request, Response},
};

/// How long the control plane may take to answer.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of an answer. The largest is a bundle of 4 MiB.
const MAX_ANSWER_BYTES: u64 = 32 << 20;

/// Where the control plane is and who is asking. The key comes from a file or the environment, never from the command line, where every
/// user of the machine could read it.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Connection {
    /// The control plane.
    #[arg(
        long,
        env = "TOLLGATE_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:7410"
    )]
    url: String,
    /// File with the key; without it the key is taken from TOLLGATE_KEY.
    #[arg(long, env = "TOLLGATE_KEY_FILE", value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// The workspace, `ws-…`. An operator key of one workspace needs no other word.
    #[arg(long, env = "TOLLGATE_WORKSPACE", value_name = "ID")]
    workspace: Option<String>,
}

/// A connection with a key.
pub(crate) struct Api {
    agent: Agent,
    url: String,
    authorization: String,
    workspace: Option<String>,
}

/// What the control plane says no with (RFC 9457).
#[derive(Debug, serde::Deserialize)]
pub(crate) struct Problem {
    title: String,
    status: u16,
    detail: String,
    /// Findings about a refused policy.
    #[serde(default)]
    pub(crate) diagnostics: Vec<Finding>,
}

/// One finding about a policy.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct Finding {
    /// The file, where several were sent.
    #[serde(default)]
    pub(crate) file: Option<String>,
    pub(crate) severity: String,
    pub(crate) code: String,
    pub(crate) path: String,
    pub(crate) message: String,
    pub(crate) line: u32,
    pub(crate) column: u32,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}): {}", self.title, self.status, self.detail)
    }
}

impl std::error::Error for Problem {}

impl Connection {
    /// Reads the key. Nothing is sent yet.
    pub(crate) fn open(self) -> anyhow::Result<Api> {
        let key = match &self.key_file {
            Some(file) => fs::read_to_string(file)
                .with_context(|| format!("cannot read the key file `{}`", file.display()))?,
            None => std::env::var("TOLLGATE_KEY").map_err(|_| {
                anyhow!("no key: give --key-file FILE or set TOLLGATE_KEY (root.key in the data directory makes the first workspace)")
            })?,
        };
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(TIMEOUT))
            .timeout_recv_response(Some(TIMEOUT))
            .build()
            .into();
        Ok(Api {
            agent,
            url: self.url.trim_end_matches('/').to_owned(),
            authorization: format!("Bearer {}", key.trim()),
            workspace: self.workspace,
        })
    }
}

impl Api {
    /// Where it is.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Sends one request. An answer that is a problem is an error with a [`Problem`] inside.
    fn send(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: &[u8],
    ) -> anyhow::Result<Response<Body>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("authorization", &self.authorization);
        if !body.is_empty() {
            request = request.header("content-type", content_type);
        }
        let request = request
            .body(body)
            .context("the URL or the key has characters that cannot be sent")?;
        let mut response = self
            .agent
            .run(request)
            .with_context(|| format!("no answer from the control plane at `{}`", self.url))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.body_mut().read_to_string().unwrap_or_default();
        match serde_json::from_str::<Problem>(&body) {
            Ok(problem) => Err(problem.into()),
            Err(_) => bail!(
                "`{}` answered {status}, and not as a control plane does",
                self.url
            ),
        }
    }

    fn read(mut response: Response<Body>) -> anyhow::Result<Value> {
        let text = response
            .body_mut()
            .with_config()
            .limit(MAX_ANSWER_BYTES)
            .read_to_vec()?;
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&text).context("the control plane's answer is not JSON")
    }

    /// `GET path`.
    pub(crate) fn get(&self, path: &str) -> anyhow::Result<Value> {
        Api::read(self.send("GET", path, "", &[])?)
    }

    /// The same control plane, with another key.
    pub(crate) fn bearing(&self, key: &str) -> Api {
        Api {
            agent: self.agent.clone(),
            url: self.url.clone(),
            authorization: format!("Bearer {key}"),
            workspace: self.workspace.clone(),
        }
    }

    /// `POST path` with JSON.
    pub(crate) fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        Api::read(self.send("POST", path, "application/json", &serde_json::to_vec(body)?)?)
    }

    /// `PUT path` with JSON.
    pub(crate) fn put_json(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        Api::read(self.send("PUT", path, "application/json", &serde_json::to_vec(body)?)?)
    }

    /// `DELETE path`.
    pub(crate) fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.send("DELETE", path, "", &[]).map(drop)
    }

    /// `GET path` as it comes, however long it is.
    pub(crate) fn stream(&self, path: &str) -> anyhow::Result<impl Read + use<>> {
        Ok(self
            .send("GET", path, "", &[])?
            .into_body()
            .into_with_config()
            .limit(u64::MAX)
            .reader())
    }

    /// `path` below the workspace: the one that was named, else the only one this key can see.
    pub(crate) fn at(&self, path: &str) -> anyhow::Result<String> {
        let workspace = match &self.workspace {
            Some(workspace) => workspace.clone(),
            None => {
                let all = self.get("/v1/workspaces")?;
                let ids: Vec<&str> = all
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|workspace| workspace.get("id")?.as_str())
                    .collect();
                match ids.as_slice() {
                    [only] => (*only).to_owned(),
                    _ => bail!(
                        "say which workspace: --workspace ID or TOLLGATE_WORKSPACE; this key sees {}",
                        ids.len()
                    ),
                }
            }
        };
        Ok(format!("/v1/workspaces/{}{path}", segment(&workspace)))
    }
}

/// `text` as one segment of a path or one value of a query (RFC 3986 §2.3: all but unreserved characters are encoded).
pub(crate) fn segment(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// A query of the parameters that have a value.
pub(crate) fn query(parameters: &[(&str, Option<String>)]) -> String {
    let pairs: Vec<String> = parameters
        .iter()
        .filter_map(|(name, value)| Some(format!("{name}={}", segment(value.as_ref()?))))
        .collect();
    if pairs.is_empty() {
        String::new()
    } else {
        format!("?{}", pairs.join("&"))
    }
}

/// Reads a file that is to be sent.
pub(crate) fn file(path: &Path, limit: usize) -> anyhow::Result<Vec<u8>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    ensure!(
        bytes.len() <= limit,
        "`{}` is longer than the {limit} bytes that are accepted",
        path.display()
    );
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_unreserved_is_encoded() {
        assert_eq!(segment("a/b #2.é~"), "a%2Fb%20%232.%C3%A9~");
        assert_eq!(
            query(&[
                ("by", Some("team".into())),
                ("to", None),
                ("x", Some("&".into()))
            ]),
            "?by=team&x=%26"
        );
        assert_eq!(query(&[("to", None)]), "");
    }
}
