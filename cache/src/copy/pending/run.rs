//! What was held once, in a file, in the order of paths.

use std::cell::Cell;
use std::fs::File;
use std::io;

use super::Said;
use super::encoded::{put_said, read_said};
use crate::layer::{FieldReader, Stop, Stops, put_path};
use crate::path::{RelPath, compare};
use crate::sorter::{self, RunWriter};

/// Bytes read ahead for what is looked for.
const ONE_AHEAD: usize = 4 << 10;

/// A run of paths, and where to take it up in memory. Each path is as what it does not share with the one before.
pub(super) struct Run {
    first: RelPath,
    last: Vec<u8>,
    len: usize,
    /// Where in the file it begins, and ends.
    start: u64,
    end: u64,
    stops: Stops,
    /// Where the last look-up ended: the next one is often for a path that comes soon after.
    cursor: Cell<Option<Cursor>>,
}

struct Cursor {
    reader: Reader,
    /// What was looked for: nothing is from there up to what the reader is at.
    sought: Vec<u8>,
}

impl Run {
    /// Nothing, from a place on; `first` comes first.
    pub(super) fn new(first: &RelPath, at: u64) -> Self {
        let stops = Stops::default();
        Self {
            first: first.clone(),
            last: Vec::new(),
            len: 0,
            start: at,
            end: at,
            stops,
            cursor: Cell::default(),
        }
    }

    /// Where it ends.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Its last path.
    pub(super) fn last(&self) -> &[u8] {
        &self.last
    }

    /// Adds a path that comes after all others. It counts once all are [`Self::finish`]ed.
    pub(super) fn push(&mut self, out: &mut RunWriter<'_>, path: &RelPath, said: &Said) -> io::Result<()> {
        let path = path.as_bytes();
        let mut record = Vec::new();
        put_path(&mut record, &self.last, path);
        put_said(&mut record, said);
        self.stops.note(Stop { index: self.len, at: out.at(), path }, self.start);
        self.last.clear();
        self.last.extend_from_slice(path);
        self.len += 1;
        out.record(&record)
    }

    /// Writes what was added to the end.
    pub(super) fn finish(&mut self, out: RunWriter<'_>) -> io::Result<()> {
        self.end = out.finish()?;
        // It would not go on behind the end that it knows.
        self.cursor.take();
        Ok(())
    }

    /// What it says of a path.
    pub(super) fn get(&self, file: &File, path: &[u8]) -> io::Result<Option<Said>> {
        if compare(path, self.first.as_bytes()).is_lt() || compare(path, &self.last).is_gt() {
            return Ok(None);
        }
        let stop = self.stops.before(|stop| compare(stop.path, path).is_le());
        let mut cursor = match self.cursor.take() {
            Some(cursor) if cursor.goes_on_to(path, stop) => cursor,
            _ => {
                let mut reader = self.reader_from(stop, ONE_AHEAD);
                reader.advance(file)?;
                Cursor { reader, sought: Vec::new() }
            }
        };
        // There is one that does not come before it: the last.
        while compare(&cursor.reader.path, path).is_lt() && cursor.reader.advance(file)? {}
        cursor.sought.clear();
        cursor.sought.extend_from_slice(path);
        let said = match cursor.reader.path == path {
            true => Some(cursor.reader.said()?),
            false => None,
        };
        self.cursor.set(Some(cursor));
        Ok(said)
    }

    /// Reads all of it.
    pub(super) fn reader(&self, ahead: usize) -> Reader {
        self.reader_from(None, ahead)
    }

    /// Reads from a path on, or from one that comes before it.
    pub(super) fn reader_before(&self, path: &RelPath) -> Reader {
        self.reader_from(self.stops.before(|stop| compare(stop.path, path.as_bytes()).is_le()), ONE_AHEAD)
    }

    fn reader_from(&self, stop: Option<Stop<'_>>, ahead: usize) -> Reader {
        let Stop { at, path, .. } = stop.unwrap_or(Stop { index: 0, at: self.start, path: b"" });
        // What its path shares with the one before, it shares with itself.
        Reader { records: sorter::Run::new(at, self.end, ahead), path: path.to_vec() }
    }
}

impl Cursor {
    /// False when it is behind the path, or `stop` is nearer.
    fn goes_on_to(&self, path: &[u8], stop: Option<Stop<'_>>) -> bool {
        let at = &self.reader.path;
        let is_nearest = || stop.is_none_or(|stop| compare(stop.path, at).is_le());
        compare(&self.sought, path).is_le() && (compare(path, at).is_le() || is_nearest())
    }
}

/// Reads a run path by path.
pub(super) struct Reader {
    records: sorter::Run,
    /// The path that was last moved on to.
    pub(super) path: Vec<u8>,
}

impl Reader {
    /// Moves on to the next path; false when there is none.
    pub(super) fn advance(&mut self, file: &File) -> io::Result<bool> {
        if !self.records.advance(file)? {
            return Ok(false);
        }
        FieldReader::new(self.records.record(), 0).path(&mut self.path).map_err(malformed)?;
        Ok(true)
    }

    /// What is said of that path.
    pub(super) fn said(&self) -> io::Result<Said> {
        let mut input = FieldReader::new(self.records.record(), 0);
        let passed = input.number().and_then(|_| input.string());
        passed.and_then(|_| read_said(&mut input)).map_err(malformed)
    }
}

/// What was written is something else now.
fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
