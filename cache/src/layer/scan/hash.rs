//! Reading the files: contents and xattrs.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::super::diff::Mtime;
use super::super::dirs::Dirs;
use super::super::overlay::{OverlayForm, Owners};
use super::walk::{self, Found, What};
use super::{ScanError, io_error, note_owner, read_xattrs};
use crate::path::RelPath;
use crate::tree::{ContentDigest, Meta};

const BUFFER_BYTES: usize = 256 << 10;

/// With less of both, a second thread costs more than it saves.
const PARALLEL_BYTES_MIN: u64 = 2 << 20;
const PARALLEL_FILES_MIN: usize = 256;

/// Files taken by a thread at once: neighbours share their directory.
const BATCH_FILES: usize = 32;

/// Files opened before what they told is put in its place: it need not be in memory twice.
const AT_ONCE: usize = 8192;

/// A file to read.
struct Job<'a> {
    place: usize,
    path: &'a RelPath,
    /// With the owner that it gets where none is noted on it.
    meta: &'a Meta,
}

/// What opening a file told.
struct Opened {
    place: usize,
    meta: Meta,
    mtime: Mtime,
    size: u64,
    inode: u64,
    links: u64,
    /// None when it was not read.
    content: Option<ContentDigest>,
}

impl Opened {
    fn fill(self, found: &mut [Found]) {
        let Self { place, meta, mtime, size, inode, links, content } = self;
        let one = &mut found[place];
        (one.meta, one.mtime, one.what) = (meta, mtime, What::File { size, inode, links, content });
    }
}

/// What becomes of a file that has other names, too.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Linked {
    /// It is not read: one of them will do.
    Skip,
    Read,
}

/// Looks at every file and reads it, each inode once: content, xattrs, and what the walk did not ask for.
pub(super) fn hash_files(
    dir: BorrowedFd<'_>,
    form: OverlayForm,
    found: &mut [Found],
) -> Result<(), ScanError> {
    let is_file = |place: &usize| matches!(found[*place].what, What::File { .. });
    let places: Vec<usize> = (0..found.len()).filter(is_file).collect();
    let mut linked = Vec::new();
    for some in places.chunks(AT_ONCE) {
        for one in open_all(dir, form, found, some, Linked::Skip)? {
            match one.content {
                Some(_) => one.fill(found),
                None => linked.push((one.place, one.inode)),
            }
        }
    }
    // The first name stands for all, however the threads were scheduled.
    linked.sort_unstable();
    let mut first_of: HashMap<u64, usize> = HashMap::new();
    let mut same = Vec::new();
    for (place, inode) in linked {
        match first_of.entry(inode) {
            Entry::Occupied(first) => same.push((place, *first.get())),
            Entry::Vacant(free) => {
                free.insert(place);
            }
        }
    }
    let mut firsts: Vec<_> = first_of.into_values().collect();
    firsts.sort_unstable();
    for some in firsts.chunks(AT_ONCE) {
        open_all(dir, form, found, some, Linked::Read)?.into_iter().for_each(|one| one.fill(found));
    }
    for (place, first) in same {
        let (meta, mtime) = (found[first].meta.clone(), found[first].mtime);
        let What::File { size, inode, links, content } = found[first].what else { continue };
        Opened { place, meta, mtime, size, inode, links, content }.fill(found);
    }
    Ok(())
}

/// Opens the files at `places`, on a second thread besides when there is much to do. What they told comes in no order.
fn open_all(
    dir: BorrowedFd<'_>,
    form: OverlayForm,
    found: &[Found],
    places: &[usize],
    linked: Linked,
) -> Result<Vec<Opened>, ScanError> {
    let job = |place: &usize| Job { place: *place, path: &found[*place].path, meta: &found[*place].meta };
    let jobs: Vec<_> = places.iter().map(job).collect();
    let are_many = jobs.len() >= PARALLEL_FILES_MIN;
    let batch = if are_many { BATCH_FILES } else { 1 };
    let queue = Queue { dir, form, jobs: &jobs, next: AtomicUsize::new(0), batch, linked };
    std::thread::scope(|scope| {
        let mut other = None;
        // Only what was opened says how large it is.
        let mine = queue.work(|bytes| {
            let is_worth_it = are_many || bytes >= PARALLEL_BYTES_MIN;
            if other.is_none() && is_worth_it && !queue.is_empty() {
                other = Some(scope.spawn(|| queue.work(|_| ())));
            }
        });
        let theirs = other.map(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        let mut opened = mine?;
        opened.extend(theirs.transpose()?.unwrap_or_default());
        Ok(opened)
    })
}

/// Files that several threads work off.
struct Queue<'a> {
    dir: BorrowedFd<'a>,
    form: OverlayForm,
    jobs: &'a [Job<'a>],
    next: AtomicUsize,
    batch: usize,
    linked: Linked,
}

impl Queue<'_> {
    fn is_empty(&self) -> bool {
        self.next.load(Ordering::Relaxed) >= self.jobs.len()
    }

    /// Opens and reads what is left. Before it reads a file it tells `watch` the size of all it took so far.
    fn work(&self, mut watch: impl FnMut(u64)) -> Result<Vec<Opened>, ScanError> {
        let mut dirs = Dirs::new(self.dir);
        let mut buffer = Vec::new();
        let (mut bytes, mut opened) = (0, Vec::new());
        loop {
            let start = self.next.fetch_add(self.batch, Ordering::Relaxed).min(self.jobs.len());
            let taken = &self.jobs[start..(start + self.batch).min(self.jobs.len())];
            if taken.is_empty() {
                return Ok(opened);
            }
            for job in taken {
                let (file, mut one) = self.open(&mut dirs, job)?;
                if one.links == 1 || self.linked == Linked::Read {
                    bytes += one.size;
                    watch(bytes);
                    self.read_attributes(&file, job.path, &mut one.meta)?;
                    one.content = Some(read(&file, job.path, one.size, &mut buffer)?);
                }
                opened.push(one);
            }
        }
    }

    fn open(&self, dirs: &mut Dirs<'_>, job: &Job<'_>) -> Result<(OwnedFd, Opened), ScanError> {
        let (place, path) = (job.place, job.path);
        let holder = dirs.parent(path).map_err(io_error("open the directory of", path))?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file =
            rustix::fs::openat(&holder, path.name(), flags, Mode::empty()).map_err(io_error("open", path))?;
        let stat = rustix::fs::fstat(&file).map_err(io_error("look at", path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(ScanError::Changing { path: path.clone() });
        }
        let mut meta = walk::meta(&stat);
        if self.form.owners() == Owners::Noted {
            (meta.uid, meta.gid) = (job.meta.uid, job.meta.gid);
        }
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        let (inode, links) = (stat.st_ino, stat.st_nlink);
        let mtime = walk::mtime(&stat);
        Ok((file, Opened { place, meta, mtime, size, inode, links, content: None }))
    }

    fn read_attributes(&self, file: &OwnedFd, path: &RelPath, meta: &mut Meta) -> Result<(), ScanError> {
        let attributes = read_xattrs(file, path, self.form)?;
        meta.xattrs = attributes.kept;
        match attributes.owner {
            Some(owner) => (meta.uid, meta.gid) = owner,
            None => note_owner(file, path, self.form, meta)?,
        }
        Ok(())
    }
}

/// The digest of a file that has `size` bytes.
fn read(file: &OwnedFd, path: &RelPath, size: u64, buffer: &mut Vec<u8>) -> Result<ContentDigest, ScanError> {
    // A byte more than the file: what has grown is noticed, and a whole read is the last one.
    let len = usize::try_from(size).unwrap_or(BUFFER_BYTES).saturating_add(1).min(BUFFER_BYTES);
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    let mut hash = blake3::Hasher::new();
    let mut seen = 0u64;
    loop {
        match rustix::io::read(file, &mut buffer[..]) {
            Ok(len) => {
                hash.update(&buffer[..len]);
                seen += len as u64;
                // The kernel fills the buffer as long as there is something.
                if len < buffer.len() || seen > size {
                    break;
                }
            }
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(io_error("read", path)(errno)),
        }
    }
    if seen != size {
        return Err(ScanError::Changing { path: path.clone() });
    }
    Ok(ContentDigest(*hash.finalize().as_bytes()))
}
