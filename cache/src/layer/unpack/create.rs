//! Making things in the layer directory, each below its parent's descriptor.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::super::diff::Mtime;
use super::super::dirs::Dirs;
use super::super::overlay::{self, OverlayForm, Owners};
use super::super::xattrs;
use super::listing::{DirNode, Node, Special, SpecialKind};
use super::{UnpackError, io_error};
use crate::path::RelPath;
use crate::tree::{ContentDigest, Meta};

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

/// Hands a file's bytes to the function it is given, and returns their digest.
pub(super) type Body<'a> =
    dyn FnMut(&mut dyn FnMut(&[u8]) -> Result<(), UnpackError>) -> Result<ContentDigest, UnpackError> + 'a;

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

    pub(super) fn file(
        &mut self,
        path: &RelPath,
        meta: &Meta,
        mtime: Mtime,
        body: &mut Body<'_>,
    ) -> Result<ContentDigest, UnpackError> {
        let parent = self.dirs.parent(path).map_err(io_error("open the directory of", path))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&parent, path.name(), flags, Mode::RUSR | Mode::WUSR)
            .map_err(io_error("create", path))?;
        let content = body(&mut |mut bytes| {
            while !bytes.is_empty() {
                match rustix::io::write(&file, bytes) {
                    Ok(len) => bytes = &bytes[len..],
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(io_error("write", path)(errno)),
                }
            }
            Ok(())
        })?;
        if self.is_bare {
            return Ok(content);
        }
        if self.own != Some((meta.uid, meta.gid)) {
            self.give(&file, path, meta)?;
        }
        self.apply(&file, path, meta, mtime)?;
        Ok(content)
    }

    pub(super) fn dir(&mut self, path: &RelPath) -> Result<(), UnpackError> {
        let parent = self.dirs.parent(path).map_err(io_error("open the directory of", path))?;
        rustix::fs::mkdirat(&parent, path.name(), WORKING_DIR_MODE)
            .map_err(io_error("create directory", path))
    }

    /// Gives a directory its metadata, when nothing will be made inside any more.
    pub(super) fn finish_dir(&mut self, path: &RelPath, dir: &DirNode) -> Result<(), UnpackError> {
        if self.is_bare {
            return Ok(());
        }
        let fd = self.open_dir(path)?;
        if dir.opaque {
            self.form.set_opaque(&fd).map_err(io_error("mark opaque", path))?;
        }
        // It may have had another owner before: the root, or an implied directory.
        self.give(&fd, path, &dir.meta)?;
        self.apply(&fd, path, &dir.meta, dir.mtime)
    }

    pub(super) fn mark_opaque(&mut self, path: &RelPath) -> Result<(), UnpackError> {
        let fd = self.open_dir(path)?;
        self.form.set_opaque(&fd).map_err(io_error("mark opaque", path))
    }

    fn open_dir(&mut self, path: &RelPath) -> Result<std::os::fd::OwnedFd, UnpackError> {
        let parent = self.dirs.parent(path).map_err(io_error("open the directory of", path))?;
        let name = if path.is_root() { b"." } else { path.name() };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&parent, name, flags, Mode::empty()).map_err(io_error("open directory", path))
    }

    pub(super) fn hardlink(&mut self, path: &RelPath, target: &RelPath) -> Result<(), UnpackError> {
        let from = self.dirs.parent(target).map_err(io_error("open the directory of", target))?;
        let to = self.dirs.parent(path).map_err(io_error("open the directory of", path))?;
        rustix::fs::linkat(&from, target.name(), &to, path.name(), AtFlags::empty())
            .map_err(io_error("create hard link", path))
    }

    pub(super) fn whiteout(&mut self, path: &RelPath) -> Result<(), UnpackError> {
        let parent = self.dirs.parent(path).map_err(io_error("open the directory of", path))?;
        overlay::create_whiteout(&parent, path.name()).map_err(io_error("create whiteout", path))
    }

    /// Makes a symlink, device or fifo. A device the kernel refuses is marked absent.
    pub(super) fn special(&mut self, path: &RelPath, special: &mut Special) -> Result<(), UnpackError> {
        if self.is_bare {
            return Ok(());
        }
        let Special { meta, mtime, kind } = special;
        let parent = self.dirs.parent(path).map_err(io_error("open the directory of", path))?;
        let name = path.name();
        let make = |kind, device| rustix::fs::mknodat(&parent, name, kind, Mode::RUSR | Mode::WUSR, device);
        let made = match kind {
            SpecialKind::Symlink { target } => rustix::fs::symlinkat(target.as_slice(), &parent, name),
            SpecialKind::Device { major, minor, is_block, .. } => {
                let kind = if *is_block { FileType::BlockDevice } else { FileType::CharacterDevice };
                make(kind, rustix::fs::makedev(*major, *minor))
            }
            SpecialKind::Fifo => make(FileType::Fifo, 0),
        };
        if let (SpecialKind::Device { is_absent, .. }, Err(Errno::PERM)) = (&mut *kind, made) {
            *is_absent = true;
            return Ok(());
        }
        made.map_err(io_error("create", path))?;
        if self.form.owners() == Owners::Set && self.own != Some((meta.uid, meta.gid)) {
            let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
            rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| owner_error(path, meta, errno))?;
        }
        if !matches!(kind, SpecialKind::Symlink { .. }) {
            // Made just above with O_EXCL semantics, so the name is not a link.
            rustix::fs::chmodat(&parent, name, Mode::from_raw_mode(meta.mode), AtFlags::empty())
                .map_err(io_error("set the mode of", path))?;
        }
        rustix::fs::utimensat(&parent, name, &times(*mtime), AtFlags::SYMLINK_NOFOLLOW)
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

    pub(super) fn remove(&mut self, path: &RelPath, node: &Node) -> Result<(), UnpackError> {
        let is_absent = match node {
            Node::Whiteout => self.is_bare,
            Node::Special(special) => {
                self.is_bare || matches!(special.kind, SpecialKind::Device { is_absent: true, .. })
            }
            Node::Dir(_) | Node::File { .. } => false,
        };
        if is_absent {
            return Ok(());
        }
        let flags = match node {
            Node::Dir(_) => AtFlags::REMOVEDIR,
            _ => AtFlags::empty(),
        };
        self.dirs.forget(path);
        let parent = self.dirs.parent(path).map_err(io_error("open the directory of", path))?;
        rustix::fs::unlinkat(&parent, path.name(), flags).map_err(io_error("replace", path))
    }
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
