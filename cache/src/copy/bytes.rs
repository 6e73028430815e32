//! Moving a file's bytes.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::copy_file_range;
use rustix::io::{Errno, pread, pwrite, write};

/// Bytes read at once when a file has to be read.
const BUFFER_BYTES: usize = 256 << 10;
/// Most bytes asked of one `copy_file_range`.
const RANGE_BYTES: usize = 1 << 30;

/// Copies without the bytes passing through us as far as the kernel can, and says how far.
pub(super) fn copy_in_kernel(from: &OwnedFd, to: &OwnedFd, size: u64) -> rustix::io::Result<u64> {
    let mut copied = 0;
    while copied < size {
        let rest = usize::try_from(size - copied).unwrap_or(RANGE_BYTES).min(RANGE_BYTES);
        let (mut at, mut to_at) = (copied, copied);
        match copy_file_range(from, Some(&mut at), to, Some(&mut to_at), rest) {
            Ok(0) => break,
            Ok(count) => copied += count as u64,
            Err(Errno::INTR) => {}
            Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::IO)) => return Err(errno),
            // Different filesystems, or one that cannot.
            Err(_) => break,
        }
    }
    Ok(copied)
}

/// Reads and writes from offset `at` to `size`, or to the end when the file is shorter. What a file grew by since it was
/// planned stays behind. In `from` the bytes begin at `start`.
pub(super) fn copy_rest(
    (from, start): (impl AsFd, u64),
    to: &OwnedFd,
    mut at: u64,
    size: u64,
    buffer: &mut Vec<u8>,
    mut each: impl FnMut(&[u8]),
) -> rustix::io::Result<()> {
    buffer.resize(BUFFER_BYTES, 0);
    while at < size {
        let count = match pread(&from, &mut buffer[..block(size - at)], start + at) {
            Ok(0) => break,
            Ok(count) => count,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        each(&buffer[..count]);
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            match pwrite(to, rest, at) {
                Ok(written) => {
                    at += written as u64;
                    rest = &rest[written..];
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}

/// Length of the next read.
fn block(left: u64) -> usize {
    usize::try_from(left).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES)
}

/// Writes all at the current offset.
pub(super) fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match write(file, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
