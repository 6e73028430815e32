//! What collection needs of the store: transactions that condemn and free. What there is, [`super::snapshot`] says.
//!
//! The rules that make this safe are in [`readers`]; what to condemn is decided in [`crate::gc`].

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;

use rbuild_oci::Digest;
use rusqlite::Transaction;
use rustix::fs::{AtFlags, FlockOperation, OFlags};
use rustix::io::Errno;

use super::error::{IoContext, StoreError};
use super::layout::{self, list};
use super::lease::Lease;
use super::readers::CONDEMNED;
use super::{GoneWhy, ImageRecord, LayerId, LockHolder, Store, StoreOptions, history, lock, readers};

/// Objects per transaction: each waits for the disk once, none keeps builds waiting for long.
const BATCH: usize = 64;
/// The registry client refuses larger manifests.
pub(super) const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// A file system with less than this is full: the last few blocks are for its own use.
const FULL_BYTES: u64 = 64 << 10;
/// Stat indexes of contexts that nobody built for so long are removed.
const CONTEXT_AGE_SECS: i64 = 30 * 24 * 3600;

/// What was freed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Freed {
    pub(crate) layers: u64,
    pub(crate) blobs: u64,
    pub(crate) bytes: u64,
}

impl Store {
    /// Opens the store for collection, with the lock that admits one collector; `None` while another has it, unless that
    /// one's end is to be waited for: then `waiting` is told who it is.
    pub(crate) fn open_collector(
        root: &Path,
        options: StoreOptions,
        waiting: Option<&mut dyn FnMut(LockHolder)>,
    ) -> Result<Option<(Self, File)>, StoreError> {
        let store = Self::open_as(root, options, false)?;
        let layout = &store.inner.layout;
        let mut file = lock::open_lock(layout, "locks/gc")?;
        let path = layout.path("locks/gc");
        match (lock::flock(&file, FlockOperation::NonBlockingLockExclusive), waiting) {
            (Ok(()), _) => {}
            (Err(Errno::WOULDBLOCK), None) => return Ok(None),
            (Err(Errno::WOULDBLOCK), Some(waiting)) => {
                waiting(lock::read_holder(&mut file));
                lock::flock(&file, FlockOperation::LockExclusive).doing("lock", &path)?;
            }
            (Err(error), _) => return Err(error).doing("lock", &path),
        }
        lock::write_holder(&mut file, "");
        Ok(Some((store, file)))
    }

    /// Blobs that an image is made of, as far as they can be known: configs, manifests, and what the manifests list; of
    /// an index all that it lists.
    pub(crate) fn image_blobs(&self, image: &ImageRecord) -> Vec<Digest> {
        let mut blobs: Vec<Digest> = image.each().map(|image| image.config).collect();
        let mut documents: Vec<Digest> =
            image.index.into_iter().chain(image.each().filter_map(|image| image.manifest)).collect();
        blobs.extend(&documents);
        // Those that were fetched to keep. An image that is in no archive and at no registry yet has no manifest.
        blobs.extend(image.each().flat_map(|image| image.absent_layers()).map(|layer| layer.blob));
        while let Some(document) = documents.pop() {
            let Ok(Some(bytes)) = self.blob_bytes(&document, MANIFEST_BYTES_MAX) else { continue };
            let Ok(document) = serde_json::from_slice::<serde_json::Value>(&bytes) else { continue };
            let listed = |key: &str| {
                let entries = document.get(key).and_then(serde_json::Value::as_array);
                let digests = entries.into_iter().flatten().filter_map(|entry| entry.get("digest")?.as_str());
                digests.filter_map(|digest| digest.parse::<Digest>().ok()).collect::<Vec<_>>()
            };
            let config = document.pointer("/config/digest").and_then(serde_json::Value::as_str);
            blobs.extend(config.and_then(|digest| digest.parse::<Digest>().ok()));
            blobs.extend(listed("layers"));
            for manifest in listed("manifests") {
                // Each once: an index in a hostile archive may name itself or the same thing many times.
                if !blobs.contains(&manifest) {
                    blobs.push(manifest);
                    documents.push(manifest);
                }
            }
        }
        blobs
    }

    /// Takes back what was condemned and is wanted after all.
    pub(crate) fn reprieve(&self, layers: &[LayerId], blobs: &[Digest]) -> Result<(), StoreError> {
        if layers.is_empty() && blobs.is_empty() {
            return Ok(());
        }
        self.inner.index.write_durably("take objects back", |transaction| {
            readers::touch_layers(transaction, layers)?;
            readers::touch_blobs(transaction, blobs)
        })
    }

    /// Hides results for good: keys and uses as the snapshot has them; one used or written since stays. Returns how
    /// many went.
    pub(crate) fn drop_results(
        &self,
        results: impl Iterator<Item = Result<(Vec<u8>, i64), StoreError>>,
    ) -> Result<u64, StoreError> {
        let mut dropped = 0;
        in_batches(results, |batch| {
            dropped += self.inner.index.write_durably("remove results", |transaction| {
                let mut statement =
                    transaction.prepare_cached("DELETE FROM results WHERE key = ?1 AND used = ?2")?;
                let mut gone = Vec::new();
                for (key, used) in batch {
                    if statement.execute((key, used))? > 0 {
                        gone.push(key.as_slice());
                    }
                }
                let count = gone.len() as u64;
                history::note_gone(transaction, gone, GoneWhy::Evicted)?;
                Ok(count)
            })?;
            Ok(())
        })?;
        Ok(dropped)
    }

    /// Removes remembered trees of image layers.
    pub(crate) fn drop_chains(
        &self,
        chains: impl Iterator<Item = Result<[u8; 32], StoreError>>,
    ) -> Result<(), StoreError> {
        in_batches(chains, |batch| {
            self.inner.index.write_durably("remove trees of chains", |transaction| {
                let mut statement = transaction.prepare_cached("DELETE FROM chain_trees WHERE chain = ?1")?;
                batch.iter().try_for_each(|chain| statement.execute([chain]).map(drop))?;
                Ok(())
            })
        })
    }

    /// Condemns layers in the present generation: `(layer, used)` as the snapshot has them. One that was touched since
    /// stays. Returns what was condemned.
    pub(crate) fn condemn_layers(&self, layers: &[(LayerId, i64)]) -> Result<Vec<LayerId>, StoreError> {
        let keys: Vec<_> = layers.iter().map(|(id, used)| (id.to_sql(), *used)).collect();
        let sql = "UPDATE layers SET until = ?3 WHERE id = ?1 AND used = ?2 AND until = ?4";
        let gone = self.condemn(sql, &keys)?;
        Ok(gone.into_iter().map(LayerId::from_sql).collect())
    }

    /// The same for blobs.
    pub(crate) fn condemn_blobs(&self, blobs: &[(Digest, i64)]) -> Result<Vec<Digest>, StoreError> {
        let keys: Vec<_> = blobs.iter().map(|(digest, used)| (*digest.as_bytes(), *used)).collect();
        let sql = "UPDATE blobs SET until = ?3 WHERE digest = ?1 AND used = ?2 AND until = ?4";
        let gone = self.condemn(sql, &keys)?;
        Ok(gone.into_iter().map(Digest::from_bytes).collect())
    }

    fn condemn<K: rusqlite::ToSql + Copy>(&self, sql: &str, keys: &[(K, i64)]) -> Result<Vec<K>, StoreError> {
        let generation = readers::current(&self.inner.layout)?;
        let mut condemned = Vec::new();
        for batch in keys.chunks(BATCH) {
            condemned.extend(self.inner.index.write_durably("condemn objects", |transaction| {
                let mut statement = transaction.prepare_cached(sql)?;
                let mut gone = Vec::new();
                for (key, used) in batch {
                    if statement.execute((key, used, generation, readers::NONE))? > 0 {
                        gone.push(*key);
                    }
                }
                Ok(gone)
            })?);
        }
        Ok(condemned)
    }

    /// Ends the present generation if anything is condemned or `has_more`, and returns the oldest one that may still
    /// have readers: what was condemned before it can be freed.
    pub(crate) fn retire(&self, has_more: bool) -> Result<i64, StoreError> {
        let layout = &self.inner.layout;
        let in_index: Option<i64> = self.inner.index.read("look for condemned objects", |connection| {
            let sql = format!(
                "SELECT max(until) FROM
                    (SELECT until FROM layers WHERE {CONDEMNED} UNION ALL SELECT until FROM blobs WHERE {CONDEMNED})"
            );
            Ok(connection.query_row(&sql, [], |row| row.get(0))?)
        })?;
        let in_trees: Option<i64> = self.inner.trees.read("look for condemned nodes", |connection| {
            Ok(connection.query_row("SELECT max(until) FROM condemned", [], |row| row.get(0))?)
        })?;
        let condemned = in_index.max(in_trees);
        let generation = readers::current(layout)?;
        if has_more || condemned.is_some_and(|condemned| condemned >= generation) {
            readers::retire(layout, generation, condemned.unwrap_or(0).max(generation) + 1)?;
        }
        readers::oldest_live(layout)
    }

    /// Number of the present generation.
    pub(crate) fn generation_now(&self) -> Result<i64, StoreError> {
        readers::current(&self.inner.layout)
    }

    /// Bytes of what is condemned and not freed.
    pub(crate) fn condemned_bytes(&self) -> Result<u64, StoreError> {
        self.inner.index.read("add up condemned objects", |connection| {
            let sql = format!(
                "SELECT coalesce(sum(size), 0) FROM
                    (SELECT coalesce(disk, size) AS size FROM layers WHERE {CONDEMNED}
                        UNION ALL SELECT size FROM blobs WHERE {CONDEMNED})"
            );
            let bytes: i64 = connection.query_row(&sql, [], |row| row.get(0))?;
            Ok(u64::try_from(bytes).unwrap_or(0))
        })
    }

    /// Unlinks what was moved into the lease's work directory.
    pub(crate) fn empty_trash(&self, lease: &Lease) -> Result<(), StoreError> {
        let work = lease.work();
        self.inner.layout.remove_tree(&work)?;
        self.inner.layout.make_dir(&work)
    }

    /// Frees condemned layers and blobs that no reader of a generation before `oldest` can hold: the row durably
    /// first, then the bytes, into the lease's work directory.
    pub(crate) fn free_objects(&self, lease: &Lease, oldest: i64) -> Result<Freed, StoreError> {
        let mut freed = Freed::default();
        loop {
            let layers = self.inner.index.write_durably("remove layers", |transaction| {
                let sql = format!(
                    "DELETE FROM layers WHERE id IN
                        (SELECT id FROM layers WHERE {CONDEMNED} AND until < ?1 LIMIT ?2)
                        RETURNING id, coalesce(disk, size)"
                );
                let rows: Vec<(i64, i64)> = transaction
                    .prepare_cached(&sql)?
                    .query_map((oldest, BATCH as i64), |row| Ok((row.get(0)?, row.get(1)?)))?
                    .collect::<Result<_, _>>()?;
                Ok(rows)
            })?;
            if layers.is_empty() {
                break;
            }
            for (id, size) in layers {
                // Not there: somebody removed it by hand.
                let _ = self.inner.layout.publish(&layout::layer(LayerId::from_sql(id)), &lease.next_path());
                freed.layers += 1;
                freed.bytes += u64::try_from(size).unwrap_or(0);
            }
        }
        loop {
            let blobs = self.condemned_blobs(oldest)?;
            if blobs.is_empty() {
                break;
            }
            // The row must be gone for good before the bytes are; and a blob's file moves inside a transaction, so
            // that storing the digest again cannot come between.
            self.inner.index.write_durably("remove blobs", |transaction| {
                let sql = "DELETE FROM blobs WHERE digest = ?1 AND until < ?2";
                let mut statement = transaction.prepare_cached(sql)?;
                for (digest, size) in &blobs {
                    if statement.execute((digest.as_bytes(), oldest))? > 0 {
                        let _ = self.inner.layout.publish(&layout::blob(digest), &lease.next_path());
                        freed.blobs += 1;
                        freed.bytes += size;
                    }
                }
                Ok(())
            })?;
        }
        if freed.layers > 0 {
            self.inner.index.write("remove what names layers", |transaction| {
                for table in ["transitions", "layer_dirs", "recent"] {
                    let sql = format!(
                        "DELETE FROM {table} WHERE NOT EXISTS (SELECT 1 FROM layers WHERE id = layer)"
                    );
                    transaction.execute(&sql, [])?;
                }
                Ok(())
            })?;
        }
        Ok(freed)
    }

    fn condemned_blobs(&self, oldest: i64) -> Result<Vec<(Digest, u64)>, StoreError> {
        self.inner.index.read("list condemned blobs", |connection| {
            let sql = format!("SELECT digest, size FROM blobs WHERE {CONDEMNED} AND until < ?1 LIMIT ?2");
            let mut statement = connection.prepare_cached(&sql)?;
            let rows = statement.query_map((oldest, BATCH as i64), |row| {
                let size: i64 = row.get(1)?;
                Ok((Digest::from_bytes(row.get(0)?), u64::try_from(size).unwrap_or(0)))
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Layer directories without a row. They may be about to get one: remove them only when all generations that were
    /// alive when they were listed have died.
    pub(crate) fn orphan_layers(&self) -> Result<Vec<LayerId>, StoreError> {
        let (layout, mut orphans) = (&self.inner.layout, BTreeSet::new());
        let dir = layout.open("layers", OFlags::RDONLY | OFlags::DIRECTORY)?;
        let path = layout.path("layers");
        for name in layout::read_names(&dir).doing("list", &path)? {
            let name = name.doing("list", &path)?;
            let name = name.to_str().ok().filter(|name| name.len() == 16);
            orphans.extend(name.and_then(|name| u64::from_str_radix(name, 16).ok()).map(LayerId));
        }
        self.inner.index.read("list layers", |connection| {
            let mut statement = connection.prepare("SELECT id FROM layers")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                orphans.remove(&LayerId::from_sql(row.get(0)?));
            }
            Ok(())
        })?;
        Ok(orphans.into_iter().collect())
    }

    /// Removes orphans that still have no row; see [`Self::orphan_layers`]. Returns how many.
    pub(crate) fn remove_orphan_layers(&self, lease: &Lease, orphans: &[LayerId]) -> Result<u64, StoreError> {
        let still: BTreeSet<LayerId> = self.orphan_layers()?.into_iter().collect();
        let mut removed = 0;
        for id in orphans.iter().filter(|id| still.contains(id)) {
            removed += u64::from(self.inner.layout.publish(&layout::layer(*id), &lease.next_path()).is_ok());
        }
        Ok(removed)
    }

    /// Blob files without a row. Storing renames and records in one transaction, so one may be getting its row now.
    pub(super) fn orphan_blobs(&self) -> Result<Vec<Digest>, StoreError> {
        let layout = &self.inner.layout;
        let mut orphans = Vec::new();
        for dir in list(layout, "blobs/sha256")? {
            let files = list(layout, &format!("blobs/sha256/{dir}"))?;
            let known = self.blobs_in(&dir)?;
            let digests = files.iter().filter_map(|hex| format!("sha256:{hex}").parse::<Digest>().ok());
            orphans.extend(digests.filter(|digest| !known.contains(digest)));
        }
        Ok(orphans)
    }

    /// Removes blob files without a row. The rename happens inside a transaction, as storing does. Returns how many.
    pub(crate) fn remove_orphan_blobs(&self, lease: &Lease) -> Result<u64, StoreError> {
        let layout = &self.inner.layout;
        let orphans = self.orphan_blobs()?;
        let mut removed = 0;
        for batch in orphans.chunks(BATCH) {
            removed += self.inner.index.write("remove blobs without a row", |transaction| {
                let mut count = 0;
                for digest in batch.iter() {
                    if !has_blob_row(transaction, digest)?
                        && layout.publish(&layout::blob(digest), &lease.next_path()).is_ok()
                    {
                        count += 1;
                    }
                }
                Ok(count)
            })?;
        }
        Ok(removed)
    }

    /// Blobs with rows whose files are in this directory.
    fn blobs_in(&self, dir: &str) -> Result<BTreeSet<Digest>, StoreError> {
        let Some(first) = u8::from_str_radix(dir, 16).ok() else { return Ok(BTreeSet::new()) };
        self.inner.index.read("list blobs", |connection| {
            let sql = "SELECT digest FROM blobs WHERE digest >= ?1 ORDER BY digest";
            let mut statement = connection.prepare_cached(sql)?;
            let mut rows = statement.query([[first].as_slice()])?;
            let mut known = BTreeSet::new();
            while let Some(row) = rows.next()? {
                let digest = Digest::from_bytes(row.get(0)?);
                if digest.as_bytes()[0] != first {
                    break;
                }
                known.insert(digest);
            }
            Ok(known)
        })
    }

    /// Removes key locks nobody holds, stat indexes nobody used for a month, and writes pending uses.
    pub(crate) fn tidy(&self, lease: &Lease) -> Result<(), StoreError> {
        self.fold_uses(lease)?;
        self.sweep_key_locks()?;
        let layout = &self.inner.layout;
        let now = super::db::now_unix_ns() / 1_000_000_000;
        for name in list(layout, "contexts")? {
            let name = format!("contexts/{name}");
            if let Ok(stat) = rustix::fs::statat(layout.fd(), &name, AtFlags::SYMLINK_NOFOLLOW)
                && now - stat.st_mtime > CONTEXT_AGE_SECS
            {
                let _ = rustix::fs::unlinkat(layout.fd(), &name, AtFlags::empty());
            }
        }
        Ok(())
    }

    /// Empties both write-ahead logs into their databases, when nobody is in the way.
    pub(crate) fn checkpoint(&self) -> Result<(), StoreError> {
        self.inner.trees.checkpoint()?;
        self.inner.index.checkpoint()
    }

    /// What the store's file system has none of at this moment, `space` or `inodes`: what failed just now probably failed for
    /// want of it.
    pub fn lacks(&self) -> Option<&'static str> {
        let stat = rustix::fs::fstatvfs(self.inner.layout.fd()).ok()?;
        // What is set aside for root is root's to use.
        let is_root = rustix::process::geteuid().is_root();
        let (blocks, inodes) =
            if is_root { (stat.f_bfree, stat.f_ffree) } else { (stat.f_bavail, stat.f_favail) };
        if blocks.saturating_mul(stat.f_frsize) < FULL_BYTES {
            return Some("space");
        }
        // A file system that makes them as it needs them has none to count.
        (stat.f_files > 0 && inodes == 0).then_some("inodes")
    }

    /// Bytes free to us and bytes in all on the store's file system.
    pub fn disk(&self) -> Result<(u64, u64), StoreError> {
        let stat = rustix::fs::fstatvfs(self.inner.layout.fd()).doing("ask for the space on", self.root())?;
        Ok((stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize)))
    }
}

/// Hands on as many at once as go into a transaction.
fn in_batches<T>(
    mut all: impl Iterator<Item = Result<T, StoreError>>,
    mut take: impl FnMut(&[T]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    loop {
        let batch = all.by_ref().take(BATCH).collect::<Result<Vec<T>, _>>()?;
        if batch.is_empty() {
            return Ok(());
        }
        take(&batch)?;
    }
}

fn has_blob_row(transaction: &Transaction<'_>, digest: &Digest) -> rusqlite::Result<bool> {
    transaction
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM blobs WHERE digest = ?1)")?
        .query_row([digest.as_bytes()], |row| row.get(0))
}
