//! A wall clock that a test holds, for a real Envoy.
//!
//! One corpus has to run at the same instants natively, where `now` is an argument, and in Envoy, where it is the operating system's.
//! So Envoy is started with a shim (`tests/clock/clock.c`) that answers for the wall clock, and for that alone, from a file.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, ensure};
use xtask::process;

/// A clock, and the environment that puts a process under it.
#[derive(Debug)]
pub struct Clock {
    file: PathBuf,
    library: PathBuf,
}

impl Clock {
    /// A clock whose file is in `folder`. It shows the real time until it is set.
    ///
    /// # Errors
    /// Elsewhere than on Linux, and without a C compiler called `cc`.
    pub fn new(folder: &Path) -> Result<Self> {
        ensure!(
            cfg!(target_os = "linux"),
            "a clock can be put under a process on Linux only"
        );
        let file = folder.join("clock");
        fs::write(&file, 0_i64.to_ne_bytes())?;
        static LIBRARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        let library = LIBRARY.get_or_init(|| compile().map_err(|error| format!("{error:#}")));
        let library = library.clone().map_err(anyhow::Error::msg)?;
        Ok(Self { file, library })
    }

    /// What a process needs in its environment.
    #[must_use]
    pub fn environment(&self) -> Vec<(OsString, OsString)> {
        vec![
            ("LD_PRELOAD".into(), self.library.clone().into()),
            ("TOLLGATE_CLOCK".into(), self.file.clone().into()),
        ]
    }

    /// Stops the wall clock at this instant, in nanoseconds since 1970; 0 lets it show the real time again.
    ///
    /// # Errors
    /// When the file is gone.
    pub fn set(&self, unix_ns: i64) -> Result<()> {
        // Eight aligned bytes in one write: whoever has them mapped sees the old or the new value.
        OpenOptions::new()
            .write(true)
            .open(&self.file)?
            .write_all_at(&unix_ns.to_ne_bytes(), 0)?;
        Ok(())
    }
}

/// Compiles the shim, once for all clocks of a program.
fn compile() -> Result<PathBuf> {
    let folder = xtask::root().join("target");
    fs::create_dir_all(&folder)?;
    let (staged, library) = (
        folder.join(format!("clock-{}.so", std::process::id())),
        folder.join("clock.so"),
    );
    process::run(
        Command::new("cc")
            .args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"])
            .arg(&staged)
            .arg(xtask::root().join("tests/clock/clock.c")),
    )
    .context("cannot compile tests/clock/clock.c: this needs a C compiler called `cc`")?;
    // Whoever runs the old one goes on with it.
    fs::rename(&staged, &library)?;
    Ok(library)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scratch;

    #[test]
    fn the_wall_clock_stands_where_it_is_put_and_nothing_else_does() {
        let scratch = Scratch::new("clock");
        let clock = Clock::new(scratch.path()).unwrap();
        let ask = || {
            let script = "import time; print(time.time_ns(), time.monotonic_ns() > 0)";
            process::capture(
                Command::new("python3")
                    .args(["-c", script])
                    .envs(clock.environment()),
            )
            .unwrap()
        };
        clock.set(1_600_000_000_123_456_789).unwrap();
        assert_eq!(ask(), "1600000000123456789 True\n");
        clock.set(0).unwrap();
        let real: i64 = ask().split_whitespace().next().unwrap().parse().unwrap();
        // Later than the day this was written.
        assert!(real > 1_795_000_000_000_000_000, "{real}");
    }
}
