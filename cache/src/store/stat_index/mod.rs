//! Stat indexes: what a context's files and directories were when they were last looked at.
//!
//! One file per context: a table of its directories in blocks, read where something is looked for, and for each of them a
//! record of what is in it, read piece by piece when it is looked at. A file's entry is trusted only when nothing about the file's stat moved *and* the file had
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
//! | `format` | bytes of a record |
//! | `rows` | bytes of the table, and of all that leads to something |
//! | `index` | [`StatIndex`]: the last scan's, as it lies on the disk |
//! | `pieces` | [`Records`] of it, in pieces |
//! | `writer` | the next one, from the first directory to the last |
//! | `listed` | [`ListedDir`]: a directory while it is looked at, of which a [`SeenDir`] is made, with its record |
//! | `xattrs` | [`SeenXattrs`]: what no record has |
//! | `seen` | [`SeenContext`]: this scan's, from which the next index is written |

mod format;
mod index;
mod listed;
mod pieces;
mod rows;
mod seen;
mod stat;
mod writer;
mod xattrs;

pub use format::{Entries, Known, KnownKind, RecordDamaged};
pub use index::{IndexDamaged, KnownDir, StatIndex};
pub use listed::{ListedDir, Place, ReadFile, SeenDir, SeenEntry};
pub use pieces::{RecordReader, Records};
pub use seen::{SeenContext, SeenHint};
#[cfg(test)]
pub(super) use stat::settled;
pub use stat::{FileStat, STAT_BYTES, ScanMoment};
pub use xattrs::SeenXattrs;

use std::io::{BufWriter, Write as _};

use super::Store;
use super::error::{IoContext as _, StoreError};
use super::lease::Lease;

/// An index is written in pieces of this size: one of a few thousand files at once.
const WRITE_BUFFER_BYTES: usize = 256 << 10;

impl Store {
    /// The stat index of a context; empty when there is none, or where all begins in it is damaged.
    pub fn stat_index(&self, context: &[u8; 32]) -> Result<StatIndex, StoreError> {
        let layout = &self.inner.layout;
        let Some(file) = layout.open_file(&file_name(context))? else { return Ok(StatIndex::empty()) };
        Ok(StatIndex::open(file).unwrap_or_else(StatIndex::empty))
    }

    /// Replaces the stat index of a context. Not synced: losing it costs reading files again.
    pub fn put_stat_index(
        &self,
        lease: &Lease,
        context: &[u8; 32],
        seen: &SeenContext,
    ) -> Result<(), StoreError> {
        let (layout, temp) = (&self.inner.layout, lease.next_path());
        let mut out = BufWriter::with_capacity(WRITE_BUFFER_BYTES, layout.new_file(&temp)?);
        let written = seen.write(&mut out).and_then(|is_whole| out.flush().map(|()| is_whole));
        match written.doing("write", &layout.path(&temp))? {
            true => layout.replace(&temp, &file_name(context)),
            // The last index can be read no more: the next build writes another. What there is goes with the lease.
            false => Ok(()),
        }
    }
}

fn file_name(context: &[u8; 32]) -> String {
    format!("contexts/{}", hex::encode(context))
}
