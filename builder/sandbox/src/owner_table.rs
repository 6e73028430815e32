//! Owners of what cannot carry a note, in a file: init writes them while the step runs, the builder reads them after it.
//!
//! ```text
//! level 0: 256 blocks │ level 1: 4 times as many │ level 2: 4 times as many │ …
//!               block: 32 slots, taken from the front      slot: number, born, mark, uid, gid
//! ```
//!
//! A hash table that grows where it is, and of which nothing is in memory. An inode is in the block of level 0 that its
//! hash says; where that was full before it came, in one of level 1, for which two more bits of the hash count; and so on.
//! Nothing is ever taken out, so a free slot ends the search; and whatever is in the file, that reads no more than a block
//! of each level. Where nobody was, the file has holes: a thousand owners take 256 KiB of disk, a million some 85 MiB.

use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;
use rustix::path::Arg;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

const KEY_SIZE_BYTES: usize = 20;
/// A power of two: no slot is in two pages.
const SLOT_SIZE_BYTES: usize = 32;
const BLOCK_SLOTS: usize = if cfg!(test) { 2 } else { 32 };
const BLOCK_SIZE_BYTES: usize = BLOCK_SLOTS * SLOT_SIZE_BYTES;
/// Of level 0.
const BLOCKS: u64 = if cfg!(test) { 1 } else { 256 };
/// How many times as many blocks the next level has.
const GROWTH: u64 = 4;
/// Room for more than a hundred million owners: the disk is the limit.
const LEVELS: usize = if cfg!(test) { 4 } else { 8 };
/// In a slot that is taken.
const TAKEN: u32 = 1;

/// Owners that a step gives to links, pipes and devices. The step itself cannot open the file; if it could, only they would
/// be wrong.
#[derive(Clone, Debug)]
pub struct OwnerTable {
    file: Arc<OwnedFd>,
}

/// One thing in the merged root, as long as it lives and after: a later thing of the same number was born later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Inode {
    number: u64,
    /// Seconds and nanoseconds; zero where the file system does not say.
    born: (i64, u32),
}

/// Where an inode is, or would be.
struct Slot {
    offset: u64,
    owner: Option<(u32, u32)>,
}

impl Inode {
    /// That of what has this name in a directory.
    pub(crate) fn at(dir: impl AsFd, name: impl Arg, flags: AtFlags) -> Result<Inode, Errno> {
        let stat = rustix::fs::statx(dir, name, flags, StatxFlags::INO | StatxFlags::BTIME)?;
        let has_birth = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
        let born = if has_birth { (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec) } else { (0, 0) };
        Ok(Inode { number: stat.stx_ino, born })
    }

    fn to_key(self) -> [u8; KEY_SIZE_BYTES] {
        let mut key = [0; KEY_SIZE_BYTES];
        key[..8].copy_from_slice(&self.number.to_le_bytes());
        key[8..16].copy_from_slice(&self.born.0.to_le_bytes());
        key[16..].copy_from_slice(&self.born.1.to_le_bytes());
        key
    }

    /// The same in builder and init, which are one program.
    fn to_hash(self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

impl OwnerTable {
    /// In an empty file that can be read and written.
    pub fn in_file(file: impl Into<OwnedFd>) -> OwnerTable {
        OwnerTable { file: Arc::new(file.into()) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        rustix::fs::fstat(&self.file).is_ok_and(|stat| stat.st_size == 0)
    }

    /// The owner that was set last.
    pub(crate) fn get(&self, inode: Inode) -> Result<Option<(u32, u32)>, Errno> {
        Ok(self.find(inode)?.and_then(|slot| slot.owner))
    }

    /// ENOSPC where there is no room, in the table or on the disk.
    pub(crate) fn set(&self, inode: Inode, (uid, gid): (u32, u32)) -> Result<(), Errno> {
        let Slot { offset, .. } = self.find(inode)?.ok_or(Errno::NOSPC)?;
        let mut bytes = [0; SLOT_SIZE_BYTES];
        bytes[..KEY_SIZE_BYTES].copy_from_slice(&inode.to_key());
        for (place, number) in bytes[KEY_SIZE_BYTES..].chunks_exact_mut(4).zip([TAKEN, uid, gid]) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let count = rustix::io::retry_on_intr(|| rustix::io::pwrite(&self.file, &bytes, offset))?;
        if count == bytes.len() { Ok(()) } else { Err(Errno::NOSPC) }
    }

    /// The inode's slot, or the free one that it takes; `None` if its blocks are full.
    fn find(&self, inode: Inode) -> Result<Option<Slot>, Errno> {
        let (key, hash) = (inode.to_key(), inode.to_hash());
        let (mut first, mut blocks) = (0, BLOCKS);
        for _ in 0..LEVELS {
            let start = (first + hash % blocks) * BLOCK_SIZE_BYTES as u64;
            let block = self.block(start)?;
            for (slot, offset) in block.chunks_exact(SLOT_SIZE_BYTES).zip((start..).step_by(SLOT_SIZE_BYTES))
            {
                let number =
                    |at: usize| u32::from_le_bytes([slot[at], slot[at + 1], slot[at + 2], slot[at + 3]]);
                if number(KEY_SIZE_BYTES) != TAKEN {
                    return Ok(Some(Slot { offset, owner: None }));
                }
                if slot[..KEY_SIZE_BYTES] == key {
                    let owner = (number(KEY_SIZE_BYTES + 4), number(KEY_SIZE_BYTES + 8));
                    return Ok(Some(Slot { offset, owner: Some(owner) }));
                }
            }
            first += blocks;
            blocks *= GROWTH;
        }
        Ok(None)
    }

    /// What is beyond the end of the file is as free as its holes.
    fn block(&self, start: u64) -> Result<[u8; BLOCK_SIZE_BYTES], Errno> {
        let mut block = [0; BLOCK_SIZE_BYTES];
        let mut filled = 0;
        while filled < block.len() {
            let at = start + filled as u64;
            match rustix::io::retry_on_intr(|| rustix::io::pread(&self.file, &mut block[filled..], at))? {
                0 => break,
                count => filled += count,
            }
        }
        Ok(block)
    }
}

impl AsFd for OwnerTable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests;
