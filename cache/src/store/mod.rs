//! The directory on disk.
//!
//! ```text
//! <root>/                     0700, ours, on a local file system
//!   store.json{,.bak}         format version, feature flags, id map; twice
//!   lock                      flock: shared by every open store; exclusive only to migrate or wipe
//!   index.sqlite              results, layers, blobs, images, resolutions      (see `db`)
//!   trees.sqlite              directory nodes by digest
//!   blobs/sha256/ab/<hex>     immutable OCI blobs
//!   layers/<id>/{entries,diff,packs,marks}  the list of what is in a layer, and that: a directory, packs or both (`packed`)
//!   layers/<id>/{below,pulled}  what it lies on and the blob it came as, where there is such (see `layer`)
//!   work/<lease>/…            everything unfinished
//!   leases/<id>               flocked by its owner for its whole life
//!   locks/<key>               per-key single flight
//!   readers/{current,<n>}     flocked by every open store: who may rely on what was condemned (see `readers`)
//!   images/<hash>             what a name stands for, once more: for rebuilding a lost index (see `names`)
//!   rebuilt                   empty: its time says when the index was last made anew (see `rebuild`)
//!   reserve                   nothing but room for removing things on a full disk (see `reserve`)
//!   uses                      when results were last used, until the index says so (see `uses`)
//!   quarantine/               what `fsck --repair` set aside; never read
//!   mounts/<id>/…             directories of `RUN --mount=type=cache` (see `mount`)
//!   contexts/<id>             stat indexes of build contexts: hints, replaced whole
//! ```
//!
//! Many processes use one store at once; there is no daemon and no store-wide lock while building.
//!
//! # Invariants
//!
//! 1. Outside `work/` everything is complete and immutable. It got there by one rename. (`contexts/` files are
//!    complete too, but replaced; what is in `mounts/` belongs to steps.) *A killed ingest or draft shows nothing.*
//! 2. Bytes first, then the row; row gone, then the bytes. A row whose bytes vanished all the same is a miss, never an
//!    error. Blobs are renamed and recorded in one transaction, so that removing and storing one digest cannot
//!    interleave.
//! 3. Rows count when durable or of this boot (`db::mark`). A sync covers exactly the rows that were there before it
//!    began. A tag is written after what it names is durable.
//! 4. Unfinished work belongs to a lease, and a lease is alive exactly while its file is flocked (`lease`).
//! 5. Transactions are short, start as writers (`BEGIN IMMEDIATE`), and span renames at most: no network, no process,
//!    no other lock. Look-ups never write.
//! 6. Records carry a checksum, layer sidecars a BLAKE3, nodes and blobs are their digest: what changed on disk is
//!    noticed when it is next used. Damaged cache records are misses.
//! 7. Lock order: store (shared) → reader (shared) → collection → lease → key → SQLite (`lock`). Creating
//!    `readers/current` takes the creation lock for a moment, under none of the later ones but the collection's.
//!
//! 8. Every open store is a reader of one generation. Rows with `until` below its generation do not exist for it, and
//!    no byte of a row with `until` at or above it is removed while it lives (`readers`). Whoever writes a record that
//!    names layers or blobs saves them in the same transaction.
//! 9. A pulled layer and its blob stay and go together: the blob cannot be made again from the directory.
//!
//! What is removed, and when, is decided in [`crate::gc`]; the transactions that do it are in `collect`, those for
//! directory nodes in `needed`; what there is to decide about, in `snapshot`.

mod blob;
pub(crate) mod collect;
mod db;
mod error;
mod fetch;
mod fsck;
mod history;
mod image;
mod layer;
pub(crate) mod layout;
mod lease;
mod lock;
mod lost_trees;
mod meta;
mod mount;
mod names;
pub(crate) mod needed;
mod nodes;
mod packed;
mod places;
mod readers;
mod rebuild;
mod reserve;
mod resolution;
mod result;
pub(crate) mod snapshot;
mod spool;
mod stat_index;
mod sync;
mod usage;
mod uses;
mod writeback;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, OnceLock};

pub use blob::{Blob, BlobWriter, PULLED, UnhashedBlob};
pub use error::StoreError;
pub use fetch::FetchRecord;
pub use fsck::Finding;
pub use history::{EXECUTION_BYTES_MAX, Execution, GoneWhy, PastExecution, Sighting};
pub use image::{AbsentLayers, ImageRecord};
pub use layer::{LayerDraft, LayerId, LayerInfo, WorkDir};
pub use lease::{Lease, ScratchDir};
pub use lock::{KeyLock, LockHolder};
pub use mount::{CacheMount, CacheMountId, CacheMountInfo, CacheMountSpec, MountSharing};
pub use packed::{Draft, LayerDirError, LayerPacks, PackedDraft, ReadyPacks};
pub use rebuild::Rebuilt;
pub use resolution::{Resolution, ResolvedLayer};
pub use result::{Key, KeyKind, Made, ResultRecord, Transition};
pub use spool::Spool;
pub use stat_index::{
    Entries, FileStat, IndexDamaged, Known, KnownDir, KnownKind, ListedDir, Place, ReadFile, RecordDamaged,
    RecordReader, Records, STAT_BYTES, ScanMoment, SeenContext, SeenDir, SeenEntry, SeenHint, SeenXattrs,
    StatIndex,
};
pub use usage::Usage;

use db::Db;
use db::mark::BootId;
#[cfg(test)]
pub(crate) use db::seal;
use error::IoContext;
use layout::Layout;

use crate::scratch::Scratch;

/// How a store is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreOptions {
    /// Identifies the uid mapping and overlay form under which layer directories are written. Recorded when the
    /// store is created; another one is refused later.
    pub id_map: String,
    /// False trades durability for speed: nothing is ever flushed, and a machine that stops loses what it did not
    /// write back by itself. For throw-away stores.
    pub durable: bool,
}

/// An open store. Clones share everything and cost nothing; usable from any thread, not across a fork.
///
/// ```
/// use rbuild_cache::layer::LayerDiff;
/// use rbuild_cache::store::{Key, ResultRecord, Store, StoreOptions};
/// use rbuild_cache::tree::{Tree, TreeDigest};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let root = dir.path();
/// let store = Store::open(root, StoreOptions { id_map: "root".into(), durable: true })?;
/// let key = Key::content([7; 32]);
/// let lease = store.lease()?;
/// let lock = store.key_lock(&key, "RUN make", |holder| eprintln!("waiting for {}", holder.pid))?;
/// // Whoever held the lock may have done the work: look again before doing it.
/// if store.result(&key)?.is_none() {
///     let draft = store.draft(&lease)?;
///     std::fs::write(draft.diff_path().join("out"), "made")?;
///     let layer = store.commit_layer(draft, &LayerDiff::default(), 4)?;
///     let record = ResultRecord {
///         tree: Tree::empty(),
///         tree_digest: TreeDigest([0; 32]),
///         own_layer: Some(layer),
///         stack: None,
///         read: Vec::new(),
///         created_unix_ns: 0,
///         exec_ns: 0,
///         description: "RUN make".into(),
///     };
///     store.put_result(&key, &record)?;
/// }
/// drop(lock);
/// store.sync()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    layout: Arc<Layout>,
    options: StoreOptions,
    index: Db,
    trees: Db,
    nodes: nodes::NodeCache,
    scratch: Scratch,
    boot: OnceLock<BootId>,
    uses: uses::Uses,
    writeback: Arc<writeback::Writeback>,
    /// Cached results were forgotten when it was opened; see `lost_trees`.
    has_forgotten: bool,
    /// `None` for the collector, which relies on nothing.
    reader: Option<readers::Reader>,
    /// Holds the store lock, shared.
    _lock: File,
}

impl Store {
    /// Opens the store at `root`, creating it when there is none. Refuses a directory that another user owns or may
    /// write to, that is on a network file system or read-only, that a newer rbuild wrote, or that was made under
    /// another id map. Databases are opened at their first use.
    pub fn open(root: &Path, options: StoreOptions) -> Result<Self, StoreError> {
        Self::open_as(root, options, true)
    }

    /// The id map ([`StoreOptions::id_map`]) that the store at `root` was made with; `None` when there is none that can
    /// be read. Creates nothing, and needs no rights but to read `store.json`.
    pub fn recorded_id_map(root: &Path) -> Option<String> {
        meta::recorded_id_map(root)
    }

    /// Why [`Self::open`] would refuse what is at `root`, whatever the id map; `None` when nothing is there. Changes nothing.
    pub fn refusal(root: &Path) -> Option<StoreError> {
        meta::refusal(root)
    }

    /// [`Self::open`] for a reader or for the collector, which must not hold back what it frees.
    fn open_as(root: &Path, options: StoreOptions, is_reader: bool) -> Result<Self, StoreError> {
        let layout = meta::open_root(root)?;
        let opened = (|| {
            let lock = lock::share_store(&layout)?;
            meta::check_or_create(&layout, &options.id_map)?;
            let reader = if is_reader { Some(readers::join(&layout)?) } else { None };
            Ok((lock, reader))
        })();
        let (lock, reader) = opened.map_err(|error| match error {
            StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::ReadOnlyFilesystem => {
                StoreError::ReadOnly { root: layout.root().to_owned() }
            }
            other => other,
        })?;
        let scratch = Scratch::on(layout.fd()).doing("open", layout.root())?;
        let layout = Arc::new(layout);
        let (index, trees) = (Db::new(layout.clone(), &db::INDEX), Db::new(layout.clone(), &db::TREES));
        let has_forgotten = lost_trees::forget(&layout, &index, &trees)?;
        let inner = Inner {
            index,
            trees,
            layout,
            options,
            has_forgotten,
            nodes: nodes::NodeCache::default(),
            scratch,
            boot: OnceLock::new(),
            uses: uses::Uses::default(),
            writeback: Arc::default(),
            reader,
            _lock: lock,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// How it was opened.
    pub fn options(&self) -> &StoreOptions {
        &self.inner.options
    }

    /// True when the file of directory nodes was gone as this handle was opened: the cached results went with it, images
    /// stay.
    pub fn has_forgotten_results(&self) -> bool {
        self.inner.has_forgotten
    }

    /// Absolute path of the root.
    pub fn root(&self) -> &Path {
        self.inner.layout.root()
    }

    /// Room on the store's file system.
    pub fn scratch(&self) -> Scratch {
        self.inner.scratch.clone()
    }

    /// Oldest `until` that this handle sees; see [`readers`].
    fn generation(&self) -> i64 {
        self.inner.reader.as_ref().map_or(readers::NONE, |reader| reader.generation)
    }

    fn boot(&self) -> Result<BootId, StoreError> {
        if let Some(boot) = self.inner.boot.get() {
            return Ok(*boot);
        }
        let boot = BootId::current()?;
        Ok(*self.inner.boot.get_or_init(|| boot))
    }
}
