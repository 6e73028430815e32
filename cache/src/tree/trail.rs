//! The way to what was looked up last.

use super::{Entry, Kind, Memo, NodeDigest, NodeStore, NodeStoreError, Tree, entry_in};
use crate::path::RelPath;

/// The directories on the way to the one that was looked for last, with their nodes: a neighbour costs what its path does not
/// share with that, however deep both are.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    path: Vec<u8>,
    /// Below the root, outermost first: where in `path` each ends, and its node. The last may be none, and have none.
    dirs: Vec<(usize, Option<NodeDigest>)>,
}

impl Trail {
    /// The node of the directory at `path`, below a root directory of node `root`; `None` if there is none. `node_in` says of
    /// the directory of a node what its child directory at a path has, and is asked for those on the way that are not known.
    pub(crate) fn node_at<E>(
        &mut self,
        path: &RelPath,
        root: NodeDigest,
        mut node_in: impl FnMut(&NodeDigest, &RelPath) -> Result<Option<NodeDigest>, E>,
    ) -> Result<Option<NodeDigest>, E> {
        let bytes = path.as_bytes();
        let shared = self.path.iter().zip(bytes).take_while(|(a, b)| a == b).count();
        let is_last = |len: usize| len == bytes.len();
        let leads_there = |len: usize| len <= shared && (is_last(len) || bytes[len] == b'/');
        while self.dirs.pop_if(|(len, node)| !leads_there(*len) || node.is_none() && !is_last(*len)).is_some()
        {
        }
        let (known, mut node) = self.dirs.last().copied().unwrap_or((0, Some(root)));
        self.path.truncate(known);
        self.path.extend_from_slice(&bytes[known..]);
        let ends = (known + 1..bytes.len()).filter(|at| bytes[*at] == b'/');
        for end in ends.chain((known < bytes.len()).then_some(bytes.len())) {
            let Some(dir) = node else { break };
            node = node_in(&dir, &RelPath::of_clean(bytes[..end].to_vec()))?;
            self.dirs.push((end, node));
        }
        Ok(node)
    }

    /// What is at `path`, which is not the root, below a root directory of node `root`.
    pub(crate) fn entry_at(
        &mut self,
        nodes: &dyn NodeStore,
        root: NodeDigest,
        path: &RelPath,
    ) -> Result<Option<Entry>, NodeStoreError> {
        let dir = path.parent().unwrap_or_default();
        let node = self.node_at(&dir, root, |dir, path| {
            Ok::<_, NodeStoreError>(entry_in(nodes, dir, path.name())?.and_then(|entry| entry.node()))
        })?;
        node.map_or(Ok(None), |node| entry_in(nodes, &node, path.name()))
    }

    /// What is at `path`, and below it, may be something else now.
    pub(crate) fn forget(&mut self, path: &RelPath) {
        let path = path.as_bytes();
        // `ab` is not below `a`, but it is looked for again in no time.
        if self.path.starts_with(path) {
            while self.dirs.pop_if(|(end, _)| *end >= path.len()).is_some() {}
        }
    }
}

/// Reads a tree path by path. Whoever asks in the order of paths, or for what is close together, is answered fastest.
pub struct TreeReader<'a> {
    nodes: Memo<'a>,
    tree: &'a Tree,
    trail: Trail,
}

impl<'a> TreeReader<'a> {
    /// Knows nothing yet.
    pub fn new(nodes: &'a dyn NodeStore, tree: &'a Tree) -> Self {
        Self { nodes: Memo::new(nodes), tree, trail: Trail::default() }
    }

    /// What [`Tree::get`] gives.
    pub fn get(&mut self, path: &RelPath) -> Result<Option<Entry>, NodeStoreError> {
        if path.is_root() {
            return Ok(Some(self.tree.root_entry()));
        }
        self.trail.entry_at(&self.nodes, self.tree.node, path)
    }
}

impl Entry {
    /// The node of a directory.
    pub(crate) fn node(&self) -> Option<NodeDigest> {
        match self.kind {
            Kind::Dir(node) => Some(node),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::convert::Infallible;
    use std::iter::successors;

    use proptest::prelude::*;

    use super::*;
    use crate::scratch::Scratch;
    use crate::tree::testing::{apply_model, model_diff, path, steps};
    use crate::tree::{EMPTY_NODE, MemoryNodeStore};

    fn some_path() -> impl Strategy<Value = RelPath> {
        prop::collection::vec("a|b|ab|a[.]b", 0..6).prop_map(|names| path(&names.join("/")))
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_a_walk_from_the_root_finds(
            steps in steps(),
            asked in prop::collection::vec(some_path(), 0..100),
        ) {
            let nodes = MemoryNodeStore::default();
            let diff = model_diff(&apply_model(&steps));
            let tree = Tree::empty().apply(&nodes, &diff, &Scratch::for_test()).unwrap();
            let mut reader = TreeReader::new(&nodes, &tree);
            for path in diff.entries().into_iter().map(|entry| entry.path).chain(asked) {
                prop_assert_eq!(reader.get(&path).unwrap(), tree.get(&nodes, &path).unwrap());
            }
        }

        #[test]
        fn what_is_forgotten_is_asked_for_again(
            steps in prop::collection::vec((some_path(), any::<bool>()), 0..200),
        ) {
            let (mut trail, mut dirs) = (Trail::default(), BTreeSet::new());
            for (path, is_changed) in steps {
                if is_changed && !path.is_root() {
                    if !dirs.remove(&path) {
                        dirs.insert(path.clone());
                    }
                    trail.forget(&path);
                }
                let node = |path: &RelPath| NodeDigest(*blake3::hash(path.as_bytes()).as_bytes());
                let found = trail.node_at(&path, node(&RelPath::root()), |dir, child| {
                    assert_eq!(*dir, node(&child.parent().unwrap()));
                    Ok::<_, Infallible>(dirs.contains(child).then(|| node(child)))
                });
                let is_there = successors(Some(path.clone()), RelPath::parent)
                    .all(|dir| dir.is_root() || dirs.contains(&dir));
                prop_assert_eq!(found.unwrap(), is_there.then(|| node(&path)));
            }
        }
    }

    #[test]
    fn a_neighbour_costs_what_its_path_does_not_share() {
        let (mut trail, deep) = (Trail::default(), path(&vec!["d"; 2000].join("/")));
        let mut asked = |path: &RelPath| {
            let mut asked = 0;
            let node = trail.node_at(path, *EMPTY_NODE, |_, path| {
                asked += 1;
                Ok::<_, Infallible>((path.name() != b"none").then_some(*EMPTY_NODE))
            });
            (node.unwrap().is_some(), asked)
        };
        assert_eq!(asked(&deep), (true, 2000));
        for name in ["a", "b", "d"] {
            assert_eq!(asked(&deep.join(name.as_bytes())), (true, 1));
        }
        assert_eq!(asked(&deep), (true, 0));
        assert_eq!(asked(&deep.join(b"none/below/it")), (false, 1));
        assert_eq!(asked(&deep.join(b"none")), (false, 0));
        assert_eq!(asked(&deep.join(b"none/below")), (false, 1));
        assert_eq!(asked(&deep.parent().unwrap().join(b"x")), (true, 1));
    }
}
