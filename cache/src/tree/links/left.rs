//! What is left of links when names are gone.

use std::cmp::Ordering;
use std::io;
use std::iter::Peekable;

use super::super::{Batch, NodeStore, NodeStoreError, TreeError, strip};
use super::{Link, Links, LinksWriter, Names};
use crate::path::{RelPath, compare};
use crate::scratch::Scratch;
use crate::sorter::{Sorted, Sorter};

/// Which of the two names of a [`Link`] are gone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gone {
    pub(crate) name: bool,
    pub(crate) first: bool,
}

/// Two paths with a zero byte between them, in the order of the first and then of the second.
pub(super) type Pair = fn(&[u8], &[u8]) -> Ordering;

/// Names of files that have several yet, sorted.
pub(crate) struct Left<'a> {
    /// Those below here.
    dir: RelPath,
    names: Peekable<Names<'a>>,
    /// How many of them were read, and a bit for each: whether it stays with the first name that it has. None when all do.
    read: usize,
    stays: Vec<u8>,
    /// Names of files whose first one is gone, with what is the first now.
    regrouped: Option<Sorted<Pair>>,
    /// What comes next of the two.
    kept: Option<Link>,
    other: Option<Link>,
}

impl Links {
    /// Those below `dir`, without the names that `gone` says are. A file whose first name is gone is known by the next.
    pub(crate) fn left<'a>(
        &self,
        nodes: &'a dyn NodeStore,
        dir: &RelPath,
        scratch: &Scratch,
        mut gone: impl FnMut(&Link) -> Result<Gone, TreeError>,
    ) -> Result<Left<'a>, TreeError> {
        let (mut stays, mut have_all_stayed) = (Vec::new(), true);
        let mut orphans: Option<Sorter<Pair>> = None;
        for (at, link) in self.iter_from(nodes, dir)?.map_while(|link| below(dir, link)).enumerate() {
            let link = link?;
            let gone = gone(&link)?;
            let is_same = !gone.name && !gone.first;
            have_all_stayed &= is_same;
            if at % 8 == 0 {
                stays.push(0);
            }
            stays[at / 8] |= u8::from(is_same) << (at % 8);
            if gone.first && !gone.name {
                let orphans = orphans.get_or_insert_with(|| pairs_by_name(scratch));
                orphans
                    .push(&[link.first.as_bytes(), b"\0", link.name.as_bytes()])
                    .map_err(TreeError::Sort)?;
            }
        }
        if have_all_stayed {
            stays.clear();
        }
        let regrouped =
            orphans.map(|orphans| regroup(orphans, scratch)).transpose().map_err(TreeError::Sort)?;
        let names = self.iter_from(nodes, dir)?;
        Ok(Left { dir: dir.clone(), names, read: 0, stays, regrouped, kept: None, other: None })
    }
}

/// The links of a tree whose names are below one directory of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinksBelow {
    all: Links,
    dir: RelPath,
}

impl LinksBelow {
    /// Those below `dir` among `all` of a tree.
    pub fn new(all: Links, dir: RelPath) -> Self {
        Self { all, dir }
    }

    /// True when the tree has none at all.
    pub(crate) fn is_none(&self) -> bool {
        self.all.is_empty()
    }

    /// All of the tree.
    pub(crate) fn all(&self) -> &Links {
        &self.all
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &RelPath {
        &self.dir
    }

    /// All of them, relative to the directory and sorted by name. A file whose first name is elsewhere is known by the first
    /// that is not.
    pub fn iter<'a>(
        &self,
        nodes: &'a dyn NodeStore,
        scratch: &Scratch,
    ) -> Result<RelativeLinks<'a>, TreeError> {
        let is_outside = |path: &RelPath| strip(path, &self.dir).is_none();
        let left = self.all.left(nodes, &self.dir, scratch, |link| {
            Ok(Gone { name: is_outside(&link.name), first: is_outside(&link.first) })
        })?;
        Ok(RelativeLinks(left))
    }

    /// Takes names out. What says which are gone is asked with paths relative to the directory: about names in their order, and
    /// about the first one of each. `made` gets the new nodes.
    pub(crate) fn remove(
        &mut self,
        nodes: &dyn NodeStore,
        made: &dyn NodeStore,
        scratch: &Scratch,
        mut is_name_gone: impl FnMut(&RelPath) -> bool,
        mut is_first_gone: impl FnMut(&RelPath) -> bool,
    ) -> Result<(), TreeError> {
        let Self { all, dir } = self;
        let left = all.left(nodes, dir, scratch, |link| {
            let name = strip(&link.name, dir).is_none_or(|path| is_name_gone(&path));
            let first = strip(&link.first, dir).is_none_or(|path| is_first_gone(&path));
            Ok(Gone { name, first })
        })?;
        if left.has_lost() {
            let mut made = Batch::new(made);
            let mut out = LinksWriter::new(&mut made);
            for link in left {
                out.push(&link?)?;
            }
            *all = out.finish()?;
            made.put()?;
        }
        Ok(())
    }
}

/// See [`LinksBelow::iter`].
pub struct RelativeLinks<'a>(Left<'a>);

impl Iterator for RelativeLinks<'_> {
    type Item = Result<Link, TreeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let link = self.0.next()?;
        let relative = |path: &RelPath| strip(path, &self.0.dir).unwrap_or_default();
        Some(link.map(|Link { name, first }| Link { name: relative(&name), first: relative(&first) }))
    }
}

/// Ends where what is below `dir` does.
fn below(dir: &RelPath, link: Result<Link, NodeStoreError>) -> Option<Result<Link, NodeStoreError>> {
    let is_in = link.as_ref().map_or(true, |link| strip(&link.name, dir).is_some());
    is_in.then_some(link)
}

/// Makes the first name of each file that has lost its own the first, and sorts the others by name.
fn regroup(orphans: Sorter<Pair>, scratch: &Scratch) -> io::Result<Sorted<Pair>> {
    let mut regrouped = pairs_by_name(scratch);
    let mut orphans = orphans.sorted()?;
    let (mut file, mut first) = (Vec::new(), Vec::new());
    while let Some(pair) = orphans.next()? {
        let (lost, name) = split(pair);
        if file == lost {
            regrouped.push(&[name, b"\0", &first])?;
        } else {
            (file, first) = (lost.to_vec(), name.to_vec());
        }
    }
    regrouped.sorted()
}

pub(super) fn pairs_by_name(scratch: &Scratch) -> Sorter<Pair> {
    Sorter::new(scratch.clone(), compare_pairs)
}

/// The two paths.
pub(super) fn split(pair: &[u8]) -> (&[u8], &[u8]) {
    // No path has a zero byte.
    let at = pair.iter().position(|byte| *byte == 0).unwrap_or(pair.len());
    (&pair[..at], pair.get(at + 1..).unwrap_or_default())
}

fn compare_pairs(a: &[u8], b: &[u8]) -> Ordering {
    let (a, b) = (split(a), split(b));
    compare(a.0, b.0).then_with(|| compare(a.1, b.1))
}

impl Left<'_> {
    /// True when a name is gone.
    pub(crate) fn has_lost(&self) -> bool {
        !self.stays.is_empty()
    }

    fn step(&mut self) -> Result<Option<Link>, TreeError> {
        while self.kept.is_none()
            && let Some(link) = self.names.next().and_then(|link| below(&self.dir, link))
        {
            let link = link?;
            if self.stays.get(self.read / 8).is_none_or(|bits| bits >> (self.read % 8) & 1 == 1) {
                self.kept = Some(link);
            }
            self.read += 1;
        }
        if self.other.is_none()
            && let Some(regrouped) = &mut self.regrouped
        {
            let next = regrouped.next().map_err(TreeError::Sort)?.map(split);
            self.other = next.map(|(name, first)| Link {
                name: RelPath::of_clean(name.to_vec()),
                first: RelPath::of_clean(first.to_vec()),
            });
        }
        let is_kept = match (&self.kept, &self.other) {
            (Some(kept), Some(other)) => kept.name < other.name,
            (kept, _) => kept.is_some(),
        };
        Ok(if is_kept { self.kept.take() } else { self.other.take() })
    }
}

impl Iterator for Left<'_> {
    type Item = Result<Link, TreeError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}
