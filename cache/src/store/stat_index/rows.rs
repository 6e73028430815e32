//! Bytes of what leads to records: rows, the blocks that they are in, and where to begin.
//!
//! ```text
//! index = part… · foot                                 a part comes after those that it leads to
//! part  = piece | list | block
//! piece = entry…                                       of a directory's record, see `format` and `pieces`
//! list  = (bytes u32 · crc32 · first name's length u16 · first name)…   of the pieces of a record that has several
//! block = row… | branch…                               sorted by path, some 8 KiB
//! row   = path length u16 · path · stat · flags u8 · node 32 bytes · files u32 · bytes u64
//!       · record bytes u32 · place of its only piece, or of the list of them, which lies behind them
//! branch = path length u16 · path · number u32 · place   of a block: where its first row is, and how many come before
//! place = at u64 · bytes u32 · crc32
//! foot  = rules 32 bytes · number of rows u32 · files u64 · levels u8 · place of the topmost block
//!       · crc32 of all before it in the foot · magic
//! ```
//!
//! Every part has its checksum in the one that leads to it, and those at the top in the foot: to believe a row or a piece,
//! the parts on the way to it are read and no others. A part of another index at the same place is not believed either.

use super::format::{take, take_ref};
use super::stat::STAT_BYTES;
use crate::path::compare;
use crate::tree::{NodeDigest, PATH_BYTES_MAX};

/// Ends every index; the digit is its version.
const MAGIC: &[u8; 8] = b"rbstats6";
pub(super) const RULES_BYTES: usize = 32;
const PLACE_BYTES: usize = 8 + 4 + 4;
pub(super) const FOOT_BYTES: usize = RULES_BYTES + 4 + 8 + 1 + PLACE_BYTES + 4 + 8;

/// A block ends before it would have more, unless it had less than two rows or branches then.
pub(super) const BLOCK_BYTES: usize = if cfg!(test) { 400 } else { 8 << 10 };
const ROW_BYTES_MAX: usize = 2 + PATH_BYTES_MAX + STAT_BYTES + 1 + 32 + 4 + 8 + 4 + PLACE_BYTES;
pub(super) const BLOCK_BYTES_MAX: usize = BLOCK_BYTES + 2 * ROW_BYTES_MAX;
/// Blocks above each other, of which each has two below it at least, for as many rows as there may be.
pub(super) const LEVELS_MAX: u8 = 33;

/// The record is all that is in the directory for as long as its stat does not move.
const TRUSTED: u8 = 1;
/// The directory itself is left out; it is there for what is brought back in it.
const EXCLUDED: u8 = 2;
/// The record has several pieces.
const LISTED: u8 = 4;

/// Where a part is, and what its bytes must give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Part {
    pub(super) at: u64,
    pub(super) bytes: u32,
    pub(super) crc: u32,
}

impl Part {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.at.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&self.crc.to_le_bytes());
    }

    fn take(rest: &mut &[u8]) -> Option<Self> {
        Some(Self {
            at: u64::from_le_bytes(take(rest)?),
            bytes: u32::from_le_bytes(take(rest)?),
            crc: u32::from_le_bytes(take(rest)?),
        })
    }
}

/// Where a directory's record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct RecordPlace {
    /// Of all its entries.
    pub(super) bytes: u32,
    /// True when it has several pieces. Then `part` is the list of them, and they lie before it.
    pub(super) is_listed: bool,
    pub(super) part: Part,
}

/// One directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row<'a> {
    pub(super) path: &'a [u8],
    pub(super) stat: &'a [u8; STAT_BYTES],
    pub(super) is_trusted: bool,
    pub(super) is_excluded: bool,
    pub(super) node: NodeDigest,
    /// Files in it, and their bytes.
    pub(super) files: u32,
    pub(super) bytes: u64,
    pub(super) record: RecordPlace,
}

impl<'a> Row<'a> {
    /// Appends it; `None` when its path is too long.
    pub(super) fn write(&self, out: &mut Vec<u8>) -> Option<()> {
        write_path(self.path, out)?;
        out.extend_from_slice(self.stat);
        let flags =
            [(self.is_trusted, TRUSTED), (self.is_excluded, EXCLUDED), (self.record.is_listed, LISTED)];
        out.push(flags.into_iter().fold(0, |all, (is_set, flag)| if is_set { all | flag } else { all }));
        out.extend_from_slice(&self.node.0);
        out.extend_from_slice(&self.files.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&self.record.bytes.to_le_bytes());
        self.record.part.write(out);
        Some(())
    }

    fn take(rest: &mut &'a [u8]) -> Option<Self> {
        let path = take_path(rest)?;
        let stat = take_ref(rest)?;
        let [flags] = take(rest)?;
        Some(Self {
            path,
            stat,
            is_trusted: flags & TRUSTED != 0,
            is_excluded: flags & EXCLUDED != 0,
            node: NodeDigest(take(rest)?),
            files: u32::from_le_bytes(take(rest)?),
            bytes: u64::from_le_bytes(take(rest)?),
            record: RecordPlace {
                bytes: u32::from_le_bytes(take(rest)?),
                is_listed: flags & LISTED != 0,
                part: Part::take(rest)?,
            },
        })
    }
}

/// A block as a block above it has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Branch<'a> {
    /// Of its first row.
    pub(super) path: &'a [u8],
    pub(super) number: u32,
    pub(super) block: Part,
}

impl<'a> Branch<'a> {
    /// Appends it; `None` when its path is too long.
    pub(super) fn write(&self, out: &mut Vec<u8>) -> Option<()> {
        write_path(self.path, out)?;
        out.extend_from_slice(&self.number.to_le_bytes());
        self.block.write(out);
        Some(())
    }

    fn take(rest: &mut &'a [u8]) -> Option<Self> {
        let path = take_path(rest)?;
        Some(Self { path, number: u32::from_le_bytes(take(rest)?), block: Part::take(rest)? })
    }
}

/// A block in memory. What is in it was found to be rows, or branches, in order.
#[derive(Debug)]
pub(super) struct Block {
    /// How many blocks are below each other from here on: rows are in those that have none.
    pub(super) level: u8,
    /// Number of its first row.
    pub(super) first: u32,
    bytes: Vec<u8>,
    starts: Vec<u32>,
}

impl Block {
    /// `None` for what is none.
    pub(super) fn parse(bytes: Vec<u8>, level: u8, first: u32) -> Option<Self> {
        let (mut starts, mut rest) = (Vec::new(), &bytes[..]);
        let mut last: Option<(&[u8], u32)> = None;
        while !rest.is_empty() {
            starts.push(u32::try_from(bytes.len() - rest.len()).ok()?);
            let (path, number) = match level {
                0 => (Row::take(&mut rest)?.path, first.checked_add(starts.len() as u32)?),
                _ => Branch::take(&mut rest).map(|branch| (branch.path, branch.number))?,
            };
            let is_next = match last {
                Some((before, least)) => compare(before, path).is_lt() && least < number,
                None => level == 0 || number == first,
            };
            last = is_next.then_some((path, number));
            last?;
        }
        starts.shrink_to_fit();
        (!starts.is_empty()).then_some(Self { level, first, bytes, starts })
    }

    /// Number of its rows or branches.
    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    fn from(&self, at: usize) -> Option<&[u8]> {
        self.bytes.get(*self.starts.get(at)? as usize..)
    }

    /// The path of a row or branch below [`Self::len`].
    pub(super) fn path(&self, at: usize) -> &[u8] {
        self.from(at).and_then(|mut rest| take_path(&mut rest)).unwrap_or_default()
    }

    pub(super) fn row(&self, at: usize) -> Option<Row<'_>> {
        Row::take(&mut self.from(at)?)
    }

    pub(super) fn branch(&self, at: usize) -> Option<Branch<'_>> {
        Branch::take(&mut self.from(at)?)
    }

    /// How many of its paths, or of what they are the first of, are before a path.
    pub(super) fn before(&self, path: &[u8]) -> usize {
        partition(self.len(), |at| compare(self.path(at), path).is_lt())
    }

    /// The branch in which a row of this path would be; the first one for what is before all.
    pub(super) fn branch_of_path(&self, path: &[u8]) -> Option<Branch<'_>> {
        let after = partition(self.len(), |at| compare(self.path(at), path).is_le());
        self.branch(after.saturating_sub(1))
    }

    /// The branch that has the row of this number.
    pub(super) fn branch_of_number(&self, number: u32) -> Option<Branch<'_>> {
        let is_before = |at| self.branch(at).is_some_and(|branch| branch.number <= number);
        self.branch(partition(self.len(), is_before).checked_sub(1)?)
    }
}

/// How many of `0..len` come before the first for which it is false.
fn partition(len: usize, is_before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, len);
    while low < high {
        let middle = low + (high - low) / 2;
        if is_before(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

/// What ends an index.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Foot {
    pub(super) rules: [u8; RULES_BYTES],
    pub(super) rows: u32,
    pub(super) files: u64,
    /// Blocks above each other.
    pub(super) levels: u8,
    pub(super) top: Part,
}

impl Foot {
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FOOT_BYTES);
        out.extend_from_slice(&self.rules);
        out.extend_from_slice(&self.rows.to_le_bytes());
        out.extend_from_slice(&self.files.to_le_bytes());
        out.push(self.levels);
        self.top.write(&mut out);
        out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
        out.extend_from_slice(MAGIC);
        debug_assert_eq!(out.len(), FOOT_BYTES, "every field has its place");
        out
    }

    /// The foot of what has so many bytes of parts; `None` for anything that is not written here.
    pub(super) fn parse(bytes: &[u8; FOOT_BYTES], parts_bytes: u64) -> Option<Self> {
        let (sealed, seal) = bytes.split_at(FOOT_BYTES - 4 - MAGIC.len());
        let (crc, magic) = seal.split_first_chunk()?;
        if magic != MAGIC || crc32fast::hash(sealed) != u32::from_le_bytes(*crc) {
            return None;
        }
        let rest = &mut &*sealed;
        let rules = take(rest)?;
        let (rows, files) = (u32::from_le_bytes(take(rest)?), u64::from_le_bytes(take(rest)?));
        let [levels] = take(rest)?;
        let top = Part::take(rest)?;
        // The topmost block is written last.
        let is_whole = top.at.checked_add(u64::from(top.bytes)) == Some(parts_bytes);
        let is_sane = (1..=LEVELS_MAX).contains(&levels) && rows > 0;
        (is_whole && is_sane).then_some(Self { rules, rows, files, levels, top })
    }
}

fn write_path(path: &[u8], out: &mut Vec<u8>) -> Option<()> {
    if path.len() > PATH_BYTES_MAX {
        return None;
    }
    out.extend_from_slice(&u16::try_from(path.len()).ok()?.to_le_bytes());
    out.extend_from_slice(path);
    Some(())
}

fn take_path<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::from(u16::from_le_bytes(take(rest)?));
    rest.split_off(..length)
}
