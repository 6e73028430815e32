//! Merkle trees of filesystem states.
//!
//! | module | for |
//! |---|---|
//! | `node`, `entries` | what a tree is made of |
//! | `codec`, `digest` | canonical bytes and their digests |
//! | `writer`, `reader` | a directory's nodes entry by entry, large ones in parts |
//! | `links` | names of files that have several |
//! | `edit` | [`Tree::apply`]: a tree and a layer's diff give the next tree |
//! | `walk` | [`Tree::walk`]: everything below a path |
//! | `diff` | [`difference`]: what differs between two trees |
//! | `trail` | [`TreeReader`]: path after path, each from where the last one was |
//! | `resolve` | [`Tree::resolve`]: paths with symlinks, as the kernel resolves them inside a root |
//! | [`select`] | COPY source patterns |
//! | `memory`, `spilled`, `batch` | nodes in memory, in a file when they are many, and on their way to a store |
//!
//! A tree is a value: its digest says all about a filesystem state but times. Nothing here touches files.

mod batch;
mod codec;
mod diff;
mod digest;
mod edit;
mod entries;
mod links;
mod memory;
mod node;
mod reader;
mod resolve;
pub mod select;
mod spilled;
#[cfg(test)]
pub(crate) mod testing;
mod trail;
mod walk;
mod writer;

pub use batch::Batch;
pub use codec::{CodecError, ENCODED_BYTES_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX, XATTR_BYTES_MAX, XATTRS_MAX};
pub use diff::{Difference, TreeChange, difference};
pub use entries::DirEntries;
pub use links::{FoundNames, Link, LinkNode, Links, LinksBelow, Names, RelativeLinks};
pub use memory::{Memo, MemoryNodeStore, load_node};
pub use node::{
    ContentDigest, DirNode, EncodedNode, Entry, Kind, Meta, NodeDigest, NodeStore, NodeStoreError, Part,
    TreeDigest,
};
pub use reader::{DirReader, entry_in};
pub use resolve::{LINKS_MAX, LastLink, ResolveError, Resolved};
pub(crate) use resolve::{Lookup, resolve_in};
pub use spilled::{Over, SpilledNodeStore};
pub use trail::TreeReader;
pub use walk::{DEPTH_MAX, Walk};

pub(crate) use codec::check_name;
pub(crate) use digest::EMPTY_NODE;
pub(crate) use links::{FirstNames, Gone, LinksWriter};
pub(crate) use trail::Trail;
pub(crate) use writer::{NodeWriter, PART_ENTRIES_MIN};

use crate::layer::ListingError;
use crate::path::RelPath;

/// A whole filesystem state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// Metadata of the root directory.
    pub root: Meta,
    /// Node of the root directory.
    pub node: NodeDigest,
    /// Which paths are names of one file.
    pub links: Links,
}

/// A failing operation on a tree.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// Nodes could not be read or kept.
    #[error(transparent)]
    Nodes(#[from] NodeStoreError),
    /// A diff could not be read.
    #[error(transparent)]
    Listing(#[from] ListingError),
    /// Names of files that have several could not be put into order.
    #[error("sort the names of hard links")]
    Sort(#[source] std::io::Error),
    /// A diff lists a path twice or not in order.
    #[error("layer entry `{path}` is out of order")]
    Unsorted {
        /// The later path.
        path: RelPath,
    },
    /// A diff has an entry below something that is not a directory.
    #[error("layer entry `{path}` is below `{parent}`, which is not a directory")]
    ParentNotDirectory {
        /// The entry.
        path: RelPath,
        /// What should be a directory.
        parent: RelPath,
    },
    /// A diff makes the root something other than a directory.
    #[error("a layer cannot replace the root directory")]
    RootReplaced,
    /// A hardlink whose target is not a regular file earlier in the same diff.
    #[error("hardlink `{path}` names `{target}`, which is not an earlier file of the layer")]
    LinkTarget {
        /// The link.
        path: RelPath,
        /// What it names.
        target: RelPath,
    },
    /// A name or metadata over the limits of a tree.
    #[error("entry `{path}` does not fit into a tree")]
    Unfit {
        /// The entry.
        path: RelPath,
        /// Which limit.
        #[source]
        source: CodecError,
    },
    /// Directories nest deeper than [`DEPTH_MAX`].
    #[error("`{path}` is nested deeper than {DEPTH_MAX} directories")]
    TooDeep {
        /// The first path too deep.
        path: RelPath,
    },
}

impl Tree {
    /// The tree of `FROM scratch`: a root directory 0755 0:0 with nothing in it.
    pub fn empty() -> Self {
        let root = Meta { mode: 0o755, ..Meta::default() };
        Self { root, node: *EMPTY_NODE, links: Links::default() }
    }

    /// The nodes that nothing but the tree names: the root's, and those of the links.
    pub fn nodes(&self) -> impl Iterator<Item = NodeDigest> {
        std::iter::once(self.node).chain(self.links.nodes().iter().copied())
    }

    /// The root directory as an entry.
    pub fn root_entry(&self) -> Entry {
        Entry { meta: self.root.clone(), kind: Kind::Dir(self.node) }
    }

    /// What is at `path`; no symlink is followed, so below one there is nothing.
    pub fn get(&self, nodes: &dyn NodeStore, path: &RelPath) -> Result<Option<Entry>, NodeStoreError> {
        let mut entry = self.root_entry();
        for name in path.components() {
            let Kind::Dir(node) = entry.kind else { return Ok(None) };
            match entry_in(nodes, &node, name)? {
                Some(child) => entry = child,
                None => return Ok(None),
            }
        }
        Ok(Some(entry))
    }
}

/// `path` relative to `dir`, `None` when it is not `dir` or below it.
pub(crate) fn strip(path: &RelPath, dir: &RelPath) -> Option<RelPath> {
    if dir.is_root() {
        return Some(path.clone());
    }
    let rest = path.as_bytes().strip_prefix(dir.as_bytes())?;
    let rest = if rest.is_empty() { rest } else { rest.strip_prefix(b"/")? };
    Some(RelPath::new(rest).expect("the tail of a clean path after a `/` is clean"))
}

/// `path` below `dir`.
pub(crate) fn below(dir: &RelPath, path: &RelPath) -> RelPath {
    if path.is_root() { dir.clone() } else { dir.join(path.as_bytes()) }
}
