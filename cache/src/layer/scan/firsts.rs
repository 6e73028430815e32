//! Files with several names, between the first of them and the last.

use std::collections::HashMap;
use std::io;

use super::super::diff::{DiffEntry, Placed};
use crate::scratch::Scratch;

/// What files with several names were found to be under the first. There may be as many as there are files: in memory is
/// where.
pub(super) struct Firsts {
    entries: Placed,
    of: HashMap<u64, First>,
}

struct First {
    at: u64,
    /// Names that may still come.
    left: u32,
}

impl Firsts {
    pub(super) fn new(scratch: &Scratch) -> Self {
        Self { entries: Placed::new(scratch), of: HashMap::new() }
    }

    /// True when names of this inode may still come.
    pub(super) fn await_names_of(&self, inode: u64) -> bool {
        self.of.contains_key(&inode)
    }

    /// Notes the first of so many names of an inode.
    pub(super) fn note(&mut self, inode: u64, links: u64, entry: &DiffEntry) -> io::Result<()> {
        let at = self.entries.put(entry)?;
        let left = u32::try_from(links.saturating_sub(1)).unwrap_or(u32::MAX);
        self.of.insert(inode, First { at, left });
        Ok(())
    }

    /// What was noted of an inode that has one more name now, if it was.
    pub(super) fn of_next_name(&mut self, inode: u64) -> io::Result<Option<DiffEntry>> {
        let Some(first) = self.of.get_mut(&inode) else { return Ok(None) };
        let at = first.at;
        first.left = first.left.saturating_sub(1);
        if first.left == 0 {
            self.of.remove(&inode);
        }
        self.entries.get(at).map(Some)
    }
}
