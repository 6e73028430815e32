//! Reads and hashes the files whose content no index knows, and packs them on the way where that will be wanted.

use std::iter::Peekable;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rbuild_cache::layer::kept_xattrs;
use rbuild_cache::store::{FileStat, LayerPacks, Place, ReadFile, SeenDir, Spool};
use rbuild_cache::tree::ContentDigest;
use rustix::fs::OFlags;

use super::lister::Lister;
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

/// Reads what is left to read, on both cores when there is much, and tells its directory. With a `spool`, and when
/// there is much, gives a pack of the small files among them. `dirs` are in order.
pub(super) fn read_all(
    lister: &Lister<'_>,
    dirs: &mut [SeenDir],
    spool: Option<Spool>,
) -> Result<Option<LayerPacks>, ScanError> {
    let todo = in_order(dirs);
    if todo.is_empty() {
        return Ok(None);
    }
    let size_of = |(dir, place): &(u32, Place)| dirs[*dir as usize].size(*place);
    let is_much = todo.len() >= PARALLEL_MIN
        || todo.iter().map(size_of).fold(0, u64::saturating_add) >= PARALLEL_BYTES_MIN;
    let dirs: Vec<Mutex<&mut SeenDir>> = dirs.iter_mut().map(Mutex::new).collect();
    let (next, packing) = (AtomicUsize::new(0), Packing(Mutex::new(spool.filter(|_| is_much))));
    let work = || -> Result<(), ScanError> {
        let (mut path, mut buffer) = (Vec::new(), vec![0; BUFFER_BYTES]);
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some((dir, place)) = todo.get(at) else { return Ok(()) };
            let dir = || dirs[*dir as usize].lock().unwrap_or_else(PoisonError::into_inner);
            path.clear();
            let holder = dir();
            path.extend_from_slice(holder.path());
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(holder.name(*place));
            drop(holder);
            let read = hash_file(lister.root, &path, &mut buffer, &packing)?;
            let filled = dir().fill(*place, &read, lister.moment, lister.xattrs);
            filled.map_err(io("keep the xattrs of", &path))?;
        }
    };
    let threads = match is_much {
        true => std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX).min(todo.len()),
        false => 1,
    };
    std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        helpers.into_iter().map(|h| h.join().expect("hashing does not panic")).fold(own, Result::and)
    })?;
    Ok(packing.finish())
}

/// All files to read, with the places of their directories, in the order of archives, in which a pack of them will be
/// read. `dirs` are in it already.
fn in_order(dirs: &[SeenDir]) -> Vec<(u32, Place)> {
    let mut todo = Vec::new();
    // From the top down to the last one, with what is left of each.
    let mut open: Vec<(u32, Peekable<_>)> = Vec::new();
    // A scan has a few million.
    for (at, dir) in (0..).zip(dirs) {
        while let Some((above, left)) = open.last_mut() {
            let holder = &dirs[*above as usize];
            let name = name_below(holder.path(), dir.path());
            let is_before = |place: &Place| name.is_none_or(|name| holder.name(*place) < name);
            todo.extend(std::iter::from_fn(|| left.next_if(is_before)).map(|place| (*above, place)));
            if name.is_some() {
                break;
            }
            open.pop();
        }
        open.push((at, dir.unread().peekable()));
    }
    let last = open.into_iter().rev();
    todo.extend(last.flat_map(|(dir, left)| left.map(move |place| (dir, place))));
    todo
}

/// The name of what is in `dir` and is or holds `path`; `None` when that is elsewhere.
fn name_below<'p>(dir: &[u8], path: &'p [u8]) -> Option<&'p [u8]> {
    let below = if dir.is_empty() { path } else { path.strip_prefix(dir)?.strip_prefix(b"/")? };
    below.split(|byte| *byte == b'/').next()
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
        if writer.write(bytes).and_then(|()| writer.end(content, bytes.len() as u64)).is_err() {
            spool.take().into_iter().for_each(Spool::discard);
        }
    }

    fn finish(self) -> Option<LayerPacks> {
        let spool = self.0.into_inner().unwrap_or_else(PoisonError::into_inner)?;
        if spool.writer.bytes() == 0 { None } else { spool.finish().ok() }
    }
}

/// Hashes a file's first `st_size` bytes, as it is when opened, and packs it if it is small. One that grows meanwhile (a
/// log that this very build writes, say) is taken as it was; a copy that reads it again checks its bytes against the digest.
fn hash_file(
    root: BorrowedFd<'_>,
    path: &[u8],
    buffer: &mut [u8],
    packing: &Packing,
) -> Result<ReadFile, ScanError> {
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
            let xattrs = kept_xattrs(&fd).map_err(io("keep the xattrs of", path))?;
            return Ok(ReadFile { stat: FileStat::from(&stat), content, xattrs });
        }
    }
    Err(ScanError::Changed(String::from_utf8_lossy(path).into_owned()))
}

#[cfg(test)]
mod tests {
    use rbuild_cache::layer::Mtime;
    use rbuild_cache::path::compare;
    use rbuild_cache::store::{KnownKind, ListedDir, ScanMoment, SeenEntry};

    use super::super::lister::join;
    use super::*;

    #[test]
    fn files_are_read_in_the_order_of_archives() {
        let time = Mtime { secs: 1, nanos: 0 };
        let stat = FileStat { size: 1, mtime: time, ctime: time, ino: 1, dev: 1, mode: 0, uid: 0, gid: 0 };
        let names = [&b"!"[..], b"a.b", b"ab", b"b!", b"d", b"z"];
        let paths = [&b""[..], b"a", b"a/b", b"a/b/c/d", b"a!", b"b", b"b.x", b"b.x/e", b"x/y/q"];
        let dirs = paths.map(|path| {
            let mut listed = ListedDir::new(path, stat, ScanMoment::now());
            for name in names {
                let kind = KnownKind::File(&[0; 32]);
                let entry = SeenEntry { name, stat, is_linked: false, is_suspect: false, kind };
                let place = listed.push(&entry).unwrap();
                listed.mark_unread(place);
            }
            listed.done(false)
        });
        let path_of = |(dir, place): &(u32, Place)| {
            let dir = &dirs[*dir as usize];
            join(dir.path(), dir.name(*place))
        };
        let found: Vec<_> = in_order(&dirs).iter().map(path_of).collect();
        assert_eq!(found.len(), paths.len() * names.len());
        assert!(found.is_sorted_by(|a, b| compare(a, b).is_lt()), "{found:?}");
    }
}
