//! Making the index anew from what lies beside it.
//!
//! | what | comes back from | |
//! |---|---|---|
//! | blobs | their files, named by digest | every byte is hashed |
//! | layers | their directories or packs, and sidecars | every byte is compared with the list |
//! | images, with diff ids of their layers | `images/` | one small sealed file for each name |
//! | cached results, resolutions, trees, what was executed | nowhere | they are made again by the builds that want them |
//!
//! Nobody else may have the store open meanwhile. The old databases go to `quarantine/`, as do files that are not
//! what they should be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rbuild_oci::Digest;
use rustix::fs::{FlockOperation, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::collect::MANIFEST_BYTES_MAX;
use super::db::{Db, now_unix_ns};
use super::error::{IoContext, StoreError};
use super::fsck::{SoundPacks, is_out_of_room};
use super::layout::list;
use super::{
    ImageRecord, Inner, LayerId, PULLED, Store, StoreOptions, db, image, layer, layout, lock, meta, nodes,
    uses,
};
use crate::layer::{LayerReader, Limits, OverlayForm};
use crate::scratch::Scratch;

/// Files of the two databases.
const DATABASES: [&str; 6] = [
    "index.sqlite",
    "index.sqlite-wal",
    "index.sqlite-shm",
    "trees.sqlite",
    "trees.sqlite-wal",
    "trees.sqlite-shm",
];

/// The file whose time says when.
const REBUILT: &str = "rebuilt";

const UTIME_NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rebuilt {
    /// Blobs that hold their bytes.
    pub blobs: u64,
    /// Layers that are as their list says.
    pub layers: u64,
    /// Names whose layers and config came back.
    pub images: Vec<String>,
    /// Names that rely on something that did not.
    pub lost_images: Vec<String>,
    /// Files and directories that were set aside.
    pub set_aside: u64,
}

impl Store {
    /// Makes the index of the store at `root` anew; `form` is how overlay marks are written in it. Fails when another
    /// process has the store open.
    pub fn rebuild(root: &Path, options: StoreOptions, form: OverlayForm) -> Result<Rebuilt, StoreError> {
        let layout = meta::open_root(root)?;
        let file = std::fs::File::from(layout.open("lock", OFlags::RDWR | OFlags::CREATE)?);
        match lock::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(StoreError::InUse { root: layout.root().to_owned() }),
            Err(error) => return Err(error).doing("lock", &layout.path("lock")),
        }
        meta::check_or_create(&layout, &options.id_map)?;
        layout.make_dir("quarantine")?;
        for name in DATABASES.iter().filter(|name| layout.exists(name)) {
            set_aside(&layout, name, name)?;
        }
        let scratch = Scratch::on(layout.fd()).doing("open", layout.root())?;
        let layout = Arc::new(layout);
        let inner = Inner {
            index: Db::anew(layout.clone(), &db::INDEX),
            trees: Db::anew(layout.clone(), &db::TREES),
            layout,
            options,
            nodes: nodes::NodeCache::default(),
            scratch,
            boot: OnceLock::new(),
            uses: uses::Uses::default(),
            writeback: Arc::default(),
            has_forgotten: false,
            reader: None,
            _lock: file,
        };
        Self { inner: Arc::new(inner) }.fill(form)
    }

    fn fill(&self, form: OverlayForm) -> Result<Rebuilt, StoreError> {
        let layout = &self.inner.layout;
        let mut rebuilt = Rebuilt::default();
        let mut blobs: BTreeMap<Digest, (u64, i64)> = BTreeMap::new();
        for dir in list(layout, "blobs/sha256")? {
            for hex in list(layout, &format!("blobs/sha256/{dir}"))? {
                let path = format!("blobs/sha256/{dir}/{hex}");
                match whole_blob(layout, &hex) {
                    Some((digest, size, ctime)) => drop(blobs.insert(digest, (size, ctime))),
                    None => rebuilt.set_aside += set_aside(layout, &path, &format!("blob-{hex}"))?,
                }
            }
        }
        let mut layers: BTreeMap<LayerId, u64> = BTreeMap::new();
        let mut packs = SoundPacks::default();
        for name in list(layout, "layers")? {
            let id = u64::from_str_radix(&name, 16).ok().map(LayerId).filter(|id| id.to_string() == name);
            let size = id.map(|id| self.whole_layer(id, form, &mut packs)).transpose()?.flatten();
            match id.zip(size) {
                Some((id, size)) => drop(layers.insert(id, size)),
                None => {
                    rebuilt.set_aside +=
                        set_aside(layout, &format!("layers/{name}"), &format!("layer-{name}"))?
                }
            }
        }
        let (mut images, mut lost) = (Vec::new(), Vec::new());
        for (name, record) in image::sidecars(layout)? {
            let is_whole = record.each().all(|image| {
                blobs.contains_key(&image.config) && image.layers.iter().all(|id| layers.contains_key(id))
            });
            if is_whole { images.push((name, record)) } else { lost.push(name) }
        }
        self.write_rows(&blobs, &layers, &images)?;
        for (_, record) in &images {
            record.each().try_for_each(|image| self.match_blobs(image))?;
        }
        let now = Timestamps { last_access: UTIME_NOW, last_modification: UTIME_NOW };
        let path = layout.path(REBUILT);
        let file = layout.open(REBUILT, OFlags::WRONLY | OFlags::CREATE)?;
        rustix::fs::futimens(&file, &now).doing("set the time of", &path)?;
        // What the rows stand for may be in the page cache only, whoever wrote it.
        rustix::fs::syncfs(layout.fd())
            .map_err(|source| StoreError::Sync { root: layout.root().to_owned(), source: source.into() })?;
        rebuilt.blobs = blobs.len() as u64;
        rebuilt.layers = layers.len() as u64;
        rebuilt.images = images.into_iter().map(|(name, _)| name).collect();
        rebuilt.lost_images = lost;
        Ok(rebuilt)
    }

    /// When the index was last made anew, in nanoseconds since the epoch: of what was executed before, nobody knows.
    pub fn rebuilt_unix_ns(&self) -> Result<Option<i64>, StoreError> {
        let Some(file) = self.inner.layout.open_file(REBUILT)? else { return Ok(None) };
        let stat = rustix::fs::fstat(&file).doing("stat", &self.inner.layout.path(REBUILT))?;
        Ok(Some(stat.st_mtime * 1_000_000_000 + stat.st_mtime_nsec as i64))
    }

    /// Finds out again which blob is which layer of an image, by unpacking it in memory.
    fn match_blobs(&self, image: &ImageRecord) -> Result<(), StoreError> {
        let Some(manifest) = image.manifest else { return Ok(()) };
        let bytes = self.blob_bytes(&manifest, MANIFEST_BYTES_MAX)?.unwrap_or_default();
        let Ok(document) = serde_json::from_slice::<serde_json::Value>(&bytes) else { return Ok(()) };
        let listed = document.get("layers").and_then(serde_json::Value::as_array).into_iter().flatten();
        let digests = listed.filter_map(|layer| layer.get("digest")?.as_str()?.parse().ok());
        let layers: Vec<Digest> = digests.collect();
        let absent = image.absent_layers().len();
        if layers.len() != absent + image.layers.len() {
            return Ok(());
        }
        for ((id, diff_id), digest) in image.local_layers().zip(layers.into_iter().skip(absent)) {
            let Some(blob) = self.blob(&digest)? else { continue };
            let size = blob.size;
            let sums = LayerReader::sniff(blob.file, &Limits::default()).and_then(LayerReader::finish);
            if let Ok(sums) = sums
                && sums.diff_id == diff_id
            {
                self.set_diff_id(id, &diff_id, sums.uncompressed)?;
                self.put_encoding(&diff_id, PULLED, &digest, size)?;
            }
        }
        Ok(())
    }

    /// Size of a layer whose directory or packs have what its sidecar says. An error when there is no room to find out:
    /// nothing may be set aside for that.
    fn whole_layer(
        &self,
        id: LayerId,
        form: OverlayForm,
        packs: &mut SoundPacks,
    ) -> Result<Option<u64>, StoreError> {
        match self.check_layer(id, form, packs) {
            Ok(None) => Ok(self.layer_diff(id).ok().and_then(|diff| layer::listed_bytes(&diff).ok())),
            Ok(Some(_)) => Ok(None),
            Err(StoreError::Io { source, doing, path }) if is_out_of_room(&source) => {
                Err(StoreError::Io { source, doing, path })
            }
            Err(error @ StoreError::NoSpace { .. }) => Err(error),
            Err(_) => Ok(None),
        }
    }

    fn write_rows(
        &self,
        blobs: &BTreeMap<Digest, (u64, i64)>,
        layers: &BTreeMap<LayerId, u64>,
        images: &[(String, ImageRecord)],
    ) -> Result<(), StoreError> {
        let boot = self.boot()?;
        let now = now_unix_ns();
        self.inner.index.write_durably("fill the new index", |transaction| {
            for (digest, (size, ctime)) in blobs {
                let sql = "INSERT INTO blobs (digest, size, ctime, used, boot, epoch, durable)
                    VALUES (?1, ?2, ?3, ?4, ?5, 0, 1)";
                let row = (digest.as_bytes(), size.cast_signed(), ctime, now, boot.0);
                transaction.prepare_cached(sql)?.execute(row)?;
            }
            for (id, size) in layers {
                let sql = "INSERT INTO layers (id, size, created, used, boot, epoch, durable)
                    VALUES (?1, ?2, ?3, ?3, ?4, 0, 1)";
                transaction.prepare_cached(sql)?.execute((id.to_sql(), size.cast_signed(), now, boot.0))?;
            }
            let known: BTreeSet<_> = layers.keys().collect();
            for (name, record) in images {
                image::insert(transaction, name, record, &[], boot, true)?;
                let diffs = record.each().flat_map(ImageRecord::local_layers);
                for (id, diff) in diffs.filter(|(id, _)| known.contains(id)) {
                    // Its tar's length is not known: whoever needs it counts it again.
                    let sql = "UPDATE layers SET diff_id = ?2 WHERE id = ?1";
                    transaction.prepare_cached(sql)?.execute((id.to_sql(), diff.0.as_bytes()))?;
                }
            }
            Ok(())
        })
    }
}

fn whole_blob(layout: &layout::Layout, hex: &str) -> Option<(Digest, u64, i64)> {
    let digest: Digest = format!("sha256:{hex}").parse().ok()?;
    let fd = layout.try_open(&layout::blob(&digest), OFlags::RDONLY).ok()?;
    let stat = rustix::fs::fstat(&fd).ok()?;
    let is_whole = super::blob::hashes_to(&mut std::fs::File::from(fd), &digest).unwrap_or(false);
    is_whole.then(|| (digest, u64::try_from(stat.st_size).unwrap_or(0), super::blob::ctime_ns(&stat)))
}

/// Moves something to `quarantine/`, under a name nothing has there yet. Returns 1.
fn set_aside(layout: &layout::Layout, from: &str, name: &str) -> Result<u64, StoreError> {
    let mut to = format!("quarantine/{name}");
    while !layout.publish(from, &to)? {
        to = format!("quarantine/{name}.{:08x}", layout::random_id()? as u32);
    }
    Ok(1)
}
