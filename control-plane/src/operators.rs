//! Operators: the API keys of people and their tools.

use crate::{
    ControlPlane,
    access::{KeyKeeper, KeyKind, NewKey},
    problem::{BodyProblems, JsonBody, Kind, Path, Problem, WorkspaceProblems},
    store::Write,
    text,
    workspaces::WorkspaceId,
};
use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use tollgate_engine::time::Time;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

/// Roles of one key.
const MAX_ROLES: usize = 16;

pub(crate) fn routes() -> OpenApiRouter<ControlPlane> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(revoke))
}

/// A key to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewOperator {
    /// Whose key, or what for.
    #[schema(
        min_length = 1,
        max_length = 128,
        pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$"
    )]
    name: String,
    /// What its bearer is beside being an operator: policies name such roles where they say who approves (`approval.escalation_role`). Only root,
    /// and who has a role, can give it.
    #[serde(default)]
    #[schema(max_items = 16)]
    roles: BTreeSet<String>,
}

/// A key just made. This is the only time it is shown.
#[derive(Serialize, ToSchema)]
pub(crate) struct CreatedOperator {
    /// Names the key in lists and logs.
    pub(crate) id: String,
    /// Whose key, or what for.
    pub(crate) name: String,
    /// The key itself; it cannot be shown again.
    pub(crate) key: String,
}

/// An operator key, without its secret.
#[derive(Serialize, ToSchema, sqlx::FromRow)]
struct Operator {
    /// Names the key in lists and logs.
    id: String,
    /// Whose key, or what for.
    name: String,
    /// What its bearer is beside being an operator.
    #[sqlx(json)]
    roles: BTreeSet<String>,
    /// Milliseconds since the Unix epoch.
    created_ms: i64,
    /// Milliseconds since the Unix epoch, to the minute.
    last_used_ms: Option<i64>,
    /// Milliseconds since the Unix epoch; set when it no longer opens anything.
    revoked_ms: Option<i64>,
}

pub(crate) async fn insert(
    write: &mut Write,
    workspace: &WorkspaceId,
    key: &NewKey,
    name: &str,
    roles: &BTreeSet<String>,
    now: Time,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO operators (id, workspace, name, roles, hash, created_ms) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(&key.id)
    .bind(workspace.as_str())
    .bind(name)
    .bind(sqlx::types::Json(roles))
    .bind(&key.hash[..])
    .bind(now.millis())
    .execute(&mut **write)
    .await?;
    Ok(())
}

/// Puts `key` in the place of the root key.
pub(crate) async fn replace_root(
    write: &mut Write,
    key: &NewKey,
    now: Time,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE operators SET revoked_ms = $1 WHERE workspace IS NULL AND revoked_ms IS NULL",
    )
    .bind(now.millis())
    .execute(&mut **write)
    .await?;
    sqlx::query(
        "INSERT INTO operators (id, workspace, name, hash, created_ms) VALUES ($1, NULL, 'root', $2, $3)",
    )
    .bind(&key.id)
    .bind(&key.hash[..])
    .bind(now.millis())
    .execute(&mut **write)
    .await?;
    Ok(())
}

/// What the bearer of an operator key is; `None` for root, who may be anything.
pub(crate) async fn roles_of(
    write: &mut Write,
    key: &str,
) -> Result<Option<BTreeSet<String>>, sqlx::Error> {
    let (workspace, roles): (Option<String>, sqlx::types::Json<BTreeSet<String>>) =
        sqlx::query_as("SELECT workspace, roles FROM operators WHERE id = $1")
            .bind(key)
            .fetch_one(&mut **write)
            .await?;
    Ok(workspace.map(|_| roles.0))
}

/// Lists the workspace's operator keys, revoked ones included.
#[utoipa::path(get, path = "/v1/workspaces/{workspace}/operators", tag = "operators", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`")),
    responses((status = 200, body = Vec<Operator>), WorkspaceProblems))]
async fn list(
    keeper: KeyKeeper,
    State(state): State<ControlPlane>,
) -> Result<Json<Vec<Operator>>, Problem> {
    let operators = sqlx::query_as(
        "SELECT id, name, roles, created_ms, last_used_ms, revoked_ms FROM operators WHERE workspace = $1 ORDER BY created_ms, id",
    )
    .bind(keeper.workspace.as_str())
    .fetch_all(state.store().read())
    .await?;
    Ok(Json(operators))
}

/// Makes an operator key. The answer is the only place where it is shown.
#[utoipa::path(post, path = "/v1/workspaces/{workspace}/operators", tag = "operators", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`")),
    request_body = NewOperator,
    responses((status = 201, body = CreatedOperator), BodyProblems))]
async fn create(
    keeper: KeyKeeper,
    State(state): State<ControlPlane>,
    JsonBody(new): JsonBody<NewOperator>,
) -> Result<(StatusCode, Json<CreatedOperator>), Problem> {
    let name = text::name("name", &new.name)?;
    if new.roles.len() > MAX_ROLES {
        return Err(Problem::new(
            Kind::Invalid,
            format!("a key has at most {MAX_ROLES} roles"),
        ));
    }
    for role in &new.roles {
        text::name("roles", role)?;
    }
    let key = state.new_key(KeyKind::Operator)?;
    let mut write = state.store().write().await?;
    if let Some(own) = roles_of(&mut write, &keeper.key).await?
        && let Some(role) = new.roles.difference(&own).next()
    {
        return Err(Problem::new(
            Kind::Forbidden,
            format!("only root, and who is `{role}`, can make somebody else `{role}`"),
        ));
    }
    let (workspace, roles) = (&keeper.workspace, &new.roles);
    insert(&mut write, workspace, &key, name, roles, state.now()).await?;
    write.commit().await?;
    tracing::info!(operator = key.id, by = keeper.key, "operator key made");
    Ok((
        StatusCode::CREATED,
        Json(CreatedOperator {
            id: key.id,
            name: name.to_owned(),
            key: key.text,
        }),
    ))
}

/// Revokes an operator key, at once. An operator may revoke its own.
#[utoipa::path(delete, path = "/v1/workspaces/{workspace}/operators/{id}", tag = "operators", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`"), ("id" = String, Path, description = "Of the key")),
    responses((status = 204, description = "Revoked"), WorkspaceProblems))]
async fn revoke(
    keeper: KeyKeeper,
    State(state): State<ControlPlane>,
    Path((_, id)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let mut write = state.store().write().await?;
    let revoked = sqlx::query(
        "UPDATE operators SET revoked_ms = COALESCE(revoked_ms, $1) WHERE workspace = $2 AND id = $3",
    )
    .bind(state.now().millis())
    .bind(keeper.workspace.as_str())
    .bind(&id)
    .execute(&mut *write)
    .await?;
    write.commit().await?;
    if revoked.rows_affected() == 0 {
        return Err(Problem::new(Kind::NotFound, "no operator key has this id"));
    }
    tracing::info!(operator = id, by = keeper.key, "operator key revoked");
    Ok(StatusCode::NO_CONTENT)
}
