//! How long records are kept: as policies say (`agent.audit.retention_days`), and for ever where none does.
//!
//! A record is kept as long as any document says that covers its agent. What goes is whole batches from the begin of a journal, so that what is left
//! is still one chain: a batch stays while it, or one before it, has a record that has to stay. Where the chain begins now is put down, and an
//! export says it.

use crate::{
    ControlPlane, agents, policies, problem::Problem, store::Write, workspaces::WorkspaceId,
};
use std::{
    collections::{BTreeSet, HashMap},
    sync::atomic::{AtomicI64, Ordering},
};
use tollgate_engine::{bundle::Scope, decide::covers_one, identity::Caller, time::Time};
use tollgate_policy::Document;

/// How often it is looked at; milliseconds. An hour, of days.
const EVERY_MS: i64 = 3_600_000;

/// A day.
const DAY_MS: i64 = 86_400_000;

/// Batches that go in one transaction, so that gates are not kept waiting.
const BATCHES_AT_A_TIME: i64 = 64;

/// When it was last looked at; milliseconds since the Unix epoch.
#[derive(Debug, Default)]
pub(crate) struct Looked(AtomicI64);

/// Forgets what no policy wants kept any more.
pub(crate) async fn forget(state: &ControlPlane) -> Result<(), sqlx::Error> {
    let now = state.now();
    let Looked(last) = state.looked_at_records();
    let since = now.millis().saturating_sub(last.load(Ordering::Relaxed));
    // Also of a clock that was put back.
    if since.saturating_abs() < EVERY_MS {
        return Ok(());
    }
    last.store(now.millis(), Ordering::Relaxed);
    for workspace in WorkspaceId::all(state).await? {
        if let Err(problem) = forget_of(state, &workspace, now).await {
            // What is not forgotten now is forgotten in an hour.
            tracing::error!(
                workspace = workspace.as_str(),
                ?problem,
                "records were not forgotten"
            );
        }
    }
    Ok(())
}

/// How long records of agents are kept; milliseconds.
struct Periods {
    documents: Vec<Document>,
    agents: HashMap<String, Caller>,
}

impl Periods {
    /// `None`: for ever. Of a call whose agent nobody knows, as documents say that are about everybody.
    fn of(&self, agent: Option<&str>) -> Option<i64> {
        let caller = agent.and_then(|agent| self.agents.get(agent));
        let covering = self.documents.iter().filter(|document| match caller {
            Some(caller) => covers_one(&document.scope, caller),
            None => document.scope == Scope::Global,
        });
        let days = covering.filter_map(|document| document.audit.retention_days);
        let days = i64::try_from(days.max()?).unwrap_or(i64::MAX);
        Some(days.saturating_mul(DAY_MS))
    }
}

#[derive(sqlx::FromRow)]
struct Batch {
    id: i64,
    holder: String,
    epoch: i64,
    next_seq: i64,
    head: Vec<u8>,
    received_ms: i64,
}

async fn forget_of(
    state: &ControlPlane,
    workspace: &WorkspaceId,
    now: Time,
) -> Result<(), Problem> {
    let mut write = state.store().write().await?;
    let policies::Enforced {
        mut documents,
        unread,
    } = policies::enforced(&mut write, workspace).await?;
    if let Some(name) = unread.first() {
        // It may want records kept for longer than the others.
        let why = format!("`{name}` is not read any more, so nothing is deleted");
        return Err(Problem::internal("stored policy", &why));
    }
    documents.retain(|document| document.audit.retention_days.is_some());
    let days = documents
        .iter()
        .filter_map(|document| document.audit.retention_days);
    let Some(shortest) = days.min() else {
        return Ok(());
    };
    let shortest = i64::try_from(shortest)
        .unwrap_or(i64::MAX)
        .saturating_mul(DAY_MS);
    let agents = agents::callers(&mut write, workspace, true).await?;
    let periods = Periods {
        documents,
        agents: agents
            .into_iter()
            .map(|one| (one.agent.clone(), one))
            .collect(),
    };
    forget_requests(&mut write, workspace, &periods, now).await?;
    write.commit().await?;
    let mut stays: BTreeSet<(String, i64)> = BTreeSet::new();
    let (mut after, mut gone) = (0, 0_u64);
    loop {
        let mut write = state.store().write().await?;
        let batches: Vec<Batch> = sqlx::query_as(
            "SELECT id, holder, epoch, first_seq + count AS next_seq, head, received_ms FROM batches
             WHERE workspace = $1 AND id > $2 AND received_ms < $3 ORDER BY id LIMIT $4",
        )
        .bind(workspace.as_str())
        .bind(after)
        .bind(now.millis().saturating_sub(shortest))
        .bind(BATCHES_AT_A_TIME)
        .fetch_all(&mut *write)
        .await?;
        let Some(last) = batches.last() else {
            break;
        };
        after = last.id;
        for batch in batches {
            let journal = (batch.holder.clone(), batch.epoch);
            if stays.contains(&journal) {
                continue;
            }
            if is_over(&mut write, &batch, &periods, now).await? {
                delete(&mut write, workspace, &batch, now).await?;
                gone = gone.saturating_add(1);
            } else {
                stays.insert(journal);
            }
        }
        write.commit().await?;
    }
    if gone > 0 {
        tracing::info!(
            workspace = workspace.as_str(),
            batches = gone,
            "records were forgotten, as policies say"
        );
    }
    Ok(())
}

/// Whether every record of a batch has been kept long enough.
async fn is_over(
    write: &mut Write,
    batch: &Batch,
    periods: &Periods,
    now: Time,
) -> Result<bool, sqlx::Error> {
    let agents: Vec<Option<String>> =
        sqlx::query_scalar("SELECT DISTINCT agent FROM records WHERE batch = $1")
            .bind(batch.id)
            .fetch_all(&mut **write)
            .await?;
    let mut periods = agents.iter().map(|agent| periods.of(agent.as_deref()));
    Ok(periods.all(|period| {
        period.is_some_and(|period| batch.received_ms.saturating_add(period) < now.millis())
    }))
}

async fn delete(
    write: &mut Write,
    workspace: &WorkspaceId,
    batch: &Batch,
    now: Time,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO forgotten (workspace, holder, epoch, next_seq, head, at_ms) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (workspace, holder, epoch) DO UPDATE SET next_seq = excluded.next_seq, head = excluded.head, at_ms = excluded.at_ms",
    )
    .bind(workspace.as_str())
    .bind(&batch.holder)
    .bind(batch.epoch)
    .bind(batch.next_seq)
    .bind(&batch.head)
    .bind(now.millis())
    .execute(&mut **write)
    .await?;
    for sql in [
        "DELETE FROM records WHERE batch = $1",
        "DELETE FROM batches WHERE id = $1",
    ] {
        sqlx::query(sql)
            .bind(batch.id)
            .execute(&mut **write)
            .await?;
    }
    Ok(())
}

/// What operators were asked holds records, too.
async fn forget_requests(
    write: &mut Write,
    workspace: &WorkspaceId,
    periods: &Periods,
    now: Time,
) -> Result<(), sqlx::Error> {
    let agents: BTreeSet<String> =
        sqlx::query_scalar("SELECT DISTINCT agent FROM approvals WHERE workspace = $1")
            .bind(workspace.as_str())
            .fetch_all(&mut **write)
            .await?
            .into_iter()
            .collect();
    for agent in agents {
        let Some(period) = periods.of(Some(&agent)) else {
            continue;
        };
        let before = now.millis().saturating_sub(period);
        for sql in [
            "DELETE FROM notifications WHERE approval IN (SELECT id FROM approvals WHERE workspace = $1 AND agent = $2 AND asked_ms < $3)",
            "DELETE FROM approvals WHERE workspace = $1 AND agent = $2 AND asked_ms < $3",
        ] {
            sqlx::query(sql)
                .bind(workspace.as_str())
                .bind(&agent)
                .bind(before)
                .execute(&mut **write)
                .await?;
        }
    }
    Ok(())
}
