//! The data directory: what lies in it and that nobody else can read it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};
use tollgate_engine::bytes;

/// Where everything of an installation lies.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    /// Held as long as we run: two control planes on one directory would not hear of each other's changes.
    _lock: File,
}

impl DataDir {
    pub(crate) fn open(path: &Path) -> io::Result<DataDir> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let lock = private()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join("lock"))?;
        lock.try_lock().map_err(|_| {
            io::Error::other("another control plane is running on this data directory")
        })?;
        Ok(DataDir {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// The database file, made when missing; SQLite gives its other files the same permissions.
    pub(crate) fn database(&self) -> io::Result<PathBuf> {
        let database = self.path.join("tollgate.db");
        private()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&database)?;
        fs::set_permissions(&database, fs::Permissions::from_mode(0o600))?;
        Ok(database)
    }

    /// 32 random bytes in the file of this name, made at the first start. Later a missing one is an error: gates trust the signing key
    /// and stored keys depend on the pepper, so that going on with new ones would lock everybody out without a word.
    pub(crate) fn secret(&self, name: &str) -> io::Result<[u8; 32]> {
        let file = self.path.join(name);
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.path.join("tollgate.db").exists() {
                    return Err(io::Error::other(format!(
                        "`{name}` is missing beside the database; restore both from the same backup"
                    )));
                }
                let made = bytes::to_base64(&random::<32>()?);
                write_private(&file, &made)?;
                made
            }
            Err(error) => return Err(error),
        };
        bytes::from_base64(text.trim())
            .and_then(|secret| secret.try_into().ok())
            .ok_or_else(|| {
                io::Error::other(format!(
                    "`{name}` does not hold 32 bytes in base64; restore it from a backup"
                ))
            })
    }

    pub(crate) fn root_key(&self) -> PathBuf {
        self.path.join("root.key")
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

/// Writes a line only we can read, whole or not at all.
pub(crate) fn write_private(file: &Path, text: &str) -> io::Result<()> {
    let unfinished = file.with_extension("unfinished");
    let mut out = private()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&unfinished)?;
    writeln!(out, "{text}")?;
    out.sync_all()?;
    fs::rename(&unfinished, file)?;
    match file.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// Random bytes from the operating system.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut out = [0; N];
    getrandom::fill(&mut out).map_err(io::Error::other)?;
    Ok(out)
}
