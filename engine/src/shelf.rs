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
    borrow::Cow,
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::ops::RangeInclusive;

/// Every place of runs.
pub const PLACES: RangeInclusive<u8> = 0..=u8::MAX;

/// Cells of runs in one place. Each has some 350 bytes, and all of them are copied when one changes. In 256 places, that is 16,384 cells of runs that
/// called within the last half minute, in 6 MiB.
pub const MAX_RUNS: usize = 64;

/// Version of the byte form: this, then for each cell the length of its account's text (two bytes, little-endian), the text, and the same of
/// the cell.
const FORMAT: u8 = 1;

/// Cells in one place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shelf<'s> {
    cells: Vec<(Cow<'s, str>, Cow<'s, [u8]>)>,
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

impl<'s> Shelf<'s> {
    /// Reads the byte form. What is not a shelf, to the byte, is an empty one: from nothing nothing can be spent.
    pub fn decode(bytes: &'s [u8]) -> Shelf<'s> {
        Shelf::read(bytes).unwrap_or_default()
    }

    fn read(bytes: &'s [u8]) -> Option<Shelf<'s>> {
        let (&[FORMAT], mut rest) = bytes.split_first_chunk()? else {
            return None;
        };
        let mut cells = Vec::new();
        while !rest.is_empty() {
            let (account, cell);
            (account, rest) = counted(rest)?;
            (cell, rest) = counted(rest)?;
            let account = core::str::from_utf8(account).ok()?;
            cells.push((Cow::Borrowed(account), Cow::Borrowed(cell)));
        }
        Some(Shelf { cells })
    }

    /// Writes the byte form.
    pub fn encode(&self) -> Vec<u8> {
        let bytes =
            |(account, cell): &(Cow<'_, str>, Cow<'_, [u8]>)| account.len() + cell.len() + 4;
        let mut out = Vec::with_capacity(1 + self.cells.iter().map(bytes).sum::<usize>());
        out.push(FORMAT);
        for (account, cell) in &self.cells {
            for part in [account.as_bytes(), cell] {
                // Both have a few hundred bytes; `apply` sees to it.
                let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
                out.extend_from_slice(&length.to_le_bytes());
                out.extend_from_slice(part);
            }
        }
        out
    }

    /// The cell of an account.
    pub fn cell(&self, account: &Account) -> Option<Cell> {
        let mut cells = self.cells.iter();
        let (_, cell) = cells.find(|(there, _)| account.is_called(there))?;
        Some(Cell::decode(cell))
    }

    /// Every cell, with its account.
    pub fn cells(&self) -> impl Iterator<Item = (Account, Cell)> {
        self.cells
            .iter()
            .filter_map(|(account, cell)| Some((Account::parse(account)?, Cell::decode(cell))))
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
        let there = self
            .cells
            .iter()
            .position(|(there, _)| account.is_called(there));
        let mut cell = match there.and_then(|at| self.cells.get(at)) {
            Some((_, cell)) => Cell::decode(cell),
            None => Cell::default(),
        };
        change.op.change(&mut cell, now)?;
        let written = Cow::Owned(cell.encode());
        match there.and_then(|at| self.cells.get_mut(at)) {
            Some((_, there)) => *there = written,
            None => {
                let name = account.to_string();
                if !self.has_room(account, now) || u16::try_from(name.len()).is_err() {
                    return Err(Refusal::AlreadyAsked);
                }
                self.cells.push((Cow::Owned(name), written));
            }
        }
        Ok(cell)
    }

    /// Makes room for one more where that can be done. A policy's windows are few, and their cells stay: by a clock that is put back, what was spent
    /// in them is still spent.
    fn has_room(&mut self, account: &Account, now: Time) -> bool {
        if account.run.is_none() {
            return true;
        }
        if self.cells.len() >= MAX_RUNS {
            self.cells
                .retain(|(_, cell)| !Cell::decode(cell).is_done(now));
        }
        self.cells.len() < MAX_RUNS
    }

    /// Takes cells of runs away that nobody has needed for a while. Whether there were any.
    pub fn tidy(&mut self, now: Time) -> bool {
        let before = self.cells.len();
        self.cells
            .retain(|(_, cell)| !Cell::decode(cell).is_forgotten(now));
        self.cells.len() < before
    }
}

/// The bytes behind a length of two, and what follows them.
fn counted(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))
}
