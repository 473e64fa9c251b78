//! Halts: whose calls operators have stopped.
//!
//! A halt is part of the bundle, so it reaches gates as policy does: those that wait for the next bundle are woken at once.

use crate::{
    ControlPlane,
    access::Operator,
    agents, bundles, events, policies,
    problem::{BodyProblems, JsonBody, Kind, Path, Problem, ProblemBody, WorkspaceProblems},
    store::Write,
    text,
    workspaces::WorkspaceId,
};
use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use tollgate_engine::{
    bundle::Scope,
    decide::covers_one,
    halt::{self, Halt, MAX_REASON_CHARS},
    identity::Caller,
};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

/// Halts of one workspace. Each takes at most 1,500 bytes of the bundle: a sixth of what a gate looks at, together.
const MAX_HALTS: i64 = 500;

pub(crate) fn routes() -> OpenApiRouter<ControlPlane> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(set))
}

/// What is to become of somebody's calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Order {
    /// They pass again.
    Running,
    /// No new call passes; what is under way comes to its end.
    Paused,
    /// No new call passes, and event streams that are under way are ended.
    Killed,
}

impl Order {
    const fn kind(self) -> Option<halt::Kind> {
        match self {
            Order::Running => None,
            Order::Paused => Some(halt::Kind::Paused),
            Order::Killed => Some(halt::Kind::Killed),
        }
    }

    /// The event that it is.
    const fn event(self) -> &'static str {
        match self {
            Order::Running => "resumed",
            Order::Paused => "paused",
            Order::Killed => "killed",
        }
    }
}

/// What an operator orders, and why.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewHalt {
    /// What is to become of the calls.
    order: Order,
    /// Why. Callers read it when they are refused.
    #[schema(
        min_length = 1,
        max_length = 300,
        pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$"
    )]
    reason: String,
}

/// Somebody whose calls are stopped.
#[derive(Serialize, ToSchema, sqlx::FromRow)]
struct Halted {
    /// `global`, `org:<id>`, `team:<id>` or `agent:<id>`.
    scope: String,
    /// `paused` or `killed`.
    kind: String,
    /// Why.
    reason: String,
    /// Id of the key of the operator who did it.
    by: String,
    /// What people call that key.
    by_name: String,
    /// Milliseconds since the Unix epoch.
    at_ms: i64,
}

/// The halts of a bundle, broadest first.
pub(crate) async fn current(
    write: &mut Write,
    workspace: &WorkspaceId,
) -> Result<Vec<Halt>, Problem> {
    let rows: Vec<(String, String, String)> =
        sqlx::query_as("SELECT scope, kind, reason FROM halts WHERE workspace = $1 ORDER BY scope")
            .bind(workspace.as_str())
            .fetch_all(&mut **write)
            .await?;
    let mut halts = rows
        .into_iter()
        .map(|(scope, kind, reason)| {
            let kind = match kind.as_str() {
                "paused" => halt::Kind::Paused,
                _ => halt::Kind::Killed,
            };
            let scope = Scope::parse(&scope)?;
            Some(Halt {
                scope,
                kind,
                reason,
            })
        })
        .collect::<Option<Vec<Halt>>>()
        .ok_or_else(|| Problem::internal("halt", &"the stored scope is none"))?;
    halts.sort_by_key(|halt| match halt.scope {
        Scope::Global => 0,
        Scope::Org(_) => 1,
        Scope::Team(_) => 2,
        Scope::Agent(_) | Scope::Tool(_) => 3,
    });
    Ok(halts)
}

/// Whom a scope in a path means. Nobody is stopped by a name that is spelt wrong: there must be an agent whom it concerns.
async fn known(write: &mut Write, workspace: &WorkspaceId, scope: &str) -> Result<(), Problem> {
    let parsed = Scope::parse(scope).ok_or_else(|| {
        Problem::new(
            Kind::NotFound,
            "whom to stop is `global`, `org:<id>`, `team:<id>` or `agent:<id>`",
        )
    })?;
    let (sql, id) = match &parsed {
        Scope::Global => return Ok(()),
        Scope::Org(id) => (
            "SELECT COUNT(*) FROM agents WHERE workspace = $1 AND org = $2",
            id,
        ),
        Scope::Team(id) => (
            "SELECT COUNT(*) FROM agents WHERE workspace = $1 AND team = $2",
            id,
        ),
        Scope::Agent(id) => (
            "SELECT COUNT(*) FROM agents WHERE workspace = $1 AND id = $2",
            id,
        ),
        Scope::Tool(_) => {
            return Err(Problem::new(
                Kind::NotFound,
                "a tool is denied by a policy document, for everybody whom it applies to",
            ));
        }
    };
    let agents: i64 = sqlx::query_scalar(sql)
        .bind(workspace.as_str())
        .bind(&**id)
        .fetch_one(&mut **write)
        .await?;
    if agents == 0 {
        return Err(Problem::new(
            Kind::NotFound,
            "no agent is, or belongs to, what this names; nobody has been stopped",
        ));
    }
    Ok(())
}

/// Policies may say that their agents are not to be paused, or killed (`agent.execution`). An order is refused where that is so of everybody whom
/// it would stop; one that is for more agents stops them all.
async fn permitted(
    write: &mut Write,
    workspace: &WorkspaceId,
    scope: &str,
    kind: halt::Kind,
) -> Result<(), Problem> {
    let (field, what) = match kind {
        halt::Kind::Paused => ("enable_pause", "paused"),
        halt::Kind::Killed => ("enable_cancel", "killed"),
    };
    let mut documents = policies::having(write, workspace, field).await?;
    documents.retain(|document| match kind {
        halt::Kind::Paused => !document.execution.pause,
        halt::Kind::Killed => !document.execution.cancel,
    });
    if documents.is_empty() {
        return Ok(());
    }
    let Some(scope) = Scope::parse(scope) else {
        return Ok(());
    };
    let agents = agents::callers(write, workspace, false).await?;
    let mut stopped = agents
        .iter()
        .filter(|one| covers_one(&scope, one))
        .peekable();
    let spared = |agent: &Caller| {
        let mut documents = documents.iter();
        documents.any(|document| covers_one(&document.scope, agent))
    };
    if stopped.peek().is_some() && stopped.all(spared) {
        let names: Vec<&str> = documents.iter().map(|document| &*document.name).collect();
        return Err(Problem::new(
            Kind::Conflict,
            format!(
                "`agent.execution.{field}: false` keeps everybody whom this would stop from being {what} (policy {}); change that first",
                names.join(", ")
            ),
        ));
    }
    Ok(())
}

/// Lists whose calls are stopped.
#[utoipa::path(get, path = "/v1/workspaces/{workspace}/halts", tag = "halts", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`")),
    responses((status = 200, body = Vec<Halted>), WorkspaceProblems))]
async fn list(
    operator: Operator,
    State(state): State<ControlPlane>,
) -> Result<Json<Vec<Halted>>, Problem> {
    let halts = sqlx::query_as(
        "SELECT h.scope, h.kind, h.reason, h.by, o.name AS by_name, h.at_ms FROM halts AS h JOIN operators AS o ON o.id = h.by
         WHERE h.workspace = $1 ORDER BY h.at_ms, h.scope",
    )
    .bind(operator.workspace.as_str())
    .fetch_all(state.store().read())
    .await?;
    Ok(Json(halts))
}

/// What was done.
#[derive(Serialize, ToSchema)]
struct Ordered {
    /// Whom it concerns.
    scope: String,
    /// The bundle revision that carries it to gates.
    revision: i64,
}

/// Pauses, kills or resumes the calls of an agent, a team, an organisation or the whole workspace.
#[utoipa::path(put, path = "/v1/workspaces/{workspace}/halts/{scope}", tag = "halts", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`"),
        ("scope" = String, Path, description = "`global`, `org:<id>`, `team:<id>` or `agent:<id>`")),
    request_body = NewHalt,
    responses((status = 200, body = Ordered),
        (status = 409, description = "Too many halts, or a policy that does not let them be stopped", body = ProblemBody, content_type = "application/problem+json"), BodyProblems))]
async fn set(
    operator: Operator,
    State(state): State<ControlPlane>,
    Path((_, scope)): Path<(String, String)>,
    JsonBody(new): JsonBody<NewHalt>,
) -> Result<Json<Ordered>, Problem> {
    text::line("reason", &new.reason, MAX_REASON_CHARS)?;
    let workspace = &operator.workspace;
    let now = state.now();
    let mut write = state.store().write().await?;
    known(&mut write, workspace, &scope).await?;
    match new.order.kind() {
        Some(kind) => {
            permitted(&mut write, workspace, &scope, kind).await?;
            let others: i64 = sqlx::query_scalar(
                "SELECT COUNT(*) FROM halts WHERE workspace = $1 AND scope <> $2",
            )
            .bind(workspace.as_str())
            .bind(&scope)
            .fetch_one(&mut *write)
            .await?;
            if others >= MAX_HALTS {
                return Err(Problem::new(
                    Kind::Conflict,
                    format!(
                        "{MAX_HALTS} are stopped already; stop their team or the workspace instead"
                    ),
                ));
            }
            sqlx::query(
                "INSERT INTO halts (workspace, scope, kind, reason, by, at_ms) VALUES ($1, $2, $3, $4, $5, $6)
                 ON CONFLICT (workspace, scope) DO UPDATE SET
                   kind = excluded.kind, reason = excluded.reason, by = excluded.by, at_ms = excluded.at_ms",
            )
            .bind(workspace.as_str())
            .bind(&scope)
            .bind(kind.name())
            .bind(&new.reason)
            .bind(&operator.key)
            .bind(now.millis())
            .execute(&mut *write)
            .await?;
        }
        None => {
            sqlx::query("DELETE FROM halts WHERE workspace = $1 AND scope = $2")
                .bind(workspace.as_str())
                .bind(&scope)
                .execute(&mut *write)
                .await?;
        }
    }
    let event = events::New {
        kind: new.order.event(),
        subject: &scope,
        by: Some(&operator.key),
        message: &new.reason,
    };
    events::record(&mut write, workspace, now, event).await?;
    let published = bundles::publish(&state, &mut write, workspace).await?;
    write.commit().await?;
    published.announce(&state);
    tracing::info!(
        scope,
        by = operator.key,
        what = new.order.event(),
        "calls stopped or let go"
    );
    Ok(Json(Ordered {
        revision: published.revision,
        scope,
    }))
}
