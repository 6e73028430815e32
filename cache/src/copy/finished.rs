//! What was planned becomes a layer.

use std::collections::HashMap;
use std::num::NonZeroU32;

use super::contents::Contents;
use super::view::{FirstName, Planned, View, leads_to};
use super::{CopyError, CopyPlan, FileSource, SourceError};
use crate::layer::{Change, DiffEntry, Mtime};
use crate::path::RelPath;
use crate::tree::{EMPTY_NODE, Kind, Lookup};

/// A layer that takes what was planned, in the order of paths.
pub(super) struct Layer<'a, 'v> {
    view: &'a View<'v>,
    pub(super) plan: CopyPlan,
    times: &'a dyn FileSource,
    now: Mtime,
    /// What was added last, and the directory that it is in.
    last: RelPath,
    last_dir: RelPath,
    /// The least names of files whose first name in their item is not that of the layer: something else is there, or an
    /// archive's directory is elsewhere, behind a symlink of the image. All others are known by what is planned there.
    least: HashMap<(NonZeroU32, FirstName), RelPath>,
}

impl<'a, 'v> Layer<'a, 'v> {
    /// With the root, which is always listed.
    pub(super) fn new(
        view: &'a View<'v>,
        plan: CopyPlan,
        times: &'a dyn FileSource,
        now: Mtime,
    ) -> Result<Self, CopyError> {
        let mut layer = Self {
            view,
            plan,
            times,
            now,
            last: RelPath::root(),
            last_dir: RelPath::root(),
            least: HashMap::new(),
        };
        layer.put(RelPath::root(), Planned::of(view.root(), None), None)?;
        Ok(layer)
    }

    /// Adds what is pending. `last` is what may have come in the place of others that are, and is not pending itself.
    pub(super) fn add_pending(
        &mut self,
        path: RelPath,
        planned: Planned,
        last: Option<&Contents<'_>>,
    ) -> Result<(), CopyError> {
        let target = match &planned.entry.kind {
            Kind::File { .. } => self.earlier_name(&path, &planned, last)?,
            _ => None,
        };
        self.add(path, planned, target)
    }

    /// Adds something of the last item. Nothing came in the place of it: first names are there, and come first.
    pub(super) fn add_last(&mut self, path: RelPath, mut planned: Planned) -> Result<(), CopyError> {
        let target = planned.first.take().map(|first| first.path);
        self.add(path, planned, target)
    }

    /// The least name of this file in the layer, unless it is this one.
    fn earlier_name(
        &mut self,
        path: &RelPath,
        planned: &Planned,
        last: Option<&Contents<'_>>,
    ) -> Result<Option<RelPath>, CopyError> {
        let Planned { item: Some(item), origin: Some(rule), first, .. } = planned else { return Ok(None) };
        let file = |first: &FirstName| (*item, first.clone());
        if !self.least.is_empty() {
            let own = || FirstName { path: path.clone(), rule: *rule };
            let file = first.as_deref().map_or_else(|| file(&own()), file);
            if let Some(least) = self.least.get(&file) {
                return Ok(Some(least.clone()));
            }
        }
        let Some(first) = first else { return Ok(None) };
        if first.path < *path && self.is_left(*item, first, last)? {
            return Ok(Some(first.path.clone()));
        }
        self.least.insert(file(first), path.clone());
        Ok(None)
    }

    /// True when the first name of a file still is one. Its place may have another file of the same rule (`COPY dir dir/file /`),
    /// but that is not from the same item; and in one item a rule and a place are one file.
    fn is_left(
        &self,
        item: NonZeroU32,
        first: &FirstName,
        last: Option<&Contents<'_>>,
    ) -> Result<bool, CopyError> {
        let Some(planned) = self.view.pending.get(&first.path)? else { return Ok(false) };
        let is_same = planned.item == Some(item)
            && planned.origin == Some(first.rule)
            && planned.first.is_none()
            && matches!(planned.entry.kind, Kind::File { .. });
        match last {
            Some(last) if is_same => Ok(!last.has(self.view, &first.path)?),
            _ => Ok(is_same),
        }
    }

    /// Adds one path after the existing directories that lead to it, which an overlay's upper directory needs. All that is
    /// below a directory comes right after it, so those that lead to the last path are there.
    fn add(&mut self, path: RelPath, planned: Planned, target: Option<RelPath>) -> Result<(), CopyError> {
        // Most paths are in the directory of the last one.
        if path.is_in(&self.last_dir) {
            return self.put(path, planned, target);
        }
        let above = std::iter::successors(path.parent(), RelPath::parent);
        let missing: Vec<RelPath> = above.take_while(|dir| !leads_to(dir, &self.last)).collect();
        for dir in missing.into_iter().rev() {
            if let Some(entry) = self.view.entry_at(&dir)? {
                self.put(dir, Planned::of(entry, None), None)?;
            }
        }
        self.last_dir = path.parent().unwrap_or_default();
        self.put(path, planned, target)
    }

    fn put(&mut self, path: RelPath, planned: Planned, target: Option<RelPath>) -> Result<(), CopyError> {
        let Planned { entry, mtime, origin, .. } = planned;
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
                Change::Dir { meta, opaque: node == *EMPTY_NODE && self.view.replaced.contains(&path) }
            }
            Kind::File { size, content } => match target {
                Some(target) => Change::Hardlink { target },
                None => {
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
        self.last.clone_from(&path);
        self.plan.diff.push(&DiffEntry { path, change, mtime })?;
        Ok(())
    }
}
