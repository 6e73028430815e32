//! What is in a directory, on its way to the destination.

use std::cell::Cell;
use std::num::NonZeroU32;

use super::rules::Rule;
use super::view::{FirstName, Planned, View, check, leads_to};
use super::{CopyError, CopyOptions, FileSource};
use crate::path::RelPath;
use crate::tree::{EMPTY_NODE, Entry, FirstNames, Kind, RelativeLinks, Trail, Walk, below, strip};

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
    /// The last directory found with nothing in its place, which may be the destination with nothing in it.
    pub(super) bare: Option<RelPath>,
    /// To the directory of the source last asked about.
    pub(super) trail: Cell<Trail>,
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
        if !self.bare.as_ref().is_some_and(|dir| leads_to(dir, &path)) {
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
        let rel = strip(path, &self.top).filter(|rel| !rel.is_root());
        let (Some(rel), Some(source)) = (rel, self.source.node()) else { return Ok(false) };
        let mut trail = self.trail.take();
        let found = trail.entry_at(&view.nodes, source, &rel)?;
        self.trail.set(trail);
        Ok(found.is_some())
    }

    /// Merges a directory with one that is there; anything else neither replaces a directory nor is replaced by one.
    fn meet(&mut self, view: &View<'_>, path: &RelPath, entry: &mut Entry) -> Result<(), CopyError> {
        let is_dir = matches!(entry.kind, Kind::Dir(_));
        match view.entry_at(path)? {
            None => {
                if is_dir {
                    self.bare = Some(path.clone());
                }
                Ok(())
            }
            Some(Entry { mut meta, kind: Kind::Dir(node) }) if is_dir => {
                meta.xattrs.append(&mut entry.meta.xattrs);
                entry.meta.xattrs = meta.xattrs;
                entry.kind = Kind::Dir(node);
                Ok(())
            }
            Some(Entry { kind: Kind::Dir(_), .. }) => Err(CopyError::ReplaceDirectory { path: path.clone() }),
            Some(_) if is_dir => Err(CopyError::ToNonDirectory { path: path.clone() }),
            Some(_) => Ok(()),
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
