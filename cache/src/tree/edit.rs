//! A tree and a layer's diff give the next tree.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{
    CodecError, DEPTH_MAX, DirNode, EMPTY_NODE, ENCODED_BYTES_MAX, Entry, Kind, LinkGroups, Meta, NodeDigest,
    NodeStore, Tree, TreeError, check_name, load_node,
};
use crate::layer::{Change, DiffEntry, LayerDiff};
use crate::path::RelPath;

impl Tree {
    /// Applies a layer's changes. Loads only directories that something changes in, and keeps the new nodes as there are
    /// some; on an error there may be nodes in the store that no tree names.
    ///
    /// A changed or removed path leaves its hardlink group. A whiteout of what is not there changes nothing. A path
    /// whose directories are not listed in `diff` must have them in this tree.
    pub fn apply(&self, nodes: &dyn NodeStore, diff: &LayerDiff) -> Result<Self, TreeError> {
        let mut edit =
            Edit { nodes, open: vec![OpenDir::root(self)], made: BTreeMap::new(), made_entries: 0 };
        let mut last: Option<RelPath> = None;
        for DiffEntry { path, change, .. } in diff {
            if last.is_some_and(|last| last >= path) {
                return Err(TreeError::Unsorted { path });
            }
            edit.change(&path, change, diff)?;
            last = Some(path);
        }
        while edit.open.len() > 1 {
            edit.close()?;
        }
        let root = edit.open.pop().expect("the root is opened first and never closed");
        let node = edit.keep(root.base, root.node, &RelPath::root())?;
        edit.put_made()?;
        Ok(Self { root: root.meta, node, links: relink(&self.links, diff) })
    }
}

/// A directory being edited. Its node is loaded when the first change in it comes.
struct OpenDir {
    path: RelPath,
    meta: Meta,
    base: NodeDigest,
    node: Option<DirNode>,
}

impl OpenDir {
    fn root(tree: &Tree) -> Self {
        Self { path: RelPath::root(), meta: tree.root.clone(), base: tree.node, node: None }
    }

    fn node(&mut self, nodes: &dyn NodeStore) -> Result<&mut DirNode, TreeError> {
        if self.node.is_none() {
            self.node = Some(DirNode::clone(&*load_node(nodes, &self.base)?));
        }
        Ok(self.node.as_mut().expect("filled just above"))
    }
}

struct Edit<'a> {
    nodes: &'a dyn NodeStore,
    /// From the root to the directory of the last change.
    open: Vec<OpenDir>,
    /// New nodes that the store does not have yet.
    made: BTreeMap<NodeDigest, Arc<DirNode>>,
    made_entries: usize,
}

/// Entries of new nodes held before the store gets them: some 250 bytes each.
const MADE_ENTRIES_MAX: usize = 8 << 10;

impl Edit<'_> {
    fn change(&mut self, path: &RelPath, change: Change, diff: &LayerDiff) -> Result<(), TreeError> {
        let unfit = |source| TreeError::Unfit { path: path.clone(), source };
        let Some(parent) = path.parent() else {
            let Change::Dir { meta, opaque } = change else { return Err(TreeError::RootReplaced) };
            super::codec::check_meta(&meta).map_err(unfit)?;
            let root = &mut self.open[0];
            root.meta = meta;
            if opaque {
                (root.base, root.node) = (*EMPTY_NODE, None);
            }
            return Ok(());
        };
        check_name(path.name()).map_err(unfit)?;
        self.enter(&parent, path)?;
        let nodes = self.nodes;
        let dir = self.open.last_mut().expect("the root is never closed by `enter`");
        let (meta, kind) = match change {
            Change::Whiteout => {
                dir.node(nodes)?.entries.remove(path.name());
                return Ok(());
            }
            Change::Dir { meta, opaque } => {
                let node = match dir.node(nodes)?.entries.get(path.name()) {
                    Some(Entry { kind: Kind::Dir(node), .. }) if !opaque => *node,
                    _ => *EMPTY_NODE,
                };
                (meta, Kind::Dir(node))
            }
            Change::Hardlink { target } => link_target(diff, path, &target)
                .ok_or_else(|| TreeError::LinkTarget { path: path.clone(), target })?,
            Change::File { meta, size, content } => (meta, Kind::File { size, content }),
            Change::Symlink { meta, target } => (meta, Kind::Symlink(target)),
            Change::CharDevice { meta, major, minor } => (meta, Kind::CharDevice { major, minor }),
            Change::BlockDevice { meta, major, minor } => (meta, Kind::BlockDevice { major, minor }),
            Change::Fifo { meta } => (meta, Kind::Fifo),
        };
        let entry = Entry { meta, kind };
        entry.check().map_err(unfit)?;
        dir.node(nodes)?.entries.insert(path.name().to_vec(), entry);
        Ok(())
    }

    /// Makes `parent` the innermost open directory.
    fn enter(&mut self, parent: &RelPath, path: &RelPath) -> Result<(), TreeError> {
        while super::strip(parent, &self.open.last().expect("the root stays open").path).is_none() {
            self.close()?;
        }
        let open_depth = self.open.len() - 1;
        for name in parent.components().skip(open_depth) {
            let nodes = self.nodes;
            let dir = self.open.last_mut().expect("the root stays open");
            let at = dir.path.join(name);
            let Some(Entry { meta, kind: Kind::Dir(base) }) = dir.node(nodes)?.entries.get(name) else {
                return Err(TreeError::ParentNotDirectory { path: path.clone(), parent: at });
            };
            let next = OpenDir { path: at, meta: meta.clone(), base: *base, node: None };
            if self.open.len() > DEPTH_MAX {
                return Err(TreeError::TooDeep { path: path.clone() });
            }
            self.open.push(next);
        }
        Ok(())
    }

    /// Finishes the innermost directory and puts its new digest into the one around it.
    fn close(&mut self) -> Result<(), TreeError> {
        let dir = self.open.pop().expect("only called with a directory below the root open");
        let node = self.keep(dir.base, dir.node, &dir.path)?;
        let nodes = self.nodes;
        let parent = self.open.last_mut().expect("the root stays open");
        let entry = Entry { meta: dir.meta, kind: Kind::Dir(node) };
        parent.node(nodes)?.entries.insert(dir.path.name().to_vec(), entry);
        Ok(())
    }

    fn keep(
        &mut self,
        base: NodeDigest,
        node: Option<DirNode>,
        path: &RelPath,
    ) -> Result<NodeDigest, TreeError> {
        let Some(node) = node else { return Ok(base) };
        let bytes = node.encode();
        if bytes.len() > ENCODED_BYTES_MAX {
            let source = CodecError::TooLong(bytes.len());
            return Err(TreeError::Unfit { path: path.clone(), source });
        }
        let digest = NodeDigest::of(&bytes);
        if digest != base && digest != *EMPTY_NODE {
            self.made_entries += node.entries.len();
            self.made.insert(digest, Arc::new(node));
        }
        if self.made_entries > MADE_ENTRIES_MAX {
            self.put_made()?;
        }
        Ok(digest)
    }

    fn put_made(&mut self) -> Result<(), TreeError> {
        self.made_entries = 0;
        let made: Vec<_> = std::mem::take(&mut self.made).into_iter().collect();
        if !made.is_empty() {
            self.nodes.put_nodes(&made)?;
        }
        Ok(())
    }
}

fn link_target(diff: &LayerDiff, path: &RelPath, target: &RelPath) -> Option<(Meta, Kind)> {
    if target >= path {
        return None;
    }
    match diff.get(target)?.change {
        Change::File { meta, size, content } => Some((meta, Kind::File { size, content })),
        _ => None,
    }
}

/// Link groups after a diff: every path it touches leaves its group, everything below what it replaces too, and its
/// own hardlinks form new groups.
fn relink(links: &LinkGroups, diff: &LayerDiff) -> LinkGroups {
    let replaces = |dir: RelPath| {
        diff.get(&dir).is_some_and(|entry| !matches!(entry.change, Change::Dir { opaque: false, .. }))
    };
    let gone = |path: &RelPath| {
        diff.get(path).is_some() || std::iter::successors(path.parent(), RelPath::parent).any(replaces)
    };
    let mut made: BTreeMap<RelPath, Vec<RelPath>> = BTreeMap::new();
    for DiffEntry { path, change, .. } in diff {
        if let Change::Hardlink { target } = change {
            made.entry(target).or_insert_with_key(|target| vec![target.clone()]).push(path);
        }
    }
    LinkGroups::new(links.without(gone).chain(made.into_values()))
}

#[cfg(test)]
mod tests;
