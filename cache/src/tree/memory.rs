//! Directory nodes in memory.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use super::digest::EMPTY_NODE;
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
    node: OnceLock<Arc<DirNode>>,
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
        let kept = nodes.get(digest).ok_or(NodeStoreError::Missing(*digest))?;
        if let Some(node) = kept.node.get() {
            return Ok(Arc::clone(node));
        }
        let node = DirNode::decode(kept.encoded.bytes()).map_err(|_| NodeStoreError::Damaged(*digest))?;
        Ok(Arc::clone(kept.node.get_or_init(|| Arc::new(node))))
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

/// The nodes of another store, each asked for once as long as this one is there: for paths that begin alike.
pub struct Memo<'a> {
    nodes: &'a dyn NodeStore,
    known: RwLock<HashMap<NodeDigest, Arc<DirNode>>>,
}

impl<'a> Memo<'a> {
    /// Knows nothing yet.
    pub fn new(nodes: &'a dyn NodeStore) -> Self {
        Self { nodes, known: RwLock::default() }
    }
}

impl NodeStore for Memo<'_> {
    fn node(&self, digest: &NodeDigest) -> Result<Arc<DirNode>, NodeStoreError> {
        if let Some(node) = self.known.read().unwrap_or_else(PoisonError::into_inner).get(digest) {
            return Ok(Arc::clone(node));
        }
        let node = self.nodes.node(digest)?;
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(*digest, Arc::clone(&node));
        Ok(node)
    }

    fn put_nodes(&self, nodes: &[EncodedNode]) -> Result<(), NodeStoreError> {
        self.nodes.put_nodes(nodes)
    }
}

/// Loads a node. The empty one is known without asking, and no store needs to keep it: this is how every reader of
/// trees loads.
pub fn load_node(nodes: &dyn NodeStore, digest: &NodeDigest) -> Result<Arc<DirNode>, NodeStoreError> {
    if *digest == *EMPTY_NODE { Ok(Arc::default()) } else { nodes.node(digest) }
}
