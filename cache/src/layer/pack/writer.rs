//! Making a pack.

use std::cmp::Ordering;
use std::io::{self, BufWriter, Write};

use hashbrown::HashTable;

use super::index::{self, Entry};
use super::{BUFFER_BYTES, ENTRIES_AT_ONCE, MAGIC, Place};
use crate::scratch::Scratch;
use crate::sorter::Sorter;
use crate::tree::ContentDigest;

/// Contents that are known to come again, at least: with so many a table of 65,536 places is full, and has 2 MiB.
#[cfg(not(test))]
const RECENT_MIN: usize = 57_344;
#[cfg(test)]
const RECENT_MIN: usize = 56;

type Compare = fn(&[u8], &[u8]) -> Ordering;

/// Makes a pack, content by content, in a memory of a dozen MiB however many there are.
///
/// A content that comes again after more than 57,344 others may be kept twice in the file. The index then has its first
/// place; the bytes at the other one are dead, and count in [`Self::bytes`] as they do on the disk.
pub struct PackWriter {
    out: BufWriter<Box<dyn Write + Send>>,
    at: u64,
    index: Sorter<Compare>,
    recent: Recent,
}

impl PackWriter {
    /// Writes into an empty file. What the index is made of goes to `scratch` when it is much.
    pub fn new(file: impl Write + Send + 'static, scratch: Scratch) -> io::Result<Self> {
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, Box::new(file) as Box<dyn Write + Send>);
        out.write_all(MAGIC)?;
        let index = Sorter::new(scratch, by_content as Compare);
        Ok(Self { out, at: MAGIC.len() as u64, index, recent: Recent::default() })
    }

    /// True when the pack is known to have this content: one of those that ended lately. It may have it all the same.
    pub fn has(&self, content: &ContentDigest) -> bool {
        self.recent.has(content)
    }

    /// Adds bytes of the content that [`Self::end`] will name.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Ends a content of `length` bytes, all written since the last one ended.
    pub fn end(&mut self, content: ContentDigest, length: u64) -> io::Result<()> {
        if self.has(&content) {
            return Ok(());
        }
        let place = Place { offset: self.at - length, length };
        self.index.push(&[&index::entry(&content, place)])?;
        self.recent.add(content);
        Ok(())
    }

    /// Bytes of contents so far.
    pub fn bytes(&self) -> u64 {
        self.at - MAGIC.len() as u64
    }

    /// Completes the file.
    pub fn finish(self) -> io::Result<()> {
        let Self { mut out, index, recent, .. } = self;
        drop(recent);
        let mut sorted = index.sorted()?;
        let (mut seal, mut count, mut last) = (blake3::Hasher::new(), 0_u64, None);
        let mut entries: Vec<Entry> = Vec::with_capacity(ENTRIES_AT_ONCE);
        let mut write = |entries: &mut Vec<Entry>| {
            seal.update(entries.as_flattened());
            count += entries.len() as u64;
            let written = out.write_all(entries.as_flattened());
            entries.clear();
            written
        };
        while let Some(record) = sorted.next()? {
            let entry = Entry::try_from(record).map_err(|_| io::ErrorKind::InvalidData)?;
            let content = index::content(&entry);
            if last.replace(content) == Some(content) {
                continue;
            }
            entries.push(entry);
            if entries.len() == ENTRIES_AT_ONCE {
                write(&mut entries)?;
            }
        }
        write(&mut entries)?;
        let count = count.to_le_bytes();
        seal.update(&count);
        out.write_all(&count)?;
        out.write_all(seal.finalize().as_bytes())?;
        out.flush()
    }
}

/// Orders entries; what came back from a disk as something else is in some order too.
fn by_content(a: &[u8], b: &[u8]) -> Ordering {
    a.get(..32).cmp(&b.get(..32))
}

/// The last [`RECENT_MIN`] contents at least, and at most twice as many.
#[derive(Default)]
struct Recent {
    young: HashTable<ContentDigest>,
    /// Those before; they go when there are as many young ones.
    old: HashTable<ContentDigest>,
}

impl Recent {
    fn has(&self, content: &ContentDigest) -> bool {
        let has = |table: &HashTable<ContentDigest>| table.find(hash(content), |it| it == content).is_some();
        has(&self.young) || has(&self.old)
    }

    /// Takes one that it has not.
    fn add(&mut self, content: ContentDigest) {
        if self.young.len() == RECENT_MIN {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        self.young.insert_unique(hash(&content), content, hash);
    }
}

/// Digests are spread evenly already.
fn hash(content: &ContentDigest) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|at| content.0[at]))
}
