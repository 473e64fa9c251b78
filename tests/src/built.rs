//! What the tests run, built at most once per test program. A test that is started by itself finds it fresh all the same.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use xtask::{cargo, tools, wasm};

/// The Envoy filter; `TOLLGATE_FILTER` names another build of it.
///
/// # Panics
/// When it does not build.
pub fn filter() -> &'static Path {
    static FILTER: OnceLock<PathBuf> = OnceLock::new();
    FILTER.get_or_init(|| match std::env::var_os("TOLLGATE_FILTER") {
        Some(path) => path.into(),
        None => wasm::filter().unwrap_or_else(|error| panic!("{error:#}")),
    })
}

/// The WIT component.
///
/// # Panics
/// When it does not build.
pub fn component() -> &'static Path {
    static COMPONENT: OnceLock<PathBuf> = OnceLock::new();
    COMPONENT.get_or_init(|| wasm::component().unwrap_or_else(|error| panic!("{error:#}")))
}

/// The folder of the Cloudflare Worker's files.
///
/// # Panics
/// When it does not build.
pub fn cloudflare() -> &'static Path {
    static WORKER: OnceLock<PathBuf> = OnceLock::new();
    WORKER.get_or_init(|| wasm::cloudflare().unwrap_or_else(|error| panic!("{error:#}")))
}

/// The Spin component.
///
/// # Panics
/// When it does not build.
pub fn spin() -> &'static Path {
    static SPIN: OnceLock<PathBuf> = OnceLock::new();
    SPIN.get_or_init(|| wasm::spin().unwrap_or_else(|error| panic!("{error:#}")))
}

/// The workerd binary; `WORKERD` names another.
///
/// # Panics
/// When it cannot be fetched.
pub fn workerd() -> &'static Path {
    static WORKERD: OnceLock<PathBuf> = OnceLock::new();
    WORKERD.get_or_init(|| tools::workerd().unwrap_or_else(|error| panic!("{error:#}")))
}

/// The `tollgate` command, control plane included.
///
/// # Panics
/// When it does not build.
pub fn tollgate() -> &'static Path {
    static TOLLGATE: OnceLock<PathBuf> = OnceLock::new();
    TOLLGATE.get_or_init(|| {
        cargo::build("tollgate", "tollgate", "", &[]).unwrap_or_else(|error| panic!("{error:#}"))
    })
}

/// The Envoy binary; `ENVOY` names another.
///
/// # Panics
/// When it cannot be fetched.
pub fn envoy() -> &'static Path {
    static ENVOY: OnceLock<PathBuf> = OnceLock::new();
    ENVOY.get_or_init(|| tools::envoy(None).unwrap_or_else(|error| panic!("{error:#}")))
}
