//! Selections without some of what is in them.

use super::Selected;
use crate::path::RelPath;
use crate::tree::{
    DEPTH_MAX, DirNode, EncodedNode, Entry, Kind, LinkGroups, NodeDigest, NodeStore, NodeStoreError,
    load_node,
};

/// What becomes of one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// It stays. What is in a directory is asked about one by one.
    Yes,
    /// A directory stays if something in it does.
    ForItsContents,
    /// It goes, with all below it.
    No,
}

/// Why a selection cannot be pruned.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// Nodes could not be read or kept.
    #[error(transparent)]
    Nodes(#[from] NodeStoreError),
    /// Directories nest deeper than [`DEPTH_MAX`].
    #[error("`{0}` is nested deeper than {DEPTH_MAX} directories")]
    TooDeep(RelPath),
}

/// One directory on the way.
struct Open {
    path: RelPath,
    /// Name and entry that the parent gets, and whether it does so for an empty one too.
    entry: Entry,
    keep_empty: bool,
    /// Entries still to look at, last one first.
    left: Vec<(Vec<u8>, Entry)>,
    node: DirNode,
}

/// Takes out of a selected directory what `keep` refuses; it is asked with paths relative to the directory and whether
/// they are directories. Anything else that is selected stays as it is.
///
/// New directory nodes are put into `made`. Hardlink groups lose the paths that are gone.
pub fn prune(
    selected: &mut Selected,
    nodes: &dyn NodeStore,
    made: &dyn NodeStore,
    keep: &dyn Fn(&RelPath, bool) -> Keep,
) -> Result<(), PruneError> {
    let Kind::Dir(digest) = selected.entry.kind else { return Ok(()) };
    let open = |path: RelPath, entry: Entry, keep_empty: bool, digest: &NodeDigest| {
        let node = load_node(nodes, digest)?;
        let left = node.entries.iter().rev().map(|(name, entry)| (name.to_vec(), entry.clone())).collect();
        Ok::<_, NodeStoreError>(Open { path, entry, keep_empty, left, node: DirNode::default() })
    };
    let mut batch: Vec<EncodedNode> = Vec::new();
    let mut kept: std::collections::HashSet<RelPath> = std::collections::HashSet::new();
    let has_links = !selected.links.groups().is_empty();
    let mut stack = vec![open(RelPath::root(), selected.entry.clone(), true, &digest)?];
    while let Some(dir) = stack.last_mut() {
        let Some((name, entry)) = dir.left.pop() else {
            let done = stack.pop().expect("just looked at");
            let is_empty = done.node.entries.is_empty();
            batch.push(EncodedNode::of(&done.node));
            let digest = batch[batch.len() - 1].digest();
            match stack.last_mut() {
                None => selected.entry.kind = Kind::Dir(digest),
                Some(parent) if done.keep_empty || !is_empty => {
                    let entry = Entry { kind: Kind::Dir(digest), ..done.entry };
                    parent.node.entries.insert(done.path.name().to_vec(), entry);
                }
                Some(_) => {}
            }
            continue;
        };
        let path = dir.path.join(&name);
        match (&entry.kind, keep(&path, matches!(entry.kind, Kind::Dir(_)))) {
            (_, Keep::No) => {}
            (Kind::Dir(digest), verdict) => {
                let digest = *digest;
                if stack.len() >= DEPTH_MAX {
                    return Err(PruneError::TooDeep(path));
                }
                stack.push(open(path, entry, verdict == Keep::Yes, &digest)?);
            }
            (_, Keep::ForItsContents) => {}
            (_, Keep::Yes) => {
                dir.node.entries.insert(name, entry);
                if has_links {
                    kept.insert(path);
                }
            }
        }
    }
    made.put_nodes(&batch)?;
    selected.links = LinkGroups::new(selected.links.without(|path| !kept.contains(path)));
    Ok(())
}
