//! Files of a state in a directory of the user's.
//!
//! The state is hostile, and so may be what is in the directory: an earlier export put it there. Everything goes through
//! directory descriptors that no link leads away from; what is in the way is replaced, never written through. Files get
//! to their name by a rename, so a reader sees the old or the new one.
//!
//! Files belong to whoever runs rbuild. So set-user-id and set-group-id bits and capabilities are left out, as they
//! would lend the user's rights to whoever made the image; devices are left out as well.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::diff::{Change, DiffEntry, LayerDiff, ListingError, Mtime};
use super::dirs::Dirs;
use super::emit::{PassError, checked, read_all};
use crate::copy::{FileSource, SourceError};
use crate::path::RelPath;
use crate::store::layout::{read_names, remove_at};
use crate::tree::{ContentDigest, Meta, below, strip};

/// Bits that files keep.
const MODE_KEPT: u32 = 0o1777;

/// Why files cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum CheckoutError {
    /// A file of the state cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The list of files cannot be read.
    #[error(transparent)]
    Listing(#[from] ListingError),
    /// The system refused.
    #[error("cannot {action} `{path}`")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Below the directory.
        path: RelPath,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Writes states into one directory.
pub struct Checkout<'a> {
    dirs: Dirs<'a>,
    /// What was written of states, and below which path; what was written besides.
    listed: Vec<(RelPath, &'a LayerDiff)>,
    written: BTreeSet<RelPath>,
    clamp: Option<i64>,
    temporary: u64,
    /// For the bytes of files.
    buffer: Vec<u8>,
    /// Devices that were left out.
    pub devices: u64,
}

/// A directory that was made, and what it gets.
struct Made {
    path: RelPath,
    mode: u32,
    mtime: Mtime,
}

impl<'a> Checkout<'a> {
    /// Begins in a directory, which keeps its own mode. Times later than `clamp` are set back to it.
    pub fn new(root: BorrowedFd<'a>, clamp: Option<i64>) -> Self {
        let dirs = Dirs::new(root);
        let (listed, written) = (Vec::new(), BTreeSet::new());
        Self { dirs, listed, written, clamp, temporary: 0, buffer: Vec::new(), devices: 0 }
    }

    /// Writes all entries of a listing, below `prefix`.
    pub fn add(
        &mut self,
        prefix: &RelPath,
        listing: &'a LayerDiff,
        files: &dyn FileSource,
    ) -> Result<(), CheckoutError> {
        self.listed.push((prefix.clone(), listing));
        for entry in listing {
            let entry = entry?;
            let path = below(prefix, &entry.path);
            if path.is_root() {
                continue;
            }
            let mtime = self.time(entry.mtime);
            match &entry.change {
                Change::Whiteout => continue,
                Change::CharDevice { .. } | Change::BlockDevice { .. } => {
                    self.devices += 1;
                    continue;
                }
                Change::Dir { .. } => self.make_dir(&path)?,
                Change::File { meta, size, content } => {
                    let from = files.open(&entry.path)?;
                    if !self.file(&path, &from, (*size, content), meta, mtime)? {
                        let what = "its content differs";
                        return Err(SourceError::Damaged { path: entry.path.clone(), what }.into());
                    }
                }
                Change::Hardlink { target } => {
                    self.link(&path, &below(prefix, target))?;
                }
                Change::Symlink { target, .. } => {
                    self.place(&path, "make the link", |dir, name| {
                        rustix::fs::symlinkat(OsStr::from_bytes(target), dir, name)?;
                        set_times(dir, name, mtime)
                    })?;
                }
                Change::Fifo { meta } => {
                    let mode = Mode::from_raw_mode(meta.mode & MODE_KEPT);
                    self.place(&path, "make the pipe", |dir, name| {
                        rustix::fs::mknodat(dir, name, FileType::Fifo, mode, 0)?;
                        set_times(dir, name, mtime)
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Makes a directory that is not of a state.
    pub fn add_dir(&mut self, path: &RelPath) -> Result<(), CheckoutError> {
        self.make_dir(path)?;
        self.written.insert(path.clone());
        Ok(())
    }

    /// Writes a file that is not of a state.
    pub fn add_file(&mut self, path: &RelPath, bytes: &mut dyn io::Read) -> Result<(), CheckoutError> {
        self.place(path, "write", |dir, name| {
            let file = create(dir, name, 0o644)?;
            io::copy(bytes, &mut std::fs::File::from(file))?;
            Ok(())
        })?;
        self.written.insert(path.clone());
        Ok(())
    }

    /// Removes everything in the directory that was not written.
    pub fn delete_others(&mut self) -> Result<(), CheckoutError> {
        self.delete_others_in(&RelPath::root())?;
        for path in self.written.clone() {
            self.delete_others_in(&path)?;
        }
        for (prefix, listing) in self.listed.clone() {
            for entry in listing {
                let DiffEntry { path, change: Change::Dir { .. }, .. } = entry? else { continue };
                let dir = below(&prefix, &path);
                if !dir.is_root() {
                    self.delete_others_in(&dir)?;
                }
            }
        }
        Ok(())
    }

    /// The same directly in something that was written, if it is a directory.
    fn delete_others_in(&mut self, dir: &RelPath) -> Result<(), CheckoutError> {
        let fd = match self.dirs.dir(dir) {
            // A later state has something else in its place.
            Err(Errno::NOTDIR | Errno::NOENT | Errno::LOOP) => return Ok(()),
            fd => fd.map_err(failed("open", dir))?,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        loop {
            let mut has_removed = false;
            let listed = rustix::fs::openat(&fd, ".", flags, Mode::empty()).map_err(failed("open", dir))?;
            for name in read_names(&listed).map_err(failed("list", dir))? {
                let path = dir.join(name.map_err(failed("list", dir))?.as_bytes());
                if !self.is_written(&path)? {
                    remove_at(&fd, OsStr::from_bytes(path.name())).map_err(failed("remove", &path))?;
                    has_removed = true;
                }
            }
            // A file system may pass over names while others go: then it is read again.
            if !has_removed {
                return Ok(());
            }
        }
    }

    fn is_written(&self, path: &RelPath) -> Result<bool, CheckoutError> {
        if self.written.contains(path) {
            return Ok(true);
        }
        for (prefix, listing) in &self.listed {
            let Some(within) = strip(path, prefix) else { continue };
            let is_one = |change| {
                !matches!(change, Change::Whiteout | Change::CharDevice { .. } | Change::BlockDevice { .. })
            };
            if listing.get(&within)?.is_some_and(|entry| is_one(entry.change)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Gives directories their modes and times, now that everything is in them.
    pub fn finish(mut self) -> Result<(), CheckoutError> {
        for (prefix, listing) in std::mem::take(&mut self.listed).into_iter().rev() {
            // The directory at hand, last, and those that it is in.
            let mut open: Vec<Made> = Vec::new();
            for entry in listing {
                let DiffEntry { path, change: Change::Dir { meta, .. }, mtime } = entry? else { continue };
                let path = below(&prefix, &path);
                if path.is_root() {
                    continue;
                }
                while let Some(left) = open.pop_if(|dir| strip(&path, &dir.path).is_none()) {
                    self.settle(left)?;
                }
                open.push(Made { path, mode: meta.mode & MODE_KEPT, mtime: self.time(mtime) });
            }
            // Innermost first: the mode of the outer one may keep everybody out.
            while let Some(left) = open.pop() {
                self.settle(left)?;
            }
        }
        Ok(())
    }

    fn settle(&mut self, Made { path, mode, mtime }: Made) -> Result<(), CheckoutError> {
        let parent = self.dirs.parent(&path).map_err(failed("open the directory of", &path))?;
        let set = || {
            set_times(parent.as_fd(), path.name(), mtime)?;
            rustix::fs::chmodat(&parent, path.name(), Mode::from_raw_mode(mode), AtFlags::empty())?;
            Ok::<_, io::Error>(())
        };
        set().map_err(|source| CheckoutError::Io { action: "set mode and time of", path, source })
    }

    fn time(&self, mtime: Mtime) -> Mtime {
        match self.clamp {
            Some(clamp) if mtime.secs >= clamp => Mtime { secs: clamp, nanos: 0 },
            _ => mtime,
        }
    }

    /// Makes a directory where there is none; what else is there goes.
    fn make_dir(&mut self, path: &RelPath) -> Result<(), CheckoutError> {
        let parent = self.dirs.parent(path).map_err(failed("open the directory of", path))?;
        match rustix::fs::mkdirat(&parent, path.name(), Mode::RWXU) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed("make the directory", path)(errno)),
        }
        let stat = rustix::fs::statat(&parent, path.name(), AtFlags::SYMLINK_NOFOLLOW);
        let kind = FileType::from_raw_mode(stat.map_err(failed("look at", path))?.st_mode);
        if kind != FileType::Directory {
            remove_at(&parent, OsStr::from_bytes(path.name())).map_err(failed("replace", path))?;
            rustix::fs::mkdirat(&parent, path.name(), Mode::RWXU)
                .map_err(failed("make the directory", path))?;
        }
        Ok(())
    }

    /// False when `from` does not have that content: then nothing is written.
    fn file(
        &mut self,
        path: &RelPath,
        from: &OwnedFd,
        (size, content): (u64, &ContentDigest),
        meta: &Meta,
        mtime: Mtime,
    ) -> Result<bool, CheckoutError> {
        let mode = meta.mode & MODE_KEPT;
        let (mut buffer, mut is_right) = (std::mem::take(&mut self.buffer), true);
        let written = self.place(path, "write", |dir, name| {
            let mut to = std::fs::File::from(create(dir, name, mode)?);
            let mut each = |bytes: &[u8]| to.write_all(bytes);
            is_right = match checked(content, &mut each, |take| read_all(from, size, &mut buffer, take)) {
                Ok(is_right) => is_right,
                Err(PassError::Read(error) | PassError::Take(error)) => return Err(error),
            };
            if !is_right {
                return Err(io::ErrorKind::InvalidData.into());
            }
            for (name, value) in meta.xattrs.iter().filter(|(name, _)| name.starts_with(b"user.")) {
                match rustix::fs::fsetxattr(&to, OsStr::from_bytes(name), value, XattrFlags::empty()) {
                    Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSPC) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            set_times(dir, name, mtime)
        });
        self.buffer = buffer;
        if is_right { written.map(|()| true) } else { Ok(false) }
    }

    fn link(&mut self, path: &RelPath, target: &RelPath) -> Result<(), CheckoutError> {
        let target_dir = self.dirs.parent(target).map_err(failed("open the directory of", target))?;
        self.place(path, "link", |dir, name| {
            Ok(rustix::fs::linkat(&target_dir, target.name(), dir, name, AtFlags::empty())?)
        })
    }

    /// Makes something under a temporary name beside `path` and renames it over whatever is there.
    fn place(
        &mut self,
        path: &RelPath,
        action: &'static str,
        make: impl FnOnce(BorrowedFd<'_>, &OsStr) -> Result<(), io::Error>,
    ) -> Result<(), CheckoutError> {
        let parent = self.dirs.parent(path).map_err(failed("open the directory of", path))?;
        let dir = parent.as_fd();
        self.temporary += 1;
        let temporary = format!(".rbuild-{}-{}", std::process::id(), self.temporary);
        let temporary = OsStr::new(&temporary);
        let name = OsStr::from_bytes(path.name());
        let result =
            make(dir, temporary).and_then(|()| match rustix::fs::renameat(dir, temporary, dir, name) {
                Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {
                    self.dirs.forget(path);
                    remove_at(dir, name)?;
                    Ok(rustix::fs::renameat(dir, temporary, dir, name)?)
                }
                renamed => Ok(renamed?),
            });
        // A name of the same file: the rename of a hard link onto itself leaves both.
        let _ = rustix::fs::unlinkat(dir, temporary, AtFlags::empty());
        result.map_err(|source| CheckoutError::Io { action, path: path.clone(), source })
    }
}

fn create(dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> Result<OwnedFd, io::Error> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
    // Not through the mode of `open`, which the umask changes.
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
    Ok(file)
}

fn set_times(dir: BorrowedFd<'_>, name: impl rustix::path::Arg, mtime: Mtime) -> Result<(), io::Error> {
    let time = Timespec { tv_sec: mtime.secs, tv_nsec: i64::from(mtime.nanos) };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn failed(action: &'static str, path: &RelPath) -> impl FnOnce(Errno) -> CheckoutError {
    move |errno| CheckoutError::Io { action, path: path.clone(), source: errno.into() }
}

#[cfg(test)]
mod tests;
