//! The engine as a WIT component: the world `gate` of `wit/gate.wit`, which imports nothing.
//!
//! There is no logic here, only translation between the engine's types and the component's. Both sides are matched without wildcards, so a
//! new step or refusal in either does not compile until it is carried over.
//!
//! Built by plain cargo for `wasm32-unknown-unknown` and wrapped by `wit-component` in `cargo xtask wasm`, not by cargo-component:
//! - No WASI target, so nothing in `std` can bring an import with it; that the world is empty on that side is a property of the build and
//!   not only of its result.
//! - No tool to install: the encoder is a library, its version stands in `Cargo.lock` beside that of the bindings generator.
//! - cargo-component is being phased out by its maintainers in favour of exactly this.
//!
//! `cargo component build --target wasm32-unknown-unknown` works all the same (`[package.metadata.component]`). Give it a `--target-dir` of its
//! own: it writes the component to where cargo writes the module.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod bindings {
    // Generated: the component ABI is pointers and lengths, and the comments stand in the WIT.
    #![allow(unsafe_code, missing_docs, unreachable_pub, clippy::all)]
    wit_bindgen::generate!({ world: "gate", path: "../../wit" });
    // The exported names are no symbols that a native linker takes; there it is enough that the types fit.
    #[cfg(target_family = "wasm")]
    use super::Component;
    #[cfg(target_family = "wasm")]
    export!(Component);
}

mod calls;
mod upkeep;

/// The component: it holds nothing, all state is in its resources.
struct Component;
