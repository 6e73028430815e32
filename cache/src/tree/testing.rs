//! Small builders of trees for tests.

use std::collections::BTreeMap;

use super::{ContentDigest, Kind, Meta, NodeStore, Tree};
use crate::layer::{Change, DiffEntry, LayerDiff, Mtime};
use crate::path::RelPath;

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
    let entries = sorted
        .into_iter()
        .map(|(path, change)| DiffEntry { path, change, mtime: Mtime::default() })
        .collect();
    LayerDiff { entries }
}

pub(crate) fn diff(entries: &[(&str, Change)]) -> LayerDiff {
    diff_of(entries.iter().map(|(at, change)| (path(at), change.clone())))
}

pub(crate) fn tree(nodes: &dyn NodeStore, entries: &[(&str, Change)]) -> Tree {
    Tree::empty().apply(nodes, &diff(entries)).unwrap()
}

/// A tree with hardlinks: `(path, target)`.
pub(crate) fn tree_linked(nodes: &dyn NodeStore, entries: &[(&str, Change)], links: &[(&str, &str)]) -> Tree {
    let links = links.iter().map(|(at, target)| (path(at), Change::Hardlink { target: path(target) }));
    let entries = entries.iter().map(|(at, change)| (path(at), change.clone()));
    Tree::empty().apply(nodes, &diff_of(entries.chain(links))).unwrap()
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
