//! The names of files with several, one by one.

use std::cmp::Ordering;

use super::{LinkGroups, Packer};
use crate::layer::{DiffEntry, FieldReader, LayerDiff, ListingError, is_below, put_bytes};
use crate::path::{RelPath, compare};

/// Names of files with several, in any order. Paths are in one place: each in a memory block of its own would take several
/// times as much.
#[derive(Default)]
pub(crate) struct LinkNames {
    paths: Vec<u8>,
    names: Vec<Name>,
}

/// Where among the paths a name is, and one that all names of its file have in common.
#[derive(Clone, Copy)]
struct Name {
    at: usize,
    file: usize,
}

impl LinkNames {
    /// All names of some groups in [`RelPath`]'s order, each file known by its first.
    pub(crate) fn of(groups: &LinkGroups) -> Self {
        let mut all = Self::default();
        for group in groups.groups() {
            all.add(group[0].as_bytes(), group.iter().map(RelPath::as_bytes));
        }
        let Self { paths, names } = &mut all;
        names.sort_unstable_by(|a, b| compare(path(paths, a.at), path(paths, b.at)));
        all
    }

    /// Adds names of the file that is known by a path.
    pub(crate) fn add<'a>(&mut self, file: &[u8], names: impl IntoIterator<Item = &'a [u8]>) {
        let file_at = self.put(file);
        for name in names {
            let at = if name == file { file_at } else { self.put(name) };
            self.names.push(Name { at, file: file_at });
        }
    }

    fn put(&mut self, path: &[u8]) -> usize {
        let at = self.paths.len();
        put_bytes(&mut self.paths, path);
        at
    }

    /// Adds those of other files.
    pub(crate) fn append(&mut self, other: Self) {
        let behind = self.paths.len();
        self.paths.extend_from_slice(&other.paths);
        let moved = |Name { at, file }| Name { at: behind + at, file: behind + file };
        self.names.extend(other.names.into_iter().map(moved));
    }

    /// True when there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// True when a path is the name of two files, or one twice. Names are in order.
    pub(crate) fn have_equal(&self) -> bool {
        self.names.windows(2).any(|two| self.path(two[0].at) == self.path(two[1].at))
    }

    /// What the file of this name is known by. Names are in order.
    pub(crate) fn file_of(&self, name: &RelPath) -> Option<&[u8]> {
        let found = self.names.binary_search_by(|one| compare(self.path(one.at), name.as_bytes())).ok()?;
        Some(self.path(self.names.get(found)?.file))
    }

    /// Takes out what a diff touches: every path in it, and everything below what it replaces. Names are in order. False
    /// when there is nothing of it.
    pub(crate) fn remove_touched(&mut self, diff: &LayerDiff) -> Result<bool, ListingError> {
        let Self { paths, names } = self;
        let mut entries = diff.iter();
        let (mut kept, mut next) = (0, 0);
        // Both are in order, and what is below a path comes right after it.
        while next < names.len()
            && let Some(entry) = entries.next()
        {
            let DiffEntry { path: touched, change, .. } = entry?;
            let is_gone =
                |name: &[u8]| change.replaces() && (touched.is_root() || is_below(name, touched.as_bytes()));
            while let Some(name) = names.get(next) {
                let name = path(paths, name.at);
                match compare(name, touched.as_bytes()) {
                    Ordering::Less => {
                        names[kept] = names[next];
                        kept += 1;
                    }
                    Ordering::Equal => {}
                    Ordering::Greater if is_gone(name) => {}
                    Ordering::Greater => break,
                }
                next += 1;
            }
        }
        let has_removed = kept < next;
        names.drain(kept..next);
        Ok(has_removed)
    }

    /// Makes each file known by its first name again.
    pub(crate) fn name_files(&mut self) {
        self.sort_by_file();
        let Self { paths, names } = self;
        for file in names.chunk_by_mut(|a, b| path(paths, a.file) == path(paths, b.file)) {
            let first = file[0].at;
            file.iter_mut().for_each(|name| name.file = first);
        }
    }

    /// Their groups, when each file is known by its first name.
    pub(crate) fn into_groups(mut self) -> LinkGroups {
        self.sort_by_file();
        let Self { paths, names } = &self;
        let mut packer = Packer::default();
        let mut group = Vec::new();
        for file in names.chunk_by(|a, b| path(paths, a.file) == path(paths, b.file)) {
            group.clear();
            group.extend(file.iter().map(|name| path(paths, name.at)));
            group.dedup();
            // Not when it is alone.
            packer.push(&group);
        }
        packer.finish()
    }

    fn sort_by_file(&mut self) {
        let Self { paths, names } = self;
        let path = |at| path(paths, at);
        names.sort_unstable_by(|a, b| {
            compare(path(a.file), path(b.file)).then_with(|| compare(path(a.at), path(b.at)))
        });
    }

    fn path(&self, at: usize) -> &[u8] {
        path(&self.paths, at)
    }
}

fn path(paths: &[u8], at: usize) -> &[u8] {
    // What was put there.
    FieldReader::new(paths, at).string().unwrap_or_default()
}
