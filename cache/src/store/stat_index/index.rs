//! The last scan's index, as it lies on the disk: read where something is looked for, and nowhere else.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::rows::{BLOCK_BYTES_MAX, Block, Branch, FOOT_BYTES, Foot, Part, RULES_BYTES, Row};
use super::stat::{FileStat, STAT_BYTES};
use crate::path::compare;
use crate::tree::NodeDigest;

/// Read first, from the end: the foot, the topmost block, and all there is of a small context.
const TAIL_BYTES: u64 = if cfg!(test) { 600 } else { 16 << 10 };
/// Blocks in memory, those last used: the way to one row, and the rows around it. A quarter of a MiB at most, as a rule 128 KiB.
const HELD_BLOCKS: usize = if cfg!(test) { 3 } else { 16 };

/// The index of one context. Its file is replaced, never changed, so what is read late belongs to what was read early.
#[derive(Debug, Default)]
pub struct StatIndex {
    file: Option<File>,
    foot: Foot,
    /// The last bytes of its parts, and where they begin.
    tail: Vec<u8>,
    tail_at: u64,
    /// The last used first, with their places.
    blocks: Mutex<Vec<(u64, Arc<Block>)>>,
    /// True once something was read that is not as it was written.
    is_damaged: AtomicBool,
}

/// What leads to a directory of the index is not as it was written: nothing can be said of what is in the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stat index is damaged")]
pub struct IndexDamaged;

/// A directory of the index.
#[derive(Debug, Clone)]
pub struct KnownDir {
    block: Arc<Block>,
    /// In the block, where it was found to be.
    row: usize,
}

impl KnownDir {
    pub(super) fn row(&self) -> Row<'_> {
        self.block.row(self.row).expect("a block has as many rows as were found in it")
    }

    /// Its place: directories are sorted by path.
    pub fn place(&self) -> usize {
        self.block.first as usize + self.row
    }

    /// Below the context's root.
    pub fn path(&self) -> &[u8] {
        self.block.path(self.row)
    }

    /// Its stat before it was listed.
    pub fn stat(&self) -> &[u8; STAT_BYTES] {
        self.row().stat
    }

    /// True when the record is all that is in it for as long as its stat does not move. Then it has no xattrs.
    pub fn is_trusted(&self) -> bool {
        self.row().is_trusted
    }

    /// True when the directory itself is left out, and there for what is brought back in it.
    pub fn is_excluded(&self) -> bool {
        self.row().is_excluded
    }

    /// Its node, with all below it.
    pub fn node(&self) -> NodeDigest {
        self.row().node
    }

    /// Permissions.
    pub(super) fn mode(&self) -> u32 {
        FileStat::from_bytes(self.stat()).mode & 0o7777
    }
}

impl StatIndex {
    /// An index that knows nothing.
    pub fn empty() -> Self {
        Self::default()
    }

    /// `None` for anything that is not written here.
    pub(super) fn open(file: File) -> Option<Self> {
        let file_bytes = file.metadata().ok()?.len();
        let tail_at = file_bytes.saturating_sub(TAIL_BYTES);
        let mut tail = vec![0; usize::try_from(file_bytes - tail_at).ok()?];
        read_at(&file, &mut tail, tail_at)?;
        let (_, foot) = tail.split_last_chunk::<FOOT_BYTES>()?;
        let foot = Foot::parse(foot, file_bytes - FOOT_BYTES as u64)?;
        tail.truncate(tail.len() - FOOT_BYTES);
        let index = Self { file: Some(file), foot, tail, tail_at, ..Self::default() };
        index.block(foot.top, foot.levels - 1, 0).ok()?;
        Some(index)
    }

    /// True when these rules chose what is in it.
    pub fn is_by(&self, rules: &[u8; RULES_BYTES]) -> bool {
        !self.is_empty() && self.foot.rules == *rules
    }

    /// Number of directories.
    pub fn len(&self) -> usize {
        self.foot.rows as usize
    }

    /// True when it knows nothing.
    pub fn is_empty(&self) -> bool {
        self.foot.rows == 0
    }

    /// Number of files.
    pub fn files(&self) -> u64 {
        self.foot.files
    }

    /// True when something was read of it that is damaged: then it is to be replaced.
    pub(super) fn is_damaged(&self) -> bool {
        self.is_damaged.load(Ordering::Relaxed)
    }

    /// Gives what was read, or else remembers that it is damaged.
    pub(super) fn noted<T>(&self, read: Option<T>) -> Option<T> {
        if read.is_none() {
            self.is_damaged.store(true, Ordering::Relaxed);
        }
        read
    }

    /// The directory at a place below [`Self::len`]; they are sorted by path.
    pub fn dir(&self, place: usize) -> Result<KnownDir, IndexDamaged> {
        let number =
            u32::try_from(place).ok().filter(|number| *number < self.foot.rows).ok_or(IndexDamaged)?;
        let has = |block: &Block| (block.first as usize..block.first as usize + block.len()).contains(&place);
        let block = match self.held(has) {
            Some(block) => block,
            None => self.descend(|above| above.branch_of_number(number))?,
        };
        let row = place.checked_sub(block.first as usize).filter(|row| *row < block.len());
        Ok(KnownDir { row: row.ok_or(IndexDamaged)?, block })
    }

    /// The directory at `path`, if it has one.
    pub fn find(&self, path: &[u8]) -> Result<Option<KnownDir>, IndexDamaged> {
        if self.is_empty() {
            return Ok(None);
        }
        let block = self.around(path)?;
        let row = block.before(path);
        let is_there = row < block.len() && block.path(row) == path;
        Ok(is_there.then_some(KnownDir { block, row }))
    }

    /// The place behind a directory and all that is below it.
    pub fn after(&self, dir: &KnownDir) -> Result<usize, IndexDamaged> {
        if dir.path().is_empty() {
            return Ok(self.len());
        }
        // Nothing below it is behind this, and no other path before: only `/` sorts before it.
        let end = [dir.path(), b"\x01"].concat();
        let block = self.around(&end)?;
        let place = block.first as usize + block.before(&end);
        // Of what is out of order, too, none comes twice.
        Ok(place.clamp(dir.place() + 1, self.len()))
    }

    /// Places of the directories in one. Nothing follows an error.
    pub fn dirs_in(&self, dir: &KnownDir) -> impl Iterator<Item = Result<usize, IndexDamaged>> {
        let (holder, mut next) = (dir.clone(), dir.place() + 1);
        std::iter::from_fn(move || {
            let end = self.len();
            if next >= end {
                return None;
            }
            let place = std::mem::replace(&mut next, end);
            let inner = match self.dir(place) {
                Ok(inner) if is_below(inner.path(), holder.path()) => inner,
                Ok(_) => return None,
                Err(damaged) => return Some(Err(damaged)),
            };
            Some(self.after(&inner).map(|after| {
                next = after;
                place
            }))
        })
    }

    /// The block of rows around a path.
    fn around(&self, path: &[u8]) -> Result<Arc<Block>, IndexDamaged> {
        let has = |block: &Block| {
            compare(block.path(0), path).is_le() && compare(path, block.path(block.len() - 1)).is_le()
        };
        match self.held(has) {
            Some(block) => Ok(block),
            None => self.descend(|above| above.branch_of_path(path)),
        }
    }

    /// A block of rows in memory for which it is true.
    fn held(&self, has: impl Fn(&Block) -> bool) -> Option<Arc<Block>> {
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let at = blocks.iter().position(|(_, block)| block.level == 0 && has(block))?;
        blocks[..=at].rotate_right(1);
        Some(Arc::clone(&blocks[0].1))
    }

    /// The block of rows to which the chosen branches lead.
    fn descend(&self, choose: impl Fn(&Block) -> Option<Branch<'_>>) -> Result<Arc<Block>, IndexDamaged> {
        let mut level = self.foot.levels.checked_sub(1).ok_or(IndexDamaged)?;
        let mut block = self.block(self.foot.top, level, 0)?;
        while level > 0 {
            let Branch { number, block: part, .. } = choose(&block).ok_or(IndexDamaged)?;
            level -= 1;
            block = self.block(part, level, number)?;
        }
        Ok(block)
    }

    fn block(&self, part: Part, level: u8, first: u32) -> Result<Arc<Block>, IndexDamaged> {
        let lock = || self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut blocks = lock();
            let is_it =
                |(at, block): &(u64, Arc<Block>)| (*at, block.level, block.first) == (part.at, level, first);
            if let Some(at) = blocks.iter().position(is_it) {
                blocks[..=at].rotate_right(1);
                return Ok(Arc::clone(&blocks[0].1));
            }
        }
        let bytes = self.read(part, BLOCK_BYTES_MAX).ok_or(IndexDamaged)?;
        let block = Arc::new(Block::parse(bytes, level, first).ok_or(IndexDamaged)?);
        let mut blocks = lock();
        blocks.truncate(HELD_BLOCKS - 1);
        blocks.insert(0, (part.at, Arc::clone(&block)));
        Ok(block)
    }

    /// True when a part is inside the file.
    pub(super) fn has(&self, part: Part) -> bool {
        let end = self.tail_at + self.tail.len() as u64;
        part.at.checked_add(u64::from(part.bytes)).is_some_and(|part_end| part_end <= end)
    }

    /// The bytes of a part; `None` when it is damaged, or has more than `most` of them.
    pub(super) fn read(&self, part: Part, most: usize) -> Option<Vec<u8>> {
        self.noted(self.read_part(part, most))
    }

    fn read_part(&self, part: Part, most: usize) -> Option<Vec<u8>> {
        let length = usize::try_from(part.bytes).ok().filter(|length| *length <= most && self.has(part))?;
        let mut bytes = Vec::new();
        self.read_some(part.at, length, length, &mut bytes)?;
        bytes.truncate(length);
        (crc32fast::hash(&bytes) == part.crc).then_some(bytes)
    }

    /// Appends `least` bytes from a place on, which the file has, and what of `ahead` it has as well.
    pub(super) fn read_some(&self, at: u64, least: usize, ahead: usize, to: &mut Vec<u8>) -> Option<()> {
        let end = self.tail_at + self.tail.len() as u64;
        let length = least.max(ahead).min(usize::try_from(end.checked_sub(at)?).unwrap_or(usize::MAX));
        if let Some(from) = at.checked_sub(self.tail_at) {
            let from = usize::try_from(from).ok()?;
            to.extend_from_slice(self.tail.get(from..from.checked_add(length)?)?);
            return Some(());
        }
        let before = to.len();
        to.resize(before + length, 0);
        read_at(self.file.as_ref()?, &mut to[before..], at)
    }
}

pub(super) fn is_below(path: &[u8], dir: &[u8]) -> bool {
    dir.is_empty() || path.strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&b'/'))
}

/// Fills `bytes` from this place on.
fn read_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> Option<()> {
    while !bytes.is_empty() {
        match rustix::io::pread(file, &mut *bytes, at) {
            Ok(0) => return None,
            Ok(count) => {
                bytes = &mut bytes[count..];
                at += count as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
    Some(())
}
