//! Gates: who may enforce, and which holders run under each enrolment.

use crate::{
    ControlPlane,
    access::{KeyKind, Operator},
    leases,
    problem::{BodyProblems, JsonBody, Kind, Path, Problem, WorkspaceProblems},
    store::Write,
    text,
    workspaces::{TrustedKey, WorkspaceId},
};
use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use tollgate_engine::{journal::SealKey, time::Time};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(crate) fn routes() -> OpenApiRouter<ControlPlane> {
    OpenApiRouter::new()
        .routes(routes!(list, enrol))
        .routes(routes!(revoke))
}

/// A gate to be enrolled.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewGate {
    /// Where it stands, or what for.
    #[schema(
        min_length = 1,
        max_length = 128,
        pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$"
    )]
    name: String,
}

/// A gate just enrolled: all that its configuration needs.
#[derive(Serialize, ToSchema)]
struct EnrolledGate {
    /// Names the enrolment in lists and logs.
    id: String,
    /// Where it stands, or what for.
    name: String,
    /// The enrolment key; it cannot be shown again.
    key: String,
    /// `ws-<uuid>`.
    workspace: String,
    /// Keys that sign what the gate accepts.
    trust: Vec<TrustedKey>,
}

/// An enrolment and what runs under it.
#[derive(Serialize, ToSchema, sqlx::FromRow)]
struct Gate {
    /// Names the enrolment in lists and logs.
    id: String,
    /// Where it stands, or what for.
    name: String,
    /// Milliseconds since the Unix epoch.
    created_ms: i64,
    /// Milliseconds since the Unix epoch, to the minute.
    last_used_ms: Option<i64>,
    /// Milliseconds since the Unix epoch; set when its key no longer opens anything.
    revoked_ms: Option<i64>,
    /// Running gates, the last heard of first.
    #[sqlx(skip)]
    holders: Vec<Holder>,
}

/// A running gate.
#[derive(Serialize, ToSchema, sqlx::FromRow)]
struct Holder {
    #[serde(skip)]
    gate: String,
    /// Its name for itself.
    holder: String,
    /// How often it has started afresh.
    epoch: i64,
    /// The bundle revision it runs; 0 when none.
    revision: i64,
    /// Milliseconds since the Unix epoch.
    first_seen_ms: i64,
    /// Milliseconds since the Unix epoch.
    last_seen_ms: i64,
    /// Not heard of for two lease terms in which the control plane listened.
    #[sqlx(skip)]
    lost: bool,
}

/// A holder on record.
pub(crate) struct Known {
    /// Its epoch; 0 when it has never asked for a lease.
    pub(crate) epoch: i64,
}

/// Finds `holder` and notes that it was heard of. The first enrolment that uses its name owns it; for any other this is a refusal.
pub(crate) async fn heard_of(
    write: &mut Write,
    workspace: &WorkspaceId,
    gate: &str,
    holder: &str,
    now: Time,
) -> Result<Option<Known>, Problem> {
    let row: Option<(String, i64)> =
        sqlx::query_as("SELECT gate, epoch FROM holders WHERE workspace = $1 AND holder = $2")
            .bind(workspace.as_str())
            .bind(holder)
            .fetch_optional(&mut **write)
            .await?;
    match row {
        Some((owner, _)) if owner != gate => Err(Problem::new(
            Kind::Forbidden,
            "this holder belongs to another enrolment",
        )),
        Some((_, epoch)) => {
            sqlx::query(
                "UPDATE holders SET last_seen_ms = $1 WHERE workspace = $2 AND holder = $3",
            )
            .bind(now.millis())
            .bind(workspace.as_str())
            .bind(holder)
            .execute(&mut **write)
            .await?;
            Ok(Some(Known { epoch }))
        }
        None => {
            if !is_holder_name(holder) {
                return Err(Problem::new(
                    Kind::Invalid,
                    "a holder is named `h-` and 32 hex digits",
                ));
            }
            sqlx::query(
                "INSERT INTO holders (workspace, holder, gate, epoch, revision, first_seen_ms, last_seen_ms)
                 VALUES ($1, $2, $3, 0, 0, $4, $4)",
            )
            .bind(workspace.as_str())
            .bind(holder)
            .bind(gate)
            .bind(now.millis())
            .execute(&mut **write)
            .await?;
            Ok(None)
        }
    }
}

/// `h-` and 32 lower-case hex digits.
fn is_holder_name(text: &str) -> bool {
    text.strip_prefix("h-").is_some_and(|digits| {
        digits.len() == 32
            && digits
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Lists enrolments with the holders that run under them.
#[utoipa::path(get, path = "/v1/workspaces/{workspace}/gates", tag = "gates", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`")),
    responses((status = 200, body = Vec<Gate>), WorkspaceProblems))]
async fn list(
    operator: Operator,
    State(state): State<ControlPlane>,
) -> Result<Json<Vec<Gate>>, Problem> {
    let now = state.now();
    let mut connection = state.store().read().acquire().await?;
    let mut gates: Vec<Gate> = sqlx::query_as(
        "SELECT id, name, created_ms, last_used_ms, revoked_ms FROM gates WHERE workspace = $1 ORDER BY created_ms, id",
    )
    .bind(operator.workspace.as_str())
    .fetch_all(&mut *connection)
    .await?;
    let listening = leases::listening(&state, &mut connection, &operator.workspace).await?;
    let holders: Vec<Holder> = sqlx::query_as(
        "SELECT gate, holder, epoch, revision, first_seen_ms, last_seen_ms FROM holders WHERE workspace = $1
         ORDER BY last_seen_ms DESC, holder",
    )
    .bind(operator.workspace.as_str())
    .fetch_all(&mut *connection)
    .await?;
    for mut holder in holders {
        holder.lost = listening.is_lost(holder.last_seen_ms, now.millis());
        if let Some(gate) = gates.iter_mut().find(|gate| gate.id == holder.gate) {
            gate.holders.push(holder);
        }
    }
    Ok(Json(gates))
}

/// Enrols a gate. The answer is the only place where its key is shown.
#[utoipa::path(post, path = "/v1/workspaces/{workspace}/gates", tag = "gates", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`")),
    request_body = NewGate,
    responses((status = 201, body = EnrolledGate), BodyProblems))]
async fn enrol(
    operator: Operator,
    State(state): State<ControlPlane>,
    JsonBody(new): JsonBody<NewGate>,
) -> Result<(StatusCode, Json<EnrolledGate>), Problem> {
    let name = text::name("name", &new.name)?;
    let key = state.new_key(KeyKind::Gate)?;
    let mut write = state.store().write().await?;
    sqlx::query(
        "INSERT INTO gates (id, workspace, name, hash, seal_root, created_ms) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(&key.id)
    .bind(operator.workspace.as_str())
    .bind(name)
    .bind(&key.hash[..])
    .bind(&SealKey::root(&key.text)[..])
    .bind(state.now().millis())
    .execute(&mut *write)
    .await?;
    write.commit().await?;
    tracing::info!(gate = key.id, by = operator.key, "gate enrolled");
    Ok((
        StatusCode::CREATED,
        Json(EnrolledGate {
            id: key.id,
            name: name.to_owned(),
            key: key.text,
            workspace: operator.workspace.to_string(),
            trust: vec![TrustedKey::of(&state)],
        }),
    ))
}

/// Revokes an enrolment: its key opens nothing any more, and requests for a bundle that wait are ended. Its gates go on with what they have until leases and bundle end.
#[utoipa::path(delete, path = "/v1/workspaces/{workspace}/gates/{id}", tag = "gates", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`"), ("id" = String, Path, description = "Of the enrolment")),
    responses((status = 204, description = "Revoked"), WorkspaceProblems))]
async fn revoke(
    operator: Operator,
    State(state): State<ControlPlane>,
    Path((_, id)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let mut write = state.store().write().await?;
    let revoked = sqlx::query(
        "UPDATE gates SET revoked_ms = COALESCE(revoked_ms, $1) WHERE workspace = $2 AND id = $3",
    )
    .bind(state.now().millis())
    .bind(operator.workspace.as_str())
    .bind(&id)
    .execute(&mut *write)
    .await?;
    write.commit().await?;
    if revoked.rows_affected() == 0 {
        return Err(Problem::new(Kind::NotFound, "no gate has this id"));
    }
    state.announcements().announce(&operator.workspace);
    tracing::info!(gate = id, by = operator.key, "gate revoked");
    Ok(StatusCode::NO_CONTENT)
}
