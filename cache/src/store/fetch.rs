//! What addresses of the web gave when they were last asked.

use rbuild_oci::Digest;
use rusqlite::OptionalExtension;
use serde::{Deserialize, Serialize};

use super::Store;
use super::db::{from_json, now_unix_ns, seal};
use super::error::StoreError;

/// Records kept; the ones used longest ago go.
const RECORDS_MAX: i64 = 10_000;

/// What an address gave. The bytes are elsewhere, and may be gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchRecord {
    /// SHA-256 of the bytes.
    pub content: Digest,
    /// `ETag`, for the next question.
    pub etag: Option<String>,
    /// `Last-Modified` as sent, for the next question.
    pub modified: Option<String>,
    /// Modification time of the file, seconds since the epoch.
    pub mtime: i64,
    /// When it was fetched, nanoseconds since the epoch.
    pub fetched_unix_ns: i64,
}

impl Store {
    /// What `url` gave. A damaged record is a miss.
    pub fn fetched(&self, url: &str) -> Result<Option<FetchRecord>, StoreError> {
        let id = address(url);
        let row = self.inner.index.read("look up a fetched file", |connection| {
            let mut statement =
                connection.prepare_cached("SELECT record, seal FROM fetches WHERE address = ?1")?;
            let found =
                statement.query_row([&id], |row| Ok((row.get::<_, String>(0)?, row.get::<_, [u8; 8]>(1)?)));
            Ok(found.optional()?)
        })?;
        Ok(row.and_then(|(text, sealed)| from_json("fetch", &id, &text, sealed).ok()))
    }

    /// Records what `url` gave, replacing an earlier record.
    pub fn put_fetched(&self, url: &str, record: &FetchRecord) -> Result<(), StoreError> {
        let text = serde_json::to_string(record).expect("digests, text and numbers serialise");
        let id = address(url);
        let sealed = seal("fetch", id.as_bytes(), text.as_bytes());
        self.inner.index.write("record a fetched file", |transaction| {
            let sql = "INSERT OR REPLACE INTO fetches VALUES (?1, ?2, ?3, ?4)";
            transaction.prepare_cached(sql)?.execute((&id, &text, sealed, now_unix_ns()))?;
            let sql = "DELETE FROM fetches WHERE used <= (
                SELECT used FROM fetches ORDER BY used DESC LIMIT 1 OFFSET ?1)";
            transaction.prepare_cached(sql)?.execute([RECORDS_MAX])?;
            Ok(())
        })
    }
}

/// An address as it stands in the index: queries and user names can be secret, so it does not.
fn address(url: &str) -> String {
    blake3::hash(url.as_bytes()).to_hex().to_string()
}
