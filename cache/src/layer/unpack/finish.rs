//! What comes last: the listing, and the metadata of directories.

use super::super::diff::{Change, DiffEntry, LayerDiff};
use super::create::Creator;
use super::events::{Event, Events, Record};
use super::implied::ImpliedDirs;
use super::listing::{Listed, Listing};
use super::{Purpose, UnpackError, Unpacked, Unpacker};
use crate::scratch::Scratch;

impl Unpacker<'_> {
    pub(super) fn finish(self, scratch: &Scratch) -> Result<Unpacked, UnpackError> {
        let Self { purpose, mut creator, events, xattrs_dropped, .. } = self;
        let mut unpacked = Unpacked {
            diff: LayerDiff::new(scratch),
            implied_dirs: ImpliedDirs::new(scratch),
            xattrs_dropped,
        };
        let mut dirs = DirsLeft::new(scratch);
        let listing = events.sorted().and_then(|events| Listing::new(events, scratch));
        let mut listing = listing.map_err(UnpackError::Scratch)?;
        while let Some(listed) = listing.next().map_err(UnpackError::Scratch)? {
            let Listed { entry, is_implied } = listed;
            let path = &entry.path;
            match &entry.change {
                // The merged root's metadata is the lower layers' unless the archive has it: this is but an opaque mark.
                Change::Dir { .. } if is_implied && path.is_root() => creator.mark_opaque(path)?,
                Change::Dir { .. } if purpose == Purpose::Layer => dirs.push(&entry)?,
                Change::Dir { .. } | Change::File { .. } | Change::Hardlink { .. } => {}
                // Its placeholder.
                _ if purpose == Purpose::Add => creator.remove(path)?,
                _ => {}
            }
            if is_implied {
                unpacked.implied_dirs.push(unpacked.diff.len())?;
            }
            unpacked.diff.push(&entry)?;
        }
        // What it read ahead is not needed any more.
        drop(listing);
        dirs.finish(&mut creator)?;
        Ok(unpacked)
    }
}

/// Directories that get their metadata when all is made, the deepest first: making or changing something inside would touch
/// the times, and a mode may lock us out.
pub(super) struct DirsLeft(Events);

impl DirsLeft {
    /// None so far.
    pub(super) fn new(scratch: &Scratch) -> Self {
        Self(Events::reversed(scratch))
    }

    /// Takes one, as it will be.
    pub(super) fn push(&mut self, dir: &DiffEntry) -> Result<(), UnpackError> {
        let event = Event::Entry { change: dir.change.clone(), mtime: dir.mtime };
        self.0.push(&dir.path, 0, &event).map_err(UnpackError::Scratch)
    }

    /// Makes them so.
    pub(super) fn finish(self, creator: &mut Creator<'_>) -> Result<(), UnpackError> {
        let mut dirs = self.0.sorted().map_err(UnpackError::Scratch)?;
        while let Some(Record { path, event, .. }) = dirs.next().map_err(UnpackError::Scratch)? {
            if let Event::Entry { change: Change::Dir { meta, opaque }, mtime } = event {
                creator.finish_dir(&path, &meta, opaque, mtime)?;
            }
        }
        Ok(())
    }
}
