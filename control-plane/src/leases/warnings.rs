//! Warnings: a limit is nearly used up. Put on record once per window and threshold.

use crate::{
    events,
    store::{Write, stored},
    workspaces::WorkspaceId,
};
use sqlx::SqliteConnection;
use std::collections::BTreeSet;
use tollgate_engine::{
    ledger::{Account, Span, Window},
    time::Time,
};

/// Whether this use has reached so much of a limit, in percent.
fn reached(limit: u64, percent: u8, spent: u64) -> bool {
    let share = u128::from(limit) * u128::from(percent);
    limit > 0 && u128::from(spent) * 100 >= share
}

/// Warns of what has been reached, of these amounts and parts of them in percent, and not been warned of yet in this window.
pub(super) async fn look(
    write: &mut Write,
    workspace: &WorkspaceId,
    account: &Account,
    span: Span,
    parts: &[(u64, u8)],
    spent: u64,
    now: Time,
) -> Result<(), sqlx::Error> {
    let reached = parts
        .iter()
        .filter(|(limit, percent)| reached(*limit, *percent, spent));
    for (limit, percent) in reached {
        let (limit, percent) = (*limit, *percent);
        let name = account.to_string();
        let new = sqlx::query(
            "INSERT INTO warnings (workspace, account, window_start, amount, percent, window_end) VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT DO NOTHING",
        )
        .bind(workspace.as_str())
        .bind(&name)
        .bind(span.start)
        .bind(stored(limit).unwrap_or(i64::MAX))
        .bind(percent)
        .bind(span.end)
        .execute(&mut **write)
        .await?;
        if new.rows_affected() > 0 {
            let limit = account.unit.in_words(limit);
            let resets = match account.window {
                Window::Run => String::new(),
                _ => format!("; it resets at {}", Time::from_secs(span.end)),
            };
            let event = events::New {
                kind: "budget_warning",
                subject: &name,
                by: None,
                message: &format!("{percent} % of {limit} are used{resets}"),
            };
            events::record(write, workspace, now, event).await?;
        }
    }
    Ok(())
}

/// Which of these parts of these amounts have been warned of in a window: the parts alone, in percent. What was warned of by a limit that is no
/// more is on record among the events.
pub(super) async fn of(
    connection: &mut SqliteConnection,
    workspace: &WorkspaceId,
    account: &str,
    window_start: i64,
    parts: &[(u64, u8)],
) -> Result<Vec<i64>, sqlx::Error> {
    let warned: Vec<(i64, i64)> = sqlx::query_as(
        "SELECT amount, percent FROM warnings WHERE workspace = $1 AND account = $2 AND window_start = $3",
    )
    .bind(workspace.as_str())
    .bind(account)
    .bind(window_start)
    .fetch_all(connection)
    .await?;
    let is_set = |(amount, percent): &(i64, i64)| {
        parts.iter().any(|(limit, part)| {
            stored(*limit).unwrap_or(i64::MAX) == *amount && i64::from(*part) == *percent
        })
    };
    let percents: BTreeSet<i64> = warned
        .into_iter()
        .filter(is_set)
        .map(|(_, percent)| percent)
        .collect();
    Ok(percents.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_is_reached_by_the_amount_that_is_its_share_and_not_by_one_less() {
        let at = |limit, spent| [80, 90, 100].map(|percent| reached(limit, percent, spent));
        assert_eq!(at(1_000, 799), [false, false, false]);
        assert_eq!(at(1_000, 800), [true, false, false]);
        assert_eq!(at(1_000, 899), [true, false, false]);
        assert_eq!(at(1_000, 900), [true, true, false]);
        assert_eq!(at(1_000, 1_000), [true, true, true]);
        // 80 % of 7 are 5.6.
        assert_eq!(at(7, 5), [false, false, false]);
        assert_eq!(at(7, 6), [true, false, false]);
        assert_eq!(at(u64::MAX, u64::MAX), [true, true, true]);
        // Of nothing there is no part.
        assert_eq!(at(0, 5), [false, false, false]);
    }
}
