//! What stands around the product: tools, wasm builds, processes, the reference Envoy.
//!
//! `cargo xtask` is a thin command over this library, and the tests use the same pieces, so that a test runs what a user runs.
//! Nothing here is linked into a gate, the control plane or the `tollgate` command.

pub mod cargo;
pub mod control_plane;
pub mod envoy;
pub mod http;
pub mod process;
pub mod progress;
pub mod run_folder;
pub mod spin;
pub mod stack;
pub mod stand_in;
pub mod tools;
pub mod wasm;
pub mod workerd;

use std::path::{Path, PathBuf};

/// The checkout this was compiled from. Everything fetched or started lives below it.
#[must_use]
pub fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// Where fetched tools live: `.tools/` in the checkout.
#[must_use]
pub fn tools_dir() -> PathBuf {
    root().join(".tools")
}
