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
    facts::is_run,
    halt::{self, Halt, MAX_REASON_CHARS},
    identity::Caller,
    ledger::MAX_RUN_SECS,
    time::Time,
};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

/// Halts of one workspace, beside the one of the workspace itself.
const MAX_HALTS: i64 = 500;

/// Bytes of all halts of a bundle: each has a reason of 300 characters of 4 bytes at most, a run of 128, an agent's id and what JSON puts around them,
/// together less than 1,500.
pub(crate) const MAX_BYTES: usize = (500 + 1) * 1_500;

/// With so many of them no further run is stopped, so that runs, of which there are many, leave room to stop agents and teams.
const MAX_HALTS_FOR_RUNS: i64 = MAX_HALTS / 2;

/// A run that had begun when it was stopped is over after so long, and is let go, so that there are not more and more of them.
const RUN_STOPPED_MS: i64 = MAX_RUN_SECS * 1_000;

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

/// Whom an order is about. In paths and in the database a scope, or `run:<agent>:<run>`.
struct Whom {
    scope: Scope,
    run: Option<String>,
}

impl Whom {
    fn parse(text: &str) -> Option<Whom> {
        let Some(of_agent) = text.strip_prefix("run:") else {
            let scope = Scope::parse(text)?;
            return Some(Whom { scope, run: None });
        };
        // An agent's id has no colon; the name of a run may.
        let (agent, run) = of_agent.split_once(':')?;
        let scope = Scope::parse(&format!("agent:{agent}"))?;
        is_run(run).then(|| Whom {
            scope,
            run: Some(run.to_owned()),
        })
    }
}

/// Somebody whose calls are stopped.
#[derive(Serialize, ToSchema, sqlx::FromRow)]
struct Halted {
    /// `global`, `org:<id>`, `team:<id>`, `agent:<id>` or `run:<agent>:<run>`.
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
            let Whom { scope, run } = Whom::parse(&scope)?;
            Some(Halt {
                scope,
                run,
                kind,
                reason,
            })
        })
        .collect::<Option<Vec<Halt>>>()
        .ok_or_else(|| Problem::internal("halt", &"the stored scope is none"))?;
    halts.sort_by_key(|halt| {
        let scope = match halt.scope {
            Scope::Global => 0,
            Scope::Org(_) => 1,
            Scope::Team(_) => 2,
            Scope::Agent(_) | Scope::Tool(_) => 3,
        };
        (halt.run.is_some(), scope)
    });
    Ok(halts)
}

/// Lets go of runs that are over.
pub(crate) async fn lapse(
    write: &mut Write,
    workspace: &WorkspaceId,
    now: Time,
) -> Result<(), Problem> {
    let lapsed: Vec<String> = sqlx::query_scalar(
        "DELETE FROM halts WHERE workspace = $1 AND scope LIKE 'run:%' AND at_ms <= $2 RETURNING scope",
    )
    .bind(workspace.as_str())
    .bind(now.millis().saturating_sub(RUN_STOPPED_MS))
    .fetch_all(&mut **write)
    .await?;
    for scope in lapsed {
        let event = events::New {
            kind: Order::Running.event(),
            subject: &scope,
            by: None,
            message: "it has been stopped for as long as any run lasts",
        };
        events::record(write, workspace, now, event).await?;
    }
    Ok(())
}

/// Whom a path means. Nobody is stopped by a name that is spelt wrong: there must be an agent whom it concerns. (Which runs it has, nobody knows
/// but itself, unless they are limited.)
async fn known(write: &mut Write, workspace: &WorkspaceId, whom: &str) -> Result<Whom, Problem> {
    let whom = Whom::parse(whom).ok_or_else(|| {
        Problem::new(
            Kind::NotFound,
            "whom to stop is `global`, `org:<id>`, `team:<id>`, `agent:<id>` or `run:<agent>:<run>`, \
             where a run is 1 to 128 letters, digits, `-`, `_`, `.` and `:`",
        )
    })?;
    let (sql, id) = match &whom.scope {
        Scope::Global => return Ok(whom),
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
    Ok(whom)
}

/// Policies may say that their agents are not to be paused, or killed (`agent.execution`), and so none of their runs. An order is refused where
/// that is so of everybody whom it would stop; one that is for more agents stops them all.
async fn permitted(
    write: &mut Write,
    workspace: &WorkspaceId,
    scope: &Scope,
    kind: halt::Kind,
) -> Result<(), Problem> {
    let (field, what) = match kind {
        halt::Kind::Paused => ("enable_pause", "paused"),
        halt::Kind::Killed => ("enable_cancel", "killed"),
    };
    // One that is not read any more keeps nobody from being stopped.
    let mut documents = policies::enforced(write, workspace).await?.documents;
    documents.retain(|document| match kind {
        halt::Kind::Paused => !document.execution.pause,
        halt::Kind::Killed => !document.execution.cancel,
    });
    if documents.is_empty() {
        return Ok(());
    }
    let agents = agents::callers(write, workspace, false).await?;
    let mut stopped = agents
        .iter()
        .filter(|one| covers_one(scope, one))
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

/// Pauses, kills or resumes the calls of a run, an agent, a team, an organisation or the whole workspace. A run that is stopped is let go after a
/// day, which is as long as any lasts.
#[utoipa::path(put, path = "/v1/workspaces/{workspace}/halts/{scope}", tag = "halts", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`"),
        ("scope" = String, Path, description = "`global`, `org:<id>`, `team:<id>`, `agent:<id>` or `run:<agent>:<run>`")),
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
    let whom = known(&mut write, workspace, &scope).await?;
    match new.order.kind() {
        Some(kind) => {
            permitted(&mut write, workspace, &whom.scope, kind).await?;
            // Who is stopped already takes no further place.
            let others: i64 = sqlx::query_scalar(
                "SELECT COUNT(*) FROM halts WHERE workspace = $1
                   AND NOT EXISTS (SELECT 1 FROM halts WHERE workspace = $1 AND scope = $2)",
            )
            .bind(workspace.as_str())
            .bind(&scope)
            .fetch_one(&mut *write)
            .await?;
            let (most, instead) = match (&whom.scope, &whom.run) {
                // Everybody can be stopped, whoever is stopped already.
                (Scope::Global, _) => (i64::MAX, ""),
                (_, Some(_)) => (MAX_HALTS_FOR_RUNS, "stop the agent instead"),
                (_, None) => (MAX_HALTS, "let some go, or stop the workspace instead"),
            };
            if others >= most {
                return Err(Problem::new(
                    Kind::Conflict,
                    format!("{most} are stopped already; {instead}"),
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
    let published = bundles::publish(&state, &mut write, workspace, bundles::Change::Halts).await?;
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
