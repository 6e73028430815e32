//! Directory nodes in memory.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, PoisonError, RwLock};

use super::digest::EMPTY_NODE;
use super::{DirNode, EncodedNode, NodeDigest, NodeStore, NodeStoreError};

/// Keeps nodes for as long as it lives: for tests, and for trees that no one needs later.
#[derive(Debug, Default)]
pub struct MemoryNodeStore {
    nodes: RwLock<HashMap<NodeDigest, Arc<DirNode>>>,
}

impl MemoryNodeStore {
    /// Number of nodes kept.
    pub fn len(&self) -> usize {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// True before the first node.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl NodeStore for MemoryNodeStore {
    fn node(&self, digest: &NodeDigest) -> Result<Arc<DirNode>, NodeStoreError> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes.get(digest).cloned().ok_or(NodeStoreError::Missing(*digest))
    }

    fn put_nodes(&self, nodes: &[EncodedNode]) -> Result<(), NodeStoreError> {
        let mut kept = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        for node in nodes {
            let digest = node.digest();
            if let Entry::Vacant(place) = kept.entry(digest) {
                let node = DirNode::decode(node.bytes()).map_err(|_| NodeStoreError::Damaged(digest))?;
                place.insert(Arc::new(node));
            }
        }
        Ok(())
    }
}

/// Loads a node. The empty one is known without asking, and no store needs to keep it: this is how every reader of
/// trees loads.
pub fn load_node(nodes: &dyn NodeStore, digest: &NodeDigest) -> Result<Arc<DirNode>, NodeStoreError> {
    if *digest == *EMPTY_NODE { Ok(Arc::default()) } else { nodes.node(digest) }
}
