//! New nodes on their way to a store.

use std::collections::BTreeMap;

use super::{EncodedNode, NodeDigest, NodeStore, NodeStoreError};

/// Bytes of new nodes that are given to the store at once.
pub(super) const BATCH_BYTES: usize = 1 << 20;

/// Gives nodes to a store some at a time: each time may be a transaction, and all of them together may be many.
pub struct Batch<'a> {
    nodes: &'a dyn NodeStore,
    /// Those that it does not have yet.
    waiting: BTreeMap<NodeDigest, EncodedNode>,
    bytes: usize,
}

impl<'a> Batch<'a> {
    /// Nothing yet, for this store.
    pub fn new(nodes: &'a dyn NodeStore) -> Self {
        Self { nodes, waiting: BTreeMap::new(), bytes: 0 }
    }

    /// Adds a node. The store may not have it before [`Self::put`].
    pub fn add(&mut self, node: EncodedNode) -> Result<(), NodeStoreError> {
        let bytes = node.bytes().len();
        if self.waiting.insert(node.digest(), node).is_none() {
            self.bytes += bytes;
        }
        if self.bytes > BATCH_BYTES { self.put() } else { Ok(()) }
    }

    /// Gives the store what it does not have yet.
    pub fn put(&mut self) -> Result<(), NodeStoreError> {
        self.bytes = 0;
        let waiting: Vec<EncodedNode> = std::mem::take(&mut self.waiting).into_values().collect();
        if waiting.is_empty() { Ok(()) } else { self.nodes.put_nodes(&waiting) }
    }
}
