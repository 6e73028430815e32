//! Filling the layer directory.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags, chmodat, chownat, fchmod, fsetxattr,
    fstat, ftruncate, futimens, ioctl_ficlone, linkat, makedev, mkdirat, mknodat, openat, statat, symlinkat,
    utimensat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::bytes::{copy_in_kernel, copy_rest, write_all};
use super::origins::{Finder, Found, Origins};
use super::pack::open_planned;
use super::source::open_dir;
use super::{CopyPlan, FileSource, SourceError};
use crate::layer::{
    Change, DiffEntry, ListingError, Mtime, OverlayForm, Owners, Pack, PackReader, Place, read_all,
};
use crate::path::RelPath;
use crate::tree::{ContentDigest, Meta};

/// Files that one thread takes at once.
const BATCH_ENTRIES: usize = 64;
/// Bytes of xattrs that are held of either.
const XATTR_BYTES_AT_ONCE: usize = if cfg!(test) { 200 } else { 256 << 10 };
/// Entries that are gone through at once for the directories among them, backwards.
const FINISHED_AT_ONCE: usize = if cfg!(test) { 3 } else { 1024 };
/// Most threads that fill one layer; more only queue up in the filesystem's journal.
const THREADS_MAX: usize = 8;

/// Where the files of a plan are read from.
#[derive(Clone, Copy, Default)]
pub struct Sources<'a> {
    /// What [`super::Origin::Source`] means.
    pub main: Option<&'a dyn FileSource>,
    /// What [`super::Origin::Archive`] means: all archives, each in a directory of its own.
    pub archives: Option<&'a dyn FileSource>,
    /// What [`super::Origin::Packed`] means.
    pub packs: &'a [Pack],
}

/// Why a layer directory could not be filled. What was written so far is left behind.
#[derive(Debug, thiserror::Error)]
pub enum MaterialiseError {
    /// The listing of the layer cannot be read.
    #[error(transparent)]
    Listing(#[from] ListingError),
    /// A source file cannot be read.
    #[error("cannot read the source of /{path}")]
    Source {
        /// The destination.
        path: RelPath,
        /// Why.
        #[source]
        source: SourceError,
    },
    /// A source file is not what was planned: it changed since it was scanned, or while it was being read.
    #[error("/{source_path} changed while it was being copied")]
    Changed {
        /// Path in the source.
        source_path: RelPath,
    },
    /// A content is not in its pack any more as it was written.
    #[error("the stored content of /{path} is damaged")]
    Damaged {
        /// The destination.
        path: RelPath,
    },
    /// The plan names a source that was not given.
    #[error("/{path} has no source to be copied from")]
    NoSource {
        /// The destination.
        path: RelPath,
    },
    /// The owner could not be set: rbuild lacks the privilege, or the id is outside of the user namespace's map.
    #[error("cannot give /{path} to {uid}:{gid}")]
    Chown {
        /// The destination.
        path: RelPath,
        /// Wanted user.
        uid: u32,
        /// Wanted group.
        gid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The system refused.
    #[error("cannot {action} /{path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The destination.
        path: RelPath,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl MaterialiseError {
    /// Of a source file whose bytes are others than those planned: nobody changes files of the store's layers.
    pub(super) fn not_as_planned(source: &dyn FileSource, path: &RelPath, from: RelPath) -> Self {
        if !source.is_immutable() {
            return Self::Changed { source_path: from };
        }
        let source = SourceError::Damaged { path: from, what: "its content differs" };
        Self::Source { path: path.clone(), source }
    }
}

/// Writes a plan's layer into `dir`, an empty directory (the plan's root) that no one else writes to.
///
/// Files of archives that are given away are taken, and other bytes cloned, copied by the kernel, or read and written, whatever works first. Files of sources that may change
/// are hashed on the way and must be what the plan says; others only have to have its size. Directories that hide lower
/// ones are marked in `form`. A device that the kernel refuses to make, as it does inside a user namespace, is left
/// out: images made from the plan's diff have it. Nothing is synced.
pub fn materialise(
    plan: &CopyPlan,
    dir: BorrowedFd<'_>,
    sources: &Sources<'_>,
    owners: Owners,
    form: OverlayForm,
) -> Result<(), MaterialiseError> {
    // An entry that cannot be read is each one's.
    let entries = |is_one: fn(&Change) -> bool| {
        plan.diff.iter().filter(move |entry| entry.as_ref().map_or(true, |entry| is_one(&entry.change)))
    };
    let is_dir = |change: &Change| matches!(change, Change::Dir { .. });
    let links = entries(|change| matches!(change, Change::Hardlink { .. }));
    let others = entries(|change| !matches!(change, Change::Dir { .. } | Change::Hardlink { .. }));
    let new_filler = || Filler::new(dir, sources, &plan.origins, owners, form.has_modes());
    let mut filler = new_filler();
    let mut dirs = 0;
    for entry in entries(is_dir) {
        filler.entry(&entry?)?;
        dirs += 1;
    }
    fill_all(others, plan.diff.len() - dirs, new_filler)?;
    for entry in links {
        filler.entry(&entry?)?;
    }
    // Innermost first: a directory's time is final once nothing is made in it, and its mode may forbid that.
    let mut end = plan.diff.len();
    while end > 0 {
        let start = end.saturating_sub(FINISHED_AT_ONCE);
        let (mut these, mut held_bytes) = (Vec::new(), 0);
        for (at, entry) in (start..end).zip(plan.diff.iter_from(start)?) {
            let entry = entry?;
            if let Change::Dir { meta, .. } = &entry.change {
                held_bytes += meta.held_xattr_bytes();
                these.push((at, (held_bytes <= XATTR_BYTES_AT_ONCE).then_some(entry)));
            }
        }
        for (at, entry) in these.into_iter().rev() {
            // What was too much to hold is read once more.
            let entry = entry.map_or_else(|| plan.diff.at(at), |entry| Ok(Some(entry)))?;
            let Some(entry) = entry else { continue };
            if let Change::Dir { meta, opaque } = &entry.change {
                filler.finish_dir(&entry.path, meta, opaque.then_some(form), entry.mtime)?;
            }
        }
        end = start;
    }
    Ok(())
}

/// Makes entries whose directories exist, on several threads when there are many: making a file is a dozen system
/// calls that mostly wait for the filesystem. Gives the first error in the order of `work`, which has up to `most`, among
/// those met.
fn fill_all<'a>(
    work: impl Iterator<Item = Result<DiffEntry, ListingError>> + Send,
    most: usize,
    filler: impl Fn() -> Filler<'a> + Sync,
) -> Result<(), MaterialiseError> {
    let batches = most.div_ceil(BATCH_ENTRIES);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX).min(batches);
    // The entries that no thread has taken, and how many batches were.
    let left = Mutex::new((work, 0));
    let first_error: Mutex<Option<(usize, MaterialiseError)>> = Mutex::new(None);
    let has_failed = AtomicBool::new(false);
    let run = || {
        let (mut filler, mut batch) = (filler(), Vec::with_capacity(BATCH_ENTRIES));
        loop {
            let at = {
                let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
                batch.clear();
                // No new batches for anyone after an error; those before it were taken already and run to their end.
                if !has_failed.load(Ordering::Relaxed) {
                    take_batch(&mut left.0, &mut batch);
                }
                left.1 += 1;
                left.1
            };
            if batch.is_empty() {
                return;
            }
            if let Err(error) = batch.drain(..).try_for_each(|entry| filler.entry(&entry?)) {
                has_failed.store(true, Ordering::Relaxed);
                let mut first = first_error.lock().unwrap_or_else(PoisonError::into_inner);
                if first.as_ref().is_none_or(|(earlier, _)| at < *earlier) {
                    *first = Some((at, error));
                }
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Should the system refuse a thread, the ones there are do all the work.
            if std::thread::Builder::new().name("copy".into()).spawn_scoped(scope, run).is_err() {
                break;
            }
        }
        run();
    });
    match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// Takes entries until there are as many, or their xattrs as large, as one thread takes at once.
fn take_batch(
    work: &mut impl Iterator<Item = Result<DiffEntry, ListingError>>,
    batch: &mut Vec<Result<DiffEntry, ListingError>>,
) {
    let mut held_bytes = 0;
    while batch.len() < BATCH_ENTRIES
        && held_bytes < XATTR_BYTES_AT_ONCE
        && let Some(entry) = work.next()
    {
        let meta = entry.as_ref().ok().and_then(|entry| entry.change.meta());
        held_bytes += meta.map_or(0, Meta::held_xattr_bytes);
        batch.push(entry);
    }
}

struct Filler<'a> {
    root: BorrowedFd<'a>,
    sources: &'a Sources<'a>,
    origins: Finder<'a>,
    owners: Owners,
    has_modes: bool,
    /// Directory of the last entry.
    last: Option<(RelPath, OwnedFd)>,
    buffer: Vec<u8>,
    /// Set once the filesystems have shown that they do not share extents.
    is_clone_refused: bool,
}

fn failed(action: &'static str, path: &RelPath) -> impl Fn(Errno) -> MaterialiseError {
    move |errno| MaterialiseError::Io { action, path: path.clone(), source: errno.into() }
}

impl<'a> Filler<'a> {
    fn new(
        root: BorrowedFd<'a>,
        sources: &'a Sources<'a>,
        origins: &'a Origins,
        owners: Owners,
        has_modes: bool,
    ) -> Self {
        let (last, buffer) = (None, Vec::new());
        Self {
            root,
            sources,
            origins: origins.finder(),
            owners,
            has_modes,
            last,
            buffer,
            is_clone_refused: false,
        }
    }

    fn entry(&mut self, entry: &DiffEntry) -> Result<(), MaterialiseError> {
        let path = &entry.path;
        let Some(parent) = path.parent() else { return Ok(()) };
        if self.last.as_ref().is_none_or(|(at, _)| *at != parent) {
            let fd = open_dir(self.root, &parent).map_err(failed("open", &parent))?;
            self.last = Some((parent, fd));
        }
        let Some((_, fd)) = self.last.take() else { return Ok(()) };
        let made = self.make(entry, fd.as_fd());
        self.last = path.parent().map(|parent| (parent, fd));
        made
    }

    fn make(&mut self, entry: &DiffEntry, dir: BorrowedFd<'_>) -> Result<(), MaterialiseError> {
        let (path, name) = (&entry.path, entry.path.name());
        let private = Mode::from_raw_mode(0o600);
        match &entry.change {
            Change::Dir { .. } => {
                mkdirat(dir, name, Mode::from_raw_mode(0o700)).map_err(failed("make directory", path))
            }
            Change::File { meta, size, content } => {
                let common = OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let no_source = || MaterialiseError::NoSource { path: path.clone() };
                let found = self.sources.find(&mut self.origins, path)?.ok_or_else(no_source)?;
                let file = if take_given(path, dir, &found)? {
                    let file = openat(dir, name, OFlags::RDONLY | common, Mode::empty());
                    file.map_err(failed("open file", path))?
                } else {
                    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | common;
                    let file = openat(dir, name, flags, private).map_err(failed("make file", path))?;
                    self.fill(path, &file, found, *size, content)?;
                    file
                };
                self.finish_fd(path, file.as_fd(), meta, entry.mtime)
            }
            Change::Hardlink { target } => {
                let from = open_dir(self.root, &target.parent().unwrap_or_default());
                let from = from.map_err(failed("open the link target of", path))?;
                linkat(from, target.name(), dir, name, AtFlags::empty()).map_err(failed("link", path))
            }
            Change::Symlink { meta, target } => {
                symlinkat(&target[..], dir, name).map_err(failed("make symlink", path))?;
                self.finish_name(path, dir, meta, entry.mtime, false)
            }
            Change::Fifo { meta } => {
                mknodat(dir, name, FileType::Fifo, private, 0).map_err(failed("make pipe", path))?;
                self.finish_name(path, dir, meta, entry.mtime, true)
            }
            Change::CharDevice { meta, major, minor } => {
                self.device(entry, dir, FileType::CharacterDevice, (*major, *minor), meta)
            }
            Change::BlockDevice { meta, major, minor } => {
                self.device(entry, dir, FileType::BlockDevice, (*major, *minor), meta)
            }
            // Overlay's mark for a name that is gone.
            Change::Whiteout => mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)
                .map_err(failed("make whiteout", path)),
        }
    }

    fn device(
        &self,
        entry: &DiffEntry,
        dir: BorrowedFd<'_>,
        kind: FileType,
        (major, minor): (u32, u32),
        meta: &Meta,
    ) -> Result<(), MaterialiseError> {
        let path = &entry.path;
        match mknodat(dir, path.name(), kind, Mode::from_raw_mode(0o600), makedev(major, minor)) {
            Err(Errno::PERM) => Ok(()),
            Err(errno) => Err(failed("make device", path)(errno)),
            Ok(()) => self.finish_name(path, dir, meta, entry.mtime, true),
        }
    }

    fn fill(
        &mut self,
        path: &RelPath,
        file: &OwnedFd,
        found: Found<'_>,
        size: u64,
        content: &ContentDigest,
    ) -> Result<(), MaterialiseError> {
        let (source, from) = match found {
            Found::Bytes(bytes) => return write_all(file, &bytes).map_err(failed("write", path)),
            Found::Packed => return self.unpack(path, file, size, content),
            Found::File(source, from) => (source, from),
        };
        let Some(opened) = open_planned(source, path, &from, size)? else { return Ok(()) };
        let is_size = |fd: &OwnedFd| Ok(u64::try_from(fstat(fd)?.st_size) == Ok(size));
        let is_cloned = self.clone_file(file, &opened);
        let is_right = if source.is_immutable() {
            if !is_cloned {
                copy_in_kernel(&opened, file, size)
                    .and_then(|copied| copy_rest((&opened, 0), file, copied, size, &mut self.buffer, |_| {}))
                    .map_err(failed("copy", path))?;
            }
            is_size(file).map_err(failed("look at", path))?
        } else {
            let mut hasher = blake3::Hasher::new();
            let mut hash = |bytes: &[u8]| {
                hasher.update(bytes);
            };
            if is_cloned {
                // What the source grew by since it was hashed.
                ftruncate(file, size).map_err(failed("cut", path))?;
                let mut all = |bytes: &[u8]| -> Result<(), Errno> {
                    hash(bytes);
                    Ok(())
                };
                read_all(file, size, &mut self.buffer, &mut all).map_err(failed("read", path))?;
            } else {
                copy_rest((&opened, 0), file, 0, size, &mut self.buffer, &mut hash)
                    .map_err(failed("copy", path))?;
            }
            hasher.finalize().as_bytes() == &content.0
        };
        if is_right { Ok(()) } else { Err(MaterialiseError::not_as_planned(source, path, from)) }
    }

    /// Copies a content out of the pack that has it.
    fn unpack(
        &mut self,
        path: &RelPath,
        file: &OwnedFd,
        size: u64,
        content: &ContentDigest,
    ) -> Result<(), MaterialiseError> {
        let packs = self.sources.packs;
        let found = PackReader::new(packs).find(content).map_err(|source| MaterialiseError::Io {
            action: "look up the content of",
            path: path.clone(),
            source,
        })?;
        let (pack, offset) = match found {
            Some((pack, Place { offset, length })) if length == size => (&packs[pack], offset),
            _ if size == 0 => return Ok(()),
            _ => return Err(MaterialiseError::NoSource { path: path.clone() }),
        };
        let mut hasher = blake3::Hasher::new();
        let hash = |bytes: &[u8]| {
            hasher.update(bytes);
        };
        copy_rest((pack.file(), offset), file, 0, size, &mut self.buffer, hash)
            .map_err(failed("write", path))?;
        if hasher.finalize().as_bytes() != &content.0 {
            return Err(MaterialiseError::Damaged { path: path.clone() });
        }
        Ok(())
    }

    /// Shares the source's extents where the filesystem can.
    fn clone_file(&mut self, to: &OwnedFd, from: &OwnedFd) -> bool {
        if self.is_clone_refused {
            return false;
        }
        let cloned = ioctl_ficlone(to, from);
        self.is_clone_refused = matches!(cloned, Err(Errno::NOTSUP | Errno::XDEV | Errno::NOTTY));
        cloned.is_ok()
    }

    /// Owner, then xattrs and mode (a change of owner clears capabilities and setuid), then times.
    fn finish_fd(
        &self,
        path: &RelPath,
        fd: BorrowedFd<'_>,
        meta: &Meta,
        mtime: Mtime,
    ) -> Result<(), MaterialiseError> {
        let is_given = match self.owners {
            Owners::Set => {
                let stat = fstat(fd).map_err(failed("look at", path))?;
                (stat.st_uid, stat.st_gid) == (meta.uid, meta.gid)
            }
            Owners::Noted => (meta.uid, meta.gid) == (0, 0),
            Owners::Keep => true,
        };
        if !is_given {
            self.owners.give(fd, meta).map_err(|errno| chown_error(path, meta, errno))?;
        }
        if !self.has_modes {
            return futimens(fd, &times(mtime)).map_err(failed("set the time of", path));
        }
        for (name, value) in &meta.xattrs {
            match fsetxattr(fd, &name[..], value, XattrFlags::empty()) {
                // The filesystem or our privileges have no such thing; the diff keeps it for the image.
                Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => {}
                Err(errno) => return Err(failed("set extended attributes of", path)(errno)),
            }
        }
        fchmod(fd, Mode::from_raw_mode(meta.mode)).map_err(failed("set the mode of", path))?;
        futimens(fd, &times(mtime)).map_err(failed("set the time of", path))
    }

    /// The same by name, for what cannot be opened. The directory is ours alone, so the name is still what we made.
    fn finish_name(
        &self,
        path: &RelPath,
        dir: BorrowedFd<'_>,
        meta: &Meta,
        mtime: Mtime,
        has_mode: bool,
    ) -> Result<(), MaterialiseError> {
        let (name, no_follow) = (path.name(), AtFlags::SYMLINK_NOFOLLOW);
        if self.owners == Owners::Set {
            let stat = statat(dir, name, no_follow).map_err(failed("look at", path))?;
            if (stat.st_uid, stat.st_gid) != (meta.uid, meta.gid) {
                let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
                chownat(dir, name, Some(uid), Some(gid), no_follow)
                    .map_err(|errno| chown_error(path, meta, errno))?;
            }
        }
        if has_mode {
            chmodat(dir, name, Mode::from_raw_mode(meta.mode), AtFlags::empty())
                .map_err(failed("set the mode of", path))?;
        }
        utimensat(dir, name, &times(mtime), no_follow).map_err(failed("set the time of", path))
    }

    fn finish_dir(
        &self,
        path: &RelPath,
        meta: &Meta,
        opaque: Option<OverlayForm>,
        mtime: Mtime,
    ) -> Result<(), MaterialiseError> {
        let place = open_dir(self.root, path).map_err(failed("open", path))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(place, ".", flags, Mode::empty()).map_err(failed("open", path))?;
        if let Some(form) = opaque {
            // Unlike kept xattrs this one decides what shows through, so it must not be lost.
            form.set_opaque(&fd).map_err(failed("mark as opaque", path))?;
        }
        self.finish_fd(path, fd.as_fd(), meta, mtime)
    }
}

/// Has the file of an archive itself, where a copy would write all its bytes a second time.
fn take_given(path: &RelPath, dir: BorrowedFd<'_>, found: &Found<'_>) -> Result<bool, MaterialiseError> {
    let Found::File(source, from) = found else { return Ok(false) };
    let given = source.give(from, dir, path.name());
    given.map_err(|source| MaterialiseError::Source { path: path.clone(), source })
}

fn chown_error(path: &RelPath, meta: &Meta, errno: Errno) -> MaterialiseError {
    let Meta { uid, gid, .. } = *meta;
    MaterialiseError::Chown { path: path.clone(), uid, gid, source: errno.into() }
}

fn times(mtime: Mtime) -> Timestamps {
    let time = Timespec { tv_sec: mtime.secs, tv_nsec: mtime.nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}
