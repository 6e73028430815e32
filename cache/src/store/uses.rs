//! When results were last used.
//!
//! Look-ups never write. A hit whose recorded use is older than [`GRAIN_NS`] is remembered in memory; the next
//! [`Store::sync`](super::Store::sync) writes it with the build's own rows, or, when the build made none, appends it
//! to the file `uses`, unsynced. Collection reads that file back. A lost entry makes a result look older than it is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::{Mutex, PoisonError};

use rusqlite::Transaction;
use rustix::fs::OFlags;

use super::Store;
use super::db::{DbError, now_unix_ns};
use super::error::StoreError;
use super::lease::Lease;

/// One minute: finer than any age that people prune by, and longer than what a build that is repeated at once takes, which
/// writes nothing.
const GRAIN_NS: i64 = 60_000_000_000;
const FILE: &str = "uses";
/// Key, time.
const ENTRY_BYTES: usize = KEY_BYTES + 8;
const KEY_BYTES: usize = 33;
/// Entries recorded in one transaction; later ones of a result take the place of earlier ones.
const AT_ONCE_BYTES: u64 = ENTRY_BYTES as u64 * if cfg!(test) { 2 } else { 1 << 15 };
/// More than a million entries; what is before them is forgotten.
const FILE_BYTES_MAX: u64 = 1 << 26;

/// Uses that are not written yet.
#[derive(Debug, Default)]
pub(super) struct Uses {
    pending: Mutex<BTreeMap<[u8; KEY_BYTES], i64>>,
}

impl Uses {
    /// Notes a hit on a result last used at `recorded` (nanoseconds since the epoch).
    pub(super) fn note(&self, key: [u8; KEY_BYTES], recorded: i64) {
        let now = now_unix_ns();
        if now.saturating_sub(recorded) >= GRAIN_NS {
            self.pending.lock().unwrap_or_else(PoisonError::into_inner).insert(key, now);
        }
    }

    fn take(&self) -> BTreeMap<[u8; KEY_BYTES], i64> {
        std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Store {
    /// Writes pending uses in a transaction that is written anyway.
    pub(super) fn write_uses(&self, transaction: &Transaction<'_>) -> Result<(), DbError> {
        apply(transaction, &self.inner.uses.take())
    }

    /// Appends pending uses to the file. Best effort: a use time is no reason to fail a build.
    pub(super) fn log_uses(&self) {
        let pending = self.inner.uses.take();
        if pending.is_empty() {
            return;
        }
        let mut bytes = Vec::with_capacity(pending.len() * ENTRY_BYTES);
        for (key, used) in pending {
            bytes.extend_from_slice(&key);
            bytes.extend_from_slice(&used.to_le_bytes());
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND;
        if let Ok(fd) = self.inner.layout.try_open(FILE, flags) {
            let _ = File::from(fd).write_all(&bytes);
        }
    }

    /// Moves the file's entries into the index.
    pub(crate) fn fold_uses(&self, lease: &Lease) -> Result<(), StoreError> {
        let layout = &self.inner.layout;
        if !layout.exists(FILE) {
            return Ok(());
        }
        let taken = lease.next_path();
        layout.replace(FILE, &taken)?;
        let Ok(Some(mut file)) = layout.open_file(&taken) else { return Ok(()) };
        let len = file.metadata().map_or(0, |metadata| metadata.len());
        let skipped = len.saturating_sub(FILE_BYTES_MAX).next_multiple_of(ENTRY_BYTES as u64);
        if file.seek(SeekFrom::Start(skipped)).is_err() {
            return Ok(());
        }
        let now = now_unix_ns();
        loop {
            let mut bytes = Vec::new();
            // What cannot be read is lost, as is an entry that a dying process did not write whole.
            let _ = (&file).take(AT_ONCE_BYTES).read_to_end(&mut bytes);
            let mut uses = BTreeMap::new();
            for entry in bytes.chunks_exact(ENTRY_BYTES) {
                let (key, used) = entry.split_at(KEY_BYTES);
                if let (Ok(key), Ok(used)) = (key.try_into(), used.try_into().map(i64::from_le_bytes)) {
                    // A time in the future would keep a result for ever.
                    uses.insert(key, used.min(now));
                }
            }
            if uses.is_empty() {
                return Ok(());
            }
            self.inner.index.write("record uses", |transaction| apply(transaction, &uses))?;
        }
    }
}

fn apply(transaction: &Transaction<'_>, uses: &BTreeMap<[u8; KEY_BYTES], i64>) -> Result<(), DbError> {
    let mut statement =
        transaction.prepare_cached("UPDATE results SET used = max(used, ?2) WHERE key = ?1")?;
    for (key, used) in uses {
        statement.execute((key, used))?;
    }
    Ok(())
}
