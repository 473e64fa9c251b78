//! What an operator may do about a budget: lift a suspension, and release what a lost gate holds. The latter a policy may order too.

use super::{
    Row,
    rules::{Lease, Life, Listening},
};
use crate::{
    ControlPlane,
    access::Operator,
    bundles, events,
    problem::{BodyProblems, JsonBody, Kind, Path, Problem, ProblemBody},
    store::stored,
    text,
    workspaces::WorkspaceId,
};
use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;
use std::collections::HashMap;
use tollgate_engine::{halt::MAX_REASON_CHARS, ledger::Account, time::Time};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(super) fn routes() -> OpenApiRouter<ControlPlane> {
    OpenApiRouter::new()
        .routes(routes!(lift))
        .routes(routes!(release))
}

/// Why somebody does it.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Why {
    /// For whoever reads the events.
    #[schema(
        min_length = 1,
        max_length = 300,
        pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$"
    )]
    reason: String,
}

/// A suspension that was lifted.
#[derive(Serialize, ToSchema)]
struct Lifted {
    /// The account.
    account: String,
    /// When; milliseconds since the Unix epoch.
    at_ms: i64,
}

/// When operators have lifted suspensions, by account.
pub(super) async fn lifted(
    connection: &mut SqliteConnection,
    workspace: &WorkspaceId,
) -> Result<HashMap<String, i64>, sqlx::Error> {
    let rows: Vec<(String, i64)> =
        sqlx::query_as("SELECT account, at_ms FROM lifted WHERE workspace = $1")
            .bind(workspace.as_str())
            .fetch_all(connection)
            .await?;
    Ok(rows.into_iter().collect())
}

/// Lets an account be spent from again that a budget has suspended. Gates hear of it within a second.
#[utoipa::path(post, path = "/v1/workspaces/{workspace}/budgets/{account}/lift", tag = "budgets", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`"),
        ("account" = String, Path, description = "`<level>:<id>|<unit>|<window>`, as the budgets show it")),
    request_body = Why,
    responses((status = 200, body = Lifted),
        (status = 409, description = "No policy suspends who uses it up", body = ProblemBody, content_type = "application/problem+json"), BodyProblems))]
async fn lift(
    operator: Operator,
    State(state): State<ControlPlane>,
    Path((_, account)): Path<(String, String)>,
    JsonBody(why): JsonBody<Why>,
) -> Result<Json<Lifted>, Problem> {
    text::line("reason", &why.reason, MAX_REASON_CHARS)?;
    let workspace = &operator.workspace;
    let now = state.now();
    let mut write = state.store().write().await?;
    let leased: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM leases WHERE workspace = $1 AND account = $2 AND window_start <= $3 AND window_end > $3",
    )
    .bind(workspace.as_str())
    .bind(&account)
    .bind(now.secs())
    .fetch_one(&mut *write)
    .await?;
    let parsed = Account::parse(&account).filter(|_| leased > 0);
    let Some(parsed) = parsed else {
        return Err(Problem::new(
            Kind::NotFound,
            "nothing has been spent from an account of this name in its running window",
        ));
    };
    if !may_be_suspended(&state, &mut write, workspace, &parsed).await? {
        return Err(Problem::new(
            Kind::Conflict,
            "no policy suspends whoever uses this budget up (`action_on_exceed: suspend`), so there is nothing to lift; \
             raise its limit, or wait until it resets",
        ));
    }
    sqlx::query(
        "INSERT INTO lifted (workspace, account, at_ms) VALUES ($1, $2, $3)
         ON CONFLICT (workspace, account) DO UPDATE SET at_ms = excluded.at_ms",
    )
    .bind(workspace.as_str())
    .bind(&account)
    .bind(now.millis())
    .execute(&mut *write)
    .await?;
    let event = events::New {
        kind: "budget_lifted",
        subject: &account,
        by: Some(&operator.key),
        message: &why.reason,
    };
    events::record(&mut write, workspace, now, event).await?;
    write.commit().await?;
    tracing::info!(account, by = operator.key, "suspension lifted");
    Ok(Json(Lifted {
        account,
        at_ms: now.millis(),
    }))
}

/// Whether a policy suspends whoever uses this account up, or did before it was changed: a gate that has suspended somebody keeps to it until the
/// window ends.
async fn may_be_suspended(
    state: &ControlPlane,
    connection: &mut SqliteConnection,
    workspace: &WorkspaceId,
    account: &Account,
) -> Result<bool, Problem> {
    if let Some(payload) = bundles::payload(state, workspace, connection).await? {
        let limits = super::limits(connection, workspace, &payload, account).await?;
        if limits.is_some_and(|limits| limits.suspends) {
            return Ok(true);
        }
    }
    for revision in bundles::that_suspended(connection, workspace).await? {
        let Some(payload) = bundles::kept(connection, workspace, revision).await? else {
            continue;
        };
        let limits = super::limits(connection, workspace, &payload, account).await?;
        if limits.is_some_and(|limits| limits.suspends) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What was released.
#[derive(Serialize, ToSchema)]
struct Released {
    /// The holder.
    holder: String,
    /// From how many accounts it still held something.
    accounts: usize,
}

/// Releases what a lost gate was leased and has not reported as used. Whoever does it says that the gate is gone: what it spent and did not
/// report is not counted. Not within two lease terms of the control plane's start, nor while it learns what gates hold: living ones are silent then too.
#[utoipa::path(post, path = "/v1/workspaces/{workspace}/holders/{holder}/release", tag = "budgets", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`"), ("holder" = String, Path, description = "Its name for itself, as the budgets show it")),
    request_body = Why,
    responses((status = 200, body = Released),
        (status = 409, description = "It is not known to be lost; says from when on it is", body = ProblemBody, content_type = "application/problem+json"), BodyProblems))]
async fn release(
    operator: Operator,
    State(state): State<ControlPlane>,
    Path((_, holder)): Path<(String, String)>,
    JsonBody(why): JsonBody<Why>,
) -> Result<Json<Released>, Problem> {
    text::line("reason", &why.reason, MAX_REASON_CHARS)?;
    let workspace = &operator.workspace;
    let now = state.now();
    let mut write = state.store().write().await?;
    let known: Option<(i64, i64)> = sqlx::query_as(
        "SELECT epoch, last_seen_ms FROM holders WHERE workspace = $1 AND holder = $2",
    )
    .bind(workspace.as_str())
    .bind(&holder)
    .fetch_optional(&mut *write)
    .await?;
    let Some((epoch, heard_ms)) = known else {
        return Err(Problem::new(Kind::NotFound, "no holder has this name"));
    };
    let life = Life { epoch, heard_ms };
    let listening = super::listening(&state, &mut write, workspace).await?;
    let lost = lost_of(&mut write, workspace, &holder, life, &listening, now).await?;
    let holds = lost.iter().any(|held| held.row.lease().unused() > 0);
    if !holds && !listening.is_lost(heard_ms, now.millis()) {
        return Err(Problem::new(
            Kind::Conflict,
            not_lost(&listening, heard_ms, now),
        ));
    }
    let accounts = release_all(&mut write, workspace, &holder, life, &lost, Lease::unused).await?;
    let event = events::New {
        kind: "budget_released",
        subject: &holder,
        by: Some(&operator.key),
        message: &why.reason,
    };
    events::record(&mut write, workspace, now, event).await?;
    write.commit().await?;
    tracing::info!(
        holder,
        accounts,
        by = operator.key,
        "what a lost gate held was released"
    );
    Ok(Json(Released { holder, accounts }))
}

/// Why a holder that was last heard of at `heard_ms` is not known to be lost, and until when.
fn not_lost(listening: &Listening, heard_ms: i64, now: Time) -> String {
    let why = if now.millis() < listening.learning_until_ms {
        "the database was put back to an earlier state, and it is being learned what gates hold"
    } else if heard_ms < listening.since_ms {
        "the control plane has started again, and this gate may not have been able yet to say what it has used meanwhile"
    } else {
        "this gate was heard of within two lease terms; what it holds it may be spending"
    };
    // In whole seconds, and later than the last moment.
    let after_ms = listening.lost_after_ms(heard_ms);
    let from = Time::from_secs(after_ms.div_euclid(1_000).saturating_add(1));
    format!(
        "{why}; it counts as lost from {from} on, if nothing is heard of it before: release it then"
    )
}

/// What a holder was leased in windows that still run, as far as it is lost.
async fn lost_of(
    connection: &mut SqliteConnection,
    workspace: &WorkspaceId,
    holder: &str,
    life: Life,
    listening: &Listening,
    now: Time,
) -> Result<Vec<Held>, sqlx::Error> {
    let mut held: Vec<Held> = sqlx::query_as(
        "SELECT account, holder, epoch, window_start, seq, granted, returned, settled, reserved, expires_ms, retry_ms FROM leases
         WHERE workspace = $1 AND holder = $2 AND window_end > $3",
    )
    .bind(workspace.as_str())
    .bind(holder)
    .bind(now.secs())
    .fetch_all(connection)
    .await?;
    held.retain(|held| {
        listening.is_lease_lost(life, held.row.epoch, held.row.expires_ms, now.millis())
    });
    Ok(held)
}

/// Gives back `how_much` of each of these leases in the name of their holder; says of how many there was something to give. Should it be
/// alive after all, it has to begin anew: what it knows of its leases is no longer so. Not where all are of earlier epochs, of which it tells nothing any more.
async fn release_all(
    connection: &mut SqliteConnection,
    workspace: &WorkspaceId,
    holder: &str,
    life: Life,
    leases: &[Held],
    how_much: impl Fn(&Lease) -> u64,
) -> Result<usize, Problem> {
    let mut accounts = 0;
    let mut is_running = false;
    for held in leases {
        let lease = held.row.lease();
        let amount = how_much(&lease);
        if amount == 0 {
            continue;
        }
        accounts += 1;
        is_running |= held.row.epoch >= life.epoch;
        let reserved = lease.reserved.min(lease.unused().saturating_sub(amount));
        let (Some(returned), Some(reserved)) = (
            stored(lease.returned.saturating_add(amount)),
            stored(reserved),
        ) else {
            return Err(Problem::internal(
                "lease",
                &"more was given back than can be",
            ));
        };
        sqlx::query(
            "UPDATE leases SET returned = $1, reserved = $2 WHERE workspace = $3 AND account = $4 AND window_start = $5 AND holder = $6 AND epoch = $7",
        )
        .bind(returned)
        .bind(reserved)
        .bind(workspace.as_str())
        .bind(&held.account)
        .bind(held.row.window_start)
        .bind(&held.row.holder)
        .bind(held.row.epoch)
        .execute(&mut *connection)
        .await?;
    }
    if is_running {
        sqlx::query("UPDATE holders SET epoch = epoch + 1 WHERE workspace = $1 AND holder = $2")
            .bind(workspace.as_str())
            .bind(holder)
            .execute(&mut *connection)
            .await?;
    }
    Ok(accounts)
}

/// Releases what lost holders have of budgets with `on_lost: release`, in every workspace.
pub(crate) async fn release_lost(state: &ControlPlane) -> Result<(), sqlx::Error> {
    for workspace in WorkspaceId::all(state).await? {
        if let Err(problem) = release_lost_of(&workspace, state).await {
            tracing::error!(%workspace, ?problem, "what lost gates hold could not be released; it is tried again in a minute");
        }
    }
    Ok(())
}

/// The same in one: all that they reported neither as used nor as under way.
async fn release_lost_of(workspace: &WorkspaceId, state: &ControlPlane) -> Result<(), Problem> {
    let now = state.now();
    let mut write = state.store().write().await?;
    let holders: Vec<Holds> = sqlx::query_as(
        "SELECT h.holder, h.epoch, h.last_seen_ms, MIN(CASE WHEN l.epoch < h.epoch THEN l.expires_ms END) AS left_ms
         FROM holders AS h JOIN leases AS l ON l.workspace = h.workspace AND l.holder = h.holder
         WHERE h.workspace = $1 AND l.window_end > $2 AND l.granted > l.returned + l.settled + l.reserved
         GROUP BY h.holder ORDER BY h.holder",
    )
    .bind(workspace.as_str())
    .bind(now.secs())
    .fetch_all(&mut *write)
    .await?;
    let listening = super::listening(state, &mut write, workspace).await?;
    let is_lost = |heard_ms| listening.is_lost(heard_ms, now.millis());
    let lost: Vec<Holds> = holders
        .into_iter()
        .filter(|holds| is_lost(holds.last_seen_ms) || holds.left_ms.is_some_and(is_lost))
        .collect();
    if lost.is_empty() {
        return Ok(());
    }
    let Some(payload) = bundles::payload(state, workspace, &mut write).await? else {
        return Ok(());
    };
    for holds in &lost {
        let holder = &holds.holder;
        let life = Life {
            epoch: holds.epoch,
            heard_ms: holds.last_seen_ms,
        };
        let mut released = Vec::new();
        for held in lost_of(&mut write, workspace, holder, life, &listening, now).await? {
            let Some(account) = Account::parse(&held.account) else {
                continue;
            };
            let limits = super::limits(&mut write, workspace, &payload, &account).await?;
            if limits.is_some_and(|limits| limits.release) {
                released.push(held);
            }
        }
        let neither = |lease: &Lease| lease.unused().saturating_sub(lease.reserved);
        let accounts = release_all(&mut write, workspace, holder, life, &released, neither).await?;
        if accounts == 0 {
            continue;
        }
        let event = events::New {
            kind: "budget_released",
            subject: holder,
            by: None,
            message: match is_lost(holds.last_seen_ms) {
                true => {
                    "the gate is lost, and by policy others may spend what it does not use (budget.on_lost)"
                }
                false => {
                    "the gate began anew and is done with what it held before; by policy others may spend it (budget.on_lost)"
                }
            },
        };
        events::record(&mut write, workspace, now, event).await?;
        tracing::info!(%workspace, holder, accounts, "what a lost gate held was released by policy");
    }
    write.commit().await?;
    Ok(())
}

/// Who holds something that is neither used nor under way.
#[derive(sqlx::FromRow)]
struct Holds {
    holder: String,
    epoch: i64,
    last_seen_ms: i64,
    /// When the first of the leases ended that it has left behind in earlier epochs.
    left_ms: Option<i64>,
}

/// A lease with its account.
#[derive(sqlx::FromRow)]
struct Held {
    account: String,
    #[sqlx(flatten)]
    row: Row,
}
