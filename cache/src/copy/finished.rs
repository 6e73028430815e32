//! What was planned becomes a layer.

use super::by_path::InOrder;
use super::names::FirstNames;
use super::rules::Rule;
use super::view::{Planned, View, leads_to};
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
    /// The rule of the last file.
    last_rule: Option<Rule>,
    /// Those of [`View::replace`].
    replaced: InOrder,
}

impl<'a, 'v> Layer<'a, 'v> {
    /// With the root, which is always listed.
    pub(super) fn new(
        view: &'a View<'v>,
        plan: CopyPlan,
        replaced: InOrder,
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
            last_rule: None,
            replaced,
        };
        layer.put(RelPath::root(), Planned::of(view.root(), None), None)?;
        Ok(layer)
    }

    /// Adds what is pending; `first_names` has what came of it.
    pub(super) fn add_pending(
        &mut self,
        path: RelPath,
        planned: Planned,
        first_names: &mut FirstNames,
    ) -> Result<(), CopyError> {
        let target = match &planned.entry.kind {
            Kind::File { .. } => first_names.first_of(&path, &planned)?,
            _ => None,
        };
        self.add(path, planned, target)
    }

    /// Adds something of the last item. Nothing came in the place of it: first names are there, and come first.
    pub(super) fn add_last(&mut self, path: RelPath, mut planned: Planned) -> Result<(), CopyError> {
        let target = planned.first.take().map(|first| first.path);
        self.add(path, planned, target)
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
                let is_replaced = node == *EMPTY_NODE && self.replaced.find(&path, |_| true)?.is_some();
                Change::Dir { meta, opaque: is_replaced }
            }
            Kind::File { size, content } => match target {
                Some(target) => Change::Hardlink { target },
                None => {
                    if let Some(rule) = origin.filter(|rule| self.last_rule != Some(*rule)) {
                        self.plan.origins.push(&path, &self.view.rules.get(rule)?)?;
                        self.last_rule = Some(rule);
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
