//! Everything below a path.

use super::{Entry, Kind, NodeStore, NodeStoreError, Tree, TreeError, load_node};
use crate::path::RelPath;

/// Deepest nesting of directories: a path of `PATH_BYTES_MAX` bytes has no more components.
pub const DEPTH_MAX: usize = 2048;

/// Entries of a subtree in [`RelPath`]'s order, parents before what is in them. See [`Tree::walk`].
pub struct Walk<'a> {
    nodes: &'a dyn NodeStore,
    /// Still to come, next one last.
    pending: Vec<(RelPath, Entry, usize)>,
}

impl Tree {
    /// Walks `start` (first, as the empty path) and all below it; paths are relative to `start`. Symlinks are not
    /// followed. A missing `start` gives an empty walk. After an error the walk goes on beside what failed.
    pub fn walk<'a>(&self, nodes: &'a dyn NodeStore, start: &RelPath) -> Result<Walk<'a>, NodeStoreError> {
        let entry = self.get(nodes, start)?;
        Ok(Walk { nodes, pending: entry.map(|entry| (RelPath::root(), entry, 0)).into_iter().collect() })
    }
}

impl<'a> Walk<'a> {
    /// Walks one entry, as the empty path, and all below it.
    pub fn of(nodes: &'a dyn NodeStore, entry: Entry) -> Self {
        Self { nodes, pending: vec![(RelPath::root(), entry, 0)] }
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<(RelPath, Entry), TreeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (path, entry, depth) = self.pending.pop()?;
        if let Kind::Dir(node) = &entry.kind {
            if depth >= DEPTH_MAX {
                return Some(Err(TreeError::TooDeep { path }));
            }
            let node = match load_node(self.nodes, node) {
                Ok(node) => node,
                Err(error) => return Some(Err(error.into())),
            };
            let children = node.entries.iter().rev();
            self.pending.extend(children.map(|(name, child)| (path.join(name), child.clone(), depth + 1)));
        }
        Some(Ok((path, entry)))
    }
}
