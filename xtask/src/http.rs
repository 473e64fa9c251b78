//! A blocking HTTP client in three lines per call, for readiness probes and for driving what we started.

use std::time::Duration;

use anyhow::{Context as _, Result};
use ureq::Agent;
use ureq::http::Request;

/// What came back. Every status is a response; only a call without one is an error.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body. Bytes that are not UTF-8 are replaced.
    pub body: String,
}

/// `GET url`.
///
/// # Errors
/// When nothing answers within ten seconds.
pub fn get(url: &str) -> Result<Response> {
    send("GET", url, &[], "")
}

/// Any other call. A body without a `content-type` among the headers is JSON.
///
/// # Errors
/// As [`get`].
pub fn send(method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> Result<Response> {
    let agent: Agent = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(10)))
        .proxy(None)
        .build()
        .into();
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if !body.is_empty() && !headers.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/json");
    }
    let mut response = agent
        .run(request.body(body)?)
        .with_context(|| format!("no answer to {method} {url}"))?;
    let bytes = response
        .body_mut()
        .read_to_vec()
        .with_context(|| format!("the answer to {method} {url} broke off"))?;
    Ok(Response {
        status: response.status().as_u16(),
        body: String::from_utf8_lossy(&bytes).into_owned(),
    })
}
