//! Asking gates for what they do not use, when a call elsewhere waits for it.
//!
//! A gate at rest keeps a little of each limit for half a minute. That is no matter until a limit is nearly used up: then a call would be refused
//! at one gate for what another does not need. So gates that wait for a bundle are told to report what they have; the answers tell them how little
//! may stay, and the rest comes back. What is wanted, and how often gates are asked, is among the rules ([`Wanted`]); here is who hears of it.

use super::rules::Wanted;
use crate::workspaces::WorkspaceId;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::watch;
use tollgate_engine::{ledger::Account, time::Time};

/// How long a lease request is held for what others may give back. Two ticks of an Envoy and two round trips; the call that waits has a second.
const HELD_FOR: Duration = Duration::from_millis(300);

/// What is wanted back, by workspace.
#[derive(Debug, Default)]
pub(crate) struct Recalls(Mutex<HashMap<WorkspaceId, Recall>>);

#[derive(Debug)]
struct Recall {
    /// Wakes the gates that listen.
    gates: watch::Sender<()>,
    /// Wakes the requests that wait, when something has come back.
    returns: watch::Sender<()>,
    wanted: Wanted,
}

impl Default for Recall {
    fn default() -> Recall {
        Recall {
            gates: watch::Sender::new(()),
            returns: watch::Sender::new(()),
            wanted: Wanted::default(),
        }
    }
}

impl Recalls {
    fn of<R>(&self, workspace: &WorkspaceId, look: impl FnOnce(&mut Recall) -> R) -> R {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        look(all.entry(workspace.clone()).or_default())
    }

    /// Hears when the workspace's gates are asked.
    pub(crate) fn listen(&self, workspace: &WorkspaceId) -> watch::Receiver<()> {
        self.of(workspace, |recall| recall.gates.subscribe())
    }

    /// Whether a call elsewhere waits for what is left of an account.
    pub(super) fn is_wanted(&self, workspace: &WorkspaceId, account: &Account, now: Time) -> bool {
        self.of(workspace, |recall| recall.wanted.has(account, now))
    }

    /// Whether one waits for anything. So a gate that cannot listen hears of it when it asks the next time.
    pub(crate) fn is_any_wanted(&self, workspace: &WorkspaceId, now: Time) -> bool {
        self.of(workspace, |recall| recall.wanted.is_any(now))
    }

    /// Calls wait for these. Whether gates have been asked for them: not where they were a moment ago.
    pub(super) fn want(&self, workspace: &WorkspaceId, accounts: &[Account], now: Time) -> bool {
        self.of(workspace, |recall| {
            let due = recall.wanted.want(accounts, now);
            if due {
                recall.gates.send_replace(());
            }
            due
        })
    }

    /// Whether gates that are asked now would hear of it.
    pub(super) fn would_be_heard(&self, workspace: &WorkspaceId, now: Time) -> bool {
        self.of(workspace, |recall| {
            recall.gates.receiver_count() > 0 && recall.wanted.is_due(now)
        })
    }

    /// Something has come back.
    pub(super) fn returned(&self, workspace: &WorkspaceId) {
        self.of(workspace, |recall| recall.returns.send_replace(()));
    }

    /// Waits until something comes back, but not for long. To be made before gates are asked.
    pub(super) fn returns(&self, workspace: &WorkspaceId) -> impl Future<Output = ()> + use<> {
        let mut returns = self.of(workspace, |recall| recall.returns.subscribe());
        async move {
            let _ = tokio::time::timeout(HELD_FOR, returns.changed()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_asked_once_a_second_and_what_is_wanted_is_forgotten() {
        let recalls = Recalls::default();
        let workspace = WorkspaceId::stored("ws-1".to_owned());
        let other = WorkspaceId::stored("ws-2".to_owned());
        let account = |text| Account::parse(text).unwrap();
        let (day, month) = (
            account("team:a|calls|day@UTC"),
            account("team:a|calls|month@UTC"),
        );
        let at = |millis: i64| Time::from_secs(1_800_000_000).plus_millis(millis);
        assert!(!recalls.would_be_heard(&workspace, at(0)));
        let mut gate = recalls.listen(&workspace);
        let stranger = recalls.listen(&other);
        assert!(recalls.would_be_heard(&workspace, at(0)));
        assert!(recalls.want(&workspace, std::slice::from_ref(&day), at(0)));
        assert!(gate.has_changed().unwrap());
        gate.mark_unchanged();
        assert!(!recalls.would_be_heard(&workspace, at(999)));
        assert!(!recalls.want(&workspace, std::slice::from_ref(&month), at(999)));
        assert!(!gate.has_changed().unwrap());
        assert!(recalls.is_wanted(&workspace, &day, at(999)));
        assert!(!recalls.is_wanted(&workspace, &day, at(1_000)));
        assert!(recalls.is_wanted(&workspace, &month, at(1_000)));
        assert!(recalls.is_any_wanted(&workspace, at(1_998)));
        assert!(!recalls.is_any_wanted(&workspace, at(1_999)));
        assert!(!recalls.is_wanted(&other, &month, at(1_000)));
        assert!(!recalls.want(&workspace, &[], at(1_000)));
        assert!(!gate.has_changed().unwrap());
        assert!(recalls.want(&workspace, std::slice::from_ref(&day), at(1_000)));
        assert!(gate.has_changed().unwrap());
        assert!(!stranger.has_changed().unwrap());
    }
}
