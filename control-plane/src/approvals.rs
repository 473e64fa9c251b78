//! Approvals: which calls gates hold, what operators say to them, and the one call that a grant is good for.
//!
//! A gate that holds a call puts that on record, and the record is the request: what somebody is asked about is what stands in the audit log. A
//! grant is a right to one call, leased to the first gate that asks for it (`leases`): so it is used once, whoever has seen it.

use crate::{
    ControlPlane,
    access::Operator,
    audit::RecordFields,
    events, operators, policies,
    problem::{BodyProblems, JsonBody, Kind, Path, Problem, ProblemBody, Query, WorkspaceProblems},
    store::{MAX_EXACT, Write},
    text,
    workspaces::WorkspaceId,
};
use axum::{Json, extract::State};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use std::collections::BTreeSet;
use tollgate_engine::{approval, time::Time};
use tollgate_policy::Approvals;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

/// Requests of one agent that nobody has decided. An agent that makes up calls shall not bury those of others; what is held beyond these stands
/// in the audit log alone, and asks when it is sent again.
const MAX_OPEN: i64 = 100;
/// How often it is put on record that nobody is asked about an agent's calls; milliseconds. An hour.
const UNASKED_EVERY_MS: i64 = 3_600_000;
/// Characters of a reason.
const MAX_REASON_CHARS: usize = 300;
/// How long a decision may hold at most; seconds. A day.
const MAX_HOLDS_SECS: i64 = 86_400;
/// Most requests of one answer.
const MAX_LIMIT: u32 = 1_000;
/// The field of a policy whose rules ask for approval.
const FIELD: &str = ".requires_approval_if";

pub(crate) fn routes() -> OpenApiRouter<ControlPlane> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show, decide))
}

/// How a call is asked about, by all documents that ask.
struct Terms {
    timeout_ms: Option<i64>,
    holds_secs: i64,
    roles: BTreeSet<String>,
    channels: BTreeSet<String>,
}

impl Terms {
    /// The shortest time, and everybody whom a document names. `None` where it cannot be known who has to say yes: then nobody is asked.
    async fn of(
        write: &mut Write,
        workspace: &WorkspaceId,
        record: &RecordFields,
    ) -> Result<Option<Terms>, Problem> {
        let mut all = Vec::new();
        if tells_who_asks(record) {
            for (rule, document) in &record.reasons {
                if rule.ends_with(FIELD) {
                    let Some(document) = policies::named(write, workspace, document).await? else {
                        return Ok(None);
                    };
                    all.push(document.approvals_of(rule));
                }
            }
        } else {
            // Any of them may be the one that asks.
            let enforced = policies::enforced(write, workspace).await?;
            if !enforced.unread.is_empty() {
                return Ok(None);
            }
            let documents = enforced.documents.into_iter();
            all.extend(documents.map(|document| document.approvals));
            all.push(Approvals::default());
        }
        let secs = all.iter().map(Approvals::timeout_secs).min();
        let secs = secs
            .and_then(|secs| i64::try_from(secs).ok())
            .unwrap_or(i64::MAX);
        let waits = all.iter().all(|terms| terms.waits);
        Ok(Some(Terms {
            timeout_ms: (!waits).then_some(secs.saturating_mul(1_000)),
            holds_secs: secs.min(MAX_HOLDS_SECS),
            roles: all
                .iter()
                .filter_map(|of| of.escalation_role.clone())
                .collect(),
            channels: all.iter().flat_map(|of| of.channels.clone()).collect(),
        }))
    }
}

/// Whether a record names every document that asks: it has those before others, and says how many more there are.
fn tells_who_asks(record: &RecordFields) -> bool {
    record.asked_by_more == 0 && record.reasons.iter().any(|(rule, _)| rule.ends_with(FIELD))
}

impl Request {
    /// Whether a call that was held at `at_ms` asks for nothing that has not been asked, or answered, already.
    fn covers(&self, at_ms: i64, now: Time) -> bool {
        let known = [Some(self.asked_ms), self.decided_ms, self.used_ms];
        let late = known.into_iter().flatten().any(|since| at_ms <= since);
        late || match self.state.as_str() {
            "pending" | "granted" => true,
            // Who has said no is not asked again at once.
            "denied" => {
                let said = self.decided_ms.unwrap_or(0);
                said.saturating_add(self.holds_secs.saturating_mul(1_000)) > now.millis()
            }
            _ => false,
        }
    }
}

/// A gate has held a call.
pub(crate) async fn asked(
    write: &mut Write,
    workspace: &WorkspaceId,
    record: &RecordFields,
    text: &[u8],
    at_ms: i64,
    now: Time,
) -> Result<(), Problem> {
    let (Some(name), Some(agent)) = (&record.approval, &record.agent) else {
        return Ok(());
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return Ok(());
    };
    if !approval::is_name(name) {
        return Ok(());
    }
    let newest = find(write, workspace, name, now).await?;
    if newest
        .as_ref()
        .is_some_and(|newest| newest.covers(at_ms, now))
    {
        return Ok(());
    }
    let open: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM approvals
         WHERE workspace = $1 AND agent = $2 AND verdict IS NULL AND (expires_ms IS NULL OR expires_ms > $3)",
    )
    .bind(workspace.as_str())
    .bind(agent)
    .bind(now.millis())
    .fetch_one(&mut **write)
    .await?;
    if open >= MAX_OPEN {
        let why = format!(
            "{MAX_OPEN} of its calls wait for approval; what it sends beyond those is held and nobody is asked"
        );
        return Ok(unasked(write, workspace, agent, &why, now).await?);
    }
    let Some(terms) = Terms::of(write, workspace, record).await? else {
        let why = "a policy that asks for approval is not in service, or is not read any more, so nobody knows who may approve; apply it again";
        return Ok(unasked(write, workspace, agent, why, now).await?);
    };
    let expires_ms = terms
        .timeout_ms
        .map(|wait| now.millis().saturating_add(wait));
    let id: i64 = sqlx::query_scalar(
        "INSERT INTO approvals (workspace, name, number, agent, asked_ms, expires_ms, holds_secs, roles, channels, record)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING id",
    )
    .bind(workspace.as_str())
    .bind(name)
    .bind(newest.map_or(1, |newest| newest.number.saturating_add(1)))
    .bind(agent)
    .bind(at_ms)
    .bind(expires_ms)
    .bind(terms.holds_secs)
    .bind(sqlx::types::Json(&terms.roles))
    .bind(sqlx::types::Json(&terms.channels))
    .bind(text)
    .fetch_one(&mut **write)
    .await?;
    for channel in &terms.channels {
        sqlx::query(
            "INSERT INTO notifications (workspace, approval, channel, due_ms) VALUES ($1, $2, $3, $4)",
        )
        .bind(workspace.as_str())
        .bind(id)
        .bind(channel)
        .bind(now.millis())
        .execute(&mut **write)
        .await?;
    }
    let event = events::New {
        kind: "approval_requested",
        subject: name,
        by: None,
        message: &format!("agent {agent} uses {}", record.tools.join(", ")),
    };
    events::record(write, workspace, now, event).await?;
    Ok(())
}

/// Nobody is asked about a call that is held: that is put on record, once in a while.
async fn unasked(
    write: &mut Write,
    workspace: &WorkspaceId,
    agent: &str,
    why: &str,
    now: Time,
) -> Result<(), sqlx::Error> {
    let subject = format!("agent:{agent}");
    let last: Option<i64> = sqlx::query_scalar(
        "SELECT MAX(at_ms) FROM events WHERE kind = 'approval_unasked' AND workspace = $1 AND subject = $2",
    )
    .bind(workspace.as_str())
    .bind(&subject)
    .fetch_one(&mut **write)
    .await?;
    if last.is_some_and(|last| now.millis().saturating_sub(last) < UNASKED_EVERY_MS) {
        return Ok(());
    }
    let event = events::New {
        kind: "approval_unasked",
        subject: &subject,
        by: None,
        message: why,
    };
    events::record(write, workspace, now, event).await
}

/// A gate has let a call through that was approved.
pub(crate) async fn used(
    write: &mut Write,
    workspace: &WorkspaceId,
    record: &RecordFields,
    (holder, epoch): (&str, i64),
    at_ms: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE approvals SET used_by = $1, used_ms = $2 WHERE id =
           (SELECT MIN(id) FROM approvals WHERE workspace = $3 AND name = $4 AND holder = $5 AND epoch = $6 AND used_ms IS NULL)",
    )
    .bind(&record.id)
    .bind(at_ms)
    .bind(workspace.as_str())
    .bind(&record.approval)
    .bind(holder)
    .bind(epoch)
    .execute(&mut **write)
    .await?;
    Ok(())
}

/// Who asks for a call that was granted.
#[derive(Clone, Copy)]
pub(crate) struct Taker<'a> {
    pub(crate) holder: &'a str,
    pub(crate) epoch: i64,
    pub(crate) agent: &'a str,
    /// Of the call.
    pub(crate) name: &'a str,
}

/// Gives what a gate has given back to whoever asks next.
pub(crate) async fn give_back(
    write: &mut Write,
    workspace: &WorkspaceId,
    taker: Taker<'_>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE approvals SET holder = NULL, epoch = NULL WHERE id =
           (SELECT MAX(id) FROM approvals WHERE workspace = $1 AND name = $2 AND holder = $3 AND epoch = $4 AND used_ms IS NULL)",
    )
    .bind(workspace.as_str())
    .bind(taker.name)
    .bind(taker.holder)
    .bind(taker.epoch)
    .execute(&mut **write)
    .await?;
    Ok(())
}

/// Takes the one call of the newest grant, if it holds and nobody has it. Whether there was one.
pub(crate) async fn take(
    write: &mut Write,
    workspace: &WorkspaceId,
    taker: Taker<'_>,
    now: Time,
) -> Result<bool, sqlx::Error> {
    let taken = sqlx::query(
        "UPDATE approvals SET holder = $1, epoch = $2 WHERE verdict = 'granted' AND until_ms > $3 AND holder IS NULL AND used_ms IS NULL
           AND agent = $4 AND id = (SELECT MAX(id) FROM approvals WHERE workspace = $5 AND name = $6)",
    )
    .bind(taker.holder)
    .bind(taker.epoch)
    .bind(now.millis())
    .bind(taker.agent)
    .bind(workspace.as_str())
    .bind(taker.name)
    .execute(&mut **write)
    .await?;
    Ok(taken.rows_affected() > 0)
}

/// Until when what a gate has may be used; milliseconds since the Unix epoch.
pub(crate) async fn held_until(
    write: &mut Write,
    workspace: &WorkspaceId,
    taker: Taker<'_>,
) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT MAX(until_ms) FROM approvals
         WHERE workspace = $1 AND name = $2 AND holder = $3 AND epoch = $4 AND used_ms IS NULL",
    )
    .bind(workspace.as_str())
    .bind(taker.name)
    .bind(taker.holder)
    .bind(taker.epoch)
    .fetch_one(&mut **write)
    .await
}

/// A call that somebody was asked about.
#[derive(Serialize, ToSchema, sqlx::FromRow)]
struct Request {
    /// Grows with every request.
    id: i64,
    /// The call, `apr-` and 32 hex digits; as its caller was told in `x-tollgate-approval`.
    name: String,
    /// How often somebody has been asked about the same call.
    number: i64,
    /// The agent that makes it, by UUID.
    agent: String,
    /// `pending`, `granted`, `denied`; `used`: the call has been let through; `expired`: nobody decided in time; `lapsed`: it was granted, and not
    /// made in time.
    state: String,
    /// When the call was held; milliseconds since the Unix epoch.
    asked_ms: i64,
    /// Until when it can be decided; null: until it is.
    expires_ms: Option<i64>,
    /// How long a decision holds.
    #[serde(skip)]
    holds_secs: i64,
    /// What an operator must be to grant it.
    #[sqlx(json)]
    roles: BTreeSet<String>,
    /// Who is told of it.
    #[sqlx(json)]
    channels: BTreeSet<String>,
    /// When it was decided.
    decided_ms: Option<i64>,
    /// Id of the key of the operator who decided.
    by: Option<String>,
    /// What people call that key.
    by_name: Option<String>,
    /// Why.
    reason: Option<String>,
    /// Until when the call may be made that was granted.
    until_ms: Option<i64>,
    /// The gate that has been given the grant.
    holder: Option<String>,
    /// The decision that let the call through.
    used_by: Option<String>,
    /// When it was let through.
    used_ms: Option<i64>,
    /// What the gate has put on record when it held the call.
    #[schema(value_type = Object)]
    #[serde(serialize_with = "as_written")]
    record: String,
}

/// The columns of a [`Request`]; `$1` is the workspace, `$2` now.
const ROWS: &str = "SELECT * FROM (SELECT a.id, a.name, a.number, a.agent, a.asked_ms, a.expires_ms, a.holds_secs, a.roles, a.channels, a.decided_ms, a.by,
     o.name AS by_name, a.reason, a.until_ms, a.holder, a.used_by, a.used_ms, a.record,
     CASE WHEN a.used_ms IS NOT NULL THEN 'used' WHEN a.verdict = 'denied' THEN 'denied'
       WHEN a.verdict = 'granted' AND a.until_ms <= $2 THEN 'lapsed' WHEN a.verdict = 'granted' THEN 'granted'
       WHEN a.expires_ms <= $2 THEN 'expired' ELSE 'pending' END AS state
   FROM approvals AS a LEFT JOIN operators AS o ON o.id = a.by WHERE a.workspace = $1)";

/// The record as the gate wrote it.
fn as_written<S: Serializer>(record: &str, serializer: S) -> Result<S::Ok, S::Error> {
    let raw: &RawValue = serde_json::from_str(record).map_err(serde::ser::Error::custom)?;
    raw.serialize(serializer)
}

/// Which requests to show.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Shown {
    /// Only those that stand so.
    #[param(pattern = "^(pending|granted|denied|used|expired|lapsed)$")]
    state: Option<String>,
    /// Requests before this one, as `id` of the last one of the former answer; 0 begins at the newest.
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

/// What a request may stand at.
const STATES: [&str; 6] = ["pending", "granted", "denied", "used", "expired", "lapsed"];

/// Lists what operators were asked, newest first.
#[utoipa::path(get, path = "/v1/workspaces/{workspace}/approvals", tag = "approvals", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`"), Shown),
    responses((status = 200, body = Vec<Request>),
        (status = 422, description = "Out of range", body = ProblemBody, content_type = "application/problem+json"), WorkspaceProblems))]
async fn list(
    operator: Operator,
    State(state): State<ControlPlane>,
    Query(shown): Query<Shown>,
) -> Result<Json<Vec<Request>>, Problem> {
    let known = |state: &String| STATES.contains(&state.as_str());
    if !(0..=MAX_EXACT).contains(&shown.before)
        || !(1..=MAX_LIMIT).contains(&shown.limit)
        || !shown.state.as_ref().is_none_or(known)
    {
        return Err(Problem::new(
            Kind::Invalid,
            format!(
                "`before` must be between 0 and {MAX_EXACT}, `limit` between 1 and {MAX_LIMIT}, `state` one of {}",
                STATES.join(", ")
            ),
        ));
    }
    let sql = format!(
        "{ROWS} WHERE ($3 = 0 OR id < $3) AND ($4 IS NULL OR state = $4) ORDER BY id DESC LIMIT $5"
    );
    let requests: Vec<Request> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(operator.workspace.as_str())
        .bind(state.now().millis())
        .bind(shown.before)
        .bind(&shown.state)
        .bind(i64::from(shown.limit))
        .fetch_all(state.store().read())
        .await?;
    Ok(Json(requests))
}

/// The newest request about a call.
async fn find(
    connection: &mut sqlx::SqliteConnection,
    workspace: &WorkspaceId,
    name: &str,
    now: Time,
) -> Result<Option<Request>, sqlx::Error> {
    let sql = format!("{ROWS} WHERE name = $3 ORDER BY id DESC LIMIT 1");
    sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(workspace.as_str())
        .bind(now.millis())
        .bind(name)
        .fetch_optional(connection)
        .await
}

/// The same, where there must be one.
async fn newest(
    connection: &mut sqlx::SqliteConnection,
    workspace: &WorkspaceId,
    name: &str,
    now: Time,
) -> Result<Request, Problem> {
    find(connection, workspace, name, now).await?.ok_or_else(|| {
        Problem::new(
            Kind::NotFound,
            "no call of this name has been held; gates send what they have put on record within seconds",
        )
    })
}

/// Shows the newest request about a call.
#[utoipa::path(get, path = "/v1/workspaces/{workspace}/approvals/{name}", tag = "approvals", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`"), ("name" = String, Path, description = "Of the call, `apr-…`")),
    responses((status = 200, body = Request), WorkspaceProblems))]
async fn show(
    operator: Operator,
    State(state): State<ControlPlane>,
    Path((_, name)): Path<(String, String)>,
) -> Result<Json<Request>, Problem> {
    let mut connection = state.store().read().acquire().await?;
    let request = newest(&mut connection, &operator.workspace, &name, state.now()).await?;
    Ok(Json(request))
}

/// What an operator says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// The call may be made, once.
    Granted,
    /// It may not. A grant that no gate has been given yet is taken back.
    Denied,
}

/// What an operator says to a request, and why.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Decision {
    /// What.
    verdict: Verdict,
    /// Why; it stays on record.
    #[schema(
        min_length = 1,
        max_length = 300,
        pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$"
    )]
    reason: String,
    /// For how many seconds it holds; as long as the policy lets a request wait where it is not said.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 86400)]
    holds_secs: Option<i64>,
}

/// Grants or denies a call that is held.
#[utoipa::path(put, path = "/v1/workspaces/{workspace}/approvals/{name}", tag = "approvals", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`"), ("name" = String, Path, description = "Of the call, `apr-…`")),
    request_body = Decision,
    responses((status = 200, body = Request),
        (status = 409, description = "It is decided already, or its time is over", body = ProblemBody, content_type = "application/problem+json"), BodyProblems))]
async fn decide(
    operator: Operator,
    State(state): State<ControlPlane>,
    Path((_, name)): Path<(String, String)>,
    JsonBody(decision): JsonBody<Decision>,
) -> Result<Json<Request>, Problem> {
    text::line("reason", &decision.reason, MAX_REASON_CHARS)?;
    if decision
        .holds_secs
        .is_some_and(|secs| !(1..=MAX_HOLDS_SECS).contains(&secs))
    {
        return Err(Problem::new(
            Kind::Invalid,
            format!("`holds_secs` must be between 1 and {MAX_HOLDS_SECS}"),
        ));
    }
    let workspace = &operator.workspace;
    let now = state.now();
    let mut write = state.store().write().await?;
    let row = newest(&mut write, workspace, &name, now).await?;
    let (verdict, event) = match decision.verdict {
        Verdict::Granted => ("granted", "approval_granted"),
        Verdict::Denied => ("denied", "approval_denied"),
    };
    let takes_back =
        decision.verdict == Verdict::Denied && row.state == "granted" && row.holder.is_none();
    if row.state != "pending" && !takes_back {
        let why = match row.state.as_str() {
            "expired" => "nobody has decided in time; the call asks anew when it is sent again",
            "granted" if row.holder.is_some() => {
                "it is granted, and a gate has been given the grant"
            }
            "granted" => "it is granted already",
            "denied" => "it is denied already",
            "used" => "the call has been made",
            _ => {
                "it was granted, and the call was not made in time; it asks anew when it is sent again"
            }
        };
        return Err(Problem::new(Kind::Conflict, why));
    }
    if decision.verdict == Verdict::Granted {
        let has = operators::roles_of(&mut write, &operator.key).await?;
        let has = has.unwrap_or_default();
        if let Some(role) = row.roles.difference(&has).next() {
            return Err(Problem::new(
                Kind::Forbidden,
                format!(
                    "the policy wants this approved by `{role}`, which this key is not (`tollgate operator create --role`)"
                ),
            ));
        }
    }
    let holds_secs = decision.holds_secs.unwrap_or(row.holds_secs);
    let until_ms = now
        .millis()
        .saturating_add(holds_secs.saturating_mul(1_000));
    sqlx::query(
        "UPDATE approvals SET verdict = $1, decided_ms = $2, by = $3, reason = $4, until_ms = $5, holds_secs = $6 WHERE id = $7",
    )
    .bind(verdict)
    .bind(now.millis())
    .bind(&operator.key)
    .bind(&decision.reason)
    .bind((decision.verdict == Verdict::Granted).then_some(until_ms))
    .bind(holds_secs)
    .bind(row.id)
    .execute(&mut *write)
    .await?;
    let event = events::New {
        kind: event,
        subject: &name,
        by: Some(&operator.key),
        message: &decision.reason,
    };
    events::record(&mut write, workspace, now, event).await?;
    let row = newest(&mut write, workspace, &name, now).await?;
    write.commit().await?;
    tracing::info!(
        approval = name,
        by = operator.key,
        verdict,
        "a held call was decided"
    );
    Ok(Json(row))
}
