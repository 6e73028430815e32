//! What is held and all runs as one, in the order of paths.

use std::collections::btree_map::Range;
use std::fs::File;
use std::io;
use std::iter::Peekable;
use std::ops::Bound;

use super::super::view::Planned;
use super::run::Reader;
use super::{Pending, Said, held_bytes_max, unread};
use crate::layer::ListingError;
use crate::path::{RelPath, compare};

/// Bytes read ahead of each run at least and at most: the more there are, the less.
const AHEAD_BYTES_MIN: usize = 4 << 10;
const AHEAD_BYTES_MAX: usize = 64 << 10;

/// Goes through what is planned, path by path.
pub(in super::super) struct Merged<'a> {
    held: Peekable<Range<'a, RelPath, Said>>,
    file: Option<&'a File>,
    /// Each at its next path. One shadows those that follow.
    runs: Vec<Reader>,
}

impl<'a> Merged<'a> {
    /// From the first path on.
    pub(super) fn all(pending: &'a Pending) -> Result<Self, ListingError> {
        // What is held still is, beside that.
        let ahead = held_bytes_max() / 4 / pending.runs.len().max(1);
        let ahead = ahead.clamp(AHEAD_BYTES_MIN, AHEAD_BYTES_MAX);
        let mut merged = Self::of(pending, Bound::Unbounded);
        for (file, run) in pending.newest_first() {
            merged.take_up(file, run.reader(ahead), None).map_err(unread)?;
        }
        Ok(merged)
    }

    /// From the one on that comes after `path`.
    pub(super) fn after(pending: &'a Pending, path: &RelPath) -> Result<Self, ListingError> {
        let mut merged = Self::of(pending, Bound::Excluded(path));
        for (file, run) in pending.newest_first() {
            if compare(run.last(), path.as_bytes()).is_gt() {
                merged.take_up(file, run.reader_before(path), Some(path)).map_err(unread)?;
            }
        }
        Ok(merged)
    }

    fn of(pending: &'a Pending, from: Bound<&RelPath>) -> Self {
        let held = pending.held.range::<RelPath, _>((from, Bound::Unbounded)).peekable();
        Self { held, file: pending.file.as_ref(), runs: Vec::new() }
    }

    fn take_up(&mut self, file: &File, mut run: Reader, after: Option<&RelPath>) -> io::Result<()> {
        while run.advance(file)? {
            if after.is_none_or(|after| compare(&run.path, after.as_bytes()).is_gt()) {
                self.runs.push(run);
                break;
            }
        }
        Ok(())
    }

    /// The next path, and what is planned there.
    pub(in super::super) fn next(&mut self) -> Result<Option<(RelPath, Planned)>, ListingError> {
        while let Some((path, said)) = self.next_said().map_err(unread)? {
            if let Said::Planned(planned) = said {
                return Ok(Some((path, *planned)));
            }
        }
        Ok(None)
    }

    fn next_said(&mut self) -> io::Result<Option<(RelPath, Said)>> {
        // Of equal ones the first, which shadows the others.
        let run = self.runs.iter().min_by(|a, b| compare(&a.path, &b.path));
        let is_next = |path: &RelPath| run.is_none_or(|run| compare(path.as_bytes(), &run.path).is_le());
        let next = match (self.held.next_if(|(path, _)| is_next(path)), run) {
            (Some((path, said)), _) => (path.clone(), said.clone()),
            (None, Some(run)) => (RelPath::of_clean(run.path.clone()), run.said()?),
            (None, None) => return Ok(None),
        };
        self.pass(&next.0)?;
        Ok(Some(next))
    }

    /// Moves on in all runs that are at a path.
    fn pass(&mut self, path: &RelPath) -> io::Result<()> {
        let Some(file) = self.file else { return Ok(()) };
        let mut place = 0;
        while let Some(run) = self.runs.get_mut(place) {
            if run.path == path.as_bytes() && !run.advance(file)? {
                self.runs.remove(place);
            } else {
                place += 1;
            }
        }
        Ok(())
    }
}
