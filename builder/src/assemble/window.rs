//! The bytes of a blob that passes through: the last of them in memory, and in a file those that somebody is too far
//! behind to have got from there.
//!
//! ```text
//!   0 ──────── gone or in the file ────────┬──────── pieces in memory ────────┤ end, being written
//!                        reader's place ───┘→
//! ```
//!
//! A reader who keeps up never makes the writer touch the disk; one who does not slows nobody. What everybody has got and a
//! while has passed since is forgotten: the layer is there to make it again.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rbuild_cache::store::{Lease, Store};

/// Most bytes in memory, of all windows of a build.
const HELD_BYTES_MAX: u64 = 10 << 20;
/// What a reader got is held until this much more has gone out: it is not at the registry before it has left the
/// buffers between, and is asked for again when the connection breaks.
const BEHIND_BYTES: u64 = 3 << 20;
/// Bytes of a piece. All but the last one are full.
const PIECE_BYTES: u64 = 1 << 20;

/// What the windows of a build share: the memory, in equal parts.
#[derive(Debug, Clone, Default)]
pub(super) struct Share(Arc<()>);

impl Share {
    /// Bytes for each window that there is now.
    fn bytes(&self) -> u64 {
        // One is the build's.
        let windows = Arc::strong_count(&self.0).saturating_sub(1).max(1);
        HELD_BYTES_MAX / windows as u64
    }
}

/// A blob that is being written, or was. Lives as long as somebody writes or reads it.
#[derive(Debug)]
pub(super) struct Window {
    state: Mutex<State>,
    share: Share,
}

#[derive(Debug, Default)]
struct State {
    /// Those in memory, each with its offset.
    pieces: VecDeque<(u64, Bytes)>,
    /// Offset of the first of them.
    start: u64,
    /// And of what comes next.
    end: u64,
    /// Those parts before `start` that are in the file, in order.
    filed: Vec<Range<u64>>,
    file: Option<Arc<File>>,
    /// How far each reader has got.
    places: BTreeMap<u64, u64>,
    places_total: u64,
}

/// Where the bytes at an offset are.
pub(super) enum Found {
    Memory(Bytes),
    /// So many from there on.
    File(Arc<File>, u64),
    Gone,
}

/// What became of a blob when it was whole.
pub(super) enum Whole {
    /// It is small.
    Small(Vec<Bytes>),
    /// All of it is in the file.
    File(Arc<File>),
    /// Some of it is nowhere any more. Readers have a place in what is left.
    Gone,
}

impl Window {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is at an offset that was written.
    pub(super) fn at(&self, offset: u64) -> Found {
        let state = self.lock();
        let after = state.pieces.partition_point(|(start, _)| *start <= offset);
        if let Some((start, piece)) = after.checked_sub(1).and_then(|at| state.pieces.get(at)) {
            let skip = usize::try_from(offset - start).unwrap_or(usize::MAX).min(piece.len());
            return Found::Memory(piece.slice(skip..));
        }
        let part = state.filed.iter().rev().find(|part| part.contains(&offset));
        match (part, &state.file) {
            (Some(part), Some(file)) => Found::File(Arc::clone(file), part.end - offset),
            _ => Found::Gone,
        }
    }
}

impl State {
    /// True when nobody will ask for what is before `end`, or hardly.
    fn is_past(&self, end: u64) -> bool {
        !self.places.is_empty() && self.places.values().all(|place| *place >= end + BEHIND_BYTES)
    }
}

/// A reader's place. Where nobody has one, nothing is forgotten.
#[derive(Debug)]
pub(super) struct Place {
    window: Arc<Window>,
    number: u64,
}

impl Place {
    /// At the beginning.
    pub(super) fn new(window: &Arc<Window>) -> Self {
        let mut state = window.lock();
        let number = state.places_total;
        state.places_total += 1;
        state.places.insert(number, 0);
        Self { window: Arc::clone(window), number }
    }

    pub(super) fn move_to(&self, offset: u64) {
        self.window.lock().places.insert(self.number, offset);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.window.lock().places.remove(&self.number);
    }
}

/// Writes a window.
pub(super) struct WindowWriter {
    window: Arc<Window>,
    store: Store,
    lease: Lease,
    /// The piece that is being filled.
    piece: Vec<u8>,
    spare: Spare,
}

impl WindowWriter {
    pub(super) fn new(store: &Store, lease: &Lease, share: &Share) -> Self {
        let window = Arc::new(Window { state: Mutex::default(), share: share.clone() });
        let (store, lease) = (store.clone(), lease.clone());
        Self { window, store, lease, piece: Vec::new(), spare: Spare::default() }
    }

    pub(super) fn window(&self) -> &Arc<Window> {
        &self.window
    }

    /// Bytes that readers can have.
    pub(super) fn readable(&self) -> u64 {
        self.window.lock().end
    }

    /// Ends the blob. Readers go on. One of less than `small` bytes comes back.
    pub(super) fn finish(mut self, small: u64) -> io::Result<Whole> {
        self.push_piece()?;
        loop {
            let state = self.window.lock();
            if state.start == 0 && state.end < small {
                return Ok(Whole::Small(state.pieces.iter().map(|(_, piece)| piece.clone()).collect()));
            }
            if state.filed.iter().map(|part| part.end - part.start).sum::<u64>() < state.start {
                return Ok(Whole::Gone);
            }
            match (state.pieces.front(), &state.file) {
                (None, Some(file)) => return Ok(Whole::File(Arc::clone(file))),
                (oldest, _) => {
                    let oldest = oldest.map(|(_, piece)| piece.clone()).unwrap_or_default();
                    drop(state);
                    self.file_oldest(&oldest)?;
                }
            }
        }
    }

    fn push_piece(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = self.spare.lend(std::mem::take(&mut self.piece));
        let held_max = self.window.share.bytes();
        let mut state = self.window.lock();
        let at = state.end;
        state.end += piece.len() as u64;
        state.pieces.push_back((at, piece));
        while state.end - state.start > held_max {
            let Some((_, oldest)) = state.pieces.front() else { break };
            let end = state.start + oldest.len() as u64;
            if state.is_past(end) {
                state.pieces.pop_front();
                state.start = end;
            } else {
                let oldest = oldest.clone();
                drop(state);
                self.file_oldest(&oldest)?;
                state = self.window.lock();
            }
        }
        Ok(())
    }

    /// Moves the oldest piece into the file. Readers are not kept waiting by the disk: only the writer takes pieces away.
    fn file_oldest(&self, oldest: &Bytes) -> io::Result<()> {
        let (start, file) = {
            let state = self.window.lock();
            (state.start, state.file.clone())
        };
        let file = match file {
            Some(file) => file,
            None => Arc::new(self.store.nameless_file(&self.lease).map_err(io::Error::other)?),
        };
        file.write_all_at(oldest, start)?;
        let end = start + oldest.len() as u64;
        let mut state = self.window.lock();
        state.file = Some(file);
        state.pieces.pop_front();
        state.start = end;
        match state.filed.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => state.filed.push(start..end),
        }
        Ok(())
    }
}

impl Write for WindowWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.piece.capacity() == 0 {
            self.piece = self.spare.take();
        }
        let room = PIECE_BYTES as usize - self.piece.len();
        let taken = bytes.len().min(room);
        self.piece.extend_from_slice(&bytes[..taken]);
        if taken == room {
            self.push_piece()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Buffers of pieces that nobody holds any more, to be filled again: fresh memory costs the kernel more than the copy.
#[derive(Clone, Default)]
struct Spare(Arc<Mutex<Vec<Vec<u8>>>>);

impl Spare {
    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Vec<u8> {
        self.lock().pop().unwrap_or_else(|| Vec::with_capacity(PIECE_BYTES as usize))
    }

    fn lend(&self, piece: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { piece, spare: self.clone() })
    }
}

struct Lent {
    piece: Vec<u8>,
    spare: Spare,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.piece
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut piece = std::mem::take(&mut self.piece);
        piece.clear();
        self.spare.lock().push(piece);
    }
}

#[cfg(test)]
mod tests {
    use rbuild_cache::store::StoreOptions;

    use super::*;

    const HELD: u64 = HELD_BYTES_MAX / PIECE_BYTES;
    const BEHIND: u64 = BEHIND_BYTES / PIECE_BYTES;

    struct World {
        _dir: tempfile::TempDir,
        lease: Lease,
        store: Store,
        share: Share,
        writer: WindowWriter,
        window: Arc<Window>,
    }

    fn world() -> World {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreOptions { id_map: "test".into(), durable: false }).unwrap();
        let lease = store.lease().unwrap();
        let share = Share::default();
        let writer = WindowWriter::new(&store, &lease, &share);
        let window = Arc::clone(writer.window());
        World { _dir: dir, lease, store, share, writer, window }
    }

    /// The piece of this number.
    fn piece(number: u64) -> Vec<u8> {
        (0..PIECE_BYTES).map(|at| (at ^ (at >> 8) ^ (number * 7)) as u8).collect()
    }

    fn write(writer: &mut WindowWriter, pieces: Range<u64>) {
        for number in pieces {
            writer.write_all(&piece(number)).unwrap();
        }
    }

    /// Where the piece of this number is; what is somewhere must be what was written.
    fn place_of(window: &Window, number: u64) -> &'static str {
        let offset = number * PIECE_BYTES + 5;
        match window.at(offset) {
            Found::Memory(bytes) => {
                assert!(bytes == piece(number)[5..]);
                "memory"
            }
            Found::File(file, length) => {
                let mut bytes = vec![0; PIECE_BYTES as usize - 5];
                assert!(length >= bytes.len() as u64);
                file.read_exact_at(&mut bytes, offset).unwrap();
                assert!(bytes == piece(number)[5..]);
                "file"
            }
            Found::Gone => "gone",
        }
    }

    #[test]
    fn what_a_reader_in_step_has_got_never_sees_the_disk() {
        let mut world = world();
        let place = Place::new(&world.window);
        for number in 0..3 * HELD {
            write(&mut world.writer, number..number + 1);
            place.move_to((number + 1) * PIECE_BYTES);
        }
        assert_eq!(world.writer.readable(), 3 * HELD_BYTES_MAX);
        let places: Vec<_> = (0..3 * HELD).map(|number| place_of(&world.window, number)).collect();
        assert!(places[..2 * HELD as usize].iter().all(|place| *place == "gone"), "{places:?}");
        assert!(places[2 * HELD as usize..].iter().all(|place| *place == "memory"), "{places:?}");
        assert!(world.window.lock().file.is_none());
        assert!(matches!(world.writer.finish(1), Ok(Whole::Gone)));
        assert_eq!(place_of(&world.window, 3 * HELD - 1), "memory");
    }

    #[test]
    fn what_somebody_is_too_far_behind_for_is_in_the_file_and_no_file_has_a_name() {
        let mut world = world();
        // Nobody yet: all is kept.
        write(&mut world.writer, 0..HELD + 2);
        let (fast, slow) = (Place::new(&world.window), Place::new(&world.window));
        fast.move_to(u64::MAX / 2);
        slow.move_to((BEHIND + 3) * PIECE_BYTES);
        write(&mut world.writer, HELD + 2..HELD + 5);
        let places: Vec<_> = (0..6).map(|number| place_of(&world.window, number)).collect();
        assert_eq!(places, ["file", "file", "gone", "file", "file", "memory"]);
        assert_eq!(std::fs::read_dir(world.lease.work_dir()).unwrap().count(), 0);
        // Its place was all that was waited for.
        drop(slow);
        write(&mut world.writer, HELD + 5..HELD + 6);
        assert_eq!(place_of(&world.window, 5), "gone");
    }

    #[test]
    fn windows_share_the_memory() {
        let World { _dir, lease, store, share, mut writer, window } = world();
        let mut second = WindowWriter::new(&store, &lease, &share);
        write(&mut writer, 0..HELD);
        write(&mut second, 0..HELD);
        let held = |window: &Window| window.lock().pieces.len() as u64;
        assert_eq!((held(&window), held(second.window())), (HELD / 2, HELD / 2));
        drop(second);
        write(&mut writer, HELD..2 * HELD);
        assert_eq!(held(&window), HELD);
    }

    #[test]
    fn a_blob_that_nobody_reads_is_whole_in_the_file_and_a_small_one_comes_back() {
        for pieces in [1, HELD, 2 * HELD] {
            let mut world = world();
            write(&mut world.writer, 0..pieces);
            world.writer.write_all(b"end").unwrap();
            let Whole::File(file) = world.writer.finish(PIECE_BYTES).unwrap() else { panic!("{pieces}") };
            assert_eq!(file.metadata().unwrap().len(), pieces * PIECE_BYTES + 3);
            assert!((0..pieces).all(|number| place_of(&world.window, number) == "file"));
        }
        let mut world = world();
        world.writer.write_all(b"small").unwrap();
        let Whole::Small(pieces) = world.writer.finish(PIECE_BYTES).unwrap() else { panic!("it is small") };
        assert_eq!(pieces.concat(), b"small");
    }
}
