//! The cells of runs, several in one place.
//!
//! Some stores never forget a key (Envoy's shared data is one), and a run is named by whoever makes it up. So where that is so, cells of runs
//! share 256 places of [`MAX_CELLS`] cells, and one makes room once nothing would be lost with it ([`Cell::is_done`]). When all are in
//! use, no further run begins here.

use crate::{
    bytes::Digest,
    ledger::{Account, Cell},
    time::Time,
};
use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::ops::RangeInclusive;

/// Every place.
pub const PLACES: RangeInclusive<u8> = 0..=u8::MAX;

/// Cells in one place. Each has some 350 bytes, and all of them are copied when one changes. In 256 places, that is 16,384 cells of runs that
/// called within the last half minute, in 6 MiB.
pub const MAX_CELLS: usize = 64;

/// Version of the byte form: this, then for each cell the length of its account's text (two bytes, little-endian), the text, and the same of
/// the cell.
const FORMAT: u8 = 1;

/// Every cell here is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Cells in one place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shelf {
    cells: Vec<(String, Vec<u8>)>,
}

/// Which place an account's cell has under a holder; `None` where it has one of its own. The holder's name, which callers do not know, keeps
/// them from choosing runs that all come to the same place.
pub fn place_of(holder: &str, account: &Account) -> Option<u8> {
    account.run.as_ref()?;
    Digest::of(format!("{holder} {account}").as_bytes())
        .0
        .first()
        .copied()
}

impl Shelf {
    /// Reads the byte form. What is not a shelf, to the byte, is an empty one: from nothing nothing can be spent.
    pub fn decode(bytes: &[u8]) -> Shelf {
        Shelf::read(bytes).unwrap_or_default()
    }

    fn read(bytes: &[u8]) -> Option<Shelf> {
        let (&[FORMAT], mut rest) = bytes.split_first_chunk()? else {
            return None;
        };
        let mut cells = Vec::new();
        while !rest.is_empty() {
            let (account, cell);
            (account, rest) = counted(rest)?;
            (cell, rest) = counted(rest)?;
            cells.push((
                core::str::from_utf8(account).ok()?.to_string(),
                cell.to_vec(),
            ));
        }
        (cells.len() <= MAX_CELLS).then_some(Shelf { cells })
    }

    /// Writes the byte form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::from([FORMAT]);
        for (account, cell) in &self.cells {
            for part in [account.as_bytes(), cell] {
                // Both have a few hundred bytes; `put` sees to it.
                let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
                out.extend_from_slice(&length.to_le_bytes());
                out.extend_from_slice(part);
            }
        }
        out
    }

    /// The cell of an account.
    pub fn cell(&self, account: &Account) -> Option<&[u8]> {
        let name = account.to_string();
        let found = self.cells.iter().find(|(there, _)| *there == name);
        found.map(|(_, cell)| cell.as_slice())
    }

    /// Every cell, with its account.
    pub fn cells(&self) -> impl Iterator<Item = (Account, Cell)> {
        self.cells
            .iter()
            .filter_map(|(account, cell)| Some((Account::parse(account)?, Cell::decode(cell))))
    }

    /// Puts a cell where that of its account was, or where there is room.
    pub fn put(&mut self, account: &Account, cell: Vec<u8>, now: Time) -> Result<(), Full> {
        let name = account.to_string();
        if name.len().max(cell.len()) > usize::from(u16::MAX) {
            return Err(Full);
        }
        if let Some((_, there)) = self.cells.iter_mut().find(|(there, _)| *there == name) {
            *there = cell;
            return Ok(());
        }
        if self.cells.len() >= MAX_CELLS {
            self.cells
                .retain(|(_, cell)| !Cell::decode(cell).is_done(now));
        }
        if self.cells.len() >= MAX_CELLS {
            return Err(Full);
        }
        self.cells.push((name, cell));
        Ok(())
    }

    /// Takes cells away that nobody has needed for a while. Whether there were any.
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
