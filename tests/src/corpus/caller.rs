//! The caller's side of a step, for hosts that speak HTTP: sends what the script says, and tells what came of it.

use super::{
    case::{AnswerEnd, Seen, SeenUpstream, Step},
    control_plane::ControlPlane,
    wire::{self, Message},
};
use anyhow::{Context as _, Result};
use std::net::SocketAddr;

/// Makes the call. The caller who is to leave does so when it has got what `awaited` says.
///
/// # Errors
/// When there is no answer.
pub fn call(
    gate: SocketAddr,
    script: &Step,
    token: Option<&str>,
    awaited: &Seen,
) -> Result<Message> {
    let call = &script.call;
    let body = call.bytes()?;
    let mut headers = vec![("host".to_string(), call.authority.clone().into_bytes())];
    headers.extend(call.headers(token, body.as_ref().map(Vec::len))?);
    let enough = match script.answer.end {
        AnswerEnd::ClientLeaves if awaited.upstream.is_some() => awaited.body.len(),
        AnswerEnd::ClientLeaves | AnswerEnd::Whole | AnswerEnd::UpstreamBreaks => usize::MAX,
    };
    wire::send(
        gate,
        &format!("{} {} HTTP/1.1", call.method, call.path),
        &headers,
        body.as_deref().unwrap_or_default(),
        enough,
    )
}

/// What the step came to.
///
/// # Errors
/// When the answer or the record cannot be read.
pub fn seen(
    answer: &Message,
    upstream: Option<SeenUpstream>,
    record: &[u8],
    control_plane: &ControlPlane,
) -> Result<Seen> {
    let seen = Seen {
        status: answer.word(1).parse().context("a status")?,
        reason: answer.header("x-tollgate-reason"),
        retry_after: answer.header("retry-after").filter(|_| upstream.is_none()),
        content_type: answer.header("content-type"),
        limits: answer.header("ratelimit-policy"),
        left: answer.header("ratelimit"),
        body: String::from_utf8_lossy(&answer.body).into_owned(),
        upstream,
        record: serde_json::from_slice(record)?,
        spent: control_plane.spent().0,
    };
    Ok(seen.normalise())
}
