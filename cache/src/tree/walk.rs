//! Everything below a path.

use std::sync::Arc;

use super::{DirNode, Entry, Kind, NodeStore, NodeStoreError, Tree, TreeError, load_node};
use crate::path::RelPath;

/// Deepest nesting of directories: a path of `PATH_BYTES_MAX` bytes has no more components.
pub const DEPTH_MAX: usize = 2048;

/// Entries of a subtree in [`RelPath`]'s order, parents before what is in them. See [`Tree::walk`].
pub struct Walk<'a> {
    nodes: &'a dyn NodeStore,
    /// Where it begins, until it has.
    start: Option<Entry>,
    /// The directories on the way to what comes next.
    open: Vec<OpenDir>,
}

struct OpenDir {
    path: RelPath,
    node: Arc<DirNode>,
    /// Place of what comes next.
    next: usize,
}

impl Tree {
    /// Walks `start` (first, as the empty path) and all below it; paths are relative to `start`. Symlinks are not
    /// followed. A missing `start` gives an empty walk. After an error the walk goes on beside what failed.
    pub fn walk<'a>(&self, nodes: &'a dyn NodeStore, start: &RelPath) -> Result<Walk<'a>, NodeStoreError> {
        Ok(Walk { nodes, start: self.get(nodes, start)?, open: Vec::new() })
    }
}

impl<'a> Walk<'a> {
    /// Walks one entry, as the empty path, and all below it.
    pub fn of(nodes: &'a dyn NodeStore, entry: Entry) -> Self {
        Self { nodes, start: Some(entry), open: Vec::new() }
    }

    fn step(&mut self) -> Option<(RelPath, Entry)> {
        if let Some(entry) = self.start.take() {
            return Some((RelPath::root(), entry));
        }
        while let Some(dir) = self.open.last_mut() {
            if let Some((name, entry)) = dir.node.entries.at(dir.next) {
                dir.next += 1;
                return Some((dir.path.join(name), entry.clone()));
            }
            self.open.pop();
        }
        None
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<(RelPath, Entry), TreeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (path, entry) = self.step()?;
        if let Kind::Dir(node) = &entry.kind {
            if self.open.len() >= DEPTH_MAX {
                return Some(Err(TreeError::TooDeep { path }));
            }
            match load_node(self.nodes, node) {
                Ok(node) => self.open.push(OpenDir { path: path.clone(), node, next: 0 }),
                Err(error) => return Some(Err(error.into())),
            }
        }
        Some(Ok((path, entry)))
    }
}
