//! No compression: the archive goes to the sink, if anywhere, and is hashed on the way, once.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use rbuild_oci::Sha256;

use super::{Failure, Sink};
use crate::layer::marks::{MARK_BYTES, Start};

/// Bytes handed over at once.
const BLOCK_BYTES: usize = 256 << 10;
/// Blocks that wait for the other side.
const WAITING_MAX: usize = 4;

/// The hash of an archive, or of what follows the start of one.
pub(super) struct TarHash {
    pub(super) hash: Sha256,
    /// Bytes of the archive so far.
    pub(super) at: u64,
    /// States at the multiples of [`MARK_BYTES`] that were passed.
    pub(super) states: Vec<Vec<u8>>,
}

impl TarHash {
    pub(super) fn new(start: Start) -> Self {
        Self { hash: start.hash, at: start.at, states: Vec::new() }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = usize::try_from(MARK_BYTES - self.at % MARK_BYTES).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.hash.update(now);
            self.at += now.len() as u64;
            if self.at.is_multiple_of(MARK_BYTES) {
                self.states.push(self.hash.state());
            }
            bytes = later;
        }
    }
}

/// Writes to the sink's end, past its own hash. An archive of more than a block is hashed by a second thread, when there
/// may be one.
pub(super) fn encode<T, E>(
    source: impl FnOnce(&mut dyn Write) -> Result<T, E>,
    sink: &mut Sink<'_>,
    hash: TarHash,
    threads: usize,
) -> Result<(T, TarHash), Failure<E>> {
    std::thread::scope(|scope| {
        let (block, is_alone) = (Vec::with_capacity(BLOCK_BYTES), threads == 1);
        let mut hashed = Hashed { scope, sink, block, is_alone, hash, helper: None };
        let given = source(&mut hashed).map_err(Failure::Source)?;
        Ok((given, hashed.finish().map_err(Failure::Compressor)?))
    })
}

struct Hashed<'scope, 'env, 'a, 'out> {
    scope: &'scope Scope<'scope, 'env>,
    sink: &'a mut Sink<'out>,
    block: Vec<u8>,
    is_alone: bool,
    /// Moves to the helper.
    hash: TarHash,
    helper: Option<Helper<'scope>>,
}

/// The thread that hashes.
struct Helper<'scope> {
    blocks: SyncSender<Vec<u8>>,
    /// Blocks to be filled again.
    spare: Receiver<Vec<u8>>,
    thread: ScopedJoinHandle<'scope, TarHash>,
}

impl Hashed<'_, '_, '_, '_> {
    fn hand_over(&mut self) -> io::Result<()> {
        self.sink.put(&self.block)?;
        if self.is_alone {
            self.hash.update(&self.block);
            self.block.clear();
            return Ok(());
        }
        let helper = self.helper.get_or_insert_with(|| {
            let (blocks, taken) = sync_channel::<Vec<u8>>(WAITING_MAX);
            let (used, spare) = sync_channel(WAITING_MAX + 2);
            let mut hash = std::mem::replace(&mut self.hash, TarHash::new(Start::default()));
            let thread = self.scope.spawn(move || {
                for mut block in taken {
                    hash.update(&block);
                    block.clear();
                    // Nobody takes them at the end.
                    let _ = used.try_send(block);
                }
                hash
            });
            Helper { blocks, spare, thread }
        });
        let next = helper.spare.try_recv().unwrap_or_else(|_| Vec::with_capacity(BLOCK_BYTES));
        let block = std::mem::replace(&mut self.block, next);
        helper.blocks.send(block).map_err(|_| io::Error::other("the hashing thread ended early"))
    }

    fn finish(mut self) -> io::Result<TarHash> {
        // A short archive is not worth a thread.
        self.is_alone |= self.helper.is_none();
        self.hand_over()?;
        let Some(Helper { blocks, thread, .. }) = self.helper.take() else { return Ok(self.hash) };
        drop(blocks);
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }
}

impl Write for Hashed<'_, '_, '_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(BLOCK_BYTES - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        if self.block.len() == BLOCK_BYTES {
            self.hand_over()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
