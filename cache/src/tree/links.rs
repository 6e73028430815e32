//! Hardlink groups of a tree.

mod names;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

pub(crate) use self::names::LinkNames;
use crate::layer::{FieldReader, put_number, put_path};
use crate::path::{RelPath, compare};

/// Which paths are names of one file. Groups have two or more paths, paths are sorted within their group, groups by
/// their first path, and no path is in two groups.
///
/// There may be a hundred thousand of them: paths are held as what they do not share with those of the group before, and
/// made when somebody asks for them. Clones share them: a build has a tree for every step, and few steps change any.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct LinkGroups {
    len: usize,
    packed: Arc<[u8]>,
}

impl LinkGroups {
    /// Brings groups into order; paths alone in their group are dropped.
    ///
    /// A path must not be in two groups.
    pub fn new(groups: impl IntoIterator<Item = Vec<RelPath>>) -> Self {
        let mut names = LinkNames::default();
        for group in groups {
            if let Some(first) = group.iter().min() {
                names.add(first.as_bytes(), group.iter().map(RelPath::as_bytes));
            }
        }
        names.into_groups()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when no file has two names.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The groups, sorted.
    pub fn groups(&self) -> Groups<'_> {
        Groups {
            left: self.len,
            input: FieldReader::new(&self.packed, 0),
            first: Vec::new(),
            other: Vec::new(),
        }
    }

    /// Groups as seen from `dir`: paths below it, relative to it; groups with fewer than two of those are left out.
    pub fn below(&self, dir: &RelPath) -> Self {
        if dir.is_root() {
            return self.clone();
        }
        let inside = |group: Vec<RelPath>| {
            group.iter().filter_map(|path| strip(path, dir)).filter(|path| !path.is_root()).collect()
        };
        Self::new(self.groups().map(inside))
    }

    /// Groups without the paths for which `gone` says true.
    pub(crate) fn without(&self, gone: impl Fn(&RelPath) -> bool) -> impl Iterator<Item = Vec<RelPath>> {
        self.groups().map(move |mut group| {
            group.retain(|path| !gone(path));
            group
        })
    }

    /// True when both are in the same place.
    #[cfg(test)]
    pub(crate) fn are_shared_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.packed, &other.packed)
    }
}

impl fmt::Debug for LinkGroups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.groups()).finish()
    }
}

/// Groups of a [`LinkGroups`], one after the other.
#[derive(Clone)]
pub struct Groups<'a> {
    left: usize,
    input: FieldReader<'a>,
    /// The first path of the last group, and its last one.
    first: Vec<u8>,
    other: Vec<u8>,
}

impl Groups<'_> {
    fn group(&mut self) -> Result<Vec<RelPath>, &'static str> {
        let count = usize::try_from(self.input.number()?).unwrap_or_default();
        let mut group = Vec::with_capacity(count);
        for place in 0..count {
            let path = if place == 0 { &mut self.first } else { &mut self.other };
            self.input.path(path)?;
            group.push(RelPath::of_clean(path.clone()));
        }
        Ok(group)
    }
}

impl Iterator for Groups<'_> {
    type Item = Vec<RelPath>;

    fn next(&mut self) -> Option<Vec<RelPath>> {
        self.left = self.left.checked_sub(1)?;
        // What was packed here unpacks.
        self.group().ok()
    }
}

/// Takes groups in order.
///
/// ```text
/// group = count { shared suffix-length suffix }…
/// ```
///
/// The names of a file are often in two directories, as are those of the next: first paths follow each other, and so do the
/// others.
#[derive(Default)]
pub(crate) struct Packer {
    len: usize,
    packed: Vec<u8>,
    first: Vec<u8>,
    other: Vec<u8>,
}

impl Packer {
    /// Takes the next group of clean paths, unless it is too small, not sorted, or does not come after those before.
    pub(crate) fn push(&mut self, group: &[&[u8]]) -> bool {
        let [first, others @ ..] = group else { return false };
        // The root comes first of all, and is not a file.
        let is_next = compare(&self.first, first).is_lt();
        if others.is_empty() || !is_next || !group.is_sorted_by(|a, b| compare(a, b).is_lt()) {
            return false;
        }
        self.len += 1;
        put_number(&mut self.packed, group.len() as u64);
        put_path(&mut self.packed, &self.first, first);
        self.first.clear();
        self.first.extend_from_slice(first);
        for other in others {
            put_path(&mut self.packed, &self.other, other);
            self.other.clear();
            self.other.extend_from_slice(other);
        }
        true
    }

    /// The groups; whether a path is in two of them is for whoever does not know it.
    pub(crate) fn finish(self) -> LinkGroups {
        LinkGroups { len: self.len, packed: self.packed.into() }
    }
}

/// `path` relative to `dir`, `None` when it is not `dir` or below it.
pub(crate) fn strip(path: &RelPath, dir: &RelPath) -> Option<RelPath> {
    if dir.is_root() {
        return Some(path.clone());
    }
    let rest = path.as_bytes().strip_prefix(dir.as_bytes())?;
    let rest = if rest.is_empty() { rest } else { rest.strip_prefix(b"/")? };
    Some(RelPath::new(rest).expect("the tail of a clean path after a `/` is clean"))
}

/// `path` below `dir`.
pub(crate) fn below(dir: &RelPath, path: &RelPath) -> RelPath {
    if path.is_root() { dir.clone() } else { dir.join(path.as_bytes()) }
}
