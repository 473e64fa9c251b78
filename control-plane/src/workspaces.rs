//! Workspaces: the tenants.

use crate::{
    ControlPlane,
    access::{KeyKeeper, KeyKind, NewKey, Root, Visible},
    bundles,
    operators::{self, CreatedOperator},
    policies,
    problem::{BodyProblems, JsonBody, KeyProblems, Kind, Problem, ProblemBody, WorkspaceProblems},
    text,
};
use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

/// The tenant; first argument of every function that touches the database. `ws-<uuid>` in text.
///
/// It comes from an authenticated key or from the database, never from a caller's text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct WorkspaceId(String);

impl WorkspaceId {
    /// As read from the database.
    pub(crate) fn stored(text: String) -> WorkspaceId {
        WorkspaceId(text)
    }

    /// The workspace of this name, if there is one.
    pub(crate) async fn existing(
        state: &ControlPlane,
        text: &str,
    ) -> Result<Option<WorkspaceId>, sqlx::Error> {
        let id: Option<String> = sqlx::query_scalar("SELECT id FROM workspaces WHERE id = $1")
            .bind(text)
            .fetch_optional(state.store().read())
            .await?;
        Ok(id.map(WorkspaceId))
    }

    /// Every workspace: for upkeep only, no request sees more than its own.
    pub(crate) async fn all(state: &ControlPlane) -> Result<Vec<WorkspaceId>, sqlx::Error> {
        let ids: Vec<String> = sqlx::query_scalar("SELECT id FROM workspaces ORDER BY created_ms")
            .fetch_all(state.store().read())
            .await?;
        Ok(ids.into_iter().map(WorkspaceId).collect())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for WorkspaceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

pub(crate) fn routes() -> OpenApiRouter<ControlPlane> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show))
}

/// A workspace to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewWorkspace {
    /// What people call it; unique.
    #[schema(
        min_length = 1,
        max_length = 128,
        pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$"
    )]
    name: String,
    /// Whether it starts with the policy `default-guardrails`; without any, nothing is allowed.
    #[serde(default = "yes")]
    #[schema(default = true)]
    guardrails: bool,
}

fn yes() -> bool {
    true
}

/// A workspace.
#[derive(Serialize, ToSchema)]
struct Workspace {
    /// `ws-<uuid>`.
    id: String,
    /// What people call it.
    name: String,
    /// When it was made; milliseconds since the Unix epoch.
    created_ms: i64,
}

/// A workspace just made, with its first operator key.
#[derive(Serialize, ToSchema)]
struct CreatedWorkspace {
    /// `ws-<uuid>`.
    id: String,
    /// What people call it.
    name: String,
    /// Its first operator.
    operator: CreatedOperator,
}

/// A key to be trusted.
#[derive(Serialize, ToSchema)]
pub(crate) struct TrustedKey {
    /// Names the key in envelopes and tokens.
    pub(crate) key_id: String,
    /// 32 bytes, Ed25519, base64.
    pub(crate) public_key: String,
}

impl TrustedKey {
    /// What this control plane signs with.
    pub(crate) fn of(state: &ControlPlane) -> TrustedKey {
        let key = state.signer().public();
        TrustedKey {
            key_id: key.key_id.clone(),
            public_key: tollgate_engine::bytes::to_base64(&key.public_key),
        }
    }
}

/// A workspace and what its gates trust.
#[derive(Serialize, ToSchema)]
struct WorkspaceDetails {
    /// The workspace.
    #[serde(flatten)]
    workspace: Workspace,
    /// Keys that sign its bundles, leases, tokens and audit exports.
    trust: Vec<TrustedKey>,
}

/// Lists workspaces: all of them for the root key, its own for an operator's.
#[utoipa::path(get, path = "/v1/workspaces", tag = "workspaces", security(("operator" = [])),
    responses((status = 200, body = Vec<Workspace>), KeyProblems))]
async fn list(
    Visible(own): Visible,
    State(state): State<ControlPlane>,
) -> Result<Json<Vec<Workspace>>, Problem> {
    let rows: Vec<(String, String, i64)> = sqlx::query_as(
        "SELECT id, name, created_ms FROM workspaces WHERE $1 IS NULL OR id = $1 ORDER BY created_ms, id",
    )
    .bind(own.as_ref().map(WorkspaceId::as_str))
    .fetch_all(state.store().read())
    .await?;
    let workspaces = rows
        .into_iter()
        .map(|(id, name, created_ms)| Workspace {
            id,
            name,
            created_ms,
        })
        .collect();
    Ok(Json(workspaces))
}

/// Makes a workspace with its first operator key and, unless told otherwise, the policy `default-guardrails`. Only the root key may.
#[utoipa::path(post, path = "/v1/workspaces", tag = "workspaces", security(("operator" = [])),
    request_body = NewWorkspace,
    responses((status = 201, body = CreatedWorkspace), (status = 409, description = "The name is taken", body = ProblemBody, content_type = "application/problem+json"), BodyProblems))]
async fn create(
    _: Root,
    State(state): State<ControlPlane>,
    JsonBody(new): JsonBody<NewWorkspace>,
) -> Result<(StatusCode, Json<CreatedWorkspace>), Problem> {
    let name = text::name("name", &new.name)?;
    let now = state.now();
    let id = WorkspaceId(format!("ws-{}", uuid::Uuid::new_v4()));
    let key: NewKey = state.new_key(KeyKind::Operator)?;
    let mut write = state.store().write().await?;
    let made = sqlx::query(
        "INSERT INTO workspaces (id, name, created_ms) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING",
    )
    .bind(id.as_str())
    .bind(name)
    .bind(now.millis())
    .execute(&mut *write)
    .await?;
    if made.rows_affected() == 0 {
        return Err(Problem::new(
            Kind::Conflict,
            "a workspace of this name exists",
        ));
    }
    operators::insert(&mut write, &id, &key, "first", &BTreeSet::new(), now).await?;
    if new.guardrails {
        policies::start(&mut write, &id, &key.id, now).await?;
    }
    let published = bundles::publish(&state, &mut write, &id, bundles::Change::Policies).await?;
    write.commit().await?;
    published.announce(&state);
    tracing::info!(workspace = %id, "workspace made");
    Ok((
        StatusCode::CREATED,
        Json(CreatedWorkspace {
            id: id.0,
            name: name.to_owned(),
            operator: CreatedOperator {
                id: key.id,
                name: "first".to_owned(),
                key: key.text,
            },
        }),
    ))
}

/// Shows a workspace and the keys to trust in it.
#[utoipa::path(get, path = "/v1/workspaces/{workspace}", tag = "workspaces", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`")),
    responses((status = 200, body = WorkspaceDetails), WorkspaceProblems))]
async fn show(
    keeper: KeyKeeper,
    State(state): State<ControlPlane>,
) -> Result<Json<WorkspaceDetails>, Problem> {
    let (name, created_ms): (String, i64) =
        sqlx::query_as("SELECT name, created_ms FROM workspaces WHERE id = $1")
            .bind(keeper.workspace.as_str())
            .fetch_one(state.store().read())
            .await?;
    Ok(Json(WorkspaceDetails {
        workspace: Workspace {
            id: keeper.workspace.0,
            name,
            created_ms,
        },
        trust: vec![TrustedKey::of(&state)],
    }))
}
