//! Cells that share a place in a host's store, so that a call changes several at once.
//!
//! A look into a shared store costs more than what is done with a cell. Most calls spend from several accounts of the same
//! team or agent, so those lie together: what differs between the accounts of one place is unit and window.
//!
//! Some stores never forget a key (Envoy's shared data is one), and a run is named by whoever makes it up. So all cells of runs
//! share 256 places of [`MAX_RUNS`] cells, and one makes room once nothing would be lost with it ([`Cell::is_done`]). When all are in
//! use, no further run begins here.

use crate::{
    bytes::Digest,
    exchange::CellOp,
    ledger::{Account, Cell, Refusal},
    time::Time,
};
use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::ops::{Range, RangeInclusive};

/// Every place of runs.
pub const PLACES: RangeInclusive<u8> = 0..=u8::MAX;

/// Cells of runs in one place. Each has some 350 bytes, and all of them are copied when one changes. In 256 places, that is 16,384 cells of runs that
/// called within the last half minute, in 6 MiB.
pub const MAX_RUNS: usize = 64;

/// Version of the byte form: this, then for each cell the length of its account's text (two bytes, little-endian), the text, and the same of
/// the cell.
const FORMAT: u8 = 1;
const LENGTH_BYTES: usize = 2;

/// Cells in one place, in the byte form: of several, a call changes a few bytes each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shelf {
    bytes: Vec<u8>,
}

impl Default for Shelf {
    fn default() -> Shelf {
        Shelf {
            bytes: Vec::from([FORMAT]),
        }
    }
}

/// Where the cell of an account is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Among those of runs, at one of [`PLACES`].
    Runs(u8),
    /// With those that count the same: the begin of its account's text, and what stands behind unit and window.
    Of(String),
}

/// Where an account's cell is under a holder. The holder's name, which callers do not know, keeps them from choosing runs that all come to the same
/// place.
pub fn place_of(holder: &str, account: &Account) -> Place {
    match account.run {
        Some(_) => {
            let Digest([place, ..]) = Digest::of(format!("{holder} {account}").as_bytes());
            Place::Runs(place)
        }
        None => Place::Of(account.subject()),
    }
}

/// Whether the cells of two accounts are in the same place, as far as that is known at once.
pub fn are_together(one: &Account, other: &Account) -> bool {
    let runs = one.run.is_some() || other.run.is_some();
    !runs && one.has_subject_of(other)
}

impl Shelf {
    /// Reads the byte form. What is not a shelf, to the byte, is an empty one: from nothing nothing can be spent.
    pub fn decode(bytes: Vec<u8>) -> Shelf {
        let mut at = 1;
        while let Some((_, cell)) = entry(&bytes, at) {
            at = cell.end;
        }
        match bytes.first() {
            Some(&FORMAT) if at == bytes.len() => Shelf { bytes },
            _ => Shelf::default(),
        }
    }

    /// The byte form.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Where each account's name is, and its cell.
    fn entries(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        let mut at = 1;
        core::iter::from_fn(move || {
            let (name, cell) = entry(&self.bytes, at)?;
            at = cell.end;
            Some((name, cell))
        })
    }

    fn bytes(&self, place: Range<usize>) -> &[u8] {
        self.bytes.get(place).unwrap_or_default()
    }

    /// Where the cell of an account is.
    fn find(&self, account: &Account) -> Option<Range<usize>> {
        let mut entries = self.entries();
        let (_, cell) = entries.find(|(name, _)| account.is_called(self.bytes(name.clone())))?;
        Some(cell)
    }

    /// The cell of an account.
    pub fn cell(&self, account: &Account) -> Option<Cell> {
        Some(Cell::decode(self.bytes(self.find(account)?)))
    }

    /// Every cell, with its account.
    pub fn cells(&self) -> impl Iterator<Item = (Account, Cell)> {
        self.entries().filter_map(|(name, cell)| {
            let name = core::str::from_utf8(self.bytes(name)).ok()?;
            Some((Account::parse(name)?, Cell::decode(self.bytes(cell))))
        })
    }

    /// Makes changes in order, up to the first that is refused. Every cell as it is then is put behind `cells`.
    pub fn apply_all(
        &mut self,
        changes: &[CellOp],
        now: Time,
        cells: &mut Vec<Cell>,
    ) -> Result<(), Refusal> {
        for change in changes {
            cells.push(self.apply(change, now)?);
        }
        Ok(())
    }

    /// Changes a cell, and gives it. Where there is no room for one more, somebody else is busy with them all.
    pub fn apply(&mut self, change: &CellOp, now: Time) -> Result<Cell, Refusal> {
        let account = &change.account;
        let place = self.find(account);
        let there = place.clone().map(|place| self.bytes(place));
        let mut cell = there.map(Cell::decode).unwrap_or_default();
        change.op.change(&mut cell, now)?;
        match place {
            Some(place) => self.put(place, &cell),
            None => {
                let name = account.to_string();
                if !self.has_room(account, now) || u16::try_from(name.len()).is_err() {
                    return Err(Refusal::AlreadyAsked);
                }
                self.bytes.extend(counted(name.as_bytes()));
                self.bytes.extend(counted(&cell.encode()));
            }
        }
        Ok(cell)
    }

    /// Puts a cell in the place of another.
    fn put(&mut self, place: Range<usize>, cell: &Cell) {
        let there = self.bytes.get_mut(place.clone());
        if !there.is_some_and(|there| cell.write_over(there)) {
            let with_length = place.start.saturating_sub(LENGTH_BYTES)..place.end;
            self.bytes.splice(with_length, counted(&cell.encode()));
        }
    }

    /// Makes room for one more where that can be done. A policy's windows are few, and their cells stay: by a clock that is put back, what was spent
    /// in them is still spent.
    fn has_room(&mut self, account: &Account, now: Time) -> bool {
        if account.run.is_none() {
            return true;
        }
        let is_full = |shelf: &Shelf| shelf.entries().nth(MAX_RUNS - 1).is_some();
        if is_full(self) {
            self.retain(|cell| !cell.is_done(now));
        }
        !is_full(self)
    }

    /// Takes cells of runs away that nobody has needed for a while. Whether there were any.
    pub fn tidy(&mut self, now: Time) -> bool {
        let before = self.bytes.len();
        self.retain(|cell| !cell.is_forgotten(now));
        self.bytes.len() < before
    }

    fn retain(&mut self, stays: impl Fn(&Cell) -> bool) {
        let mut left = Shelf::default();
        for (name, cell) in self.entries() {
            if stays(&Cell::decode(self.bytes(cell.clone()))) {
                let with_length = name.start.saturating_sub(LENGTH_BYTES)..cell.end;
                left.bytes.extend_from_slice(self.bytes(with_length));
            }
        }
        *self = left;
    }
}

/// Where the name is of the cell whose entry begins at a place, and the cell.
fn entry(bytes: &[u8], at: usize) -> Option<(Range<usize>, Range<usize>)> {
    let counted = |at: usize| {
        let (length, rest) = bytes.get(at..)?.split_first_chunk()?;
        let length = usize::from(u16::from_le_bytes(*length));
        let begin = at + LENGTH_BYTES;
        (length <= rest.len()).then_some(begin..begin + length)
    };
    let name = counted(at)?;
    let cell = counted(name.end)?;
    Some((name, cell))
}

/// Its length in two bytes, and then the text or cell itself. Both have a few hundred bytes; [`Shelf::apply`] sees to it.
fn counted(part: &[u8]) -> impl Iterator<Item = u8> {
    let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
    length.to_le_bytes().into_iter().chain(part.iter().copied())
}
