//! Connections: many readers, one writer per process.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};
use rustix::fs::AtFlags;

use super::schema::Schema;
use crate::store::error::{IoContext, StoreError, directory_at};
use crate::store::layout::{Layout, list};
use crate::store::lock;

/// How long a writer waits for writers of other processes; transactions last well under a millisecond each.
const BUSY_WAIT_MAX: Duration = Duration::from_secs(60);
/// Prepared statements kept per connection: all we have.
const STATEMENTS: usize = 64;
/// A shorter WAL is left alone: the next process reads half a megabyte in about 0.15 ms, emptying it costs two
/// waits for the disk.
const CHECKPOINT_WAL_BYTES_MIN: u64 = 512 * 1024;
/// Reader connections kept for reuse; more are opened while more threads read at once.
const READERS_KEPT: usize = 8;

/// One database file, opened at first use.
///
/// Never carried across a fork, and never opened by other means in this process: closing any descriptor of the file
/// would drop SQLite's POSIX locks.
#[derive(Debug)]
pub(in crate::store) struct Db {
    layout: Arc<Layout>,
    schema: &'static Schema,
    /// The file may be made though the store is not new.
    is_anew: bool,
    readers: Mutex<Vec<Connection>>,
    writer: Mutex<Option<Writer>>,
}

#[derive(Debug)]
struct Writer {
    connection: Connection,
    /// What its `synchronous` is set to.
    flush: Flush,
}

/// A read transaction. rusqlite's own compiles its two statements for every one of them.
struct Snapshot<'c>(&'c Connection);

impl<'c> Snapshot<'c> {
    fn new(connection: &'c Connection) -> rusqlite::Result<Self> {
        connection.prepare_cached("BEGIN DEFERRED")?.execute([])?;
        Ok(Self(connection))
    }
}

impl Drop for Snapshot<'_> {
    fn drop(&mut self) {
        // An error that ended the transaction leaves nothing to end; any other shows at the connection's next use.
        let _ = self.0.prepare_cached("ROLLBACK").and_then(|mut end| end.execute([]));
    }
}

/// When a transaction counts as committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flush {
    /// Once it is in the WAL's pages; the WAL is flushed at checkpoints.
    Later,
    /// Once the WAL is on the disk.
    Now,
}

/// What a closure over a connection fails with.
#[derive(Debug)]
pub(in crate::store) enum DbError {
    /// SQLite's own.
    Sql(rusqlite::Error),
    /// Ours, from work done inside the transaction.
    Store(StoreError),
}

impl From<rusqlite::Error> for DbError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<StoreError> for DbError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Db {
    pub(in crate::store) fn new(layout: Arc<Layout>, schema: &'static Schema) -> Self {
        Self { layout, schema, is_anew: false, readers: Mutex::default(), writer: Mutex::default() }
    }

    /// For whoever fills the file from what lies beside it.
    pub(in crate::store) fn anew(layout: Arc<Layout>, schema: &'static Schema) -> Self {
        Self { is_anew: true, ..Self::new(layout, schema) }
    }

    /// Runs look-ups in one read transaction, so that they see one state.
    pub(in crate::store) fn read<T>(
        &self,
        doing: &'static str,
        look_up: impl FnOnce(&Connection) -> Result<T, DbError>,
    ) -> Result<T, StoreError> {
        let pooled = lock(&self.readers).pop();
        let connection = match pooled {
            Some(connection) => connection,
            None => self.connect()?,
        };
        let result =
            Snapshot::new(&connection).map_err(DbError::from).and_then(|_snapshot| look_up(&connection));
        let mut readers = lock(&self.readers);
        if readers.len() < READERS_KEPT {
            readers.push(connection);
        }
        drop(readers);
        result.map_err(|error| self.explain(doing, error))
    }

    /// Runs a short write transaction: `BEGIN IMMEDIATE`, commit unless the closure fails. No waiting for anything
    /// but the disk may happen inside.
    pub(in crate::store) fn write<T>(
        &self,
        doing: &'static str,
        change: impl FnOnce(&Transaction<'_>) -> Result<T, DbError>,
    ) -> Result<T, StoreError> {
        self.write_as(Flush::Later, doing, change)
    }

    /// As [`Self::write`], but returns only when the transaction is on the disk.
    pub(in crate::store) fn write_durably<T>(
        &self,
        doing: &'static str,
        change: impl FnOnce(&Transaction<'_>) -> Result<T, DbError>,
    ) -> Result<T, StoreError> {
        self.write_as(Flush::Now, doing, change)
    }

    /// Moves the WAL into the database file and empties it, if it has grown and nobody is in the way. The first
    /// process to open the file would otherwise read the whole WAL.
    pub(in crate::store) fn checkpoint(&self) -> Result<(), StoreError> {
        if file_size(&self.wal_path()) < CHECKPOINT_WAL_BYTES_MIN {
            return Ok(());
        }
        let mut writer = lock(&self.writer);
        let Some(Writer { connection, .. }) = writer.as_mut() else { return Ok(()) };
        let run = |connection: &Connection| -> rusqlite::Result<()> {
            connection.busy_timeout(Duration::ZERO)?;
            // The row says whether readers were in the way; then it simply happens another time.
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        };
        let result = run(connection);
        let reset = connection.busy_timeout(BUSY_WAIT_MAX);
        match result.and(reset) {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(()),
            other => other.map_err(|error| self.explain("checkpoint", error.into())),
        }
    }

    /// Brings all that was written into the one file and closes it, so that it can be moved. Nobody else may have it open.
    pub(in crate::store) fn close_as_one_file(&self) -> Result<(), StoreError> {
        lock(&self.readers).clear();
        let Some(Writer { connection, .. }) = lock(&self.writer).take() else { return Ok(()) };
        let emptied =
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0));
        match emptied {
            Ok(false) => {}
            Ok(true) => return Err(StoreError::InUse { root: self.layout.root().to_owned() }),
            Err(error) => return Err(self.explain("checkpoint", error.into())),
        }
        drop(connection);
        for suffix in ["-wal", "-shm"] {
            let name = format!("{}{suffix}", self.schema.file);
            rustix::fs::unlinkat(self.layout.fd(), &name, AtFlags::empty())
                .doing("remove", &self.layout.path(&name))?;
        }
        Ok(())
    }

    /// Size of the database and its WAL in bytes.
    pub(in crate::store) fn size_bytes(&self) -> u64 {
        file_size(&self.path()) + file_size(&self.wal_path())
    }

    fn write_as<T>(
        &self,
        flush: Flush,
        doing: &'static str,
        change: impl FnOnce(&Transaction<'_>) -> Result<T, DbError>,
    ) -> Result<T, StoreError> {
        let mut writer = lock(&self.writer);
        if writer.is_none() {
            let connection = self.connect()?;
            connection
                .pragma_update(None, "synchronous", "NORMAL")
                .map_err(|error| self.explain("open the database", error.into()))?;
            *writer = Some(Writer { connection, flush: Flush::Later });
        }
        let writer = writer.as_mut().expect("connected above");
        let result = (|| {
            if writer.flush != flush {
                let level = if flush == Flush::Now { "FULL" } else { "NORMAL" };
                writer.connection.pragma_update(None, "synchronous", level)?;
                writer.flush = flush;
            }
            let transaction = writer.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = change(&transaction)?;
            transaction.commit()?;
            Ok(value)
        })();
        result.map_err(|error| self.explain(doing, error))
    }

    fn path(&self) -> PathBuf {
        self.layout.path(self.schema.file)
    }

    fn wal_path(&self) -> PathBuf {
        self.layout.path(&format!("{}-wal", self.schema.file))
    }

    fn connect(&self) -> Result<Connection, StoreError> {
        match self.open()? {
            Some((connection, version)) if version == self.schema.version() => return Ok(connection),
            Some((_, version)) if version > self.schema.version() => return Err(self.newer(version)),
            // Not there, or not yet brought up to date.
            _ => {}
        }
        let path = self.path();
        self.create(&path)?;
        let cannot_open = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN);
        let error = rusqlite::Error::SqliteFailure(cannot_open, None);
        let opened = self.open()?.ok_or_else(|| self.explain("open the database", error.into()))?;
        Ok(opened.0)
    }

    /// A connection and the version of the tables, 0 when there are none; `None` when the file cannot be opened.
    fn open(&self) -> Result<Option<(Connection, i64)>, StoreError> {
        let path = self.path();
        let open = || -> Result<(Connection, i64), rusqlite::Error> {
            // Not SQLite's NOFOLLOW: it refuses links anywhere in the path, such as a linked home directory.
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(&path, flags)?;
            connection.busy_timeout(BUSY_WAIT_MAX)?;
            connection.set_prepared_statement_cache_capacity(STATEMENTS);
            // The last one to leave would otherwise pay a checkpoint, even after reading only.
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            // SQLite otherwise looks at the values bound to a `LIMIT` or a comparison, and compiles the statement anew
            // whenever one of them is bound: three times in each step of a build.
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
            let version = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
            Ok((connection, version))
        };
        match open() {
            Ok(opened) => Ok(Some(opened)),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::CannotOpen) => Ok(None),
            Err(error) => Err(self.explain("open the database", error.into())),
        }
    }

    /// Creates the file or brings its tables up to date, one process at a time.
    fn create(&self, path: &Path) -> Result<(), StoreError> {
        let _creation = lock::creation(&self.layout)?;
        // Now: another process may have made them since this one looked.
        let has_tables = match self.open()? {
            Some((_, version)) => version > 0,
            None => self.layout.exists(self.schema.file),
        };
        // An empty index where there were names would let the next collection remove what they stand for.
        if !has_tables
            && !self.is_anew
            && self.schema.holds_names
            && self.layout.exists("images")
            && !list(&self.layout, "images")?.is_empty()
        {
            return Err(StoreError::IndexLost { path: self.path() });
        }
        // SQLite itself would create it readable by others. Not opened when it is there: see the type's comment.
        if !self.layout.exists(self.schema.file) {
            self.layout.write_new(self.schema.file, &[])?;
        }
        let upgrade = || -> Result<(), DbError> {
            let mut connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
            connection.busy_timeout(BUSY_WAIT_MAX)?;
            connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let version: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
            let done = usize::try_from(version).unwrap_or(0);
            for step in self.schema.steps.iter().skip(done) {
                transaction.execute_batch(step)?;
            }
            if version < self.schema.version() {
                transaction.pragma_update(None, "user_version", self.schema.version())?;
            }
            transaction.commit()?;
            Ok(())
        };
        upgrade().map_err(|error| self.explain("create the tables", error))
    }

    fn newer(&self, version: i64) -> StoreError {
        let found = format!("tables of version {version}, this one knows up to {}", self.schema.version());
        StoreError::NewerFormat { path: self.path(), found }
    }

    fn explain(&self, doing: &'static str, error: DbError) -> StoreError {
        let source = match error {
            DbError::Store(error) => return error,
            DbError::Sql(source) => source,
        };
        let path = self.path();
        // SQLite's own words are about something else: a disk that is read-only, a file that cannot be opened.
        let files = ["", "-wal", "-shm"].map(|end| self.layout.path(&format!("{}{end}", self.schema.file)));
        if let Some(error) = files.iter().find_map(|file| directory_at(file)) {
            return error;
        }
        match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => {
                StoreError::NoSpace { doing, path, source: std::io::ErrorKind::StorageFull.into() }
            }
            Some(ErrorCode::ReadOnly) => StoreError::ReadOnly { root: self.layout.root().to_owned() },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Damaged {
                path,
                why: "SQLite finds it malformed; run `rbuild cache fsck --rebuild`",
            },
            _ => StoreError::Database { doing, path, source },
        }
    }
}

fn file_size(path: &Path) -> u64 {
    std::fs::symlink_metadata(path).map_or(0, |metadata| metadata.len())
}

/// A panic while holding one of these leaves a connection or a list of connections: both stay usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
