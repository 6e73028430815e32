//! Merged roots: an overlay file system as an owned descriptor.
//!
//! The mount is detached: it appears in no mount table, needs no mount point, and is gone when the descriptor is closed
//! or its owner dies. Files in it are reached with `openat2(fd, …, RESOLVE_IN_ROOT)`.

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_fd, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};
use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Lower layers one overlay takes (measured: the 501st is refused).
pub const LOWERS_MAX: usize = 500;

/// Why a merged root could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// There is nothing to merge.
    #[error("an overlay needs at least one lower layer")]
    NoLowers,
    /// More lowers than the kernel takes.
    #[error("{count} layers are more than the {LOWERS_MAX} one overlay takes")]
    TooManyLowers {
        /// How many were given.
        count: usize,
    },
    /// A layer directory that cannot be opened.
    #[error("open layer directory `{}`", path.display())]
    OpenLayer {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The kernel has no overlay file system or no `fsopen`.
    #[error("open an overlay file system context (kernel 6.8 or newer with overlayfs is needed)")]
    Open {
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// An option the kernel refuses.
    #[error("set overlay option `{option}`{}", log_suffix(log))]
    Option {
        /// Name of the option.
        option: &'static str,
        /// What the kernel said, possibly empty.
        log: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The kernel refuses to put the file system together.
    #[error("create the overlay{}", log_suffix(log))]
    Create {
        /// What the kernel said, possibly empty.
        log: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file system exists and cannot be mounted.
    #[error("mount the overlay")]
    Mount {
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

fn log_suffix(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!(": {log}") }
}

/// Messages the kernel left in a file system context, joined; at most a handful exist.
fn context_log(context: BorrowedFd<'_>) -> String {
    const MESSAGES_MAX: usize = 8;
    let mut messages = Vec::new();
    let mut buffer = [0; 1024];
    while messages.len() < MESSAGES_MAX {
        match rustix::io::read(context, &mut buffer) {
            Ok(count) if count > 0 => {
                messages.push(String::from_utf8_lossy(&buffer[..count]).trim().to_owned());
            }
            _ => break,
        }
    }
    messages.join("; ")
}

/// Whether overlayfs takes layers as descriptors, which spares it a look-up for each: Linux 6.13 or newer.
static TAKES_DESCRIPTORS: AtomicBool = AtomicBool::new(true);

/// A layer directory: `O_PATH` is enough when it is open.
#[derive(Debug, Clone, Copy)]
pub enum LayerDir<'a> {
    /// By name.
    Path(&'a Path),
    /// By a descriptor, which spares opening it for each mount.
    Open(BorrowedFd<'a>),
}

impl<'a, P: AsRef<Path> + ?Sized> From<&'a P> for LayerDir<'a> {
    fn from(path: &'a P) -> Self {
        Self::Path(path.as_ref())
    }
}

fn open_layer(path: &Path) -> Result<OwnedFd, MountError> {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| MountError::OpenLayer { path: path.to_owned(), source: e.into() })
}

/// The layers from the top down, each once: two steps that did the same share a layer, and the kernel refuses a directory
/// it was given before (ELOOP). Where a layer is uppermost it hides all it has further down, so only that place counts.
fn topmost_first<'a>(lowers: &[LayerDir<'a>]) -> Vec<LayerDir<'a>> {
    let (mut paths, mut descriptors) = (HashSet::new(), HashSet::new());
    let mut is_new = |lower: &LayerDir<'a>| match lower {
        LayerDir::Path(path) => paths.insert(*path),
        LayerDir::Open(dir) => descriptors.insert(dir.as_raw_fd()),
    };
    lowers.iter().rev().copied().filter(|lower| is_new(lower)).collect()
}

/// Merges layer directories into one root and returns it as a detached mount.
///
/// `lowers` go **base first**, as in an image; one may come more than once, under the same name or descriptor. `upper` is the pair (upper, work): empty directories of one file system;
/// without it the root is read-only. The upper is mounted `volatile`: it can never be an upper again, and what is in it is
/// durable only after the caller syncs it. `in_user_namespace` selects `user.overlay.*` attributes, which is what this
/// process must use when it is not root of the host (see [`in_user_namespace`](crate::in_user_namespace)).
/// The mount can be given to one [`run_step`](crate::run_step), and stays usable by descriptor after it. An upper becomes a
/// lower only when its overlay is gone: the descriptor dropped and the [`Teardown`](crate::Teardown) over.
pub fn mount_overlay(
    lowers: &[LayerDir<'_>],
    upper: Option<(LayerDir<'_>, LayerDir<'_>)>,
    in_user_namespace: bool,
) -> Result<OwnedFd, MountError> {
    if lowers.is_empty() {
        return Err(MountError::NoLowers);
    }
    let lowers = topmost_first(lowers);
    if lowers.len() > LOWERS_MAX {
        return Err(MountError::TooManyLowers { count: lowers.len() });
    }
    let context =
        fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| MountError::Open { source: e.into() })?;
    let context = context.as_fd();
    let refused = |option| {
        move |errno: Errno| MountError::Option { option, log: context_log(context), source: errno.into() }
    };
    let set_layer = |option: &'static str, layer: LayerDir<'_>| {
        // The kernel holds the directory from here on; our descriptor may go.
        let opened;
        let fd = match layer {
            LayerDir::Open(fd) => fd,
            LayerDir::Path(path) => {
                opened = open_layer(path)?;
                opened.as_fd()
            }
        };
        if TAKES_DESCRIPTORS.load(Ordering::Relaxed) && fsconfig_set_fd(context, option, fd).is_ok() {
            return Ok(());
        }
        // A name that any length and any character of its path survives: strings end at 255 bytes here.
        let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
        fsconfig_set_string(context, option, name.as_str()).map_err(refused(option))?;
        TAKES_DESCRIPTORS.store(false, Ordering::Relaxed);
        Ok(())
    };
    fsconfig_set_string(context, c"source", c"overlay").map_err(refused("source"))?;
    // The first one appended is the topmost.
    for lower in lowers {
        set_layer("lowerdir+", lower)?;
    }
    if let Some((upper, work)) = upper {
        set_layer("upperdir", upper)?;
        set_layer("workdir", work)?;
        fsconfig_set_flag(context, c"volatile").map_err(refused("volatile"))?;
    }
    if in_user_namespace {
        fsconfig_set_flag(context, c"userxattr").map_err(refused("userxattr"))?;
    }
    fsconfig_create(context)
        .map_err(|e| MountError::Create { log: context_log(context), source: e.into() })?;
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .map_err(|e| MountError::Mount { source: e.into() })
}
