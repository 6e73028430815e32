//! Writes an index from its first directory to its last. What is in memory of it is a block of each level.

use std::io::{self, Write};

use super::rows::{BLOCK_BYTES, Branch, Foot, Part, RULES_BYTES, RecordPlace, Row};

/// An index that is being written.
pub(super) struct IndexWriter<W> {
    out: W,
    at: u64,
    /// The block at hand of each level, that of rows first.
    levels: Vec<OpenBlock>,
    rows: u32,
    files: u64,
}

#[derive(Default)]
struct OpenBlock {
    bytes: Vec<u8>,
    len: usize,
    /// Path and number of the first row in it, or in the first block below it.
    path: Vec<u8>,
    number: u32,
}

impl<W: Write> IndexWriter<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, at: 0, levels: Vec::new(), rows: 0, files: 0 }
    }

    /// Where the next bytes are.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Adds bytes of a record.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Adds the row of a directory whose record was written. False when no index has room for it.
    pub(super) fn row(&mut self, row: &Row<'_>) -> io::Result<bool> {
        let mut bytes = Vec::new();
        let (Some(()), Some(next)) = (row.write(&mut bytes), self.rows.checked_add(1)) else {
            return Ok(false);
        };
        self.push(0, row.path, self.rows, &bytes)?;
        self.rows = next;
        self.files += u64::from(row.files);
        Ok(true)
    }

    fn push(&mut self, level: usize, path: &[u8], number: u32, bytes: &[u8]) -> io::Result<()> {
        if self.levels.len() == level {
            self.levels.push(OpenBlock::default());
        }
        let OpenBlock { bytes: held, len, .. } = &self.levels[level];
        if *len >= 2 && held.len() + bytes.len() > BLOCK_BYTES {
            self.end_block(level)?;
        }
        let block = &mut self.levels[level];
        if block.len == 0 {
            block.path.extend_from_slice(path);
            block.number = number;
        }
        block.bytes.extend_from_slice(bytes);
        block.len += 1;
        Ok(())
    }

    /// Writes the block at hand, and tells the level above.
    fn end_block(&mut self, level: usize) -> io::Result<()> {
        let OpenBlock { bytes, path, number, .. } = std::mem::take(&mut self.levels[level]);
        let block = self.part(&bytes)?;
        let mut branch = Vec::new();
        let is_written = Branch { path: &path, number, block }.write(&mut branch).is_some();
        debug_assert!(is_written, "the path was written in a row");
        self.push(level + 1, &path, number, &branch)
    }

    fn part(&mut self, bytes: &[u8]) -> io::Result<Part> {
        // A block has two rows at most beyond its usual length.
        let part = Part { at: self.at, bytes: bytes.len() as u32, crc: crc32fast::hash(bytes) };
        self.write(bytes)?;
        Ok(part)
    }

    /// Once all rows are added, one at least.
    pub(super) fn end(mut self, rules: [u8; RULES_BYTES]) -> io::Result<W> {
        let mut level = 0;
        while level + 1 < self.levels.len() {
            self.end_block(level)?;
            level += 1;
        }
        let top = self.levels.pop().unwrap_or_default();
        let top = self.part(&top.bytes)?;
        // There are no more than 32: each has two of the one below.
        let foot = Foot { rules, rows: self.rows, files: self.files, levels: level as u8 + 1, top };
        self.write(&foot.to_bytes())?;
        Ok(self.out)
    }
}

/// Where a record is that is copied to another place.
pub(super) fn moved(place: RecordPlace, at: u64) -> RecordPlace {
    let at = if place.is_listed { at + u64::from(place.bytes) } else { at };
    RecordPlace { part: Part { at, ..place.part }, ..place }
}
