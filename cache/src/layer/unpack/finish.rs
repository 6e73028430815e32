//! What comes last: the listing, and the metadata of directories.

use super::super::diff::{Change, LayerDiff};
use super::create::Creator;
use super::events::{Event, Events, Record};
use super::listing::{Listed, Listing};
use super::{Purpose, UnpackError, Unpacked, Unpacker};
use crate::scratch::Scratch;

impl Unpacker<'_> {
    pub(super) fn finish(self, scratch: &Scratch) -> Result<Unpacked, UnpackError> {
        let Self { purpose, mut creator, events, xattrs_dropped, .. } = self;
        let mut unpacked = Unpacked {
            diff: LayerDiff::new(scratch),
            implied_dirs: Vec::new(),
            absent_devices: Vec::new(),
            xattrs_dropped,
        };
        let mut dirs = Events::reversed(scratch);
        let listing = events.sorted().and_then(|events| Listing::new(events, scratch));
        let mut listing = listing.map_err(UnpackError::Scratch)?;
        while let Some(listed) = listing.next().map_err(UnpackError::Scratch)? {
            let Listed { entry, is_implied, is_absent } = listed;
            let path = &entry.path;
            match &entry.change {
                // The merged root's metadata is the lower layers' unless the archive has it: this is but an opaque mark.
                Change::Dir { .. } if is_implied && path.is_root() => creator.mark_opaque(path)?,
                Change::Dir { meta, opaque } if purpose == Purpose::Layer => {
                    let change = Change::Dir { meta: meta.clone(), opaque: *opaque };
                    let event = Event::Entry { change, mtime: entry.mtime, is_absent: false };
                    dirs.push(path, 0, &event).map_err(UnpackError::Scratch)?;
                }
                Change::Dir { .. } | Change::File { .. } | Change::Hardlink { .. } => {}
                // Its placeholder.
                _ if purpose == Purpose::Add => creator.remove(path)?,
                _ => {}
            }
            if is_implied {
                unpacked.implied_dirs.push(path.clone());
            }
            if is_absent {
                unpacked.absent_devices.push(path.clone());
            }
            unpacked.diff.push(&entry)?;
        }
        // What it read ahead is not needed any more.
        drop(listing);
        finish_dirs(&mut creator, dirs)?;
        Ok(unpacked)
    }
}

/// Gives directories their metadata, the deepest first: making or changing something inside would touch the times, and
/// a mode may lock us out.
fn finish_dirs(creator: &mut Creator<'_>, dirs: Events) -> Result<(), UnpackError> {
    let mut dirs = dirs.sorted().map_err(UnpackError::Scratch)?;
    while let Some(Record { path, event, .. }) = dirs.next().map_err(UnpackError::Scratch)? {
        if let Event::Entry { change: Change::Dir { meta, opaque }, mtime, .. } = event {
            creator.finish_dir(&path, &meta, opaque, mtime)?;
        }
    }
    Ok(())
}
