//! Named images: the only rows a user would miss.

use rbuild_oci::{DiffId, Digest};
use rusqlite::{OptionalExtension, Transaction};
use rustix::fs::AtFlags;
use serde::{Deserialize, Serialize};

use super::db::mark::BootId;
use super::db::{DbError, from_json, now_unix_ns, seal};
use super::error::StoreError;
use super::names::{self, NameFile};
use super::{LayerId, ResolvedLayer, Store, readers};

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The image config, a stored blob.
    pub config: Digest,
    /// Local layers, base first; they may have been collected since. Above those that are `absent`.
    pub layers: Vec<LayerId>,
    /// All layers as the image config names them.
    pub diff_ids: Vec<DiffId>,
    /// The manifest, once one was made.
    pub manifest: Option<Digest>,
    /// The index that the name stands for, when it is of several images or has attestations; a stored blob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<Digest>,
    /// The other images of the index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<ImageRecord>,
    /// Its lowest layers, when they were left where they were because nothing read them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub absent: Option<AbsentLayers>,
    /// `os/architecture[/variant]`.
    pub platform: String,
    /// Bytes of the unpacked layers; of those that are absent, of their blobs.
    pub size_bytes: u64,
    /// When the image was made, nanoseconds since the epoch.
    pub created_unix_ns: i64,
}

/// Layers that are known and not unpacked here; the store may have their blobs all the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbsentLayers {
    /// The image at a registry that has them.
    pub from: String,
    /// Them, base first.
    pub layers: Vec<ResolvedLayer>,
}

impl ImageRecord {
    /// The layers that are not here.
    pub fn absent_layers(&self) -> &[ResolvedLayer] {
        self.absent.as_ref().map_or(&[], |absent| &absent.layers)
    }

    /// The local layers with their names in the config.
    pub fn local_layers(&self) -> impl Iterator<Item = (LayerId, DiffId)> {
        let diff_ids = self.diff_ids.iter().skip(self.absent_layers().len());
        self.layers.iter().copied().zip(diff_ids.copied())
    }

    /// Digest of what the name stands for: the index, or the manifest.
    pub fn digest(&self) -> Option<Digest> {
        self.index.or(self.manifest)
    }

    /// The image itself and the others of its index.
    pub fn each(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.others)
    }

    /// Layers of all its images.
    pub fn all_layers(&self) -> impl Iterator<Item = LayerId> {
        self.each().flat_map(|image| image.layers.iter().copied())
    }
}

impl Store {
    /// Gives an image a name and makes everything committed so far durable ([`Store::sync`]), in this order: when
    /// this returns, the name survives a power cut; when it fails, the name means what it meant before.
    pub fn put_image(&self, name: &str, record: &ImageRecord) -> Result<(), StoreError> {
        self.put_images(&[(name, record)])
    }

    /// [`Store::put_image`] for several names at once: all or none, with one sync.
    pub fn put_images(&self, images: &[(&str, &ImageRecord)]) -> Result<(), StoreError> {
        let mut changed = Vec::with_capacity(images.len());
        for (name, record) in images {
            // A damaged old record is no reason not to write the new one.
            if !matches!(self.durable_image(name), Ok(Some(known)) if known == **record) {
                changed.push((*name, *record));
            }
        }
        if changed.is_empty() {
            return self.sync();
        }
        let files = changed.iter().map(|(name, record)| NameFile::new(&self.inner.layout, name, record));
        let files = files.collect::<Result<Vec<_>, _>>()?;
        match self.sync_with(&changed, &files) {
            Ok(()) => self.place_name_files(files),
            Err(error) => {
                // The rows may be there all the same.
                names::leave(files);
                return Err(error);
            }
        }
        Ok(())
    }

    /// What a name stands for.
    pub fn image(&self, name: &str) -> Result<Option<ImageRecord>, StoreError> {
        let boot = self.boot()?;
        let row = self.inner.index.read("look up an image", |connection| {
            let sql = "SELECT record, seal FROM images WHERE name = ?1 AND (durable = 1 OR boot = ?2)";
            let mut statement = connection.prepare_cached(sql)?;
            let found = statement.query_row((name, boot.0), |row| Ok((row.get(0)?, row.get(1)?)));
            Ok(found.optional()?)
        })?;
        row.map(|(text, sealed): (String, _)| from_json("image", name, &text, sealed)).transpose()
    }

    /// All names in their order. Damaged records are left out; asking for one by name says so.
    pub fn images(&self) -> Result<Vec<(String, ImageRecord)>, StoreError> {
        let boot = self.boot()?;
        let rows = self.inner.index.read("list images", |connection| {
            let sql = "SELECT name, record, seal FROM images WHERE durable = 1 OR boot = ?1 ORDER BY name";
            let mut statement = connection.prepare_cached(sql)?;
            let rows = statement.query_map([boot.0], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            Ok(rows.collect::<Result<Vec<(String, String, [u8; 8])>, _>>()?)
        })?;
        let parse = |(name, text, sealed): (String, String, _)| {
            from_json("image", &name, &text, sealed).ok().map(|record| (name, record))
        };
        Ok(rows.into_iter().filter_map(parse).collect())
    }

    /// Forgets a name, durably; true when it was there. Layers and blobs stay.
    pub fn remove_image(&self, name: &str) -> Result<bool, StoreError> {
        let layout = &self.inner.layout;
        let (removed, file) = self.with_reserve(|| {
            self.inner.index.write_durably("remove an image", |transaction| {
                // First, and on the disk: a file that the index knows nothing of is a name that was lost. See `names`.
                let file = names::withdraw(layout, name)?;
                Ok((transaction.execute("DELETE FROM images WHERE name = ?1", [name])?, file))
            })
        })?;
        // Left behind by a crash, the next collection removes it.
        if let Some(file) = file {
            let _ = rustix::fs::unlinkat(layout.fd(), file, AtFlags::empty());
        }
        Ok(removed > 0)
    }

    fn durable_image(&self, name: &str) -> Result<Option<ImageRecord>, StoreError> {
        let is_durable = self.inner.index.read("look up an image", |connection| {
            let sql = "SELECT durable FROM images WHERE name = ?1";
            let mut statement = connection.prepare_cached(sql)?;
            Ok(statement.query_row([name], |row| row.get::<_, bool>(0)).optional()?)
        })?;
        if is_durable == Some(true) { self.image(name) } else { Ok(None) }
    }
}

/// Writes a name. `blobs` are the image's, see [`Store::image_blobs`].
pub(super) fn insert(
    transaction: &Transaction<'_>,
    name: &str,
    record: &ImageRecord,
    blobs: &[Digest],
    boot: BootId,
    is_durable: bool,
) -> Result<(), DbError> {
    let text = serde_json::to_string(record).expect("digests, ids and numbers serialise");
    let sealed = seal("image", name.as_bytes(), text.as_bytes());
    let sql = "INSERT OR REPLACE INTO images VALUES (?1, ?2, ?3, ?4, ?5, (SELECT current FROM epoch), ?6)";
    transaction.prepare_cached(sql)?.execute((name, text, sealed, now_unix_ns(), boot.0, is_durable))?;
    readers::touch_layers(transaction, &record.all_layers().collect::<Vec<_>>())?;
    readers::touch_blobs(transaction, blobs)
}
