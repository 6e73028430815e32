//! Hardlink groups of a tree.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::path::RelPath;

/// Which paths are names of one file. Groups have two or more paths, paths are sorted within their group, groups by
/// their first path, and no path is in two groups.
///
/// Clones share them: a build has a tree for every step, and few steps change any.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkGroups(Arc<[Vec<RelPath>]>);

impl LinkGroups {
    /// Brings groups into order; paths alone in their group are dropped.
    ///
    /// A path must not be in two groups.
    pub fn new(groups: impl IntoIterator<Item = Vec<RelPath>>) -> Self {
        let mut groups: Vec<Vec<RelPath>> = groups
            .into_iter()
            .filter_map(|mut group| {
                group.sort();
                group.dedup();
                group.shrink_to_fit();
                (group.len() > 1).then_some(group)
            })
            .collect();
        groups.sort();
        Self(groups.into())
    }

    /// Takes groups that must be in order already, `None` when they are not.
    pub(crate) fn from_sorted(groups: Vec<Vec<RelPath>>) -> Option<Self> {
        let mut seen = BTreeSet::new();
        let group_ok = |group: &Vec<RelPath>| group.len() > 1 && group.is_sorted_by(|a, b| a < b);
        let ok = groups.iter().all(group_ok)
            && groups.is_sorted_by(|a, b| a < b)
            && groups.iter().flatten().all(|path| !path.is_root() && seen.insert(path));
        ok.then(|| Self(groups.into()))
    }

    /// The groups, sorted.
    pub fn groups(&self) -> &[Vec<RelPath>] {
        &self.0
    }

    /// Groups as seen from `dir`: paths below it, relative to it; groups with fewer than two of those are left out.
    pub fn below(&self, dir: &RelPath) -> Self {
        let inside = |group: &Vec<RelPath>| {
            group.iter().filter_map(|path| strip(path, dir)).filter(|path| !path.is_root()).collect()
        };
        Self::new(self.0.iter().map(inside))
    }

    /// Groups without the paths for which `gone` says true.
    pub(crate) fn without(&self, gone: impl Fn(&RelPath) -> bool) -> impl Iterator<Item = Vec<RelPath>> {
        self.0.iter().map(move |group| group.iter().filter(|path| !gone(path)).cloned().collect())
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
