//! Directory nodes that only this process needs, in a file when there are many.

use std::collections::HashMap;
use std::fmt;
use std::sync::{PoisonError, RwLock};

use super::{DirNode, EncodedNode, NodeDigest, NodeStore, NodeStoreError};
use crate::encoded::Encoded;
use crate::scratch::Scratch;

/// Keeps nodes for as long as it lives: their bytes in memory up to 256 KiB, else in a file; their digests in memory. Nodes are
/// decoded each time: who asks for one again and again does so through a [`super::Memo`].
pub struct SpilledNodeStore {
    kept: RwLock<Kept>,
}

struct Kept {
    places: HashMap<NodeDigest, Place>,
    encoded: Encoded,
}

/// Where a node is among the bytes.
#[derive(Clone, Copy)]
struct Place {
    at: u64,
    len: usize,
}

impl SpilledNodeStore {
    /// Without nodes; many go to a file of `scratch`.
    pub fn new(scratch: &Scratch) -> Self {
        let encoded = Encoded::new(scratch.clone());
        Self { kept: RwLock::new(Kept { places: HashMap::new(), encoded }) }
    }
}

impl NodeStore for SpilledNodeStore {
    fn node(&self, digest: &NodeDigest) -> Result<DirNode, NodeStoreError> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let Place { at, len } = *kept.places.get(digest).ok_or(NodeStoreError::Missing(*digest))?;
        let bytes = kept.encoded.bytes_at(at, len).map_err(|error| NodeStoreError::Storage(error.into()))?;
        drop(kept);
        DirNode::decode(&bytes).map_err(|_| NodeStoreError::Damaged(*digest))
    }

    fn put_nodes(&self, nodes: &[EncodedNode]) -> Result<(), NodeStoreError> {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        let Kept { places, encoded } = &mut *kept;
        for node in nodes {
            if places.contains_key(&node.digest()) {
                continue;
            }
            let place = Place { at: encoded.end(), len: node.bytes().len() };
            encoded
                .append(|bytes| bytes.extend_from_slice(node.bytes()))
                .map_err(|error| NodeStoreError::Storage(error.into()))?;
            places.insert(node.digest(), place);
        }
        Ok(())
    }
}

impl fmt::Debug for SpilledNodeStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpilledNodeStore").finish_non_exhaustive()
    }
}

/// New nodes over those of another store.
pub struct Over<'a> {
    /// Where nodes are looked for first, and put.
    pub above: &'a SpilledNodeStore,
    /// Where those are that it does not have.
    pub below: &'a dyn NodeStore,
}

impl NodeStore for Over<'_> {
    fn node(&self, digest: &NodeDigest) -> Result<DirNode, NodeStoreError> {
        match self.above.node(digest) {
            Err(NodeStoreError::Missing(_)) => self.below.node(digest),
            found => found,
        }
    }

    fn put_nodes(&self, nodes: &[EncodedNode]) -> Result<(), NodeStoreError> {
        self.above.put_nodes(nodes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::testing::{diff_of, file, path};
    use crate::tree::{MemoryNodeStore, Tree};

    #[test]
    fn nodes_come_back_from_a_file() {
        let (spilled, memory) = (SpilledNodeStore::new(&Scratch::for_test()), MemoryNodeStore::default());
        let diff = diff_of((0..2000).map(|at| (path(&format!("f{at}")), file(&at.to_string()))));
        let tree = Tree::empty().apply(&spilled, &diff, &Scratch::for_test()).unwrap();
        assert_eq!(Tree::empty().apply(&memory, &diff, &Scratch::for_test()).unwrap(), tree);
        assert!(spilled.kept.read().unwrap().encoded.held_bytes() < 4 << 10);
        let digests: Vec<NodeDigest> = spilled.kept.read().unwrap().places.keys().copied().collect();
        assert_eq!(digests.len(), memory.len());
        for digest in digests {
            let node = spilled.node(&digest).unwrap();
            assert_eq!(node, memory.node(&digest).unwrap());
            // It is there already.
            let end = spilled.kept.read().unwrap().encoded.end();
            spilled.put_nodes(&[EncodedNode::of(&node)]).unwrap();
            assert_eq!(spilled.kept.read().unwrap().encoded.end(), end);
        }
    }

    #[test]
    fn what_is_not_above_is_looked_for_below() {
        let (above, below) = (SpilledNodeStore::new(&Scratch::for_test()), MemoryNodeStore::default());
        let tree = |nodes: &dyn NodeStore, name| {
            Tree::empty()
                .apply(nodes, &diff_of([(path(name), file(name))]), &Scratch::for_test())
                .unwrap()
                .node
        };
        let (one, other) = (tree(&above, "a"), tree(&below, "b"));
        let over = Over { above: &above, below: &below };
        assert!(over.node(&one).is_ok() && over.node(&other).is_ok());
        let lost = NodeDigest([7; 32]);
        assert!(matches!(over.node(&lost), Err(NodeStoreError::Missing(digest)) if digest == lost));
    }
}
