//! Telling people that a call waits for them: each channel that a policy names (`notify_channels`) is a URL that gets a POST.
//!
//! The body is JSON with a `text` for people, so that an incoming webhook of Slack or the like takes it as it is, and the same in fields for
//! programs. It says who asks and where to look, not what is in the call. With a secret the request carries
//! `x-tollgate-timestamp` and `x-tollgate-signature: sha256=<hex>`, the HMAC-SHA256 of `<timestamp>.<body>`.
//!
//! What is to be told stands in the database until it is told, or nobody needs to hear of it any more.

use crate::{ControlPlane, events, workspaces::WorkspaceId};
use serde::Deserialize;
use std::{collections::BTreeMap, fmt, time::Duration};
use tollgate_engine::{bytes::to_hex, journal::hmac, time::Time};
use ureq::Agent;

/// How often the database is looked at for what is to be told.
pub(crate) const EVERY: Duration = Duration::from_secs(1);

/// How long a channel may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How often a channel is tried: with pauses of 1, 2, 4… seconds for a quarter of an hour.
const MAX_ATTEMPTS: i64 = 10;

/// Told at a time; the others a second later.
const AT_A_TIME: i64 = 16;

/// Where a channel's messages go.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Channel {
    /// `https://…`; an incoming webhook's is a secret itself.
    url: String,
    /// What requests are signed with; `None`: they are not.
    #[serde(default)]
    secret: Option<String>,
}

impl fmt::Debug for Channel {
    /// Without the URL, which may be all that opens it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Channel(…)")
    }
}

/// The channels of an installation, by the names that policies use.
pub type Channels = BTreeMap<String, Channel>;

/// Reads channels from JSON: `{"slack:approvals": {"url": "https://…", "secret": "…"}}`.
///
/// # Errors
/// When it is anything else, or a URL that nothing can be sent to.
pub fn read_channels(json: &str) -> Result<Channels, String> {
    let channels: Channels = serde_json::from_str(json).map_err(|error| error.to_string())?;
    for (name, channel) in &channels {
        let fine = channel.url.parse::<ureq::http::Uri>().is_ok_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()
        });
        if !fine {
            return Err(format!(
                "the `url` of `{name}` is not one that begins with https:// or http://"
            ));
        }
    }
    Ok(channels)
}

#[derive(sqlx::FromRow)]
struct Due {
    id: i64,
    workspace: String,
    channel: String,
    attempts: i64,
    name: String,
    agent: String,
    agent_name: Option<String>,
    team: Option<String>,
    asked_ms: i64,
    expires_ms: Option<i64>,
    open: bool,
    record: String,
}

impl Due {
    /// What is said.
    fn body(&self) -> Vec<u8> {
        let record: serde_json::Value = serde_json::from_str(&self.record).unwrap_or_default();
        let who = self.agent_name.as_deref().unwrap_or(&self.agent);
        let team = self.team.as_ref().map(|team| format!(" ({team})"));
        let field = |key: &str| record.get(key);
        let text_of = |key: &str| field(key).and_then(serde_json::Value::as_str);
        let tools = field("tools").and_then(serde_json::Value::as_array);
        let tools = tools.into_iter().flatten();
        let tools: Vec<&str> = tools.filter_map(serde_json::Value::as_str).collect();
        let until = self
            .expires_ms
            .map(|at| format!(" until {}", Time::from_millis(at)));
        let text = format!(
            "{who}{team} wants to use {tools} at {host}. It waits{until} for somebody to say `tollgate approval grant {name}` or `tollgate approval deny {name}`; `tollgate approval show {name}` says more.",
            team = team.unwrap_or_default(),
            tools = tools.join(", "),
            host = text_of("host").unwrap_or("an unknown host"),
            until = until.unwrap_or_default(),
            name = self.name,
        );
        let body = serde_json::json!({
            "text": text,
            "workspace": self.workspace,
            "approval": self.name,
            "agent": self.agent,
            "agent_name": self.agent_name,
            "team": self.team,
            "tools": tools,
            "model": field("model"),
            "host": field("host"),
            "reasons": field("reasons"),
            "asked_ms": self.asked_ms,
            "expires_ms": self.expires_ms,
        });
        body.to_string().into_bytes()
    }
}

/// Sends what is due.
pub(crate) async fn send_due(state: &ControlPlane) -> Result<(), sqlx::Error> {
    let now = state.now();
    let due: Vec<Due> = sqlx::query_as(
        "SELECT n.id, n.workspace, n.channel, n.attempts, a.name, a.agent, g.name AS agent_name, g.team, a.asked_ms, a.expires_ms,
           a.verdict IS NULL AND (a.expires_ms IS NULL OR a.expires_ms > $1) AS open, a.record
         FROM notifications AS n JOIN approvals AS a ON a.id = n.approval LEFT JOIN agents AS g ON g.workspace = a.workspace AND g.id = a.agent
         WHERE n.due_ms <= $1 ORDER BY n.due_ms, n.id LIMIT $2",
    )
    .bind(now.millis())
    .bind(AT_A_TIME)
    .fetch_all(state.store().read())
    .await?;
    for one in due {
        let outcome = match (one.open, state.settings().channels.get(&one.channel)) {
            // Somebody has decided it already, or it is too late.
            (false, _) => Outcome::Over,
            (true, None) => {
                Outcome::Never("this control plane has no channel of that name".to_owned())
            }
            (true, Some(channel)) => deliver(channel.clone(), one.body(), now).await,
        };
        put_down(state, &one, outcome, now).await?;
    }
    Ok(())
}

/// What came of an attempt.
enum Outcome {
    Told,
    Over,
    Again(String),
    Never(String),
}

async fn deliver(channel: Channel, body: Vec<u8>, now: Time) -> Outcome {
    let sent = tokio::task::spawn_blocking(move || post(&channel, &body, now));
    match sent.await {
        Ok(Ok(status)) if (200..300).contains(&status) => Outcome::Told,
        // It will not take this one another time either.
        Ok(Ok(status)) if (400..500).contains(&status) && !matches!(status, 408 | 429) => {
            Outcome::Never(format!("it answered {status}"))
        }
        Ok(Ok(status)) => Outcome::Again(format!("it answered {status}")),
        Ok(Err(why)) => Outcome::Again(why.to_owned()),
        Err(_) => Outcome::Again("the attempt broke off".to_owned()),
    }
}

/// The status of the answer. An error never has the URL in it.
fn post(channel: &Channel, body: &[u8], now: Time) -> Result<u16, &'static str> {
    let agent: Agent = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(TIMEOUT))
        .max_redirects(0)
        .build()
        .into();
    let mut request = agent
        .post(&channel.url)
        .header("content-type", "application/json");
    if let Some(secret) = &channel.secret {
        let at = now.secs().to_string();
        let mac = hmac(secret.as_bytes(), &[at.as_bytes(), b".", body]);
        request = request
            .header("x-tollgate-timestamp", &at)
            .header("x-tollgate-signature", format!("sha256={}", to_hex(&mac)));
    }
    match request.send(body) {
        Ok(answer) => Ok(answer.status().as_u16()),
        Err(ureq::Error::Timeout(_)) => Err("it did not answer in time"),
        Err(_) => Err("it cannot be reached"),
    }
}

async fn put_down(
    state: &ControlPlane,
    one: &Due,
    outcome: Outcome,
    now: Time,
) -> Result<(), sqlx::Error> {
    let attempts = one.attempts.saturating_add(1);
    let mut write = state.store().write().await?;
    let given_up = match outcome {
        Outcome::Again(why) if attempts < MAX_ATTEMPTS => {
            tracing::info!(
                approval = one.name,
                channel = one.channel,
                why,
                "a channel is tried again"
            );
            let pause_ms = 1_000_i64 << attempts.min(20);
            sqlx::query("UPDATE notifications SET attempts = $1, due_ms = $2 WHERE id = $3")
                .bind(attempts)
                .bind(now.millis().saturating_add(pause_ms))
                .bind(one.id)
                .execute(&mut *write)
                .await?;
            return write.commit().await;
        }
        Outcome::Told | Outcome::Over => None,
        Outcome::Again(why) | Outcome::Never(why) => Some(why),
    };
    sqlx::query("DELETE FROM notifications WHERE id = $1")
        .bind(one.id)
        .execute(&mut *write)
        .await?;
    if let Some(why) = given_up {
        tracing::warn!(
            approval = one.name,
            channel = one.channel,
            why,
            "a channel was not told"
        );
        let event = events::New {
            kind: "approval_untold",
            subject: &one.name,
            by: None,
            message: &format!("the channel `{}` was not told: {why}", one.channel),
        };
        let workspace = WorkspaceId::stored(one.workspace.clone());
        events::record(&mut write, &workspace, now, event).await?;
    }
    write.commit().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_names_and_urls_and_show_neither_url_nor_secret() {
        let read = read_channels(r#"{"slack:approvals": {"url": "https://hooks.example/T0/B0"}, "ops": {"url": "http://127.0.0.1:1/", "secret": "s"}}"#).unwrap();
        assert_eq!(read.keys().collect::<Vec<_>>(), ["ops", "slack:approvals"]);
        let shown = format!("{read:?}");
        assert!(
            !shown.contains("hooks.example") && !shown.contains("127.0.0.1"),
            "{shown}"
        );
        for wrong in [
            "[]",
            r#"{"a": "https://hooks.example/"}"#,
            r#"{"a": {"url": "hooks.example"}}"#,
            r#"{"a": {"url": "ftp://hooks.example/"}}"#,
            r#"{"a": {"url": "https://"}}"#,
            r#"{"a": {"url": "https://hooks.example/", "key": "s"}}"#,
        ] {
            assert!(read_channels(wrong).is_err(), "{wrong}");
        }
    }
}
