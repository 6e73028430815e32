//! Records in pieces: one that is larger than memory should hold is written, read and believed piece by piece.

use std::io;

use super::format::{Known, RecordDamaged, take};
use super::index::{KnownDir, StatIndex};
use super::rows::{Part, RecordPlace};

/// A piece ends with the entry with which it has so many bytes.
const PIECE_BYTES: usize = if cfg!(test) { 250 } else { 64 << 10 };
/// The head, name, stat and target of its last entry are less than 256 KiB.
pub(super) const PIECE_BYTES_MAX: usize = PIECE_BYTES + (256 << 10);
/// The list of a record's pieces, which has 4 GiB at most, and names of 255 bytes.
const LIST_BYTES_MAX: u32 = 32 << 20;
/// Read at once by who goes from directory to directory: their records follow each other.
const AHEAD_BYTES: usize = 32 << 10;

/// Writes a record, given by entries in order.
#[derive(Default)]
pub(super) struct RecordWriter {
    piece: Vec<u8>,
    /// With which the piece begins.
    first: Vec<u8>,
    list: Vec<u8>,
    bytes: u64,
    /// Of the pieces that were written, the last one.
    last: (usize, u32),
    pieces: usize,
}

impl RecordWriter {
    /// Adds the entry of a name. `out` gets the piece of which it is the last.
    pub(super) fn entry(
        &mut self,
        name: &[u8],
        entry: &[u8],
        out: &mut impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.piece.is_empty() {
            self.first.clear();
            self.first.extend_from_slice(name);
        }
        self.piece.extend_from_slice(entry);
        if self.piece.len() >= PIECE_BYTES { self.end_piece(out) } else { Ok(()) }
    }

    fn end_piece(&mut self, out: &mut impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        self.last = (self.piece.len(), crc32fast::hash(&self.piece));
        // Neither is near the end of its number: a piece is an entry longer than its least length, a name has 64 KiB.
        self.list.extend_from_slice(&(self.piece.len() as u32).to_le_bytes());
        self.list.extend_from_slice(&self.last.1.to_le_bytes());
        self.list.extend_from_slice(&(self.first.len() as u16).to_le_bytes());
        self.list.extend_from_slice(&self.first);
        self.bytes += self.piece.len() as u64;
        self.pieces += 1;
        out(&self.piece)?;
        self.piece.clear();
        Ok(())
    }

    /// Writes what is left of the record, of which nothing follows: where it is when it began at `at`. `None` when it is
    /// too large for an index.
    pub(super) fn end(
        mut self,
        at: u64,
        out: &mut impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<Option<RecordPlace>> {
        if !self.piece.is_empty() {
            self.end_piece(out)?;
        }
        let Ok(bytes) = u32::try_from(self.bytes) else { return Ok(None) };
        let is_listed = self.pieces > 1;
        let (at, len, crc) = match is_listed {
            false => (at, self.last.0, self.last.1),
            true => (at + self.bytes, self.list.len(), crc32fast::hash(&self.list)),
        };
        if is_listed {
            out(&self.list)?;
        }
        let len = u32::try_from(len).ok().filter(|len| !is_listed || *len <= LIST_BYTES_MAX);
        Ok(len.map(|len| RecordPlace { bytes, is_listed, part: Part { at, bytes: len, crc } }))
    }
}

/// The pieces of a record.
#[derive(Debug)]
pub(super) struct Pieces {
    place: RecordPlace,
    /// Checked; empty for a single one.
    list: Vec<u8>,
}

/// A piece, and how its first name is known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece<'a> {
    pub(super) part: Part,
    /// Nothing for the first one: whatever comes before the second is there.
    pub(super) from: &'a [u8],
}

impl Pieces {
    pub(super) fn read(index: &StatIndex, place: RecordPlace) -> Result<Self, RecordDamaged> {
        let list = match place.is_listed {
            true => index.read(place.part, LIST_BYTES_MAX as usize).ok_or(RecordDamaged)?,
            false => Vec::new(),
        };
        Ok(Self { place, list })
    }

    /// The piece in which what has this name is, if it is there, and where it goes on behind that. `None` when there are none.
    pub(super) fn find(&self, name: &[u8]) -> Result<Option<(Piece<'_>, PiecesFrom)>, RecordDamaged> {
        let (mut from, mut found) = (PiecesFrom::default(), None);
        while let Some(piece) = from.next(self)?.filter(|piece| piece.from <= name) {
            found = Some((piece, from));
        }
        Ok(found)
    }
}

/// Where it goes on among pieces.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PiecesFrom {
    in_list: usize,
    /// Of the pieces before.
    bytes: u32,
}

impl PiecesFrom {
    pub(super) fn next<'p>(
        &mut self,
        Pieces { place, list }: &'p Pieces,
    ) -> Result<Option<Piece<'p>>, RecordDamaged> {
        let left = place.bytes.checked_sub(self.bytes).ok_or(RecordDamaged)?;
        if left == 0 {
            return Ok(None);
        }
        if !place.is_listed {
            self.bytes = place.bytes;
            // Nothing else is checked with its sum.
            return if place.part.bytes == left {
                Ok(Some(Piece { part: place.part, from: &[] }))
            } else {
                Err(RecordDamaged)
            };
        }
        let start = place.part.at.checked_sub(u64::from(place.bytes)).ok_or(RecordDamaged)?;
        let mut rest = list.get(self.in_list..).unwrap_or_default();
        let mut item = || {
            let (bytes, crc) = (u32::from_le_bytes(take(&mut rest)?), u32::from_le_bytes(take(&mut rest)?));
            let length = usize::from(u16::from_le_bytes(take(&mut rest)?));
            Some((bytes, crc, rest.split_off(..length)?))
        };
        let (bytes, crc, from) =
            item().filter(|(bytes, ..)| (1..=left).contains(bytes)).ok_or(RecordDamaged)?;
        let part = Part { at: start + u64::from(self.bytes), bytes, crc };
        let from = if self.in_list == 0 { &[] } else { from };
        (self.in_list, self.bytes) = (list.len() - rest.len(), self.bytes + bytes);
        Ok(Some(Piece { part, from }))
    }
}

/// Reads the records of an index, those of directories that follow each other at once.
#[derive(Debug)]
pub struct Records<'i> {
    index: &'i StatIndex,
    window: Window,
}

/// Some bytes of an index's file.
#[derive(Debug, Default)]
struct Window {
    bytes: Vec<u8>,
    at: u64,
}

impl Window {
    /// Where the piece is in it, with which it is filled if need be. `None` when the piece is damaged.
    fn fill(&mut self, index: &StatIndex, piece: Part) -> Option<std::ops::Range<usize>> {
        let length = usize::try_from(piece.bytes).ok()?;
        let inside = piece.at.checked_sub(self.at).and_then(|from| {
            let from = usize::try_from(from).ok()?;
            Some(from..from.checked_add(length)?).filter(|range| range.end <= self.bytes.len())
        });
        let range = match inside {
            Some(range) => range,
            None => {
                if length > PIECE_BYTES_MAX || !index.has(piece) {
                    return None;
                }
                self.bytes.clear();
                self.at = piece.at;
                if index.read_some(piece.at, length, AHEAD_BYTES, &mut self.bytes).is_none() {
                    self.bytes.clear();
                    return None;
                }
                0..length
            }
        };
        (crc32fast::hash(&self.bytes[range.clone()]) == piece.crc).then_some(range)
    }
}

impl<'i> Records<'i> {
    /// Of this index; nothing is read yet.
    pub fn new(index: &'i StatIndex) -> Self {
        Self { index, window: Window::default() }
    }

    /// The record of a directory of the index, from its beginning.
    pub fn of(&mut self, dir: &KnownDir) -> Result<RecordReader<'_>, RecordDamaged> {
        let pieces = Pieces::read(self.index, dir.row().record)?;
        let (index, window) = (self.index, &mut self.window);
        let (next, left) = (PiecesFrom::default(), 0..0);
        Ok(RecordReader { index, window, pieces, next, left, behind: 0, is_damaged: false })
    }
}

/// A record that is read from its beginning to its end, with a piece of it in memory.
#[derive(Debug)]
pub struct RecordReader<'r> {
    index: &'r StatIndex,
    window: &'r mut Window,
    pieces: Pieces,
    next: PiecesFrom,
    /// What is left of the piece at hand, in the window.
    left: std::ops::Range<usize>,
    /// Behind what was peeked, or where that begins.
    behind: usize,
    is_damaged: bool,
}

impl RecordReader<'_> {
    /// What comes next, or nothing at the end. What was given before an error was sound.
    pub fn peek(&mut self) -> Result<Option<Known<'_>>, RecordDamaged> {
        if self.is_damaged {
            return Err(RecordDamaged);
        }
        if self.left.is_empty() && !self.read_piece()? {
            return Ok(None);
        }
        let mut rest = &self.window.bytes[self.left.clone()];
        let known = Known::take(&mut rest);
        self.is_damaged |= known.is_none();
        self.behind = self.left.end - rest.len();
        known.map(Some).ok_or(RecordDamaged)
    }

    /// Goes on behind what was peeked.
    pub fn skip(&mut self) {
        self.left.start = self.behind;
    }

    /// Begins again.
    pub fn rewind(&mut self) {
        (self.next, self.left, self.behind) = (PiecesFrom::default(), 0..0, 0);
    }

    /// False at the end.
    fn read_piece(&mut self) -> Result<bool, RecordDamaged> {
        if self.is_damaged {
            return Err(RecordDamaged);
        }
        self.is_damaged = true;
        let piece = self.next.next(&self.pieces)?;
        if let Some(Piece { part, .. }) = piece {
            let filled = self.index.noted(self.window.fill(self.index, part));
            self.left = filled.ok_or(RecordDamaged)?;
            self.behind = self.left.start;
        }
        self.is_damaged = false;
        Ok(piece.is_some())
    }

    /// Shows all of its bytes as they are written: its pieces, and the list of them.
    pub(super) fn copy(
        mut self,
        out: &mut impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<Result<(), RecordDamaged>> {
        loop {
            match self.read_piece() {
                Err(damaged) => return Ok(Err(damaged)),
                Ok(true) => out(&self.window.bytes[self.left.clone()])?,
                Ok(false) => {
                    out(&self.pieces.list)?;
                    return Ok(Ok(()));
                }
            }
        }
    }
}
