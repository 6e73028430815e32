//! Where the bytes of a plan's files are.
//!
//! Nearly all files of a layer come from below a directory or two. So a plan says from which path on which origin counts;
//! it holds nothing for each file.

mod encoded;

use std::fmt;

pub(super) use self::encoded::{put_origin, read_origin};
use super::{FileSource, Sources};
use crate::encoded::{Encoded, Input, ONE_AHEAD, ReadError};
use crate::layer::{ListingError, Stop, Stops, put_path};
use crate::path::{RelPath, compare};
use crate::scratch::Scratch;
use crate::tree::{below, strip};

/// Where the bytes of some files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In the source of the instruction.
    Source(Moved),
    /// In the directory of an unpacked archive, among those of all archives.
    Archive(Moved),
    /// In the plan: a heredoc.
    Inline(Vec<u8>),
    /// In whichever pack has the content.
    Packed,
}

/// A file, or all below a directory, that has another path in a source than in the layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    to: RelPath,
    from: RelPath,
}

impl Moved {
    /// From a path of the source to one of the layer. What the paths end in alike is left out: files taken one by one
    /// then have one rule.
    pub fn new(mut from: RelPath, mut to: RelPath) -> Self {
        while let (Some(from_parent), Some(to_parent)) = (from.parent(), to.parent())
            && from.name() == to.name()
        {
            (from, to) = (from_parent, to_parent);
        }
        Self { to, from }
    }

    fn source_of(&self, path: &RelPath) -> Option<RelPath> {
        Some(below(&self.from, &strip(path, &self.to)?))
    }
}

/// The origins of all files of a plan.
///
/// ```text
/// start = shared-prefix suffix  origin
/// ```
///
/// An origin counts from its start on, up to the next one. Files of many sources may take turns in a directory: what goes beyond 256 KiB
/// is in a file, and reading may fail.
#[derive(Default)]
pub struct Origins {
    starts: Encoded,
    stops: Stops,
    len: usize,
    /// Path of the last start.
    last: Vec<u8>,
}

impl Origins {
    /// None so far; many go to a file of `scratch`. The default keeps all in memory.
    pub fn new(scratch: &Scratch) -> Self {
        Self { starts: Encoded::new(scratch.clone()), ..Self::default() }
    }

    /// One for all files.
    pub fn all(origin: &Origin) -> Self {
        let mut origins = Self::default();
        origins.push(&RelPath::root(), origin).expect("nothing is written to a file");
        origins
    }

    /// Says where the file at `path` is, which comes after all others, and those that follow.
    pub fn push(&mut self, path: &RelPath, origin: &Origin) -> Result<(), ListingError> {
        let (path, at) = (path.as_bytes(), self.starts.end());
        let last = &self.last;
        self.starts
            .append(|out| {
                put_path(out, last, path);
                put_origin(out, path, origin);
            })
            .map_err(|source| ListingError { doing: "write", source })?;
        self.stops.note(Stop { index: self.len, at, path }, self.starts.start);
        self.last.clear();
        self.last.extend_from_slice(path);
        self.len += 1;
        Ok(())
    }

    /// Looks origins up.
    pub(super) fn finder(&self) -> Finder<'_> {
        Finder { origins: self, cursor: None }
    }

    fn cursor(&self, stop: Option<Stop<'_>>) -> Cursor<'_> {
        let Stop { index, at, path } = stop.unwrap_or(Stop { index: 0, at: self.starts.start, path: b"" });
        // What its path shares with the one before, it shares with itself.
        Cursor {
            input: self.starts.read_from(at, ONE_AHEAD),
            left: self.len - index,
            path: path.to_vec(),
            now: None,
            next: None,
        }
    }
}

impl fmt::Debug for Origins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origins").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Looks origins up. Who asks in the order of paths has each start read once.
pub(super) struct Finder<'a> {
    origins: &'a Origins,
    cursor: Option<Cursor<'a>>,
}

/// Goes through starts.
struct Cursor<'a> {
    input: Input<'a>,
    left: usize,
    /// Of the last start that was read.
    path: Vec<u8>,
    /// What counts, and what will be next. Nothing counts before the first.
    now: Option<Start>,
    next: Option<Start>,
}

struct Start {
    path: Vec<u8>,
    origin: Origin,
}

impl Finder<'_> {
    /// Where the file at `path` is, which must be one of the plan's.
    pub(super) fn of(&mut self, path: &RelPath) -> Result<Option<&Origin>, ListingError> {
        let unread = |error: ReadError| ListingError { doing: "read", source: error.into() };
        let path = path.as_bytes();
        let stop = self.origins.stops.before(|stop| compare(stop.path, path).is_le());
        let mut cursor = match self.cursor.take() {
            Some(cursor) if cursor.goes_on_to(path, stop) => cursor,
            _ => {
                let mut cursor = self.origins.cursor(stop);
                cursor.advance().map_err(unread)?;
                cursor
            }
        };
        while cursor.next.as_ref().is_some_and(|next| compare(&next.path, path).is_le()) {
            cursor.advance().map_err(unread)?;
        }
        Ok(self.cursor.insert(cursor).now.as_ref().map(|now| &now.origin))
    }
}

impl Cursor<'_> {
    /// False when it is behind the path, or `stop` is nearer.
    fn goes_on_to(&self, path: &[u8], stop: Option<Stop<'_>>) -> bool {
        let is_behind = self.now.as_ref().is_some_and(|now| compare(&now.path, path).is_gt());
        let is_nearer =
            |stop: Stop<'_>| self.next.as_ref().is_some_and(|next| compare(stop.path, &next.path).is_gt());
        !is_behind && !stop.is_some_and(is_nearer)
    }

    /// Moves on to the next start.
    fn advance(&mut self) -> Result<(), ReadError> {
        self.now = self.next.take();
        if self.left == 0 {
            return Ok(());
        }
        let path = &mut self.path;
        self.input.read(|reader| reader.path(path).map(drop))?;
        let origin = self.input.read(|reader| read_origin(reader, path))?;
        self.next = Some(Start { path: path.clone(), origin });
        self.left -= 1;
        Ok(())
    }
}

/// Where one file is read from.
pub(super) enum Found<'a> {
    File(&'a dyn FileSource, RelPath),
    Bytes(Vec<u8>),
    Packed,
}

impl<'a> Sources<'a> {
    /// Where the file at `path` is read from; `None` when its source was not given.
    pub(super) fn find(
        &self,
        origins: &mut Finder<'_>,
        path: &RelPath,
    ) -> Result<Option<Found<'a>>, ListingError> {
        let (source, moved) = match origins.of(path)? {
            Some(Origin::Source(moved)) => (self.main, moved),
            Some(Origin::Archive(moved)) => (self.archives, moved),
            Some(Origin::Inline(bytes)) => return Ok(Some(Found::Bytes(bytes.clone()))),
            Some(Origin::Packed) => return Ok(Some(Found::Packed)),
            None => return Ok(None),
        };
        Ok(source.zip(moved.source_of(path)).map(|(source, from)| Found::File(source, from)))
    }
}

#[cfg(test)]
pub(super) mod tests;
