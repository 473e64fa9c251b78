//! The one call that an operator has granted, leased to the gate that asks for it first.

use super::{Granted, Holder, KnowsMore, lease_of, put, rules, said};
use crate::{
    ControlPlane,
    approvals::{self, Taker},
    problem::Problem,
    store::{Write, amount},
    workspaces::WorkspaceId,
};
use rules::{Ask, Others, Terms};
use tollgate_engine::{
    lease,
    ledger::{MAX_RUN_SECS, Span},
    time::Time,
};

/// Answers an ask for a call that somebody has to approve; `name` is the call's. Each cell is counted by itself: who has the one call that was
/// granted stands in the grant.
pub(super) async fn grant(
    state: &ControlPlane,
    write: &mut Write,
    workspace: &WorkspaceId,
    holder: &Holder<'_>,
    (ask, name): (&lease::Ask, &str),
    now: Time,
) -> Result<Result<Option<Granted>, KnowsMore>, Problem> {
    // As long as anybody asks for it.
    let span = Span {
        start: ask.window_start,
        end: now.secs().saturating_add(MAX_RUN_SECS),
    };
    let account = ask.account.to_string();
    let mine = lease_of(write, workspace, holder, &account, span.start).await?;
    let asked = Ask::of(ask, amount(holder.epoch));
    if holder.suspects && asked.knows_more(mine) {
        return Ok(Err(KnowsMore));
    }
    let taker = Taker {
        holder: holder.name,
        epoch: holder.epoch,
        agent: &ask.account.id,
        name,
    };
    let before = mine.unwrap_or_default();
    let learning = now.millis() < holder.learning_until_ms;
    let mut takes = false;
    if asked.seq > before.seq {
        if asked.returned > before.returned {
            approvals::give_back(write, workspace, taker).await?;
        }
        // What it was given before our database was put back is gone.
        let had = asked.granted > before.granted;
        let wants = asked.want > 0 && !asked.ahead && !learning;
        if had || wants {
            let taken = approvals::take(write, workspace, taker, now).await?;
            takes = taken && wants;
        }
    }
    let terms = Terms {
        limit: rules::heard(mine, &asked)
            .taken()
            .saturating_add(u64::from(takes)),
        window_ms: span.end.saturating_sub(span.start).saturating_mul(1_000),
        now_ms: now.millis(),
        term_ms: state.settings().lease_term_ms(),
        learning_until_ms: holder.learning_until_ms,
    };
    let mut lease = rules::answer(mine, asked, Others::default(), terms);
    if let Some(until_ms) = approvals::held_until(write, workspace, taker).await? {
        lease.expires_ms = lease.expires_ms.min(until_ms);
    }
    // Agents make up calls: of one that was never granted there is nothing to keep.
    let is_kept = mine.is_some() || lease.granted > 0;
    if is_kept && mine != Some(lease) {
        put(write, workspace, holder, &account, span, &lease).await?;
    }
    Ok(Ok(Some(Granted {
        // What no call takes goes back at once.
        grant: said(ask, span, &lease),
        recalls: false,
        gives_back: lease.returned > before.returned,
    })))
}
