//! The parent tree with what is planned so far.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU32;
use std::ops::Bound;

use super::contents::Contents;
use super::origins::{Origins, Rule};
use super::{CopyError, CopyPlan, FileSource, SourceError};
use crate::layer::{Change, DiffEntry, LayerDiff, Mtime};
use crate::path::RelPath;
use crate::tree::{
    CodecError, EMPTY_NODE, Entry, Kind, LastLink, Lookup, Memo, Meta, NodeStore, NodeStoreError,
    PATH_BYTES_MAX, ResolveError, Resolved, Tree, check_name, entry_in, resolve_in, strip,
};

/// What directories made on the way to a destination get.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewDirs {
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
    pub(super) now: Mtime,
}

/// One path of the layer to be.
pub(super) struct Planned {
    /// A directory's node is what shows through from the parent tree; the empty one when nothing does.
    pub(super) entry: Entry,
    /// `None`: an existing directory keeps its own.
    pub(super) mtime: Option<Mtime>,
    /// Where a file's bytes are.
    pub(super) origin: Option<Rule>,
    /// Files with one number are names of one file.
    pub(super) link: Option<Link>,
}

/// Number of a group of hardlinks.
pub(super) type Link = NonZeroU32;

/// The parent tree, and changes that already shadow it.
pub(super) struct View<'a> {
    /// Siblings ask for the same ones over and over.
    nodes: Memo<'a>,
    parent: &'a Tree,
    /// Boxed: the map is made anew more than once while there may be a hundred thousand.
    pending: BTreeMap<RelPath, Box<Planned>>,
    pub(super) origins: Origins,
    last_link: Option<Link>,
    /// Directories of the parent tree that something else took the place of, if only for a while.
    replaced: BTreeSet<RelPath>,
}

impl<'a> View<'a> {
    pub(super) fn new(nodes: &'a dyn NodeStore, parent: &'a Tree) -> Self {
        Self {
            nodes: Memo::new(nodes),
            parent,
            pending: BTreeMap::new(),
            origins: Origins::default(),
            last_link: None,
            replaced: BTreeSet::new(),
        }
    }

    /// Numbers for `count` more groups of hardlinks: the first of them.
    pub(super) fn new_links(&mut self, count: u32) -> Link {
        let first = self.last_link.map_or(Some(Link::MIN), |last| last.checked_add(1));
        let last = first.and_then(|first| first.checked_add(count.saturating_sub(1)));
        self.last_link = last;
        last.and(first).expect("so many groups of paths would fill gigabytes")
    }

    /// Follows a destination.
    pub(super) fn resolve(&self, dest: &RelPath) -> Result<Resolved, CopyError> {
        resolve_in(self, dest.as_bytes(), LastLink::Follow).map_err(|error| match error {
            ResolveError::NotDirectory { path } => CopyError::NotDirectory { path },
            ResolveError::Nodes(error) => error.into(),
            source => CopyError::Destination { dest: format!("/{dest}"), source },
        })
    }

    /// What is at a real path now.
    pub(super) fn entry_at(&self, path: &RelPath) -> Result<Option<Entry>, NodeStoreError> {
        if let Some(planned) = self.pending.get(path) {
            return Ok(Some(planned.entry.clone()));
        }
        let (mut dir, mut entry) = (RelPath::root(), self.root());
        let Some(parent) = path.parent() else { return Ok(Some(entry)) };
        if let Some(planned) = self.pending.get(&parent) {
            return self.child(&parent, &planned.entry, path.name());
        }
        for name in path.components() {
            match self.child(&dir, &entry, name)? {
                Some(child) => (dir, entry) = (dir.join(name), child),
                None => return Ok(None),
            }
        }
        Ok(Some(entry))
    }

    /// True when a directory has nothing in it now.
    pub(super) fn is_bare(&self, dir: &RelPath) -> Result<bool, NodeStoreError> {
        let is_empty = match self.entry_at(dir)? {
            Some(Entry { kind: Kind::Dir(node), .. }) => node == *EMPTY_NODE,
            _ => false,
        };
        let after = (Bound::Excluded(dir), Bound::Unbounded);
        let next = self.pending.range::<RelPath, _>(after).next();
        Ok(is_empty && next.is_none_or(|(path, _)| strip(path, dir).is_none()))
    }

    /// Plans something that is not a directory, whatever is there.
    pub(super) fn replace(&mut self, path: RelPath, planned: Planned) -> Result<(), CopyError> {
        if let Some(Entry { kind: Kind::Dir(node), .. }) = self.entry_at(&path)? {
            if node != *EMPTY_NODE {
                self.replaced.insert(path.clone());
            }
            self.drop_below(&path);
        }
        self.put(path, planned)
    }

    /// Plans one path. What is there must not be a directory unless the new entry is one too.
    pub(super) fn put(&mut self, path: RelPath, planned: Planned) -> Result<(), CopyError> {
        check(&path, &planned)?;
        self.pending.insert(path, Box::new(planned));
        Ok(())
    }

    /// [`Self::put`] for all that is in a directory.
    pub(super) fn put_all(&mut self, mut contents: Contents<'_>) -> Result<(), CopyError> {
        // What meets nothing goes in together, not each by a search.
        let mut bare = Vec::new();
        while let Some((path, planned)) = contents.next(self)? {
            if contents.is_bare {
                bare.push((path, Box::new(planned)));
            } else {
                self.pending.insert(path, Box::new(planned));
            }
        }
        self.pending.append(&mut bare.into_iter().collect());
        Ok(())
    }

    fn drop_below(&mut self, path: &RelPath) {
        let after = (Bound::Excluded(path.clone()), Bound::Unbounded);
        let below = self.pending.range(after).map(|(at, _)| at).take_while(|at| strip(at, path).is_some());
        for at in below.cloned().collect::<Vec<_>>() {
            self.pending.remove(&at);
        }
    }

    /// Makes the first `count` missing directories and gives the innermost one's path.
    pub(super) fn make_dirs(
        &mut self,
        found: &Resolved,
        count: usize,
        new: NewDirs,
    ) -> Result<RelPath, CopyError> {
        let mut dir = found.path.clone();
        let (uid, gid) = new.owner;
        for name in &found.missing[..count] {
            dir = dir.join(name);
            let meta = Meta { mode: new.mode, uid, gid, ..Meta::default() };
            let entry = Entry { meta, kind: Kind::Dir(*EMPTY_NODE) };
            self.put(dir.clone(), Planned { entry, mtime: Some(new.now), origin: None, link: None })?;
        }
        Ok(dir)
    }

    /// Turns what is planned into a layer, and `contents` with it, which are not held: they go into `diff`, which is empty.
    /// `times` has the parent state's modification times; `now` stands in for the root's when there is no parent state at all.
    pub(super) fn finish(
        mut self,
        mut contents: Option<Contents<'_>>,
        times: &dyn FileSource,
        now: Mtime,
        diff: LayerDiff,
    ) -> Result<CopyPlan, CopyError> {
        let mut next = |view: &Self| contents.as_mut().map_or(Ok(None), |contents| contents.next(view));
        let mut content = next(&self)?;
        self.add_parents(content.as_ref().map(|(path, _)| path))?;
        let plan = CopyPlan { origins: std::mem::take(&mut self.origins), diff };
        let replaced = std::mem::take(&mut self.replaced);
        let mut layer = Layer { plan, first: HashMap::new(), replaced, times, now };
        while let Some((path, planned)) = content {
            while let Some(entry) = self.pending.first_entry().filter(|entry| *entry.key() <= path) {
                let (at, earlier) = entry.remove_entry();
                if at < path {
                    layer.add(at, *earlier)?;
                }
            }
            layer.add(path, planned)?;
            content = next(&self)?;
        }
        self.pending.into_iter().try_for_each(|(path, planned)| layer.add(path, *planned))?;
        Ok(layer.plan)
    }

    /// Adds the existing directories that lead to what is planned and to `content`, and the root.
    fn add_parents(&mut self, content: Option<&RelPath>) -> Result<(), CopyError> {
        let mut parents = BTreeMap::from([(RelPath::root(), self.root())]);
        let mut last: Option<RelPath> = None;
        for path in self.pending.keys().chain(content) {
            // Siblings come one after the other.
            if last.as_ref().is_some_and(|last| path.is_in(last)) {
                continue;
            }
            last = path.parent();
            for dir in std::iter::successors(path.parent(), RelPath::parent) {
                if self.pending.contains_key(&dir) || parents.contains_key(&dir) {
                    // Its own parents are or were handled, by this loop or for its own key.
                    break;
                }
                if let Some(entry) = self.entry_at(&dir)? {
                    parents.insert(dir, entry);
                }
            }
        }
        for (path, entry) in parents {
            let kept = Planned { entry, mtime: None, origin: None, link: None };
            self.pending.entry(path).or_insert_with(|| Box::new(kept));
        }
        Ok(())
    }
}

/// A layer that takes what was planned, in the order of paths.
struct Layer<'a> {
    plan: CopyPlan,
    /// Places of the first names of the hardlink groups in the plan.
    first: HashMap<Link, usize>,
    replaced: BTreeSet<RelPath>,
    times: &'a dyn FileSource,
    now: Mtime,
}

impl Layer<'_> {
    fn add(&mut self, path: RelPath, planned: Planned) -> Result<(), CopyError> {
        let Planned { entry, mtime, origin, link } = planned;
        let mtime = match mtime {
            Some(mtime) => mtime,
            None => match self.times.mtime(&path) {
                Err(SourceError::Missing { .. }) if path.is_root() => self.now,
                other => other.map_err(|source| CopyError::Time { path: path.clone(), source })?,
            },
        };
        let meta = entry.meta;
        let change = match entry.kind {
            Kind::Dir(node) => {
                Change::Dir { meta, opaque: node == *EMPTY_NODE && self.replaced.contains(&path) }
            }
            Kind::File { size, content } => match self.first_name(link)? {
                Some(target) => Change::Hardlink { target },
                None => {
                    self.first.extend(link.map(|link| (link, self.plan.diff.len())));
                    if let Some(rule) = origin {
                        self.plan.origins.push(&path, rule);
                    }
                    Change::File { meta, size, content }
                }
            },
            Kind::Symlink(target) => Change::Symlink { meta, target },
            Kind::CharDevice { major, minor } => Change::CharDevice { meta, major, minor },
            Kind::BlockDevice { major, minor } => Change::BlockDevice { meta, major, minor },
            Kind::Fifo => Change::Fifo { meta },
        };
        self.plan.diff.push(&DiffEntry { path, change, mtime })?;
        Ok(())
    }

    /// The name of a group's file that came first, if one did.
    fn first_name(&self, link: Option<Link>) -> Result<Option<RelPath>, CopyError> {
        let Some(place) = link.and_then(|link| self.first.get(&link)) else { return Ok(None) };
        Ok(self.plan.diff.at(*place)?.map(|first| first.path))
    }
}

/// What no tree can hold is refused before it is planned.
pub(super) fn check(path: &RelPath, planned: &Planned) -> Result<(), CopyError> {
    let unfit = |source| CopyError::Unfit { path: path.clone(), source };
    if path.as_bytes().len() > PATH_BYTES_MAX {
        return Err(unfit(CodecError::TooLong(path.as_bytes().len())));
    }
    if !path.is_root() {
        check_name(path.name()).map_err(unfit)?;
    }
    planned.entry.check().map_err(unfit)?;
    Ok(())
}

impl Lookup for View<'_> {
    fn root(&self) -> Entry {
        match self.pending.get(&RelPath::root()) {
            Some(planned) => planned.entry.clone(),
            None => self.parent.root_entry(),
        }
    }

    fn child(&self, dir: &RelPath, entry: &Entry, name: &[u8]) -> Result<Option<Entry>, NodeStoreError> {
        let Kind::Dir(digest) = &entry.kind else { return Ok(None) };
        if let Some(planned) = self.pending.get(&dir.join(name)) {
            return Ok(Some(planned.entry.clone()));
        }
        entry_in(&self.nodes, digest, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_planned_is_small() {
        // 128 bytes with what an allocator adds: an instruction with several sources holds one for each path.
        assert!(size_of::<Planned>() <= 120, "{}", size_of::<Planned>());
    }
}
