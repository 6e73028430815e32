//! What tests want of a diff: to look at all of it, compare it, have it twice.

use super::{Change, DiffEntry, LayerDiff, Mtime};
use crate::path::RelPath;
use crate::tree::Meta;

impl LayerDiff {
    /// One entry that says this.
    pub(crate) fn saying(text: &str) -> Self {
        let change = Change::Symlink { meta: Meta::default(), target: text.into() };
        [DiffEntry { path: RelPath::new("says").unwrap(), change, mtime: Mtime::default() }]
            .into_iter()
            .collect()
    }

    /// All entries.
    pub(crate) fn entries(&self) -> Vec<DiffEntry> {
        self.iter().map(Result::unwrap).collect()
    }
}

impl Clone for LayerDiff {
    fn clone(&self) -> Self {
        self.entries().into_iter().collect()
    }
}

impl PartialEq for LayerDiff {
    fn eq(&self, other: &Self) -> bool {
        self.entries() == other.entries()
    }
}
