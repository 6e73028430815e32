//! How much a store holds.

use super::Store;
use super::error::StoreError;

/// Counts and bytes by kind, from the index; directories are not walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Layer directories.
    pub layers: u64,
    /// Bytes of their regular files.
    pub layer_bytes: u64,
    /// Blobs.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Cached results.
    pub results: u64,
    /// Named images.
    pub images: u64,
    /// Bytes of both databases.
    pub index_bytes: u64,
}

impl Store {
    /// Bytes of all layers and blobs, and of those among them that wait for running builds to end before they are
    /// freed.
    pub fn held_bytes(&self) -> Result<(u64, u64), StoreError> {
        let held = self.inner.index.read("add up sizes", |connection| {
            let sql = "SELECT coalesce((SELECT sum(coalesce(disk, size)) FROM layers), 0) + coalesce((SELECT sum(size) FROM blobs), 0)";
            let bytes: i64 = connection.query_row(sql, [], |row| row.get(0))?;
            Ok(u64::try_from(bytes).unwrap_or(0))
        })?;
        Ok((held, self.condemned_bytes()?))
    }

    /// Adds up what the index knows.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let boot = self.boot()?;
        let mut usage = self.inner.index.read("add up usage", |connection| {
            let of = |table: &str, sum: &str| -> rusqlite::Result<(i64, i64)> {
                let sql = format!(
                    "SELECT count(*), coalesce(sum({sum}), 0) FROM {table} WHERE durable = 1 OR boot = ?1"
                );
                connection.query_row(&sql, [boot.0], |row| Ok((row.get(0)?, row.get(1)?)))
            };
            let (layers, blobs) = (of("layers", "coalesce(disk, size)")?, of("blobs", "size")?);
            let positive = |value: i64| u64::try_from(value).unwrap_or(0);
            Ok(Usage {
                layers: positive(layers.0),
                layer_bytes: positive(layers.1),
                blobs: positive(blobs.0),
                blob_bytes: positive(blobs.1),
                results: positive(of("results", "0")?.0),
                images: positive(of("images", "0")?.0),
                index_bytes: 0,
            })
        })?;
        usage.index_bytes = self.inner.index.size_bytes() + self.inner.trees.size_bytes();
        Ok(usage)
    }
}
