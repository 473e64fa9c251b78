//! The wasm modules: the Envoy filter (a core module, all that Envoy loads), the WIT component, the Cloudflare Worker (a module with the
//! JavaScript that stands around it), the Spin component, and the policy checker for browsers.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use wasm_bindgen_cli_support::Bindgen;
use wit_component::ComponentEncoder;

use crate::{cargo, progress, root, tools};

const FILTER_TARGET: &str = "wasm32-wasip1";

// Not a WASI target on purpose: nothing of `std` that needs a host can be linked in, so the component imports nothing and a
// policy can be decided anywhere a component runs. The encoder is then all that `cargo component` would add.
const COMPONENT_TARGET: &str = "wasm32-unknown-unknown";

const WORKER_TARGET: &str = "wasm32-unknown-unknown";

// Where `std` uses WASI 0.2 and everything else 0.3, as Spin offers both. The linker makes a component of it.
const SPIN_TARGET: &str = "wasm32-wasip2";

/// Makes sure that all can be built.
///
/// # Errors
/// When a target is missing and cannot be installed.
pub fn targets() -> Result<()> {
    [FILTER_TARGET, COMPONENT_TARGET, SPIN_TARGET]
        .into_iter()
        .try_for_each(tools::rust_target)
}

/// Builds the Envoy filter and gives the path of the module.
///
/// # Errors
/// When the target cannot be installed or the build fails.
pub fn filter() -> Result<PathBuf> {
    progress::say("Building", "the Envoy filter");
    filter_with(&[])
}

/// The same, telling where the time goes.
///
/// # Errors
/// As [`filter`].
pub fn measuring_filter() -> Result<PathBuf> {
    progress::say("Building", "an Envoy filter that measures itself");
    filter_with(&["--features", "profile"])
}

fn filter_with(arguments: &[&str]) -> Result<PathBuf> {
    tools::rust_target(FILTER_TARGET)?;
    let plain = ["--profile", "wasm", "--target", FILTER_TARGET];
    cargo::build(
        "tollgate-filter",
        "tollgate_filter",
        "wasm",
        &[&plain, arguments].concat(),
    )
}

/// Builds the Spin component and gives its path, the one that its `spin.toml` names.
///
/// # Errors
/// When the target cannot be installed or the build fails.
pub fn spin() -> Result<PathBuf> {
    spin_component("tollgate-spin", "tollgate_spin")
}

/// Builds the Spin component that only passes calls on, for comparison.
///
/// # Errors
/// As [`spin`].
pub fn spin_pass_through() -> Result<PathBuf> {
    spin_component("tollgate-pass-through", "tollgate_pass_through")
}

fn spin_component(package: &str, target_name: &str) -> Result<PathBuf> {
    tools::rust_target(SPIN_TARGET)?;
    progress::say("Building", format!("the Spin component {package}"));
    cargo::build(
        package,
        target_name,
        "wasm",
        &["--profile", "wasm", "--target", SPIN_TARGET],
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

/// Builds the Cloudflare Worker and gives the folder of its files, `entry.js` the first of them.
///
/// What `worker-build` does, with the one tool it needs as a library of the version in `Cargo.lock`. Its bundler is not missed: workerd and
/// Cloudflare take modules as they are.
///
/// # Errors
/// When the target cannot be installed or the build fails.
pub fn cloudflare() -> Result<PathBuf> {
    tools::rust_target(WORKER_TARGET)?;
    progress::say("Building", "the Cloudflare Worker");
    let module = cargo::build(
        "tollgate-cloudflare",
        "tollgate_cloudflare",
        "wasm",
        &["--profile", "worker", "--target", WORKER_TARGET],
    )?;
    let entry = fs::read(root().join("edge-worker/cloudflare/entry.js"))?;
    let folder = root().join("target/cloudflare");
    let stamp = folder.join("made-from");
    let made_from = [
        tools::sha256(&module)?.as_bytes(),
        env!("CARGO_PKG_VERSION").as_bytes(),
        &entry,
    ]
    .concat();
    // Left alone when it is up to date: a test of another process may be reading it.
    if fs::read(&stamp).is_ok_and(|stamp| stamp == made_from) {
        return Ok(folder);
    }
    let staged = folder.with_extension(std::process::id().to_string());
    fs::create_dir_all(&staged)?;
    let mut bindgen = Bindgen::new();
    bindgen
        .module(true)?
        .input_path(&module)
        .out_name("index")
        .typescript(false)
        // For `entry.js`, which replaces an instance that has panicked.
        .reset_state_function(true)
        .force_enable_abort_handler(true)
        .remove_name_section(true)
        .remove_producers_section(true);
    bindgen.generate_output()?.emit(&staged)?;
    fs::write(staged.join("entry.js"), entry)?;
    fs::write(staged.join("made-from"), made_from)?;
    let old = folder.with_extension(format!("{}.old", std::process::id()));
    let _ = fs::rename(&folder, &old);
    fs::rename(&staged, &folder)?;
    let _ = fs::remove_dir_all(old);
    Ok(folder)
}

/// Builds the policy checker for browsers and gives the folder of its files: `tollgate_checker.js`, which a page imports, its types and the
/// module.
///
/// # Errors
/// When the target cannot be installed or the build fails.
pub fn checker() -> Result<PathBuf> {
    tools::rust_target(COMPONENT_TARGET)?;
    progress::say("Building", "the policy checker for browsers");
    let module = cargo::build(
        "tollgate-checker",
        "tollgate_checker",
        "wasm",
        &["--profile", "wasm", "--target", COMPONENT_TARGET],
    )?;
    let folder = root().join("target/checker");
    let mut bindgen = Bindgen::new();
    bindgen
        .web(true)?
        .input_path(&module)
        .out_name("tollgate_checker")
        .remove_name_section(true)
        .remove_producers_section(true);
    bindgen.generate_output()?.emit(&folder)?;
    Ok(folder)
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
