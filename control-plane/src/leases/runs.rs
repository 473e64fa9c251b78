//! Runs of agents: when each began, and how long it lasts.

use crate::{store::Write, workspaces::WorkspaceId};
use sqlx::SqliteConnection;
use tollgate_engine::{
    ledger::{Account, MAX_RUN_SECS, Span, Unit},
    time::Time,
};

/// Runs that one agent may begin within [`PER_MS`]. A run's name is the agent's to choose; without a limit it could fill the database with them.
const MAX_BEGUN: i64 = 10_000;
/// An hour.
const PER_MS: i64 = 3_600_000;

/// A run, as it bears on one of its accounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Seconds since the Unix epoch; `None` where the agent has begun too many to begin this one.
    pub began: Option<i64>,
}

impl Run {
    /// The window of an account that is counted from `start` on by the gate that asks. It ends with the run: after the time that the account
    /// allows, if it counts time, else after the most that any run lasts. Of a run that may not begin, in 1970.
    pub fn span(self, account: &Account, limit: u64, start: i64) -> Span {
        let most = match account.unit {
            Unit::Seconds => {
                i64::try_from(limit).map_or(MAX_RUN_SECS, |secs| secs.min(MAX_RUN_SECS))
            }
            Unit::Calls
            | Unit::Tokens
            | Unit::NanoUsd
            | Unit::Errors
            | Unit::Goals
            | Unit::Approvals => MAX_RUN_SECS,
        };
        Span {
            start,
            end: self.began.map_or(0, |began| began.saturating_add(most)),
        }
    }

    /// What may be leased of the account: nothing once the run is over. Time is not shared out: every gate knows when it ends.
    pub fn limit(account: &Account, limit: u64, span: Span, now: Time) -> u64 {
        match account.unit {
            _ if span.end <= now.secs() => 0,
            Unit::Seconds => TIME,
            Unit::Calls
            | Unit::Tokens
            | Unit::NanoUsd
            | Unit::Errors
            | Unit::Goals
            | Unit::Approvals => limit,
        }
    }
}

/// More than all gates together are leased of an account from which nothing is ever taken.
const TIME: u64 = 1 << 53;

/// The run that an account belongs to, begun now if nobody has heard of it; `None` where it belongs to none.
pub(super) async fn of(
    write: &mut Write,
    workspace: &WorkspaceId,
    account: &Account,
    now: Time,
) -> Result<Option<Run>, sqlx::Error> {
    let Some(run) = &account.run else {
        return Ok(None);
    };
    let known: Option<i64> = sqlx::query_scalar(
        "SELECT began_ms FROM runs WHERE workspace = $1 AND agent = $2 AND run = $3",
    )
    .bind(workspace.as_str())
    .bind(&account.id)
    .bind(run)
    .fetch_optional(&mut **write)
    .await?;
    if let Some(began_ms) = known {
        let began = Some(began_ms.div_euclid(1_000));
        return Ok(Some(Run { began }));
    }
    let begun: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM runs WHERE workspace = $1 AND agent = $2 AND began_ms > $3",
    )
    .bind(workspace.as_str())
    .bind(&account.id)
    .bind(now.millis().saturating_sub(PER_MS))
    .fetch_one(&mut **write)
    .await?;
    if begun >= MAX_BEGUN {
        return Ok(Some(Run { began: None }));
    }
    sqlx::query("INSERT INTO runs (workspace, agent, run, began_ms) VALUES ($1, $2, $3, $4)")
        .bind(workspace.as_str())
        .bind(&account.id)
        .bind(run)
        .bind(now.millis())
        .execute(&mut **write)
        .await?;
    Ok(Some(Run {
        began: Some(now.secs()),
    }))
}

/// The accounts of the runs of one name, with when they began and end.
pub(super) async fn accounts(
    connection: &mut SqliteConnection,
    workspace: &WorkspaceId,
    run: &str,
    now: Time,
) -> Result<Vec<(String, i64, i64)>, sqlx::Error> {
    sqlx::query_as(
        "SELECT l.account, r.began_ms / 1000, MAX(l.window_end) FROM runs AS r JOIN leases AS l ON l.workspace = r.workspace
           AND l.account IN ('agent:' || r.agent || '|calls|run:' || r.run, 'agent:' || r.agent || '|errors|run:' || r.run,
             'agent:' || r.agent || '|goals|run:' || r.run,
             'agent:' || r.agent || '|nano_usd|run:' || r.run, 'agent:' || r.agent || '|seconds|run:' || r.run,
             'agent:' || r.agent || '|tokens|run:' || r.run)
         WHERE r.workspace = $1 AND r.run = $2 AND l.window_end > $3 GROUP BY l.account ORDER BY l.account",
    )
    .bind(workspace.as_str())
    .bind(run)
    .bind(now.secs())
    .fetch_all(connection)
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(unit: &str) -> Account {
        Account::parse(&format!("agent:a|{unit}|run:r")).unwrap()
    }

    #[test]
    fn a_run_ends_after_its_time_and_after_a_day_at_the_latest() {
        let run = Run { began: Some(1_000) };
        let end = |unit, limit| run.span(&account(unit), limit, 990).end;
        assert_eq!(end("seconds", 60), 1_060);
        assert_eq!(end("seconds", 1 << 40), 87_400);
        assert_eq!(end("tokens", 60), 87_400);
        assert_eq!(run.span(&account("tokens"), 60, 990).start, 990);
        let refused = Run { began: None };
        assert_eq!(refused.span(&account("tokens"), 60, 990).end, 0);
    }

    #[test]
    fn nothing_is_leased_once_it_is_over() {
        let span = Span { start: 0, end: 100 };
        let left = |unit, at| Run::limit(&account(unit), 60, span, Time::from_secs(at));
        assert_eq!((left("errors", 99), left("errors", 100)), (60, 0));
        assert_eq!((left("seconds", 99), left("seconds", 100)), (1 << 53, 0));
    }
}
