//! Directory nodes by digest, with the decoded ones kept in memory.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use rusqlite::OptionalExtension;

use super::Store;
use crate::tree::{DirNode, EncodedNode, NodeDigest, NodeStore, NodeStoreError};

/// Bytes in memory of the store's decoded nodes kept per generation.
const GENERATION_BYTES_MAX: usize = 3 << 20;

/// Two generations of decoded nodes: what is used moves to the young one; when that is full it becomes the old one
/// and the former old one is forgotten. Cheaper than an LRU list and good enough for walks.
#[derive(Debug, Default)]
pub(super) struct NodeCache<const BYTES_MAX: usize = GENERATION_BYTES_MAX> {
    generations: Mutex<Generations<BYTES_MAX>>,
}

#[derive(Debug, Default)]
struct Generations<const BYTES_MAX: usize> {
    young: HashMap<NodeDigest, DirNode>,
    old: HashMap<NodeDigest, DirNode>,
    /// Of the nodes in `young`.
    young_bytes: usize,
}

impl<const BYTES_MAX: usize> NodeCache<BYTES_MAX> {
    pub(super) fn get(&self, digest: &NodeDigest) -> Option<DirNode> {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = generations.young.get(digest) {
            return Some(node.clone());
        }
        let node = generations.old.remove(digest)?;
        generations.insert(*digest, node.clone());
        Some(node)
    }

    pub(super) fn put(&self, digest: NodeDigest, node: DirNode) {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, node);
    }
}

impl<const BYTES_MAX: usize> Generations<BYTES_MAX> {
    fn insert(&mut self, digest: NodeDigest, node: DirNode) {
        self.young_bytes += node.held_bytes();
        self.young.insert(digest, node);
        if self.young_bytes > BYTES_MAX {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
    }
}

impl NodeStore for Store {
    fn node(&self, digest: &NodeDigest) -> Result<DirNode, NodeStoreError> {
        if let Some(node) = self.inner.nodes.get(digest) {
            return Ok(node);
        }
        let bytes: Option<Vec<u8>> = self
            .inner
            .trees
            .read("load a directory node", |connection| {
                let mut statement = connection.prepare_cached("SELECT bytes FROM nodes WHERE digest = ?1")?;
                Ok(statement.query_row([digest.0], |row| row.get(0)).optional()?)
            })
            .map_err(|error| NodeStoreError::Storage(Box::new(error)))?;
        let bytes = bytes.ok_or(NodeStoreError::Missing(*digest))?;
        let node = open(digest, &bytes).ok_or(NodeStoreError::Damaged(*digest))?;
        self.inner.nodes.put(*digest, node.clone());
        Ok(node)
    }

    fn put_nodes(&self, nodes: &[EncodedNode]) -> Result<(), NodeStoreError> {
        // What is in memory was loaded by this process.
        let new: Vec<_> =
            nodes.iter().filter(|node| self.inner.nodes.get(&node.digest()).is_none()).collect();
        if new.is_empty() {
            return Ok(());
        }
        self.inner
            .trees
            .write("store directory nodes", |transaction| {
                // Damaged bytes are mended by whoever makes the node again.
                let sql = "INSERT INTO nodes VALUES (?1, ?2)
                    ON CONFLICT (digest) DO UPDATE SET bytes = excluded.bytes WHERE bytes <> excluded.bytes";
                let mut statement = transaction.prepare_cached(sql)?;
                for node in &new {
                    statement.execute((node.digest().0, node.bytes()))?;
                }
                let is_waiting: bool = transaction
                    .prepare_cached("SELECT EXISTS (SELECT 1 FROM condemned)")?
                    .query_row([], |row| row.get(0))?;
                if is_waiting {
                    let mut statement =
                        transaction.prepare_cached("DELETE FROM condemned WHERE digest = ?1")?;
                    for node in &new {
                        statement.execute([node.digest().0])?;
                    }
                }
                Ok(())
            })
            .map_err(|error| NodeStoreError::Storage(Box::new(error)))
    }
}

/// Bytes are trusted for their digest only: whatever else a row holds is damage.
fn open(digest: &NodeDigest, bytes: &[u8]) -> Option<DirNode> {
    if NodeDigest::of(bytes) != *digest {
        return None;
    }
    DirNode::decode(bytes).ok()
}
