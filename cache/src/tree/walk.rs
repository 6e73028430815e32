//! Everything below a path.

use super::{DirReader, Entry, Kind, NodeStore, NodeStoreError, Tree, TreeError};
use crate::path::RelPath;

/// Deepest nesting of directories: a path of `PATH_BYTES_MAX` bytes has no more components.
pub const DEPTH_MAX: usize = 2048;

/// Entries of a subtree in [`RelPath`]'s order, parents before what is in them. See [`Tree::walk`].
pub struct Walk<'a> {
    nodes: &'a dyn NodeStore,
    /// Where it begins, until it has.
    start: Option<Entry>,
    /// The directories on the way to what comes next.
    open: Vec<OpenDir<'a>>,
}

struct OpenDir<'a> {
    path: RelPath,
    left: DirReader<'a>,
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

    fn step(&mut self) -> Result<Option<(RelPath, Entry)>, NodeStoreError> {
        if let Some(entry) = self.start.take() {
            return Ok(Some((RelPath::root(), entry)));
        }
        while let Some(dir) = self.open.last_mut() {
            if let Some((name, entry)) = dir.left.next()? {
                return Ok(Some((dir.path.join(name), entry.clone())));
            }
            self.open.pop();
        }
        Ok(None)
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<(RelPath, Entry), TreeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (path, entry) = match self.step() {
            Ok(step) => step?,
            Err(error) => return Some(Err(error.into())),
        };
        if let Kind::Dir(node) = &entry.kind {
            if self.open.len() >= DEPTH_MAX {
                return Some(Err(TreeError::TooDeep { path }));
            }
            match DirReader::open(self.nodes, node) {
                Ok(left) => self.open.push(OpenDir { path: path.clone(), left }),
                Err(error) => return Some(Err(error.into())),
            }
        }
        Some(Ok((path, entry)))
    }
}
