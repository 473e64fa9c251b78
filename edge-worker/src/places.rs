//! A store that never forgets a name, for a keeper whose callers make up names.
//!
//! Runs and held calls are accounts of their own, and their cells come and go ([`Account::run`]). All of them share a fixed number of places, so
//! that the store has no more names after a million runs than after a few hundred.

use crate::store::{MAX_SWAPS, Store, Unavailable, cell_account};
use tollgate_engine::{
    bytes::Digest,
    ledger::{Account, CELL_KEY},
    time::Time,
};

/// Each report looks at every place, and a change copies one. A cell has some 350 bytes with its name: of a thousand runs at once there are six kilobytes in each.
const PLACES: u8 = 64;
/// Begins the names of places.
const PLACE: &str = "place ";
const LENGTH_BYTES: usize = 4;

/// A store in which the cells of runs share places.
#[derive(Debug)]
pub struct Places<S>(S);

impl<S: Store> Places<S> {
    /// Over a store that keeps names for ever.
    pub fn new(store: S) -> Places<S> {
        Places(store)
    }
}

impl<S: Store> Store for Places<S> {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Unavailable> {
        let Some(place) = place_of(key) else {
            return self.0.get(key).await;
        };
        let stored = self.0.get(&place).await?;
        let entries = stored.as_deref().map(entries).unwrap_or_default();
        Ok(find(&entries, key).map(<[u8]>::to_vec))
    }

    async fn swap(
        &self,
        key: &str,
        old: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<bool, Unavailable> {
        let Some(place) = place_of(key) else {
            return self.0.swap(key, old, new).await;
        };
        // What others change beside it makes the swap of the place fail, and not this one.
        for _ in 0..MAX_SWAPS {
            let stored = self.0.get(&place).await?;
            let mut entries = stored.as_deref().map(entries).unwrap_or_default();
            if find(&entries, key) != old {
                return Ok(false);
            }
            entries.retain(|(name, _)| *name != key);
            entries.extend(new.map(|new| (key, new)));
            let with_it = (!entries.is_empty()).then(|| encoded(&entries));
            if self
                .0
                .swap(&place, stored.as_deref(), with_it.as_deref())
                .await?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, Unavailable> {
        let mut keys = self.0.keys(prefix).await?;
        // Names of cells begin with their holder's.
        if !prefix.ends_with(&format!(" {CELL_KEY}")) {
            return Ok(keys);
        }
        for place in self.0.keys(PLACE).await? {
            let stored = self.0.get(&place).await?;
            let entries = stored.as_deref().map(entries).unwrap_or_default();
            let names = entries.into_iter().map(|(name, _)| name);
            keys.extend(
                names
                    .filter(|name| name.starts_with(prefix))
                    .map(str::to_owned),
            );
        }
        keys.sort();
        Ok(keys)
    }

    async fn note(&self, now: Time) -> Result<(), Unavailable> {
        self.0.note(now).await
    }

    async fn catch_up(&self, calm: bool, now: Time) -> Result<(), Unavailable> {
        self.0.catch_up(calm, now).await
    }
}

/// Where the cell of this name is; `None` where it has its own.
fn place_of(key: &str) -> Option<String> {
    let Account { run, .. } = cell_account(key)?;
    run?;
    let Digest([first, ..]) = Digest::of(key.as_bytes());
    Some(format!("{PLACE}{:02}", first % PLACES))
}

/// Names and values; those up to the first that is not whole.
fn entries(stored: &[u8]) -> Vec<(&str, &[u8])> {
    fn part<'s>(rest: &mut &'s [u8]) -> Option<&'s [u8]> {
        let (length, behind) = rest.split_first_chunk::<LENGTH_BYTES>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (part, behind) = behind.split_at_checked(length)?;
        *rest = behind;
        Some(part)
    }
    let mut rest = stored;
    std::iter::from_fn(|| {
        let name = std::str::from_utf8(part(&mut rest)?).ok()?;
        Some((name, part(&mut rest)?))
    })
    .collect()
}

fn encoded(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut stored = Vec::new();
    let parts = entries
        .iter()
        .flat_map(|(name, value)| [name.as_bytes(), value]);
    for part in parts {
        let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
        stored.extend(length.to_le_bytes());
        stored.extend_from_slice(part);
    }
    stored
}

fn find<'s>(entries: &[(&str, &'s [u8])], key: &str) -> Option<&'s [u8]> {
    let (_, value) = entries.iter().find(|(name, _)| *name == key)?;
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Memory, cell_key};
    use futures_util::FutureExt as _;
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeMap;
    use std::rc::Rc;

    fn run(number: u32) -> String {
        let account = Account::parse(&format!("agent:a|calls|run:r{number}")).unwrap();
        cell_key("h-1", &account)
    }

    fn now<T>(work: impl Future<Output = Result<T, Unavailable>>) -> T {
        work.now_or_never().unwrap().unwrap()
    }

    /// A store that remembers every name it was ever asked to keep, as Spin's does; and in which somebody else may come first.
    #[derive(Clone, Default)]
    struct Sticky {
        values: Rc<Memory>,
        names: Rc<RefCell<BTreeMap<String, usize>>>,
        others: Rc<Cell<u32>>,
    }

    impl Store for Sticky {
        async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Unavailable> {
            Ok(self.values.read(key))
        }

        async fn swap(
            &self,
            key: &str,
            old: Option<&[u8]>,
            new: Option<&[u8]>,
        ) -> Result<bool, Unavailable> {
            *self.names.borrow_mut().entry(key.to_owned()).or_default() += 1;
            if self.others.get() > 0 {
                self.others.set(self.others.get() - 1);
                return Ok(false);
            }
            Ok(self.values.exchange(key, old, new))
        }

        async fn keys(&self, prefix: &str) -> Result<Vec<String>, Unavailable> {
            Ok(self.values.names(prefix))
        }
    }

    #[test]
    fn ten_thousand_runs_leave_sixty_four_names() {
        let sticky = Sticky::default();
        let places = Places::new(sticky.clone());
        for number in 0..10_000 {
            let key = run(number);
            assert!(now(places.swap(&key, None, Some(b"cell"))));
            assert_eq!(now(places.get(&key)).as_deref(), Some(&b"cell"[..]));
            assert!(now(places.swap(&key, Some(b"cell"), None)));
            assert_eq!(now(places.get(&key)), None);
        }
        assert_eq!(sticky.names.borrow().len(), 64);
        assert_eq!(now(sticky.keys("")), Vec::<String>::new());
    }

    #[test]
    fn what_differs_is_not_swapped_and_neighbours_stay() {
        let places = Places::new(Sticky::default());
        // More than there are places, so that some share one.
        let keys: Vec<String> = (0..200).map(run).collect();
        for key in &keys {
            assert!(now(places.swap(key, None, Some(key.as_bytes()))));
        }
        assert!(!now(places.swap(&keys[7], None, Some(b"again"))));
        assert!(!now(places.swap(&keys[7], Some(b"other"), None)));
        assert!(now(places.swap(
            &keys[7],
            Some(keys[7].as_bytes()),
            Some(b"new")
        )));
        assert!(now(places.swap(&keys[8], Some(keys[8].as_bytes()), None)));
        for (number, key) in keys.iter().enumerate() {
            let expected = match number {
                7 => Some(b"new".to_vec()),
                8 => None,
                _ => Some(key.clone().into_bytes()),
            };
            assert_eq!(now(places.get(key)), expected, "{key}");
        }
    }

    #[test]
    fn whoever_comes_first_beside_it_is_waited_out() {
        let sticky = Sticky::default();
        let places = Places::new(sticky.clone());
        sticky.others.set(3);
        assert!(now(places.swap(&run(1), None, Some(b"cell"))));
        assert_eq!(now(places.get(&run(1))).as_deref(), Some(&b"cell"[..]));
    }

    #[test]
    fn cells_are_listed_wherever_they_are_and_only_one_holder_s() {
        let places = Places::new(Sticky::default());
        let plain = cell_key("h-1", &Account::parse("agent:a|calls|hour").unwrap());
        let other = cell_key("h-2", &Account::parse("agent:a|calls|run:r1").unwrap());
        for key in [&plain, &other, &run(1), &run(2), &"record 1 x".to_owned()] {
            assert!(now(places.swap(key, None, Some(b"value"))));
        }
        assert_eq!(now(places.keys("h-1 cell ")), [plain, run(1), run(2)]);
        assert_eq!(now(places.keys("record ")), ["record 1 x"]);
    }

    #[test]
    fn what_is_cut_short_is_read_as_far_as_it_is_whole() {
        let (one, other) = (("a", &b"1"[..]), ("b", &b"22"[..]));
        let stored = encoded(&[one, other]);
        assert_eq!(entries(&stored), [one, other]);
        assert_eq!(entries(&stored[..stored.len() - 1]), [one]);
        assert_eq!(entries(b"\xff\xff\xff\xffx"), []);
    }
}
