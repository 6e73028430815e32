//! gzip on several threads: independent deflate blocks joined into one member.
//!
//! Each block of 512 KiB is deflated with the 32 KiB before it as dictionary and ended by a sync flush, so blocks
//! join on byte boundaries; an empty final block closes the stream. What a block becomes depends on its bytes and on
//! the dictionary only, never on who compresses it when.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use flate2::{Compress, FlushCompress, Status};
use rbuild_oci::{DiffId, Sha256};

use super::{Failure, Sink};

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
    bytes: Vec<u8>,
    dictionary: Vec<u8>,
}

struct Done {
    number: u64,
    deflated: io::Result<Vec<u8>>,
    crc: crc32fast::Hasher,
    /// The input buffer, to be filled again.
    buffer: Vec<u8>,
}

pub(super) fn encode<E>(
    source: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    level: u32,
    sink: &mut Sink<'_>,
    threads: usize,
) -> Result<(DiffId, u64), Failure<E>> {
    if threads == 1 {
        let mut deflater = Deflater::new(level);
        return run(source, sink, &mut Inline { deflater: &mut deflater, done: None });
    }
    let in_flight_max = 2 * threads + 4;
    let (jobs, jobs_taken) = sync_channel::<Job>(in_flight_max);
    let (done_sent, done) = sync_channel::<Done>(in_flight_max);
    let jobs_taken = Mutex::new(jobs_taken);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (jobs_taken, done_sent) = (&jobs_taken, done_sent.clone());
            scope.spawn(move || work(jobs_taken, &done_sent, level));
        }
        drop(done_sent);
        // Dropping the pool closes the queue of jobs; the workers then end, also after an error.
        run(source, sink, &mut Pool { jobs, done, in_flight: 0, in_flight_max })
    })
}

fn work(jobs: &Mutex<Receiver<Job>>, done: &SyncSender<Done>, level: u32) {
    let mut deflater = Deflater::new(level);
    loop {
        // The guard lives only while waiting: one idle worker waits in the channel, the others for the lock.
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        if done.send(deflater.deflate(job)).is_err() {
            return;
        }
    }
}

/// Who deflates blocks.
trait Engine {
    /// Takes a block; blocks while too many are under way. Hands back any that are done.
    fn submit(&mut self, job: Job) -> Option<Done>;
    /// A block that is done, waiting for one if `wait`; `None` when there is none (left).
    fn next(&mut self, wait: bool) -> Option<Done>;
}

struct Inline<'a> {
    deflater: &'a mut Deflater,
    done: Option<Done>,
}

impl Engine for Inline<'_> {
    fn submit(&mut self, job: Job) -> Option<Done> {
        self.done.replace(self.deflater.deflate(job))
    }

    fn next(&mut self, _wait: bool) -> Option<Done> {
        self.done.take()
    }
}

struct Pool {
    jobs: SyncSender<Job>,
    done: Receiver<Done>,
    in_flight: usize,
    in_flight_max: usize,
}

impl Engine for Pool {
    fn submit(&mut self, job: Job) -> Option<Done> {
        let freed = if self.in_flight == self.in_flight_max { self.next(true) } else { None };
        self.in_flight += 1;
        self.jobs.send(job).expect("workers hold the queue's end as long as the pool lives");
        freed
    }

    fn next(&mut self, wait: bool) -> Option<Done> {
        if self.in_flight == 0 {
            return None;
        }
        let done = if wait { self.done.recv().ok() } else { self.done.try_recv().ok() }?;
        self.in_flight -= 1;
        Some(done)
    }
}

fn run<E>(
    source: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    sink: &mut Sink<'_>,
    engine: &mut dyn Engine,
) -> Result<(DiffId, u64), Failure<E>> {
    let mut blocks = Blocks {
        engine,
        sink,
        block: Vec::with_capacity(BLOCK_BYTES),
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
    engine: &'a mut dyn Engine,
    sink: &'a mut Sink<'out>,
    block: Vec<u8>,
    /// Last bytes of the previous block.
    dictionary: Vec<u8>,
    tar: Sha256,
    submitted: u64,
    written: u64,
    waiting: BTreeMap<u64, Done>,
    crc: crc32fast::Hasher,
    size: u64,
    spare: Vec<Vec<u8>>,
    compressor_error: Option<io::Error>,
}

impl Blocks<'_, '_> {
    fn submit_block(&mut self) -> io::Result<()> {
        // The block was just filled: hashing it now finds it in the CPU's cache.
        self.tar.update(&self.block);
        self.size += self.block.len() as u64;
        let next = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(BLOCK_BYTES));
        let bytes = std::mem::replace(&mut self.block, next);
        let tail = bytes[bytes.len().saturating_sub(DICTIONARY_BYTES)..].to_vec();
        let dictionary = std::mem::replace(&mut self.dictionary, tail);
        let number = self.submitted;
        self.submitted += 1;
        let mut done = self.engine.submit(Job { number, bytes, dictionary });
        while let Some(one) = done {
            self.waiting.insert(one.number, one);
            done = self.engine.next(false);
        }
        self.write_waiting()
    }

    fn write_waiting(&mut self) -> io::Result<()> {
        while let Some(mut done) = self.waiting.remove(&self.written) {
            match done.deflated {
                Ok(deflated) => self.sink.write_all(&deflated)?,
                Err(error) => {
                    let kind = error.kind();
                    self.compressor_error.get_or_insert(error);
                    return Err(kind.into());
                }
            }
            self.crc.combine(&done.crc);
            self.written += 1;
            done.buffer.clear();
            self.spare.push(done.buffer);
        }
        Ok(())
    }

    fn finish(mut self) -> io::Result<(DiffId, u64)> {
        if !self.block.is_empty() {
            self.submit_block()?;
        }
        while self.written < self.submitted {
            let lost = || io::Error::other("a compression thread ended early");
            let done = self.engine.next(true).ok_or_else(lost)?;
            self.waiting.insert(done.number, done);
            if let Err(error) = self.write_waiting() {
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
        let taken = bytes.len().min(BLOCK_BYTES - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        if self.block.len() == BLOCK_BYTES {
            self.submit_block()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One thread's compressor, kept between blocks.
struct Deflater {
    compress: Compress,
}

impl Deflater {
    fn new(level: u32) -> Self {
        Self { compress: Compress::new(flate2::Compression::new(level), false) }
    }

    fn deflate(&mut self, job: Job) -> Done {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&job.bytes);
        let deflated = self.deflate_bytes(&job.bytes, &job.dictionary);
        Done { number: job.number, deflated, crc, buffer: job.bytes }
    }

    fn deflate_bytes(&mut self, bytes: &[u8], dictionary: &[u8]) -> io::Result<Vec<u8>> {
        self.compress.reset();
        if !dictionary.is_empty() {
            self.compress.set_dictionary(dictionary).map_err(io::Error::from)?;
        }
        let mut out = Vec::with_capacity(bytes.len() / 2 + 1024);
        loop {
            let taken = usize::try_from(self.compress.total_in()).map_err(io::Error::other)?;
            let status = self.compress.compress_vec(&bytes[taken..], &mut out, FlushCompress::Sync)?;
            // Room left over means the flush is complete.
            if matches!(status, Status::Ok | Status::BufError) && out.len() < out.capacity() {
                return Ok(out);
            }
            out.reserve(bytes.len() / 4 + 1024);
        }
    }
}
