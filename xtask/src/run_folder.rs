//! Where one run keeps its state and its logs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::root;

/// A new folder of this process's own below `target/xtask`, so that two runs do not meet. It stays when a run fails, for whoever wants
/// to know why; a run that succeeded calls [`RunFolder::remove`].
#[derive(Debug)]
pub struct RunFolder(PathBuf);

impl RunFolder {
    /// Makes it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(name: &str) -> Result<Self> {
        let path = root()
            .join("target/xtask")
            .join(format!("{name}-{}", std::process::id()));
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        fs::create_dir_all(&path).with_context(|| format!("cannot create `{}`", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Removes it.
    ///
    /// # Errors
    /// When something in it cannot be removed.
    pub fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.0).with_context(|| format!("cannot remove `{}`", self.0.display()))
    }
}
