//! Reads and hashes the files whose content no index knows.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use rbuild_cache::layer::kept_xattrs;
use rbuild_cache::store::{FileStat, SeenEntry, SeenKind};
use rbuild_cache::tree::ContentDigest;
use rustix::fs::{OFlags, Stat};

use super::lister::{Found, Looked, Unread, join};
use super::{ScanError, io, open_beneath};

/// Looks at a file that shrinks while it is being read before that is an error.
const READS_MAX: usize = 3;
/// Files below this many are hashed on the walking thread: starting helpers would cost more.
const PARALLEL_MIN: usize = 64;

/// Reads what is left to read, on both cores when there is much, and adds it to its directory.
pub(super) fn read_all(root: BorrowedFd<'_>, dirs: &mut [Looked]) -> Result<(), ScanError> {
    let mut todo = Vec::new();
    for (at, dir) in dirs.iter_mut().enumerate() {
        if let Found::Listed(listed) = &mut dir.found {
            let unread = std::mem::take(&mut listed.unread).into_iter();
            todo.extend(unread.map(|file| (at, join(&dir.path, &file.name), file)));
        }
    }
    if todo.is_empty() {
        return Ok(());
    }
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(usize, Hashed)>, ScanError> {
        let mut done = Vec::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some((_, path, _)) = todo.get(at) else { return Ok(done) };
            done.push((at, hash_file(root, path, &mut buffer)?));
        }
    };
    let threads = if todo.len() < PARALLEL_MIN {
        1
    } else {
        std::thread::available_parallelism().map_or(1, usize::from).min(8)
    };
    let results = std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut results = vec![work()];
        results.extend(helpers.into_iter().map(|h| h.join().expect("hashing does not panic")));
        results
    });
    for result in results {
        for (at, Hashed { content, stat, xattrs }) in result? {
            let (dir, _, Unread { name, is_linked, is_suspect }) = &mut todo[at];
            let Found::Listed(listed) = &mut dirs[*dir].found else { continue };
            listed.dir.entries.push(SeenEntry {
                name: std::mem::take(name),
                stat: FileStat::from(&stat),
                xattrs,
                is_linked: *is_linked,
                is_suspect: *is_suspect,
                kind: SeenKind::File(content),
            });
        }
    }
    Ok(())
}

/// What reading a file gave.
struct Hashed {
    content: ContentDigest,
    stat: Stat,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Hashes a file's first `st_size` bytes, as it is when opened. One that grows meanwhile (a log that this very build
/// writes, say) is taken as it was; the copy checks its bytes against the digest.
fn hash_file(root: BorrowedFd<'_>, path: &[u8], buffer: &mut [u8]) -> Result<Hashed, ScanError> {
    for _ in 0..READS_MAX {
        let fd = open_beneath(root, path, OFlags::empty()).map_err(io("open", path))?;
        let stat = rustix::fs::fstat(&fd).map_err(io("look at", path))?;
        let mut left = u64::try_from(stat.st_size).unwrap_or(0);
        let mut hasher = blake3::Hasher::new();
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let count = rustix::io::read(&fd, &mut buffer[..wanted]).map_err(io("read", path))?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            left -= count as u64;
        }
        if left == 0 {
            let content = ContentDigest(*hasher.finalize().as_bytes());
            return Ok(Hashed { content, stat, xattrs: kept_xattrs(&fd) });
        }
    }
    Err(ScanError::Changed(String::from_utf8_lossy(path).into_owned()))
}
