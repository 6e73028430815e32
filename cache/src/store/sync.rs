//! Making a build's work durable: once, at its end. Where there is much of it, [`super::writeback`] has begun before.

use rusqlite::Transaction;

use super::db::DbError;
use super::db::mark::{self, Unsynced};
use super::error::StoreError;
use super::names::{self, NameFile};
use super::{ImageRecord, Store, image};

impl Store {
    /// Makes everything committed so far durable: one flush of the file system, then the rows. Does nothing when
    /// every row is durable already, so a build that changed nothing costs one look-up.
    ///
    /// With `durable: false` in the options nothing is flushed; the rows stay good until the machine stops.
    ///
    /// When the flush reports lost data ([`StoreError::Sync`]), all rows since the last good one are removed.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.sync_with(&[], &[])
    }

    /// [`Self::sync`] that also writes tags in its last transaction: a tag never becomes visible before what it
    /// names is durable, and an older tag of that name stays until then. `files` are theirs.
    pub(super) fn sync_with(
        &self,
        images: &[(&str, &ImageRecord)],
        files: &[NameFile],
    ) -> Result<(), StoreError> {
        let boot = self.boot()?;
        let is_waiting = self.inner.index.read("look for unsynced rows", |connection| {
            mark::has_unsynced(connection, boot, Unsynced::Waiting)
        })?;
        if !self.inner.options.durable {
            if images.is_empty() {
                self.log_uses();
                return Ok(());
            }
            let blobs: Vec<_> = images.iter().map(|(_, record)| self.image_blobs(record)).collect();
            return self.inner.index.write("write tags", |transaction| {
                self.write_uses(transaction)?;
                images.iter().zip(&blobs).try_for_each(|((name, record), blobs)| {
                    image::insert(transaction, name, record, blobs, boot, false)
                })
            });
        }
        if !is_waiting && images.is_empty() {
            self.log_uses();
            return Ok(());
        }
        let covered = self.raise_epoch()?;
        // The descriptor is as old as this store handle: errors of any write-back since then are reported here.
        if is_waiting && let Err(source) = rustix::fs::syncfs(self.inner.layout.fd()) {
            self.drop_unsynced(covered)?;
            return Err(StoreError::Sync {
                root: self.inner.layout.root().to_owned(),
                source: source.into(),
            });
        }
        if !is_waiting {
            files.iter().try_for_each(NameFile::sync)?;
        }
        self.mark_durable(covered, images)?;
        self.inner.trees.checkpoint()?;
        self.inner.index.checkpoint()
    }

    /// Begins a sync: rows written from here on are not covered by it. Returns the last epoch that is.
    pub(super) fn raise_epoch(&self) -> Result<i64, StoreError> {
        self.inner.index.write("raise the epoch", |transaction| {
            let sql = "UPDATE epoch SET current = current + 1 RETURNING current - 1";
            Ok(transaction.query_row(sql, [], |row| row.get(0))?)
        })
    }

    /// Ends a sync whose flush went well.
    pub(super) fn mark_durable(
        &self,
        covered: i64,
        images: &[(&str, &ImageRecord)],
    ) -> Result<(), StoreError> {
        let boot = self.boot()?;
        let blobs: Vec<_> = images.iter().map(|(_, record)| self.image_blobs(record)).collect();
        self.inner.index.write_durably("mark rows durable", |transaction| {
            for table in mark::MARKED {
                let sql =
                    format!("UPDATE {table} SET durable = 1 WHERE durable = 0 AND epoch <= ?1 AND boot = ?2");
                transaction.prepare_cached(&sql)?.execute((covered, boot.0))?;
            }
            self.write_uses(transaction)?;
            images.iter().zip(&blobs).try_for_each(|((name, record), blobs)| {
                image::insert(transaction, name, record, blobs, boot, true)
            })
        })
    }

    /// Ends a sync whose flush failed: nobody knows which bytes were lost. Their files are garbage from now on.
    pub(super) fn drop_unsynced(&self, covered: i64) -> Result<(), StoreError> {
        self.inner.index.write_durably("drop unsynced rows", |transaction| {
            names::remove_unsynced(&self.inner.layout, transaction, "durable = 0 AND epoch <= ?1", covered)?;
            for table in mark::MARKED {
                let sql = format!("DELETE FROM {table} WHERE durable = 0 AND epoch <= ?1");
                transaction.execute(&sql, [covered])?;
            }
            Ok(())
        })
    }

    /// Removes rows that an earlier boot left unsynced, and moves their directories into `into` (below `work/`).
    /// Costs one indexed look-up per table when there are none.
    pub(super) fn sweep_void(&self, into: &str) -> Result<(), StoreError> {
        let boot = self.boot()?;
        let has_void = self
            .inner
            .index
            .read("look for void rows", |connection| mark::has_unsynced(connection, boot, Unsynced::Void))?;
        if !has_void {
            return Ok(());
        }
        let layers = self.inner.index.write_durably("remove void rows", |transaction| {
            self.remove_void_blobs(transaction, into)?;
            names::remove_unsynced(&self.inner.layout, transaction, "durable = 0 AND boot <> ?1", boot.0)?;
            let layers = super::layer::void(transaction, boot)?;
            for table in mark::MARKED {
                let sql = format!("DELETE FROM {table} WHERE durable = 0 AND boot <> ?1");
                transaction.execute(&sql, [boot.0])?;
            }
            Ok(layers)
        })?;
        for id in layers {
            let to = format!("{into}/void-{id}");
            // Not there: the power cut took it, or somebody else swept.
            let _ = self.inner.layout.publish(&super::layout::layer(id), &to);
        }
        Ok(())
    }

    /// Moves blob files of void rows away while the transaction keeps others from publishing the same digest.
    fn remove_void_blobs(&self, transaction: &Transaction<'_>, into: &str) -> Result<(), DbError> {
        let boot = self.boot()?;
        for digest in super::blob::void(transaction, boot)? {
            let to = format!("{into}/void-{}", digest.hex());
            let _ = self.inner.layout.publish(&super::layout::blob(&digest), &to);
        }
        Ok(())
    }
}
