//! What can go wrong.

use std::io;

use rustix::io::Errno;

use super::super::TarError;
use super::super::diff::ListingError;
use crate::path::RelPath;

/// Why an archive was not unpacked. The directory is left half-filled and must be thrown away.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The bytes are not an archive we read.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// A name leads out of the layer, or is none.
    #[error("the archive has the entry `{name}`: {why}")]
    Name {
        /// Name as it stands in the archive, shortened.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// ADD only: an entry below a file or symbolic link of the same archive.
    #[error("`{path}` is below `{above}`, which is not a directory in the same archive")]
    BelowNonDirectory {
        /// The entry.
        path: RelPath,
        /// What it is below.
        above: RelPath,
    },
    /// ADD only: a character device 0:0, which would be a deletion in an image layer.
    #[error("`{path}` is a character device 0:0, which means a deletion in image layers")]
    WhiteoutDevice {
        /// The entry.
        path: RelPath,
    },
    /// A hard link to something that is not an earlier regular file of this archive.
    #[error("`{path}` is a hard link to `{target}`, which is not an earlier regular file of the archive")]
    LinkTarget {
        /// The link.
        path: RelPath,
        /// Its target as it stands in the archive, shortened.
        target: String,
    },
    /// A symbolic link's target is empty, too long or contains NUL.
    #[error("the target of the symbolic link `{path}` is empty, too long or contains NUL")]
    SymlinkTarget {
        /// The link.
        path: RelPath,
    },
    /// More entries than allowed.
    #[error("the archive has more than the {max} entries allowed")]
    TooManyEntries {
        /// Limit.
        max: u64,
    },
    /// Names, targets and xattrs together take too much room.
    #[error("the names in the archive take more than the {max} bytes allowed")]
    ListingTooLarge {
        /// Limit in bytes.
        max: u64,
    },
    /// An owner outside the user namespace's id map.
    #[error(
        "`{path}` belongs to {uid}:{gid}, which is outside the ids available here: \
         give this user a larger range in /etc/subuid and /etc/subgid"
    )]
    OwnerOutsideMap {
        /// The entry.
        path: RelPath,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// A system call failed.
    #[error("{step} `{path}`")]
    Io {
        /// What was being done.
        step: &'static str,
        /// To what, below the layer's root.
        path: RelPath,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The listing cannot be kept or read.
    #[error(transparent)]
    Listing(#[from] ListingError),
    /// What was unpacked could not be kept for the listing, or not be read again.
    #[error("keep the listing of an archive")]
    Scratch(#[source] io::Error),
    /// Looking a directory up in the parent failed, in [`super::fix_implied`].
    #[error("look up `{path}` in the layers below")]
    Lookup {
        /// The directory.
        path: RelPath,
        /// Cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Turns a system call's failure into an [`UnpackError`].
pub(super) fn io_error(step: &'static str, path: &RelPath) -> impl FnOnce(Errno) -> UnpackError {
    move |errno| UnpackError::Io { step, path: path.clone(), source: errno.into() }
}

/// The beginning of a name, for messages.
pub(super) fn shorten(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(200).collect()
}
