//! Events: what operators did about calls, and what the control plane noticed about budgets, for whoever has to account for it later.
//! What gates decided stands in their journals ([`crate::audit`]).

use crate::{
    ControlPlane,
    access::Operator,
    problem::{Kind, Problem, ProblemBody, Query, WorkspaceProblems},
    store::{MAX_EXACT, Write},
    workspaces::WorkspaceId,
};
use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use tollgate_engine::time::Time;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

/// Most events of one answer: at 1 KiB each, 1 MiB.
const MAX_LIMIT: u32 = 1_000;

pub(crate) fn routes() -> OpenApiRouter<ControlPlane> {
    OpenApiRouter::new().routes(routes!(list))
}

/// An event to be put on record.
pub(crate) struct New<'a> {
    /// What happened, such as `paused`.
    pub(crate) kind: &'static str,
    /// To whom or what: a scope, an account.
    pub(crate) subject: &'a str,
    /// The key of the operator whose doing it is; `None` where nobody did anything.
    pub(crate) by: Option<&'a str>,
    /// Why, or what there is to know.
    pub(crate) message: &'a str,
}

/// Puts an event on record, in the transaction of what it is about.
pub(crate) async fn record(
    write: &mut Write,
    workspace: &WorkspaceId,
    at: Time,
    new: New<'_>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO events (workspace, at_ms, kind, subject, by, message) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(workspace.as_str())
    .bind(at.millis())
    .bind(new.kind)
    .bind(new.subject)
    .bind(new.by)
    .bind(new.message)
    .execute(&mut **write)
    .await?;
    Ok(())
}

/// An event.
#[derive(Serialize, ToSchema, sqlx::FromRow)]
struct Event {
    /// Grows with every event.
    id: i64,
    /// Milliseconds since the Unix epoch.
    at_ms: i64,
    /// `paused`, `killed`, `resumed`; `budget_warning`, `budget_lifted`, `budget_released`; `approval_requested`, `approval_granted`,
    /// `approval_denied`, `approval_untold`, `approval_unasked`.
    kind: String,
    /// Whom or what it is about: a scope such as `agent:<id>`, an account, a holder, a held call.
    subject: String,
    /// Id of the operator's key; null where nobody did it.
    by: Option<String>,
    /// What people call that key.
    by_name: Option<String>,
    /// Why, or what there is to know.
    message: String,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Asked {
    /// Events before this one, as `id` of the last one of the former answer; 0 begins at the newest.
    #[serde(default)]
    #[param(minimum = 0, maximum = 9007199254740991i64)]
    before: i64,
    /// How many at most.
    #[serde(default = "default_limit")]
    #[param(minimum = 1, maximum = 1000)]
    limit: u32,
}

fn default_limit() -> u32 {
    100
}

/// Lists what happened, newest first.
#[utoipa::path(get, path = "/v1/workspaces/{workspace}/events", tag = "events", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`"), Asked),
    responses((status = 200, body = Vec<Event>),
        (status = 422, description = "Out of range", body = ProblemBody, content_type = "application/problem+json"), WorkspaceProblems))]
async fn list(
    operator: Operator,
    State(state): State<ControlPlane>,
    Query(asked): Query<Asked>,
) -> Result<Json<Vec<Event>>, Problem> {
    if !(0..=MAX_EXACT).contains(&asked.before) || !(1..=MAX_LIMIT).contains(&asked.limit) {
        return Err(Problem::new(
            Kind::Invalid,
            format!(
                "`before` must be between 0 and {MAX_EXACT}, `limit` between 1 and {MAX_LIMIT}"
            ),
        ));
    }
    let events = sqlx::query_as(
        "SELECT e.id, e.at_ms, e.kind, e.subject, e.by, o.name AS by_name, e.message
         FROM events AS e LEFT JOIN operators AS o ON o.id = e.by
         WHERE e.workspace = $1 AND ($2 = 0 OR e.id < $2) ORDER BY e.id DESC LIMIT $3",
    )
    .bind(operator.workspace.as_str())
    .bind(asked.before)
    .bind(asked.limit)
    .fetch_all(state.store().read())
    .await?;
    Ok(Json(events))
}
