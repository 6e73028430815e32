//! Layers kept as packs, and the directories made from them when something wants to mount or read them.
//!
//! ```text
//! layers/<id>/entries     the listing, as in every layer
//! layers/<id>/marks       where the hash of its archive stood on its way, when it was made; nothing needs them
//! layers/<id>/packs/<n>   contents; packs of other layers are hard links, so the kernel counts who needs them
//! layers/<id>/diff        made later; counts only with its row in `layer_dirs`
//! ```
//!
//! A directory made later is not covered by the layer's own mark: after a power cut the layer is durable and the
//! directory is not. It therefore has a marked row of its own, written in one transaction with the rename that
//! puts the directory there; one without a valid row is replaced.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;

use rusqlite::{OptionalExtension, Transaction};
use rustix::fs::{AtFlags, OFlags, fstat};
use rustix::io::Errno;

use super::db::DbError;
use super::db::mark::BootId;
use super::error::{IoContext, StoreError};
use super::lease::Lease;
use super::writeback::Growing;
use super::{LayerDraft, LayerId, Store, layout};
use crate::copy::{MaterialiseError, materialise_packed};
use crate::layer::{LayerDiff, Marks, OverlayForm, Pack, PackError, PackWriter};

/// A pack with more names than this is not shared further: file systems have a limit (ext4 65 000).
const LINKS_MAX: u64 = 60_000;

/// The marks of a terabyte.
const MARKS_FILE_BYTES_MAX: u64 = 256 << 20;

/// A layer being packed.
pub struct PackedDraft {
    /// New contents go here.
    pub writer: PackWriter,
    lease: Lease,
    dir: String,
}

/// The packs of a layer, open.
#[derive(Debug, Default)]
pub struct LayerPacks {
    /// In no order.
    pub packs: Vec<Pack>,
    /// Their paths below the root.
    names: Vec<String>,
}

/// A layer ready to be committed, whatever its form.
pub enum Draft {
    /// A directory that was written to.
    Dir(LayerDraft),
    /// Packs.
    Packed(ReadyPacks),
}

/// Packs ready to be committed.
pub struct ReadyPacks {
    _lease: Lease,
    dir: String,
    /// Bytes that the layer takes on the disk beyond what it shares.
    own_bytes: u64,
    marks: Marks,
}

impl ReadyPacks {
    /// Name of the directory that becomes the layer, below the root.
    pub(super) fn dir_name(&self) -> &str {
        &self.dir
    }

    pub(super) fn own_bytes(&self) -> u64 {
        self.own_bytes
    }

    pub(super) fn marks(&self) -> &Marks {
        &self.marks
    }
}

/// Why a layer has no directory.
#[derive(Debug, thiserror::Error)]
pub enum LayerDirError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its files cannot be written, or its packs are damaged.
    #[error("cannot write the files of layer {layer}")]
    Write {
        /// Which.
        layer: LayerId,
        /// Why.
        #[source]
        source: MaterialiseError,
    },
}

impl Store {
    /// Starts a layer of packs.
    pub fn packed_draft(&self, lease: &Lease) -> Result<PackedDraft, StoreError> {
        let layout = &self.inner.layout;
        let dir = lease.next_path();
        layout.make_dir(&dir)?;
        layout.make_dir(&format!("{dir}/packs"))?;
        let name = format!("{dir}/packs/new");
        let file = layout.open(&name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
        let file = Growing::new(file.into(), self.clone());
        let scratch = self.scratch();
        let writer = PackWriter::new(file, scratch).doing("write", &layout.path(&name))?;
        Ok(PackedDraft { writer, lease: lease.clone(), dir })
    }

    /// Completes the packs of a draft: what was written, and links to `shared`, which are the layer's own where they come
    /// from a [`super::Spool`] and no other layer has them. `marks` are those of the layer's archive.
    pub fn finish_packs(
        &self,
        draft: PackedDraft,
        shared: &LayerPacks,
        marks: Marks,
    ) -> Result<ReadyPacks, StoreError> {
        let layout = &self.inner.layout;
        let PackedDraft { writer, lease, dir } = draft;
        let new = format!("{dir}/packs/new");
        let is_own =
            |pack: &&Pack| pack.is_just_written() && fstat(pack.file()).is_ok_and(|stat| stat.st_nlink == 1);
        let own_bytes = writer.bytes() + shared.packs.iter().filter(is_own).map(Pack::bytes).sum::<u64>();
        if writer.bytes() == 0 {
            drop(writer);
            rustix::fs::unlinkat(layout.fd(), &new, AtFlags::empty()).doing("remove", &layout.path(&new))?;
        } else {
            writer.finish().doing("write", &layout.path(&new))?;
        }
        for (at, name) in shared.names.iter().enumerate() {
            let to = format!("{dir}/packs/{at}");
            rustix::fs::linkat(layout.fd(), name, layout.fd(), &to, AtFlags::empty())
                .doing("link", &layout.path(&to))?;
        }
        Ok(ReadyPacks { _lease: lease, dir, own_bytes, marks })
    }

    /// The packs of a layer, to read or to share; `None` for one that is a directory.
    pub fn layer_packs(&self, id: LayerId) -> Result<Option<LayerPacks>, StoreError> {
        let layout = &self.inner.layout;
        let dir = layout::layer_packs(id);
        let fd = match layout.try_open(&dir, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error).doing("open", &layout.path(&dir)),
        };
        let mut found = LayerPacks::default();
        for name in layout::names(&fd).doing("list", &layout.path(&dir))? {
            let name = format!("{dir}/{}", String::from_utf8_lossy(&name));
            let file = layout.open(&name, OFlags::RDONLY)?;
            let path = layout.path(&name);
            let pack = opened(File::from(file), path)?;
            found.add(pack, name);
        }
        Ok(Some(found))
    }

    /// The marks of a layer's archive; none when there are none, or they were damaged. `diff` is what is in it, as the store
    /// gave it.
    pub fn layer_marks(&self, id: LayerId, diff: &LayerDiff) -> Result<Marks, StoreError> {
        let Some(check) = diff.check() else { return Ok(Marks::default()) };
        let bytes = self.inner.layout.read(&layout::layer_marks(id), MARKS_FILE_BYTES_MAX)?;
        Ok(bytes.and_then(|bytes| Marks::decode(&bytes, check)).unwrap_or_default())
    }

    /// The layer that a step like this one made last, when it is there: a hint where equal contents may be.
    pub fn recent_layer(&self, step: &[u8; 32]) -> Result<Option<LayerId>, StoreError> {
        let found = self.inner.index.read("look up a recent layer", |connection| {
            let mut statement = connection.prepare_cached("SELECT layer FROM recent WHERE step = ?1")?;
            Ok(statement.query_row([step], |row| row.get(0).map(LayerId::from_sql)).optional()?)
        })?;
        match found {
            Some(id) if self.has_layers(&[id])? => Ok(Some(id)),
            _ => Ok(None),
        }
    }

    /// Remembers the layer that a step made.
    pub fn put_recent_layer(&self, step: &[u8; 32], layer: LayerId) -> Result<(), StoreError> {
        self.inner.index.write("record a recent layer", |transaction| {
            let sql = "INSERT OR REPLACE INTO recent VALUES (?1, ?2)";
            transaction.prepare_cached(sql)?.execute((step, layer.to_sql()))?;
            Ok(())
        })
    }

    /// True when a layer has a directory to mount and read.
    pub fn has_dir(&self, id: LayerId) -> Result<bool, StoreError> {
        let layout = &self.inner.layout;
        if !layout.exists(&layout::layer_diff(id)) {
            return Ok(false);
        }
        if !layout.exists(&layout::layer_packs(id)) {
            return Ok(true);
        }
        let boot = self.boot()?;
        self.inner.index.read("look up a layer's directory", |connection| {
            let sql = "SELECT EXISTS
                (SELECT 1 FROM layer_dirs WHERE layer = ?1 AND (durable = 1 OR boot = ?2))";
            let mut statement = connection.prepare_cached(sql)?;
            Ok(statement.query_row((id.to_sql(), boot.0), |row| row.get(0))?)
        })
    }

    /// Makes the directory of a layer, if it has none: [`Store::layer_dir`] and [`Store::layer_path`] are good after this.
    pub fn make_dir_of(&self, lease: &Lease, id: LayerId, form: OverlayForm) -> Result<(), LayerDirError> {
        if self.has_dir(id)? {
            return Ok(());
        }
        let Some(packs) = self.layer_packs(id)? else {
            return Err(StoreError::UnknownLayer(id).into());
        };
        let listing = self.layer_diff(id)?;
        let draft = self.draft(lease)?;
        materialise_packed(listing, &packs.packs, draft.diff_fd().as_fd(), form)
            .map_err(|source| LayerDirError::Write { layer: id, source })?;
        Ok(self.publish_dir(lease, id, &draft)?)
    }

    fn publish_dir(&self, lease: &Lease, id: LayerId, draft: &LayerDraft) -> Result<(), StoreError> {
        let boot = self.boot()?;
        let layout = &self.inner.layout;
        self.inner.index.write("record a layer's directory", |transaction| {
            if has_dir_row(transaction, id, boot)? && layout.exists(&layout::layer_diff(id)) {
                // Another process was faster.
                return Ok(());
            }
            let _ = layout.publish(&layout::layer_diff(id), &lease.next_path());
            layout.publish(&draft.diff_name(), &layout::layer_diff(id))?;
            let sql = "INSERT OR REPLACE INTO layer_dirs VALUES (?1, ?2, (SELECT current FROM epoch), 0)";
            transaction.prepare_cached(sql)?.execute((id.to_sql(), boot.0))?;
            let sql = "UPDATE layers SET disk = disk + size WHERE id = ?1";
            transaction.prepare_cached(sql)?.execute([id.to_sql()])?;
            Ok(())
        })
    }
}

impl LayerPacks {
    pub(super) fn add(&mut self, pack: Pack, name: String) {
        self.packs.push(pack);
        self.names.push(name);
    }

    /// Keeps the packs that are marked and have not as many names as they may.
    pub fn keep(mut self, marked: &[bool]) -> Self {
        let is_free = |pack: &Pack| fstat(pack.file()).is_ok_and(|stat| stat.st_nlink < LINKS_MAX);
        let kept = self
            .packs
            .into_iter()
            .zip(self.names)
            .zip(marked)
            .filter(|((pack, _), mark)| **mark && is_free(pack));
        (self.packs, self.names) = kept.map(|(one, _)| one).unzip();
        self
    }
}

/// Opens the pack at `path`.
pub(super) fn opened(file: File, path: PathBuf) -> Result<Pack, StoreError> {
    Pack::open(file).map_err(|error| match error {
        PackError::Io(source) => StoreError::Io { doing: "read", path, source },
        PackError::Damaged(why) => StoreError::Damaged { path, why },
    })
}

fn has_dir_row(transaction: &Transaction<'_>, id: LayerId, boot: BootId) -> Result<bool, DbError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM layer_dirs WHERE layer = ?1 AND (durable = 1 OR boot = ?2))";
    let mut statement = transaction.prepare_cached(sql)?;
    Ok(statement.query_row((id.to_sql(), boot.0), |row| row.get(0))?)
}
