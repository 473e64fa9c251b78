//! The database: one file, one writer, many readers.
//!
//! All writes go through one connection, each in a transaction that takes the write lock at its start, so that a decision made inside
//! (may this holder have more, is this sequence free) still holds when it commits. A commit has reached the disk when it returns.

use sqlx::{
    Connection as _, Sqlite, SqlitePool, Transaction,
    migrate::Migrator,
    pool::PoolConnection,
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
            // When the disk is full, SQLite ends the transaction by itself. sqlx does not hear of it, takes the connection to be in one
            // for ever after, and begins no other on it. The pool closes such a connection and opens a new one.
            .before_acquire(|connection, _| {
                let usable = !connection.is_in_transaction();
                Box::pin(async move { Ok(usable) })
            })
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

    /// The writer, if nobody has it or waits for it: for a single statement that may as well be left out.
    pub(crate) fn free_writer(&self) -> Option<PoolConnection<Sqlite>> {
        self.write.try_acquire()
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

/// What the database says of itself when it refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// There is no room for what was to be written; nothing of it was.
    Full,
    /// Another program has the file locked.
    Locked,
    /// Anything else.
    Other,
}

/// Which trouble `error` is, by SQLite's primary result code, the low byte of what it gives (<https://sqlite.org/rescode.html>).
pub(crate) fn trouble(error: &sqlx::Error) -> Trouble {
    let code = error.as_database_error().and_then(|error| error.code());
    match code.and_then(|code| code.parse::<u32>().ok()) {
        Some(code) if code & 0xff == 13 => Trouble::Full,
        Some(code) if code & 0xff == 5 => Trouble::Locked,
        _ => Trouble::Other,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{Kind, Problem};

    async fn put(store: &Store, bytes: i64) -> Result<(), sqlx::Error> {
        let mut write = store.write().await?;
        sqlx::query("INSERT INTO filler (bytes) VALUES (zeroblob($1))")
            .bind(bytes)
            .execute(&mut *write)
            .await?;
        write.commit().await
    }

    #[tokio::test]
    async fn after_a_full_disk_it_writes_again() {
        let directory = std::env::temp_dir().join(format!("tollgate-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&directory).unwrap();
        let store = Store::open(&directory.join("full.db")).await.unwrap();
        let mut write = store.write().await.unwrap();
        sqlx::query("CREATE TABLE filler (bytes BLOB)")
            .execute(&mut *write)
            .await
            .unwrap();
        write.commit().await.unwrap();
        // SQLite takes no more pages than there are, as if the disk had none: of this connection, so the next has room again.
        sqlx::query("PRAGMA max_page_count = 1")
            .execute(&store.write)
            .await
            .unwrap();
        let full = put(&store, 1_000_000).await.unwrap_err();
        assert_eq!(trouble(&full), Trouble::Full, "{full}");
        let problem = Problem::from(full);
        assert_eq!(problem.kind(), Kind::Unavailable);
        assert!(problem.detail().contains("disk is full"), "{problem:?}");
        put(&store, 1_000_000).await.unwrap();
        let kept: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM filler")
            .fetch_one(store.read())
            .await
            .unwrap();
        assert_eq!(kept, 1, "nothing of what was refused");
        store.close().await;
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
