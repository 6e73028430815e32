//! Entries that are looked for by where they were put.

use std::io;

use super::super::codec::put_entry;
use super::DiffEntry;
use crate::encoded::{Encoded, ONE_AHEAD};
use crate::path::RelPath;
use crate::scratch::Scratch;

/// Entries in any order, beyond 256 KiB of them in a file. Their places are for who puts them there to remember.
pub(in super::super) struct Placed(Encoded);

impl Placed {
    /// None so far.
    pub(in super::super) fn new(scratch: &Scratch) -> Self {
        Self(Encoded::new(scratch.clone()))
    }

    /// Adds one, and says where it is.
    pub(in super::super) fn put(&mut self, entry: &DiffEntry) -> io::Result<u64> {
        let at = self.0.end();
        self.0.append(|bytes| put_entry(bytes, b"", entry))?;
        Ok(at)
    }

    /// The one at a place.
    pub(in super::super) fn get(&self, at: u64) -> io::Result<DiffEntry> {
        let mut path = Vec::new();
        let (change, mtime) = self.0.read_from(at, ONE_AHEAD).read(|reader| {
            reader.path(&mut path)?;
            reader.rest()
        })?;
        Ok(DiffEntry { path: RelPath::of_clean(path), change, mtime })
    }
}
