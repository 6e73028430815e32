//! The two SQLite files.
//!
//! `index.sqlite` holds everything that is looked up by key, `trees.sqlite` only directory nodes, so that bulk
//! inserts of nodes never make an index look-up wait. Both are in WAL mode: readers never block nor write, writers
//! queue. Nothing here is the only copy of a user's data: losing a row is losing a cache entry.
//!
//! Rows that stand for bytes on disk carry a *mark* `(boot, epoch, durable)`; see [`mark`].

pub(super) mod mark;
mod schema;
mod writer;

pub(super) use schema::{INDEX, NEW_INDEX, TREES};
pub(super) use writer::{Db, DbError};

use super::error::StoreError;

/// First bytes of the BLAKE3 over a record, its kind and its key: SQLite does not notice flipped bits itself.
pub(crate) fn seal(kind: &str, key: &[u8], record: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    for part in [kind.as_bytes(), key, record] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let mut seal = [0; 8];
    seal.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    seal
}

/// Current time in nanoseconds since the epoch, for `created` and `used` columns only; never in a key.
pub(super) fn now_unix_ns() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .ok()
        .and_then(|elapsed| i64::try_from(elapsed.as_nanos()).ok())
        .unwrap_or(0)
}

/// Parses JSON of a record, or says which record is damaged.
pub(super) fn from_json<T: serde::de::DeserializeOwned>(
    kind: &'static str,
    name: &str,
    text: &str,
    sealed: [u8; 8],
) -> Result<T, StoreError> {
    let damaged = || StoreError::DamagedRecord { kind, name: name.to_owned() };
    if seal(kind, name.as_bytes(), text.as_bytes()) != sealed {
        return Err(damaged());
    }
    serde_json::from_str(text).map_err(|_| damaged())
}
