//! Making things in the layer directory, each below its parent's descriptor.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::super::diff::{Change, Mtime};
use super::super::dirs::{DirFd, Dirs};
use super::super::overlay::{OverlayForm, Owners};
use super::super::xattrs;
use super::{UnpackError, io_error};
use crate::path::RelPath;
use crate::store::layout::remove_at;
use crate::tree::Meta;

/// Mode of directories while the archive is unpacked: theirs comes last, or it could keep us out.
const WORKING_DIR_MODE: Mode = Mode::RWXU;

pub(super) struct Creator<'root> {
    dirs: Dirs<'root>,
    form: OverlayForm,
    /// Only regular files and directories are made, for us to read: no owners, modes, times, links to elsewhere.
    is_bare: bool,
    /// Whom new files belong to; `None` when the filesystem decides.
    own: Option<(u32, u32)>,
}

impl<'root> Creator<'root> {
    pub(super) fn new(root: BorrowedFd<'root>, form: OverlayForm) -> Result<Self, UnpackError> {
        let stat = rustix::fs::fstat(root).map_err(io_error("look at", &RelPath::root()))?;
        // A setgid directory gives its group to what is made inside.
        let inherits = Mode::from_raw_mode(stat.st_mode).contains(Mode::SGID);
        let ids = match form.owners() {
            Owners::Set => (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
            // Without a note.
            Owners::Noted | Owners::Keep => (0, 0),
        };
        Ok(Self { dirs: Dirs::new(root), form, is_bare: false, own: (!inherits).then_some(ids) })
    }

    /// Makes what is needed to read the files' bytes later, nothing else.
    pub(super) fn bare(root: BorrowedFd<'root>) -> Self {
        Self { dirs: Dirs::new(root), form: OverlayForm::User, is_bare: true, own: None }
    }

    /// The directory of `path`; `None` where there is none, or what is there is no directory.
    pub(super) fn parent(&mut self, path: &RelPath) -> Result<Option<DirFd<'root>>, UnpackError> {
        found(self.dirs.parent(path)).map_err(io_error("open the directory of", path))
    }

    /// The same where it is there.
    pub(super) fn known_parent(&mut self, path: &RelPath) -> Result<DirFd<'root>, UnpackError> {
        self.dirs.parent(path).map_err(io_error("open the directory of", path))
    }

    pub(super) fn is_dir(&mut self, path: &RelPath) -> Result<bool, UnpackError> {
        let dir = found(self.dirs.dir(path)).map_err(io_error("open directory", path))?;
        Ok(dir.is_some())
    }

    /// Removes what is at `path` and below it; nothing is fine.
    pub(super) fn remove(&mut self, path: &RelPath) -> Result<(), UnpackError> {
        self.dirs.forget(path);
        let parent = self.known_parent(path)?;
        remove_at(&parent, OsStr::from_bytes(path.name())).map_err(io_error("replace", path))
    }

    /// Gives a file its metadata, when all is in it.
    pub(super) fn finish_file(
        &self,
        file: impl AsFd,
        path: &RelPath,
        meta: &Meta,
        mtime: Mtime,
    ) -> Result<(), UnpackError> {
        if self.is_bare {
            return Ok(());
        }
        if self.own != Some((meta.uid, meta.gid)) {
            self.give(&file, path, meta)?;
        }
        self.apply(&file, path, meta, mtime)
    }

    /// Gives a directory its metadata, when nothing will be made inside any more.
    pub(super) fn finish_dir(
        &mut self,
        path: &RelPath,
        meta: &Meta,
        opaque: bool,
        mtime: Mtime,
    ) -> Result<(), UnpackError> {
        let fd = self.open_dir(path)?;
        if opaque {
            self.form.set_opaque(&fd).map_err(io_error("mark opaque", path))?;
        }
        // It may have had another owner before: the root, or an implied directory.
        self.give(&fd, path, meta)?;
        self.apply(&fd, path, meta, mtime)
    }

    pub(super) fn mark_opaque(&mut self, path: &RelPath) -> Result<(), UnpackError> {
        let fd = self.open_dir(path)?;
        self.form.set_opaque(&fd).map_err(io_error("mark opaque", path))
    }

    fn open_dir(&mut self, path: &RelPath) -> Result<OwnedFd, UnpackError> {
        let parent = self.dirs.parent(path).map_err(io_error("open the directory of", path))?;
        let name = if path.is_root() { b"." } else { path.name() };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&parent, name, flags, Mode::empty()).map_err(io_error("open directory", path))
    }

    /// Gives a symbolic link, device or pipe its metadata.
    pub(super) fn finish_special(
        &mut self,
        path: &RelPath,
        change: &Change,
        mtime: Mtime,
    ) -> Result<(), UnpackError> {
        let Some(meta) = change.meta() else { return Ok(()) };
        let (parent, name) = (self.known_parent(path)?, path.name());
        if self.form.owners() == Owners::Set && self.own != Some((meta.uid, meta.gid)) {
            let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
            rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| owner_error(path, meta, errno))?;
        }
        if !matches!(change, Change::Symlink { .. }) {
            // Made just above with O_EXCL semantics, so the name is not a link.
            rustix::fs::chmodat(&parent, name, Mode::from_raw_mode(meta.mode), AtFlags::empty())
                .map_err(io_error("set the mode of", path))?;
        }
        rustix::fs::utimensat(&parent, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(io_error("set the time of", path))
    }

    fn give(&self, fd: impl AsFd, path: &RelPath, meta: &Meta) -> Result<(), UnpackError> {
        self.form.owners().give(fd, meta).map_err(|errno| owner_error(path, meta, errno))
    }

    /// Xattrs, mode, times, after the owner: chown takes setuid and capabilities away; a mode without write permission
    /// would forbid xattrs to an ordinary user; everything touches the times.
    fn apply(&self, fd: impl AsFd, path: &RelPath, meta: &Meta, mtime: Mtime) -> Result<(), UnpackError> {
        let fd = fd.as_fd();
        if self.form.has_modes() {
            xattrs::write_all(fd, &meta.xattrs).map_err(io_error("set xattrs of", path))?;
            rustix::fs::fchmod(fd, Mode::from_raw_mode(meta.mode))
                .map_err(io_error("set the mode of", path))?;
        }
        rustix::fs::futimens(fd, &times(mtime)).map_err(io_error("set the time of", path))
    }
}

/// `None` for what is not there, or is no directory.
fn found<T>(opened: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match opened {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        opened => opened.map(Some),
    }
}

// What follows makes things that were not there, or fails with EEXIST and leaves what is.

/// Makes an empty file to write.
pub(super) fn file(dir: &DirFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)
}

/// Appends to a file.
pub(super) fn write(file: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Ok(len) => bytes = &bytes[len..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

pub(super) fn dir(dir: &DirFd<'_>, name: &[u8]) -> Result<(), Errno> {
    rustix::fs::mkdirat(dir, name, WORKING_DIR_MODE)
}

/// Makes a symbolic link, device or pipe; false for a device that the kernel refuses.
pub(super) fn special(dir: &DirFd<'_>, name: &[u8], change: &Change) -> Result<bool, Errno> {
    let make = |kind, device| rustix::fs::mknodat(dir, name, kind, Mode::RUSR | Mode::WUSR, device);
    let made = match change {
        Change::Symlink { target, .. } => rustix::fs::symlinkat(target.as_slice(), dir, name),
        Change::CharDevice { major, minor, .. } => {
            make(FileType::CharacterDevice, rustix::fs::makedev(*major, *minor))
        }
        Change::BlockDevice { major, minor, .. } => {
            make(FileType::BlockDevice, rustix::fs::makedev(*major, *minor))
        }
        _ => make(FileType::Fifo, 0),
    };
    match (made, change) {
        (Err(Errno::PERM), Change::CharDevice { .. } | Change::BlockDevice { .. }) => Ok(false),
        (made, _) => made.map(|()| true),
    }
}

/// Keeps the place of what is in the listing alone: a pipe, which nothing is below and which leads nowhere.
pub(super) fn placeholder(dir: &DirFd<'_>, name: &[u8]) -> Result<(), Errno> {
    rustix::fs::mknodat(dir, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
}

/// Gives the file `target` in `from` another name.
pub(super) fn hardlink(from: &DirFd<'_>, target: &[u8], dir: &DirFd<'_>, name: &[u8]) -> Result<(), Errno> {
    rustix::fs::linkat(from, target, dir, name, AtFlags::empty())
}

/// What kind of thing is there, if any; links are not followed.
pub(super) fn kind(dir: &DirFd<'_>, name: &[u8]) -> Result<Option<FileType>, Errno> {
    let stat = found(rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW))?;
    Ok(stat.map(|stat| FileType::from_raw_mode(stat.st_mode)))
}

/// EINVAL from chown means an id without a place in the user namespace; so does EPERM without privileges.
pub(super) fn owner_error(path: &RelPath, meta: &Meta, errno: Errno) -> UnpackError {
    match errno {
        Errno::INVAL | Errno::PERM | Errno::OVERFLOW => {
            UnpackError::OwnerOutsideMap { path: path.clone(), uid: meta.uid, gid: meta.gid }
        }
        errno => io_error("set the owner of", path)(errno),
    }
}

/// Both times: an access time of now would make equal layers differ on disk.
pub(in super::super) fn times(mtime: Mtime) -> Timestamps {
    let time = Timespec { tv_sec: mtime.secs, tv_nsec: mtime.nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}
