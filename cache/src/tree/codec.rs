//! Canonical bytes of directory nodes and trees.
//!
//! ```text
//! node  = "RBD" 01, count, { name, entry }…          names strictly ascending
//!       | "RBP" 01, count, { first name, digest }…   parts of a large directory: two at least, likewise ascending
//! entry = tag, mode, uid, gid, count, { name, value }…xattrs, payload
//! tree  = "RBT" 01, meta, node digest, 0      when no file has several names
//!       | "RBT" 02, meta, node digest, count, digest…   the nodes of its links, see `links`
//! ```
//!
//! All integers are little-endian `u32` but sizes (`u64`) and tags (`u8`); all byte strings carry their length. One
//! value has exactly one encoding and the decoder takes nothing else, so equal bytes, equal digests and equal values
//! are the same thing. Any change here changes every digest: bump the version bytes and the golden tests together. Where the
//! parts of a large directory end is the rule of `writer`, where nodes of links do that of `links`; both are part of the format: when one
//! changes, so do the labels of the
//! keys (`builder/src/solve/keys.rs`), of chains' trees (`store/resolution.rs`), and the stat index's.

use std::collections::BTreeMap;

use super::{ContentDigest, DirEntries, DirNode, Entry, Kind, LinkNode, Links, Meta, NodeDigest, Part, Tree};

/// Longest name of a directory entry in bytes: Linux's `NAME_MAX`.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest symlink target or path in bytes: Linux's `PATH_MAX` without the NUL.
pub const PATH_BYTES_MAX: usize = 4095;
/// Longest xattr value in bytes: Linux's `XATTR_SIZE_MAX`.
pub const XATTR_BYTES_MAX: usize = 65_536;
/// Most xattrs of one entry; a 64 KiB name list (`XATTR_LIST_MAX`) holds about this many of the shortest names.
pub const XATTRS_MAX: usize = 8_192;
/// Longest encoding of one node or tree in bytes.
pub const ENCODED_BYTES_MAX: usize = 128 << 20;

const DIR_MAGIC: &[u8; 4] = b"RBD\x01";
const PARTS_MAGIC: &[u8; 4] = b"RBP\x01";
const TREE_MAGIC: &[u8; 4] = b"RBT\x01";
const LINKED_TREE_MAGIC: &[u8; 4] = b"RBT\x02";

const TAG_DIR: u8 = 1;
const TAG_FILE: u8 = 2;
const TAG_SYMLINK: u8 = 3;
const TAG_CHAR: u8 = 4;
const TAG_BLOCK: u8 = 5;
const TAG_FIFO: u8 = 6;

/// Why bytes are not a node or tree, or why a value has no valid encoding.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The first bytes name another format or version.
    #[error("not a {0} of a known version")]
    Magic(&'static str),
    /// Bytes end inside a value.
    #[error("the encoding ends early")]
    Truncated,
    /// Bytes go on after the value.
    #[error("{0} bytes follow the end of the encoding")]
    Trailing(usize),
    /// More bytes than [`ENCODED_BYTES_MAX`].
    #[error("an encoding of {0} bytes is over the limit of {ENCODED_BYTES_MAX}")]
    TooLong(usize),
    /// An unknown type tag.
    #[error("unknown entry type {0}")]
    Tag(u8),
    /// A name that no directory can hold, or is out of order.
    #[error("`{}` is not a valid name here", String::from_utf8_lossy(.0))]
    Name(Vec<u8>),
    /// A mode with bits above `0o7777`.
    #[error("mode {0:o} has bits that are not permissions")]
    Mode(u32),
    /// An empty, over-long or NUL-holding link target.
    #[error("a link target of {0} bytes is not valid")]
    Target(usize),
    /// Too many xattrs, one out of order, or one over the limits.
    #[error("extended attributes are not valid")]
    Xattrs,
    /// Too few parts of a directory.
    #[error("a directory in parts has only {0}")]
    Parts(u32),
    /// Links that are not sorted, or not written as they should be.
    #[error("the list of hard links is not valid")]
    Links,
}

impl DirNode {
    /// Canonical bytes, what [`NodeDigest`] is over.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Entries(entries) => {
                let mut out = Writer::entries();
                entries.iter().for_each(|(name, entry)| out.named(name, entry));
                out.counted(entries.len())
            }
            Self::Parts(parts) => {
                let mut out = Writer::headed(PARTS_MAGIC);
                for Part { first, node } in parts.iter() {
                    out.bytes(first);
                    out.0.extend_from_slice(&node.0);
                }
                out.counted(parts.len())
            }
            Self::Links(links) => links.bytes().to_vec(),
        }
    }

    /// Reads canonical bytes; takes nothing but what [`DirNode::encode`] gives for a valid node.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        if bytes.starts_with(PARTS_MAGIC) {
            return Self::decode_parts(bytes);
        }
        if LinkNode::begins(bytes) {
            return LinkNode::decode(bytes).map(Self::Links);
        }
        let mut input = Reader::new(bytes, DIR_MAGIC, "directory node")?;
        let count = input.u32()?;
        let mut entries = DirEntries::default();
        let mut last: &[u8] = b"";
        for _ in 0..count {
            last = input.name_after(last)?;
            entries.insert(last, input.entry()?);
        }
        input.end()?;
        Ok(Self::from(entries))
    }

    fn decode_parts(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut input = Reader::new(bytes, PARTS_MAGIC, "directory in parts")?;
        let count = input.u32()?;
        if count < 2 {
            return Err(CodecError::Parts(count));
        }
        let mut parts = Vec::new();
        let mut last: &[u8] = b"";
        for _ in 0..count {
            last = input.name_after(last)?;
            parts.push(Part { first: last.into(), node: NodeDigest(input.digest()?) });
        }
        input.end()?;
        Ok(Self::Parts(parts.into()))
    }
}

impl Entry {
    /// Canonical bytes of one entry, without its name.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer(Vec::with_capacity(64));
        out.entry(self);
        out.0
    }

    /// Reads canonical bytes; takes nothing but what [`Entry::encode`] gives for a valid entry.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut input = Reader { rest: bytes };
        let entry = input.entry()?;
        input.end()?;
        Ok(entry)
    }

    /// Says why this entry cannot be part of a tree.
    pub(crate) fn check(&self) -> Result<(), CodecError> {
        check_meta(&self.meta)?;
        match &self.kind {
            Kind::Symlink(target) => check_target(target),
            _ => Ok(()),
        }
    }
}

impl Tree {
    /// Canonical bytes: what [`super::TreeDigest`] is over and what records keep.
    pub fn encode(&self) -> Vec<u8> {
        let links = self.links.nodes();
        let mut out = Writer(Vec::with_capacity(128));
        out.0.extend_from_slice(if links.is_empty() { TREE_MAGIC } else { LINKED_TREE_MAGIC });
        out.meta(&self.root);
        out.0.extend_from_slice(&self.node.0);
        out.count(links.len());
        links.iter().for_each(|node| out.0.extend_from_slice(&node.0));
        out.0
    }

    /// Reads canonical bytes; takes nothing but what [`Tree::encode`] gives. The nodes themselves are not looked at.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let is_linked = bytes.starts_with(LINKED_TREE_MAGIC);
        let magic = if is_linked { LINKED_TREE_MAGIC } else { TREE_MAGIC };
        let mut input = Reader::new(bytes, magic, "tree")?;
        let root = input.meta()?;
        let node = NodeDigest(input.digest()?);
        let count = input.u32()?;
        // Earlier versions had the names themselves here.
        if is_linked != (count > 0) {
            return Err(CodecError::Links);
        }
        let mut links = Vec::new();
        for _ in 0..count {
            links.push(NodeDigest(input.digest()?));
        }
        input.end()?;
        Ok(Self { root, node, links: Links::of_nodes(links) })
    }
}

/// Says why no directory can hold this name.
pub(crate) fn check_name(name: &[u8]) -> Result<(), CodecError> {
    let bad = matches!(name, b"" | b"." | b"..")
        || name.len() > NAME_BYTES_MAX
        || name.iter().any(|b| matches!(b, 0 | b'/'));
    if bad { Err(CodecError::Name(name.to_vec())) } else { Ok(()) }
}

pub(crate) fn check_meta(meta: &Meta) -> Result<(), CodecError> {
    if meta.mode & !0o7777 != 0 {
        return Err(CodecError::Mode(meta.mode));
    }
    let fits = |(name, value): (&Vec<u8>, &Vec<u8>)| xattr_name_fits(name) && value.len() <= XATTR_BYTES_MAX;
    let bytes: usize = meta.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
    // A part of a directory has to hold the entry.
    if meta.xattrs.len() <= XATTRS_MAX && bytes <= ENCODED_BYTES_MAX / 2 && meta.xattrs.iter().all(fits) {
        Ok(())
    } else {
        Err(CodecError::Xattrs)
    }
}

fn xattr_name_fits(name: &[u8]) -> bool {
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.contains(&0)
}

fn check_target(target: &[u8]) -> Result<(), CodecError> {
    if target.is_empty() || target.len() > PATH_BYTES_MAX || target.contains(&0) {
        return Err(CodecError::Target(target.len()));
    }
    Ok(())
}

/// Canonical bytes in the making.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    /// Those of a node of entries, which follow.
    pub(super) fn entries() -> Self {
        Self::headed(DIR_MAGIC)
    }

    fn headed(magic: &[u8; 4]) -> Self {
        let mut out = Self(Vec::with_capacity(256));
        out.0.extend_from_slice(magic);
        out.count(0);
        out
    }

    /// Adds an entry, whose name comes after all others.
    pub(super) fn named(&mut self, name: &[u8], entry: &Entry) {
        self.bytes(name);
        self.entry(entry);
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The bytes, whose head says how many there are of what followed it.
    pub(super) fn counted(mut self, count: usize) -> Vec<u8> {
        // As in `count`.
        let count = u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes();
        self.0[DIR_MAGIC.len()..][..count.len()].copy_from_slice(&count);
        self.0
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn count(&mut self, value: usize) {
        // Saturates only for values that no valid tree reaches (see the limits); the decoder would refuse them.
        self.u32(u32::try_from(value).unwrap_or(u32::MAX));
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.0.extend_from_slice(bytes);
    }

    fn meta(&mut self, meta: &Meta) {
        self.u32(meta.mode);
        self.u32(meta.uid);
        self.u32(meta.gid);
        self.count(meta.xattrs.len());
        for (name, value) in &meta.xattrs {
            self.bytes(name);
            self.bytes(value);
        }
    }

    fn entry(&mut self, entry: &Entry) {
        let tag = match entry.kind {
            Kind::Dir(_) => TAG_DIR,
            Kind::File { .. } => TAG_FILE,
            Kind::Symlink(_) => TAG_SYMLINK,
            Kind::CharDevice { .. } => TAG_CHAR,
            Kind::BlockDevice { .. } => TAG_BLOCK,
            Kind::Fifo => TAG_FIFO,
        };
        self.0.push(tag);
        self.meta(&entry.meta);
        match &entry.kind {
            Kind::Dir(node) => self.0.extend_from_slice(&node.0),
            Kind::File { size, content } => {
                self.u64(*size);
                self.0.extend_from_slice(&content.0);
            }
            Kind::Symlink(target) => self.bytes(target),
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                self.u32(*major);
                self.u32(*minor);
            }
            Kind::Fifo => {}
        }
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8], magic: &[u8; 4], what: &'static str) -> Result<Self, CodecError> {
        if bytes.len() > ENCODED_BYTES_MAX {
            return Err(CodecError::TooLong(bytes.len()));
        }
        let rest = bytes.strip_prefix(magic).ok_or(CodecError::Magic(what))?;
        Ok(Self { rest })
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], CodecError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(CodecError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(CodecError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn u32(&mut self) -> Result<u32, CodecError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, CodecError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn digest(&mut self) -> Result<[u8; 32], CodecError> {
        self.array()
    }

    /// A byte string, `None` when its length is over `max`.
    fn bytes(&mut self, max: usize) -> Result<Option<&'a [u8]>, CodecError> {
        match usize::try_from(self.u32()?) {
            Ok(len) if len <= max => self.take(len).map(Some),
            _ => Ok(None),
        }
    }

    /// The name of an entry, which comes after `last`.
    fn name_after(&mut self, last: &[u8]) -> Result<&'a [u8], CodecError> {
        let name = self.bytes(NAME_BYTES_MAX)?.ok_or(CodecError::Name(Vec::new()))?;
        check_name(name)?;
        if name > last { Ok(name) } else { Err(CodecError::Name(name.to_vec())) }
    }

    fn meta(&mut self) -> Result<Meta, CodecError> {
        let (mode, uid, gid) = (self.u32()?, self.u32()?, self.u32()?);
        let mut xattrs = BTreeMap::new();
        let mut last: &[u8] = b"";
        for _ in 0..self.u32()? {
            let name = self.bytes(NAME_BYTES_MAX)?.ok_or(CodecError::Xattrs)?;
            if name <= last || xattrs.len() == XATTRS_MAX {
                return Err(CodecError::Xattrs);
            }
            last = name;
            let value = self.bytes(XATTR_BYTES_MAX)?.ok_or(CodecError::Xattrs)?;
            xattrs.insert(name.to_vec(), value.to_vec());
        }
        let meta = Meta { mode, uid, gid, xattrs };
        check_meta(&meta)?;
        Ok(meta)
    }

    fn entry(&mut self) -> Result<Entry, CodecError> {
        let [tag] = self.array()?;
        let meta = self.meta()?;
        let kind = match tag {
            TAG_DIR => Kind::Dir(NodeDigest(self.digest()?)),
            TAG_FILE => Kind::File { size: self.u64()?, content: ContentDigest(self.digest()?) },
            TAG_SYMLINK => {
                let target = self.bytes(PATH_BYTES_MAX)?.ok_or(CodecError::Target(usize::MAX))?;
                check_target(target)?;
                Kind::Symlink(target.to_vec())
            }
            TAG_CHAR => Kind::CharDevice { major: self.u32()?, minor: self.u32()? },
            TAG_BLOCK => Kind::BlockDevice { major: self.u32()?, minor: self.u32()? },
            TAG_FIFO => Kind::Fifo,
            tag => return Err(CodecError::Tag(tag)),
        };
        Ok(Entry { meta, kind })
    }

    fn end(&self) -> Result<(), CodecError> {
        if self.rest.is_empty() { Ok(()) } else { Err(CodecError::Trailing(self.rest.len())) }
    }
}

#[cfg(test)]
mod tests;
