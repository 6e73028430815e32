//! Stat indexes: what a context's files and directories were when they were last looked at.
//!
//! One file per context: a table of its directories, read whole, and for each of them a record of what is in it, read
//! when it is looked at. A file's entry is trusted only when nothing about the file's stat moved *and* the file had
//! been left alone before the scan that read it began ([`ScanMoment`]). The second half is the racy-git rule, one
//! notch stricter: a file may change after it was read but within the same clock tick as its recorded change time, and
//! an index written a tick later would not show it. A change after the scan began always gives a time at or after the
//! scan's moment, which is later than every trusted recorded time.
//!
//! The same holds for directories: whoever adds, removes or renames an entry moves the directory's own times. So what
//! is in one with the stat that it had is what the record says, if it was chosen by the same rules, and need not be
//! listed, matched, sorted and hashed again.
//!
//! | module | for |
//! |---|---|
//! | `stat` | [`FileStat`], [`ScanMoment`], the rule above |
//! | `format` | bytes of a record and of the table |
//! | `index` | [`StatIndex`]: the last scan's, as it lies on the disk |
//! | `seen` | [`SeenContext`]: this scan's, from which the next index is written |

mod format;
mod index;
mod seen;
mod stat;

pub use format::{Entries, Known, KnownKind, Record, RecordDamaged};
pub use index::{KnownDir, StatIndex};
pub use seen::{Contained, ListedDir, SeenContext, SeenDir, SeenEntry, SeenKind};
#[cfg(test)]
pub(super) use stat::settled;
pub use stat::{FileStat, STAT_BYTES, ScanMoment};

use super::Store;
use super::error::StoreError;
use super::lease::Lease;

impl Store {
    /// The stat index of a context; empty when there is none or its table is damaged.
    pub fn stat_index(&self, context: &[u8; 32]) -> Result<StatIndex, StoreError> {
        let layout = &self.inner.layout;
        let Some(file) = layout.open_file(&file_name(context))? else { return Ok(StatIndex::empty()) };
        Ok(StatIndex::read(file).unwrap_or_else(StatIndex::empty))
    }

    /// Replaces the stat index of a context. Not synced: losing it costs reading files again.
    pub fn put_stat_index(
        &self,
        lease: &Lease,
        context: &[u8; 32],
        seen: &SeenContext,
    ) -> Result<(), StoreError> {
        // The last index can be read no more: the next build writes another.
        let Some(bytes) = seen.encode() else { return Ok(()) };
        let temp = lease.next_path();
        self.inner.layout.write_new(&temp, &bytes)?;
        self.inner.layout.replace(&temp, &file_name(context))
    }
}

fn file_name(context: &[u8; 32]) -> String {
    format!("contexts/{}", hex::encode(context))
}
