//! Small builders of trees for tests.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    ContentDigest, DirEntries, EncodedNode, Kind, Link, Links, Meta, NodeDigest, NodeStore, NodeWriter, Tree,
    load_node,
};
use crate::layer::{Change, DiffEntry, LayerDiff, Mtime};
use crate::path::RelPath;
use crate::scratch::Scratch;

pub(crate) fn meta(mode: u32) -> Meta {
    Meta { mode, ..Meta::default() }
}

pub(crate) fn owned(mode: u32, uid: u32, gid: u32) -> Meta {
    Meta { mode, uid, gid, ..Meta::default() }
}

pub(crate) fn file_with(meta: Meta, content: &str) -> Change {
    Change::File { meta, size: content.len() as u64, content: ContentDigest::of(content.as_bytes()) }
}

pub(crate) fn file(content: &str) -> Change {
    file_with(meta(0o644), content)
}

pub(crate) fn dir(mode: u32) -> Change {
    Change::Dir { meta: meta(mode), opaque: false }
}

pub(crate) fn link(target: &str) -> Change {
    Change::Symlink { meta: meta(0o777), target: target.into() }
}

pub(crate) fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

/// A sorted diff; of two changes of one path the later counts.
pub(crate) fn diff_of(changes: impl IntoIterator<Item = (RelPath, Change)>) -> LayerDiff {
    let sorted: BTreeMap<RelPath, Change> = changes.into_iter().collect();
    sorted.into_iter().map(|(path, change)| DiffEntry { path, change, mtime: Mtime::default() }).collect()
}

pub(crate) fn diff(entries: &[(&str, Change)]) -> LayerDiff {
    diff_of(entries.iter().map(|(at, change)| (path(at), change.clone())))
}

pub(crate) fn tree(nodes: &dyn NodeStore, entries: &[(&str, Change)]) -> Tree {
    Tree::empty().apply(nodes, &diff(entries), &Scratch::for_test()).unwrap()
}

/// A tree with hardlinks: `(path, target)`.
pub(crate) fn tree_linked(nodes: &dyn NodeStore, entries: &[(&str, Change)], links: &[(&str, &str)]) -> Tree {
    let links = links.iter().map(|(at, target)| (path(at), Change::Hardlink { target: path(target) }));
    let entries = entries.iter().map(|(at, change)| (path(at), change.clone()));
    Tree::empty().apply(nodes, &diff_of(entries.chain(links)), &Scratch::for_test()).unwrap()
}

/// Stores a directory's nodes.
pub(crate) fn put_dir(nodes: &dyn NodeStore, entries: &DirEntries) -> NodeDigest {
    let put = &mut |node: EncodedNode| nodes.put_nodes(&[node]);
    let mut out = NodeWriter::new();
    entries.iter().try_for_each(|(name, entry)| out.entry(name, entry, put)).unwrap();
    out.finish(put).unwrap()
}

/// All names of each file that has several, sorted.
pub(crate) fn groups(nodes: &dyn NodeStore, links: &Links) -> Vec<Vec<RelPath>> {
    let mut groups: BTreeMap<RelPath, Vec<RelPath>> = BTreeMap::new();
    for link in links.iter(nodes) {
        let Link { name, first } = link.unwrap();
        groups.entry(first.clone()).or_insert_with(|| vec![first]).push(name);
    }
    groups.into_values().collect()
}

/// Gives one store a tree that another one has.
pub(crate) fn copy_nodes(from: &dyn NodeStore, to: &dyn NodeStore, tree: &Tree) {
    let mut left: Vec<NodeDigest> = tree.nodes().collect();
    while let Some(digest) = left.pop() {
        let node = load_node(from, &digest).unwrap();
        left.extend(node.below());
        to.put_nodes(&[EncodedNode::of(&node)]).unwrap();
    }
}

/// One line per entry below the root: type, mode, owner, path, and the target, size or devices.
pub(crate) fn listing(nodes: &dyn NodeStore, tree: &Tree) -> Vec<String> {
    let below = tree.walk(nodes, &RelPath::root()).unwrap().skip(1);
    below
        .map(|step| {
            let (path, entry) = step.unwrap();
            let Meta { mode, uid, gid, .. } = entry.meta;
            let (tag, rest) = match &entry.kind {
                Kind::Dir(_) => ("d", String::new()),
                Kind::File { size, .. } => ("f", format!(" {size}")),
                Kind::Symlink(target) => ("l", format!(" -> {}", String::from_utf8_lossy(target))),
                Kind::CharDevice { major, minor } => ("c", format!(" {major}:{minor}")),
                Kind::BlockDevice { major, minor } => ("b", format!(" {major}:{minor}")),
                Kind::Fifo => ("p", String::new()),
            };
            format!("{tag} {mode:o} {uid}:{gid} {path}{rest}")
        })
        .collect()
}

/// A model of a tree: what is at each path, hardlinked files sharing a number.
pub(crate) type Model = BTreeMap<RelPath, (Change, Option<u8>)>;

pub(crate) fn apply_model(steps: &[(Vec<&'static str>, u8)]) -> Model {
    let mut model = Model::new();
    for (parts, what) in steps {
        let at = path(&parts.join("/"));
        let parents_ok = std::iter::successors(at.parent(), RelPath::parent)
            .filter(|dir| !dir.is_root())
            .all(|dir| matches!(model.get(&dir), Some((Change::Dir { .. }, _))));
        if !parents_ok {
            continue;
        }
        let keeps_children = matches!(what, 0..=2) && matches!(model.get(&at), Some((Change::Dir { .. }, _)));
        if !keeps_children {
            model.retain(|path, _| super::strip(path, &at).is_none());
        }
        let value = match what {
            0 => (dir(0o755), None),
            1 => (dir(0o700), None),
            2 => (Change::Dir { meta: owned(0o755, 1, 2), opaque: false }, None),
            3 => (file("one"), None),
            4 => (file_with(owned(0o600, 3, 4), "two"), None),
            5 => (link("x/y"), None),
            6 => (Change::Fifo { meta: meta(0o644) }, None),
            7 => (file("linked"), Some(7)),
            8 => (file("linked"), Some(8)),
            _ => continue,
        };
        model.insert(at, value);
    }
    model
}

pub(crate) fn model_diff(model: &Model) -> LayerDiff {
    let mut first: BTreeMap<u8, RelPath> = BTreeMap::new();
    diff_of(model.iter().map(|(path, (change, link))| {
        let change = match link.map(|link| first.entry(link).or_insert_with(|| path.clone())) {
            Some(target) if target != path => Change::Hardlink { target: target.clone() },
            _ => change.clone(),
        };
        (path.clone(), change)
    }))
}

/// Steps for [`apply_model`].
pub(crate) fn steps() -> impl Strategy<Value = Vec<(Vec<&'static str>, u8)>> {
    let name = prop_oneof![Just("a"), Just("b"), Just("c"), Just("a.b")];
    proptest::collection::vec((proptest::collection::vec(name, 1..4), 0_u8..10), 0..40)
}
