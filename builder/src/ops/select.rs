//! What a COPY or ADD takes from its source.

use std::sync::Arc;

use rbuild_cache::path::RelPath;
use rbuild_cache::scratch::Scratch;
use rbuild_cache::tree::select::{
    Keep, PruneError, SelectError, Selections, SelectionsError, has_wildcard, prune, select,
    selection_digest, with_mode,
};
use rbuild_cache::tree::{Kind, Memo, NodeStore, NodeStoreError, Over, SpilledNodeStore, Tree, entry_in};
use rbuild_frontend::dockerignore::{Ignore, IgnoreError};
use rbuild_frontend::graph::{CopyOp, CopySource};
use rbuild_oci::FileMode;

/// The selected entries of one COPY, by source argument.
#[derive(Debug)]
pub struct Selection {
    /// What each [`CopySource`] selects, in the arguments' order: nothing for inline ones and, until [`super::added`] fills
    /// them in, for fetched ones.
    pub selected: Selections,
    /// Nodes of directories that are selected without some of what is in them, or with other modes.
    pub pruned: Arc<SpilledNodeStore>,
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
    /// What is selected cannot be kept, or not be read any more.
    #[error(transparent)]
    List(#[from] SelectionsError),
}

/// Selects on the source tree, without touching its files. New nodes go to `pruned`, which many selections may share, and what
/// is too much for memory to files of `scratch`.
pub fn select_sources(
    copy: &CopyOp,
    tree: &Tree,
    nodes: &dyn NodeStore,
    pruned: &Arc<SpilledNodeStore>,
    scratch: &Scratch,
) -> Result<Selection, SelectionError> {
    let exclude = Ignore::excluding(copy.exclude.iter().map(String::as_str))?;
    let mode = copy.chmod.as_ref().and_then(FileMode::octal);
    // Hundreds of sources may lie in one directory of as many files.
    let memo = Memo::new(nodes);
    let mut selected = Selections::new(scratch);
    for source in &copy.sources {
        selected.begin_source();
        let (path, below) = match source {
            CopySource::Path(path) => (path, None),
            CopySource::Below { pivot, pattern } => (pivot, Some(pattern)),
            CopySource::Remote { .. } | CopySource::Inline { .. } => continue,
        };
        let include = Ignore::all_but(below.map_or("", String::as_str))?;
        let is_pruned = !include.is_empty() || !exclude.is_empty();
        if below.is_none() && !is_pruned && mode.is_none() {
            select(tree, &memo, path.as_bytes(), &mut selected)?;
            continue;
        }
        let mut found = Selections::new(scratch);
        select(tree, &memo, path.as_bytes(), &mut found)?;
        if let Some(pattern) = below {
            require(path, pattern, &found, nodes)?;
        }
        for item in &found {
            let mut item = item?;
            if below.is_some() && !matches!(item.entry.kind, Kind::Dir(_)) {
                // Paths are kept below directories only.
                continue;
            }
            if is_pruned {
                prune(
                    &mut item,
                    nodes,
                    &**pruned,
                    &|path, is_dir| keep(&[&include, &exclude], path, is_dir),
                    scratch,
                )?;
            }
            if let Some(mode) = mode {
                with_mode(&mut item, &Over { above: pruned, below: nodes }, &**pruned, mode)?;
            }
            selected.push(&item)?;
        }
    }
    let digest = selection_digest(&selected, &Over { above: pruned, below: nodes }, scratch)?;
    Ok(Selection { selected, pruned: Arc::clone(pruned), digest })
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
    selected: &Selections,
    nodes: &dyn NodeStore,
) -> Result<(), SelectionError> {
    if [pivot, pattern].iter().any(|text| has_wildcard(text.as_bytes())) {
        return Ok(());
    }
    // Without wildcards a backslash still escapes.
    let path = RelPath::clamp(pattern.replace('\\', "").as_bytes());
    for item in selected {
        if exists(&item?.entry.kind, &path, nodes).map_err(SelectError::from)? {
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
