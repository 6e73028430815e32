//! The index of a pack that is open: all of a small one in memory, of a large one only where to look on the disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{ENTRIES_AT_ONCE, PackError, Place};
use crate::tree::ContentDigest;

/// Content, offset, length.
pub(super) const ENTRY_BYTES: usize = 32 + 8 + 8;
/// An entry as it is in the file.
pub(super) type Entry = [u8; ENTRY_BYTES];

/// Entries that are read to find one among them, 3 KiB.
const BLOCK_ENTRIES: usize = 64;
/// Room for a block.
pub(super) type Block = [Entry; BLOCK_ENTRIES];

/// Entries of an index that is held, a MiB: twenty thousand files are found in half the time without a system call each.
#[cfg(not(test))]
const HELD_ENTRIES_MAX: usize = (1 << 20) / ENTRY_BYTES;
#[cfg(test)]
const HELD_ENTRIES_MAX: usize = 3 * BLOCK_ENTRIES;

/// A block to read into.
pub(super) fn empty_block() -> Block {
    [[0; ENTRY_BYTES]; BLOCK_ENTRIES]
}

/// The content of an entry.
pub(super) fn content(entry: &Entry) -> ContentDigest {
    let mut content = ContentDigest([0; 32]);
    content.0.copy_from_slice(&entry[..32]);
    content
}

/// Where it is.
pub(super) fn place(entry: &Entry) -> Place {
    let number = |from: usize| u64::from_le_bytes(std::array::from_fn(|at| entry[from + at]));
    Place { offset: number(32), length: number(40) }
}

/// The entry that says so.
pub(super) fn entry(content: &ContentDigest, place: Place) -> Entry {
    let mut entry = [0; ENTRY_BYTES];
    entry[..32].copy_from_slice(&content.0);
    entry[32..40].copy_from_slice(&place.offset.to_le_bytes());
    entry[40..].copy_from_slice(&place.length.to_le_bytes());
    entry
}

/// Where the contents of a pack are.
#[derive(Debug)]
pub(super) struct Index {
    /// Its place in the file: contents end there.
    start: u64,
    len: usize,
    /// The first content of each block.
    fences: Vec<ContentDigest>,
    /// All entries, when they are few.
    held: Option<Vec<Entry>>,
}

impl Index {
    /// Reads the `len` entries at `start` of `file` once, and checks them and the seal over them and their number.
    pub(super) fn open(file: &File, start: u64, len: usize, seal: &[u8; 32]) -> Result<Self, PackError> {
        let mut held = (len <= HELD_ENTRIES_MAX).then(|| Vec::with_capacity(len));
        let mut buffer = vec![[0; ENTRY_BYTES]; len.min(ENTRIES_AT_ONCE)];
        let mut hash = blake3::Hasher::new();
        let (mut fences, mut last, mut at) = (Vec::new(), None, 0);
        while at < len {
            let entries = &mut buffer[..ENTRIES_AT_ONCE.min(len - at)];
            file.read_exact_at(entries.as_flattened_mut(), start + (at * ENTRY_BYTES) as u64)?;
            hash.update(entries.as_flattened());
            check(last, entries, start)?;
            last = entries.last().map(content);
            fences.extend(entries.iter().step_by(BLOCK_ENTRIES).map(content));
            if let Some(held) = &mut held {
                held.extend_from_slice(entries);
            }
            at += entries.len();
        }
        hash.update(&(len as u64).to_le_bytes());
        if hash.finalize().as_bytes() != seal {
            return Err(PackError::Damaged("its index changed"));
        }
        fences.shrink_to_fit();
        Ok(Self { start, len, fences, held })
    }

    /// Where it is in the file.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Number of entries.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Where a content is. `file` is that of [`Self::open`].
    pub(super) fn find(&self, file: &File, wanted: &ContentDigest) -> io::Result<Option<Place>> {
        let Some(at) = self.fences.partition_point(|fence| fence <= wanted).checked_sub(1) else {
            return Ok(None);
        };
        let mut block = empty_block();
        let entries = self.block(file, at, &mut block)?;
        let found = entries.binary_search_by(|entry| entry[..32].cmp(&wanted.0));
        Ok(found.ok().map(|at| place(&entries[at])))
    }

    /// Number of blocks.
    pub(super) fn blocks(&self) -> usize {
        self.fences.len()
    }

    /// The entries of a block, out of `file` into `block` when they are not held. An error when they changed since they were
    /// checked such that they are out of order or lead out of the contents.
    pub(super) fn block<'a>(
        &'a self,
        file: &File,
        at: usize,
        block: &'a mut Block,
    ) -> io::Result<&'a [Entry]> {
        let first = at * BLOCK_ENTRIES;
        let count = BLOCK_ENTRIES.min(self.len - first);
        if let Some(held) = &self.held {
            return Ok(&held[first..first + count]);
        }
        let entries = &mut block[..count];
        file.read_exact_at(entries.as_flattened_mut(), self.start + (first * ENTRY_BYTES) as u64)?;
        let is_first = entries.first().map(content) == Some(self.fences[at]);
        match check(None, entries, self.start) {
            Ok(()) if is_first => Ok(entries),
            _ => {
                let changed = PackError::Damaged("its index changed while it was open");
                Err(io::Error::new(io::ErrorKind::InvalidData, changed))
            }
        }
    }
}

/// Checks that entries ascend from the content before them, and lead to what is before `end`.
fn check(before: Option<ContentDigest>, entries: &[Entry], end: u64) -> Result<(), PackError> {
    let is_inside = |place: Place| place.offset.checked_add(place.length).is_some_and(|at| at <= end);
    if !entries.iter().all(|entry| is_inside(place(entry))) {
        return Err(PackError::Damaged("its index leads out of it"));
    }
    let goes_on = before.zip(entries.first()).is_none_or(|(before, first)| before < content(first));
    if !goes_on || !entries.is_sorted_by(|a, b| a[..32] < b[..32]) {
        return Err(PackError::Damaged("its index is out of order"));
    }
    Ok(())
}
