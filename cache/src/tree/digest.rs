//! Digests of what trees are made of: BLAKE3 of canonical or raw bytes.

use std::sync::LazyLock;

use super::{ContentDigest, DirNode, NodeDigest, Tree, TreeDigest};

/// Digest of the directory node with no entries.
pub(crate) static EMPTY_NODE: LazyLock<NodeDigest> = LazyLock::new(|| DirNode::default().digest());

impl ContentDigest {
    /// Digest of a whole file's bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl NodeDigest {
    /// Digest of canonical bytes (see [`DirNode::encode`]).
    pub fn of(canonical: &[u8]) -> Self {
        Self(*blake3::hash(canonical).as_bytes())
    }
}

impl DirNode {
    /// Digest of the canonical bytes.
    pub fn digest(&self) -> NodeDigest {
        NodeDigest::of(&self.encode())
    }
}

impl Tree {
    /// Identity of the whole state: root metadata, root node and hardlink groups; no times.
    pub fn digest(&self) -> TreeDigest {
        TreeDigest(*blake3::hash(&self.encode()).as_bytes())
    }
}
