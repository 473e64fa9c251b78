//! The WIT component in wasmtime: the least that a host of it needs.
//!
//! One compiled [`Component`] gives any number of instances, which share nothing. Each has a memory limit, and fuel anew for every call into
//! it, so that what runs away traps after a known amount of work and takes nobody else with it.

use std::path::Path;

use anyhow::{Context as _, Result};
use wasmtime::component::{Component as Compiled, Linker, ResourceAny};
use wasmtime::{Config, Engine, OptLevel, Store, StoreLimits, StoreLimitsBuilder, Trap};

mod bindings {
    // Generated; the comments stand in the WIT.
    #![allow(missing_docs, unreachable_pub, clippy::all)]
    wasmtime::component::bindgen!({ world: "gate", path: "../wit" });
}
pub use bindings::exports::tollgate::policy::{calls, upkeep};

/// Work one call may do, in wasm instructions or so. The dearest honest call, a body of 16 MiB under content rules, takes 30 to 80 of them a
/// byte: 1.4 billion. (A chat of 2 KiB, answer metered, takes 0.6 million.)
pub const FUEL_PER_CALL: u64 = 2_000_000_000;

/// Memory of one instance. A gate with its bundle takes 2 to 8 MiB; a body of 16 MiB that is sent on changed is held twice.
pub const MAX_MEMORY_BYTES: usize = 64 << 20;

/// The compiled component.
pub struct Component {
    engine: Engine,
    compiled: Compiled,
}

/// An instance of it.
pub struct Instance {
    store: Store<StoreLimits>,
    world: bindings::Gate,
    fuel_per_call: u64,
}

impl Component {
    /// Compiles the component in the file at `path`.
    ///
    /// # Errors
    /// When it is no component of a version this wasmtime knows.
    pub fn load(path: &Path) -> Result<Component> {
        // The tests run it a few thousand times; what they wait for is the compiler.
        Component::compile(path, OptLevel::None)
    }

    /// The same for measurements.
    ///
    /// # Errors
    /// As [`Component::load`].
    pub fn load_optimised(path: &Path) -> Result<Component> {
        Component::compile(path, OptLevel::Speed)
    }

    fn compile(path: &Path, level: OptLevel) -> Result<Component> {
        let mut config = Config::new();
        config.consume_fuel(true);
        config.cranelift_opt_level(level);
        let engine = Engine::new(&config)?;
        let compiled = Compiled::from_file(&engine, path)
            .map_err(anyhow::Error::from)
            .with_context(|| format!("cannot compile `{}`", path.display()))?;
        Ok(Component { engine, compiled })
    }

    /// The names of what it imports.
    #[must_use]
    pub fn imports(&self) -> Vec<String> {
        let component_type = self.compiled.component_type();
        component_type
            .imports(&self.engine)
            .map(|(name, _)| name.to_owned())
            .collect()
    }

    /// A new instance. It is linked to nothing, which only what imports nothing survives.
    ///
    /// # Errors
    /// When it imports something, or exports something else than the world says.
    pub fn instance(&self) -> Result<Instance> {
        let limits = StoreLimitsBuilder::new()
            .memory_size(MAX_MEMORY_BYTES)
            .build();
        let mut store = Store::new(&self.engine, limits);
        store.limiter(|limits| limits);
        store.set_fuel(FUEL_PER_CALL)?;
        let world =
            bindings::Gate::instantiate(&mut store, &self.compiled, &Linker::new(&self.engine))?;
        Ok(Instance {
            store,
            world,
            fuel_per_call: FUEL_PER_CALL,
        })
    }
}

impl Instance {
    /// Another limit than [`FUEL_PER_CALL`] from now on.
    pub fn limit_fuel(&mut self, fuel_per_call: u64) {
        self.fuel_per_call = fuel_per_call;
    }

    /// Calls a function of the interface `calls`.
    ///
    /// # Errors
    /// When it traps. The instance is then of no more use.
    pub fn calls<R>(
        &mut self,
        call: impl FnOnce(&calls::Guest, &mut Store<StoreLimits>) -> wasmtime::Result<R>,
    ) -> Result<R> {
        self.store.set_fuel(self.fuel_per_call)?;
        Ok(call(self.world.tollgate_policy_calls(), &mut self.store)?)
    }

    /// Calls a function of the interface `upkeep`.
    ///
    /// # Errors
    /// When it traps. The instance is then of no more use.
    pub fn upkeep<R>(
        &mut self,
        call: impl FnOnce(&upkeep::Guest, &mut Store<StoreLimits>) -> wasmtime::Result<R>,
    ) -> Result<R> {
        self.store.set_fuel(self.fuel_per_call)?;
        Ok(call(self.world.tollgate_policy_upkeep(), &mut self.store)?)
    }

    /// What the last call left of its fuel.
    ///
    /// # Errors
    /// Never: fuel is switched on.
    pub fn fuel_left(&self) -> Result<u64> {
        Ok(self.store.get_fuel()?)
    }

    /// Lets go of a resource that no call has taken.
    ///
    /// # Errors
    /// When its destructor traps.
    pub fn drop(&mut self, resource: ResourceAny) -> Result<()> {
        self.store.set_fuel(self.fuel_per_call)?;
        Ok(resource.resource_drop(&mut self.store)?)
    }
}

/// Whether a call failed because its fuel was used up.
#[must_use]
pub fn ran_away(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Trap>() == Some(&Trap::OutOfFuel)
}
