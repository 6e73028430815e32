//! Reads and hashes the files whose content no index knows, and packs them on the way where that will be wanted.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rbuild_cache::layer::kept_xattrs;
use rbuild_cache::path;
use rbuild_cache::store::{FileStat, LayerPacks, SeenEntry, SeenKind, Spool};
use rbuild_cache::tree::ContentDigest;
use rustix::fs::{OFlags, Stat};

use super::lister::{Found, Looked, Unread, join};
use super::{ScanError, io, open_beneath};

/// Looks at a file that shrinks while it is being read before that is an error.
const READS_MAX: usize = 3;
/// Below so many files and bytes all are hashed on the walking thread: starting helpers would cost more.
const PARALLEL_MIN: usize = 64;
const PARALLEL_BYTES_MIN: u64 = 1 << 20;
/// Helpers at most, the walking thread among them.
const THREADS_MAX: usize = 8;
const BUFFER_BYTES: usize = 256 << 10;
/// Larger files are not packed here. Most of what that saves is opening and closing; and the disk would have to take them
/// all at once, while a copy that reads them again compresses meanwhile.
const PACKED_BYTES_MAX: u64 = BUFFER_BYTES as u64;
/// Contents packed at most, for the same reason.
const PACKED_BYTES_SUM_MAX: u64 = 256 << 20;

/// Reads what is left to read, on both cores when there is much, and adds it to its directory. With a `spool`, and when
/// there is much, gives a pack of the small files among them.
pub(super) fn read_all(
    root: BorrowedFd<'_>,
    dirs: &mut [Looked],
    spool: Option<Spool>,
) -> Result<Option<LayerPacks>, ScanError> {
    let mut todo = Vec::new();
    for (at, dir) in dirs.iter_mut().enumerate() {
        if let Found::Listed(listed) = &mut dir.found {
            let unread = std::mem::take(&mut listed.unread).into_iter();
            todo.extend(unread.map(|file| (at, join(&dir.path, &file.name), file)));
        }
    }
    let bytes = todo.iter().fold(0_u64, |bytes, (_, _, file)| bytes.saturating_add(file.size));
    if todo.is_empty() {
        return Ok(None);
    }
    let is_much = todo.len() >= PARALLEL_MIN || bytes >= PARALLEL_BYTES_MIN;
    let spool = spool.filter(|_| is_much);
    if spool.is_some() {
        // The order of archives, in which the pack will be read.
        todo.sort_unstable_by(|(_, a, _), (_, b, _)| path::compare(a, b));
    }
    let (next, packing) = (AtomicUsize::new(0), Packing(Mutex::new(spool)));
    let work = || -> Result<Vec<(usize, Hashed)>, ScanError> {
        let mut done = Vec::new();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some((_, path, _)) = todo.get(at) else { return Ok(done) };
            done.push((at, hash_file(root, path, &mut buffer, &packing)?));
        }
    };
    let threads = match is_much {
        true => std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX).min(todo.len()),
        false => 1,
    };
    let results = std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut results = vec![work()];
        results.extend(helpers.into_iter().map(|h| h.join().expect("hashing does not panic")));
        results
    });
    for result in results {
        for (at, Hashed { content, stat, xattrs }) in result? {
            let (dir, _, Unread { name, is_linked, is_suspect, .. }) = &mut todo[at];
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
    Ok(packing.finish())
}

/// The pack of what is read. None any more once it could not be written: the copy then reads the files again, and says what
/// is wrong with the store.
struct Packing(Mutex<Option<Spool>>);

impl Packing {
    /// Packs a content, unless that was done or all are too many.
    fn add(&self, content: ContentDigest, bytes: &[u8]) {
        let mut spool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Spool { writer, .. }) = &mut *spool else { return };
        if bytes.is_empty() || writer.has(&content) || writer.bytes() > PACKED_BYTES_SUM_MAX {
            return;
        }
        match writer.write(bytes) {
            Ok(()) => writer.end(content, bytes.len() as u64),
            Err(_) => spool.take().into_iter().for_each(Spool::discard),
        }
    }

    fn finish(self) -> Option<LayerPacks> {
        let spool = self.0.into_inner().unwrap_or_else(PoisonError::into_inner)?;
        if spool.writer.bytes() == 0 { None } else { spool.finish().ok() }
    }
}

/// What reading a file gave.
struct Hashed {
    content: ContentDigest,
    stat: Stat,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Hashes a file's first `st_size` bytes, as it is when opened, and packs it if it is small. One that grows meanwhile (a
/// log that this very build writes, say) is taken as it was; a copy that reads it again checks its bytes against the digest.
fn hash_file(
    root: BorrowedFd<'_>,
    path: &[u8],
    buffer: &mut [u8],
    packing: &Packing,
) -> Result<Hashed, ScanError> {
    for _ in 0..READS_MAX {
        let fd = open_beneath(root, path, OFlags::empty()).map_err(io("open", path))?;
        let stat = rustix::fs::fstat(&fd).map_err(io("look at", path))?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let is_packed = size <= PACKED_BYTES_MAX;
        let mut hasher = blake3::Hasher::new();
        let (mut left, mut from) = (size, 0);
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len() - from);
            let piece = &mut buffer[from..from + wanted];
            let count = rustix::io::read(&fd, &mut *piece).map_err(io("read", path))?;
            if count == 0 {
                break;
            }
            hasher.update(&piece[..count]);
            left -= count as u64;
            // What is packed stays until its digest is known: however often it is there, it is packed once.
            from += if is_packed { count } else { 0 };
        }
        if left == 0 {
            let content = ContentDigest(*hasher.finalize().as_bytes());
            if is_packed {
                packing.add(content, &buffer[..from]);
            }
            return Ok(Hashed { content, stat, xattrs: kept_xattrs(&fd) });
        }
    }
    Err(ScanError::Changed(String::from_utf8_lossy(path).into_owned()))
}
