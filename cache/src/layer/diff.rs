//! What one layer changes, as a list.
//!
//! A [`LayerDiff`] says everything a layer directory holds, so that trees can be edited, tars emitted and layers
//! checked without walking or hashing the directory again. It is stored beside the directory.

use crate::path::RelPath;
use crate::tree::{ContentDigest, Meta};

/// A modification time: whole seconds since the epoch (may be negative) and nanoseconds in `0..1_000_000_000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mtime {
    /// Whole seconds.
    pub secs: i64,
    /// Nanoseconds above `secs`.
    pub nanos: u32,
}

/// All changes of a layer, sorted by [`RelPath`]'s order, each path once. Directories that lead to a change are
/// listed (as [`Change::Dir`] with the metadata they have in the merged view); the root may be, as the empty path.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LayerDiff {
    /// Sorted entries.
    pub entries: Vec<DiffEntry>,
}

impl LayerDiff {
    /// Adds the entry that comes after all others.
    pub fn push(&mut self, entry: DiffEntry) {
        debug_assert!(self.entries.last().is_none_or(|last| last.path < entry.path));
        self.entries.push(entry);
    }
}

/// One path of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiffEntry {
    /// Where.
    pub path: RelPath,
    /// What.
    pub change: Change,
    /// Modification time; zero for whiteouts.
    pub mtime: Mtime,
}

/// What a layer does at one path. Everything but `Dir` without `opaque` replaces what lower layers have there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Lower layers' entry of this name is gone.
    Whiteout,
    /// A directory; merged with a lower directory unless `opaque`.
    Dir {
        /// Mode, owner, xattrs.
        meta: Meta,
        /// True when nothing of lower layers shows through.
        opaque: bool,
    },
    /// A regular file.
    File {
        /// Mode, owner, xattrs.
        meta: Meta,
        /// Length in bytes.
        size: u64,
        /// Digest of its bytes.
        content: ContentDigest,
    },
    /// Another name of the regular file at `target`, which is in this layer and sorts before this path.
    Hardlink {
        /// First path of the group.
        target: RelPath,
    },
    /// A symbolic link.
    Symlink {
        /// Owner, xattrs; mode is 0o777.
        meta: Meta,
        /// Verbatim target.
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice {
        /// Mode, owner, xattrs.
        meta: Meta,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Mode, owner, xattrs.
        meta: Meta,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo {
        /// Mode, owner, xattrs.
        meta: Meta,
    },
}
