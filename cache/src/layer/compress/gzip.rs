//! gzip on several threads: independent deflate blocks joined into one member.
//!
//! Each block of 512 KiB is deflated with the 32 KiB before it as dictionary and ended by a flush, so blocks join on
//! byte boundaries; an empty final block closes the stream. What a block becomes depends on its bytes and on the
//! dictionary only, never on who compresses it when.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use rbuild_oci::{DiffId, Sha256};

use super::deflate::Deflater;
use super::{Failure, Gzip, Sink};

/// Tar bytes per deflate block. Part of the format: other sizes give other bytes.
pub(super) const BLOCK_BYTES: usize = 512 << 10;

/// Deflate's window.
const DICTIONARY_BYTES: usize = 32 << 10;

/// Magic, deflate, no flags, no time, no extra flags, unknown system.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// A final, empty block with fixed codes.
const LAST_BLOCK: [u8; 2] = [0x03, 0x00];

struct Job {
    number: u64,
    block: Block,
    dictionary: Vec<u8>,
}

/// Buffers of one block, filled again and again: fresh memory costs more than it seems.
#[derive(Default)]
struct Block {
    bytes: Vec<u8>,
    deflated: Vec<u8>,
}

struct Done {
    number: u64,
    block: Block,
    result: io::Result<()>,
    crc: crc32fast::Hasher,
}

impl Job {
    fn run(mut self, deflater: &mut Deflater) -> Done {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.block.bytes);
        let result = deflater.deflate(&self.block.bytes, &self.dictionary, &mut self.block.deflated);
        Done { number: self.number, block: self.block, result, crc }
    }
}

/// Most blocks in memory: one at each thread, some that wait for one while the sink writes, and some for an earlier one.
/// Each is up to a MiB with what becomes of it.
pub(super) fn unwritten_max(threads: usize) -> usize {
    threads + 6
}

pub(super) fn encode<E>(
    source: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    engine: Gzip,
    sink: &mut Sink<'_>,
    threads: usize,
) -> Result<(DiffId, u64), Failure<E>> {
    if threads == 1 {
        let mut deflater = Deflater::new(engine);
        return run(source, sink, &mut Inline { deflater: &mut deflater, done: None }, 1);
    }
    let unwritten_max = unwritten_max(threads);
    let (jobs, jobs_taken) = sync_channel::<Job>(unwritten_max);
    let (done_sent, done) = sync_channel::<Done>(unwritten_max);
    let jobs_taken = Mutex::new(jobs_taken);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (jobs_taken, done_sent) = (&jobs_taken, done_sent.clone());
            scope.spawn(move || work(jobs_taken, &done_sent, engine));
        }
        drop(done_sent);
        // Dropping the pool closes the queue of jobs; the workers then end, also after an error.
        run(source, sink, &mut Pool { jobs, done }, unwritten_max as u64)
    })
}

fn work(jobs: &Mutex<Receiver<Job>>, done: &SyncSender<Done>, engine: Gzip) {
    let mut deflater = Deflater::new(engine);
    loop {
        // The guard lives only while waiting: one idle worker waits in the channel, the others for the lock.
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        if done.send(job.run(&mut deflater)).is_err() {
            return;
        }
    }
}

/// Who deflates blocks.
trait Workers {
    /// Takes a block.
    fn submit(&mut self, job: Job);
    /// A block that is done, waiting for one if `wait`; `None` when there is none.
    fn next(&mut self, wait: bool) -> Option<Done>;
}

struct Inline<'a> {
    deflater: &'a mut Deflater,
    done: Option<Done>,
}

impl Workers for Inline<'_> {
    fn submit(&mut self, job: Job) {
        self.done = Some(job.run(self.deflater));
    }

    fn next(&mut self, _wait: bool) -> Option<Done> {
        self.done.take()
    }
}

struct Pool {
    jobs: SyncSender<Job>,
    done: Receiver<Done>,
}

impl Workers for Pool {
    fn submit(&mut self, job: Job) {
        self.jobs.send(job).expect("workers hold the queue's end as long as the pool lives");
    }

    fn next(&mut self, wait: bool) -> Option<Done> {
        if wait { self.done.recv().ok() } else { self.done.try_recv().ok() }
    }
}

fn run<E>(
    source: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    sink: &mut Sink<'_>,
    workers: &mut dyn Workers,
    unwritten_max: u64,
) -> Result<(DiffId, u64), Failure<E>> {
    let mut blocks = Blocks {
        workers,
        unwritten_max,
        sink,
        block: Block::default(),
        dictionary: Vec::new(),
        tar: Sha256::new(),
        submitted: 0,
        written: 0,
        waiting: BTreeMap::new(),
        crc: crc32fast::Hasher::new(),
        size: 0,
        spare: Vec::new(),
        compressor_error: None,
    };
    let result = blocks.sink.write_all(&HEADER).map_err(Failure::Compressor);
    result?;
    if let Err(error) = source(&mut blocks) {
        return Err(match blocks.compressor_error.take() {
            Some(error) => Failure::Compressor(error),
            None => Failure::Source(error),
        });
    }
    blocks.finish().map_err(Failure::Compressor)
}

/// Cuts the tar into blocks and puts what they become in order.
struct Blocks<'a, 'out> {
    workers: &'a mut dyn Workers,
    /// Most blocks in memory: those at the workers, and those that wait for an earlier one.
    unwritten_max: u64,
    sink: &'a mut Sink<'out>,
    block: Block,
    /// Last bytes of the previous block.
    dictionary: Vec<u8>,
    tar: Sha256,
    submitted: u64,
    written: u64,
    waiting: BTreeMap<u64, Done>,
    crc: crc32fast::Hasher,
    size: u64,
    spare: Vec<Block>,
    compressor_error: Option<io::Error>,
}

impl Blocks<'_, '_> {
    fn submit_block(&mut self) -> io::Result<()> {
        while self.submitted - self.written == self.unwritten_max {
            self.wait_for_one()?;
        }
        // The block was just filled: hashing it now finds it in the CPU's cache.
        self.tar.update(&self.block.bytes);
        self.size += self.block.bytes.len() as u64;
        let block = std::mem::replace(&mut self.block, self.spare.pop().unwrap_or_default());
        let tail = block.bytes[block.bytes.len().saturating_sub(DICTIONARY_BYTES)..].to_vec();
        let dictionary = std::mem::replace(&mut self.dictionary, tail);
        let number = self.submitted;
        self.submitted += 1;
        self.workers.submit(Job { number, block, dictionary });
        while let Some(one) = self.workers.next(false) {
            self.waiting.insert(one.number, one);
        }
        self.write_waiting()
    }

    fn wait_for_one(&mut self) -> io::Result<()> {
        let lost = || io::Error::other("a compression thread ended early");
        let done = self.workers.next(true).ok_or_else(lost)?;
        self.waiting.insert(done.number, done);
        self.write_waiting()
    }

    fn write_waiting(&mut self) -> io::Result<()> {
        while let Some(mut done) = self.waiting.remove(&self.written) {
            if let Err(error) = done.result {
                let kind = error.kind();
                self.compressor_error.get_or_insert(error);
                return Err(kind.into());
            }
            self.sink.write_all(&done.block.deflated)?;
            self.crc.combine(&done.crc);
            self.written += 1;
            done.block.bytes.clear();
            self.spare.push(done.block);
        }
        Ok(())
    }

    fn finish(mut self) -> io::Result<(DiffId, u64)> {
        if !self.block.bytes.is_empty() {
            self.submit_block()?;
        }
        while self.written < self.submitted {
            if let Err(error) = self.wait_for_one() {
                return Err(self.compressor_error.take().unwrap_or(error));
            }
        }
        self.sink.write_all(&LAST_BLOCK)?;
        self.sink.write_all(&self.crc.finalize().to_le_bytes())?;
        // The trailer holds the length modulo 2^32.
        self.sink.write_all(&(self.size as u32).to_le_bytes())?;
        Ok((DiffId(self.tar.finish()), self.size))
    }
}

impl Write for Blocks<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let block = &mut self.block.bytes;
        let taken = bytes.len().min(BLOCK_BYTES - block.len());
        block.reserve_exact(if block.is_empty() { BLOCK_BYTES } else { 0 });
        block.extend_from_slice(&bytes[..taken]);
        if block.len() == BLOCK_BYTES {
            self.submit_block()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker who keeps the first block as long as there is another one, as on a busy machine.
    struct Late {
        deflater: Deflater,
        done: Vec<Done>,
        /// Blocks that came before the first was handed back.
        before_first: usize,
        is_first_back: bool,
    }

    impl Workers for Late {
        fn submit(&mut self, job: Job) {
            self.done.push(job.run(&mut self.deflater));
            self.before_first += usize::from(!self.is_first_back);
        }

        fn next(&mut self, wait: bool) -> Option<Done> {
            match self.done.len() {
                0 => None,
                1 if !wait && !self.is_first_back => None,
                1 => {
                    self.is_first_back = true;
                    self.done.pop()
                }
                _ => Some(self.done.remove(1)),
            }
        }
    }

    #[test]
    fn a_late_block_does_not_let_others_pile_up() {
        let deflater = Deflater::new(Gzip::Level(1));
        let mut workers = Late { deflater, done: Vec::new(), before_first: 0, is_first_back: false };
        let mut blob = Vec::new();
        let mut sink = Sink { out: &mut blob, digest: Sha256::new(), size: 0, error: None };
        let tar = vec![7; 20 * BLOCK_BYTES];
        let source = |out: &mut dyn Write| out.write_all(&tar);
        let (diff_id, size) = run(source, &mut sink, &mut workers, 4).unwrap_or_else(|_| panic!("encodes"));
        assert_eq!((diff_id, size), (DiffId(rbuild_oci::Digest::of(&tar)), tar.len() as u64));
        assert_eq!(workers.before_first, 4);
    }
}
