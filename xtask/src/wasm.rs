//! The two wasm modules: the Envoy filter (a core module, all that Envoy loads) and the WIT component.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use wit_component::ComponentEncoder;

use crate::{cargo, progress, tools};

const FILTER_TARGET: &str = "wasm32-wasip1";

// Not a WASI target on purpose: nothing of `std` that needs a host can be linked in, so the component imports nothing and a
// policy can be decided anywhere a component runs. The encoder is then all that `cargo component` would add.
const COMPONENT_TARGET: &str = "wasm32-unknown-unknown";

/// Makes sure that both can be built.
///
/// # Errors
/// When a target is missing and cannot be installed.
pub fn targets() -> Result<()> {
    [FILTER_TARGET, COMPONENT_TARGET]
        .into_iter()
        .try_for_each(tools::rust_target)
}

/// Builds the Envoy filter and gives the path of the module.
///
/// # Errors
/// When the target cannot be installed or the build fails.
pub fn filter() -> Result<PathBuf> {
    tools::rust_target(FILTER_TARGET)?;
    progress::say("Building", "the Envoy filter");
    cargo::build(
        "tollgate-filter",
        "tollgate_filter",
        "wasm",
        &["--profile", "wasm", "--target", FILTER_TARGET],
    )
}

/// Builds the policy component and gives the path of the component.
///
/// # Errors
/// When the target cannot be installed, the build fails, or the module is no valid component.
pub fn component() -> Result<PathBuf> {
    tools::rust_target(COMPONENT_TARGET)?;
    progress::say("Building", "the WIT component");
    let module = cargo::build(
        "tollgate-component",
        "tollgate_component",
        "wasm",
        &["--profile", "wasm", "--target", COMPONENT_TARGET],
    )?;
    let component = ComponentEncoder::default()
        .module(&fs::read(&module)?)
        .and_then(|encoder| encoder.validate(true).encode())
        .context(
            "the component's module does not encode: does it still match the world in wit/?",
        )?;
    let path = module.with_file_name("tollgate.component.wasm");
    // Renamed into place, since a test of another process may be reading the old one.
    let staged = path.with_extension(format!("wasm.{}", std::process::id()));
    fs::write(&staged, component)?;
    fs::rename(&staged, &path)?;
    Ok(path)
}

/// One line with a module's path and size.
///
/// # Errors
/// When the file cannot be read.
pub fn describe(path: &Path) -> Result<String> {
    let bytes = fs::metadata(path)
        .with_context(|| format!("cannot read `{}`", path.display()))?
        .len();
    Ok(format!("{} ({} KB)", path.display(), bytes.div_ceil(1000)))
}
