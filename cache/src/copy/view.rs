//! The parent tree with what is planned so far.

use std::cell::Cell;
use std::mem::replace;
use std::num::NonZeroU32;

use super::by_path::ByPath;
use super::contents::Contents;
use super::finished::Layer;
use super::names::{Name, OtherNames};
use super::pending::Pending;
use super::rules::{Rule, Rules};
use super::{CopyError, CopyPlan, FileSource, Origins};
use crate::layer::{LayerDiff, Mtime, is_below};
use crate::path::RelPath;
use crate::scratch::Scratch;
use crate::tree::{
    CodecError, EMPTY_NODE, Entry, Kind, LastLink, Lookup, Memo, Meta, NodeDigest, NodeStore, PATH_BYTES_MAX,
    ResolveError, Resolved, Trail, Tree, check_name, entry_in, resolve_in, strip,
};

/// What directories made on the way to a destination get.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewDirs {
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
    pub(super) now: Mtime,
}

/// One path of the layer to be.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Planned {
    /// A directory's node is what shows through from the parent tree; the empty one when nothing does.
    pub(super) entry: Entry,
    /// `None`: an existing directory keeps its own.
    pub(super) mtime: Option<Mtime>,
    /// Where a file's bytes are.
    pub(super) origin: Option<Rule>,
    /// Which directory or archive of the instruction it is from. What is copied by itself is from none.
    pub(super) item: Option<NonZeroU32>,
    /// The first name of a file that has several in its item. `None` for that name itself.
    pub(super) first: Option<Box<FirstName>>,
}

impl Planned {
    /// Something that is from no item, and where no bytes are.
    pub(super) fn of(entry: Entry, mtime: Option<Mtime>) -> Self {
        Self { entry, mtime, origin: None, item: None, first: None }
    }
}

/// The first name of a file, where it is planned, and the rule for it there. In one item this is one file: what has the same
/// rule and place in the layer has the same path in the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FirstName {
    pub(super) path: RelPath,
    pub(super) rule: Rule,
}

/// The parent tree, and changes that already shadow it.
pub(super) struct View<'a> {
    /// Siblings ask for the same ones over and over.
    pub(super) nodes: Memo<'a>,
    parent: &'a Tree,
    /// Never of the root, which is a directory whatever is copied, and keeps its metadata.
    pub(super) pending: Pending,
    pub(super) rules: Rules,
    items_total: u32,
    other_names: OtherNames,
    /// Directories of the parent tree that something else took the place of, if only for a while.
    replaced: ByPath,
    scratch: Scratch,
    /// To the directory last looked into: its other entries follow, or those of one close to it.
    trail: Cell<Trail>,
}

impl<'a> View<'a> {
    /// Nothing is planned yet; much of it will go to files of `scratch`.
    pub(super) fn new(nodes: &'a dyn NodeStore, parent: &'a Tree, scratch: &Scratch) -> Self {
        Self {
            nodes: Memo::new(nodes),
            parent,
            pending: Pending::new(scratch.clone()),
            rules: Rules::new(scratch),
            items_total: 0,
            other_names: OtherNames::new(scratch),
            replaced: ByPath::new(scratch),
            scratch: scratch.clone(),
            trail: Cell::default(),
        }
    }

    /// The number of one more directory or archive.
    pub(super) fn new_item(&mut self) -> Option<NonZeroU32> {
        self.items_total = self.items_total.saturating_add(1);
        NonZeroU32::new(self.items_total)
    }

    /// Follows a destination.
    pub(super) fn resolve(&self, dest: &RelPath) -> Result<Resolved, CopyError> {
        resolve_in(self, dest.as_bytes(), LastLink::Follow).map_err(|error| not_resolved(dest, error))
    }

    /// What is at a real path now.
    pub(super) fn entry_at(&self, path: &RelPath) -> Result<Option<Entry>, CopyError> {
        if let Some(planned) = self.pending.get(path)? {
            return Ok(Some(planned.into_owned().entry));
        }
        let Some(dir) = path.parent() else { return Ok(Some(self.root())) };
        let mut trail = self.trail.take();
        let node = trail.node_at(&dir, self.parent.node, |dir, path| {
            Ok(self.child_at(dir, path)?.and_then(|entry| entry.node()))
        });
        self.trail.set(trail);
        let node = node.map_err(|error| not_resolved(&dir, error))?;
        // Nothing is planned there.
        node.map_or(Ok(None), |node| Ok(entry_in(&self.nodes, &node, path.name())?))
    }

    /// What is at a path now, in a directory where this node shows through.
    fn child_at(&self, dir: &NodeDigest, path: &RelPath) -> Result<Option<Entry>, ResolveError> {
        match self.pending.get(path)? {
            Some(planned) => Ok(Some(planned.into_owned().entry)),
            None => Ok(entry_in(&self.nodes, dir, path.name())?),
        }
    }

    /// True when a directory has nothing in it now.
    pub(super) fn is_bare(&self, dir: &RelPath) -> Result<bool, CopyError> {
        let is_empty = match self.entry_at(dir)? {
            Some(Entry { kind: Kind::Dir(node), .. }) => node == *EMPTY_NODE,
            _ => false,
        };
        Ok(is_empty && self.pending.next_after(dir)?.is_none_or(|path| strip(&path, dir).is_none()))
    }

    /// Plans something that is not a directory, whatever is there.
    pub(super) fn replace(&mut self, path: RelPath, planned: Planned) -> Result<(), CopyError> {
        if let Some(Entry { kind: Kind::Dir(node), .. }) = self.entry_at(&path)? {
            if node != *EMPTY_NODE {
                self.replaced.say(&path, [])?;
            }
            self.pending.drop_below(&path)?;
        }
        self.put(path, planned)
    }

    /// Plans one path. What is there must not be a directory unless the new entry is one too.
    pub(super) fn put(&mut self, path: RelPath, planned: Planned) -> Result<(), CopyError> {
        check(&path, &planned)?;
        self.keep(path, planned)
    }

    /// [`Self::put`] for all that is in a directory.
    pub(super) fn put_all(&mut self, mut contents: Contents<'_>) -> Result<(), CopyError> {
        while let Some((path, planned)) = contents.next(self)? {
            self.keep(path, planned)?;
        }
        Ok(())
    }

    fn keep(&mut self, path: RelPath, planned: Planned) -> Result<(), CopyError> {
        // What is there may be something else then.
        self.trail.get_mut().forget(&path);
        self.other_names.note(&path, &planned)?;
        Ok(self.pending.insert(path, planned)?)
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
            self.put(dir.clone(), Planned::of(entry, Some(new.now)))?;
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
        let plan = CopyPlan { origins: Origins::new(&self.scratch), diff };
        let replaced = replace(&mut self.replaced, ByPath::new(&self.scratch)).in_order()?;
        let other_names = replace(&mut self.other_names, OtherNames::new(&self.scratch));
        let mut first_names = other_names.regroup(|name| self.is_left(name, contents.as_ref()))?;
        let mut layer = Layer::new(&self, plan, replaced, times, now)?;
        let mut pending = self.pending.all()?;
        let mut earlier = pending.next()?;
        while let Some(all) = &mut contents
            && let Some((path, planned)) = all.next(&self)?
        {
            while let Some((at, earlier_planned)) = earlier.take_if(|(at, _)| *at <= path) {
                if at < path {
                    layer.add_pending(at, earlier_planned, &mut first_names)?;
                }
                earlier = pending.next()?;
            }
            layer.add_last(path, planned)?;
        }
        while let Some((path, planned)) = earlier {
            layer.add_pending(path, planned, &mut first_names)?;
            earlier = pending.next()?;
        }
        Ok(layer.plan)
    }

    /// True when what was planned will be in the layer. Its place may have another file of the same rule (`COPY dir dir/file /`), but that is
    /// not from the same item. `last` is what may come in the place of what is pending, and is not pending itself.
    fn is_left(&self, name: &Name, last: Option<&Contents<'_>>) -> Result<bool, CopyError> {
        let Some(planned) = self.pending.get(&name.path)? else { return Ok(false) };
        let is_same = planned.item == Some(name.item)
            && planned.origin == Some(name.rule)
            && matches!(planned.entry.kind, Kind::File { .. });
        match last {
            Some(last) if is_same => Ok(!last.has(self, &name.path)?),
            _ => Ok(is_same),
        }
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
        self.parent.root_entry()
    }

    fn child(&self, dir: &RelPath, entry: &Entry, name: &[u8]) -> Result<Option<Entry>, ResolveError> {
        entry.node().map_or(Ok(None), |node| self.child_at(&node, &dir.join(name)))
    }
}

/// True for a path and what leads to it.
pub(super) fn leads_to(dir: &RelPath, path: &RelPath) -> bool {
    dir.is_root() || dir == path || is_below(path.as_bytes(), dir.as_bytes())
}

fn not_resolved(dest: &RelPath, error: ResolveError) -> CopyError {
    match error {
        ResolveError::NotDirectory { path } => CopyError::NotDirectory { path },
        ResolveError::Nodes(error) => error.into(),
        ResolveError::Listing(error) => error.into(),
        source => CopyError::Destination { dest: format!("/{dest}"), source },
    }
}
