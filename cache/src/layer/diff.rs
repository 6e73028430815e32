//! What one layer changes, as a list.
//!
//! A [`LayerDiff`] says everything a layer directory holds, so that trees can be edited, tars emitted and layers
//! checked without walking or hashing the directory again. It is stored beside the directory.

use std::cmp::Ordering;
use std::fmt;

use super::codec::{HEAD_BYTES_MAX, Reader, put_entry};
use crate::path::{RelPath, compare};
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
///
/// A layer may have a million files: entries are held as they are encoded, in some 70 bytes each, and made when somebody
/// asks for them.
#[derive(Clone, Default)]
pub struct LayerDiff {
    /// Room for the head of a listing, then the entries from `start` on.
    pub(super) bytes: Vec<u8>,
    pub(super) start: usize,
    len: usize,
    stops: Vec<Stop>,
    /// Path of the last entry.
    last: Vec<u8>,
}

/// An entry that can be read without those before it.
#[derive(Debug, Clone)]
struct Stop {
    index: usize,
    /// Where in the bytes.
    at: usize,
    path: RelPath,
}

/// From one stop to the next there are no more entries, so a look-up passes over half as many,
const STOP_ENTRIES: usize = 32;
/// nor bytes, but for the last entry: one with many xattrs is passed over once.
const STOP_BYTES: usize = 4 << 10;

impl LayerDiff {
    /// Adds the entry that comes after all others. What is added out of order is not found by its path, and a listing with
    /// it is refused by whoever decodes it.
    pub fn push(&mut self, entry: DiffEntry) {
        if self.bytes.is_empty() {
            self.bytes.resize(HEAD_BYTES_MAX, 0);
            self.start = HEAD_BYTES_MAX;
        }
        let at = self.bytes.len();
        put_entry(&mut self.bytes, &self.last, &entry);
        self.note(at, entry.path.as_bytes());
    }

    /// Takes down that the entry which follows is at `at`.
    pub(super) fn note(&mut self, at: usize, path: &[u8]) {
        let (index, from) = self.stops.last().map_or((0, self.start), |stop| (stop.index, stop.at));
        if self.len - index >= STOP_ENTRIES || at.saturating_sub(from) > STOP_BYTES {
            self.stops.push(Stop { index: self.len, at, path: RelPath::of_clean(path.to_vec()) });
        }
        self.last.clear();
        self.last.extend_from_slice(path);
        self.len += 1;
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when nothing changes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All entries in order.
    pub fn iter(&self) -> Entries<'_> {
        self.entries_after(None)
    }

    /// The entries from the one with this index on.
    pub fn iter_from(&self, index: usize) -> Entries<'_> {
        let mut entries = self.entries_after(self.stop_before(|stop| stop.index <= index));
        while entries.left > self.len.saturating_sub(index) && entries.read_path() {
            entries.pass();
        }
        entries
    }

    /// The entry at a path.
    pub fn get(&self, path: &RelPath) -> Option<DiffEntry> {
        let mut entries = self.entries_after(self.stop_before(|stop| stop.path <= *path));
        while entries.read_path() {
            match compare(&entries.path, path.as_bytes()) {
                Ordering::Less => entries.pass(),
                Ordering::Equal => return Some(entries.entry()),
                Ordering::Greater => break,
            }
        }
        None
    }

    /// The first entry when it is the root.
    pub fn root(&self) -> Option<DiffEntry> {
        self.iter().next().filter(|first| first.path.is_root())
    }

    /// Takes the root out, if it is listed.
    pub fn remove_root(&mut self) {
        let mut entries = self.iter();
        if entries.next().is_some_and(|first| first.path.is_root()) {
            // The next one shares nothing with it, and reads the same without.
            self.start = entries.reader.at();
            self.len -= 1;
            self.stops.iter_mut().for_each(|stop| stop.index -= 1);
        }
    }

    /// The encoded entries.
    pub(super) fn encoded(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    fn stop_before(&self, is_before: impl FnMut(&Stop) -> bool) -> Option<&Stop> {
        self.stops[..self.stops.partition_point(is_before)].last()
    }

    fn entries_after(&self, stop: Option<&Stop>) -> Entries<'_> {
        match stop {
            // What its path shares with the one before, it shares with itself.
            Some(Stop { index, at, path }) => Entries {
                reader: Reader::new(&self.bytes, *at),
                left: self.len - index,
                path: path.as_bytes().to_vec(),
            },
            None => {
                Entries { reader: Reader::new(&self.bytes, self.start), left: self.len, path: Vec::new() }
            }
        }
    }
}

impl FromIterator<DiffEntry> for LayerDiff {
    fn from_iter<T: IntoIterator<Item = DiffEntry>>(entries: T) -> Self {
        let mut diff = Self::default();
        entries.into_iter().for_each(|entry| diff.push(entry));
        diff
    }
}

impl<'a> IntoIterator for &'a LayerDiff {
    type Item = DiffEntry;
    type IntoIter = Entries<'a>;

    fn into_iter(self) -> Entries<'a> {
        self.iter()
    }
}

impl PartialEq for LayerDiff {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.encoded() == other.encoded()
    }
}

impl Eq for LayerDiff {}

impl fmt::Debug for LayerDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

/// Why a diff can be read.
const IS_KNOWN: &str = "a diff has what was pushed, or what was checked when it was decoded";

/// Entries of a [`LayerDiff`], one after the other.
#[derive(Clone)]
pub struct Entries<'a> {
    reader: Reader<'a>,
    left: usize,
    /// Of the last entry.
    path: Vec<u8>,
}

impl Entries<'_> {
    /// Moves on to the next path; false when there is none.
    fn read_path(&mut self) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        self.reader.path(&mut self.path).expect(IS_KNOWN);
        true
    }

    /// What is at that path.
    fn entry(&mut self) -> DiffEntry {
        let (change, mtime) = self.reader.rest().expect(IS_KNOWN);
        DiffEntry { path: RelPath::of_clean(self.path.clone()), change, mtime }
    }

    /// Passes over it.
    fn pass(&mut self) {
        self.reader.skip_rest().expect(IS_KNOWN);
    }
}

impl Iterator for Entries<'_> {
    type Item = DiffEntry;

    fn next(&mut self) -> Option<DiffEntry> {
        self.read_path().then(|| self.entry())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Entries<'_> {}

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

impl Change {
    /// Mode, owner and xattrs, of what has its own.
    pub fn meta(&self) -> Option<&Meta> {
        match self {
            Self::Whiteout | Self::Hardlink { .. } => None,
            Self::Dir { meta, .. }
            | Self::File { meta, .. }
            | Self::Symlink { meta, .. }
            | Self::CharDevice { meta, .. }
            | Self::BlockDevice { meta, .. }
            | Self::Fifo { meta } => Some(meta),
        }
    }
}

#[cfg(test)]
mod tests;
