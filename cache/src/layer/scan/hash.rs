//! Reading the files: contents and xattrs.

use std::collections::HashSet;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::super::diff::{Change, DiffEntry, Mtime};
use super::super::dirs::Dirs;
use super::super::overlay::{OverlayForm, Owners};
use super::firsts::Firsts;
use super::walk::{self, Found, What};
use super::{ScanError, io_error, note_owner, read_xattrs};
use crate::path::RelPath;
use crate::scratch::Scratch;
use crate::tree::{ContentDigest, Meta};

const BUFFER_BYTES: usize = 256 << 10;

/// With less of both, a second thread costs more than it saves.
const PARALLEL_BYTES_MIN: u64 = 2 << 20;
const PARALLEL_FILES_MIN: usize = 256;

/// Xattrs of files that are held at once besides what is known of them before they are opened. Each of the two threads may
/// find that those of its next file are more than what is left.
pub(super) const XATTR_BYTES_AT_ONCE: usize = if cfg!(test) { 300 } else { 2 << 20 };

const LOOK_FOR_NAMES: &str = "look for other names of";

/// Files taken by a thread at once: neighbours share their directory.
const BATCH_FILES: usize = 32;

/// What opening a file told.
struct Opened {
    place: usize,
    meta: Meta,
    mtime: Mtime,
    size: u64,
    inode: u64,
    links: u64,
    /// As in [`Found`].
    lacks_xattrs: bool,
    /// None when it was not read.
    content: Option<ContentDigest>,
}

impl Opened {
    fn fill(self, first: Option<RelPath>, found: &mut [Found]) {
        let Self { place, meta, mtime, size, inode, links, lacks_xattrs, content } = self;
        let one = &mut found[place];
        (one.meta, one.mtime, one.what) = (meta, mtime, What::File { size, inode, links, content, first });
        one.lacks_xattrs = lacks_xattrs;
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
pub(super) struct Reader<'a> {
    dir: BorrowedFd<'a>,
    form: OverlayForm,
    firsts: Firsts,
    /// To files that are opened once more.
    dirs: Dirs<'a>,
}

impl<'a> Reader<'a> {
    /// What is known of files whose other names are to come goes to `scratch` when it is much.
    pub(super) fn new(dir: BorrowedFd<'a>, form: OverlayForm, scratch: &Scratch) -> Result<Self, ScanError> {
        let root = RelPath::root();
        let firsts = Firsts::new(scratch).map_err(io_error("note the names of what is in", &root))?;
        Ok(Self { dir, form, firsts, dirs: Dirs::new(dir) })
    }

    /// Reads the files of what comes next. Of some the xattrs may be left out: see [`Found::lacks_xattrs`].
    pub(super) fn read(&mut self, found: &mut [Found]) -> Result<(), ScanError> {
        let is_file = |place: &usize| matches!(found[*place].what, What::File { .. });
        let places: Vec<usize> = (0..found.len()).filter(is_file).collect();
        let mut linked = Vec::new();
        let held = AtomicUsize::new(0);
        for one in self.open_all(found, &places, Linked::Skip, &held)? {
            match one.content {
                Some(_) => one.fill(None, found),
                None => linked.push(one),
            }
        }
        // The first name stands for all, however the threads were scheduled.
        linked.sort_unstable_by_key(|one| one.place);
        let mut new = HashSet::new();
        let mut firsts = Vec::new();
        for one in &linked {
            let is_awaited = self.firsts.await_names_of(one.inode);
            if !is_awaited.map_err(io_error(LOOK_FOR_NAMES, &found[one.place].path))? && new.insert(one.inode)
            {
                firsts.push(one.place);
            }
        }
        for one in self.open_all(found, &firsts, Linked::Read, &held)? {
            one.fill(None, found);
        }
        linked.into_iter().try_for_each(|one| self.link(one, found, &held))
    }

    /// Reads what was left out of something whose turn it is.
    pub(super) fn complete(&mut self, one: &mut Found) -> Result<(), ScanError> {
        if std::mem::take(&mut one.lacks_xattrs) {
            read_left_out(&mut self.dirs, self.form, &one.path, &mut one.meta)?;
        }
        Ok(())
    }

    /// Notes what was read of a file's first name; tells it of another.
    fn link(&mut self, one: Opened, found: &mut [Found], held: &AtomicUsize) -> Result<(), ScanError> {
        let Found { path, meta, mtime, what, lacks_xattrs, .. } = &found[one.place];
        if let What::File { size, inode, links, content: Some(content), .. } = *what {
            let mut meta = meta.clone();
            if *lacks_xattrs {
                read_left_out(&mut self.dirs, self.form, path, &mut meta)?;
            }
            let change = Change::File { meta, size, content };
            let entry = DiffEntry { path: path.clone(), change, mtime: *mtime };
            return self.firsts.note(inode, links, &entry).map_err(io_error("note the names of", path));
        }
        let first = self.firsts.of_next_name(one.inode).map_err(io_error(LOOK_FOR_NAMES, path))?;
        let Some(DiffEntry { path: first, change: Change::File { mut meta, content, .. }, .. }) = first
        else {
            return Err(ScanError::Changing { path: path.clone() });
        };
        let lacks_xattrs = held.load(Ordering::Relaxed) >= XATTR_BYTES_AT_ONCE;
        if lacks_xattrs {
            meta.xattrs.clear();
        }
        held.fetch_add(meta.held_xattr_bytes(), Ordering::Relaxed);
        Opened { meta, lacks_xattrs, content: Some(content), ..one }.fill(Some(first), found);
        Ok(())
    }

    /// Opens the files at `places`, on a second thread besides when there is much to do. What they told comes in no
    /// order.
    fn open_all(
        &self,
        found: &[Found],
        places: &[usize],
        linked: Linked,
        held: &AtomicUsize,
    ) -> Result<Vec<Opened>, ScanError> {
        let are_many = places.len() >= PARALLEL_FILES_MIN;
        let batch = if are_many { BATCH_FILES } else { 1 };
        let (dir, form) = (self.dir, self.form);
        let queue = Queue { dir, form, found, places, next: AtomicUsize::new(0), batch, linked, held };
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
}

/// Files that several threads work off.
struct Queue<'a> {
    dir: BorrowedFd<'a>,
    form: OverlayForm,
    found: &'a [Found],
    /// Of the files among them.
    places: &'a [usize],
    next: AtomicUsize,
    batch: usize,
    linked: Linked,
    /// Bytes of xattrs held so far.
    held: &'a AtomicUsize,
}

impl Queue<'_> {
    fn is_empty(&self) -> bool {
        self.next.load(Ordering::Relaxed) >= self.places.len()
    }

    /// Opens and reads what is left. Before it reads a file it tells `watch` the size of all it took so far.
    fn work(&self, mut watch: impl FnMut(u64)) -> Result<Vec<Opened>, ScanError> {
        let mut dirs = Dirs::new(self.dir);
        let mut buffer = Vec::new();
        let (mut bytes, mut opened) = (0, Vec::new());
        loop {
            let start = self.next.fetch_add(self.batch, Ordering::Relaxed).min(self.places.len());
            let taken = &self.places[start..(start + self.batch).min(self.places.len())];
            if taken.is_empty() {
                return Ok(opened);
            }
            for &place in taken {
                let (file, mut one) = self.open(&mut dirs, place)?;
                let path = &self.found[place].path;
                if one.links == 1 || self.linked == Linked::Read {
                    bytes += one.size;
                    watch(bytes);
                    one.lacks_xattrs = self.held.load(Ordering::Relaxed) >= XATTR_BYTES_AT_ONCE;
                    if !one.lacks_xattrs {
                        read_attributes(&file, path, self.form, &mut one.meta)?;
                        self.held.fetch_add(one.meta.held_xattr_bytes(), Ordering::Relaxed);
                    }
                    one.content = Some(read(&file, path, one.size, &mut buffer)?);
                }
                opened.push(one);
            }
        }
    }

    fn open(&self, dirs: &mut Dirs<'_>, place: usize) -> Result<(OwnedFd, Opened), ScanError> {
        let Found { path, meta: known, .. } = &self.found[place];
        let file = open_file(dirs, path)?;
        let stat = rustix::fs::fstat(&file).map_err(io_error("look at", path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(ScanError::Changing { path: path.clone() });
        }
        let mut meta = walk::meta(&stat);
        if self.form.owners() == Owners::Noted {
            // Unless another is noted on it.
            (meta.uid, meta.gid) = (known.uid, known.gid);
        }
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        let (inode, links) = (stat.st_ino, stat.st_nlink);
        let mtime = walk::mtime(&stat);
        Ok((file, Opened { place, meta, mtime, size, inode, links, lacks_xattrs: false, content: None }))
    }
}

fn open_file(dirs: &mut Dirs<'_>, path: &RelPath) -> Result<OwnedFd, ScanError> {
    let holder = dirs.parent(path).map_err(io_error("open the directory of", path))?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(&holder, path.name(), flags, Mode::empty()).map_err(io_error("open", path))
}

fn read_attributes(
    file: &OwnedFd,
    path: &RelPath,
    form: OverlayForm,
    meta: &mut Meta,
) -> Result<(), ScanError> {
    let attributes = read_xattrs(file, path, form)?;
    meta.xattrs = attributes.kept;
    match attributes.owner {
        Some(owner) => (meta.uid, meta.gid) = owner,
        None => note_owner(file, path, form, meta)?,
    }
    Ok(())
}

/// The attributes of a file that was opened before, and which nothing has taken out since.
fn read_left_out(
    dirs: &mut Dirs<'_>,
    form: OverlayForm,
    path: &RelPath,
    meta: &mut Meta,
) -> Result<(), ScanError> {
    read_attributes(&open_file(dirs, path)?, path, form, meta)
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
