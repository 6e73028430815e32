//! The index of a pack that is open: all of a small one in memory, of a large one only where to look on the disk.

use std::cmp::Ordering;
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

/// Entries of an index that is held, a MiB: to find one there takes a tenth of a microsecond, on the disk ten times as long.
#[cfg(not(test))]
const HELD_ENTRIES_MAX: usize = (1 << 20) / ENTRY_BYTES;
#[cfg(test)]
const HELD_ENTRIES_MAX: usize = 3 * BLOCK_ENTRIES;

/// Steps of a search that go by how digests are spread.
const GUESSES_MAX: usize = 6;

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
    entries: Entries,
}

#[derive(Debug)]
enum Entries {
    /// All of them, when they are few.
    Held(Vec<Entry>),
    /// Of each block its first content.
    Fenced(Vec<[u8; 32]>),
}

impl Index {
    /// Reads the `len` entries at `start` of `file` once, and checks them and the seal over them and their number.
    pub(super) fn open(file: &File, start: u64, len: usize, seal: &[u8; 32]) -> Result<Self, PackError> {
        let mut all = match len <= HELD_ENTRIES_MAX {
            true => Entries::Held(Vec::with_capacity(len)),
            false => Entries::Fenced(Vec::new()),
        };
        let mut buffer = vec![[0; ENTRY_BYTES]; len.min(ENTRIES_AT_ONCE)];
        let mut hash = blake3::Hasher::new();
        let (mut last, mut at) = (None, 0);
        while at < len {
            let entries = &mut buffer[..ENTRIES_AT_ONCE.min(len - at)];
            file.read_exact_at(entries.as_flattened_mut(), start + (at * ENTRY_BYTES) as u64)?;
            hash.update(entries.as_flattened());
            check(last, entries, start)?;
            last = entries.last().map(content);
            match &mut all {
                Entries::Held(held) => held.extend_from_slice(entries),
                Entries::Fenced(fences) => {
                    fences.extend(entries.iter().step_by(BLOCK_ENTRIES).map(|entry| content(entry).0));
                }
            }
            at += entries.len();
        }
        hash.update(&(len as u64).to_le_bytes());
        if hash.finalize().as_bytes() != seal {
            return Err(PackError::Damaged("its index changed"));
        }
        Ok(Self { start, len, entries: all })
    }

    /// Where it is in the file.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Number of entries.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Where a content is. `file` is that of [`Self::open`]; an error when its bytes are no index any more.
    pub(super) fn find(&self, file: &File, wanted: &ContentDigest) -> io::Result<Option<Place>> {
        let fences = match &self.entries {
            Entries::Held(held) => return Ok(search(held, wanted).ok().map(|at| place(&held[at]))),
            Entries::Fenced(fences) => fences,
        };
        let at = match search(fences, wanted) {
            Ok(at) => at,
            Err(0) => return Ok(None),
            Err(after) => after - 1,
        };
        let mut block = empty_block();
        let entries = self.read(file, at, &mut block)?;
        match entries.binary_search_by(|entry| entry[..32].cmp(&wanted.0)) {
            Ok(at) if is_inside(place(&entries[at]), self.start) => Ok(Some(place(&entries[at]))),
            // Only a block that is as it was can say that it is not there.
            Err(1..) if entries[0][..32] == fences[at] && check(None, entries, self.start).is_ok() => {
                Ok(None)
            }
            _ => Err(changed()),
        }
    }

    /// Number of blocks.
    pub(super) fn blocks(&self) -> usize {
        self.len.div_ceil(BLOCK_ENTRIES)
    }

    /// The entries of a block, out of `file` into `block` when they are not held; an error as in [`Self::find`].
    pub(super) fn block<'a>(
        &'a self,
        file: &File,
        at: usize,
        block: &'a mut Block,
    ) -> io::Result<&'a [Entry]> {
        if let Entries::Held(held) = &self.entries {
            return Ok(held.chunks(BLOCK_ENTRIES).nth(at).unwrap_or_default());
        }
        let entries = self.read(file, at, block)?;
        check(None, entries, self.start).map_err(|_| changed())?;
        Ok(entries)
    }

    /// The entries of a block as they are on the disk.
    fn read<'a>(&self, file: &File, at: usize, block: &'a mut Block) -> io::Result<&'a [Entry]> {
        let first = at * BLOCK_ENTRIES;
        let entries = &mut block[..BLOCK_ENTRIES.min(self.len - first)];
        file.read_exact_at(entries.as_flattened_mut(), self.start + (first * ENTRY_BYTES) as u64)?;
        Ok(entries)
    }
}

/// What was checked is something else now.
fn changed() -> io::Error {
    let changed = PackError::Damaged("its index changed while it was open");
    io::Error::new(io::ErrorKind::InvalidData, changed)
}

/// Checks that entries ascend from the content before them, and lead to what is before `end`.
fn check(before: Option<ContentDigest>, entries: &[Entry], end: u64) -> Result<(), PackError> {
    if !entries.iter().all(|entry| is_inside(place(entry), end)) {
        return Err(PackError::Damaged("its index leads out of it"));
    }
    let goes_on = before.zip(entries.first()).is_none_or(|(before, first)| before < content(first));
    if !goes_on || !entries.is_sorted_by(|a, b| a[..32] < b[..32]) {
        return Err(PackError::Damaged("its index is out of order"));
    }
    Ok(())
}

fn is_inside(place: Place, end: u64) -> bool {
    place.offset.checked_add(place.length).is_some_and(|at| at <= end)
}

/// Where a content is among what begins with contents and ascends, or else belongs.
fn search<const BYTES: usize>(sorted: &[[u8; BYTES]], wanted: &ContentDigest) -> Result<usize, usize> {
    let (mut low, mut high) = (0, sorted.len());
    // Beginnings of what lies before and after; digests are spread evenly, so a few guesses are enough. Whoever chose
    // contents for theirs gets halves after that.
    let (mut least, mut most) = (0, u64::MAX);
    let beginning = |digest: &[u8]| u64::from_be_bytes(std::array::from_fn(|at| digest[at]));
    let wanted_beginning = beginning(&wanted.0);
    let mut guesses = 0..GUESSES_MAX;
    while low < high {
        let middle = match guesses.next() {
            Some(_) if least < most => {
                let share = u128::from(wanted_beginning.clamp(least, most) - least) * (high - low) as u128;
                let at = share / (u128::from(most - least) + 1);
                low + usize::try_from(at).unwrap_or(0).min(high - low - 1)
            }
            _ => low + (high - low) / 2,
        };
        let found = &sorted[middle][..32];
        match found.cmp(&wanted.0[..]) {
            Ordering::Less => (low, least) = (middle + 1, beginning(found)),
            Ordering::Greater => (high, most) = (middle, beginning(found)),
            Ordering::Equal => return Ok(middle),
        }
    }
    Err(low)
}
