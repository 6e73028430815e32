//! What is in a directory, on its way to the destination.

use std::num::NonZeroU32;

use super::rules::Rule;
use super::view::{FirstName, Planned, View, check};
use super::{CopyError, CopyOptions, FileSource};
use crate::path::RelPath;
use crate::tree::{EMPTY_NODE, Entry, FirstNames, Kind, RelativeLinks, Walk, below, strip};

/// The entries of a copied directory, made one after the other in the order of their paths.
pub(super) struct Contents<'a> {
    pub(super) walk: Walk<'a>,
    pub(super) files: &'a dyn FileSource,
    pub(super) options: &'a CopyOptions,
    /// The directory in the source, what is there, and where it goes.
    pub(super) from: RelPath,
    pub(super) source: Entry,
    pub(super) top: RelPath,
    pub(super) rule: Rule,
    pub(super) item: Option<NonZeroU32>,
    /// Names of files with several, relative to both.
    pub(super) links: FirstNames<RelativeLinks<'a>>,
    /// Nothing is at the destination.
    pub(super) is_bare: bool,
    /// Directories from the destination to the last entry, each with what was there before.
    pub(super) above: Vec<(RelPath, Option<Entry>)>,
}

impl Contents<'_> {
    /// The next one. `view` may have got what came before, and lost what it had planned there.
    pub(super) fn next(&mut self, view: &View<'_>) -> Result<Option<(RelPath, Planned)>, CopyError> {
        let (rel, entry) = loop {
            match self.walk.next() {
                None => return Ok(None),
                // The directory itself is not copied, but without it there is no telling what is in it.
                Some(Ok((rel, _))) if rel.is_root() => {}
                Some(step) => break step?,
            }
        };
        let path = below(&self.top, &rel);
        let mut planned = sourced(entry, &below(&self.from, &rel), self.files, self.options)?;
        (planned.origin, planned.item) = (Some(self.rule), self.item);
        planned.first = self.first_name(&rel)?.map(Box::new);
        if !self.is_bare {
            self.meet(view, &path, &mut planned.entry)?;
        }
        check(&path, &planned)?;
        Ok(Some((path, planned)))
    }

    /// The first name of a file, unless this is it.
    fn first_name(&mut self, rel: &RelPath) -> Result<Option<FirstName>, CopyError> {
        let first = self.links.first_of(rel)?;
        Ok(first.map(|first| FirstName { path: below(&self.top, &first), rule: self.rule }))
    }

    /// True when anything in the directory goes to `path`.
    pub(super) fn has(&self, view: &View<'_>, path: &RelPath) -> Result<bool, CopyError> {
        match strip(path, &self.top) {
            Some(rel) if !rel.is_root() => Ok(view.entry_below(&self.source, &rel)?.is_some()),
            _ => Ok(false),
        }
    }

    /// Merges a directory with one that is there; anything else neither replaces a directory nor is replaced by one.
    fn meet(&mut self, view: &View<'_>, path: &RelPath, entry: &mut Entry) -> Result<(), CopyError> {
        let is_dir = matches!(entry.kind, Kind::Dir(_));
        let there = self.there(view, path)?;
        if is_dir {
            self.above.push((path.clone(), there.clone()));
        }
        match there {
            Some(Entry { mut meta, kind: Kind::Dir(node) }) if is_dir => {
                meta.xattrs.append(&mut entry.meta.xattrs);
                entry.meta.xattrs = meta.xattrs;
                entry.kind = Kind::Dir(node);
                Ok(())
            }
            Some(Entry { kind: Kind::Dir(_), .. }) => Err(CopyError::ReplaceDirectory { path: path.clone() }),
            Some(_) if is_dir => Err(CopyError::ToNonDirectory { path: path.clone() }),
            _ => Ok(()),
        }
    }

    /// What is at `path` before this entry.
    fn there(&mut self, view: &View<'_>, path: &RelPath) -> Result<Option<Entry>, CopyError> {
        while self.above.last().is_some_and(|(dir, _)| !path.is_in(dir)) {
            self.above.pop();
        }
        match self.above.last() {
            Some((dir, Some(entry))) => view.entry_in(dir, entry, path.name()),
            _ => Ok(None),
        }
    }
}

/// One entry as it will be copied from `path`, without its origin. A directory gets the empty node: what is in it is
/// planned one by one.
pub(super) fn sourced(
    mut entry: Entry,
    path: &RelPath,
    files: &dyn FileSource,
    options: &CopyOptions,
) -> Result<Planned, CopyError> {
    let mtime = files.mtime(path).map_err(|source| CopyError::Time { path: path.clone(), source })?;
    let own = if options.from_context { Some((0, 0)) } else { None };
    if let Some(owner) = options.owner.or(own) {
        (entry.meta.uid, entry.meta.gid) = owner;
    }
    match (&entry.kind, &options.chmod) {
        (Kind::Symlink(_), _) | (_, None) => {}
        (kind, Some(mode)) => {
            entry.meta.mode = mode.apply(entry.meta.mode, matches!(kind, Kind::Dir(_)));
        }
    }
    if let Kind::Dir(node) = &mut entry.kind {
        *node = *EMPTY_NODE;
    }
    Ok(Planned::of(entry, Some(mtime)))
}
