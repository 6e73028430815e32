//! Reads and hashes the files whose content no index knows, and packs them on the way where that will be wanted.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rbuild_cache::layer::{PackWriter, kept_xattrs};
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

/// Reads what is left to read, on both cores when there is much, and adds it to its directory. With a `spool` gives packs
/// of the small files among them, without those that could not be written.
pub(super) fn read_all(
    root: BorrowedFd<'_>,
    dirs: &mut [Looked],
    spool: Option<&Spool>,
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
        // The order of archives, in which the packs will be read.
        todo.sort_unstable_by(|(_, a, _), (_, b, _)| path::compare(a, b));
    }
    let (next, seen, packed_bytes) = (AtomicUsize::new(0), Mutex::default(), AtomicU64::new(0));
    let work = |thread: usize| -> Result<(Vec<(usize, Hashed)>, bool), ScanError> {
        let mut done = Vec::new();
        let mut buffer = vec![0; BUFFER_BYTES];
        let writer = spool.and_then(|spool| spool.pack(thread).ok());
        let mut packing = Packing { writer, seen: &seen, bytes: &packed_bytes };
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some((_, path, _)) = todo.get(at) else { return Ok((done, packing.finish())) };
            done.push((at, hash_file(root, path, &mut buffer, &mut packing)?));
        }
    };
    let threads = match is_much {
        true => std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX).min(todo.len()),
        false => 1,
    };
    let results = std::thread::scope(|scope| {
        let work = &work;
        let helpers: Vec<_> = (1..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        let mut results = vec![work(0)];
        results.extend(helpers.into_iter().map(|h| h.join().expect("hashing does not panic")));
        results
    });
    let mut packed = Vec::new();
    for (thread, result) in results.into_iter().enumerate() {
        let (done, is_packed) = result?;
        packed.extend(is_packed.then_some(thread));
        for (at, Hashed { content, stat, xattrs }) in done {
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
    // Without packs the files are read again, and what is wrong with the store is said then.
    Ok(spool.and_then(|spool| spool.open(packed).ok()))
}

/// What a thread packs of what it reads. Nothing any more once that failed.
struct Packing<'a> {
    writer: Option<PackWriter>,
    /// Contents that some thread has packed, or is about to, and their bytes.
    seen: &'a Mutex<HashSet<ContentDigest>>,
    bytes: &'a AtomicU64,
}

impl Packing<'_> {
    /// Packs a content, unless that was done or all are too many.
    fn add(&mut self, content: ContentDigest, bytes: &[u8]) {
        let Some(writer) = &mut self.writer else { return };
        let length = bytes.len() as u64;
        let is_first = || self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(content);
        if length == 0 || self.bytes.load(Ordering::Relaxed) > PACKED_BYTES_SUM_MAX || !is_first() {
            return;
        }
        self.bytes.fetch_add(length, Ordering::Relaxed);
        match writer.write(bytes) {
            Ok(()) => writer.end(content, length),
            Err(_) => self.writer = None,
        }
    }

    /// True when there is a whole pack.
    fn finish(self) -> bool {
        self.writer.is_some_and(|writer| writer.finish().is_ok())
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
    packing: &mut Packing<'_>,
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
