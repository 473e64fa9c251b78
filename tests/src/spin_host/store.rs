//! Spin's key-value store and variables, as far as the component uses them.
//!
//! The store does what Spin's own (SQLite) does, also where that is not what one would wish for: a swap where nothing was overwrites whatever is there by
//! then, and a handle that was swapped with stays in a table with room for [`HANDLES`]. The component has to cope.

use super::Guest;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use wasmtime::{
    Result,
    component::{Accessor, FutureReader, HasData, Linker, Resource, StreamReader},
};

mod bindings {
    // Generated; the comments stand in the WIT.
    #![allow(missing_docs, unreachable_pub, clippy::all)]
    wasmtime::component::bindgen!({
        path: "src/spin_host/host.wit",
        world: "imports",
        with: {
            "spin:key-value/key-value.store": super::Opened,
            "wasi:keyvalue/store.bucket": super::Opened,
            "wasi:keyvalue/atomics.cas": super::Cas,
        },
    });
}
use bindings::{
    spin::{key_value::key_value as spin, variables::variables},
    wasi::keyvalue::{atomics, store as wasi},
};

/// Handles that an instance may have open, in Spin.
const HANDLES: usize = 256;
/// The one label there is.
const LABEL: &str = "default";

/// The values of a store; its copies are the same store.
#[derive(Clone, Debug, Default)]
pub struct Values(Arc<Mutex<BTreeMap<String, Vec<u8>>>>);

impl Values {
    /// All of them, locked.
    pub fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open store.
#[expect(
    unreachable_pub,
    reason = "what is generated makes it public in its own module"
)]
pub struct Opened;

/// A swap that is under way.
#[expect(
    unreachable_pub,
    reason = "what is generated makes it public in its own module"
)]
pub struct Cas {
    key: String,
    current: Option<Vec<u8>>,
}

struct Spin;

impl HasData for Spin {
    type Data<'a> = &'a mut Guest;
}

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> Result<()> {
    spin::add_to_linker::<_, Spin>(linker, |guest| guest)?;
    variables::add_to_linker::<_, Spin>(linker, |guest| guest)?;
    wasi::add_to_linker::<_, Spin>(linker, |guest| guest)?;
    atomics::add_to_linker::<_, Spin>(linker, |guest| guest)
}

impl Guest {
    fn values(&self) -> Values {
        self.app.values.clone()
    }
}

fn values<T>(accessor: &Accessor<T, Spin>) -> Values {
    accessor.with(|mut access| access.get().values())
}

impl spin::Host for &mut Guest {}

impl spin::HostStore for &mut Guest {
    fn drop(&mut self, store: Resource<Opened>) -> Result<()> {
        self.table.delete(store)?;
        Ok(())
    }
}

impl<T: Send> spin::HostStoreWithStore<T> for Spin {
    async fn open(
        accessor: &Accessor<T, Self>,
        label: String,
    ) -> Result<Resource<Opened>, spin::Error> {
        if label != LABEL {
            return Err(spin::Error::AccessDenied);
        }
        accessor
            .with(|mut access| access.get().table.push(Opened))
            .map_err(|_| spin::Error::StoreTableFull)
    }

    async fn get(
        accessor: &Accessor<T, Self>,
        _: Resource<Opened>,
        key: String,
    ) -> Result<Option<Vec<u8>>, spin::Error> {
        Ok(values(accessor).lock().get(&key).cloned())
    }

    async fn set(
        accessor: &Accessor<T, Self>,
        _: Resource<Opened>,
        key: String,
        value: Vec<u8>,
    ) -> Result<(), spin::Error> {
        values(accessor).lock().insert(key, value);
        Ok(())
    }

    async fn delete(
        accessor: &Accessor<T, Self>,
        _: Resource<Opened>,
        key: String,
    ) -> Result<(), spin::Error> {
        values(accessor).lock().remove(&key);
        Ok(())
    }

    async fn get_keys(
        accessor: &Accessor<T, Self>,
        _: Resource<Opened>,
    ) -> (StreamReader<String>, FutureReader<Result<(), spin::Error>>) {
        let keys: Vec<String> = values(accessor).lock().keys().cloned().collect();
        accessor.with(|mut access| {
            let done = async { wasmtime::error::Ok(Ok(())) };
            let keys = StreamReader::new(&mut access, keys);
            let done = FutureReader::new(&mut access, done);
            (
                keys.expect("concurrency is on"),
                done.expect("concurrency is on"),
            )
        })
    }
}

impl variables::Host for &mut Guest {}

impl<T: Send> variables::HostWithStore<T> for Spin {
    async fn get(accessor: &Accessor<T, Self>, name: String) -> Result<String, variables::Error> {
        let value = accessor.with(|mut access| access.get().app.variables.get(&name).cloned());
        value.ok_or(variables::Error::Undefined(name))
    }
}

impl wasi::Host for &mut Guest {
    fn open(&mut self, label: String) -> Result<Resource<Opened>, wasi::Error> {
        if label != LABEL {
            return Err(wasi::Error::AccessDenied);
        }
        self.table
            .push(Opened)
            .map_err(|full| wasi::Error::Other(full.to_string()))
    }
}

impl wasi::HostBucket for &mut Guest {
    fn set(&mut self, _: Resource<Opened>, key: String, value: Vec<u8>) -> Result<(), wasi::Error> {
        self.values().lock().insert(key, value);
        Ok(())
    }

    fn drop(&mut self, bucket: Resource<Opened>) -> Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }
}

impl atomics::HostCas for &mut Guest {
    fn new(&mut self, _: Resource<Opened>, key: String) -> Result<Resource<Cas>, wasi::Error> {
        if self.swapped >= HANDLES {
            return Err(wasi::Error::Other(
                "too many compare_and_swaps opened".to_owned(),
            ));
        }
        let current = None;
        self.table
            .push(Cas { key, current })
            .map_err(|full| wasi::Error::Other(full.to_string()))
    }

    fn current(&mut self, cas: Resource<Cas>) -> Result<Option<Vec<u8>>, wasi::Error> {
        let values = self.values();
        let cas = self
            .table
            .get_mut(&cas)
            .map_err(|gone| wasi::Error::Other(gone.to_string()))?;
        cas.current = values.lock().get(&cas.key).cloned();
        Ok(cas.current.clone())
    }

    fn drop(&mut self, cas: Resource<Cas>) -> Result<()> {
        self.table.delete(cas)?;
        Ok(())
    }
}

impl atomics::Host for &mut Guest {
    fn increment(
        &mut self,
        _: Resource<Opened>,
        key: String,
        delta: i64,
    ) -> Result<i64, wasi::Error> {
        let values = self.values();
        let mut values = values.lock();
        let old = values
            .get(&key)
            .and_then(|value| Some(i64::from_le_bytes(value.as_slice().try_into().ok()?)))
            .unwrap_or(0);
        let new = old.saturating_add(delta);
        values.insert(key, new.to_le_bytes().to_vec());
        Ok(new)
    }

    fn swap(&mut self, cas: Resource<Cas>, value: Vec<u8>) -> Result<(), atomics::CasError> {
        let other = |why: String| atomics::CasError::StoreError(wasi::Error::Other(why));
        let cas = self
            .table
            .delete(cas)
            .map_err(|gone| other(gone.to_string()))?;
        self.swapped += 1;
        let values = self.values();
        let mut values = values.lock();
        let current = values.get(&cas.key).cloned();
        if cas.current.is_none() || cas.current == current {
            values.insert(cas.key, value);
            return Ok(());
        }
        let again = Cas {
            key: cas.key,
            current,
        };
        let again = self
            .table
            .push(again)
            .map_err(|full| other(full.to_string()))?;
        Err(atomics::CasError::CasFailed(again))
    }
}
