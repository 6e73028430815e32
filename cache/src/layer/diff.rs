//! What one layer changes, as a list.
//!
//! A [`LayerDiff`] says everything a layer directory holds, so that trees can be edited, tars emitted and layers
//! checked without walking or hashing the directory again. It is stored beside the directory.

mod placed;
mod stops;
#[cfg(test)]
mod testing;

use std::cmp::Ordering;
use std::{fmt, io};

pub(super) use self::placed::Placed;
pub(crate) use self::stops::{Stop, Stops};
use super::codec::put_entry;
use crate::encoded::{ALL_AHEAD, Encoded, Input, ONE_AHEAD, ReadError};
use crate::path::{RelPath, compare};
use crate::scratch::Scratch;
use crate::tree::{ContentDigest, Meta};

/// A modification time: whole seconds since the epoch (may be negative) and nanoseconds in `0..1_000_000_000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mtime {
    /// Whole seconds.
    pub secs: i64,
    /// Nanoseconds above `secs`.
    pub nanos: u32,
}

/// A layer's list of entries that cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[error("{doing} a layer's list of entries")]
pub struct ListingError {
    /// What was being done.
    pub doing: &'static str,
    /// Cause; invalid data when it is not what was written.
    #[source]
    pub source: io::Error,
}

/// First 16 bytes of the BLAKE3 of an encoded diff: which one it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListingCheck(pub [u8; 16]);

/// All changes of a layer, sorted by [`RelPath`]'s order, each path once. Directories that lead to a change are
/// listed (as [`Change::Dir`] with the metadata they have in the merged view); the root may be, as the empty path.
///
/// A layer may have millions of files: entries are held as they are encoded, in some 70 bytes each, and made when somebody
/// asks for them; beyond 256 KiB of them, or 64 where they come from the store, they are in a file, and reading may fail.
#[derive(Default)]
pub struct LayerDiff {
    pub(super) encoded: Encoded,
    len: usize,
    stops: Stops,
    /// Path of the last entry.
    last: Vec<u8>,
    pub(super) check: Option<ListingCheck>,
}

impl LayerDiff {
    /// Without entries; many go to a file of `scratch`. The default keeps all in memory.
    pub fn new(scratch: &Scratch) -> Self {
        Self { encoded: Encoded::new(scratch.clone()), ..Self::default() }
    }

    /// Without entries so far, the first of which is at `start`.
    pub(super) fn of_start(start: u64) -> Self {
        Self { encoded: Encoded::of_start(start), ..Self::default() }
    }

    /// Adds the entry that comes after all others. What is added out of order is not found by its path, and a listing with
    /// it is refused by whoever decodes it.
    pub fn push(&mut self, entry: &DiffEntry) -> Result<(), ListingError> {
        self.check = None;
        let at = self.encoded.end();
        let Self { encoded, last, .. } = self;
        encoded
            .append(|bytes| put_entry(bytes, last, entry))
            .map_err(|source| ListingError { doing: "write", source })?;
        self.note(at, entry.path.as_bytes());
        Ok(())
    }

    /// Takes down that the entry which follows is at `at`.
    pub(super) fn note(&mut self, at: u64, path: &[u8]) {
        self.stops.note(Stop { index: self.len, at, path }, self.encoded.start);
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

    /// Which one it is, once it was decoded.
    pub fn check(&self) -> Option<ListingCheck> {
        self.check
    }

    /// All entries in order.
    pub fn iter(&self) -> Entries<'_> {
        self.entries_from(None, ALL_AHEAD)
    }

    /// The entries from the one with this index on.
    pub fn iter_from(&self, index: usize) -> Result<Entries<'_>, ListingError> {
        self.entries_at(index, ALL_AHEAD)
    }

    fn entries_at(&self, index: usize, ahead: usize) -> Result<Entries<'_>, ListingError> {
        let mut entries = self.entries_from(self.stops.before(|stop| stop.index <= index), ahead);
        while entries.left > self.len.saturating_sub(index) && entries.read_path()? {
            entries.pass()?;
        }
        Ok(entries)
    }

    /// The entry at a path.
    pub fn get(&self, path: &RelPath) -> Result<Option<DiffEntry>, ListingError> {
        self.moved_to(path)?.map(|mut entries| entries.entry()).transpose()
    }

    /// Index of the entry at a path.
    pub fn position(&self, path: &RelPath) -> Result<Option<usize>, ListingError> {
        Ok(self.moved_to(path)?.map(|entries| self.len - entries.left - 1))
    }

    /// Entries of which the path of the one at this path was read, if there is one.
    fn moved_to(&self, path: &RelPath) -> Result<Option<Entries<'_>>, ListingError> {
        let stop = self.stops.before(|stop| compare(stop.path, path.as_bytes()).is_le());
        let mut entries = self.entries_from(stop, ONE_AHEAD);
        while entries.read_path()? {
            match compare(&entries.path, path.as_bytes()) {
                Ordering::Less => entries.pass()?,
                Ordering::Equal => return Ok(Some(entries)),
                Ordering::Greater => break,
            }
        }
        Ok(None)
    }

    /// The entry with this index.
    pub fn at(&self, index: usize) -> Result<Option<DiffEntry>, ListingError> {
        self.entries_at(index, ONE_AHEAD)?.next().transpose()
    }

    /// The first entry when it is the root.
    pub fn root(&self) -> Result<Option<DiffEntry>, ListingError> {
        let first = self.entries_from(None, ONE_AHEAD).next().transpose()?;
        Ok(first.filter(|first| first.path.is_root()))
    }

    /// Takes the root out, if it is listed.
    pub fn remove_root(&mut self) -> Result<(), ListingError> {
        let mut entries = self.entries_from(None, ONE_AHEAD);
        if entries.next().transpose()?.is_some_and(|first| first.path.is_root()) {
            // The next one shares nothing with it, and reads the same without.
            self.encoded.start = entries.input.at();
            self.len -= 1;
            self.check = None;
            self.stops.remove_first();
        }
        Ok(())
    }

    fn entries_from(&self, stop: Option<Stop<'_>>, ahead: usize) -> Entries<'_> {
        let Stop { index, at, path } = stop.unwrap_or(Stop { index: 0, at: self.encoded.start, path: b"" });
        // What its path shares with the one before, it shares with itself.
        Entries {
            input: self.encoded.read_from(at, ahead),
            left: self.len - index,
            path: path.to_vec(),
            has_failed: false,
        }
    }
}

impl FromIterator<DiffEntry> for LayerDiff {
    /// In memory.
    fn from_iter<T: IntoIterator<Item = DiffEntry>>(entries: T) -> Self {
        let mut diff = Self::default();
        for entry in entries {
            diff.push(&entry).expect("nothing is written to a file");
        }
        diff
    }
}

impl<'a> IntoIterator for &'a LayerDiff {
    type Item = Result<DiffEntry, ListingError>;
    type IntoIter = Entries<'a>;

    fn into_iter(self) -> Entries<'a> {
        self.iter()
    }
}

impl fmt::Debug for LayerDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

/// Entries of a [`LayerDiff`], one after the other. None comes after an error.
pub struct Entries<'a> {
    input: Input<'a>,
    left: usize,
    /// Of the last entry.
    path: Vec<u8>,
    has_failed: bool,
}

impl Entries<'_> {
    /// Moves on to the next path; false when there is none.
    fn read_path(&mut self) -> Result<bool, ListingError> {
        if self.left == 0 || self.has_failed {
            return Ok(false);
        }
        self.left -= 1;
        let path = &mut self.path;
        let read = self.input.read(|reader| reader.path(path).map(drop));
        self.noted(read)?;
        Ok(true)
    }

    /// What is at that path.
    fn entry(&mut self) -> Result<DiffEntry, ListingError> {
        let read = self.input.read(|reader| reader.rest());
        let (change, mtime) = self.noted(read)?;
        // It may be another than the one that was checked.
        let path = RelPath::new(&self.path[..]).map_err(|_| ReadError::Malformed("a path is not clean"));
        Ok(DiffEntry { path: self.noted(path)?, change, mtime })
    }

    /// Passes over it.
    fn pass(&mut self) -> Result<(), ListingError> {
        let read = self.input.read(|reader| reader.skip_rest());
        self.noted(read)
    }

    fn noted<T>(&mut self, read: Result<T, ReadError>) -> Result<T, ListingError> {
        self.has_failed |= read.is_err();
        read.map_err(|error| ListingError { doing: "read", source: error.into() })
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<DiffEntry, ListingError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.read_path() {
            Ok(true) => Some(self.entry()),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        }
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

impl Change {
    /// True when nothing is left of what lower layers have there and below.
    pub(crate) fn replaces(&self) -> bool {
        !matches!(self, Self::Dir { opaque: false, .. })
    }

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
