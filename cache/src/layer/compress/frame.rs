//! Zstandard: one frame, whose jobs are compressed on several threads and do not depend on their number.

use std::io::Write;

use zstd::stream::write::Encoder;
use zstd::zstd_safe::CParameter;

use rbuild_oci::DiffId;

use super::{Failure, Sink, hash_source};

/// Tar bytes of one job. The library's own choice, four windows, takes 8 to 32 MiB for each of several: a frame is 1%
/// smaller then. Part of the format.
pub(super) const JOB_BYTES: u32 = 1 << 20;
/// An eighth of the window is what a job knows of the one before: more cost higher levels half of their time again.
const OVERLAP_LOG: u32 = 6;
/// From this level on the library's tables are 8 to 80 MiB for each thread, for windows of 4 and 8 MiB.
const LARGE_LEVEL_MIN: i32 = 9;
/// What such levels have in their place. At level 19 a frame grows by 4% and takes three quarters of the time.
const LARGE: [CParameter; 3] = [CParameter::WindowLog(21), CParameter::HashLog(20), CParameter::ChainLog(20)];
/// Up to this level a thread's tables are small.
const SMALL_LEVEL_MAX: i32 = 3;

/// MiB that an encode takes, as measured: its input, and for each thread tables, a job and what becomes of it.
pub(super) fn mib(level: i32, threads: usize) -> usize {
    if level <= SMALL_LEVEL_MAX { 4 + 3 * threads } else { 6 + 9 * threads }
}

pub(super) fn encode<E>(
    source: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    level: i32,
    sink: &mut Sink<'_>,
    threads: usize,
) -> Result<(DiffId, u64), Failure<E>> {
    let mut encoder = Encoder::new(sink, level).map_err(Failure::Compressor)?;
    encoder.include_checksum(true).map_err(Failure::Compressor)?;
    // Never 0 workers: output of the single-threaded mode differs from that of any number of workers.
    encoder.multithread(threads.min(64) as u32).map_err(Failure::Compressor)?;
    let large = if level >= LARGE_LEVEL_MIN { &LARGE[..] } else { &[] };
    for parameter in
        [CParameter::JobSize(JOB_BYTES), CParameter::OverlapSizeLog(OVERLAP_LOG)].iter().chain(large)
    {
        encoder.set_parameter(*parameter).map_err(Failure::Compressor)?;
    }
    let sums = hash_source(source, &mut encoder)?;
    encoder.finish().map_err(Failure::Compressor)?;
    Ok(sums)
}
