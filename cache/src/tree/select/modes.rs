//! Selections whose modes do not matter.

use std::collections::HashMap;

use super::{PruneError, Selected};
use crate::path::RelPath;
use crate::tree::{DEPTH_MAX, EncodedNode, Kind, NodeDigest, NodeStore, load_node};

/// Gives every file and directory of a selection this mode, which `--chmod` will give it anyway: what is selected is
/// then the same whatever modes its source has. New directory nodes are put into `made`.
pub fn with_mode(
    selected: &mut Selected,
    nodes: &dyn NodeStore,
    made: &dyn NodeStore,
    mode: u32,
) -> Result<(), PruneError> {
    let mut work = Uniform { nodes, made, mode, known: HashMap::new() };
    match &mut selected.entry.kind {
        Kind::Dir(digest) => *digest = work.node(*digest, &RelPath::root(), 0)?,
        Kind::File { .. } => {}
        _ => return Ok(()),
    }
    selected.entry.meta.mode = mode;
    Ok(())
}

struct Uniform<'a> {
    nodes: &'a dyn NodeStore,
    made: &'a dyn NodeStore,
    mode: u32,
    known: HashMap<NodeDigest, NodeDigest>,
}

impl Uniform<'_> {
    fn node(&mut self, digest: NodeDigest, path: &RelPath, depth: usize) -> Result<NodeDigest, PruneError> {
        if let Some(known) = self.known.get(&digest) {
            return Ok(*known);
        }
        if depth >= DEPTH_MAX {
            return Err(PruneError::TooDeep(path.clone()));
        }
        let mut node = (*load_node(self.nodes, &digest)?).clone();
        for (name, entry) in node.entries.iter_mut() {
            match &mut entry.kind {
                Kind::Dir(below) => *below = self.node(*below, &path.join(name), depth + 1)?,
                Kind::File { .. } => {}
                _ => continue,
            }
            entry.meta.mode = self.mode;
        }
        let node = EncodedNode::of(&node);
        let made = node.digest();
        self.made.put_nodes(&[node])?;
        self.known.insert(digest, made);
        Ok(made)
    }
}
