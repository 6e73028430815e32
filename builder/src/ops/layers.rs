//! Layers of the store as ops and exporters use them, whatever form they are kept in.

use std::collections::HashMap;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, OnceLock, PoisonError};

use rbuild_cache::copy::{ListedLayer, SourceError, StackLayer, StackSource};
use rbuild_cache::layer::{
    Compression, DirBodies, EncodeError, EncodeShare, Encoded, LayerDiff, Marks, OverlayForm, PackBodies,
    Start, emit_from, emit_tar, emit_tar_from, encode, hash_from,
};
use rbuild_cache::path::RelPath;
use rbuild_cache::store::{LayerId, Lease, Store};
use rbuild_oci::DiffId;
use rbuild_sandbox::LayerDir;

use crate::assemble::emit::Pace;
use crate::assemble::growing::Grower;
use crate::error::StepFailure;
use crate::ops::{ExecEnv, archive_bytes};
use crate::solve::Solved;

/// Layers whose directories stay open for the steps above them: descriptors are scarce, 1024 where nobody raised that.
const DIRS_OPEN_MAX: usize = 256;

/// A Dockerfile that asks for more than can be mounted is refused before anything is done for it.
const _: () = assert!(rbuild_frontend::lower::LAYERS_MAX == rbuild_sandbox::LOWERS_MAX);

/// A directory that is to be a layer of a mount.
#[derive(Debug, Clone)]
pub enum DirToMount {
    /// Opened once for all steps on it.
    Open(Arc<OwnedFd>),
    /// Opened by each.
    Path(PathBuf),
}

impl DirToMount {
    /// As the sandbox takes it.
    pub fn as_layer(&self) -> LayerDir<'_> {
        match self {
            Self::Open(dir) => LayerDir::Open(dir.as_fd()),
            Self::Path(path) => LayerDir::Path(path),
        }
    }
}

impl ExecEnv {
    /// Files of a state, read from its layers without a mount. A layer without a directory gets one when one of its
    /// files is opened.
    pub fn stack_source(&self, solved: &Solved) -> Result<StackSource, StepFailure> {
        let layer = |id: &LayerId| -> Result<StackLayer, StepFailure> {
            let listed = Box::new(Listed {
                store: self.store.clone(),
                lease: self.lease.clone(),
                form: self.overlay,
                id: *id,
                listing: OnceLock::new(),
                dir: OnceLock::new(),
            });
            if self.store.has_dir(*id)? {
                return Ok(StackLayer::Dir(self.store.layer_dir(*id)?, listed));
            }
            Ok(StackLayer::Listed(listed))
        };
        Ok(StackSource::new(solved.stack.iter().map(layer).collect::<Result<_, _>>()?))
    }

    /// Directories of layers, to mount; those that are missing are made.
    pub fn layer_dirs(&self, stack: &[LayerId]) -> Result<Vec<DirToMount>, StepFailure> {
        stack.iter().map(|id| self.layer_dir_to_mount(*id)).collect()
    }

    fn layer_dir_to_mount(&self, id: LayerId) -> Result<DirToMount, StepFailure> {
        if let Some(dir) = self.with_dir().get(&id) {
            return Ok(dir.clone());
        }
        self.store.make_dir_of(&self.lease, id, self.overlay)?;
        let is_kept_open = self.with_dir().len() < DIRS_OPEN_MAX;
        let dir = match is_kept_open {
            true => DirToMount::Open(Arc::new(self.store.layer_dir(id)?)),
            false => DirToMount::Path(self.store.layer_path(id)),
        };
        // Of two that came at the same time one counts: a mount knows a layer by one descriptor.
        Ok(self.with_dir().entry(id).or_insert(dir).clone())
    }

    fn with_dir(&self) -> MutexGuard<'_, HashMap<LayerId, DirToMount>> {
        self.with_dir.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How this build's outputs want the layers that it makes; `None` when none wants them, or not as they are.
    pub fn wanted_compression(&self) -> Option<Compression> {
        self.wanted_compression.filter(|_| self.source_date_epoch().is_none())
    }

    /// A layer's archive as its blob. Pushes read along.
    pub fn identify(
        &self,
        compression: Compression,
        encode: impl FnOnce(&mut dyn Write) -> Result<Encoded, StepFailure>,
    ) -> Result<Encoded, StepFailure> {
        let mut blob = Grower::new(self, compression, None, Some(self.passing.listener()))?;
        let encoded = encode(&mut blob)?;
        blob.commit_as(&self.passing, encoded.digest)?;
        self.store.put_encoding(&encoded.diff_id, &compression.params(), &encoded.digest, encoded.size)?;
        Ok(encoded)
    }

    /// Writes a layer's archive, compressed, into `sink`, on a thread of this pace.
    pub fn encode_layer(
        &self,
        id: LayerId,
        clamp: Option<i64>,
        compression: Compression,
        pace: Pace,
        sink: &mut dyn Write,
    ) -> Result<Encoded, StepFailure> {
        let diff = self.store.layer_diff(id)?;
        let size_bytes = self.store.layer(id)?.map_or(u64::MAX, |layer| layer.size_bytes);
        let share = EncodeShare::wait(compression, archive_bytes(size_bytes, &diff), pace == Pace::Ahead);
        let encoded = match self.store.layer_packs(id)? {
            Some(packs) => {
                let mut bodies = PackBodies::new(&packs.packs);
                encode(|out| emit_tar_from(&mut bodies, &diff, clamp, out), share, sink)
            }
            None => {
                let dir = self.store.layer_dir(id)?;
                encode(|out| emit_tar(dir.as_fd(), &diff, clamp, out), share, sink)
            }
        };
        encoded.map_err(|error: EncodeError<_>| error.into())
    }
}

/// Layers of at most so many entries and bytes are identified as they are made.
const SMALL_ENTRIES_MAX: usize = 64;
const SMALL_BYTES_MAX: u64 = 256 << 10;

/// Digest and length of a small layer's archive: it takes a few hundredths of a millisecond while the bytes are at hand,
/// and to come back to fifty such layers when the build is done takes as long as several steps. `None` for a large one,
/// or when it cannot be made, which is for whoever wants it to say.
pub fn identify_small(dir: BorrowedFd<'_>, diff: &LayerDiff, size_bytes: u64) -> Option<(DiffId, u64)> {
    if diff.len() > SMALL_ENTRIES_MAX || size_bytes > SMALL_BYTES_MAX {
        return None;
    }
    let archive =
        |start: &Start, out: &mut dyn Write| emit_from(&mut DirBodies::new(dir), diff, None, start, out);
    let hashed = hash_from(Marks::default(), archive, 1).ok()?;
    Some((hashed.diff_id, hashed.size))
}

/// A layer that is read by its listing as long as that is enough.
struct Listed {
    store: Store,
    lease: Lease,
    form: OverlayForm,
    id: LayerId,
    listing: OnceLock<LayerDiff>,
    dir: OnceLock<OwnedFd>,
}

fn unreadable(action: &'static str) -> impl Fn(Box<dyn std::error::Error + Send + Sync>) -> SourceError {
    move |error| SourceError::Io { action, path: RelPath::root(), source: std::io::Error::other(error) }
}

impl ListedLayer for Listed {
    fn listing(&self) -> Result<&LayerDiff, SourceError> {
        if let Some(listing) = self.listing.get() {
            return Ok(listing);
        }
        let failed = unreadable("read the listing of a layer at");
        let listing = self.store.layer_diff(self.id).map_err(|error| failed(error.into()))?;
        Ok(self.listing.get_or_init(|| listing))
    }

    fn dir(&self) -> Result<BorrowedFd<'_>, SourceError> {
        if let Some(dir) = self.dir.get() {
            return Ok(dir.as_fd());
        }
        let failed = unreadable("write the files of a layer at");
        self.store.make_dir_of(&self.lease, self.id, self.form).map_err(|error| failed(error.into()))?;
        let dir = self.store.layer_dir(self.id).map_err(|error| failed(error.into()))?;
        Ok(self.dir.get_or_init(|| dir).as_fd())
    }
}
