//! Agents: who may call, and the tokens they call with.

use crate::{
    ControlPlane,
    access::{self, Operator},
    bundles,
    problem::{BodyProblems, JsonBody, Kind, Path, Problem, ProblemBody, WorkspaceProblems},
    store::Write,
    text,
    workspaces::WorkspaceId,
};
use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use tollgate_engine::{
    identity::{self, Caller, Claims, GovernanceLevel, IdentityError, MAX_CHAIN, MAX_LIFE_SECS},
    time::Time,
};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(crate) fn routes() -> OpenApiRouter<ControlPlane> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(revoke))
        .routes(routes!(issue_token))
        .routes(routes!(exchange))
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
    /// Unique among the agents in service; no UUID, as their ids are.
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

/// For whom an agent wants to act.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Exchange {
    /// The token of the agent that sends it; that one may act for another itself.
    #[schema(min_length = 1, max_length = 4096)]
    subject_token: String,
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

/// The workspace's agents, as callers.
pub(crate) async fn callers(
    write: &mut Write,
    workspace: &WorkspaceId,
    revoked_too: bool,
) -> Result<Vec<Caller>, sqlx::Error> {
    let rows: Vec<(String, Option<String>, Option<String>)> = sqlx::query_as(
        "SELECT id, org, team FROM agents WHERE workspace = $1 AND ($2 OR revoked_ms IS NULL)",
    )
    .bind(workspace.as_str())
    .bind(revoked_too)
    .fetch_all(&mut **write)
    .await?;
    let callers = rows.into_iter().map(|(agent, org, team)| Caller {
        workspace: workspace.to_string(),
        agent,
        org,
        team,
        level: GovernanceLevel::default(),
        acts_for: Vec::new(),
    });
    Ok(callers.collect())
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
    let name = text::name("name", &new.name)?;
    if uuid::Uuid::parse_str(name).is_ok() {
        // Whoever stops an agent by its id must not stop another that is called so.
        return Err(Problem::new(
            Kind::Invalid,
            "`name`: this is a UUID, as the ids of agents are; take a name that cannot be taken for an id",
        ));
    }
    let agent = Agent {
        id: uuid::Uuid::new_v4().to_string(),
        name: name.to_owned(),
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
    let published = bundles::publish(
        &state,
        &mut write,
        &operator.workspace,
        bundles::Change::Revocation,
    )
    .await?;
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
    let caller = Caller {
        workspace: operator.workspace.to_string(),
        agent: agent.id,
        org: agent.org,
        team: agent.team,
        level,
        acts_for: Vec::new(),
    };
    let expires_at = state.now().secs().saturating_add(MAX_LIFE_SECS);
    let issued = issue(&state, &caller, expires_at)?;
    tracing::info!(agent = id, by = operator.key, "agent token issued");
    Ok((StatusCode::CREATED, Json(issued)))
}

/// Exchanges the token of an agent for one with which it acts for another.
///
/// The token that comes back names both (RFC 8693 §4.1, `act`): its calls have to be allowed to each, count in the budgets of each, and end when
/// either is stopped. It expires with the first of the two tokens it was made from.
#[utoipa::path(post, path = "/v1/workspaces/{workspace}/tokens/exchange", tag = "agents", security(("agent" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`")),
    request_body = Exchange,
    responses((status = 201, body = IssuedToken), BodyProblems))]
async fn exchange(
    actor: access::Agent,
    State(state): State<ControlPlane>,
    JsonBody(asked): JsonBody<Exchange>,
) -> Result<(StatusCode, Json<IssuedToken>), Problem> {
    let refused = |why: &str| Problem::new(Kind::Invalid, format!("`subject_token`: {why}"));
    let (subject, expires) = verify(&state, &actor.workspace, &asked.subject_token)
        .await?
        .map_err(|why| refused(why.message()))?;
    let access::Agent {
        caller: mut agent,
        expires: own,
        ..
    } = actor;
    if !agent.acts_for.is_empty() {
        return Err(Problem::new(
            Kind::Invalid,
            "the token in `authorization` acts for somebody already; send the agent's own",
        ));
    }
    if subject.all().any(|one| one.agent == agent.agent) {
        return Err(refused("an agent does not act for itself"));
    }
    if subject.all().count() >= MAX_CHAIN {
        return Err(refused(&format!(
            "no more than {MAX_CHAIN} agents act for one another"
        )));
    }
    let mut last = subject;
    let mut acts_for = std::mem::take(&mut last.acts_for);
    acts_for.push(last);
    agent.acts_for = acts_for;
    let issued = issue(&state, &agent, own.min(expires).secs())?;
    let sent_by = agent.acts_for.last().map(|one| one.agent.as_str());
    tracing::info!(agent = agent.agent, sent_by, "agent token exchanged");
    Ok((StatusCode::CREATED, Json(issued)))
}

/// Signs a token for `caller`.
fn issue(state: &ControlPlane, caller: &Caller, expires_at: i64) -> Result<IssuedToken, Problem> {
    let id = uuid::Uuid::new_v4().to_string();
    let token = state
        .signer()
        .token(&Claims::of(caller, state.now().secs(), expires_at, id))
        .ok_or_else(|| Problem::internal("token", &"the claims cannot be written as JSON"))?;
    Ok(IssuedToken { token, expires_at })
}

/// Whose token it is, and when it expires, by what is signed alone; `workspace` may be any text.
pub(crate) fn signed(
    state: &ControlPlane,
    workspace: &str,
    token: &str,
) -> Result<(Caller, Time), IdentityError> {
    let keys = std::slice::from_ref(state.signer().public());
    identity::verify(token.as_bytes(), keys, workspace, state.now())
}

/// Whose token it is, and when it expires; as a gate of the workspace would say.
pub(crate) async fn verify(
    state: &ControlPlane,
    workspace: &WorkspaceId,
    token: &str,
) -> Result<Result<(Caller, Time), IdentityError>, sqlx::Error> {
    let (caller, expires) = match signed(state, workspace.as_str(), token) {
        Ok(verified) => verified,
        Err(why) => return Ok(Err(why)),
    };
    for one in caller.all() {
        let in_service: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM agents WHERE workspace = $1 AND id = $2 AND revoked_ms IS NULL)",
        )
        .bind(workspace.as_str())
        .bind(&one.agent)
        .fetch_one(state.store().read())
        .await?;
        if !in_service {
            return Ok(Err(IdentityError::Revoked));
        }
    }
    Ok(Ok((caller, expires)))
}
