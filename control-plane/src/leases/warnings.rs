//! Warnings: a limit is nearly used up. Put on record once per window and threshold.

use crate::{events, store::Write, workspaces::WorkspaceId};
use sqlx::SqliteConnection;
use tollgate_engine::{
    ledger::{Account, Span, Unit},
    price::usd,
    time::Time,
};

/// The parts of a limit, in percent, that are warned of when they have been used.
const WARN_AT: [i64; 2] = [80, 90];

/// The thresholds that this use of a limit has reached.
fn reached(limit: u64, spent: u64) -> impl Iterator<Item = i64> {
    WARN_AT.into_iter().filter(move |percent| {
        let share = u128::from(limit) * u128::from(percent.unsigned_abs());
        limit > 0 && u128::from(spent) * 100 >= share
    })
}

/// Warns of what has been reached and not been warned of yet in this window.
pub(super) async fn look(
    write: &mut Write,
    workspace: &WorkspaceId,
    account: &Account,
    span: Span,
    limit: u64,
    spent: u64,
    now: Time,
) -> Result<(), sqlx::Error> {
    for percent in reached(limit, spent) {
        let name = account.to_string();
        let new = sqlx::query(
            "INSERT INTO warnings (workspace, account, window_start, percent, window_end) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT DO NOTHING",
        )
        .bind(workspace.as_str())
        .bind(&name)
        .bind(span.start)
        .bind(percent)
        .bind(span.end)
        .execute(&mut **write)
        .await?;
        if new.rows_affected() > 0 {
            let limit = match account.unit {
                Unit::NanoUsd => usd(limit),
                Unit::Calls | Unit::Tokens => format!("{limit} {}", account.unit.name()),
            };
            let event = events::New {
                kind: "budget_warning",
                subject: &name,
                by: None,
                message: &format!(
                    "{percent} % of {limit} are used; it resets at {}",
                    Time::from_secs(span.end)
                ),
            };
            events::record(write, workspace, now, event).await?;
        }
    }
    Ok(())
}

/// What has been warned of in a window.
pub(super) async fn of(
    connection: &mut SqliteConnection,
    workspace: &WorkspaceId,
    account: &str,
    window_start: i64,
) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT percent FROM warnings WHERE workspace = $1 AND account = $2 AND window_start = $3 ORDER BY percent",
    )
    .bind(workspace.as_str())
    .bind(account)
    .bind(window_start)
    .fetch_all(connection)
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_is_reached_by_the_amount_that_is_its_share_and_not_by_one_less() {
        const NONE: [i64; 0] = [];
        let at = |limit, spent| reached(limit, spent).collect::<Vec<_>>();
        assert_eq!(at(1_000, 799), NONE);
        assert_eq!(at(1_000, 800), [80]);
        assert_eq!(at(1_000, 899), [80]);
        assert_eq!(at(1_000, 900), [80, 90]);
        // 80 % of 7 are 5.6.
        assert_eq!(at(7, 5), NONE);
        assert_eq!(at(7, 6), [80]);
        assert_eq!(at(u64::MAX, u64::MAX), [80, 90]);
        // Of nothing there is no part.
        assert_eq!(at(0, 5), NONE);
    }
}
