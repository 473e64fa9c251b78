//! Agents: who may call, and the tokens they call with.

use crate::{
    ControlPlane,
    access::Operator,
    bundles,
    problem::{BodyProblems, JsonBody, Kind, Path, Problem, ProblemBody, WorkspaceProblems},
    store::Write,
    text,
    workspaces::WorkspaceId,
};
use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use tollgate_engine::identity::{Claims, GovernanceLevel, ISSUER, MAX_LIFE_SECS};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(crate) fn routes() -> OpenApiRouter<ControlPlane> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(revoke))
        .routes(routes!(issue_token))
}

/// How closely an agent is watched.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
enum Level {
    L0,
    L1,
    L2,
    L3,
}

impl From<Level> for GovernanceLevel {
    fn from(level: Level) -> GovernanceLevel {
        match level {
            Level::L0 => GovernanceLevel::L0,
            Level::L1 => GovernanceLevel::L1,
            Level::L2 => GovernanceLevel::L2,
            Level::L3 => GovernanceLevel::L3,
        }
    }
}

impl Level {
    const fn name(self) -> &'static str {
        match self {
            Level::L0 => "L0",
            Level::L1 => "L1",
            Level::L2 => "L2",
            Level::L3 => "L3",
        }
    }
}

/// An agent to be registered.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewAgent {
    /// Unique among the agents in service.
    #[schema(
        min_length = 1,
        max_length = 128,
        pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$"
    )]
    name: String,
    /// Its team.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 128, pattern = r"^[A-Za-z0-9._-]+$")]
    team: Option<String>,
    /// Its organisation.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 128, pattern = r"^[A-Za-z0-9._-]+$")]
    org: Option<String>,
    /// How closely it is watched.
    level: Level,
}

/// A registered agent.
#[derive(Serialize, ToSchema, sqlx::FromRow)]
struct Agent {
    /// A UUID; what tokens, policies and records name it by.
    id: String,
    /// What people call it.
    name: String,
    /// Its team.
    team: Option<String>,
    /// Its organisation.
    org: Option<String>,
    /// `L0` to `L3`.
    level: String,
    /// Milliseconds since the Unix epoch.
    created_ms: i64,
    /// Milliseconds since the Unix epoch; set when its tokens no longer count.
    revoked_ms: Option<i64>,
}

/// A token just issued.
#[derive(Serialize, ToSchema)]
struct IssuedToken {
    /// The token; the agent sends it as its API key or in `x-tollgate-token`.
    token: String,
    /// Seconds since the Unix epoch.
    expires_at: i64,
}

/// Agents whose tokens no longer count. A token lives an hour, but one whose clock is off may be accepted for longer, and the list is
/// short: all of them stay on it.
pub(crate) async fn revoked(
    write: &mut Write,
    workspace: &WorkspaceId,
) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT id FROM agents WHERE workspace = $1 AND revoked_ms IS NOT NULL ORDER BY id",
    )
    .bind(workspace.as_str())
    .fetch_all(&mut **write)
    .await
}

/// Lists the workspace's agents, revoked ones included.
#[utoipa::path(get, path = "/v1/workspaces/{workspace}/agents", tag = "agents", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`")),
    responses((status = 200, body = Vec<Agent>), WorkspaceProblems))]
async fn list(
    operator: Operator,
    State(state): State<ControlPlane>,
) -> Result<Json<Vec<Agent>>, Problem> {
    let agents = sqlx::query_as(
        "SELECT id, name, team, org, level, created_ms, revoked_ms FROM agents WHERE workspace = $1 ORDER BY created_ms, id",
    )
    .bind(operator.workspace.as_str())
    .fetch_all(state.store().read())
    .await?;
    Ok(Json(agents))
}

/// Registers an agent.
#[utoipa::path(post, path = "/v1/workspaces/{workspace}/agents", tag = "agents", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`")),
    request_body = NewAgent,
    responses((status = 201, body = Agent), (status = 409, description = "The name is taken", body = ProblemBody, content_type = "application/problem+json"), BodyProblems))]
async fn create(
    operator: Operator,
    State(state): State<ControlPlane>,
    JsonBody(new): JsonBody<NewAgent>,
) -> Result<(StatusCode, Json<Agent>), Problem> {
    let agent = Agent {
        id: uuid::Uuid::new_v4().to_string(),
        name: text::name("name", &new.name)?.to_owned(),
        team: new
            .team
            .as_deref()
            .map(|team| text::id("team", team))
            .transpose()?
            .map(str::to_owned),
        org: new
            .org
            .as_deref()
            .map(|org| text::id("org", org))
            .transpose()?
            .map(str::to_owned),
        level: new.level.name().to_owned(),
        created_ms: state.now().millis(),
        revoked_ms: None,
    };
    let mut write = state.store().write().await?;
    let made = sqlx::query(
        "INSERT INTO agents (workspace, id, name, team, org, level, created_ms) VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT DO NOTHING",
    )
    .bind(operator.workspace.as_str())
    .bind(&agent.id)
    .bind(&agent.name)
    .bind(&agent.team)
    .bind(&agent.org)
    .bind(&agent.level)
    .bind(agent.created_ms)
    .execute(&mut *write)
    .await?;
    write.commit().await?;
    if made.rows_affected() == 0 {
        return Err(Problem::new(
            Kind::Conflict,
            "an agent of this name is in service; revoke it or take another name",
        ));
    }
    tracing::info!(agent = agent.id, by = operator.key, "agent registered");
    Ok((StatusCode::CREATED, Json(agent)))
}

/// Revokes an agent: its tokens stop counting at every gate as soon as the new bundle arrives there.
#[utoipa::path(delete, path = "/v1/workspaces/{workspace}/agents/{id}", tag = "agents", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`"), ("id" = String, Path, description = "Of the agent")),
    responses((status = 204, description = "Revoked"), WorkspaceProblems))]
async fn revoke(
    operator: Operator,
    State(state): State<ControlPlane>,
    Path((_, id)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let mut write = state.store().write().await?;
    let known: Option<Option<i64>> =
        sqlx::query_scalar("SELECT revoked_ms FROM agents WHERE workspace = $1 AND id = $2")
            .bind(operator.workspace.as_str())
            .bind(&id)
            .fetch_optional(&mut *write)
            .await?;
    let Some(revoked) = known else {
        return Err(Problem::new(Kind::NotFound, "no agent has this id"));
    };
    if revoked.is_some() {
        return Ok(StatusCode::NO_CONTENT);
    }
    sqlx::query("UPDATE agents SET revoked_ms = $1 WHERE workspace = $2 AND id = $3")
        .bind(state.now().millis())
        .bind(operator.workspace.as_str())
        .bind(&id)
        .execute(&mut *write)
        .await?;
    let published = bundles::publish(&state, &mut write, &operator.workspace).await?;
    write.commit().await?;
    published.announce(&state);
    tracing::info!(agent = id, by = operator.key, "agent revoked");
    Ok(StatusCode::NO_CONTENT)
}

/// Issues an agent token, good for an hour.
#[utoipa::path(post, path = "/v1/workspaces/{workspace}/agents/{id}/tokens", tag = "agents", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`"), ("id" = String, Path, description = "Of the agent")),
    responses((status = 201, body = IssuedToken), (status = 409, description = "The agent is revoked", body = ProblemBody, content_type = "application/problem+json"), WorkspaceProblems))]
async fn issue_token(
    operator: Operator,
    State(state): State<ControlPlane>,
    Path((_, id)): Path<(String, String)>,
) -> Result<(StatusCode, Json<IssuedToken>), Problem> {
    let agent: Option<Agent> = sqlx::query_as(
        "SELECT id, name, team, org, level, created_ms, revoked_ms FROM agents WHERE workspace = $1 AND id = $2",
    )
    .bind(operator.workspace.as_str())
    .bind(&id)
    .fetch_optional(state.store().read())
    .await?;
    let Some(agent) = agent else {
        return Err(Problem::new(Kind::NotFound, "no agent has this id"));
    };
    if agent.revoked_ms.is_some() {
        return Err(Problem::new(Kind::Conflict, "the agent is revoked"));
    }
    let level = GovernanceLevel::parse(&agent.level)
        .ok_or_else(|| Problem::internal("agent", &"the stored level is none"))?;
    let issued_at = state.now().secs();
    let expires_at = issued_at.saturating_add(MAX_LIFE_SECS);
    let token = state
        .signer()
        .token(&Claims {
            iss: ISSUER.into(),
            aud: operator.workspace.to_string(),
            sub: agent.id,
            org: agent.org,
            team: agent.team,
            level,
            iat: issued_at,
            exp: expires_at,
            jti: uuid::Uuid::new_v4().to_string(),
        })
        .ok_or_else(|| Problem::internal("token", &"the claims cannot be written as JSON"))?;
    tracing::info!(agent = id, by = operator.key, "agent token issued");
    Ok((StatusCode::CREATED, Json(IssuedToken { token, expires_at })))
}
