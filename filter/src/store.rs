//! What all workers of one Envoy process share: Envoy's shared data. It outlives a VM that crashed, and ends with the process.

use crate::host::{self, Status};
use tollgate_engine::{
    exchange::CellOp,
    json,
    ledger::{Account, Cell, Refusal},
    shelf::{self, Full, Shelf},
    time::Time,
    upkeep::Holder,
};

/// How often a swap is tried. Each failure means that another thread succeeded within the 3 µs between reading and writing, and an Envoy
/// has tens of threads: so many in a row do not happen.
const MAX_SWAPS: u32 = 1_000;

/// A leader that has not been heard of for so long has lost its VM, or its thread is stuck. Twenty ticks.
const LEADER_TIMEOUT_MS: i64 = 2_000;

/// Why a shared value was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unchanged<E> {
    /// The change does not apply to what is there.
    Refused(E),
    /// The store failed, or others kept writing.
    Store,
}

/// Reads, changes, and writes unless somebody else wrote meanwhile; then again. Gives what was written.
pub(crate) fn update<E>(
    key: &str,
    mut change: impl FnMut(Option<&[u8]>) -> Result<Vec<u8>, E>,
) -> Result<Vec<u8>, Unchanged<E>> {
    for _ in 0..MAX_SWAPS {
        let old = host::shared(key).map_err(|_| Unchanged::Store)?;
        let (old, cas) = match &old {
            Some((value, cas)) => (Some(value.as_slice()), *cas),
            None => (None, host::ABSENT),
        };
        let new = change(old).map_err(Unchanged::Refused)?;
        match host::set_shared(key, &new, cas) {
            Ok(()) => return Ok(new),
            Err(Status::CAS_MISMATCH) => {}
            Err(_) => return Err(Unchanged::Store),
        }
    }
    Err(Unchanged::Store)
}

/// A shared value; what cannot be read is not there.
pub(crate) fn read(key: &str) -> Option<Vec<u8>> {
    host::shared(key).ok().flatten().map(|(value, _)| value)
}

/// The names of one gate's values, and the changes that are more than a write.
#[derive(Debug)]
pub(crate) struct Store {
    prefix: String,
    /// The newest bundle's envelope.
    pub(crate) bundle: String,
    /// The records that wait for the journal; a queue.
    pub(crate) records: String,
    holder: String,
    leader: String,
    workers: String,
}

/// A sign of life of one VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Beat {
    pub(crate) worker: u64,
    /// Goes up with every one, whatever the clock does.
    pub(crate) number: u64,
    /// When it was.
    pub(crate) at: Time,
}

impl Beat {
    const BYTES: usize = 24;

    fn read(bytes: &[u8; Beat::BYTES]) -> Beat {
        let (words, _) = bytes.as_chunks::<8>();
        let word = |index: usize| words.get(index).map_or(0, |word| u64::from_le_bytes(*word));
        Beat {
            worker: word(0),
            number: word(1),
            at: Time::from_micros(word(2).cast_signed()),
        }
    }

    fn write(self, out: &mut Vec<u8>) {
        for word in [self.worker, self.number, self.at.micros().cast_unsigned()] {
            out.extend(word.to_le_bytes());
        }
    }

    fn all(stored: Option<&[u8]>) -> Vec<Beat> {
        let (beats, _) = stored.unwrap_or_default().as_chunks::<{ Beat::BYTES }>();
        beats.iter().map(Beat::read).collect()
    }

    fn store(beats: &[Beat]) -> Vec<u8> {
        let mut out = Vec::with_capacity(beats.len() * Beat::BYTES);
        for beat in beats {
            beat.write(&mut out);
        }
        out
    }
}

impl Store {
    pub(crate) fn new(workspace: &str, channel: &str) -> Store {
        let prefix = format!("tollgate {workspace} {channel} ");
        let key = |name: &str| format!("{prefix}{name}");
        Store {
            bundle: key("bundle"),
            records: key("records"),
            holder: key("holder"),
            leader: key("leader"),
            workers: key("workers"),
            prefix,
        }
    }

    /// Who this process is towards the control plane; made by whoever asks first.
    pub(crate) fn holder(&self) -> Option<Holder> {
        if let Some(holder) = read(&self.holder).and_then(|stored| Holder::decode(&stored)) {
            return Some(holder);
        }
        let fresh = Holder::new(host::random().ok()?);
        let stored = update(&self.holder, |old| match old.and_then(Holder::decode) {
            Some(holder) => Err(holder),
            None => Ok(fresh.encode()),
        });
        match stored {
            Ok(_) => Some(fresh),
            Err(Unchanged::Refused(holder)) => Some(holder),
            Err(Unchanged::Store) => None,
        }
    }

    /// Puts `new` in the place of `old`, unless somebody has done so already.
    pub(crate) fn replace_holder(&self, old: &Holder, new: &Holder) {
        let _ = update(&self.holder, |stored| {
            let same = stored.and_then(Holder::decode).as_ref() == Some(old);
            if same { Ok(new.encode()) } else { Err(()) }
        });
    }

    /// Whether the VM called `me` leads, taking over from a leader that has fallen silent.
    pub(crate) fn lead(&self, me: u64, now: Time) -> bool {
        let heartbeat = |stored: &[u8]| -> Option<(u64, i64)> {
            let (id, beat) = stored.split_first_chunk::<8>()?;
            Some((
                u64::from_le_bytes(*id),
                i64::from_le_bytes(beat.try_into().ok()?),
            ))
        };
        update(&self.leader, |old| match old.and_then(heartbeat) {
            Some((id, beat))
                if id != me
                    && now.millis().saturating_sub(beat).saturating_abs() < LEADER_TIMEOUT_MS =>
            {
                Err(())
            }
            _ => Ok([me.to_le_bytes(), now.millis().to_le_bytes()].concat()),
        })
        .is_ok()
    }

    /// Gives a sign of life of the VM called `me`, and gets the last of every VM.
    pub(crate) fn beat(&self, me: u64, now: Time) -> Vec<Beat> {
        let stored = update(&self.workers, |old| {
            let mut beats = Beat::all(old);
            match beats.iter_mut().find(|beat| beat.worker == me) {
                Some(beat) => {
                    beat.number = beat.number.saturating_add(1);
                    beat.at = now;
                }
                None => beats.push(Beat {
                    worker: me,
                    number: 0,
                    at: now,
                }),
            }
            Ok::<_, ()>(Beat::store(&beats))
        });
        Beat::all(stored.ok().as_deref())
    }

    /// Strikes a VM off that gives no sign of life any more. Whether it was there, and has given none since `last`: of several who do this, one succeeds.
    pub(crate) fn strike_off(&self, last: Beat) -> bool {
        update(&self.workers, |old| {
            let mut beats = Beat::all(old);
            let before = beats.len();
            beats.retain(|beat| *beat != last);
            match beats.len() < before {
                true => Ok(Beat::store(&beats)),
                false => Err(()),
            }
        })
        .is_ok()
    }

    /// Strikes the VM called `me` off, which ends in good order.
    pub(crate) fn leave(&self, me: u64) {
        let _ = update(&self.workers, |old| {
            let mut beats = Beat::all(old);
            beats.retain(|beat| beat.worker != me);
            Ok::<_, ()>(Beat::store(&beats))
        });
    }

    /// Where a holder's journal is.
    pub(crate) fn journal(&self, holder: &Holder) -> String {
        format!("{}{} journal", self.prefix, holder.id)
    }

    fn accounts_key(&self, holder: &Holder) -> String {
        format!("{}{} accounts", self.prefix, holder.id)
    }

    // Cells are a holder's own: a new name has been leased nothing yet.
    fn cell_key(&self, holder: &Holder, account: &Account) -> String {
        let cell = account.cell_key();
        [self.prefix.as_str(), &holder.id, " ", &cell].concat()
    }

    fn shelf_key(&self, holder: &Holder, place: u8) -> String {
        format!("{}{} runs {place}", self.prefix, holder.id)
    }

    /// A holder's cell of an account.
    pub(crate) fn cell(&self, holder: &Holder, account: &Account) -> Cell {
        match shelf::place_of(&holder.id, account) {
            Some(place) => self
                .shelf(holder, place)
                .cell(account)
                .map(Cell::decode)
                .unwrap_or_default(),
            None => read(&self.cell_key(holder, account))
                .map(|stored| Cell::decode(&stored))
                .unwrap_or_default(),
        }
    }

    fn shelf(&self, holder: &Holder, place: u8) -> Shelf {
        let stored = read(&self.shelf_key(holder, place));
        stored.map_or_else(Shelf::default, |stored| Shelf::decode(&stored))
    }

    /// Applies one change to one cell and gives its new byte form. A cell that cannot be written counts as one that somebody else is busy with.
    pub(crate) fn apply(
        &self,
        holder: &Holder,
        change: &CellOp,
        now: Time,
    ) -> Result<Vec<u8>, Refusal> {
        let applied = match shelf::place_of(&holder.id, &change.account) {
            Some(place) => self.apply_on_shelf(&self.shelf_key(holder, place), change, now),
            None => update(&self.cell_key(holder, &change.account), |old| {
                let new = change.op.apply(old, now)?;
                // Before the cell itself, so that none is ever forgotten.
                if old.is_none() && !self.enlist(holder, &change.account) {
                    return Err(Refusal::AlreadyAsked);
                }
                Ok(new)
            }),
        };
        applied.map_err(|unchanged| match unchanged {
            Unchanged::Refused(refusal) => refusal,
            Unchanged::Store => Refusal::AlreadyAsked,
        })
    }

    /// The same to a cell that shares its place. Where there is no room for one more, somebody else is busy with them all.
    fn apply_on_shelf(
        &self,
        key: &str,
        change: &CellOp,
        now: Time,
    ) -> Result<Vec<u8>, Unchanged<Refusal>> {
        let mut after = Vec::new();
        update(key, |old| {
            let mut shelf = Shelf::decode(old.unwrap_or_default());
            after = change.op.apply(shelf.cell(&change.account), now)?;
            match shelf.put(&change.account, after.clone(), now) {
                Ok(()) => Ok(shelf.encode()),
                Err(Full) => Err(Refusal::AlreadyAsked),
            }
        })?;
        Ok(after)
    }

    /// Takes the cells of runs away from one place that nobody has needed for a while.
    fn tidy(&self, holder: &Holder, place: u8, now: Time) {
        let _ = update(&self.shelf_key(holder, place), |old| {
            let mut shelf = Shelf::decode(old.unwrap_or_default());
            match shelf.tidy(now) {
                true => Ok(shelf.encode()),
                false => Err(()),
            }
        });
    }

    /// The accounts of which a holder has cells, and the cells; but for those of runs that nobody has needed for a while, which go.
    pub(crate) fn cells(&self, holder: &Holder, now: Time) -> Vec<(Account, Cell)> {
        let accounts: Vec<Account> = read(&self.accounts_key(holder))
            .and_then(|stored| json::read(&stored).ok())
            .unwrap_or_default();
        let mut cells: Vec<(Account, Cell)> = accounts
            .into_iter()
            .map(|account| {
                let cell = self.cell(holder, &account);
                (account, cell)
            })
            .collect();
        for place in shelf::PLACES {
            let mut shelf = self.shelf(holder, place);
            if shelf.tidy(now) {
                self.tidy(holder, place, now);
            }
            cells.extend(shelf.cells());
        }
        cells
    }

    /// Adds to the accounts of [`Store::cells`]; whether it is among them then. Those of runs are found where their cells are.
    fn enlist(&self, holder: &Holder, account: &Account) -> bool {
        let added = update(&self.accounts_key(holder), |old| {
            let mut accounts: Vec<Account> = old
                .and_then(|stored| json::read(stored).ok())
                .unwrap_or_default();
            if accounts.contains(account) {
                return Err(());
            }
            accounts.push(account.clone());
            serde_json::to_vec(&accounts).map_err(|_| ())
        });
        // Refused is what is there already.
        matches!(added, Ok(_) | Err(Unchanged::Refused(())))
    }
}
