//! No compression: the archive goes to the sink and is hashed on the way, once.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use rbuild_oci::Sha256;

use super::{Failure, Sink};

/// Bytes handed over at once.
const BLOCK_BYTES: usize = 256 << 10;
/// Blocks that wait for the other side.
const WAITING_MAX: usize = 4;

/// Writes to the sink's end, past its own hash. An archive of more than a block is hashed by a second thread, when there
/// may be one.
pub(super) fn encode<E>(
    source: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    sink: &mut Sink<'_>,
    threads: usize,
) -> Result<(), Failure<E>> {
    if threads == 1 {
        return source(sink).map_err(Failure::Source);
    }
    std::thread::scope(|scope| {
        let block = Vec::with_capacity(BLOCK_BYTES);
        let mut hashed = Hashed { scope, sink, block, helper: None };
        source(&mut hashed).map_err(Failure::Source)?;
        hashed.finish().map_err(Failure::Compressor)
    })
}

struct Hashed<'scope, 'env, 'a, 'out> {
    scope: &'scope Scope<'scope, 'env>,
    sink: &'a mut Sink<'out>,
    block: Vec<u8>,
    helper: Option<Helper<'scope>>,
}

/// The thread that hashes.
struct Helper<'scope> {
    blocks: SyncSender<Vec<u8>>,
    /// Blocks to be filled again.
    spare: Receiver<Vec<u8>>,
    thread: ScopedJoinHandle<'scope, Sha256>,
}

impl Hashed<'_, '_, '_, '_> {
    fn hand_over(&mut self) -> io::Result<()> {
        let helper = self.helper.get_or_insert_with(|| {
            let (blocks, taken) = sync_channel::<Vec<u8>>(WAITING_MAX);
            let (used, spare) = sync_channel(WAITING_MAX + 2);
            let thread = self.scope.spawn(move || {
                let mut hash = Sha256::new();
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
        self.sink.put(&block)?;
        helper.blocks.send(block).map_err(|_| io::Error::other("the hashing thread ended early"))
    }

    fn finish(mut self) -> io::Result<()> {
        if self.helper.is_none() {
            return self.sink.write_all(&self.block);
        }
        self.hand_over()?;
        if let Some(Helper { blocks, thread, .. }) = self.helper.take() {
            drop(blocks);
            self.sink.digest = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        Ok(())
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
