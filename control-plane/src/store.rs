//! The database: one file, one writer, many readers.
//!
//! All writes go through one connection, each in a transaction that takes the write lock at its start, so that a decision made inside
//! (may this holder have more, is this sequence free) still holds when it commits. A commit has reached the disk when it returns.

use sqlx::{
    Sqlite, SqlitePool, Transaction,
    migrate::Migrator,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use std::{path::Path, time::Duration};

/// A write transaction; rolled back unless committed.
pub(crate) type Write = Transaction<'static, Sqlite>;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Readers at a time. Reads are short; more connections than a small machine has cores only cost memory.
const READERS: u32 = 4;

/// How long a request waits for a connection before it is answered 503.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Store {
    write: SqlitePool,
    read: SqlitePool,
}

impl Store {
    pub(crate) async fn open(file: &Path) -> Result<Store, sqlx::Error> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(ACQUIRE_TIMEOUT);
        let write = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options.clone().create_if_missing(true))
            .await?;
        MIGRATIONS.run(&write).await?;
        let read = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options.read_only(true))
            .await?;
        Ok(Store { write, read })
    }

    /// Begins a write transaction.
    pub(crate) async fn write(&self) -> Result<Write, sqlx::Error> {
        self.write.begin_with("BEGIN IMMEDIATE").await
    }

    /// For queries that change nothing.
    pub(crate) fn read(&self) -> &SqlitePool {
        &self.read
    }

    /// Lets the last transactions finish and folds the write-ahead log into the file.
    pub(crate) async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }
}

/// 2⁵³−1: the last whole number that every reader of JSON takes for what it is (RFC 8259 §6). Numbers that travel as numbers end here.
pub(crate) const MAX_EXACT: i64 = 9_007_199_254_740_991;

/// An amount or counter as the database holds it; `None` beyond 2⁶³−1.
pub(crate) fn stored(amount: u64) -> Option<i64> {
    i64::try_from(amount).ok()
}

/// A stored amount; the database holds no negative ones (`CHECK`), so what is negative reads as none.
pub(crate) fn amount(stored: i64) -> u64 {
    u64::try_from(stored).unwrap_or(0)
}
