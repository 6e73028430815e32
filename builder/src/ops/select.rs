//! What a COPY or ADD takes from its source.

use std::sync::Arc;

use rbuild_cache::path::RelPath;
use rbuild_cache::scratch::Scratch;
use rbuild_cache::tree::select::{
    Keep, PruneError, SelectError, Selected, has_wildcard, prune, select, selection_digest, with_mode,
};
use rbuild_cache::tree::{
    DirNode, EncodedNode, Kind, Memo, MemoryNodeStore, NodeDigest, NodeStore, NodeStoreError, Tree, entry_in,
};
use rbuild_frontend::dockerignore::{Ignore, IgnoreError};
use rbuild_frontend::graph::{CopyOp, CopySource};
use rbuild_oci::FileMode;

/// The selected entries of one COPY, by source argument.
#[derive(Debug)]
pub struct Selection {
    /// One list per [`CopySource`], empty for inline ones and, until [`super::added`] fills them in, for fetched ones; in
    /// the arguments' order.
    pub sources: Vec<Vec<Selected>>,
    /// Nodes of directories that are selected without some of what is in them, or with other modes.
    pub pruned: Arc<MemoryNodeStore>,
    /// Digest of everything selected, for keys.
    pub digest: [u8; 32],
}

/// Why nothing can be selected.
#[derive(Debug, thiserror::Error)]
pub enum SelectionError {
    /// A source.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// `--exclude` or `--parents` over a source that is too deep or cannot be read.
    #[error(transparent)]
    Prune(#[from] PruneError),
    /// A pattern of `--exclude` or `--parents`; lowering has checked them all.
    #[error(transparent)]
    Pattern(#[from] IgnoreError),
}

/// Selects on the source tree, without touching files.
pub fn select_sources(
    copy: &CopyOp,
    tree: &Tree,
    nodes: &dyn NodeStore,
    scratch: &Scratch,
) -> Result<Selection, SelectionError> {
    let exclude = Ignore::excluding(copy.exclude.iter().map(String::as_str))?;
    let pruned = MemoryNodeStore::default();
    // Hundreds of sources may lie in one directory of as many files.
    let memo = Memo::new(nodes);
    let mut sources = Vec::with_capacity(copy.sources.len());
    for source in &copy.sources {
        let mut selected = match source {
            CopySource::Path(path) => select(tree, &memo, path.as_bytes())?,
            CopySource::Below { pivot, .. } => select(tree, &memo, pivot.as_bytes())?,
            CopySource::Remote { .. } | CopySource::Inline { .. } => Vec::new(),
        };
        let pattern = match source {
            CopySource::Below { pattern, .. } => pattern,
            CopySource::Path(_) | CopySource::Remote { .. } | CopySource::Inline { .. } => "",
        };
        let include = Ignore::all_but(pattern)?;
        if let CopySource::Below { pivot, pattern } = source {
            // Paths are kept below directories only.
            selected.retain(|item| matches!(item.entry.kind, Kind::Dir(_)));
            require(pivot, pattern, &selected, nodes)?;
        }
        if !include.is_empty() || !exclude.is_empty() {
            for item in &mut selected {
                prune(
                    item,
                    nodes,
                    &pruned,
                    &|path, is_dir| keep(&[&include, &exclude], path, is_dir),
                    scratch,
                )?;
            }
        }
        if let Some(mode) = copy.chmod.as_ref().and_then(FileMode::octal) {
            let known = Pruned { pruned: &pruned, nodes };
            selected.iter_mut().try_for_each(|item| with_mode(item, &known, &pruned, mode))?;
        }
        sources.push(selected);
    }
    let all: Vec<Selected> = sources.iter().flatten().cloned().collect();
    let known = Pruned { pruned: &pruned, nodes };
    let digest = selection_digest(&all, &known, scratch).map_err(PruneError::from)?;
    Ok(Selection { sources, pruned: Arc::new(pruned), digest })
}

/// Nodes of a selection that may have been pruned.
pub(super) struct Pruned<'a> {
    pub(super) pruned: &'a MemoryNodeStore,
    pub(super) nodes: &'a dyn NodeStore,
}

impl NodeStore for Pruned<'_> {
    fn node(&self, digest: &NodeDigest) -> Result<DirNode, NodeStoreError> {
        self.pruned.node(digest).or_else(|_| self.nodes.node(digest))
    }

    fn put_nodes(&self, nodes: &[EncodedNode]) -> Result<(), NodeStoreError> {
        self.pruned.put_nodes(nodes)
    }
}

/// What of a directory stays: all that no filter refuses, and the directories that lead there.
pub(super) fn keep(filters: &[&Ignore], path: &RelPath, is_dir: bool) -> Keep {
    let path = String::from_utf8_lossy(path.as_bytes());
    if !filters.iter().any(|filter| filter.matches(&path)) {
        Keep::Yes
    } else if is_dir && !filters.iter().any(|filter| filter.may_skip_dir(&path)) {
        Keep::ForItsContents
    } else {
        Keep::No
    }
}

/// A source of `--parents` without wildcards must be there; links on the way are not followed.
fn require(
    pivot: &str,
    pattern: &str,
    selected: &[Selected],
    nodes: &dyn NodeStore,
) -> Result<(), SelectionError> {
    if [pivot, pattern].iter().any(|text| has_wildcard(text.as_bytes())) {
        return Ok(());
    }
    // Without wildcards a backslash still escapes.
    let path = RelPath::clamp(pattern.replace('\\', "").as_bytes());
    for item in selected {
        if exists(&item.entry.kind, &path, nodes).map_err(SelectError::from)? {
            return Ok(());
        }
    }
    let path = RelPath::clamp(format!("{pivot}/{pattern}").as_bytes());
    Err(SelectError::NotFound { path }.into())
}

fn exists(dir: &Kind, path: &RelPath, nodes: &dyn NodeStore) -> Result<bool, NodeStoreError> {
    let mut kind = dir.clone();
    for name in path.components() {
        let Kind::Dir(node) = kind else { return Ok(false) };
        match entry_in(nodes, &node, name)? {
            Some(entry) => kind = entry.kind,
            None => return Ok(false),
        }
    }
    Ok(true)
}
