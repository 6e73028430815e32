//! Layer directories and their sidecars.
//!
//! `layers/<id>/diff` is what overlay mounts (made late for some, see [`super::packed`]), `layers/<id>/entries` the encoded
//! [`LayerDiff`] that says what is in it and whose it is, `layers/<id>/below`, which few have, what it lies on (see
//! [`Store::lies_on`]), `layers/<id>/pulled` which blob it came as (see [`Store::pulled_as`]). A layer is made in a lease's
//! work directory and becomes visible by one rename; its row follows.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rbuild_oci::{ChainId, DiffId, Digest};
use rusqlite::{Connection, OptionalExtension, Transaction};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::db::mark::BootId;
use super::db::{DbError, now_unix_ns, seal};
use super::error::{IoContext, StoreError};
use super::layout::Layout;
use super::lease::Lease;
use super::{Store, layout};
use crate::layer::{
    Change, CodecError, DiffEntry, LayerDiff, ListingCheck, ListingError, Marks, decode_diff, encoded_len,
    write_diff,
};

/// Starts every sidecar; the digit is its version.
const SIDECAR_MAGIC: &[u8; 8] = b"rblayer2";
/// Starts those that do not say whose they are.
const UNNAMED_MAGIC: &[u8; 8] = b"rblayer1";
/// Magic, size of the layer, length of the entries.
const SIDECAR_HEAD_BYTES: usize = 8 + 8 + 8;
/// The layer's name, after the entries.
const SIDECAR_NAME_BYTES: usize = 8;
/// BLAKE3 of all before it.
const SIDECAR_SEAL_BYTES: usize = 32;
/// Local name of a layer directory. Random: says nothing of the content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId(pub(super) u64);

impl LayerId {
    /// As SQLite keeps it: the same 64 bits, signed.
    pub(super) fn to_sql(self) -> i64 {
        self.0.cast_signed()
    }

    pub(super) fn from_sql(value: i64) -> Self {
        Self(value.cast_unsigned())
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LayerId({self})")
    }
}

impl Serialize for LayerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LayerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16).map(Self).map_err(serde::de::Error::custom)
    }
}

/// A layer being made: an empty `diff` directory (mode 0755, the overlay upper or the target of an unpack) and an
/// empty `work` directory beside it on the same file system.
#[derive(Debug)]
pub struct LayerDraft {
    lease: Lease,
    /// Becomes the layer: holds `diff`. Overlay's own directory is beside it, named `<dir>.work`: it must not move
    /// along.
    dir: String,
    root: PathBuf,
    diff: OwnedFd,
    work: OwnedFd,
}

impl LayerDraft {
    /// Path of the directory that becomes the layer.
    pub fn diff_path(&self) -> PathBuf {
        self.root.join(format!("{}/diff", self.dir))
    }

    /// Name of the directory that becomes the layer, below the root.
    pub(super) fn dir_name(&self) -> &str {
        &self.dir
    }

    /// Name of its `diff`.
    pub(super) fn diff_name(&self) -> String {
        format!("{}/diff", self.dir)
    }

    /// The same, open (`O_RDONLY | O_DIRECTORY`).
    pub fn diff_fd(&self) -> &OwnedFd {
        &self.diff
    }

    /// Path of the directory for overlay's own use.
    pub fn work_path(&self) -> PathBuf {
        self.root.join(format!("{}.work", self.dir))
    }

    /// The same, open.
    pub fn work_fd(&self) -> &OwnedFd {
        &self.work
    }

    /// The same, to be removed when nothing is mounted on it any more: before the lease ends, which would do it then.
    pub fn work_dir(&self) -> WorkDir {
        WorkDir { lease: self.lease.clone(), name: format!("{}.work", self.dir) }
    }
}

/// The directory for overlay's own use of a draft that may be committed meanwhile.
#[derive(Debug)]
pub struct WorkDir {
    lease: Lease,
    name: String,
}

impl WorkDir {
    /// Removes it. What cannot be removed goes with the lease.
    pub fn remove(self) {
        let layout = self.lease.layout();
        for (left, flags) in LEFT_BY_OVERLAY {
            let _other = rustix::fs::unlinkat(layout.fd(), format!("{}/{left}", self.name), flags);
        }
        let _left = layout.remove_tree(&self.name);
    }
}

/// What an overlay without syncs leaves in its work directory, deepest first: mostly that is all, and need not
/// be listed. No step can reach it.
const LEFT_BY_OVERLAY: [(&str, AtFlags); 4] = [
    ("work/incompat/volatile/dirty", AtFlags::empty()),
    ("work/incompat/volatile", AtFlags::REMOVEDIR),
    ("work/incompat", AtFlags::REMOVEDIR),
    ("work", AtFlags::REMOVEDIR),
];

/// What the index knows of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInfo {
    /// Its name.
    pub id: LayerId,
    /// Bytes of its regular files, as its maker counted them.
    pub size_bytes: u64,
    /// SHA-256 of its tar and that tar's length in bytes, once it was pulled or emitted.
    pub tar: Option<(DiffId, u64)>,
    /// When it was committed, nanoseconds since the epoch.
    pub created_unix_ns: i64,
}

impl Store {
    /// Starts a layer.
    pub fn draft(&self, lease: &Lease) -> Result<LayerDraft, StoreError> {
        let layout = &self.inner.layout;
        let dir = lease.next_path();
        for suffix in ["", "/diff", ".work"] {
            layout.make_dir(&format!("{dir}{suffix}"))?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let diff = layout.open(&format!("{dir}/diff"), flags)?;
        let work = layout.open(&format!("{dir}.work"), flags)?;
        // The merged root shows this mode to everybody in the image.
        let mode = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
        rustix::fs::fchmod(&diff, mode).doing("change the mode of", &layout.path(&dir))?;
        Ok(LayerDraft { lease: lease.clone(), dir, root: layout.root().to_owned(), diff, work })
    }

    /// Notes that a draft has something from the layers below it (a chain id; none where there are none), as its archive leaves
    /// directories out that are there: what it becomes is found by [`Store::layer_by_diff_id`] for these only.
    pub fn lies_on(&self, draft: &LayerDraft, below: Option<&ChainId>) -> Result<(), StoreError> {
        self.inner.layout.write_new(&format!("{}/below", draft.dir), below_bytes(below))
    }

    /// Notes which blob a draft was unpacked from, for [`Store::rebuild`]: the index says it too
    /// ([`PULLED`](super::PULLED)).
    pub fn pulled_as(&self, draft: &LayerDraft, blob: &Digest) -> Result<(), StoreError> {
        let bytes = [blob.as_bytes().as_slice(), &seal("pulled", b"", blob.as_bytes())].concat();
        self.inner.layout.write_new(&format!("{}/pulled", draft.dir), &bytes)
    }

    /// Publishes a finished draft, which nothing may write to any more. `diff` is what is in it, `size_bytes` the bytes of
    /// its regular files. On failure the draft stays in its lease's work directory.
    pub fn commit_layer(
        &self,
        draft: LayerDraft,
        diff: &LayerDiff,
        size_bytes: u64,
    ) -> Result<LayerId, StoreError> {
        self.wrote(size_bytes);
        let id = self.place_layer(&draft.dir, diff, size_bytes, None)?;
        let row = LayerRow { id, size_bytes, disk_bytes: None, tar: None };
        let boot = self.boot()?;
        let recorded = self.inner.index.write("record a layer", |transaction| row.insert(transaction, boot));
        self.recorded(&draft.dir, id, recorded)?;
        Ok(id)
    }

    /// Completes a layer's directory, with the marks of its archive where it has some, and moves it to its place, without
    /// a row.
    pub(super) fn place_layer(
        &self,
        from: &str,
        diff: &LayerDiff,
        size_bytes: u64,
        marks: Option<&Marks>,
    ) -> Result<LayerId, StoreError> {
        let layout = &self.inner.layout;
        let name = format!("{from}/entries");
        let id = LayerId(layout::random_id()?);
        let written = write_sidecar(layout.new_file(&name)?, id, diff, size_bytes);
        let check = written.doing("write", &layout.path(&name))?;
        if let Some(marks) = marks.filter(|marks| !marks.is_empty()) {
            layout.write_new(&format!("{from}/marks"), &marks.encode(check))?;
        }
        // Of 2^64 names: none is drawn twice.
        if !layout.publish(from, &layout::layer(id))? {
            let source = io::ErrorKind::AlreadyExists.into();
            return Err(StoreError::io("move a layer to", &layout.path(&layout::layer(id)), source));
        }
        Ok(id)
    }

    /// What came of recording a layer that was placed. Without a row it is garbage: back to where the lease cleans up.
    pub(super) fn recorded<T>(
        &self,
        from: &str,
        id: LayerId,
        result: Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if result.is_err() {
            let _ = self.inner.layout.publish(&layout::layer(id), from);
        }
        result
    }

    /// What is known of a layer; `None` when it is not there or its directory vanished.
    pub fn layer(&self, id: LayerId) -> Result<Option<LayerInfo>, StoreError> {
        let boot = self.boot()?;
        let row = self
            .inner
            .index
            .read("look up a layer", |connection| info(connection, id, boot, self.generation()))?;
        Ok(row.filter(|_| self.is_there(id)))
    }

    /// True when every layer is recorded and there, in whatever form.
    pub fn has_layers(&self, ids: &[LayerId]) -> Result<bool, StoreError> {
        let boot = self.boot()?;
        self.inner.index.read("look up layers", |connection| self.are_usable(connection, ids, boot))
    }

    /// Opens a layer's `diff` directory (`O_PATH`), to mount or to read from.
    pub fn layer_dir(&self, id: LayerId) -> Result<OwnedFd, StoreError> {
        self.inner.layout.open(&layout::layer_diff(id), OFlags::PATH | OFlags::DIRECTORY)
    }

    /// Absolute path of a layer's `diff` directory.
    pub fn layer_path(&self, id: LayerId) -> PathBuf {
        self.inner.layout.path(&layout::layer_diff(id))
    }

    /// What is in a layer, as committed.
    pub fn layer_diff(&self, id: LayerId) -> Result<LayerDiff, StoreError> {
        let layout = &self.inner.layout;
        let name = layout::layer_entries(id);
        match layout.try_open(&name, OFlags::RDONLY) {
            Ok(file) => open_sidecar(File::from(file), id, &layout.path(&name)),
            Err(Errno::NOENT) => Err(StoreError::UnknownLayer(id)),
            Err(errno) => Err(errno).doing("open", &layout.path(&name)),
        }
    }

    /// A layer whose tar has this digest: pulled layers are shared by it, those with something from the layers below
    /// ([`Store::lies_on`]) where these are the same.
    pub fn layer_by_diff_id(
        &self,
        diff_id: &DiffId,
        below: Option<&ChainId>,
    ) -> Result<Option<LayerId>, StoreError> {
        let boot = self.boot()?;
        let rows = self.inner.index.read("look up a layer by diff id", |connection| {
            let sql =
                "SELECT id FROM layers WHERE diff_id = ?1 AND (durable = 1 OR boot = ?2) AND until >= ?3
                ORDER BY created, id";
            let mut statement = connection.prepare_cached(sql)?;
            let rows = statement.query_map((diff_id.0.as_bytes(), boot.0, self.generation()), |row| {
                row.get(0).map(LayerId::from_sql)
            })?;
            Ok(rows.collect::<Result<Vec<_>, _>>()?)
        })?;
        for id in rows {
            let lies_on = match self.inner.layout.read(&layout::layer_below(id), 1 << 10) {
                // It lies on nothing that anybody asks for.
                Err(StoreError::Damaged { .. }) => continue,
                lies_on => lies_on?,
            };
            if self.is_there(id) && lies_on.is_none_or(|bytes| bytes == below_bytes(below)) {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// Records digest and length of a layer's tar, which were computed or verified here.
    pub fn set_diff_id(&self, id: LayerId, diff_id: &DiffId, tar_bytes: u64) -> Result<(), StoreError> {
        let changed = self.inner.index.write("record the diff id of a layer", |transaction| {
            let sql = "UPDATE layers SET diff_id = ?2, tar_size = ?3 WHERE id = ?1";
            let size = i64::try_from(tar_bytes).unwrap_or(i64::MAX);
            Ok(transaction.prepare_cached(sql)?.execute((id.to_sql(), diff_id.0.as_bytes(), size))?)
        })?;
        if changed == 0 { Err(StoreError::UnknownLayer(id)) } else { Ok(()) }
    }

    /// In a look-up's own transaction: rows are valid, directories are there.
    pub(super) fn are_usable(
        &self,
        connection: &Connection,
        ids: &[LayerId],
        boot: BootId,
    ) -> Result<bool, DbError> {
        let sql = "SELECT EXISTS
            (SELECT 1 FROM layers WHERE id = ?1 AND (durable = 1 OR boot = ?2) AND until >= ?3)";
        let mut statement = connection.prepare_cached(sql)?;
        for id in ids {
            let is_recorded: bool =
                statement.query_row((id.to_sql(), boot.0, self.generation()), |row| row.get(0))?;
            if !is_recorded || !self.is_there(*id) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// True when one of them is recorded and has lost its bytes to somebody else than collection, which takes the row first.
    pub(super) fn has_lost(&self, connection: &Connection, ids: &[LayerId]) -> Result<bool, DbError> {
        let mut statement =
            connection.prepare_cached("SELECT EXISTS (SELECT 1 FROM layers WHERE id = ?1)")?;
        for id in ids.iter().filter(|id| !self.is_there(**id)) {
            if statement.query_row([id.to_sql()], |row| row.get(0))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_there(&self, id: LayerId) -> bool {
        let layout = &self.inner.layout;
        layout.exists(&layout::layer_diff(id)) || layout.exists(&layout::layer_packs(id))
    }
}

/// The blob that a layer says it was unpacked from; `None` too when what it says is damaged.
pub(super) fn pulled_as(layout: &Layout, id: LayerId) -> Option<Digest> {
    let bytes = layout.read(&layout::layer_pulled(id), 1 << 10).ok()??;
    let (digest, sealed) = bytes.split_first_chunk::<32>()?;
    (*sealed == seal("pulled", b"", digest)).then(|| Digest::from_bytes(*digest))
}

fn below_bytes(below: Option<&ChainId>) -> &[u8] {
    below.map_or(b"nothing", |chain| chain.0.as_bytes())
}

/// A new layer's row.
pub(super) struct LayerRow {
    pub(super) id: LayerId,
    pub(super) size_bytes: u64,
    /// What it takes on the disk, when that is not `size_bytes`.
    pub(super) disk_bytes: Option<u64>,
    /// Digest and length of its tar, when they are known already.
    pub(super) tar: Option<(DiffId, u64)>,
}

impl LayerRow {
    pub(super) fn insert(&self, transaction: &Transaction<'_>, boot: BootId) -> Result<(), DbError> {
        let sql =
            "INSERT INTO layers (id, size, disk, diff_id, tar_size, created, used, boot, epoch, durable)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, ?7, (SELECT current FROM epoch), 0)";
        let bytes = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
        let (size, disk) = (bytes(self.size_bytes), self.disk_bytes.map(bytes));
        let (diff_id, tar_size) = match &self.tar {
            Some((diff_id, size)) => (Some(diff_id.0.as_bytes()), Some(bytes(*size))),
            None => (None, None),
        };
        transaction.prepare_cached(sql)?.execute((
            self.id.to_sql(),
            size,
            disk,
            diff_id,
            tar_size,
            now_unix_ns(),
            boot.0,
        ))?;
        Ok(())
    }
}

fn info(
    connection: &Connection,
    id: LayerId,
    boot: BootId,
    generation: i64,
) -> Result<Option<LayerInfo>, DbError> {
    let sql = "SELECT size, diff_id, tar_size, created FROM layers
        WHERE id = ?1 AND (durable = 1 OR boot = ?2) AND until >= ?3";
    let mut statement = connection.prepare_cached(sql)?;
    let found = statement.query_row((id.to_sql(), boot.0, generation), |row| {
        let diff_id: Option<[u8; 32]> = row.get(1)?;
        let tar_size: Option<i64> = row.get(2)?;
        let bytes = |size: i64| u64::try_from(size).unwrap_or(0);
        Ok(LayerInfo {
            id,
            size_bytes: bytes(row.get(0)?),
            tar: diff_id.zip(tar_size).map(|(diff, size)| (DiffId(Digest::from_bytes(diff)), bytes(size))),
            created_unix_ns: row.get(3)?,
        })
    });
    Ok(found.optional()?)
}

/// Layers that an earlier boot left unsynced.
pub(super) fn void(transaction: &Transaction<'_>, boot: BootId) -> Result<Vec<LayerId>, DbError> {
    let mut statement = transaction.prepare("SELECT id FROM layers WHERE durable = 0 AND boot <> ?1")?;
    let rows = statement.query_map([boot.0], |row| row.get(0).map(LayerId::from_sql))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Bytes of the regular files in a listing.
pub(super) fn listed_bytes(listing: &LayerDiff) -> Result<u64, ListingError> {
    let size = |entry: Result<DiffEntry, ListingError>| {
        Ok(if let Change::File { size, .. } = entry?.change { size } else { 0 })
    };
    listing.iter().map(size).sum()
}

fn write_sidecar(file: File, id: LayerId, diff: &LayerDiff, size_bytes: u64) -> io::Result<ListingCheck> {
    let mut out = Sealing { out: BufWriter::new(file), seal: blake3::Hasher::new() };
    out.write_all(SIDECAR_MAGIC)?;
    out.write_all(&size_bytes.to_le_bytes())?;
    out.write_all(&encoded_len(diff).to_le_bytes())?;
    let check = write_diff(diff, &mut out)?;
    out.write_all(&id.0.to_le_bytes())?;
    let Sealing { mut out, seal } = out;
    out.write_all(seal.finalize().as_bytes())?;
    out.flush()?;
    Ok(check)
}

/// Hashes what it writes.
struct Sealing<W> {
    out: W,
    seal: blake3::Hasher,
}

impl<W: Write> Write for Sealing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.seal.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Checks the sidecar of a layer and opens the entries in it.
fn open_sidecar(mut file: File, id: LayerId, path: &Path) -> Result<LayerDiff, StoreError> {
    let damaged = |why| StoreError::Damaged { path: path.to_owned(), why };
    let io = |result: io::Result<()>| result.doing("read", path);
    let size = file.metadata().doing("look at", path)?.len();
    let body = size.checked_sub(SIDECAR_SEAL_BYTES as u64).filter(|body| *body >= SIDECAR_HEAD_BYTES as u64);
    let body = body.ok_or_else(|| damaged("it is cut short"))?;
    let mut head = [0; SIDECAR_HEAD_BYTES];
    io(file.read_exact_at(&mut head, 0))?;
    let name_bytes = match head[..8].try_into().expect("eight bytes") {
        SIDECAR_MAGIC => SIDECAR_NAME_BYTES as u64,
        UNNAMED_MAGIC => 0,
        _ => return Err(damaged("it is not a layer's list of entries")),
    };
    let length = u64::from_le_bytes(head[16..].try_into().expect("eight bytes"));
    if length.checked_add(SIDECAR_HEAD_BYTES as u64 + name_bytes) != Some(body) {
        return Err(damaged("its length is not the one it was written with"));
    }
    let end = body - name_bytes;
    let mut seal = [0; SIDECAR_SEAL_BYTES];
    io(file.read_exact_at(&mut seal, body))?;
    let mut hash = blake3::Hasher::new();
    io(hash.update_reader((&mut file).take(body)).map(drop))?;
    if hash.finalize().as_bytes() != &seal {
        return Err(damaged("its bytes changed"));
    }
    let mut name = id.0.to_le_bytes();
    io(file.read_exact_at(&mut name[..name_bytes as usize], end))?;
    if LayerId(u64::from_le_bytes(name)) != id {
        return Err(damaged("it is the list of another layer, whose directory was moved here"));
    }
    decode_diff(file, SIDECAR_HEAD_BYTES as u64, end).map_err(|error| match error {
        CodecError::Read(source) => StoreError::Io { doing: "read", path: path.to_owned(), source },
        _ => damaged("it is not a layer's list of entries"),
    })
}
