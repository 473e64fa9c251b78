//! The data directory: what lies in it and that nobody else can read it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{
        DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _,
        PermissionsExt as _,
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicI64, Ordering},
};
use tollgate_engine::{bytes, time::Time};

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
            Ok(text) => {
                keep_private(&file)?;
                text
            }
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

    /// The mark of the last lease.
    pub(crate) fn mark(&self) -> io::Result<Mark> {
        let path = self.path.join("leases.mark");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let file = private()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        let inode = file.metadata()?.ino();
        let before = text.split_once(' ').and_then(|(of, millis)| {
            let same = of.parse() == Ok(inode);
            same.then(|| millis.trim().parse().ok()).flatten()
        });
        Ok(Mark {
            file,
            inode,
            before,
            newest_ms: AtomicI64::new(i64::MIN),
        })
    }
}

/// When the last lease was given, in a file beside the database. A database that is older has been put back from a backup, and a file that
/// is not the one we wrote (it names its own inode) came with a backup itself. It is written after every commit and never synced: what
/// a power cut takes from it makes it older, which accuses nobody.
#[derive(Debug)]
pub(crate) struct Mark {
    file: File,
    inode: u64,
    before: Option<i64>,
    newest_ms: AtomicI64,
}

impl Mark {
    /// What it said when we started, in milliseconds since the Unix epoch; `None` when it is new here.
    pub(crate) fn before(&self) -> Option<i64> {
        self.before
    }

    /// Begins to count from the state that the database is in.
    pub(crate) fn start(&self, heard_ms: i64) {
        self.newest_ms.store(heard_ms, Ordering::SeqCst);
        self.write(heard_ms);
    }

    /// A lease was given and is in the database.
    pub(crate) fn leased(&self, now: Time) {
        let now_ms = now.millis();
        if self.newest_ms.fetch_max(now_ms, Ordering::SeqCst) < now_ms {
            self.write(now_ms);
        }
    }

    fn write(&self, millis: i64) {
        // As wide whatever the numbers are, so that nothing of an earlier one is left behind.
        let text = format!("{} {millis:020}\n", self.inode);
        if let Err(error) = self.file.write_all_at(text.as_bytes(), 0) {
            tracing::warn!(cause = %error, "`leases.mark` cannot be written");
        }
    }
}

/// Takes a secret from whoever else may read it: one that came back from a backup, say.
pub(crate) fn keep_private(file: &Path) -> io::Result<()> {
    if fs::metadata(file)?.permissions().mode() & 0o077 == 0 {
        return Ok(());
    }
    tracing::warn!(file = %file.display(), "others on this machine could read it; it is its owner's alone from now on");
    fs::set_permissions(file, fs::Permissions::from_mode(0o600))
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
