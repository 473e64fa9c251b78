//! Telling people that a call waits for them: each channel that a policy names (`notify_channels`) is a URL that gets a POST.
//!
//! The body is JSON with a `text` for people, so that an incoming webhook of Slack or the like takes it as it is, and the same in fields for
//! programs. It says who asks and where to look, not what is in the call. With a secret the request carries
//! `x-tollgate-timestamp` and `x-tollgate-signature: sha256=<hex>`, the HMAC-SHA256 of `<timestamp>.<body>`.
//!
//! What is to be told stands in the database until it is told, or nobody needs to hear of it any more. While it is being told it is due again only
//! later, so that a channel that takes long delays no other.

use crate::{ControlPlane, events, workspaces::WorkspaceId};
use serde::Deserialize;
use std::{collections::BTreeMap, fmt, time::Duration};
use tokio::task::JoinSet;
use tollgate_engine::{bytes::to_hex, journal::hmac, time::Time};
use ureq::Agent;

/// How often the database is looked at for what is to be told.
pub(crate) const EVERY: Duration = Duration::from_secs(1);

/// How long a channel may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How often a channel is tried: with pauses of 1, 2, 4… seconds for a quarter of an hour.
const MAX_ATTEMPTS: i64 = 10;

/// Told at a time, side by side; the others a second later.
const AT_A_TIME: i64 = 16;

/// Of them to one channel, so that it leaves places to others.
const AT_A_TIME_TO_ONE: i64 = 4;

/// Rounds under way at a time. A round lasts as long as its slowest channel, and one begins a second: together at most 192 requests are open.
pub(crate) const MAX_ROUNDS: usize = 12;

/// When what is being told is due again, if nobody has put down by then what came of it (this program was stopped): more than [`TIMEOUT`].
const CLAIM_MS: i64 = 30_000;

/// In `workspaces`: every one.
const EVERY_WORKSPACE: &str = "*";

/// Where a channel's messages go.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Channel {
    /// Whose policies may send there: `ws-…`, or `*` for those of every workspace.
    #[serde(default)]
    workspaces: Vec<String>,
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

impl Channel {
    fn is_of(&self, workspace: &str) -> bool {
        let mut workspaces = self.workspaces.iter();
        workspaces.any(|of| of == EVERY_WORKSPACE || of == workspace)
    }
}

/// Reads channels from JSON: `{"slack:approvals": {"workspaces": ["ws-…"], "url": "https://…", "secret": "…"}}`.
///
/// # Errors
/// When it is anything else, a channel is of no workspace, or has a URL that nothing can be sent to.
pub fn read_channels(json: &str) -> Result<Channels, String> {
    let channels: Channels = serde_json::from_str(json).map_err(|error| error.to_string())?;
    for (name, channel) in &channels {
        if channel.workspaces.is_empty() {
            return Err(format!(
                "`{name}` has no `workspaces`: list those whose policies may send there, as [\"ws-…\"], or [\"*\"] for every one"
            ));
        }
        let is_one = |of: &&String| {
            *of == EVERY_WORKSPACE
                || of
                    .strip_prefix("ws-")
                    .is_some_and(|id| uuid::Uuid::parse_str(id).is_ok())
        };
        if let Some(of) = channel.workspaces.iter().find(|of| !is_one(of)) {
            return Err(format!(
                "`{of}` in the `workspaces` of `{name}` is neither a workspace's id (`ws-…`) nor `*`"
            ));
        }
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
        let who = plain(self.agent_name.as_deref().unwrap_or(&self.agent));
        let team = self.team.as_ref().map(|team| format!(" ({})", plain(team)));
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
            tools = plain(&tools.join(", ")),
            host = plain(text_of("host").unwrap_or("an unknown host")),
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

/// A name that others have made up, for people to read: without what makes a chat program mark it up, link it or call somebody by it. `&`, `<` and
/// `>` as Slack wants them (docs.slack.dev, "Formatting message text"); other programs know `@`, brackets and backticks.
fn plain(name: &str) -> String {
    let mut plain = String::with_capacity(name.len());
    for letter in name.chars() {
        match letter {
            '&' => plain.push_str("&amp;"),
            '<' => plain.push_str("&lt;"),
            '>' => plain.push_str("&gt;"),
            '@' => plain.push_str("(at)"),
            '[' => plain.push('('),
            ']' => plain.push(')'),
            '`' => plain.push('\''),
            letter if letter.is_control() => plain.push(' '),
            letter => plain.push(letter),
        }
    }
    plain
}

/// What is due, and by this nobody else's to tell for a while.
async fn claim(state: &ControlPlane, now: Time) -> Result<Vec<Due>, sqlx::Error> {
    let mut write = state.store().write().await?;
    let due: Vec<Due> = sqlx::query_as(
        "SELECT n.id, n.workspace, n.channel, n.attempts, a.name, a.agent, g.name AS agent_name, g.team, a.asked_ms, a.expires_ms,
           a.verdict IS NULL AND (a.expires_ms IS NULL OR a.expires_ms > $1) AS open, a.record
         FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY workspace, channel ORDER BY due_ms, id) AS place FROM notifications WHERE due_ms <= $1) AS n
           JOIN approvals AS a ON a.id = n.approval LEFT JOIN agents AS g ON g.workspace = a.workspace AND g.id = a.agent
         WHERE n.place <= $2 ORDER BY n.due_ms, n.id LIMIT $3",
    )
    .bind(now.millis())
    .bind(AT_A_TIME_TO_ONE)
    .bind(AT_A_TIME)
    .fetch_all(&mut *write)
    .await?;
    for one in &due {
        sqlx::query("UPDATE notifications SET due_ms = $1 WHERE id = $2")
            .bind(now.millis().saturating_add(CLAIM_MS))
            .bind(one.id)
            .execute(&mut *write)
            .await?;
    }
    write.commit().await?;
    Ok(due)
}

/// Sends what is due, to all channels side by side, and ends with the last of them.
pub(crate) async fn send_due(state: &ControlPlane) -> Result<(), sqlx::Error> {
    let is_due: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM notifications WHERE due_ms <= $1)")
            .bind(state.now().millis())
            .fetch_one(state.store().read())
            .await?;
    if !is_due {
        return Ok(());
    }
    let now = state.now();
    let mut told = JoinSet::new();
    for one in claim(state, now).await? {
        let state = state.clone();
        told.spawn(async move { tell(&state, &one, now).await });
    }
    let mut outcome = Ok(());
    while let Some(one) = told.join_next().await {
        // One that broke off is due again by itself.
        if let Ok(Err(error)) = one {
            outcome = Err(error);
        }
    }
    outcome
}

async fn tell(state: &ControlPlane, one: &Due, now: Time) -> Result<(), sqlx::Error> {
    let channel = state.settings().channels.get(&one.channel);
    let outcome = match (one.open, channel.filter(|of| of.is_of(&one.workspace))) {
        // Somebody has decided it already, or it is too late.
        (false, _) => Outcome::Over,
        (true, None) => Outcome::Never("this workspace has no channel of that name".to_owned()),
        (true, Some(channel)) => deliver(channel.clone(), one.body(), now).await,
    };
    put_down(state, one, outcome, now).await
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
        let read = read_channels(r#"{"slack:approvals": {"workspaces": ["ws-00000000-0000-4000-8000-000000000001"], "url": "https://hooks.example/T0/B0"}, "ops": {"workspaces": ["*"], "url": "http://127.0.0.1:1/", "secret": "s"}}"#).unwrap();
        assert_eq!(read.keys().collect::<Vec<_>>(), ["ops", "slack:approvals"]);
        let shown = format!("{read:?}");
        assert!(
            !shown.contains("hooks.example") && !shown.contains("127.0.0.1"),
            "{shown}"
        );
        let of = |name: &str, workspace: &str| read[name].is_of(workspace);
        assert!(of(
            "slack:approvals",
            "ws-00000000-0000-4000-8000-000000000001"
        ));
        assert!(!of(
            "slack:approvals",
            "ws-00000000-0000-4000-8000-000000000002"
        ));
        assert!(of("ops", "ws-00000000-0000-4000-8000-000000000002"));
        let old = read_channels(r#"{"a": {"url": "https://hooks.example/"}}"#).unwrap_err();
        assert!(old.starts_with("`a` has no `workspaces`"), "{old}");
        for wrong in [
            "[]",
            r#"{"a": "https://hooks.example/"}"#,
            r#"{"a": {"workspaces": [], "url": "https://hooks.example/"}}"#,
            r#"{"a": {"workspaces": ["demo"], "url": "https://hooks.example/"}}"#,
            r#"{"a": {"workspaces": ["*"], "url": "hooks.example"}}"#,
            r#"{"a": {"workspaces": ["*"], "url": "ftp://hooks.example/"}}"#,
            r#"{"a": {"workspaces": ["*"], "url": "https://"}}"#,
            r#"{"a": {"workspaces": ["*"], "url": "https://hooks.example/", "key": "s"}}"#,
        ] {
            assert!(read_channels(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_call_nobody_and_lead_nowhere() {
        assert_eq!(
            plain("<!channel> <https://evil.example|invoice> & `x` @here [a](b)\nrefund_payment"),
            "&lt;!channel&gt; &lt;https://evil.example|invoice&gt; &amp; 'x' (at)here (a)(b) refund_payment"
        );
    }
}
