//! A folder for one test, kept when the test fails.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, process, thread};

/// Removed with its value, unless the thread is panicking: then its logs are what explains the failure.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new folder in the system's temporary one. `name` makes it recognisable.
    ///
    /// # Panics
    /// When it cannot be created.
    #[must_use]
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("tollgate-{name}-{}-{count}", process::id()));
        fs::create_dir_all(&path)
            .unwrap_or_else(|error| panic!("cannot create `{}`: {error}", path.display()));
        Self(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the files of this test are in `{}`", self.0.display());
        } else {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}
