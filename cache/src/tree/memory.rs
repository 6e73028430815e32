//! Directory nodes in memory.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError, RwLock};

use super::digest::EMPTY_NODE;
use crate::held::Held;

use super::{DirNode, EncodedNode, NodeDigest, NodeStore, NodeStoreError};

/// Keeps nodes for as long as it lives: for tests, and for trees that no one needs later.
#[derive(Debug, Default)]
pub struct MemoryNodeStore {
    nodes: RwLock<HashMap<NodeDigest, Kept>>,
}

/// A node, decoded once somebody asks for it.
#[derive(Debug)]
struct Kept {
    encoded: EncodedNode,
    node: OnceLock<DirNode>,
}

impl MemoryNodeStore {
    /// Number of nodes kept.
    pub fn len(&self) -> usize {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Those of all nodes.
    #[cfg(test)]
    pub(super) fn digests(&self) -> Vec<NodeDigest> {
        self.nodes.read().unwrap().keys().copied().collect()
    }

    /// True before the first node.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl NodeStore for MemoryNodeStore {
    fn node(&self, digest: &NodeDigest) -> Result<DirNode, NodeStoreError> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let kept = nodes.get(digest).ok_or(NodeStoreError::Missing(*digest))?;
        if let Some(node) = kept.node.get() {
            return Ok(node.clone());
        }
        let node = DirNode::decode(kept.encoded.bytes()).map_err(|_| NodeStoreError::Damaged(*digest))?;
        Ok(kept.node.get_or_init(|| node).clone())
    }

    fn put_nodes(&self, nodes: &[EncodedNode]) -> Result<(), NodeStoreError> {
        let mut kept = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        for node in nodes {
            let new = || Kept { encoded: node.clone(), node: OnceLock::new() };
            kept.entry(node.digest()).or_insert_with(new);
        }
        Ok(())
    }
}

/// The nodes of another store, those asked for lately at hand: for paths that begin alike.
pub struct Memo<'a> {
    nodes: &'a dyn NodeStore,
    known: Mutex<Known>,
}

struct Known {
    nodes: HashMap<NodeDigest, DirNode>,
    bytes: usize,
    room: Held,
}

/// Bytes in memory of the nodes that a [`Memo`] has at hand at most, less when much is at work. When there are more it begins anew:
/// who asks in the order of paths is done with most of them.
const MEMO_BYTES: usize = 6 << 20;

impl<'a> Memo<'a> {
    /// Knows nothing yet.
    pub fn new(nodes: &'a dyn NodeStore) -> Self {
        let known = Known { nodes: HashMap::new(), bytes: 0, room: Held::new(MEMO_BYTES) };
        Self { nodes, known: Mutex::new(known) }
    }
}

impl NodeStore for Memo<'_> {
    fn node(&self, digest: &NodeDigest) -> Result<DirNode, NodeStoreError> {
        if let Some(node) = self.known.lock().unwrap_or_else(PoisonError::into_inner).nodes.get(digest) {
            return Ok(node.clone());
        }
        let node = self.nodes.node(digest)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = known.bytes + node.held_bytes();
        if known.room.grow(bytes) {
            known.bytes = bytes;
        } else {
            known.nodes.clear();
            known.nodes.shrink_to(0);
            known.room.give_back();
            known.bytes = node.held_bytes();
        }
        known.nodes.insert(*digest, node.clone());
        Ok(node)
    }

    fn put_nodes(&self, nodes: &[EncodedNode]) -> Result<(), NodeStoreError> {
        self.nodes.put_nodes(nodes)
    }
}

/// Loads a node. The empty one is known without asking, and no store needs to keep it: this is how every reader of
/// trees loads.
pub fn load_node(nodes: &dyn NodeStore, digest: &NodeDigest) -> Result<DirNode, NodeStoreError> {
    if *digest == *EMPTY_NODE { Ok(DirNode::default()) } else { nodes.node(digest) }
}
