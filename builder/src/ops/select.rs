//! What a COPY or ADD takes from its source.

use rbuild_cache::tree::select::{SelectError, Selected, select, selection_digest};
use rbuild_cache::tree::{NodeStore, Tree};
use rbuild_frontend::graph::{CopyOp, CopySource};

/// The selected entries of one COPY, by source argument.
#[derive(Debug)]
pub struct Selection {
    /// One list per [`CopySource`], empty for inline ones, in the arguments' order.
    pub sources: Vec<Vec<Selected>>,
    /// Digest of everything selected, for keys.
    pub digest: [u8; 32],
}

/// Selects on the source tree, without touching files.
pub fn select_sources(copy: &CopyOp, tree: &Tree, nodes: &dyn NodeStore) -> Result<Selection, SelectError> {
    let mut sources = Vec::with_capacity(copy.sources.len());
    for source in &copy.sources {
        sources.push(match source {
            CopySource::Path(pattern) => select(tree, nodes, pattern.as_bytes())?,
            CopySource::Inline { .. } => Vec::new(),
        });
    }
    let all: Vec<Selected> = sources.iter().flatten().cloned().collect();
    let digest = selection_digest(tree, &all);
    Ok(Selection { sources, digest })
}
