//! A store that one keeper alone has the use of: values in memory, and behind them something durable and slow.
//!
//! A call waits for its reservation, and should not wait for a disk each time. Two things therefore become durable later than they are so in memory,
//! and neither can be spent again, or be missing without a word:
//! - **A cell** is written with more reserved than there is ([`Cell::ahead`]). Reservations that what is written [covers](Cell::covers) are not
//!   written. After a crash the rest of what was reserved ahead stays reserved, until its window ends.
//! - **The note of a call** under way ([`OPEN`]) is written by [`Store::note`]. As long as there may be one that is not, [`UNNOTED`] stands
//!   there, and the next keeper that finds it puts on record that calls may have been lost.
//!
//! Everything else is durable by the time that anybody outside can hear of it, as [`Store`] promises.

use crate::store::{Memory, OPEN, Store, UNNOTED, Unavailable, is_cell};
use std::cell::RefCell;
use tollgate_engine::{ledger::Cell, sorted::Map, time::Time};

/// Something durable. Nobody else writes there.
pub trait Disk {
    /// Puts a value (`None`: nothing) under a name, durable by the time that anybody outside can hear of it.
    async fn write(&self, key: &str, value: Option<&[u8]>) -> Result<(), Unavailable>;
}

/// The store.
#[derive(Debug)]
pub struct Ahead<D> {
    values: Memory,
    disk: D,
    /// What is on the disk, where it is not what is in memory.
    behind: RefCell<Map<String, Option<Vec<u8>>>>,
}

impl<D: Disk> Ahead<D> {
    /// A store of what is on `disk`: `values`.
    pub fn new(disk: D, values: Map<String, Vec<u8>>) -> Ahead<D> {
        Ahead {
            values: Memory::with(values),
            disk,
            behind: RefCell::default(),
        }
    }

    /// What is on the disk under a name under which `value` is in memory.
    fn on_disk(&self, key: &str, value: Option<&[u8]>) -> Option<Vec<u8>> {
        let behind = self.behind.borrow().get(key).cloned();
        behind.unwrap_or_else(|| value.map(<[u8]>::to_vec))
    }

    /// Writes `written`, while `value` is in memory.
    async fn write(
        &self,
        key: &str,
        written: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<(), Unavailable> {
        // Noted before anybody else has his turn.
        if written == value {
            self.behind.borrow_mut().remove(key);
        } else {
            let written = written.map(<[u8]>::to_vec);
            self.behind.borrow_mut().insert(key.to_owned(), written);
        }
        self.disk.write(key, written).await
    }

    async fn write_cell(
        &self,
        key: &str,
        old: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<(), Unavailable> {
        let Some(value) = new else {
            return self.write(key, None, None).await;
        };
        let cell = Cell::decode(value);
        let is_ahead = self.behind.borrow().contains_key(key);
        let covered = |written: Vec<u8>| Cell::decode(&written).covers(&cell);
        if is_ahead && self.on_disk(key, old).is_some_and(covered) {
            return Ok(());
        }
        let before = old.map(Cell::decode).unwrap_or_default();
        if is_ahead || before.is_reserved_in(&cell) {
            return self.write(key, Some(&cell.ahead().encode()), new).await;
        }
        self.write(key, new, new).await
    }

    async fn write_note(
        &self,
        key: &str,
        old: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<(), Unavailable> {
        let on_disk = self.on_disk(key, old);
        if on_disk.as_deref() == new {
            self.behind.borrow_mut().remove(key);
            return Ok(());
        }
        if new.is_some() && self.values.read(UNNOTED).is_some() {
            self.behind.borrow_mut().insert(key.to_owned(), on_disk);
            return Ok(());
        }
        self.write(key, new, new).await
    }

    /// Writes what is in memory, where the disk has something else.
    async fn write_behind(&self, which: impl Fn(&str) -> bool) -> Result<(), Unavailable> {
        let behind: Vec<String> = self.behind.borrow().keys().cloned().collect();
        for key in behind.iter().filter(|key| which(key)) {
            let value = self.values.read(key);
            self.write(key, value.as_deref(), value.as_deref()).await?;
        }
        Ok(())
    }

    /// From here on notes may wait, or they may not any more.
    async fn mark(&self, since: Option<Time>) -> Result<(), Unavailable> {
        let old = self.values.read(UNNOTED);
        let new = since.map(|since| since.millis().to_string().into_bytes());
        if old != new {
            self.swap(UNNOTED, old.as_deref(), new.as_deref()).await?;
        }
        Ok(())
    }

    /// Whether there are calls that nothing durable tells of.
    fn notes_wait(&self) -> bool {
        self.behind.borrow().keys().any(|key| key.starts_with(OPEN))
    }
}

impl<D: Disk> Store for Ahead<D> {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Unavailable> {
        Ok(self.values.read(key))
    }

    async fn swap(
        &self,
        key: &str,
        old: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<bool, Unavailable> {
        if !self.values.exchange(key, old, new) {
            return Ok(false);
        }
        if is_cell(key) {
            self.write_cell(key, old, new).await?;
        } else if key.starts_with(OPEN) {
            self.write_note(key, old, new).await?;
        } else {
            self.write(key, new, new).await?;
        }
        Ok(true)
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, Unavailable> {
        Ok(self.values.names(prefix))
    }

    async fn note(&self, now: Time) -> Result<(), Unavailable> {
        if !self.notes_wait() {
            return Ok(());
        }
        self.write_behind(|key| key.starts_with(OPEN)).await?;
        self.mark(Some(now)).await
    }

    async fn catch_up(&self, calm: bool, now: Time) -> Result<(), Unavailable> {
        self.write_behind(|key| calm || key.starts_with(OPEN))
            .await?;
        if calm && self.notes_wait() {
            // Somebody has called meanwhile.
            return Ok(());
        }
        self.mark((!calm).then_some(now)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::cell_key;
    use futures_util::FutureExt as _;
    use std::rc::Rc;
    use tollgate_engine::{
        lease::Grant,
        ledger::{Account, Op, Refusal, Span},
    };

    /// What would be left after a crash.
    #[derive(Clone, Default)]
    struct Paper(Rc<RefCell<Written>>);

    #[derive(Default)]
    struct Written {
        values: Map<String, Vec<u8>>,
        writes: usize,
    }

    impl Disk for Paper {
        async fn write(&self, key: &str, value: Option<&[u8]>) -> Result<(), Unavailable> {
            let mut written = self.0.borrow_mut();
            written.writes += 1;
            match value {
                Some(value) => written.values.insert(key.to_owned(), value.to_vec()),
                None => written.values.remove(key),
            };
            Ok(())
        }
    }

    impl Paper {
        fn writes(&self) -> usize {
            self.0.borrow().writes
        }

        /// A store that begins again from what is there.
        fn store(&self) -> Ahead<Paper> {
            Ahead::new(self.clone(), self.0.borrow().values.clone())
        }
    }

    const SPAN: Span = Span {
        start: 0,
        end: 3_600,
    };

    fn at(millis: i64) -> Time {
        Time::from_millis(millis)
    }

    fn account() -> Account {
        Account::parse("agent:a|calls|hour").unwrap()
    }

    fn granted(amount: u64) -> Op {
        Op::Refill {
            grant: Grant {
                account: account(),
                window_start: SPAN.start,
                window_end: SPAN.end,
                seq: 1,
                granted: amount,
                returned: 0,
                settled: 0,
                spent: 0,
                lifted_ms: 0,
                keep: u64::MAX,
                expires_ms: 3_600_000,
                retry_ms: 0,
            },
            epoch: 1,
        }
    }

    const RESERVE: Op = Op::Reserve {
        span: SPAN,
        amount: 1,
    };
    const SETTLE: Op = Op::Settle {
        start: SPAN.start,
        reserved: 1,
        used: 1,
    };

    fn apply(store: &Ahead<Paper>, op: &Op) -> Result<(), Refusal> {
        let key = cell_key("h-1", &account());
        let old = store.values.read(&key);
        let new = op.apply(old.as_deref(), at(1_000))?;
        let swapped = store.swap(&key, old.as_deref(), Some(&new)).now_or_never();
        assert_eq!(swapped, Some(Ok(true)));
        Ok(())
    }

    fn cell(store: &Ahead<Paper>) -> Cell {
        Cell::decode(&store.values.read(&cell_key("h-1", &account())).unwrap())
    }

    fn catch_up(store: &Ahead<Paper>, calm: bool, now: i64) {
        let caught_up = store.catch_up(calm, at(now)).now_or_never();
        assert_eq!(caught_up, Some(Ok(())));
    }

    #[test]
    fn most_reservations_are_not_written_and_none_is_spent_again() {
        let paper = Paper::default();
        let store = paper.store();
        apply(&store, &granted(320)).unwrap();
        let before = paper.writes();
        // The first writes that a sixteenth of the 319 that are left is reserved too: 19.
        for _ in 0..20 {
            apply(&store, &RESERVE).unwrap();
        }
        assert_eq!(paper.writes() - before, 1);
        assert_eq!(cell(&store).slots()[0].reserved, 20);
        assert_eq!(cell(&paper.store()).slots()[0].reserved, 20);
        // The next is ahead again: of 299 that are left, 18.
        apply(&store, &RESERVE).unwrap();
        assert_eq!(paper.writes() - before, 2);
        assert_eq!(cell(&paper.store()).slots()[0].reserved, 21 + 18);
        // What is settled is written at once, and reserved ahead of is as before: of 299 are left.
        apply(&store, &SETTLE).unwrap();
        let slot = cell(&paper.store()).slots()[0];
        assert_eq!((slot.settled, slot.reserved), (1, 20 + 18));
    }

    #[test]
    fn whenever_it_crashes_no_more_is_spent_than_was_granted() {
        for crash in 0..200_usize {
            let paper = Paper::default();
            let mut store = paper.store();
            apply(&store, &granted(50)).unwrap();
            let mut spent = 0;
            for step in 0..200_usize {
                if step == crash {
                    store = paper.store();
                }
                // Three are under way at a time.
                match apply(&store, &RESERVE) {
                    Ok(()) => spent += 1,
                    Err(why) => assert_eq!(why, Refusal::Short),
                }
                if step % 3 == 2 {
                    for _ in 0..cell(&store).slots()[0].reserved.min(3) {
                        apply(&store, &SETTLE).unwrap();
                    }
                }
            }
            assert!(spent <= 50, "{spent} after a crash before step {crash}");
            // Three were under way, and of at most 49 a sixteenth ahead.
            assert!(spent >= 50 - 3 - 3, "{spent} after a crash before {crash}");
        }
    }

    #[test]
    fn what_is_at_rest_is_on_the_disk_as_it_is() {
        let paper = Paper::default();
        let store = paper.store();
        apply(&store, &granted(320)).unwrap();
        apply(&store, &RESERVE).unwrap();
        apply(&store, &SETTLE).unwrap();
        assert_ne!(cell(&paper.store()), cell(&store));
        catch_up(&store, true, 5_000);
        assert_eq!(cell(&paper.store()), cell(&store));
    }

    #[test]
    fn a_call_that_no_note_tells_of_is_told_of_by_a_mark() {
        let paper = Paper::default();
        let store = paper.store();
        let key = format!("{OPEN}d-1");
        let swap = |old: Option<&[u8]>, new: Option<&[u8]>| {
            let swapped = store.swap(&key, old, new).now_or_never();
            assert_eq!(swapped, Some(Ok(true)));
        };
        let on_paper = |key: &str| paper.store().values.read(key);
        // Without the mark it is noted at once.
        swap(None, Some(b"{}"));
        assert_eq!(on_paper(&key).as_deref(), Some(&b"{}"[..]));
        swap(Some(b"{}"), None);
        assert_eq!((on_paper(&key), on_paper(UNNOTED)), (None, None));
        // With it, it may wait; one that is over by then is never written.
        catch_up(&store, false, 1_000);
        let before = paper.writes();
        swap(None, Some(b"{}"));
        swap(Some(b"{}"), None);
        assert_eq!(paper.writes(), before);
        swap(None, Some(b"{}"));
        assert_eq!(on_paper(&key), None);
        assert_eq!(on_paper(UNNOTED).as_deref(), Some(&b"1000"[..]));
        let noted = store.note(at(1_010)).now_or_never();
        assert_eq!(noted, Some(Ok(())));
        assert_eq!(on_paper(&key).as_deref(), Some(&b"{}"[..]));
        assert_eq!(on_paper(UNNOTED).as_deref(), Some(&b"1010"[..]));
        // Nobody calls any more: nothing is to be told.
        swap(Some(b"{}"), None);
        catch_up(&store, true, 9_000);
        assert_eq!((on_paper(&key), on_paper(UNNOTED)), (None, None));
    }
}
