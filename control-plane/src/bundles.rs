//! Bundles: the live policies of a workspace, compiled and signed, and how gates get them.
//!
//! A revision is made in the transaction of the change that calls for it, so a bundle never shows half a change; gates that wait are
//! woken after the commit. When half of a bundle's life is over it is signed anew with fresh times: a gate that cannot reach us has
//! at least the other half to go on with.

use crate::{
    ControlPlane,
    access::{Gate, Operator},
    agents, halts, policies,
    problem::{Diagnostic, Kind, Problem, Query, WorkspaceProblems},
    store::{Write, stored},
    workspaces::WorkspaceId,
};
use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use sqlx::SqliteConnection;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::watch;
use tollgate_engine::{
    bundle::{FORMAT, MAX_ENVELOPE_BYTES, Payload, etag},
    bytes::Digest,
    envelope::BUNDLE_TYPE,
    halt::Halt,
    time::Time,
};
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

/// The one channel there is so far.
pub(crate) const CHANNEL: &str = "default";

/// Longest wait of a poll. Many proxies cut a silent request at 60 s.
const MAX_WAIT_SECS: u32 = 55;

/// Revisions kept per channel, to look up what a gate ran. Re-signing makes two a day.
const KEPT_REVISIONS: i64 = 256;

/// How many revisions one publication may skip to get ahead of what gates run. Little against what a gate accepts at once
/// ([`tollgate_engine::bundle::MAX_REVISION_JUMP`]), so that no gate can report its way to a revision that the others refuse.
const MAX_SKIPPED_REVISIONS: i64 = 100;

/// How many a channel may skip in all, ever: half of what a gate accepts at once, so one that was away while they were skipped takes the
/// newest all the same. Re-signing makes 730 revisions a year, so there is room for a restore from an old backup every week.
const MAX_SKIPPED_IN_ALL: i64 = 500_000;

/// Bytes of an envelope that only halts may take, so that calls can be stopped whatever else is in the bundle: base64 makes 4 of 3.
const ROOM_FOR_HALTS: usize = halts::MAX_BYTES.div_ceil(3) * 4;

/// Bytes that policies leave for halts and for agents yet to be revoked: beyond 1,002,000 for halts 46,576, which is 895 agents at 39 bytes
/// each, as base64.
const ROOM_FOR_STOPS: usize = 1 << 20;

/// What a bundle is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Policies; they leave room for the other two.
    Policies,
    /// An agent is revoked.
    Revocation,
    /// Calls are stopped or let go; it may take all the room there is.
    Halts,
    /// Nobody has changed anything.
    Renewal,
}

impl Change {
    /// Bytes that must be left of an envelope without its halts.
    const fn leaves(self) -> usize {
        match self {
            Change::Policies => ROOM_FOR_STOPS,
            Change::Revocation => ROOM_FOR_HALTS,
            Change::Halts | Change::Renewal => 0,
        }
    }

    /// Whether it is to reach gates even when the policies cannot be read.
    const fn stops(self) -> bool {
        match self {
            Change::Revocation | Change::Halts => true,
            Change::Policies | Change::Renewal => false,
        }
    }

    fn too_large(self, bytes: usize) -> Problem {
        let most = MAX_ENVELOPE_BYTES.saturating_sub(self.leaves());
        match self {
            Change::Policies | Change::Renewal => refused(format!(
                "all policies together make a bundle of {bytes} bytes, more than the {most} that may be; the rest of the {MAX_ENVELOPE_BYTES} \
                 that gates take is kept for stopping calls; remove or shorten some"
            )),
            Change::Revocation => Problem::new(
                Kind::Conflict,
                "the bundle has no room for another revoked agent; remove or shorten policies, or stop the agent (`tollgate kill agent`)",
            ),
            Change::Halts => Problem::new(
                Kind::Conflict,
                "the bundle has no room for another halt; remove or shorten policies, or stop the workspace instead",
            ),
        }
    }
}

pub(crate) fn routes() -> OpenApiRouter<ControlPlane> {
    OpenApiRouter::new()
        .routes(routes!(show))
        .routes(routes!(poll))
}

/// Wakes the polls that wait for a workspace's next bundle.
#[derive(Debug, Default)]
pub(crate) struct Announcements(Mutex<HashMap<WorkspaceId, watch::Sender<()>>>);

impl Announcements {
    fn subscribe(&self, workspace: &WorkspaceId) -> watch::Receiver<()> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(workspace.clone())
            .or_insert_with(|| watch::channel(()).0)
            .subscribe()
    }

    /// Has the polls of a workspace look again.
    pub(crate) fn announce(&self, workspace: &WorkspaceId) {
        if let Some(sender) = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(workspace)
        {
            sender.send_replace(());
        }
    }
}

/// What [`publish`] did; to be announced once it is committed.
#[must_use]
pub(crate) struct Published {
    workspace: WorkspaceId,
    /// The revision that is current now.
    pub(crate) revision: i64,
    new: bool,
}

impl Published {
    /// Wakes the gates that wait.
    pub(crate) fn announce(&self, state: &ControlPlane) {
        if self.new {
            state.metrics().bundles_published.inc();
            tracing::info!(workspace = %self.workspace, revision = self.revision, "bundle published");
            state.announcements().announce(&self.workspace);
        }
    }
}

/// The bundle that gates get now.
#[derive(sqlx::FromRow)]
struct Current {
    etag: String,
    envelope: Vec<u8>,
}

#[derive(sqlx::FromRow)]
struct CurrentPayload {
    revision: i64,
    payload: Vec<u8>,
    issued_ms: i64,
    expires_ms: i64,
    skipped: i64,
}

impl CurrentPayload {
    fn issued(&self) -> Time {
        Time::from_millis(self.issued_ms)
    }

    fn expires(&self) -> Time {
        Time::from_millis(self.expires_ms)
    }
}

async fn current_payload(
    workspace: &WorkspaceId,
    connection: &mut SqliteConnection,
) -> Result<Option<CurrentPayload>, sqlx::Error> {
    sqlx::query_as(
        "SELECT revision, payload, issued_ms, expires_ms, skipped FROM bundles WHERE workspace = $1 AND channel = $2
         ORDER BY revision DESC LIMIT 1",
    )
    .bind(workspace.as_str())
    .bind(CHANNEL)
    .fetch_optional(connection)
    .await
}

/// Payloads read from the database, so that a lease request need not parse its workspace's policies again.
#[derive(Debug, Default)]
pub(crate) struct Payloads(Mutex<HashMap<WorkspaceId, Arc<Payload>>>);

/// The payload that gates run now, for whoever else has to go by it; `None` for a workspace that has no bundle yet.
pub(crate) async fn payload(
    state: &ControlPlane,
    workspace: &WorkspaceId,
    connection: &mut SqliteConnection,
) -> Result<Option<Arc<Payload>>, Problem> {
    let newest: Option<i64> = sqlx::query_scalar(
        "SELECT MAX(revision) FROM bundles WHERE workspace = $1 AND channel = $2",
    )
    .bind(workspace.as_str())
    .bind(CHANNEL)
    .fetch_one(&mut *connection)
    .await?;
    let cached = state
        .payloads()
        .0
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get(workspace)
        .filter(|payload| stored(payload.revision) == newest)
        .cloned();
    if cached.is_some() {
        return Ok(cached);
    }
    let Some(current) = current_payload(workspace, connection).await? else {
        return Ok(None);
    };
    let payload: Arc<Payload> = serde_json::from_slice(&current.payload)
        .map(Arc::new)
        .map_err(|error| Problem::internal("stored bundle", &error))?;
    state
        .payloads()
        .0
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(workspace.clone(), payload.clone());
    Ok(Some(payload))
}

/// Of the revisions that are kept those in which some limit suspends, the newest first.
pub(crate) async fn that_suspended(
    connection: &mut SqliteConnection,
    workspace: &WorkspaceId,
) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT revision FROM bundles WHERE workspace = $1 AND channel = $2 AND instr(payload, CAST('\"suspend\":true' AS BLOB)) > 0
         ORDER BY revision DESC",
    )
    .bind(workspace.as_str())
    .bind(CHANNEL)
    .fetch_all(connection)
    .await
}

/// The payload of one of them, unless it is of a format that is no more.
pub(crate) async fn kept(
    connection: &mut SqliteConnection,
    workspace: &WorkspaceId,
    revision: i64,
) -> Result<Option<Payload>, sqlx::Error> {
    let payload: Option<Vec<u8>> = sqlx::query_scalar(
        "SELECT payload FROM bundles WHERE workspace = $1 AND channel = $2 AND revision = $3",
    )
    .bind(workspace.as_str())
    .bind(CHANNEL)
    .bind(revision)
    .fetch_optional(connection)
    .await?;
    Ok(payload.and_then(|payload| serde_json::from_slice(&payload).ok()))
}

/// The highest revision that a gate of this workspace may say it runs: what an earlier state of this database cannot have published, nor
/// may be skipped, nobody signed.
pub(crate) async fn furthest(
    write: &mut Write,
    workspace: &WorkspaceId,
) -> Result<i64, sqlx::Error> {
    let newest: Option<(i64, i64)> = sqlx::query_as(
        "SELECT revision, skipped FROM bundles WHERE workspace = $1 AND channel = $2 ORDER BY revision DESC LIMIT 1",
    )
    .bind(workspace.as_str())
    .bind(CHANNEL)
    .fetch_optional(&mut **write)
    .await?;
    let (revision, skipped) = newest.unwrap_or_default();
    Ok(revision.saturating_add(skippable(skipped)))
}

/// How many revisions may still be skipped.
fn skippable(skipped: i64) -> i64 {
    MAX_SKIPPED_IN_ALL.saturating_sub(skipped).max(0)
}

/// A bundle that is not the current one.
struct Next {
    issued: Time,
    expires: Time,
    payload: Vec<u8>,
}

/// What stops callers, as bundles have it.
struct Stops {
    revoked_agents: Vec<String>,
    halts: Vec<Halt>,
}

/// The live policies with `stops`; `None` when that is what gates have already, for at least half of its life yet, which has begun.
async fn composed(
    state: &ControlPlane,
    write: &mut Write,
    workspace: &WorkspaceId,
    stops: &Stops,
    current: Option<&CurrentPayload>,
    revision: i64,
) -> Result<Option<Next>, Problem> {
    let documents = policies::live(write, workspace).await?;
    let compose = |revision: i64, issued: Time, expires: Time| -> Result<Vec<u8>, Problem> {
        let compiled = tollgate_policy::compile(&documents, issued.secs(), expires.secs())
            .map_err(|error| refused(error.to_string()))?;
        serde_json::to_vec(&Payload {
            format: FORMAT,
            workspace: workspace.to_string(),
            channel: CHANNEL.to_owned(),
            revision: crate::store::amount(revision),
            issued_at: issued.secs(),
            expires_at: expires.secs(),
            documents: compiled.documents,
            shadow: compiled.shadow,
            automata: compiled.automata,
            calendars: compiled.calendars,
            prices: compiled.prices,
            token_keys: vec![state.signer().public().clone()],
            revoked_agents: stops.revoked_agents.clone(),
            halts: stops.halts.clone(),
        })
        .map_err(|error| Problem::internal("bundle", &error))
    };
    if let Some(current) = current {
        let half = current.issued_ms.midpoint(current.expires_ms);
        // More than one further: gates run a newer one than this.
        let passed = revision > current.revision.saturating_add(1);
        // What was issued in the future, when our clock was ahead, gates that start refuse until then.
        if (current.issued_ms..half).contains(&state.now().millis())
            && !passed
            && compose(current.revision, current.issued(), current.expires())? == current.payload
        {
            return Ok(None);
        }
    }
    let issued = Time::from_secs(state.now().secs());
    let expires = issued.plus_secs(state.settings().bundle_ttl_secs.into());
    Ok(Some(Next {
        issued,
        expires,
        payload: compose(revision, issued, expires)?,
    }))
}

/// The policies that gates have, with `stops`: for when those that are stored cannot be read any more. It lives no longer than the current one,
/// so that what is wrong with the policies still ends in calls being denied.
fn restopped(
    stops: &Stops,
    current: &CurrentPayload,
    revision: i64,
) -> Result<Option<Next>, Problem> {
    let mut payload: Payload = serde_json::from_slice(&current.payload)
        .map_err(|error| Problem::internal("stored bundle", &error))?;
    if payload.halts == stops.halts && payload.revoked_agents == stops.revoked_agents {
        return Ok(None);
    }
    payload.revision = crate::store::amount(revision);
    payload.halts.clone_from(&stops.halts);
    payload.revoked_agents.clone_from(&stops.revoked_agents);
    let payload =
        serde_json::to_vec(&payload).map_err(|error| Problem::internal("bundle", &error))?;
    Ok(Some(Next {
        issued: current.issued(),
        expires: current.expires(),
        payload,
    }))
}

/// A bundle as gates get it.
struct Sealed {
    next: Next,
    envelope: Vec<u8>,
}

/// Signs a bundle, if it is no larger than `change` may make it.
fn seal(
    state: &ControlPlane,
    next: Next,
    stops: &Stops,
    current: Option<&CurrentPayload>,
    change: Change,
) -> Result<Sealed, Problem> {
    let envelope = state
        .signer()
        .envelope(BUNDLE_TYPE, &next.payload)
        .map_err(|error| Problem::internal("bundle", &error))?;
    let of_halts = serde_json::to_vec(&stops.halts)
        .map_err(|error| Problem::internal("halts", &error))?
        .len();
    let without_halts = envelope.len().saturating_sub(of_halts / 3 * 4);
    // Whoever has more than may be, from an older version of this program, can still make it less.
    let grows = current.is_none_or(|current| next.payload.len() > current.payload.len());
    // What gates do not take they would refuse, and go on with the last one.
    if envelope.len() > MAX_ENVELOPE_BYTES
        || grows && without_halts > MAX_ENVELOPE_BYTES.saturating_sub(change.leaves())
    {
        return Err(change.too_large(without_halts));
    }
    Ok(Sealed { next, envelope })
}

/// Makes the next revision if what the workspace's gates should run has changed, half of the current one's life is over, or it has not begun.
pub(crate) async fn publish(
    state: &ControlPlane,
    write: &mut Write,
    workspace: &WorkspaceId,
    change: Change,
) -> Result<Published, Problem> {
    halts::lapse(write, workspace, state.now()).await?;
    let stops = Stops {
        revoked_agents: agents::revoked(write, workspace).await?,
        halts: halts::current(write, workspace).await?,
    };
    let current = current_payload(workspace, write).await?;
    // A gate runs a newer revision than ours when our database was put back to an earlier state. It would take every bundle up to that
    // one for a rollback, so we have to pass it.
    let ahead: i64 = sqlx::query_scalar(
        "SELECT COALESCE(MAX(h.revision), 0) FROM holders AS h JOIN gates AS g ON g.id = h.gate
             WHERE h.workspace = $1 AND g.revoked_ms IS NULL",
    )
    .bind(workspace.as_str())
    .fetch_one(&mut **write)
    .await?;
    let (last, skipped) = current
        .as_ref()
        .map_or((0, 0), |current| (current.revision, current.skipped));
    let ahead = ahead.saturating_sub(last).max(0);
    let skip = ahead.min(MAX_SKIPPED_REVISIONS).min(skippable(skipped));
    if skip < ahead {
        tracing::warn!(
            %workspace, last, ahead, skip,
            "a gate runs a bundle revision far ahead of this database's; `tollgate gate list` shows which. If nothing was restored, revoke it"
        );
    }
    let revision = last.saturating_add(skip).saturating_add(1);
    let unchanged = Published {
        workspace: workspace.clone(),
        revision: last,
        new: false,
    };
    let sealed = match composed(state, write, workspace, &stops, current.as_ref(), revision).await {
        Ok(None) => return Ok(unchanged),
        Ok(Some(next)) => seal(state, next, &stops, current.as_ref(), change),
        Err(problem) => Err(problem),
    };
    let Sealed {
        next: Next {
            issued,
            expires,
            payload,
        },
        envelope,
    } = match (sealed, &current) {
        (Err(problem), Some(current)) if change.stops() => {
            tracing::error!(%workspace, ?problem, "the policies make no bundle; gates keep those they have, and hear who is stopped");
            match restopped(&stops, current, revision)? {
                None => return Ok(unchanged),
                Some(next) => seal(state, next, &stops, Some(current), change)?,
            }
        }
        (sealed, _) => sealed?,
    };
    sqlx::query(
        "INSERT INTO bundles (workspace, channel, revision, etag, payload, envelope, issued_ms, expires_ms, skipped)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(workspace.as_str())
    .bind(CHANNEL)
    .bind(revision)
    .bind(etag(crate::store::amount(revision), Digest::of(&payload)))
    .bind(payload)
    .bind(envelope)
    .bind(issued.millis())
    .bind(expires.millis())
    .bind(skipped.saturating_add(skip))
    .execute(&mut **write)
    .await?;
    sqlx::query("DELETE FROM bundles WHERE workspace = $1 AND channel = $2 AND revision <= $3")
        .bind(workspace.as_str())
        .bind(CHANNEL)
        .bind(revision.saturating_sub(KEPT_REVISIONS))
        .execute(&mut **write)
        .await?;
    Ok(Published {
        workspace: workspace.clone(),
        revision,
        new: true,
    })
}

/// Policies that are each fine and do not make a bundle.
fn refused(message: String) -> Problem {
    Problem::policy_refused(vec![Diagnostic {
        file: None,
        severity: "error",
        code: "bundle",
        path: String::new(),
        message,
        line: 1,
        column: 1,
        suggestion: None,
    }])
}

/// Re-signs what is due in every workspace, and publishes what a newer version of this program compiles differently.
/// One workspace that cannot be published must not keep the others from it.
pub(crate) async fn refresh(state: &ControlPlane) -> Result<(), sqlx::Error> {
    for workspace in WorkspaceId::all(state).await? {
        let mut write = state.store().write().await?;
        match publish(state, &mut write, &workspace, Change::Renewal).await {
            Ok(published) => {
                write.commit().await?;
                published.announce(state);
            }
            Err(problem) => {
                state.metrics().bundles_failed.inc();
                tracing::error!(%workspace, ?problem, "no bundle could be published; gates keep the last one");
            }
        }
    }
    Ok(())
}

async fn current(
    state: &ControlPlane,
    workspace: &WorkspaceId,
) -> Result<Option<Current>, sqlx::Error> {
    sqlx::query_as(
        "SELECT etag, envelope FROM bundles WHERE workspace = $1 AND channel = $2
         ORDER BY revision DESC LIMIT 1",
    )
    .bind(workspace.as_str())
    .bind(CHANNEL)
    .fetch_optional(state.store().read())
    .await
}

fn answer(status: StatusCode, bundle: Current) -> Result<Response, Problem> {
    let tag = HeaderValue::from_str(&bundle.etag)
        .map_err(|error| Problem::internal("entity tag", &error))?;
    let mut response = match status {
        StatusCode::NOT_MODIFIED => status.into_response(),
        _ => (
            [(header::CONTENT_TYPE, "application/json")],
            bundle.envelope,
        )
            .into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::ETAG, tag);
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("private, no-cache"),
    );
    Ok(response)
}

fn no_bundle() -> Problem {
    Problem::new(Kind::NotFound, "there is no bundle in this channel")
}

/// The current bundle in its signed envelope.
#[utoipa::path(get, path = "/v1/workspaces/{workspace}/bundle", tag = "bundles", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`")),
    responses((status = 200, description = "A DSSE envelope", content_type = "application/json", headers(("etag" = String))),
        WorkspaceProblems))]
async fn show(operator: Operator, State(state): State<ControlPlane>) -> Result<Response, Problem> {
    let bundle = current(&state, &operator.workspace)
        .await?
        .ok_or_else(no_bundle)?;
    answer(StatusCode::OK, bundle)
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Poll {
    /// Which of the workspace's bundles; `default` unless told otherwise.
    #[serde(default = "default_channel")]
    channel: String,
    /// How many seconds to wait for a bundle other than that of `if-none-match`.
    #[serde(default)]
    #[param(minimum = 0, maximum = 55)]
    wait: u32,
}

fn default_channel() -> String {
    CHANNEL.to_owned()
}

/// The current bundle for a gate. With `if-none-match` and `wait`, answers as soon as there is another one, else 304 after the wait.
#[utoipa::path(get, path = "/v1/workspaces/{workspace}/gate/bundle", tag = "gate", security(("gate" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`"), Poll,
        ("if-none-match" = Option<String>, Header, description = "The entity tag of the bundle that runs")),
    responses((status = 200, description = "A DSSE envelope", content_type = "application/json", headers(("etag" = String))),
        (status = 204, description = "No other bundle; report now what is leased to the gate, others wait for what it does not use"),
        (status = 304, description = "No other bundle"), WorkspaceProblems))]
async fn poll(
    gate: Gate,
    State(state): State<ControlPlane>,
    Query(poll): Query<Poll>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    if poll.channel != CHANNEL {
        return Err(no_bundle());
    }
    if poll.wait > MAX_WAIT_SECS {
        return Err(Problem::new(
            Kind::Malformed,
            format!("`wait` must be {MAX_WAIT_SECS} at most"),
        ));
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(poll.wait.into());
    // Before the first look: what is published between looking and waiting must wake us.
    let mut published = state.announcements().subscribe(&gate.workspace);
    let mut recalled = state.recalls().listen(&gate.workspace);
    let mut stopping = state.stopping();
    loop {
        let bundle = current(&state, &gate.workspace)
            .await?
            .ok_or_else(no_bundle)?;
        // After the bundle was read: what is published once a gate is revoked, it no longer gets, however long it has waited here.
        gate.still_enrolled(&state).await?;
        if !names(&headers, &bundle.etag) {
            return answer(StatusCode::OK, bundle);
        }
        // A gate that holds no request open asks every second, and hears of what has been wanted since.
        if poll.wait == 0 && state.recalls().is_any_wanted(&gate.workspace, state.now()) {
            return Ok(RECALL.into_response());
        }
        tokio::select! {
            changed = published.changed() => if changed.is_ok() { continue },
            _ = recalled.changed() => return Ok(RECALL.into_response()),
            _ = stopping.wait_for(|stopping| *stopping) => {}
            () = tokio::time::sleep_until(deadline) => {}
        }
        return answer(StatusCode::NOT_MODIFIED, bundle);
    }
}

/// `upkeep::RECALL`.
const RECALL: StatusCode = StatusCode::NO_CONTENT;

/// Whether `if-none-match` names this entity tag (RFC 9110 §13.1.2: weak comparison).
fn names(headers: &HeaderMap, etag: &str) -> bool {
    headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}
