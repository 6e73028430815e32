//! A directory's entries, its parts loaded when they are needed.

use std::sync::Arc;

use super::{DirEntries, DirNode, Entry, NodeDigest, NodeStore, NodeStoreError, Part, load_node};

/// Reads the entries of a directory one after the other, in the order of their names. Holds one part of a large one.
pub struct DirReader<'a> {
    nodes: &'a dyn NodeStore,
    parts: Arc<[Part]>,
    /// How many parts have been loaded or skipped.
    parts_done: usize,
    /// Entries of the one loaded last, and how many were read.
    entries: Arc<DirEntries>,
    done: usize,
}

impl<'a> DirReader<'a> {
    /// Begins with the first entry.
    pub fn open(nodes: &'a dyn NodeStore, digest: &NodeDigest) -> Result<Self, NodeStoreError> {
        let (parts, entries) = match load_node(nodes, digest)? {
            DirNode::Entries(entries) => (Arc::default(), entries),
            DirNode::Parts(parts) => (parts, Arc::default()),
            DirNode::Links(_) => return Err(NodeStoreError::Damaged(*digest)),
        };
        Ok(Self { nodes, parts, parts_done: 0, entries, done: 0 })
    }

    /// The next entry. After an error the entries of the part that failed are left out.
    #[allow(clippy::should_implement_trait)] // It lends.
    pub fn next(&mut self) -> Result<Option<(&[u8], &Entry)>, NodeStoreError> {
        self.fill()?;
        self.done += 1;
        Ok(self.entries.at(self.done - 1))
    }

    /// Loads the next part if all of the last one was read.
    pub(super) fn fill(&mut self) -> Result<(), NodeStoreError> {
        while self.next_part().is_some() {
            let part = &self.parts[self.parts_done];
            self.parts_done += 1;
            self.entries = entries_of(self.nodes, part)?;
            self.done = 0;
        }
        Ok(())
    }

    /// The next entry, if it is loaded, without going on.
    pub(super) fn peek(&self) -> Option<(&[u8], &Entry)> {
        self.entries.at(self.done)
    }

    /// Goes on behind what [`Self::peek`] gives.
    pub(super) fn pass(&mut self) {
        self.done += 1;
    }

    /// The next part, when all before it has been read.
    pub(super) fn next_part(&self) -> Option<&Part> {
        self.waiting().first()
    }

    /// Name of the first entry behind [`Self::next_part`].
    pub(super) fn behind_next_part(&self) -> Option<&[u8]> {
        self.waiting().get(1).map(|part| &*part.first)
    }

    /// Goes on behind [`Self::next_part`] without loading it.
    pub(super) fn skip(&mut self) {
        self.parts_done += 1;
    }

    fn waiting(&self) -> &[Part] {
        if self.done < self.entries.len() { &[] } else { &self.parts[self.parts_done..] }
    }
}

/// The entry of this name in a directory.
pub fn entry_in(
    nodes: &dyn NodeStore,
    digest: &NodeDigest,
    name: &[u8],
) -> Result<Option<Entry>, NodeStoreError> {
    let entries = match load_node(nodes, digest)? {
        DirNode::Entries(entries) => entries,
        DirNode::Parts(parts) => {
            let after = parts.partition_point(|part| *part.first <= *name);
            match parts[..after].last() {
                Some(part) => entries_of(nodes, part)?,
                None => return Ok(None),
            }
        }
        DirNode::Links(_) => return Err(NodeStoreError::Damaged(*digest)),
    };
    Ok(entries.get(name).cloned())
}

/// A part has entries, the first one as it is said, and no parts itself: all else is damage.
fn entries_of(nodes: &dyn NodeStore, part: &Part) -> Result<Arc<DirEntries>, NodeStoreError> {
    match nodes.node(&part.node)? {
        DirNode::Entries(entries) if entries.names().next() == Some(&*part.first) => Ok(entries),
        _ => Err(NodeStoreError::Damaged(part.node)),
    }
}
