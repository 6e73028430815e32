//! Records in which things are looked for by name: piece by piece those of the last index, as they are those in memory.

use std::collections::VecDeque;
use std::sync::Arc;

use super::super::format::{Known, Record, RecordDamaged};
use super::super::index::{KnownDir, StatIndex};
use super::super::listed::SeenDir;
use super::super::pieces::{PIECE_BYTES_MAX, Piece, Pieces, PiecesFrom};

/// Of a record or piece with so many bytes it is kept for a while how to look into it; a smaller one is made ready each time
/// that it is asked for: there may be as many as files.
const LARGE_BYTES: usize = if cfg!(test) { 256 } else { 16 << 10 };
/// Bytes in memory of those that are kept.
const KEPT_BYTES: usize = if cfg!(test) { 2 << 10 } else { 1 << 20 };
/// What each counts for at least.
const KEPT_BYTES_EACH: usize = KEPT_BYTES / 256;
/// Entries that are passed over to find one among them.
const ENTRIES_EACH: usize = if cfg!(test) { 3 } else { 16 };

/// A piece of a record of the last index.
#[derive(Debug)]
struct KeptPiece {
    bytes: Vec<u8>,
    /// The names from this one on, up to the other one if there is one.
    from: Box<[u8]>,
    end: Option<Box<[u8]>>,
    /// Those of the record, and where it goes on behind this one.
    pieces: Arc<Pieces>,
    next: PiecesFrom,
}

impl KeptPiece {
    fn read(
        index: &StatIndex,
        pieces: &Arc<Pieces>,
        at: (Piece<'_>, PiecesFrom),
    ) -> Result<Self, RecordDamaged> {
        let (Piece { part, from }, next) = at;
        let bytes = index.read(part, PIECE_BYTES_MAX).ok_or(RecordDamaged)?;
        let end = { next }.next(pieces)?.map(|piece| piece.from.into());
        Ok(Self { bytes, from: from.into(), end, pieces: Arc::clone(pieces), next })
    }

    /// Where nothing is.
    fn empty(pieces: &Arc<Pieces>) -> Self {
        let (pieces, next) = (Arc::clone(pieces), PiecesFrom::default());
        Self { bytes: Vec::new(), from: Box::default(), end: None, pieces, next }
    }
}

/// A record, or a piece of one, in which things are looked for.
#[derive(Debug)]
pub(super) struct Held {
    /// Place of its directory.
    pub(super) dir: usize,
    /// Where the last index counts.
    kept: Option<KeptPiece>,
    /// Where every few entries begin.
    starts: Vec<u32>,
}

impl Held {
    /// The record of a directory that was listed.
    pub(super) fn listed(at: usize, dir: &SeenDir) -> Option<Self> {
        let starts = starts(dir.record())?;
        Some(Self { dir: at, kept: None, starts })
    }

    /// That of a directory of the last index in which what has this name is, if it is there.
    pub(super) fn kept(
        dir: usize,
        index: &StatIndex,
        known: &KnownDir,
        name: &[u8],
    ) -> Result<Self, RecordDamaged> {
        let pieces = Arc::new(Pieces::read(index, known.row().record)?);
        match pieces.find(name)? {
            Some(at) => Self::of(dir, KeptPiece::read(index, &pieces, at)?),
            None => Self::of(dir, KeptPiece::empty(&pieces)),
        }
    }

    /// What follows it in the record; `None` at the end.
    pub(super) fn next(&self, index: &StatIndex) -> Result<Option<Self>, RecordDamaged> {
        let Some(KeptPiece { pieces, next, .. }) = &self.kept else { return Ok(None) };
        let mut next = *next;
        let Some(piece) = next.next(pieces)? else { return Ok(None) };
        Self::of(self.dir, KeptPiece::read(index, pieces, (piece, next))?).map(Some)
    }

    fn of(dir: usize, kept: KeptPiece) -> Result<Self, RecordDamaged> {
        let starts = starts(Record(&kept.bytes)).ok_or(RecordDamaged)?;
        Ok(Self { dir, kept: Some(kept), starts })
    }

    /// The name with which it goes on elsewhere.
    pub(super) fn end(&self) -> Option<&[u8]> {
        self.kept.as_ref()?.end.as_deref()
    }

    /// True when what has this name is in it, if it is there.
    pub(super) fn has(&self, name: &[u8]) -> bool {
        let is_behind = |kept: &KeptPiece| *kept.from <= *name;
        self.kept.as_ref().is_none_or(is_behind) && self.end().is_none_or(|end| name < end)
    }

    pub(super) fn record<'a>(&'a self, dir: &'a SeenDir) -> Record<'a> {
        self.kept.as_ref().map_or(dir.record(), |kept| Record(&kept.bytes))
    }

    /// Where the first entry begins that has this name, or else a later one.
    pub(super) fn seek(&self, dir: &SeenDir, name: &[u8]) -> u32 {
        let record = self.record(dir);
        let after = self.starts.partition_point(|start| name_at(record, *start) < name);
        let start = after.checked_sub(1).map_or(0, |at| self.starts[at]);
        let mut entries = Record(record.0.get(start as usize..).unwrap_or_default()).entries();
        loop {
            let start = record.0.len() - entries.bytes().len();
            match entries.next() {
                Some(Ok(known)) if known.name.to_bytes() < name => {}
                // A record has no more bytes than that.
                _ => return start as u32,
            }
        }
    }

    /// What has this name. It is looked for at `next` first, which goes on behind it.
    pub(super) fn find<'a>(&'a self, dir: &'a SeenDir, name: &[u8], next: &mut u32) -> Option<Known<'a>> {
        let record = self.record(dir);
        if name_at(record, *next) != name {
            *next = self.seek(dir, name);
        }
        let mut rest = record.0.get(*next as usize..)?;
        let known = Known::take(&mut rest).filter(|known| known.name.to_bytes() == name)?;
        *next = (record.0.len() - rest.len()) as u32;
        Some(known)
    }

    fn held_bytes(&self) -> usize {
        let own = self.kept.as_ref().map_or(0, |kept| kept.bytes.capacity())
            + self.starts.capacity() * size_of::<u32>();
        own.max(KEPT_BYTES_EACH)
    }

    fn is_large(&self, dir: &SeenDir) -> bool {
        self.record(dir).0.len() >= LARGE_BYTES
    }
}

fn name_at(record: Record<'_>, start: u32) -> &[u8] {
    record.at(start).map_or(&[], |known| known.name.to_bytes())
}

/// Where every few entries begin.
fn starts(record: Record<'_>) -> Option<Vec<u32>> {
    let (mut entries, mut starts) = (record.entries(), Vec::new());
    for at in 0.. {
        let start = record.0.len() - entries.bytes().len();
        match entries.next() {
            None => break,
            Some(Ok(_)) if at % ENTRIES_EACH == 0 => starts.push(u32::try_from(start).ok()?),
            Some(Ok(_)) => {}
            Some(Err(_)) => return None,
        }
    }
    starts.shrink_to_fit();
    Some(starts)
}

/// The last ones that were used, the very last first.
#[derive(Debug, Default)]
pub(super) struct Recent {
    all: VecDeque<Arc<Held>>,
    bytes: usize,
}

impl Recent {
    /// That in which the name is, if it is there.
    pub(super) fn find(&mut self, dir: usize, name: &[u8]) -> Option<Arc<Held>> {
        let at = self.all.iter().position(|held| held.dir == dir && held.has(name))?;
        let held = self.all.remove(at)?;
        self.all.push_front(Arc::clone(&held));
        Some(held)
    }

    /// Keeps it if it is large, and fewer of the others.
    pub(super) fn add(&mut self, held: &Arc<Held>, dir: &SeenDir) {
        if !held.is_large(dir) {
            return;
        }
        self.bytes += held.held_bytes();
        self.all.push_front(Arc::clone(held));
        while self.bytes > KEPT_BYTES && self.all.len() > 1 {
            let last = self.all.pop_back();
            self.bytes -= last.map_or(0, |last| last.held_bytes());
        }
    }

    /// How many there are, and the bytes that they take.
    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize) {
        (self.all.len(), self.bytes)
    }
}
