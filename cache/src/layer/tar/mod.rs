//! The tar format: one strict reader, one deterministic writer.
//!
//! Understood: v7, ustar, GNU (long names, base-256 numbers) and PAX (`path`, `linkpath`, `size`, `uid`, `gid`,
//! `mtime`, `SCHILY.xattr.*`). Where two readers could disagree about an archive, ours refuses it: a wrong checksum,
//! a malformed or repeated extension, a size on an entry that has no body, sparse files, unknown types.

mod block;
mod pax;
mod reader;
mod writer;

use std::collections::BTreeMap;
use std::io;

pub(super) use block::{Block, checksum_holds};
pub(super) use reader::TarReader;
pub(super) use writer::TarWriter;

use super::diff::Mtime;

pub(super) const BLOCK_BYTES: usize = 512;

/// One archive entry, names as they stand in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) path: Vec<u8>,
    pub(super) kind: MemberKind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Mtime,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MemberKind {
    File { size: u64 },
    Hardlink { target: Vec<u8> },
    Symlink { target: Vec<u8> },
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Dir,
    Fifo,
}

/// Why bytes are not an archive that rbuild reads.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// Reading failed; a limit of the decompressor arrives here too, as the source.
    #[error("read the archive at byte {at}")]
    Read {
        /// Offset in the uncompressed archive.
        at: u64,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The stream ends inside an entry.
    #[error("the archive is cut off at byte {at}")]
    Truncated {
        /// Offset in the uncompressed archive.
        at: u64,
    },
    /// The header's checksum does not match, so this is not a header.
    #[error("no valid tar header at byte {at}: the checksum does not match")]
    Checksum {
        /// Offset of the header.
        at: u64,
    },
    /// A numeric field holds something else, a negative number where none may be, or one that does not fit.
    #[error("the {field} of the entry at byte {at} is not a number that fits")]
    Number {
        /// Field name.
        field: &'static str,
        /// Offset of the header.
        at: u64,
    },
    /// A PAX record is malformed or repeated.
    #[error("the PAX records at byte {at} are malformed: {what}")]
    Pax {
        /// Offset of the extension's header.
        at: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// A PAX record or GNU long name is over the limit.
    #[error("the extension at byte {at} has {size} bytes, more than the {max} allowed")]
    ExtensionTooLong {
        /// Offset of the extension's header.
        at: u64,
        /// Its size.
        size: u64,
        /// Limit.
        max: usize,
    },
    /// Xattrs of one entry are over the limit.
    #[error("the xattrs of the entry at byte {at} take more than the {max} bytes allowed")]
    XattrsTooLong {
        /// Offset of the header.
        at: u64,
        /// Limit.
        max: usize,
    },
    /// An extension describes nothing: the archive ends, or another one of the kind follows.
    #[error("the extension at byte {at} belongs to no entry")]
    StrayExtension {
        /// Offset of the extension's header.
        at: u64,
    },
    /// A sparse file.
    #[error("the entry `{name}` is a sparse file, which image layers do not carry")]
    Sparse {
        /// Entry name.
        name: String,
    },
    /// A type flag rbuild does not know.
    #[error("the entry `{name}` has the unknown type {flag:#04x}")]
    UnknownType {
        /// Entry name.
        name: String,
        /// Type flag byte.
        flag: u8,
    },
    /// An entry that has no body states a size: readers disagree where the next header is.
    #[error("the entry `{name}` has no content by its type but states {size} bytes")]
    SizeWithoutBody {
        /// Entry name.
        name: String,
        /// Stated size.
        size: u64,
    },
}

#[cfg(test)]
pub(super) mod tests;
