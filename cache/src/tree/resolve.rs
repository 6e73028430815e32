//! Paths with symlinks, resolved as the kernel does inside a root.

use std::collections::VecDeque;

use super::{Entry, Kind, NodeStore, NodeStoreError, PATH_BYTES_MAX, Tree, entry_in};
use crate::layer::ListingError;
use crate::path::RelPath;

/// Most symlinks followed in one resolution: Linux's `MAXSYMLINKS`.
pub const LINKS_MAX: usize = 40;

/// What to do with a symlink as the last component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastLink {
    /// Follow it, as `open` does.
    Follow,
    /// Stop at it, as `lstat` does; a trailing `/` still follows.
    Keep,
}

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Real path (no symlink in it) of the deepest thing that exists.
    pub path: RelPath,
    /// What is there; a directory whenever `missing` is not empty.
    pub entry: Entry,
    /// Components below `path` that do not exist, outermost first. Empty when the whole path exists.
    pub missing: Vec<Vec<u8>>,
}

impl Resolved {
    /// True when the kernel would find it.
    pub fn exists(&self) -> bool {
        self.missing.is_empty()
    }

    /// The real path with the missing components.
    pub fn full_path(&self) -> RelPath {
        self.missing.iter().fold(self.path.clone(), |dir, name| dir.join(name))
    }
}

/// Why a path leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// A `..` steps back out of a directory that does not exist (ENOENT).
    #[error("/{path}: no such directory")]
    NotFound {
        /// Where the directory would be.
        path: RelPath,
    },
    /// Something on the way, or the target of a path that ends in `/`, is not a directory (ENOTDIR).
    #[error("/{path}: not a directory")]
    NotDirectory {
        /// Real path of what is in the way.
        path: RelPath,
    },
    /// More than [`LINKS_MAX`] symlinks (ELOOP).
    #[error("{}: too many levels of symbolic links", String::from_utf8_lossy(.path))]
    TooManyLinks {
        /// The path asked for.
        path: Vec<u8>,
    },
    /// A path longer than [`PATH_BYTES_MAX`] or a NUL in it.
    #[error("a path of {len} bytes is too long or not valid")]
    Invalid {
        /// Its length in bytes.
        len: usize,
    },
    /// Nodes could not be read.
    #[error(transparent)]
    Nodes(#[from] NodeStoreError),
    /// What a layer in the making has there could not be read.
    #[error(transparent)]
    Listing(#[from] ListingError),
}

impl Tree {
    /// Resolves `path` from the root, following symlinks inside the root: absolute targets start at the root again
    /// and `..` stops there (openat2's `RESOLVE_IN_ROOT`). Only components that do not exist are left over.
    pub fn resolve(
        &self,
        nodes: &dyn NodeStore,
        path: &[u8],
        last: LastLink,
    ) -> Result<Resolved, ResolveError> {
        resolve_in(&TreeLookup { tree: self, nodes }, path, last)
    }
}

/// Something that paths can be resolved in.
pub(crate) trait Lookup {
    /// The root directory.
    fn root(&self) -> Entry;
    /// What directory `dir`, whose entry is `entry`, has as `name`.
    fn child(&self, dir: &RelPath, entry: &Entry, name: &[u8]) -> Result<Option<Entry>, ResolveError>;
}

struct TreeLookup<'a> {
    tree: &'a Tree,
    nodes: &'a dyn NodeStore,
}

impl Lookup for TreeLookup<'_> {
    fn root(&self) -> Entry {
        self.tree.root_entry()
    }

    fn child(&self, _: &RelPath, entry: &Entry, name: &[u8]) -> Result<Option<Entry>, ResolveError> {
        match &entry.kind {
            Kind::Dir(node) => Ok(entry_in(self.nodes, node, name)?),
            _ => Ok(None),
        }
    }
}

/// [`Tree::resolve`] for anything with directories.
pub(crate) fn resolve_in(lookup: &dyn Lookup, path: &[u8], last: LastLink) -> Result<Resolved, ResolveError> {
    if path.len() > PATH_BYTES_MAX || path.contains(&0) {
        return Err(ResolveError::Invalid { len: path.len() });
    }
    let mut todo: VecDeque<Vec<u8>> = split(path).collect();
    // From the root to the current place; only the last may be something other than a directory.
    let mut trail = vec![(RelPath::root(), lookup.root())];
    let mut missing: Vec<Vec<u8>> = Vec::new();
    let mut links_total = 0;
    while let Some(name) = todo.pop_front() {
        if !missing.is_empty() {
            match &name[..] {
                b"" | b"." => {}
                b".." => {
                    let (dir, _) = trail.last().expect("the root is never popped");
                    let path = missing.iter().fold(dir.clone(), |dir, name| dir.join(name));
                    return Err(ResolveError::NotFound { path });
                }
                _ => missing.push(name),
            }
            continue;
        }
        let (dir, entry) = trail.last().expect("the root is never popped");
        if !matches!(entry.kind, Kind::Dir(_)) {
            return Err(ResolveError::NotDirectory { path: dir.clone() });
        }
        match &name[..] {
            b"" | b"." => continue,
            b".." => {
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            _ => {}
        }
        let at = dir.join(&name);
        match lookup.child(dir, entry, &name)? {
            None => missing.push(name),
            Some(Entry { kind: Kind::Symlink(target), .. })
                if last == LastLink::Follow || !todo.is_empty() =>
            {
                links_total += 1;
                if links_total > LINKS_MAX {
                    return Err(ResolveError::TooManyLinks { path: path.to_vec() });
                }
                if target.first() == Some(&b'/') {
                    trail.truncate(1);
                }
                for name in split(&target).collect::<Vec<_>>().into_iter().rev() {
                    todo.push_front(name);
                }
            }
            Some(child) => trail.push((at, child)),
        }
    }
    let (path, entry) = trail.pop().expect("the root is never popped");
    Ok(Resolved { path, entry, missing })
}

/// Components; a trailing `/` gives a last empty one, which asks for a directory.
fn split(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let relative = &path[path.iter().take_while(|b| **b == b'/').count()..];
    relative.split(|b| *b == b'/').map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests;
