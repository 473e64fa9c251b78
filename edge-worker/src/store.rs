//! Where a keeper's values are.

use std::{cell::RefCell, fmt};
use tollgate_engine::{
    ledger::{Account, CELL_KEY},
    sorted::Map,
    time::Time,
};

/// Small values under names, changed by an atomic swap. Reads see what was written before, by whomever.
///
/// A value is at most a journal's batch as base64 (1.4 MB) or a bundle (4 MiB), most have some hundred bytes; a name is below 1 KiB.
pub trait Store {
    /// A value; `None` when there is none.
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Unavailable>;

    /// Puts `new` (`None`: nothing) in the place of `old`, and says whether it did: not if anything else than `old` is there. What was swapped is
    /// durable by the time that anybody outside can hear of it, or what is durable says as much ([`Ahead`](crate::Ahead)).
    async fn swap(
        &self,
        key: &str,
        old: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<bool, Unavailable>;

    /// The names that begin with `prefix`, sorted.
    async fn keys(&self, prefix: &str) -> Result<Vec<String>, Unavailable>;

    /// Where not everything is durable at once ([`Ahead`](crate::Ahead)): makes the notes of the calls under way so.
    async fn note(&self, _now: Time) -> Result<(), Unavailable> {
        Ok(())
    }

    /// The same, and where it is `calm`, which is to say that nobody has called for a while, everything else too. Each round.
    async fn catch_up(&self, _calm: bool, _now: Time) -> Result<(), Unavailable> {
        Ok(())
    }
}

/// The store does not work now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unavailable;

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the store does not work")
    }
}

impl std::error::Error for Unavailable {}

/// Where the envelope of the running bundle is. Worth a second copy where new instances find it sooner.
pub const BUNDLE: &str = "bundle";
/// Who this keeper is towards the control plane.
pub(crate) const HOLDER: &str = "holder";
/// Records lost and not yet told to the control plane; decimal.
pub(crate) const DROPPED: &str = "dropped";
/// Records that wait for the journal, oldest first.
pub(crate) const RECORDS: &str = "record ";
/// Calls that have reserved and are not closed.
pub(crate) const OPEN: &str = "open ";

/// Stands there while there may be calls that have reserved, and of which nothing durable says so: since when, in milliseconds; decimal.
pub(crate) const UNNOTED: &str = "unnoted";

/// Reads what stands under [`UNNOTED`].
pub(crate) fn milliseconds(stored: &[u8]) -> Option<i64> {
    std::str::from_utf8(stored).ok()?.parse().ok()
}

/// Cells are a holder's own: a new name has been leased nothing yet.
pub(crate) fn cell_key(holder: &str, account: &Account) -> String {
    format!("{holder} {}", account.cell_key())
}

/// The account whose cell has this name.
pub(crate) fn cell_account(key: &str) -> Option<Account> {
    let (_, name) = key.split_once(' ')?;
    Account::parse(name.strip_prefix(CELL_KEY)?)
}

/// Whether this is the name of a cell.
pub(crate) fn is_cell(key: &str) -> bool {
    key.split_once(' ')
        .is_some_and(|(_, name)| name.starts_with(CELL_KEY))
}

/// Whether one call alone writes this name, once, and whoever takes the value away does so for good. A store that cannot swap may put and delete such
/// values: there is nobody to come between, but for one who counts lost calls, and may then count one twice.
pub fn written_once(key: &str) -> bool {
    key.starts_with(RECORDS) || key.starts_with(OPEN)
}

/// A store in this instance's memory, gone with it.
#[derive(Debug, Default)]
pub struct Memory(RefCell<Map<String, Vec<u8>>>);

impl Memory {
    /// With values from elsewhere.
    pub fn with(values: Map<String, Vec<u8>>) -> Memory {
        Memory(RefCell::new(values))
    }

    /// [`Store::get`].
    pub fn read(&self, key: &str) -> Option<Vec<u8>> {
        self.0.borrow().get(key).cloned()
    }

    /// [`Store::swap`].
    pub fn exchange(&self, key: &str, old: Option<&[u8]>, new: Option<&[u8]>) -> bool {
        let mut values = self.0.borrow_mut();
        if values.get(key).map(Vec::as_slice) != old {
            return false;
        }
        match new {
            Some(new) => values.insert(key.to_owned(), new.to_vec()),
            None => values.remove(key),
        };
        true
    }

    /// [`Store::keys`].
    pub fn names(&self, prefix: &str) -> Vec<String> {
        let values = self.0.borrow();
        values
            .starting_at(prefix)
            .map(|(key, _)| key)
            .take_while(|key| key.starts_with(prefix))
            .cloned()
            .collect()
    }
}

impl Store for Memory {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Unavailable> {
        Ok(self.read(key))
    }

    async fn swap(
        &self,
        key: &str,
        old: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<bool, Unavailable> {
        Ok(self.exchange(key, old, new))
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, Unavailable> {
        Ok(self.names(prefix))
    }
}

/// How often a swap is tried. Each failure means that somebody else succeeded meanwhile.
pub(crate) const MAX_SWAPS: u32 = 100;

/// Why a value was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unchanged<E> {
    /// The change does not apply to what is there.
    Refused(E),
    /// The store failed, or others kept writing.
    Store,
}

impl<E> From<Unavailable> for Unchanged<E> {
    fn from(Unavailable: Unavailable) -> Self {
        Unchanged::Store
    }
}

/// Reads, changes, and writes unless somebody else wrote meanwhile; then again. Gives what was written; `None` removes.
pub(crate) async fn update<E>(
    store: &impl Store,
    key: &str,
    mut change: impl FnMut(Option<&[u8]>) -> Result<Option<Vec<u8>>, E>,
) -> Result<Option<Vec<u8>>, Unchanged<E>> {
    for _ in 0..MAX_SWAPS {
        let old = store.get(key).await?;
        let new = change(old.as_deref()).map_err(Unchanged::Refused)?;
        if store.swap(key, old.as_deref(), new.as_deref()).await? {
            return Ok(new);
        }
    }
    Err(Unchanged::Store)
}
