//! COPY source patterns over a tree.
//!
//! A source is cleaned like a path in the source root, so nothing climbs out of it. Without wildcards it names one
//! thing and symlinks are followed inside the root. With wildcards, the directories before the first wildcard are
//! followed, everything after is matched against real entries, and each match then counts as an explicit source.
//! (dockerfile reference 3.4.)

mod list;
mod listing;
mod modes;
mod pattern;
mod prune;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::borrow::Borrow;

use super::{
    DirReader, Entry, Kind, LastLink, Link, LinksBelow, NodeStore, NodeStoreError, ResolveError, Tree,
    TreeError,
};
use crate::path::RelPath;
use crate::scratch::Scratch;
pub use list::{SelectedItems, Selections, SelectionsError};
pub use listing::listing;
pub use modes::with_mode;
pub use pattern::{Pattern, PatternError, has_wildcard};
pub use prune::{Keep, PruneError, prune};

/// Version prefix of [`selection_digest`].
const DIGEST_CONTEXT: &[u8] = b"rbuild selection 1\0";

/// One thing that a COPY takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// Base name it gets when put into a directory: the name asked for or matched, a symlink's own rather than its
    /// target's. Empty for the root.
    pub name: Vec<u8>,
    /// Real path in the source tree.
    pub path: RelPath,
    /// What is there; never a symlink.
    pub entry: Entry,
    /// Names of one file inside a directory.
    pub links: LinksBelow,
}

/// Why a source selects nothing.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// A literal source, or the target of a link, is not there.
    #[error("\"/{path}\": not found")]
    NotFound {
        /// As asked for, cleaned.
        path: RelPath,
    },
    /// A malformed wildcard.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// Following the source's symlinks failed.
    #[error("\"/{path}\"")]
    Resolve {
        /// As asked for, cleaned.
        path: RelPath,
        /// Why.
        #[source]
        source: ResolveError,
    },
    /// Nodes could not be read.
    #[error(transparent)]
    Nodes(#[from] NodeStoreError),
    /// Names of files that have several could not be read.
    #[error(transparent)]
    Links(#[from] TreeError),
    /// What is selected cannot be kept.
    #[error(transparent)]
    List(#[from] SelectionsError),
}

/// Adds what one source names to a list, in lexical order. Nothing only when wildcards match nothing.
pub fn select(
    tree: &Tree,
    nodes: &dyn NodeStore,
    source: &[u8],
    list: &mut Selections,
) -> Result<(), SelectError> {
    let source = RelPath::clamp(source);
    if !has_wildcard(source.as_bytes()) {
        return Ok(list.push(&follow(tree, nodes, &source)?)?);
    }
    let components: Vec<&[u8]> = source.components().collect();
    let literal = components.iter().take_while(|name| !has_wildcard(name)).count();
    let prefix = components[..literal].iter().fold(RelPath::root(), |dir, name| dir.join(name));
    let patterns: Vec<Pattern> =
        components[literal..].iter().map(|name| Pattern::new(name)).collect::<Result<_, _>>()?;
    let start = match tree.resolve(nodes, prefix.as_bytes(), LastLink::Follow) {
        Ok(found) if found.exists() => found,
        Ok(_) | Err(ResolveError::NotDirectory { .. } | ResolveError::NotFound { .. }) => {
            return Ok(());
        }
        Err(source) => return Err(SelectError::Resolve { path: prefix, source }),
    };
    let open = |path: RelPath, entry: &Entry| match &entry.kind {
        Kind::Dir(node) => Ok::<_, NodeStoreError>(Some((path, DirReader::open(nodes, node)?))),
        _ => Ok(None),
    };
    // The directories on the way, one for each component that has matched: what matches in the end is as many components long
    // as all others, so it comes in lexical order.
    let mut way: Vec<_> = open(start.path, &start.entry)?.into_iter().collect();
    while let Some(depth) = way.len().checked_sub(1) {
        let (dir, entries) = &mut way[depth];
        let Some((name, entry)) = entries.next()? else {
            way.pop();
            continue;
        };
        if !patterns[depth].matches(name) {
            continue;
        }
        let path = dir.join(name);
        if depth + 1 < patterns.len() {
            let inner = open(path, entry)?;
            way.extend(inner);
            continue;
        }
        list.push(&match entry.kind {
            Kind::Symlink(_) => follow(tree, nodes, &path)?,
            // Already a real path; resolving each of many siblings again would load their directory as often.
            _ => selected(tree, name, path, entry.clone()),
        })?;
    }
    Ok(())
}

/// What a path without wildcards names; symlinks are followed inside the root.
pub fn select_path(tree: &Tree, nodes: &dyn NodeStore, path: &[u8]) -> Result<Selected, SelectError> {
    follow(tree, nodes, &RelPath::clamp(path))
}

fn follow(tree: &Tree, nodes: &dyn NodeStore, path: &RelPath) -> Result<Selected, SelectError> {
    match tree.resolve(nodes, path.as_bytes(), LastLink::Follow) {
        Ok(found) if found.exists() => Ok(selected(tree, path.name(), found.path, found.entry)),
        Ok(_) | Err(ResolveError::NotDirectory { .. } | ResolveError::NotFound { .. }) => {
            Err(SelectError::NotFound { path: path.clone() })
        }
        Err(ResolveError::Nodes(error)) => Err(error.into()),
        Err(source) => Err(SelectError::Resolve { path: path.clone(), source }),
    }
}

fn selected(tree: &Tree, name: &[u8], path: RelPath, entry: Entry) -> Selected {
    let links = match entry.kind {
        Kind::Dir(_) => LinksBelow::new(tree.links.clone(), path.clone()),
        _ => LinksBelow::default(),
    };
    Selected { name: name.to_vec(), path, entry, links }
}

/// Identity of what was selected, for cache keys: equal digests copy equally to any destination.
///
/// | in the key | why |
/// |---|---|
/// | order and number of items | later ones overwrite earlier ones |
/// | a file's base name | it is the name in a destination directory |
/// | a file's entry | mode, owner, xattrs, content |
/// | a directory's node | everything below it |
/// | names of one file inside a directory | they stay linked |
///
/// Not in it: paths of the items, a directory's own name and metadata (its contents are copied, not itself), times,
/// links that leave a directory. `--parents`
/// selects the directory that paths are kept below, pruned ([`prune()`]), so kept directories are inside it.
///
/// `nodes` has those of the links.
pub fn selection_digest(
    selected: &Selections,
    nodes: &dyn NodeStore,
    scratch: &Scratch,
) -> Result<[u8; 32], SelectError> {
    digest_of(selected.len(), selected, nodes, scratch)
}

/// [`selection_digest`] of so many items.
fn digest_of(
    count: usize,
    items: impl IntoIterator<Item = Result<impl Borrow<Selected>, SelectionsError>>,
    nodes: &dyn NodeStore,
    scratch: &Scratch,
) -> Result<[u8; 32], SelectError> {
    let mut hasher = blake3::Hasher::new();
    let mut field = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    field(DIGEST_CONTEXT);
    field(&(count as u64).to_le_bytes());
    for item in items {
        let item = item?;
        let item = item.borrow();
        let Kind::Dir(node) = &item.entry.kind else {
            field(&item.name);
            field(&item.entry.encode());
            continue;
        };
        // A marker no base name can be, as it holds a `/`.
        field(b"dir/");
        field(&node.0);
        let mut links = item.links.iter(nodes, scratch)?.peekable();
        if links.peek().is_none() {
            field(&0_u64.to_le_bytes());
            continue;
        }
        // No number is as short, and no name is empty.
        field(b"links");
        for link in links {
            let Link { name, first } = link?;
            field(name.as_bytes());
            field(first.as_bytes());
        }
        field(b"");
    }
    Ok(*hasher.finalize().as_bytes())
}

/// Identity of what is mounted: unlike a copied one, a mounted directory shows its own metadata, and a file's name does not
/// matter.
pub fn mounted_digest(
    selected: &Selected,
    nodes: &dyn NodeStore,
    scratch: &Scratch,
) -> Result<[u8; 32], SelectError> {
    let contents = match selected.entry.kind {
        Kind::Dir(_) => digest_of(1, [Ok(selected)], nodes, scratch)?,
        _ => [0; 32],
    };
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"rbuild mounted 1\0").update(&contents).update(&selected.entry.encode());
    Ok(*hasher.finalize().as_bytes())
}
