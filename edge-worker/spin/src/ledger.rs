//! Where the keeper's values are: in Spin's key-value store, shared by all instances, or in this instance's memory.
//!
//! `spin:key-value` has no swap. Spin has one beside it, in `wasi:keyvalue/atomics`, on the same store, and that is what cells and journals are changed
//! with. Three things about it decide how it is used here:
//!
//! - It replaces what is there, atomically, but what it puts where nothing was may overwrite what somebody else puts there at the same time. So every
//!   name is made once, empty, by whoever an atomic counter elects; an empty value stands for none, and is what a removed one becomes.
//!   What callers make up names for therefore shares a few ([`Places`]).
//! - A handle that was swapped with stays in the host's table, which has room for 256 in the life of an instance. Names that only one call writes
//!   ([`written_once`]) therefore go without: two thirds of all.
//! - It is only as good as the store behind it. `docs/hosts.md` says which are.

use spin_sdk::{
    experimental::wasi::keyvalue::{
        atomics::{self, Cas, CasError},
        store::{self, Bucket},
    },
    key_value,
};
use std::fmt;
use tollgate_edge_worker::{Memory, Places, Platform as _, Store, Unavailable, written_once};

use crate::host::Spin;

/// The label under which `spin.toml` grants the store.
const LABEL: &str = "default";
/// Before the name of what counts who wants to make a value.
const FIRST: &str = "first ";
/// Whoever is elected to make a value makes it in its next breath. Should it be killed between the two, the next is elected after so many have
/// waited in vain, each for [`PAUSE_MS`]: longer than any breath.
const ELECTIONS: i64 = 1_000;
const PAUSE_MS: u32 = 5;

/// A keeper's store.
pub(crate) enum Ledger {
    Shared(Places<Shared>),
    Own(Memory),
}

/// The key-value store, by both of its interfaces.
pub(crate) struct Shared {
    values: key_value::Store,
    bucket: Bucket,
}

impl Ledger {
    /// The error is a sentence for the operator.
    pub(crate) async fn open(kind: &str) -> Result<Ledger, String> {
        match kind {
            "" | "shared" => {
                let cannot = |why: &dyn fmt::Display| format!("no key-value store: {why}");
                let values = key_value::Store::open(LABEL).await;
                Ok(Ledger::Shared(Places::new(Shared {
                    values: values.map_err(|why| cannot(&why))?,
                    bucket: store::open(LABEL).map_err(|why| cannot(&why))?,
                })))
            }
            "instance" => Ok(Ledger::Own(Memory::default())),
            _ => Err("the variable `ledger` must be shared or instance".to_owned()),
        }
    }
}

impl Store for Ledger {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Unavailable> {
        match self {
            Ledger::Shared(shared) => shared.get(key).await,
            Ledger::Own(memory) => memory.get(key).await,
        }
    }

    async fn swap(
        &self,
        key: &str,
        old: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<bool, Unavailable> {
        match self {
            Ledger::Shared(shared) => shared.swap(key, old, new).await,
            Ledger::Own(memory) => memory.swap(key, old, new).await,
        }
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, Unavailable> {
        match self {
            Ledger::Shared(shared) => shared.keys(prefix).await,
            Ledger::Own(memory) => memory.keys(prefix).await,
        }
    }
}

impl Store for Shared {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Unavailable> {
        let value = self.values.get(key).await.map_err(unavailable)?;
        Ok(value.filter(|value| !value.is_empty()))
    }

    async fn swap(
        &self,
        key: &str,
        old: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<bool, Unavailable> {
        if written_once(key) {
            self.replace(key, old, new).await
        } else {
            self.exchange(key, old, new).await
        }
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, Unavailable> {
        let all = self.values.get_keys().await;
        let mut keys = all.collect().await.map_err(unavailable)?;
        keys.retain(|key| key.starts_with(prefix));
        keys.sort();
        Ok(keys)
    }
}

impl Shared {
    /// For what one call alone writes: there is nobody to come between the look and the write.
    async fn replace(
        &self,
        key: &str,
        old: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<bool, Unavailable> {
        if self.get(key).await?.as_deref() != old {
            return Ok(false);
        }
        match new {
            Some(new) => self.values.set(key, new).await,
            None => self.values.delete(key).await,
        }
        .map_err(unavailable)?;
        Ok(true)
    }

    async fn exchange(
        &self,
        key: &str,
        old: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<bool, Unavailable> {
        let mut cas = Cas::new(&self.bucket, key).map_err(unavailable)?;
        let mut current = cas.current().map_err(unavailable)?;
        if current.is_none() {
            self.make(key).await?;
            cas = Cas::new(&self.bucket, key).map_err(unavailable)?;
            current = cas.current().map_err(unavailable)?;
        }
        // Should somebody else still be about to make it, there is nothing to swap yet.
        if current.is_none_or(|current| current != old.unwrap_or_default()) {
            return Ok(false);
        }
        match atomics::swap(cas, new.unwrap_or_default()) {
            Ok(()) => Ok(true),
            Err(CasError::CasFailed(_)) => Ok(false),
            Err(CasError::StoreError(why)) => Err(unavailable(why)),
        }
    }

    async fn make(&self, key: &str) -> Result<(), Unavailable> {
        let count = format!("{FIRST}{key}");
        let place = atomics::increment(&self.bucket, &count, 1).map_err(unavailable)?;
        if place % ELECTIONS == 1 {
            self.bucket.set(key, &[]).map_err(unavailable)
        } else {
            Spin.pause(PAUSE_MS).await;
            Ok(())
        }
    }
}

fn unavailable(why: impl fmt::Display) -> Unavailable {
    Spin.log(&format!("the key-value store does not work: {why}"));
    Unavailable
}
