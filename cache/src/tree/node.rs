//! What a tree is made of.
//!
//! A [`DirNode`] lists a directory's entries by name; an entry that is a directory names its node by digest. A large
//! directory's node names parts of it instead, each a node of its own (see [`super::NodeWriter`] for where they end): so
//! nobody has to hold it whole, and one file changed in it makes one part anew. Digests
//! cover names, types, modes, owners, sizes, contents, link targets, device numbers and kept xattrs, never mtimes.
//! Names of one file are listed beside the root node, because a link across directories must not make a subtree's digest
//! depend on its surroundings.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::{DirEntries, LinkNode};

macro_rules! blake3_digest {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), hex::encode(&self.0[..6]))
            }
        }
    };
}

blake3_digest!(
    /// BLAKE3 of a file's bytes.
    ContentDigest
);
blake3_digest!(
    /// BLAKE3 of one directory node's canonical bytes.
    NodeDigest
);
blake3_digest!(
    /// BLAKE3 identity of a whole filesystem state: root entry and hardlink groups.
    TreeDigest
);

/// What every entry has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// Permission, setuid, setgid and sticky bits (`0o7777`), without the file type.
    pub mode: u32,
    /// Owner as the image sees it.
    pub uid: u32,
    /// Group as the image sees it.
    pub gid: u32,
    /// Kept xattrs (`user.*` but overlay's own, `security.capability`), by full name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Meta {
    /// About how many bytes its xattrs take in memory: a short one as much as some hundred bytes.
    pub(crate) fn held_xattr_bytes(&self) -> usize {
        self.xattrs.iter().map(|(name, value)| 100 + name.len() + value.len()).sum()
    }
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory and the digest of its node.
    Dir(NodeDigest),
    /// A regular file.
    File {
        /// Length in bytes.
        size: u64,
        /// Digest of its bytes.
        content: ContentDigest,
    },
    /// A symbolic link and its target, verbatim.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// A named thing in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Mode, owner, xattrs.
    pub meta: Meta,
    /// Type and content.
    pub kind: Kind,
}

/// What a node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DirNode {
    /// The entries of a directory, or of a part of a large one.
    Entries(Arc<DirEntries>),
    /// The parts of a large directory, in the order of their names: two at least.
    Parts(Arc<[Part]>),
    /// No directory at all: some of a tree's names of files that have several.
    Links(LinkNode),
}

/// A part of a large directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Name of its first entry.
    pub first: Box<[u8]>,
    /// Node that holds its entries, never parts again.
    pub node: NodeDigest,
}

impl Default for DirNode {
    fn default() -> Self {
        Self::from(DirEntries::default())
    }
}

impl From<DirEntries> for DirNode {
    fn from(entries: DirEntries) -> Self {
        Self::Entries(Arc::new(entries))
    }
}

impl DirNode {
    /// The nodes that this one names: its parts, or the directories in it.
    pub fn below(&self) -> impl Iterator<Item = NodeDigest> {
        let (entries, parts): (Option<&DirEntries>, &[Part]) = match self {
            Self::Entries(entries) => (Some(entries), &[]),
            Self::Parts(parts) => (None, parts),
            Self::Links(_) => (None, &[]),
        };
        let dirs = entries.into_iter().flat_map(DirEntries::values).filter_map(|entry| match entry.kind {
            Kind::Dir(node) => Some(node),
            _ => None,
        });
        dirs.chain(parts.iter().map(|part| part.node))
    }

    /// About how many bytes it takes in memory.
    pub fn held_bytes(&self) -> usize {
        let of_entry = |entry: &Entry| 170 + entry.meta.held_xattr_bytes();
        100 + match self {
            Self::Entries(entries) => entries.values().map(of_entry).sum::<usize>(),
            Self::Parts(parts) => 80 * parts.len(),
            Self::Links(links) => links.bytes().len(),
        }
    }

    /// How many entries, parts or links.
    pub fn len(&self) -> usize {
        match self {
            Self::Entries(entries) => entries.len(),
            Self::Parts(parts) => parts.len(),
            Self::Links(links) => links.clone().pairs().count(),
        }
    }

    /// True for that of an empty directory.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A node as its canonical bytes, named by their digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedNode {
    digest: NodeDigest,
    bytes: Vec<u8>,
}

impl EncodedNode {
    /// Encodes a node.
    pub fn of(node: &DirNode) -> Self {
        Self::new(node.encode())
    }

    /// Names what a node's encoder gave.
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { digest: NodeDigest::of(&bytes), bytes }
    }

    /// Its name.
    pub fn digest(&self) -> NodeDigest {
        self.digest
    }

    /// Canonical bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// A failing [`NodeStore`].
#[derive(Debug, thiserror::Error)]
pub enum NodeStoreError {
    /// A node that a tree names is not there: the store lost it, or the digest is made up.
    #[error("directory node {0} is missing from the store")]
    Missing(NodeDigest),
    /// Stored bytes do not decode or do not hash to their name.
    #[error("directory node {0} is damaged in the store")]
    Damaged(NodeDigest),
    /// The storage below failed.
    #[error("the store of directory nodes failed")]
    Storage(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Keeps directory nodes by digest. Implemented by the store (SQLite) and in memory for tests.
pub trait NodeStore: Send + Sync {
    /// Loads a node.
    fn node(&self, digest: &NodeDigest) -> Result<DirNode, NodeStoreError>;
    /// Keeps nodes; storing one that is there already does nothing.
    fn put_nodes(&self, nodes: &[EncodedNode]) -> Result<(), NodeStoreError>;
}
