//! Directory nodes that only this process needs, in a file when there are many.

use std::fmt;
use std::io;
use std::sync::{PoisonError, RwLock};

use super::{DirNode, EncodedNode, NodeDigest, NodeStore, NodeStoreError};
use crate::digest_table::DigestTable;
use crate::encoded::Encoded;
use crate::scratch::Scratch;

/// Bytes of digests and places that are held in memory.
#[cfg(not(test))]
const HELD_BYTES: usize = 1 << 20;
#[cfg(test)]
const HELD_BYTES: usize = 4 << 10;

/// Keeps nodes for as long as it lives, however many, in about a MiB of memory and two scratch files. Nodes are decoded each time:
/// who asks for one again and again does so through a [`super::Memo`].
pub struct SpilledNodeStore {
    kept: RwLock<Kept>,
}

struct Kept {
    places: DigestTable<PLACE_BYTES>,
    encoded: Encoded,
}

/// Bytes of a [`Place`].
const PLACE_BYTES: usize = 12;

/// Where a node is among the bytes, and how long it is.
struct Place {
    at: u64,
    len: u32,
}

impl Place {
    fn to_bytes(&self) -> [u8; PLACE_BYTES] {
        let mut bytes = [0; PLACE_BYTES];
        bytes[..8].copy_from_slice(&self.at.to_le_bytes());
        bytes[8..].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    fn of_bytes(bytes: [u8; PLACE_BYTES]) -> Self {
        let [at @ .., a, b, c, d] = bytes;
        Self { at: u64::from_le_bytes(at), len: u32::from_le_bytes([a, b, c, d]) }
    }
}

impl SpilledNodeStore {
    /// Without nodes; many go to files of `scratch`.
    pub fn new(scratch: &Scratch) -> Self {
        let (places, encoded) = (DigestTable::new(scratch, HELD_BYTES), Encoded::new(scratch.clone()));
        Self { kept: RwLock::new(Kept { places, encoded }) }
    }
}

impl Kept {
    /// The bytes of a node.
    fn bytes(&self, digest: &NodeDigest) -> io::Result<Option<Vec<u8>>> {
        let Some(place) = self.places.get(&digest.0)? else { return Ok(None) };
        let Place { at, len } = Place::of_bytes(place);
        self.encoded.bytes_at(at, len as usize).map(Some)
    }

    fn put(&mut self, node: &EncodedNode) -> io::Result<()> {
        let Ok(len) = u32::try_from(node.bytes().len()) else {
            return Err(io::ErrorKind::FileTooLarge.into());
        };
        let Self { places, encoded } = self;
        let (place, mut appended) = (Place { at: encoded.end(), len }, Ok(()));
        places.change(&node.digest().0, |before| {
            if before.is_some() {
                return None;
            }
            appended = encoded.append(|bytes| bytes.extend_from_slice(node.bytes()));
            appended.is_ok().then(|| place.to_bytes())
        })?;
        appended
    }
}

impl NodeStore for SpilledNodeStore {
    fn node(&self, digest: &NodeDigest) -> Result<DirNode, NodeStoreError> {
        let found = self.kept.read().unwrap_or_else(PoisonError::into_inner).bytes(digest);
        let bytes = found.map_err(|error| NodeStoreError::Storage(error.into()))?;
        let bytes = bytes.ok_or(NodeStoreError::Missing(*digest))?;
        DirNode::decode(&bytes).map_err(|_| NodeStoreError::Damaged(*digest))
    }

    fn put_nodes(&self, nodes: &[EncodedNode]) -> Result<(), NodeStoreError> {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        let put = nodes.iter().try_for_each(|node| kept.put(node));
        put.map_err(|error| NodeStoreError::Storage(error.into()))
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
        let digests = memory.digests();
        assert!(digests.len() * 45 > 2 * HELD_BYTES, "{}", digests.len());
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
