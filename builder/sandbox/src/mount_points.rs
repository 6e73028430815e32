//! Mount points in the root of a step: created before it, removed after it without a trace.
//!
//! `/proc`, `/sys`, `/dev` created because the image lacks them stay, and so does a created working directory. Files and
//! directories for `/etc/hosts`, `/etc/resolv.conf` and the script go, with the parents made for them, and the times of
//! the directories they were in come back. The walk follows symlinks as the step would, never leaves the root, and runs
//! only while nothing of the step does. Removal works on descriptors held since creation and takes a name away only while
//! it still is the inode we made.

use crate::error::StepError;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

/// As many symlinks as the kernel follows in one path.
const SYMLINKS_MAX: usize = 40;

/// What a path must lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
}

/// One name we made, and its directory as it was.
struct Made {
    parent: OwnedFd,
    name: CString,
    /// Open on what we made, so that its inode number cannot be reused.
    made: OwnedFd,
    kind: Kind,
    before: (Timespec, Timespec),
    after: Timespec,
}

/// What was created for one step. Dropping it without [`remove`](MountPoints::remove) leaves everything in place.
#[derive(Default)]
pub(crate) struct MountPoints {
    made: Vec<Made>,
}

fn times(fd: BorrowedFd<'_>) -> Result<(Timespec, Timespec), Errno> {
    let stat = rustix::fs::fstat(fd)?;
    let time = |sec, nsec| Timespec { tv_sec: sec as _, tv_nsec: nsec as _ };
    Ok((time(stat.st_atime, stat.st_atime_nsec), time(stat.st_mtime, stat.st_mtime_nsec)))
}

fn open_dir(at: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

fn open_path(at: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(at, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> {
    path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".").map(<[u8]>::to_vec)
}

impl MountPoints {
    /// Creates what is missing for a step: kernel file systems, working directory, what is to be mounted over.
    ///
    /// On an error what was made so far is removed again.
    pub(crate) fn create(
        root: BorrowedFd<'_>,
        cwd: &str,
        targets: &[(&str, Kind)],
    ) -> Result<MountPoints, StepError> {
        let mut points = MountPoints::default();
        let made = points.create_all(root, cwd, targets);
        match made {
            Ok(()) => Ok(points),
            Err(error) => {
                points.remove();
                Err(error)
            }
        }
    }

    fn create_all(
        &mut self,
        root: BorrowedFd<'_>,
        cwd: &str,
        targets: &[(&str, Kind)],
    ) -> Result<(), StepError> {
        for path in ["proc", "sys", "dev"] {
            kernel_directory(root, path)?;
        }
        let error =
            |path: &str, errno: Errno| StepError::MountPoint { path: path.to_owned(), source: errno.into() };
        // Below a kernel file system it exists there or nowhere: what we made would be hidden, and end up in the layer.
        let is_in_kernel_fs = components(cwd.as_bytes())
            .next()
            .is_some_and(|top| matches!(top.as_slice(), b"proc" | b"sys" | b"dev"));
        if !is_in_kernel_fs {
            // Not recorded: a working directory is part of the layer, as with docker.
            walk(root, cwd, Kind::Directory, None).map_err(|e| error(cwd, e))?;
        }
        for (path, kind) in targets {
            walk(root, path, *kind, Some(&mut self.made)).map_err(|e| error(path, e))?;
        }
        Ok(())
    }

    /// Removes what was created, newest first. Whatever the step put its hands on stays: it is the step's now.
    pub(crate) fn remove(self) {
        for made in self.made.into_iter().rev() {
            // Best effort by design: a name that is not ours any more is part of the layer.
            let _left_in_place = made.remove();
        }
    }
}

impl Made {
    fn remove(self) -> Result<(), Errno> {
        let ours = rustix::fs::fstat(&self.made)?;
        let there = rustix::fs::statat(&self.parent, &self.name, AtFlags::SYMLINK_NOFOLLOW)?;
        let is_same = (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino);
        let is_untouched = self.kind == Kind::Directory || ours.st_size == 0;
        if !is_same || !is_untouched {
            return Ok(());
        }
        let (_, now) = times(self.parent.as_fd())?;
        let flags = if self.kind == Kind::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        // A directory the step filled is ENOTEMPTY, and stays.
        rustix::fs::unlinkat(&self.parent, &self.name, flags)?;
        // If the step changed the directory as well, its time is the step's.
        let modified = if now == self.after { self.before.1 } else { now };
        let times = Timestamps { last_access: self.before.0, last_modification: modified };
        rustix::fs::futimens(&self.parent, &times)
    }
}

/// Makes sure `/name` is a directory to mount on; a new one stays.
fn kernel_directory(root: BorrowedFd<'_>, name: &'static str) -> Result<(), StepError> {
    let error = |errno: Errno| StepError::MountPoint { path: format!("/{name}"), source: errno.into() };
    match rustix::fs::mkdirat(root, name, Mode::from_raw_mode(0o755)) {
        // mkdir is subject to the builder's umask.
        Ok(()) => {
            rustix::fs::chmodat(root, name, Mode::from_raw_mode(0o755), AtFlags::empty()).map_err(error)
        }
        Err(Errno::EXIST) => {
            let stat = rustix::fs::statat(root, name, AtFlags::SYMLINK_NOFOLLOW).map_err(error)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => Ok(()),
                _ => Err(StepError::NotADirectory { path: name }),
            }
        }
        Err(errno) => Err(error(errno)),
    }
}

/// Walks to `path` inside `root` as a process with that root would, creating what is missing.
fn walk(
    root: BorrowedFd<'_>,
    path: &str,
    kind: Kind,
    mut record: Option<&mut Vec<Made>>,
) -> Result<Option<(OwnedFd, CString)>, Errno> {
    let mut pending: VecDeque<Vec<u8>> = components(path.as_bytes()).collect();
    // The directories from the root down to where we are; «..» pops, and stops at the root.
    let mut stack = vec![open_dir(root, c".")?];
    let mut symlinks = 0;
    while let Some(component) = pending.pop_front() {
        let here = stack.last().ok_or(Errno::NOENT)?.as_fd();
        if component == b".." {
            if stack.len() > 1 {
                stack.pop();
            }
            continue;
        }
        let name = CString::new(component).map_err(|_| Errno::INVAL)?;
        let is_last = pending.is_empty();
        let wanted = if is_last { kind } else { Kind::Directory };
        let found = match open_path(here, &name) {
            Err(Errno::NOENT) => {
                create(here, &name, wanted, record.as_deref_mut())?;
                open_path(here, &name)?
            }
            other => other?,
        };
        match FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) {
            FileType::Symlink => {
                symlinks += 1;
                if symlinks > SYMLINKS_MAX {
                    return Err(Errno::LOOP);
                }
                let target = rustix::fs::readlinkat(&found, c"", Vec::new())?.into_bytes();
                if target.first() == Some(&b'/') {
                    stack.truncate(1);
                }
                for component in components(&target).rev() {
                    pending.push_front(component);
                }
            }
            FileType::Directory if wanted == Kind::Directory => stack.push(open_dir(here, &name)?),
            FileType::Directory => return Err(Errno::ISDIR),
            _ if wanted == Kind::Directory => return Err(Errno::NOTDIR),
            // Any other existing file can be mounted over: it is the last component.
            _ => return Ok(Some((open_dir(here, c".")?, name))),
        }
    }
    Ok(None)
}

/// The directory and the name that `path` of the step leads to, symlinks followed; what is there is no directory, and is
/// made, an empty file, where nothing is.
pub(crate) fn place_of(root: BorrowedFd<'_>, path: &str) -> Result<(OwnedFd, CString), Errno> {
    // A name that is about to be made.
    if let Some((dir, name)) = path.rsplit_once('/')
        && let Ok(Some(found)) = parent_of(root, dir, name)
    {
        return Ok(found);
    }
    walk(root, path, Kind::File, None)?.ok_or(Errno::ISDIR)
}

/// The directory of a name that does not exist, or is no link: then there is nothing to follow.
fn parent_of(root: BorrowedFd<'_>, dir: &str, name: &str) -> Result<Option<(OwnedFd, CString)>, Errno> {
    let resolve = rustix::fs::ResolveFlags::IN_ROOT | rustix::fs::ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = if dir.is_empty() { "." } else { dir };
    let dir = rustix::fs::openat2(root, dir, flags, Mode::empty(), resolve)?;
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    let is_link = match rustix::fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => FileType::from_raw_mode(stat.st_mode) == FileType::Symlink,
        Err(Errno::NOENT) => false,
        Err(errno) => return Err(errno),
    };
    Ok((!is_link).then_some((dir, name)))
}

/// Times of a directory, to be set again.
pub(crate) fn times_of(dir: BorrowedFd<'_>) -> Result<Timestamps, Errno> {
    let (last_access, last_modification) = times(dir)?;
    Ok(Timestamps { last_access, last_modification })
}

/// Removes whatever has this name, with all below it, following nothing.
pub(crate) fn remove_all(dir: BorrowedFd<'_>, name: &CString) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(errno),
    }
    // A stack of our own: what a step made may be deeper than ours.
    let mut stack = vec![(name.clone(), open_dir(dir, name)?)];
    while let Some((_, here)) = stack.last() {
        let mut below = None;
        for entry in rustix::fs::Dir::read_from(here)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            match rustix::fs::unlinkat(here, name, AtFlags::empty()) {
                Err(Errno::ISDIR) => {
                    below = Some((name.to_owned(), open_dir(here.as_fd(), name)?));
                    break;
                }
                other => other?,
            }
        }
        match below {
            Some(below) => stack.push(below),
            None => {
                let Some((name, _)) = stack.pop() else { break };
                let parent = stack.last().map_or(dir, |(_, parent)| parent.as_fd());
                rustix::fs::unlinkat(parent, &name, AtFlags::REMOVEDIR)?;
            }
        }
    }
    Ok(())
}

fn create(
    parent: BorrowedFd<'_>,
    name: &CString,
    kind: Kind,
    record: Option<&mut Vec<Made>>,
) -> Result<(), Errno> {
    let before = times(parent)?;
    match kind {
        Kind::Directory => rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?,
        Kind::File => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)?;
        }
    }
    let made = open_path(parent, name)?;
    if kind == Kind::Directory {
        rustix::fs::chmodat(
            parent,
            OsStr::from_bytes(name.as_bytes()),
            Mode::from_raw_mode(0o755),
            AtFlags::empty(),
        )?;
    }
    if let Some(record) = record {
        let parent = open_dir(parent, c".")?;
        let (_, after) = times(parent.as_fd())?;
        record.push(Made { parent, name: name.clone(), made, kind, before, after });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
