//! What each op does when it is executed.

pub mod added;
pub mod archive;
mod authorization;
pub mod cgroup;
pub mod chroot;
pub mod copy;
pub mod download;
pub mod emulation;
pub mod fetched;
pub mod git;
pub mod http;
pub mod image;
pub mod layers;
pub mod leaving;
pub mod network;
pub mod owner;
pub mod run;
pub mod select;
pub mod workdir;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use rbuild_cache::layer::{Change, Compression, DiffEntry, LayerDiff, ListingError, Mtime, OverlayForm};
use rbuild_cache::store::{Draft, LayerId, Lease, Store};
use rbuild_cache::tree::{Meta, Tree};
use rbuild_oci::DiffId;
use rbuild_registry::Client;
use rbuild_sandbox::Rung;
use tokio::sync::Semaphore;

use crate::assemble::emit::Emissions;
use crate::assemble::passing::Passing;
use crate::cancel::Cancel;
use crate::cli::StepOptions;
use crate::debug::Slot;
use crate::devices::Devices;
use crate::error::StepFailure;
use crate::git::GitSettings;
use crate::mounts::Materialised;
use crate::mounts::secret::Secrets;
use crate::mounts::ssh::Agents;
use crate::ops::cgroup::Groups;
use crate::ops::emulation::Emulators;
use crate::ops::leaving::Leaving;
use crate::ops::network::StepNetwork;
use crate::progress::Events;

pub use layers::DirToMount;

/// What every op needs from its build.
pub struct ExecEnv {
    /// Steps that are going away. Before the lease, whose directories they have.
    pub leaving: Leaving,
    /// The store.
    pub store: Store,
    /// Protects everything unfinished.
    pub lease: Lease,
    /// Registry access, set up on first use.
    pub registry: Client,
    /// How git is run.
    pub git: GitSettings,
    /// Where events go.
    pub events: Events,
    /// The build's switch.
    pub cancel: Cancel,
    /// How overlay marks and owners are written in layer directories.
    pub overlay: OverlayForm,
    /// How RUN steps are isolated.
    pub rung: Rung,
    /// Whether a chroot is enough where the kernel confines no step in it.
    pub is_chroot_forced: bool,
    /// RUN steps at once. Not the core count: a step that sleeps must not block another.
    pub run_slots: Arc<Semaphore>,
    /// Copying and writing layers out at once.
    pub disk_slots: Arc<Semaphore>,
    /// Layers of images unpacked at once, wherever their blobs come from.
    pub unpack_slots: Arc<Semaphore>,
    /// Files and repositories asked for and fetched at once.
    pub fetch_slots: Arc<Semaphore>,
    /// What RUN steps get.
    pub steps: StepOptions,
    /// Secrets, for steps and for remote sources.
    pub secrets: Secrets,
    /// SSH agents, for steps and for remote sources.
    pub agents: Agents,
    /// Devices, for steps.
    pub devices: Devices,
    /// Control groups of steps.
    pub groups: Groups,
    /// Parts of contexts copied for mounts.
    pub materialised: Materialised,
    /// Layers on their way out.
    pub emissions: Emissions,
    /// Blobs that do not stay.
    pub passing: Passing,
    /// Networks of RUN steps.
    pub network: Arc<StepNetwork>,
    /// Who runs steps for other processors.
    pub emulators: Emulators,
    /// `SOURCE_DATE_EPOCH`, in seconds, as soon as it is known: the Dockerfile may have a default for it.
    pub epoch: OnceLock<i64>,
    /// What the first output that compresses layers wants of those of the image.
    pub wanted_compression: Option<Compression>,
    /// Layers that have a directory, most of them open. They keep it: the lease protects them.
    pub with_dir: Mutex<HashMap<LayerId, DirToMount>>,
    /// Lowest layer of every step's mount, made by the first step.
    pub mount_points: OnceLock<PathBuf>,
    /// Where the first failed step is kept, for a shell in it; `None` when nobody wants one.
    pub failed_step: Option<Slot>,
}

/// More copies at once than this fill memory rather than a disk.
const DISK_SLOTS_MAX: usize = 8;
/// Each layer that is unpacked takes two threads and some MiB, one of them more when it was compressed with a large window.
const UNPACK_SLOTS: usize = 4;
/// Each has a thread and some MiB between the network and the disk, and git has programs. More of them fill no line better.
const FETCH_SLOTS: usize = 4;

/// [`ExecEnv::disk_slots`] of this machine.
pub fn disk_slots() -> Arc<Semaphore> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Arc::new(Semaphore::new(cores.clamp(2, DISK_SLOTS_MAX)))
}

/// [`ExecEnv::unpack_slots`].
pub fn unpack_slots() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(UNPACK_SLOTS))
}

/// [`ExecEnv::fetch_slots`].
pub fn fetch_slots() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(FETCH_SLOTS))
}

/// An executed step's layer, before it is committed.
pub struct NewLayer {
    /// Its files in the work area.
    pub draft: Draft,
    /// What it changes.
    pub diff: LayerDiff,
    /// State after it.
    pub tree: Tree,
    /// Bytes of regular files in it.
    pub size_bytes: u64,
    /// Digest and length of its tar, when it was made in passing.
    pub tar: Option<(DiffId, u64)>,
    /// Under which the layer is to be found by the next step like this one, when that may share its files.
    pub recent: Option<[u8; 32]>,
}

impl ExecEnv {
    /// `SOURCE_DATE_EPOCH`, in seconds.
    pub fn source_date_epoch(&self) -> Option<i64> {
        self.epoch.get().copied()
    }

    /// Time for directories that a step makes: now. An epoch that was asked for does not enter here but when the
    /// layer is written: the layer is the same for all epochs, and a later build with another one finds it.
    pub fn now(&self) -> Mtime {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let secs = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        // Only later times are set back when the layer is written.
        match self.source_date_epoch() {
            Some(epoch) if epoch > secs => Mtime { secs: epoch, nanos: 0 },
            _ => Mtime { secs, nanos: now.subsec_nanos() },
        }
    }
}

/// Runs blocking work on its own thread and waits for it, however long the caller's switch is thrown: work that owns a
/// draft must end before its directory is removed.
pub async fn blocking<T, F>(work: F) -> Result<T, StepFailure>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, StepFailure> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(join) => std::panic::resume_unwind(join.into_panic()),
    }
}

/// Takes the root out of a diff that leaves it as it was: archives of layers do not list it then.
pub fn without_same_root(mut diff: LayerDiff, root: &Meta) -> Result<LayerDiff, ListingError> {
    let is_same =
        |entry: DiffEntry| matches!(entry.change, Change::Dir { meta, opaque: false } if meta == *root);
    if diff.root()?.is_some_and(is_same) {
        diff.remove_root()?;
    }
    Ok(diff)
}

/// About as many bytes as the archive of a layer with files of so many has: a header for each entry, and padding.
pub fn archive_bytes(size_bytes: u64, diff: &LayerDiff) -> u64 {
    size_bytes.saturating_add(1024 * diff.len() as u64)
}

/// Bytes of the files that a layer brings, a link being as long as what it says: as Docker counts them.
pub fn size_bytes(diff: &LayerDiff) -> Result<u64, ListingError> {
    let size = |entry: Result<DiffEntry, ListingError>| {
        Ok(match entry?.change {
            Change::File { size, .. } => size,
            Change::Symlink { target, .. } => target.len() as u64,
            _ => 0,
        })
    };
    diff.iter().map(size).sum()
}
