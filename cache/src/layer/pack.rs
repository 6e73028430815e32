//! Contents of many files in one file.
//!
//! ```text
//! "rbpack1\0"  contents  index  count u64  first 32 bytes of BLAKE3 of index and count
//! index = count × { content 32 bytes · offset u64 · length u64 }, ascending by content
//! ```
//!
//! Between contents there may be bytes that the index does not lead to: a content that was written once more.
//!
//! A layer that nothing has to mount is kept like this: one sequential write instead of a dozen system calls a file,
//! and the next layer that has most of the same files shares the pack instead of holding them again. Contents are
//! known by their digest; whoever reads one hashes it.

mod index;
mod reader;
mod writer;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use index::{ENTRY_BYTES, Index};
pub use reader::PackReader;
pub use writer::PackWriter;

use crate::tree::ContentDigest;

const MAGIC: &[u8; 8] = b"rbpack1\0";
/// Count and seal.
const TAIL_BYTES: u64 = 8 + 32;
/// Bytes of contents that are written or read at once.
const BUFFER_BYTES: usize = 256 << 10;
/// Entries of the index that are hashed and written or read at once, 48 KiB.
const ENTRIES_AT_ONCE: usize = 1024;

/// A file that is no pack.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// It cannot be read.
    #[error("read a pack of file contents")]
    Io(#[from] io::Error),
    /// Its bytes are not what was written.
    #[error("a pack of file contents is damaged: {0}")]
    Damaged(&'static str),
}

/// Where a content is in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// A complete pack, open for reading. In memory is its index if that is small, else half a byte a content.
#[derive(Debug)]
pub struct Pack {
    file: File,
    index: Index,
    is_just_written: bool,
}

impl Pack {
    /// Opens a pack and checks its index; contents are checked by whoever reads them.
    pub fn open(file: File) -> Result<Self, PackError> {
        let damaged = |why| Err(PackError::Damaged(why));
        let size = file.metadata()?.len();
        let Some(body) = size.checked_sub(TAIL_BYTES).filter(|body| *body >= MAGIC.len() as u64) else {
            return damaged("it is cut short");
        };
        let mut magic = [0; MAGIC.len()];
        file.read_exact_at(&mut magic, 0)?;
        if &magic != MAGIC {
            return damaged("it is something else");
        }
        let (mut count, mut seal) = ([0; 8], [0; 32]);
        file.read_exact_at(&mut count, body)?;
        file.read_exact_at(&mut seal, body + 8)?;
        let count = u64::from_le_bytes(count);
        let start = count.checked_mul(ENTRY_BYTES as u64).and_then(|length| body.checked_sub(length));
        let start = start.filter(|start| *start >= MAGIC.len() as u64);
        let (Some(start), Ok(len)) = (start, usize::try_from(count)) else {
            return damaged("its index is larger than the file");
        };
        let index = Index::open(&file, start, len, &seal)?;
        Ok(Self { file, index, is_just_written: false })
    }

    /// Says that this process has just written it, hashing what it wrote: whoever reads a content need not hash it.
    pub(crate) fn just_written(self) -> Self {
        Self { is_just_written: true, ..self }
    }

    /// See [`Self::just_written`].
    pub(crate) fn is_just_written(&self) -> bool {
        self.is_just_written
    }

    /// Number of contents.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// True when it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all contents, those among them that the index does not lead to.
    pub fn bytes(&self) -> u64 {
        self.index.start() - MAGIC.len() as u64
    }

    /// Where a content is; `None` when it is not here. A large index is read for it: an error when that fails, or when it was
    /// changed since the pack was opened and shows it.
    pub fn find(&self, content: &ContentDigest) -> io::Result<Option<Place>> {
        self.index.find(&self.file, content)
    }

    /// Reads everything; true when every content has its digest.
    pub fn verify(&self) -> io::Result<bool> {
        let (mut block, mut buffer) = (index::empty_block(), vec![0; BUFFER_BYTES]);
        for at in 0..self.index.blocks() {
            for entry in self.index.block(&self.file, at, &mut block)? {
                if self.hash(index::place(entry), &mut buffer)? != index::content(entry) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn hash(&self, place: Place, buffer: &mut [u8]) -> io::Result<ContentDigest> {
        let Place { mut offset, mut length } = place;
        let mut hash = blake3::Hasher::new();
        while length > 0 {
            let count = usize::try_from(length).unwrap_or(usize::MAX).min(buffer.len());
            self.read_at(&mut buffer[..count], offset)?;
            hash.update(&buffer[..count]);
            offset += count as u64;
            length -= count as u64;
        }
        Ok(ContentDigest(*hash.finalize().as_bytes()))
    }

    /// Reads bytes of a content. Shorter only at the end of the file, which a whole pack does not meet.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    /// The file, to copy from.
    pub fn file(&self) -> &File {
        &self.file
    }
}

#[cfg(test)]
mod tests;
