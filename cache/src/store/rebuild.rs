//! Making the index anew from what lies beside it.
//!
//! | what | comes back from | |
//! |---|---|---|
//! | blobs | their files, named by digest | every byte is hashed |
//! | layers | their directories or packs, and sidecars | every byte is compared with the list |
//! | images, with diff ids of their layers | `images/` | one small sealed file for each name |
//! | which blob a layer was pulled as | `layers/<id>/pulled`, or else the blobs | the blob is unpacked: its tar has to have the layer's diff id |
//! | cached results, resolutions, trees, what was executed | nowhere | they are made again by the builds that want them |
//!
//! Nobody else may have the store open meanwhile. The new index is made in `work/` and takes its place by one rename when
//! it is complete and on the disk: whatever ends a rebuild before leaves the store as it was, and what it left in `work/`
//! the next one removes. Then the old databases go to `quarantine/`, as do files that are not what they should be.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rbuild_oci::{DiffId, Digest};
use rustix::fs::{AtFlags, FlockOperation, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::db::{Db, now_unix_ns};
use super::error::{IoContext, StoreError};
use super::fsck::{SoundPacks, is_out_of_room};
use super::layout::{Layout, list};
use super::{
    ImageRecord, Inner, LayerId, PULLED, Store, StoreOptions, db, image, layer, layout, lock, meta, names,
    nodes, uses,
};
use crate::layer::{LayerReader, Limits, OverlayForm};
use crate::scratch::Scratch;

/// Files of the two databases. The index goes first: without it the others are nothing that anybody opens.
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
    /// Names that nobody can read any more: their files are damaged.
    pub lost_names: u64,
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
        remove_unfinished(&layout);
        let scratch = Scratch::on(layout.fd()).doing("open", layout.root())?;
        let layout = Arc::new(layout);
        let inner = Inner {
            index: Db::anew(layout.clone(), &db::NEW_INDEX),
            trees: Db::new(layout.clone(), &db::TREES),
            layout: layout.clone(),
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
        let store = Self { inner: Arc::new(inner) };
        let made = (|| {
            let found = store.find(form)?;
            store.write_index(&found)?;
            take_place(&layout, found)
        })();
        if made.is_err() {
            remove_unfinished(&layout);
        }
        made
    }

    /// Looks at everything that has a file of its own.
    fn find(&self, form: OverlayForm) -> Result<Found, StoreError> {
        let layout = &self.inner.layout;
        let mut found = Found::default();
        for dir in list(layout, "blobs/sha256")? {
            for hex in list(layout, &format!("blobs/sha256/{dir}"))? {
                match whole_blob(layout, &hex) {
                    Some((digest, blob)) => drop(found.blobs.insert(digest, blob)),
                    None => found.damaged.push((format!("blobs/sha256/{dir}/{hex}"), format!("blob-{hex}"))),
                }
            }
        }
        let mut packs = SoundPacks::default();
        for name in list(layout, "layers")? {
            let id = u64::from_str_radix(&name, 16).ok().map(LayerId).filter(|id| id.to_string() == name);
            let size = id.map(|id| self.whole_layer(id, form, &mut packs)).transpose()?.flatten();
            // As for `fsck`, a pulled layer without its blob is no layer: nobody could save or push what is made of it.
            let has_blob = |id: &LayerId| {
                layer::pulled_as(layout, *id).is_none_or(|blob| found.blobs.contains_key(&blob))
            };
            match id.filter(has_blob).zip(size) {
                Some((id, size)) => drop(found.layers.insert(id, size)),
                None => found.damaged.push((format!("layers/{name}"), format!("layer-{name}"))),
            }
        }
        let names::Names { images, unreadable } = names::read_all(layout)?;
        found.lost_names = unreadable.len() as u64;
        found
            .damaged
            .extend(unreadable.into_iter().map(|file| (format!("images/{file}"), format!("name-{file}"))));
        for (name, record) in images {
            let is_whole = record.each().all(|image| {
                found.blobs.contains_key(&image.config)
                    && image.layers.iter().all(|id| found.layers.contains_key(id))
            });
            if is_whole {
                found.images.push((name, record));
            } else {
                // Its file would be one of a name that the index lost.
                found.damaged.push((names::path_of(&name), names::quarantined(&name)));
                found.lost.push(name);
            }
        }
        Ok(found)
    }

    /// Makes the new index, complete and on the disk.
    fn write_index(&self, found: &Found) -> Result<(), StoreError> {
        self.write_rows(found)?;
        self.tie_blobs(found)?;
        self.inner.index.close_as_one_file()?;
        // What the rows stand for may be in the page cache only, whoever wrote it.
        sync(&self.inner.layout)
    }

    /// When the index was last made anew, in nanoseconds since the epoch: of what was executed before, nobody knows.
    pub fn rebuilt_unix_ns(&self) -> Result<Option<i64>, StoreError> {
        let Some(file) = self.inner.layout.open_file(REBUILT)? else { return Ok(None) };
        let stat = rustix::fs::fstat(&file).doing("stat", &self.inner.layout.path(REBUILT))?;
        Ok(Some(stat.st_mtime * 1_000_000_000 + stat.st_mtime_nsec as i64))
    }

    /// Finds out again which blobs layers were pulled as: where a layer says which, if that has the layer's tar in it; of
    /// others, which are new layers or those of an earlier version, if some blob has. One of them is older than what was
    /// made of it here.
    fn tie_blobs(&self, found: &Found) -> Result<(), StoreError> {
        let layout = &self.inner.layout;
        let mut diff_ids: BTreeMap<LayerId, DiffId> = BTreeMap::new();
        let images = found.images.iter().flat_map(|(_, record)| record.each());
        diff_ids.extend(images.flat_map(ImageRecord::local_layers));
        let pulled: BTreeMap<LayerId, Digest> =
            found.layers.keys().filter_map(|id| Some((*id, layer::pulled_as(layout, *id)?))).collect();
        if diff_ids.is_empty() && pulled.is_empty() {
            return Ok(());
        }
        let mut tars: BTreeMap<Digest, (DiffId, u64)> = BTreeMap::new();
        for digest in found.blobs.keys() {
            let Some(file) = layout.open_file(&layout::blob(digest))? else { continue };
            // What is no layer is taken for a tar of its own bytes, which is no layer's.
            if let Ok(sums) = LayerReader::sniff(file, &Limits::default()).and_then(LayerReader::finish) {
                tars.insert(*digest, (sums.diff_id, sums.uncompressed));
            }
        }
        let mut oldest: BTreeMap<DiffId, Digest> = BTreeMap::new();
        for (blob, (diff_id, _)) in &tars {
            let first = oldest.entry(*diff_id).or_insert(*blob);
            if found.blobs[blob].written < found.blobs[first].written {
                *first = *blob;
            }
        }
        for id in found.layers.keys() {
            let blob = match (pulled.get(id), diff_ids.get(id)) {
                (Some(blob), _) => Some(blob),
                (None, Some(diff_id)) => oldest.get(diff_id),
                (None, None) => None,
            };
            let Some((blob, (diff_id, tar_bytes))) = blob.and_then(|blob| Some((blob, tars.get(blob)?)))
            else {
                continue;
            };
            if diff_ids.get(id).is_none_or(|named| named == diff_id) {
                self.set_diff_id(*id, diff_id, *tar_bytes)?;
                self.put_encoding(diff_id, PULLED, blob, found.blobs[blob].size)?;
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

    fn write_rows(&self, found: &Found) -> Result<(), StoreError> {
        let boot = self.boot()?;
        let now = now_unix_ns();
        self.inner.index.write_durably("fill the new index", |transaction| {
            for (digest, blob) in &found.blobs {
                let sql = "INSERT INTO blobs (digest, size, ctime, used, boot, epoch, durable)
                    VALUES (?1, ?2, ?3, ?4, ?5, 0, 1)";
                let row = (digest.as_bytes(), blob.size.cast_signed(), blob.ctime, now, boot.0);
                transaction.prepare_cached(sql)?.execute(row)?;
            }
            for (id, size) in &found.layers {
                let sql = "INSERT INTO layers (id, size, created, used, boot, epoch, durable)
                    VALUES (?1, ?2, ?3, ?3, ?4, 0, 1)";
                transaction.prepare_cached(sql)?.execute((id.to_sql(), size.cast_signed(), now, boot.0))?;
            }
            for (name, record) in &found.images {
                image::insert(transaction, name, record, &[], boot, true)?;
                for (id, diff) in record.each().flat_map(ImageRecord::local_layers) {
                    // Its tar's length is not known: whoever needs it counts it again.
                    let sql = "UPDATE layers SET diff_id = ?2 WHERE id = ?1";
                    transaction.prepare_cached(sql)?.execute((id.to_sql(), diff.0.as_bytes()))?;
                }
            }
            Ok(())
        })
    }
}

/// What lies in the store.
#[derive(Debug, Default)]
struct Found {
    blobs: BTreeMap<Digest, FoundBlob>,
    /// With the bytes of their files.
    layers: BTreeMap<LayerId, u64>,
    images: Vec<(String, ImageRecord)>,
    /// Names of images of which something is gone.
    lost: Vec<String>,
    /// Names whose files are damaged.
    lost_names: u64,
    /// What is not what it should be, and its name in `quarantine/`.
    damaged: Vec<(String, String)>,
}

#[derive(Debug)]
struct FoundBlob {
    size: u64,
    ctime: i64,
    /// When its bytes were written, in nanoseconds since the epoch.
    written: i128,
}

fn whole_blob(layout: &Layout, hex: &str) -> Option<(Digest, FoundBlob)> {
    let digest: Digest = format!("sha256:{hex}").parse().ok()?;
    let fd = layout.try_open(&layout::blob(&digest), OFlags::RDONLY).ok()?;
    let stat = rustix::fs::fstat(&fd).ok()?;
    let is_whole = super::blob::hashes_to(&mut std::fs::File::from(fd), &digest).unwrap_or(false);
    let blob = FoundBlob {
        size: u64::try_from(stat.st_size).unwrap_or(0),
        ctime: super::blob::ctime_ns(&stat),
        written: i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec),
    };
    is_whole.then_some((digest, blob))
}

/// Puts the new index in the place of the old one. Between the two there is none, and the store is refused as one that
/// lost it.
fn take_place(layout: &Layout, found: Found) -> Result<Rebuilt, StoreError> {
    layout.make_dir("quarantine")?;
    // The log of the old index, beside the new one, would be taken for the log of that.
    for name in DATABASES.iter().filter(|name| layout.exists(name)) {
        set_aside(layout, name, name)?;
    }
    layout.publish(db::NEW_INDEX.file, db::INDEX.file)?;
    names::remove_pending(layout)?;
    for (path, name) in &found.damaged {
        set_aside(layout, path, name)?;
    }
    let now = Timestamps { last_access: UTIME_NOW, last_modification: UTIME_NOW };
    let file = layout.open(REBUILT, OFlags::WRONLY | OFlags::CREATE)?;
    rustix::fs::futimens(&file, &now).doing("set the time of", &layout.path(REBUILT))?;
    sync(layout)?;
    Ok(Rebuilt {
        blobs: found.blobs.len() as u64,
        layers: found.layers.len() as u64,
        images: found.images.into_iter().map(|(name, _)| name).collect(),
        lost_images: found.lost,
        lost_names: found.lost_names,
        set_aside: found.damaged.len() as u64,
    })
}

/// Removes what a rebuild that did not end left.
fn remove_unfinished(layout: &Layout) {
    for suffix in ["", "-wal", "-shm"] {
        let _ =
            rustix::fs::unlinkat(layout.fd(), format!("{}{suffix}", db::NEW_INDEX.file), AtFlags::empty());
    }
}

fn sync(layout: &Layout) -> Result<(), StoreError> {
    rustix::fs::syncfs(layout.fd())
        .map_err(|source| StoreError::Sync { root: layout.root().to_owned(), source: source.into() })
}

/// Moves something to `quarantine/`, under a name nothing has there yet.
fn set_aside(layout: &Layout, from: &str, name: &str) -> Result<(), StoreError> {
    let mut to = format!("quarantine/{name}");
    while !layout.publish(from, &to)? {
        to = format!("quarantine/{name}.{:08x}", layout::random_id()? as u32);
    }
    Ok(())
}
