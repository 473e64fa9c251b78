//! Leases: who may spend how much of which limit, and the budgets an operator sees.
//!
//! Every request is one transaction: read what all holders have of the account, decide ([`rules`]), write, commit, and only then sign.

mod calls;
pub(crate) mod recall;
mod remedies;
pub mod rules;
pub mod runs;
mod warnings;

use crate::{
    ControlPlane,
    access::{Gate, Operator},
    bundles, gates,
    problem::{BodyProblems, JsonBody, Kind, Problem, ProblemBody, Query, WorkspaceProblems},
    store::{MAX_EXACT, Write, amount, stored},
    workspaces::WorkspaceId,
};
use axum::{
    Json,
    extract::{DefaultBodyLimit, State},
    http::header,
    response::{IntoResponse, Response},
};
pub(crate) use remedies::release_lost;
use rules::{Ask, Epoch, Lease, Life, Listening, Others, Terms, learning_ms, window};
use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;
use std::collections::{BTreeSet, HashMap};
use tollgate_engine::{
    bundle::{Level, Payload, Scope},
    decide::limits_on,
    envelope::LEASES_TYPE,
    facts::{MAX_RUN_BYTES, is_run},
    identity::{Caller, GovernanceLevel},
    lease::{self, Answer, Grant, MAX_ASKS},
    ledger::{Account, Span, Unit},
    time::Time,
};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

/// 256 asks of about 250 bytes are 64 KiB; long team names may double that.
const MAX_REQUEST_BYTES: usize = 128 << 10;

/// Leases of windows that ended longer ago than this are forgotten: no settlement reaches them, and nobody looks at them any more.
const KEPT_AFTER_END_SECS: i64 = 2 * 86_400;

pub(crate) fn routes() -> OpenApiRouter<ControlPlane> {
    OpenApiRouter::new()
        .routes(routes!(lease))
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .routes(routes!(budgets))
        .merge(remedies::routes())
}

/// One holder's row of one account and window.
#[derive(sqlx::FromRow)]
struct Row {
    holder: String,
    epoch: i64,
    window_start: i64,
    seq: i64,
    granted: i64,
    returned: i64,
    settled: i64,
    reserved: i64,
    expires_ms: i64,
    retry_ms: i64,
}

impl Row {
    fn lease(&self) -> Lease {
        Lease {
            seq: amount(self.seq),
            granted: amount(self.granted),
            returned: amount(self.returned),
            settled: amount(self.settled),
            reserved: amount(self.reserved),
            expires_ms: self.expires_ms,
            retry_ms: self.retry_ms,
        }
    }
}

/// Reports what a holder has used and leases it more. Epoch 0 greets; the answer carries the epoch to go on with.
#[utoipa::path(post, path = "/v1/workspaces/{workspace}/gate/leases", tag = "gate", security(("gate" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`")),
    request_body(content = LeaseRequest, description = "What the holder has used and needs"),
    responses((status = 200, description = "A DSSE envelope of the grants", content_type = "application/json"),
        (status = 409, description = "An epoch before the holder's: an old message, of which only what was used counts", body = ProblemBody, content_type = "application/problem+json"), BodyProblems))]
async fn lease(
    gate: Gate,
    State(state): State<ControlPlane>,
    JsonBody(request): JsonBody<lease::Request>,
) -> Result<Response, Problem> {
    if request.asks.len() > MAX_ASKS {
        return Err(Problem::new(
            Kind::Invalid,
            format!("at most {MAX_ASKS} asks in one request; send the others after it"),
        ));
    }
    if !is_exact(&request) {
        return Err(Problem::new(
            Kind::Invalid,
            "a number is beyond 2⁵³−1, which not every reader of JSON takes for what it is",
        ));
    }
    let answer = settle_on(&state, &gate, &request).await?;
    let grants = &answer.grants;
    let short = grants.iter().filter(|grant| grant.retry_ms != 0).count();
    state
        .metrics()
        .leases_granted
        .inc_by(count(grants.len() - short));
    state.metrics().leases_short.inc_by(count(short));
    let envelope = state
        .signer()
        .seal(LEASES_TYPE, &answer)
        .map_err(|error| Problem::internal("lease answer", &error))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], envelope).into_response())
}

/// The holder has what we never gave, so our database was put back to an earlier state.
struct KnowsMore;

/// Why a request was not answered. Nothing was committed.
enum Unanswered {
    KnowsMore,
    /// Calls wait for these, and other gates may have what they do not use.
    OthersHave(Vec<Account>),
}

impl From<KnowsMore> for Unanswered {
    fn from(KnowsMore: KnowsMore) -> Unanswered {
        Unanswered::KnowsMore
    }
}

/// Answers a request, if need be after others have given something back.
async fn settle_on(
    state: &ControlPlane,
    gate: &Gate,
    request: &lease::Request,
) -> Result<Answer, Problem> {
    let workspace = &gate.workspace;
    let mut waits = state.recalls().would_be_heard(workspace, state.now());
    let mut learns = true;
    loop {
        let now = state.now();
        match answer(state, gate, request, waits, now).await? {
            Ok(answer) => return Ok(answer),
            Err(Unanswered::OthersHave(accounts)) => {
                let returns = state.recalls().returns(workspace);
                recall(state, workspace, &accounts, now);
                returns.await;
                waits = false;
            }
            Err(Unanswered::KnowsMore) if learns => {
                restored(state, workspace, now).await?;
                learns = false;
            }
            Err(Unanswered::KnowsMore) => {
                return Err(Problem::internal("lease answer", &"still not learning"));
            }
        }
    }
}

/// Asks gates for what they do not use of these.
fn recall(state: &ControlPlane, workspace: &WorkspaceId, accounts: &[Account], now: Time) {
    if state.recalls().want(workspace, accounts, now) {
        state.metrics().recalls.inc();
    }
}

/// One request, one transaction. Where it `waits`, it is not answered before others have been asked for what a call needs.
async fn answer(
    state: &ControlPlane,
    gate: &Gate,
    request: &lease::Request,
    waits: bool,
    now: Time,
) -> Result<Result<Answer, Unanswered>, Problem> {
    let mut write = state.store().write().await?;
    let known = gates::heard_of(
        &mut write,
        &gate.workspace,
        &gate.gate,
        &request.holder,
        now,
    )
    .await?
    .map(|known| amount(known.epoch));
    let learning_until_ms = learning_until_ms(&mut write, &gate.workspace).await?;
    let suspects = now.millis() >= learning_until_ms.saturating_add(LEARN_AGAIN_AFTER_MS);
    let epoch = match rules::epoch(known, request.epoch) {
        Epoch::Running(epoch) if suspects && known.unwrap_or(0) < epoch => {
            return Ok(Err(Unanswered::KnowsMore));
        }
        Epoch::Running(epoch) | Epoch::New(epoch) => epoch,
        Epoch::Stale(running) => {
            state.metrics().leases_stale.inc();
            take_down_late(&mut write, &gate.workspace, request, running).await?;
            write.commit().await?;
            return Err(Problem::new(
                Kind::StaleEpoch,
                format!("this holder's epoch is {running}; greet with epoch 0 to start a new one"),
            ));
        }
    };
    take_down_late(&mut write, &gate.workspace, request, epoch).await?;
    let (Some(stored_epoch), Some(revision)) = (stored(epoch), stored(request.revision)) else {
        return Err(out_of_range());
    };
    let furthest = bundles::furthest(&mut write, &gate.workspace).await?;
    if revision > furthest {
        return Err(Problem::new(
            Kind::Invalid,
            format!(
                "`revision`: no bundle of this workspace can have more than {furthest} now; restart the gate, so that it begins with the current one"
            ),
        ));
    }
    sqlx::query(
        "UPDATE holders SET epoch = $1, revision = $2 WHERE workspace = $3 AND holder = $4",
    )
    .bind(stored_epoch)
    .bind(revision)
    .bind(gate.workspace.as_str())
    .bind(&request.holder)
    .execute(&mut *write)
    .await?;
    let holder = Holder {
        name: &request.holder,
        epoch: stored_epoch,
        learning_until_ms,
        suspects,
        lifted: remedies::lifted(&mut write, &gate.workspace).await?,
    };
    let mut grants = Vec::with_capacity(request.asks.len());
    let mut wanted = Vec::new();
    let mut returned = false;
    if let Some(payload) = bundles::payload(state, &gate.workspace, &mut write).await? {
        for ask in &request.asks {
            let granted = grant(
                state,
                &mut write,
                &gate.workspace,
                &payload,
                &holder,
                ask,
                now,
            );
            match granted.await? {
                Ok(Some(granted)) => {
                    returned |= granted.gives_back;
                    wanted.extend(granted.recalls.then(|| ask.account.clone()));
                    grants.push(granted.grant);
                }
                Ok(None) => {}
                Err(why) => return Ok(Err(why.into())),
            }
        }
    }
    if waits && !wanted.is_empty() {
        return Ok(Err(Unanswered::OthersHave(wanted)));
    }
    write.commit().await?;
    recall(state, &gate.workspace, &wanted, now);
    if returned {
        state.recalls().returned(&gate.workspace);
    }
    state.mark().leased(now);
    Ok(Ok(Answer {
        workspace: gate.workspace.to_string(),
        holder: request.holder.clone(),
        epoch,
        issued_ms: now.millis(),
        learning: now.millis() < learning_until_ms,
        grants,
    }))
}

/// Takes down what a holder says it used under an earlier epoch than its running one. That only grows, so it counts however late it comes; nothing
/// else of such a report does.
async fn take_down_late(
    write: &mut Write,
    workspace: &WorkspaceId,
    request: &lease::Request,
    running: u64,
) -> Result<(), Problem> {
    // Under 0 nothing was leased.
    let is_late = |ask: &&lease::Ask| (1..running).contains(&ask.epoch);
    for ask in request.asks.iter().filter(is_late) {
        let (Some(epoch), Some(settled)) = (stored(ask.epoch), stored(ask.settled)) else {
            return Err(out_of_range());
        };
        sqlx::query(
            "UPDATE leases SET settled = $1
             WHERE workspace = $2 AND account = $3 AND window_start = $4 AND holder = $5 AND epoch = $6 AND settled < $1",
        )
        .bind(settled)
        .bind(workspace.as_str())
        .bind(ask.account.to_string())
        .bind(ask.window_start)
        .bind(&request.holder)
        .bind(epoch)
        .execute(&mut **write)
        .await?;
    }
    Ok(())
}

/// A gate that says it was granted more than we know starts the learning time, but not again and again: one that is wrong about it must not
/// keep its workspace from being granted anything.
const LEARN_AGAIN_AFTER_MS: i64 = 600_000;

/// Until when a workspace is granted nothing, because our database was put back; milliseconds since the Unix epoch.
async fn learning_until_ms(
    connection: &mut SqliteConnection,
    workspace: &WorkspaceId,
) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT learning_until_ms FROM workspaces WHERE id = $1")
        .bind(workspace.as_str())
        .fetch_one(connection)
        .await
}

/// Since when the gates of a workspace could be heard of: by that it is judged which are lost.
pub(crate) async fn listening(
    state: &ControlPlane,
    connection: &mut SqliteConnection,
    workspace: &WorkspaceId,
) -> Result<Listening, sqlx::Error> {
    Ok(Listening {
        since_ms: state.listening_since().millis(),
        learning_until_ms: learning_until_ms(connection, workspace).await?,
        term_ms: state.settings().lease_term_ms(),
    })
}

/// A gate has shown that our database was put back to an earlier state.
async fn restored(
    state: &ControlPlane,
    workspace: &WorkspaceId,
    now: Time,
) -> Result<(), sqlx::Error> {
    let until_ms = learn_until_ms(state, now);
    let mut write = state.store().write().await?;
    sqlx::query("UPDATE workspaces SET learning_until_ms = $1 WHERE id = $2")
        .bind(until_ms)
        .bind(workspace.as_str())
        .execute(&mut *write)
        .await?;
    write.commit().await?;
    tracing::warn!(
        workspace = workspace.as_str(),
        until_ms,
        "a gate was leased more than this database knows: it was put back to an earlier state. Nothing new is leased for a while"
    );
    Ok(())
}

fn learn_until_ms(state: &ControlPlane, now: Time) -> i64 {
    let term_ms = state.settings().lease_term_ms();
    now.millis().saturating_add(learning_ms(term_ms))
}

/// At the start: has this database been put back to an earlier state since we last leased anything? Then the gates know better than we do,
/// and nothing is leased until they had time to say so.
pub(crate) async fn look_back(state: &ControlPlane) -> Result<(), sqlx::Error> {
    let mut write = state.store().write().await?;
    let heard_ms: Option<i64> = sqlx::query_scalar("SELECT MAX(last_seen_ms) FROM holders")
        .fetch_one(&mut *write)
        .await?;
    let whole = match (state.mark().before(), heard_ms) {
        (Some(marked_ms), Some(heard_ms)) => marked_ms <= heard_ms,
        (Some(_), None) => false,
        (None, heard_ms) => heard_ms.is_none(),
    };
    if !whole {
        let until_ms = learn_until_ms(state, state.now());
        sqlx::query("UPDATE workspaces SET learning_until_ms = $1")
            .bind(until_ms)
            .execute(&mut *write)
            .await?;
        tracing::warn!(
            until_ms,
            "this database is older than the last lease, or was copied here. Nothing new is leased for a while"
        );
    }
    write.commit().await?;
    state.mark().start(heard_ms.unwrap_or(0));
    Ok(())
}

/// Whether every number in `request` is the one that was sent.
fn is_exact(request: &lease::Request) -> bool {
    let exact = |number: u64| stored(number).is_some_and(|number| number <= MAX_EXACT);
    exact(request.epoch)
        && exact(request.revision)
        && request.asks.iter().all(|ask| {
            exact(ask.seq)
                && exact(ask.epoch)
                && (-MAX_EXACT..=MAX_EXACT).contains(&ask.window_start)
        })
}

fn count(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn out_of_range() -> Problem {
    Problem::new(Kind::Invalid, "an amount is beyond 2⁶³−1")
}

struct Holder<'a> {
    name: &'a str,
    epoch: i64,
    /// Of its workspace.
    learning_until_ms: i64,
    /// Whether what it says may show that our database was put back.
    suspects: bool,
    /// When operators have lifted suspensions in its workspace, by account.
    lifted: HashMap<String, i64>,
}

/// What came of one ask.
struct Granted {
    grant: Grant,
    /// A call waits for what others may have.
    recalls: bool,
    /// Its holder has given something back.
    gives_back: bool,
}

/// Answers one ask; `None` where there is no limit to lease from, or no such window about now. Who has leased what has no limit any more is heard
/// to the end: it has used something since it last said so, and gives back the rest.
async fn grant(
    state: &ControlPlane,
    write: &mut Write,
    workspace: &WorkspaceId,
    payload: &Payload,
    holder: &Holder<'_>,
    ask: &lease::Ask,
    now: Time,
) -> Result<Result<Option<Granted>, KnowsMore>, Problem> {
    if let (Unit::Approvals, Some(name)) = (ask.account.unit, &ask.account.run) {
        return calls::grant(state, write, workspace, holder, (ask, name), now).await;
    }
    let limits = limits(write, workspace, payload, &ask.account).await?;
    let ended = limits.is_none();
    let limits = limits.unwrap_or_default();
    // Where there are only alerts nothing is leased, and what is used is counted all the same.
    let limit = limits.lease.unwrap_or(0);
    let run = runs::of(write, workspace, &ask.account, now).await?;
    let span = match run {
        // A call that waits is told nothing of a limit that is no more: its gate is about to have the policy that says so.
        _ if ended && ask.want > 0 && !ask.ahead => None,
        _ if ended => leased(write, workspace, holder, ask).await?,
        Some(run) => Some(run.span(&ask.account, limit, ask.window_start)),
        None => window(payload, &ask.account, ask.window_start, now),
    };
    let Some(span) = span else {
        return Ok(Ok(None));
    };
    let account = ask.account.to_string();
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT holder, epoch, window_start, seq, granted, returned, settled, reserved, expires_ms, retry_ms FROM leases
         WHERE workspace = $1 AND account = $2 AND window_start BETWEEN $3 AND $4",
    )
    .bind(workspace.as_str())
    .bind(&account)
    .bind(run.map_or(span.start, |_| i64::MIN))
    .bind(run.map_or(span.start, |_| i64::MAX))
    .fetch_all(&mut **write)
    .await?;
    // Of a run each cell is counted by itself, whenever its gate began it.
    let (mine, others): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| {
        row.holder == holder.name && row.epoch == holder.epoch && row.window_start == span.start
    });
    let others: Vec<Lease> = others.into_iter().map(Row::lease).collect();
    let mine = mine.first().map(|row| row.lease());
    let mut asked = Ask::of(ask, amount(holder.epoch));
    if ended {
        (asked.want, asked.ahead) = (0, false);
    }
    if holder.suspects && asked.knows_more(mine) {
        return Ok(Err(KnowsMore));
    }
    let terms = Terms {
        limit: run.map_or(limit, |_| runs::Run::limit(&ask.account, limit, span, now)),
        window_ms: span.end.saturating_sub(span.start).saturating_mul(1_000),
        now_ms: now.millis(),
        term_ms: state.settings().lease_term_ms(),
        learning_until_ms: holder.learning_until_ms,
    };
    let rest = Others {
        wait: state.recalls().is_wanted(workspace, &ask.account, now),
        ..Others::of(&others, now.millis())
    };
    let lease = rules::answer(mine, asked, rest, terms);
    let elsewhere = others
        .iter()
        .fold(0, |sum: u64, other| sum.saturating_add(other.settled));
    let spent = elsewhere.saturating_add(lease.settled);
    let counted_from = run.map_or(span.start, |run| run.began.unwrap_or(0));
    let window = Span {
        start: counted_from,
        end: span.end,
    };
    // With every report: the limit may have changed since the last, and another gate have used it.
    warnings::look(
        write,
        workspace,
        &ask.account,
        window,
        &limits.warn,
        spent,
        now,
    )
    .await?;
    let lifted_ms = holder.lifted.get(&account).copied().unwrap_or(0);
    if mine != Some(lease) {
        put(write, workspace, holder, &account, span, &lease).await?;
    }
    let grant = Grant {
        spent,
        lifted_ms,
        keep: rules::keep(&lease, rest, &terms),
        ..said(ask, span, &lease)
    };
    Ok(Ok(Some(Granted {
        grant,
        recalls: rules::recalls(&lease, &asked, rest, &terms),
        gives_back: lease.returned > mine.unwrap_or_default().returned,
    })))
}

/// What a holder is told of its lease, where nobody else has any and it may keep nothing.
fn said(ask: &lease::Ask, span: Span, lease: &Lease) -> Grant {
    Grant {
        account: ask.account.clone(),
        window_start: span.start,
        window_end: span.end,
        // An older ask is answered under its own number, so that the holder sees it is old.
        seq: ask.seq,
        granted: lease.granted,
        returned: lease.returned,
        settled: lease.settled,
        spent: lease.settled,
        lifted_ms: 0,
        expires_ms: lease.expires_ms,
        retry_ms: lease.retry_ms,
        keep: 0,
    }
}

/// What `holder` has of an account and window.
async fn lease_of(
    write: &mut Write,
    workspace: &WorkspaceId,
    holder: &Holder<'_>,
    account: &str,
    window_start: i64,
) -> Result<Option<Lease>, sqlx::Error> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT holder, epoch, window_start, seq, granted, returned, settled, reserved, expires_ms, retry_ms FROM leases
         WHERE workspace = $1 AND account = $2 AND window_start = $3 AND holder = $4 AND epoch = $5",
    )
    .bind(workspace.as_str())
    .bind(account)
    .bind(window_start)
    .bind(holder.name)
    .bind(holder.epoch)
    .fetch_optional(&mut **write)
    .await?;
    Ok(row.map(|row| row.lease()))
}

/// Puts down what `holder` has now.
async fn put(
    write: &mut Write,
    workspace: &WorkspaceId,
    holder: &Holder<'_>,
    account: &str,
    span: Span,
    lease: &Lease,
) -> Result<(), Problem> {
    let (Some(seq), Some(granted), Some(returned), Some(settled), Some(reserved)) = (
        stored(lease.seq),
        stored(lease.granted),
        stored(lease.returned),
        stored(lease.settled),
        stored(lease.reserved),
    ) else {
        return Err(out_of_range());
    };
    sqlx::query(
        "INSERT INTO leases (workspace, account, window_start, holder, epoch, window_end, seq, granted, returned, settled, reserved,
           expires_ms, retry_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
         ON CONFLICT (workspace, account, window_start, holder, epoch) DO UPDATE SET
           window_end = excluded.window_end, seq = excluded.seq, granted = excluded.granted, returned = excluded.returned,
           settled = excluded.settled, reserved = excluded.reserved, expires_ms = excluded.expires_ms, retry_ms = excluded.retry_ms",
    )
    .bind(workspace.as_str())
    .bind(account)
    .bind(span.start)
    .bind(holder.name)
    .bind(holder.epoch)
    .bind(span.end)
    .bind(seq)
    .bind(granted)
    .bind(returned)
    .bind(settled)
    .bind(reserved)
    .bind(lease.expires_ms)
    .bind(lease.retry_ms)
    .execute(&mut **write)
    .await?;
    Ok(())
}

/// The window of a lease that `holder` has, as it was leased; the calendar may know its time zone no more.
async fn leased(
    write: &mut Write,
    workspace: &WorkspaceId,
    holder: &Holder<'_>,
    ask: &lease::Ask,
) -> Result<Option<Span>, sqlx::Error> {
    let end: Option<i64> = sqlx::query_scalar(
        "SELECT window_end FROM leases
         WHERE workspace = $1 AND account = $2 AND window_start = $3 AND holder = $4 AND epoch = $5",
    )
    .bind(workspace.as_str())
    .bind(ask.account.to_string())
    .bind(ask.window_start)
    .bind(holder.name)
    .bind(holder.epoch)
    .fetch_optional(&mut **write)
    .await?;
    Ok(end.map(|end| Span {
        start: ask.window_start,
        end,
    }))
}

/// What is set on an account, for anybody whose spending it counts.
#[derive(Default)]
struct Limits {
    /// The smallest that refuses calls.
    lease: Option<u64>,
    /// Whether all that refuse calls let others have what a lost holder does not use.
    release: bool,
    /// Whether one of them suspends whoever has used it up.
    suspends: bool,
    /// Of which amounts a warning is put on record, and of which part of them in percent: of those that only warn, and of the smallest of the
    /// others.
    warn: Vec<(u64, u8)>,
}

/// What is set on `account`; `None` where nothing is.
async fn limits(
    connection: &mut SqliteConnection,
    workspace: &WorkspaceId,
    payload: &Payload,
    account: &Account,
) -> Result<Option<Limits>, sqlx::Error> {
    let id = account.id.as_str();
    // Documents speak of organisations, teams and single agents. So one caller of each organisation and team stands for all of them…
    let members = match account.level {
        Level::Workspace if id == workspace.as_str() => sqlx::query_as(
            "SELECT DISTINCT '', org, team FROM agents WHERE workspace = $1 AND workspace = $2",
        ),
        Level::Workspace => return Ok(None),
        Level::Org => sqlx::query_as(
            "SELECT DISTINCT '', org, team FROM agents WHERE workspace = $1 AND org = $2",
        ),
        Level::Team => sqlx::query_as(
            "SELECT DISTINCT '', org, team FROM agents WHERE workspace = $1 AND team = $2",
        ),
        Level::Agent => {
            sqlx::query_as("SELECT id, org, team FROM agents WHERE workspace = $1 AND id = $2")
        }
    };
    let mut callers: Vec<(String, Option<String>, Option<String>)> = members
        .bind(workspace.as_str())
        .bind(id)
        .fetch_all(&mut *connection)
        .await?;
    // …and those with a document of their own for themselves.
    for document in payload.documents.iter() {
        if let Scope::Agent(agent) = &document.scope
            && document.limits.iter().any(|limit| {
                limit.per == account.level
                    && limit.unit == account.unit
                    && limit.window == account.window
                    && limit.each_model == account.model.is_some()
            })
        {
            callers.extend(
                sqlx::query_as("SELECT id, org, team FROM agents WHERE workspace = $1 AND id = $2")
                    .bind(workspace.as_str())
                    .bind(&**agent)
                    .fetch_optional(&mut *connection)
                    .await?,
            );
        }
    }
    let mut lease = None;
    let mut release = true;
    let mut suspends = false;
    let mut warn = Vec::new();
    for (agent, org, team) in callers {
        let caller = Caller {
            workspace: workspace.to_string(),
            agent,
            org,
            team,
            level: GovernanceLevel::default(),
            acts_for: Vec::new(),
        };
        for limit in limits_on(payload, &caller, account) {
            if !limit.alert {
                lease = Some(lease.unwrap_or(u64::MAX).min(limit.amount));
                release &= limit.release_lost;
                suspends |= limit.suspend;
            }
            let parts = limit.warnings().map(|part| (limit.amount, part));
            warn.extend(parts.map(|part| (limit.alert, part)));
        }
    }
    // Beyond the smallest that refuses nothing is spent.
    let counts = |(alert, (amount, _)): &(bool, (u64, u8))| *alert || Some(*amount) == lease;
    let warn: BTreeSet<(u64, u8)> = warn
        .into_iter()
        .filter(counts)
        .map(|(_, part)| part)
        .collect();
    Ok((lease.is_some() || !warn.is_empty()).then(|| Limits {
        lease,
        release: release && lease.is_some(),
        suspends,
        warn: warn.into_iter().collect(),
    }))
}

/// Forgets leases of windows long past.
pub(crate) async fn prune(state: &ControlPlane) -> Result<(), sqlx::Error> {
    let mut write = state.store().write().await?;
    let before = state.now().secs().saturating_sub(KEPT_AFTER_END_SECS);
    for sql in [
        "DELETE FROM leases WHERE window_end < $1",
        "DELETE FROM warnings WHERE window_end < $1",
        // Their leases went before them: a run that is forgotten sooner could begin again, with a budget that is spent.
        "DELETE FROM runs WHERE began_ms < ($1 - 86400) * 1000",
    ] {
        sqlx::query(sql).bind(before).execute(&mut *write).await?;
    }
    write.commit().await
}

/// Reports what a holder used and asks for more.
#[derive(ToSchema)]
#[expect(
    dead_code,
    reason = "describes `engine::lease::Request` in the API document"
)]
struct LeaseRequest {
    /// `h-` and 32 hex digits.
    #[schema(pattern = "^h-[0-9a-f]{32}$")]
    holder: String,
    /// As the control plane gave it; 0 greets.
    #[schema(minimum = 0, maximum = 9007199254740991i64)]
    epoch: i64,
    /// The bundle revision this gate runs; 0 when none.
    #[schema(minimum = 0, maximum = 9007199254740991i64)]
    revision: i64,
    /// One per account and window.
    #[schema(max_items = 256)]
    asks: Vec<LeaseAsk>,
}

/// One account of a [`LeaseRequest`].
#[derive(ToSchema)]
#[expect(
    dead_code,
    reason = "describes `engine::lease::Ask` in the API document"
)]
struct LeaseAsk {
    /// `<level>:<id>|<unit>|<window>`, with `|tool:<name>` behind it where one tool is counted (`|tool:<name>*<document>`: in calls that a document is about; without a name, all tools that it does not name), or `|model:<name>` where each model is; the window of a run is `run:<name>`
    #[schema(
        pattern = r"^(workspace|org|team|agent):[^|]+\|(calls|tokens|nano_usd|errors|seconds|goals)\|(minute|hour|(day|week|month)@[A-Za-z0-9_+/-]+|run:[A-Za-z0-9_.:-]+)(\|tool:.+|\|model:[^|]+)?$"
    )]
    account: String,
    /// Seconds since the Unix epoch.
    #[schema(minimum = -9007199254740991i64, maximum = 9007199254740991i64)]
    window_start: i64,
    /// Grows with every ask.
    #[schema(minimum = 0, maximum = 9007199254740991i64)]
    seq: i64,
    /// The epoch under which the amounts were leased and counted; of an earlier one only what was used counts.
    #[schema(minimum = 0, maximum = 9007199254740991i64)]
    epoch: i64,
    /// Leased to this holder in this window, as it knows, in decimal digits.
    #[schema(pattern = "^[0-9]{1,18}$")]
    granted: String,
    /// Given back of that.
    #[schema(pattern = "^[0-9]{1,18}$")]
    returned: String,
    /// Used so far in this window by this holder, in decimal digits.
    #[schema(pattern = "^[0-9]{1,19}$")]
    settled: String,
    /// Worst case of the calls under way.
    #[schema(pattern = "^[0-9]{1,19}$")]
    reserved: String,
    /// Needed beyond what is granted.
    #[schema(pattern = "^[0-9]{1,19}$")]
    want: String,
}

/// An account in its running window. Amounts are decimal digits in the account's unit.
#[derive(Serialize, ToSchema)]
struct Budget {
    /// `<level>:<id>|<unit>|<window>`
    account: String,
    /// Start of the window; seconds since the Unix epoch.
    window_start: i64,
    /// When it starts afresh; seconds since the Unix epoch.
    resets_at: i64,
    /// The limit now; null when no policy sets one any more.
    limit: Option<String>,
    /// Really used, as reported.
    settled: String,
    /// Worst case of calls under way.
    reserved: String,
    /// Leased to running gates and not used.
    leased: String,
    /// Leased to gates that are lost and not known to be used; gone until the window ends.
    forfeited: String,
    /// Left to lease.
    available: String,
    /// The parts of the limits there are now, in percent, that have been used and warned of in this window.
    warned: Vec<i64>,
    /// Who has what; nobody, of the time of a run.
    holders: Vec<BudgetHolder>,
}

/// What one holder has of a [`Budget`].
#[derive(Serialize, ToSchema)]
struct BudgetHolder {
    /// What people call its enrolment.
    gate: String,
    /// Its name for itself.
    holder: String,
    /// The epoch it was granted under.
    epoch: i64,
    /// Leased in all.
    granted: String,
    /// Given back of that.
    returned: String,
    /// Really used, as reported.
    settled: String,
    /// Worst case of calls under way.
    reserved: String,
    /// The lease ends; milliseconds since the Unix epoch.
    expires_ms: i64,
    /// Whether the rest is forfeited.
    lost: bool,
}

/// Which budgets to show.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Shown {
    /// Those of runs of this name, instead of those that start afresh by the calendar.
    #[param(pattern = "^[A-Za-z0-9_.:-]{1,128}$")]
    run: Option<String>,
}

/// The accounts that gates have asked for, in their running windows.
#[utoipa::path(get, path = "/v1/workspaces/{workspace}/budgets", tag = "budgets", security(("operator" = [])),
    params(("workspace" = String, Path, description = "`ws-<uuid>`"), Shown),
    responses((status = 200, body = Vec<Budget>), WorkspaceProblems))]
async fn budgets(
    operator: Operator,
    State(state): State<ControlPlane>,
    Query(shown): Query<Shown>,
) -> Result<Json<Vec<Budget>>, Problem> {
    if shown.run.as_deref().is_some_and(|run| !is_run(run)) {
        return Err(Problem::new(
            Kind::Malformed,
            format!("`run` must be 1 to {MAX_RUN_BYTES} letters, digits, `-`, `_`, `.` and `:`"),
        ));
    }
    let now = state.now();
    let workspace = &operator.workspace;
    let mut connection = state.store().read().acquire().await?;
    let accounts = match &shown.run {
        None => running(&mut connection, workspace, now).await?,
        Some(run) => runs::accounts(&mut connection, workspace, run, now).await?,
    };
    let payload = bundles::payload(&state, workspace, &mut connection).await?;
    let listening = listening(&state, &mut connection, workspace).await?;
    let mut budgets = Vec::with_capacity(accounts.len());
    for (account, window_start, resets_at) in accounts {
        let parsed = Account::parse(&account);
        let unit = parsed.as_ref().map(|account| account.unit);
        let limits = match (&payload, parsed) {
            (Some(payload), Some(account)) => {
                limits(&mut connection, workspace, payload, &account).await?
            }
            _ => None,
        };
        let limits = limits.unwrap_or_default();
        let alerts = limits.warn.iter().map(|(amount, _)| *amount);
        let limit = limits.lease.or(alerts.min());
        let (sums, holders) = match unit {
            Some(Unit::Seconds) => (Sums::of_time(window_start, limit, now), Vec::new()),
            _ => {
                let start = shown.run.is_none().then_some(window_start);
                let window = (account.as_str(), start);
                held(&mut connection, workspace, window, &listening, now).await?
            }
        };
        budgets.push(Budget {
            warned: warnings::of(
                &mut connection,
                workspace,
                &account,
                window_start,
                &limits.warn,
            )
            .await?,
            account,
            window_start,
            resets_at,
            limit: limit.map(|limit| limit.to_string()),
            settled: sums.settled.to_string(),
            reserved: sums.reserved.to_string(),
            leased: sums.leased.to_string(),
            forfeited: sums.forfeited.to_string(),
            available: limit.unwrap_or(0).saturating_sub(sums.taken).to_string(),
            holders,
        });
    }
    Ok(Json(budgets))
}

/// Who has what of an account in one window, or, without its start, in all of a run's.
async fn held(
    connection: &mut SqliteConnection,
    workspace: &WorkspaceId,
    (account, window_start): (&str, Option<i64>),
    listening: &Listening,
    now: Time,
) -> Result<(Sums, Vec<BudgetHolder>), sqlx::Error> {
    let rows: Vec<HolderRow> = sqlx::query_as(
        "SELECT g.name AS gate, l.holder, l.epoch, l.granted, l.returned, l.settled, l.reserved, l.expires_ms, h.epoch AS running, h.last_seen_ms
         FROM leases AS l JOIN holders AS h ON h.workspace = l.workspace AND h.holder = l.holder JOIN gates AS g ON g.id = h.gate
         WHERE l.workspace = $1 AND l.account = $2 AND l.window_start BETWEEN $3 AND $4 ORDER BY l.holder, l.epoch, l.window_start",
    )
    .bind(workspace.as_str())
    .bind(account)
    .bind(window_start.unwrap_or(i64::MIN))
    .bind(window_start.unwrap_or(i64::MAX))
    .fetch_all(connection)
    .await?;
    let mut sums = Sums::default();
    let holders = rows
        .into_iter()
        .map(|row| {
            let holder = Life {
                epoch: row.running,
                heard_ms: row.last_seen_ms,
            };
            let lost = listening.is_lease_lost(holder, row.epoch, row.expires_ms, now.millis());
            sums.add(&row, lost);
            BudgetHolder {
                gate: row.gate,
                granted: row.granted.to_string(),
                returned: row.returned.to_string(),
                settled: row.settled.to_string(),
                reserved: if lost { 0 } else { row.reserved }.to_string(),
                expires_ms: row.expires_ms,
                holder: row.holder,
                epoch: row.epoch,
                lost,
            }
        })
        .collect();
    Ok((sums, holders))
}

/// The accounts that start afresh by the calendar, with their running windows.
async fn running(
    connection: &mut SqliteConnection,
    workspace: &WorkspaceId,
    now: Time,
) -> Result<Vec<(String, i64, i64)>, sqlx::Error> {
    // No name in the account of a run has the separator in it, but that of a tool may.
    sqlx::query_as(
        "SELECT DISTINCT account, window_start, window_end FROM leases
         WHERE workspace = $1 AND window_start <= $2 AND window_end > $2
           AND (account NOT GLOB 'agent:*|run:*' OR account GLOB '*|tool:*') ORDER BY account",
    )
    .bind(workspace.as_str())
    .bind(now.secs())
    .fetch_all(connection)
    .await
}

#[derive(sqlx::FromRow)]
struct HolderRow {
    gate: String,
    holder: String,
    epoch: i64,
    granted: i64,
    returned: i64,
    settled: i64,
    reserved: i64,
    expires_ms: i64,
    running: i64,
    last_seen_ms: i64,
}

#[derive(Default)]
struct Sums {
    settled: u64,
    reserved: u64,
    leased: u64,
    forfeited: u64,
    taken: u64,
}

impl Sums {
    /// Of the time of a run that began at `began`: it is used as it passes, and nobody is leased any.
    fn of_time(began: i64, limit: Option<u64>, now: Time) -> Sums {
        let passed = u64::try_from(now.secs().saturating_sub(began)).unwrap_or(0);
        let settled = passed.min(limit.unwrap_or(u64::MAX));
        Sums {
            settled,
            taken: settled,
            ..Sums::default()
        }
    }

    fn add(&mut self, row: &HolderRow, lost: bool) {
        let lease = Lease {
            granted: amount(row.granted),
            returned: amount(row.returned),
            settled: amount(row.settled),
            ..Lease::default()
        };
        let unused = lease.unused();
        self.settled = self.settled.saturating_add(lease.settled);
        self.taken = self.taken.saturating_add(lease.taken());
        if lost {
            self.forfeited = self.forfeited.saturating_add(unused);
        } else {
            self.leased = self.leased.saturating_add(unused);
            self.reserved = self.reserved.saturating_add(amount(row.reserved));
        }
    }
}
