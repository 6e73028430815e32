//! What differs between two trees.

use std::collections::BTreeSet;

use super::{DEPTH_MAX, Entry, Kind, NodeStore, Tree, TreeError, Walk, load_node};
use crate::path::RelPath;

/// One path at which two trees differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeChange {
    /// Where.
    pub path: RelPath,
    /// What the first tree has.
    pub old: Option<Entry>,
    /// What the second tree has.
    pub new: Option<Entry>,
}

/// Lists what differs from `old` to `new`, sorted by path; subtrees with equal digests are not loaded.
///
/// A directory in both trees is listed only when its metadata differs, never for what is in it. A removed directory
/// is one change; an added one is listed with everything below. Hardlink groups are compared by the caller
/// ([`Tree::links`]): they belong to no single path.
pub fn difference(nodes: &dyn NodeStore, old: &Tree, new: &Tree) -> Result<Vec<TreeChange>, TreeError> {
    let mut changes = Vec::new();
    // Still to compare, next one last.
    let mut pending = vec![(RelPath::root(), Some(old.root_entry()), Some(new.root_entry()), 0_usize)];
    while let Some((path, old, new, depth)) = pending.pop() {
        if old == new {
            continue;
        }
        match (&old, &new) {
            (
                Some(Entry { meta: old_meta, kind: Kind::Dir(a) }),
                Some(Entry { meta: new_meta, kind: Kind::Dir(b) }),
            ) => {
                if depth >= DEPTH_MAX {
                    return Err(TreeError::TooDeep { path });
                }
                if a != b {
                    let (a, b) = (load_node(nodes, a)?, load_node(nodes, b)?);
                    let names: BTreeSet<&[u8]> = a.entries.names().chain(b.entries.names()).collect();
                    for name in names.into_iter().rev() {
                        let (old, new) = (a.entries.get(name).cloned(), b.entries.get(name).cloned());
                        pending.push((path.join(name), old, new, depth + 1));
                    }
                }
                if old_meta != new_meta {
                    changes.push(TreeChange { path, old, new });
                }
            }
            (_, Some(Entry { kind: Kind::Dir(_), .. })) => {
                let added = new.clone().into_iter().flat_map(|entry| Walk::of(nodes, entry));
                for step in added {
                    let (below, entry) = step?;
                    let old = if below.is_root() { old.clone() } else { None };
                    changes.push(TreeChange { path: super::below(&path, &below), old, new: Some(entry) });
                }
            }
            _ => changes.push(TreeChange { path, old, new }),
        }
    }
    Ok(changes)
}
