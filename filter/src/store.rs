//! What all workers of one Envoy process share: Envoy's shared data. It outlives a VM that crashed, and ends with the process.

use crate::host::{self, Status};
use tollgate_engine::{
    exchange::CellOp,
    json,
    ledger::{Account, Cell, Refusal},
    shelf::{self, Place, Shelf},
    time::Time,
    upkeep::Holder,
};

/// How often a swap is tried. Each failure means that another thread succeeded within the 3 µs between reading and writing, and an Envoy
/// has tens of threads: so many in a row do not happen.
const MAX_SWAPS: u32 = 1_000;

/// Goes up when anything is kept in another form. What Envoy has shared outlives a filter that is replaced by a newer one, which then is another
/// holder: cells that it could not read would be empty to it, and what is spent already would be spent again.
const FORMAT: u32 = 2;

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
    mut change: impl FnMut(Option<Vec<u8>>) -> Result<Vec<u8>, E>,
) -> Result<Vec<u8>, Unchanged<E>> {
    for _ in 0..MAX_SWAPS {
        let old = host::shared(key).map_err(|_| Unchanged::Store)?;
        let (old, cas) = match old {
            Some((value, cas)) => (Some(value), cas),
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
        // What any filter can read is the same for all; the rest is of filters that keep it in the same form.
        let gate = format!("tollgate {workspace} {channel} ");
        let prefix = format!("{gate}{FORMAT} ");
        let key = |name: &str| format!("{prefix}{name}");
        Store {
            bundle: format!("{gate}bundle"),
            records: format!("{gate}records"),
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
        let stored = update(&self.holder, |old| {
            match old.as_deref().and_then(Holder::decode) {
                Some(holder) => Err(holder),
                None => Ok(fresh.encode()),
            }
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
            let same = stored.as_deref().and_then(Holder::decode).as_ref() == Some(old);
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
        update(&self.leader, |old| {
            match old.as_deref().and_then(heartbeat) {
                Some((id, beat))
                    if id != me
                        && now.millis().saturating_sub(beat).saturating_abs()
                            < LEADER_TIMEOUT_MS =>
                {
                    Err(())
                }
                _ => Ok([me.to_le_bytes(), now.millis().to_le_bytes()].concat()),
            }
        })
        .is_ok()
    }

    /// Gives a sign of life of the VM called `me`, and gets the last of every VM.
    pub(crate) fn beat(&self, me: u64, now: Time) -> Vec<Beat> {
        let stored = update(&self.workers, |old| {
            let mut beats = Beat::all(old.as_deref());
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
            let mut beats = Beat::all(old.as_deref());
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
            let mut beats = Beat::all(old.as_deref());
            beats.retain(|beat| beat.worker != me);
            Ok::<_, ()>(Beat::store(&beats))
        });
    }

    /// Where a holder's journal is.
    pub(crate) fn journal(&self, holder: &Holder) -> String {
        format!("{}{} journal", self.prefix, holder.id)
    }

    /// The places that are not of runs.
    fn places_key(&self, holder: &Holder) -> String {
        format!("{}{} places", self.prefix, holder.id)
    }

    // Cells are a holder's own: a new name has been leased nothing yet.
    fn place_key(&self, holder: &Holder, place: &Place) -> String {
        let Store { prefix, .. } = self;
        match place {
            Place::Runs(number) => format!("{prefix}{} runs {number}", holder.id),
            Place::Of(subject) => [prefix.as_str(), &holder.id, " of ", subject].concat(),
        }
    }

    /// A holder's cell of an account.
    pub(crate) fn cell(&self, holder: &Holder, account: &Account) -> Cell {
        let place = shelf::place_of(&holder.id, account);
        let stored = read(&self.place_key(holder, &place)).unwrap_or_default();
        Shelf::decode(stored).cell(account).unwrap_or_default()
    }

    /// Applies changes in order, up to the first that is refused; gives the cells as they are then, or the place of that one. A cell that cannot be
    /// written counts as one that somebody else is busy with.
    pub(crate) fn apply(
        &self,
        holder: &Holder,
        changes: &[CellOp],
        now: Time,
    ) -> Result<Vec<Cell>, (usize, Refusal)> {
        let mut cells = Vec::with_capacity(changes.len());
        match self.apply_to(holder, changes, now, &mut cells) {
            Ok(()) => Ok(cells),
            Err(refusal) => Err((cells.len(), refusal)),
        }
    }

    /// Applies changes that cannot be refused; gives each cell as it is then, `None` where the change could not be made all the same.
    pub(crate) fn apply_each(
        &self,
        holder: &Holder,
        changes: &[CellOp],
        now: Time,
    ) -> Vec<Option<Cell>> {
        let mut all = Vec::with_capacity(changes.len());
        while let Some(left) = changes.get(all.len()..).filter(|left| !left.is_empty()) {
            let mut cells = Vec::with_capacity(left.len());
            let done = self.apply_to(holder, left, now, &mut cells);
            all.extend(cells.into_iter().map(Some));
            if done.is_err() {
                all.push(None);
            }
        }
        all
    }

    /// Applies changes in order, up to the first that is refused. Every cell that was changed is put behind `cells`.
    fn apply_to(
        &self,
        holder: &Holder,
        changes: &[CellOp],
        now: Time,
        cells: &mut Vec<Cell>,
    ) -> Result<(), Refusal> {
        let together =
            |one: &CellOp, next: &CellOp| shelf::are_together(&one.account, &next.account);
        changes
            .chunk_by(together)
            .try_for_each(|changes| self.apply_together(holder, changes, now, cells))
    }

    /// The same for cells in one place. Those up to the first that is refused are among `cells` then, and no others.
    fn apply_together(
        &self,
        holder: &Holder,
        changes: &[CellOp],
        now: Time,
        cells: &mut Vec<Cell>,
    ) -> Result<(), Refusal> {
        let Some(first) = changes.first() else {
            return Ok(());
        };
        let place = shelf::place_of(&holder.id, &first.account);
        let before = cells.len();
        let mut done = Ok(());
        let written = update(&self.place_key(holder, &place), |old| {
            cells.truncate(before);
            let is_new = old.is_none();
            let mut shelf = Shelf::decode(old.unwrap_or_default());
            done = shelf.apply_all(changes, now, cells);
            match done {
                Err(refusal) if cells.len() == before => Err(refusal),
                // Before the cells themselves, so that none is ever forgotten.
                _ if is_new && !self.enlist(holder, &place) => Err(Refusal::AlreadyAsked),
                _ => Ok(shelf.into_bytes()),
            }
        });
        match written {
            Ok(_) => done,
            Err(unchanged) => {
                cells.truncate(before);
                Err(match unchanged {
                    Unchanged::Refused(refusal) => refusal,
                    Unchanged::Store => Refusal::AlreadyAsked,
                })
            }
        }
    }

    /// Takes the cells of runs away from one place that nobody has needed for a while.
    fn tidy(key: &str, now: Time) {
        let _ = update(key, |old| {
            let mut shelf = Shelf::decode(old.unwrap_or_default());
            match shelf.tidy(now) {
                true => Ok(shelf.into_bytes()),
                false => Err(()),
            }
        });
    }

    /// The accounts of which a holder has cells, and the cells; but for those of runs that nobody has needed for a while, which go.
    pub(crate) fn cells(&self, holder: &Holder, now: Time) -> Vec<(Account, Cell)> {
        let subjects: Vec<String> = read(&self.places_key(holder))
            .and_then(|stored| json::read(&stored).ok())
            .unwrap_or_default();
        let mut cells = Vec::new();
        for subject in subjects {
            let stored = read(&self.place_key(holder, &Place::Of(subject))).unwrap_or_default();
            cells.extend(Shelf::decode(stored).cells());
        }
        for number in shelf::PLACES {
            let key = self.place_key(holder, &Place::Runs(number));
            let stored = read(&key).unwrap_or_default();
            let mut shelf = Shelf::decode(stored);
            if shelf.tidy(now) {
                Store::tidy(&key, now);
            }
            cells.extend(shelf.cells());
        }
        cells
    }

    /// Adds to the places of [`Store::cells`]; whether it is among them then. Those of runs always are.
    fn enlist(&self, holder: &Holder, place: &Place) -> bool {
        let Place::Of(subject) = place else {
            return true;
        };
        let added = update(&self.places_key(holder), |old| {
            let mut subjects: Vec<String> = old
                .and_then(|stored| json::read(&stored).ok())
                .unwrap_or_default();
            if subjects.contains(subject) {
                return Err(());
            }
            subjects.push(subject.clone());
            serde_json::to_vec(&subjects).map_err(|_| ())
        });
        // Refused is what is there already.
        matches!(added, Ok(_) | Err(Unchanged::Refused(())))
    }
}
