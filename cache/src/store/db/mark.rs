//! Which rows count.
//!
//! A row is written right after its bytes, without waiting for the disk. Until a sync has covered it, it counts only
//! in the boot that wrote it:
//!
//! | boot | durable | meaning |
//! |---|---|---|
//! | any | 1 | bytes and row survived a sync |
//! | this | 0 | bytes are in the page cache: good for every process of this boot |
//! | other | 0 | void: the machine stopped before a sync; the bytes may be anything |
//!
//! `epoch` orders rows against syncs: a sync first raises the epoch, then flushes, then marks the rows of earlier
//! epochs. Rows written while it flushed carry the new epoch and wait for the next sync.

use rusqlite::Connection;
use rustix::fs::{Mode, OFlags};

use super::DbError;
use crate::store::error::{IoContext, StoreError};

/// Tables whose rows carry a mark.
pub(in crate::store) const MARKED: [&str; 7] =
    ["layers", "results", "transitions", "blobs", "images", "chain_trees", "layer_dirs"];

/// Whose rows without a sync are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Unsynced {
    /// This boot's: they wait for a sync.
    Waiting,
    /// Another boot's.
    Void,
}

/// True when there is such a row. A build asks for both, and a connection compiles the statement once.
pub(in crate::store) fn has_unsynced(
    connection: &Connection,
    boot: BootId,
    whose: Unsynced,
) -> Result<bool, DbError> {
    let of_table = |table| format!("SELECT 1 FROM {table} WHERE durable = 0 AND (boot = ?1) = ?2");
    let sql = format!("SELECT EXISTS ({})", MARKED.map(of_table).join(" UNION ALL "));
    let is_this_boot = whose == Unsynced::Waiting;
    Ok(connection.prepare_cached(&sql)?.query_row((boot.0, is_this_boot), |row| row.get(0))?)
}

/// Identity of this boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct BootId(pub(in crate::store) [u8; 16]);

impl BootId {
    /// Asks the kernel.
    pub(in crate::store) fn current() -> Result<Self, StoreError> {
        let path = std::path::Path::new("/proc/sys/kernel/random/boot_id");
        let damaged = || StoreError::Damaged { path: path.to_owned(), why: "it is not a uuid" };
        let fd =
            rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).doing("open", path)?;
        let mut text = [0; 64];
        let length = rustix::io::read(&fd, &mut text).doing("read", path)?;
        let hex: Vec<u8> = text[..length].iter().copied().filter(u8::is_ascii_hexdigit).collect();
        let mut bytes = [0; 16];
        hex::decode_to_slice(&hex, &mut bytes).map_err(|_| damaged())?;
        Ok(Self(bytes))
    }
}
