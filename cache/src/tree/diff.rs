//! What differs between two trees.

use super::{
    DEPTH_MAX, DirReader, Entry, Kind, NodeDigest, NodeStore, NodeStoreError, Tree, TreeError, Walk,
};
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
                    let differing = differing(nodes, a, b)?.into_iter().rev();
                    pending.extend(differing.map(|(name, old, new)| (path.join(&name), old, new, depth + 1)));
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

/// A name, and what two directories have of it.
type Pair = (Vec<u8>, Option<Entry>, Option<Entry>);

/// What two directories do not have alike, by name. Parts that both have are not loaded.
fn differing(nodes: &dyn NodeStore, a: &NodeDigest, b: &NodeDigest) -> Result<Vec<Pair>, NodeStoreError> {
    let (mut a, mut b) = (DirReader::open(nodes, a)?, DirReader::open(nodes, b)?);
    let mut found = Vec::new();
    loop {
        while a.next_part().is_some() && a.next_part() == b.next_part() {
            a.skip();
            b.skip();
        }
        a.fill()?;
        b.fill()?;
        let (one, other) = (a.peek(), b.peek());
        let Some(name) = one.into_iter().chain(other).map(|(name, _)| name).min() else { return Ok(found) };
        let [old, new] = [one, other].map(|next| next.filter(|(at, _)| *at == name).map(|(_, entry)| entry));
        let (is_old, is_new) = (old.is_some(), new.is_some());
        if old != new {
            found.push((name.to_vec(), old.cloned(), new.cloned()));
        }
        if is_old {
            a.pass();
        }
        if is_new {
            b.pass();
        }
    }
}
