//! Selections whose modes do not matter.

use std::collections::HashMap;

use super::{PruneError, Selected};
use crate::path::RelPath;
use crate::tree::{DEPTH_MAX, DirReader, EncodedNode, Kind, NodeDigest, NodeStore, NodeWriter};

/// Directories to remember the new node of: those that are alike are often near each other.
const KNOWN_MAX: usize = if cfg!(test) { 4 } else { 1 << 14 };

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
        let made = self.made;
        let put = &mut |node: EncodedNode| made.put_nodes(&[node]);
        let (mut entries, mut out) = (DirReader::open(self.nodes, &digest)?, NodeWriter::new());
        while let Some((name, entry)) = entries.next()? {
            let mut entry = entry.clone();
            match &mut entry.kind {
                Kind::Dir(below) => {
                    *below = self.node(*below, &path.join(name), depth + 1)?;
                    entry.meta.mode = self.mode;
                }
                Kind::File { .. } => entry.meta.mode = self.mode,
                _ => {}
            }
            out.entry(name, &entry, put)?;
        }
        let made = out.finish(put)?;
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        self.known.insert(digest, made);
        Ok(made)
    }
}
