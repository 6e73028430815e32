//! COPY's rules case by case (dockerfile reference, golden cases 81 to 101 and 144 to 145), then real directories.

mod archives;
mod marks;
mod on_disk;
mod packs;
mod random;
mod rules;
mod several;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use super::origins::Found;
use super::*;
use crate::layer::{Change, ImpliedDirs, Mtime};
use crate::scratch::Scratch;
use crate::tree::select::testing::select;
use crate::tree::testing::{diff_of, listing, path, tree_linked};
use crate::tree::{MemoryNodeStore, NodeStore, Tree};

pub(super) const NOW: Mtime = Mtime { secs: 1_000_000, nanos: 0 };

/// Times without files: a number of seconds, and the length of the path.
pub(super) struct FakeTimes(pub(super) i64);

impl FileSource for FakeTimes {
    fn open(&self, path: &RelPath) -> Result<OwnedFd, SourceError> {
        Err(SourceError::Missing { path: path.clone() })
    }

    fn mtime(&self, path: &RelPath) -> Result<Mtime, SourceError> {
        Ok(Mtime { secs: self.0, nanos: u32::try_from(path.as_bytes().len()).unwrap() })
    }
}

/// [`super::plan()`] of items that are all there.
pub(super) fn plan(
    nodes: &dyn NodeStore,
    parent: &Tree,
    parent_times: &dyn FileSource,
    source: Option<&dyn FileSource>,
    items: &[CopyItem],
    options: &CopyOptions,
    scratch: &Scratch,
) -> Result<CopyPlan, CopyError> {
    let items = items.iter().cloned().map(Ok);
    super::plan(nodes, parent, parent_times, source, items, options, scratch)
}

/// An archive that only has what it lists, in its own directory; `implied` are the paths of what it does not.
pub(super) fn archive(dir: &str, diff: LayerDiff, implied: impl Fn(&RelPath) -> bool) -> CopyItem {
    let implied = ImpliedDirs::of(&diff, implied);
    CopyItem::Archive(Archive { dir: path(dir), diff, implied })
}

/// A parent state and the instructions that came after.
pub(super) struct Image {
    pub(super) nodes: MemoryNodeStore,
    pub(super) tree: Tree,
    pub(super) last: CopyPlan,
}

impl Image {
    pub(super) fn scratch() -> Self {
        Self { nodes: MemoryNodeStore::default(), tree: Tree::empty(), last: CopyPlan::default() }
    }

    pub(super) fn with(entries: &[(&str, Change)]) -> Self {
        let nodes = MemoryNodeStore::default();
        let tree = Tree::empty()
            .apply(
                &nodes,
                &diff_of(entries.iter().map(|(at, change)| (path(at), change.clone()))),
                &Scratch::for_test(),
            )
            .unwrap();
        Self { nodes, tree, last: CopyPlan::default() }
    }

    #[track_caller]
    pub(super) fn copy(self, context: &Context, sources: &[&str], dest: &str) -> Self {
        self.copy_as(context, sources, options(dest)).unwrap()
    }

    pub(super) fn copy_as(
        mut self,
        context: &Context,
        sources: &[&str],
        options: CopyOptions,
    ) -> Result<Self, CopyError> {
        let source = context.tree(&self.nodes);
        let items: Vec<CopyItem> = sources
            .iter()
            .flat_map(|pattern| select(&source, &self.nodes, pattern.as_bytes()).unwrap())
            .map(CopyItem::Selected)
            .collect();
        let from = Some(&FakeTimes(500) as &dyn FileSource);
        let plan =
            plan(&self.nodes, &self.tree, &FakeTimes(100), from, &items, &options, &Scratch::for_test())?;
        self.apply(plan);
        Ok(self)
    }

    pub(super) fn apply(&mut self, plan: CopyPlan) {
        self.tree = self.tree.apply(&self.nodes, &plan.diff, &Scratch::for_test()).unwrap();
        self.last = plan;
    }

    /// Every file of the last layer, and where its source has it.
    pub(super) fn files(&self) -> Vec<(RelPath, RelPath)> {
        files(&self.last)
    }

    #[track_caller]
    pub(super) fn check(&self, expected: &[&str]) {
        assert_eq!(listing(&self.nodes, &self.tree), expected);
    }

    pub(super) fn mtime(&self, at: &str) -> Mtime {
        self.last.diff.entries().into_iter().find(|entry| entry.path == path(at)).unwrap().mtime
    }
}

/// Every file of a plan, and where the source of the instruction or its archive has it.
pub(super) fn files(plan: &CopyPlan) -> Vec<(RelPath, RelPath)> {
    let source = &FakeTimes(0) as &dyn FileSource;
    let sources = Sources { main: Some(source), archives: Some(source), packs: &[] };
    let mut origins = plan.origins.finder();
    let files = plan.diff.entries().into_iter().filter(|entry| matches!(entry.change, Change::File { .. }));
    files
        .map(|entry| match sources.find(&mut origins, &entry.path).unwrap() {
            Some(Found::File(_, from)) => (entry.path.clone(), from),
            _ => panic!("/{} has no source", entry.path),
        })
        .collect()
}

#[derive(Default)]
pub(super) struct Context<'a> {
    pub(super) entries: Vec<(&'a str, Change)>,
    pub(super) links: Vec<(&'a str, &'a str)>,
}

impl<'a> Context<'a> {
    pub(super) fn new(entries: &[(&'a str, Change)]) -> Self {
        Self { entries: entries.to_vec(), links: Vec::new() }
    }

    fn tree(&self, nodes: &MemoryNodeStore) -> Tree {
        tree_linked(nodes, &self.entries, &self.links)
    }
}

pub(super) fn options(dest: &str) -> CopyOptions {
    CopyOptions { dest: dest.into(), owner: None, chmod: None, from_context: true, now: NOW }
}
