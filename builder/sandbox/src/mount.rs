//! Mounts by descriptor: every target is an open directory or file, never a path an image could influence.

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// `nosuid,nodev,noexec`.
pub(crate) const INERT: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// An option of a new file system: `name=value`, or a bare flag without value.
pub(crate) type FsOption<'a> = (&'a str, Option<&'a str>);

/// Creates a file system and returns it as a detached mount.
pub(crate) fn new_fs(
    kind: &str,
    options: &[FsOption<'_>],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Errno> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    // What the mount table shows in front; programs look for «proc», «tmpfs».
    fsconfig_set_string(context.as_fd(), c"source", kind)?;
    for (name, value) in options {
        match value {
            Some(value) => fsconfig_set_string(context.as_fd(), *name, *value)?,
            None => fsconfig_set_flag(context.as_fd(), *name)?,
        }
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A file system in memory, as steps get them.
pub(crate) fn new_tmpfs(size_bytes: Option<u64>) -> Result<OwnedFd, Errno> {
    let size = size_bytes.map(|size| size.to_string());
    let options = [("mode", Some("1777")), ("size", size.as_deref())];
    let count = if size.is_some() { 2 } else { 1 };
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    new_fs("tmpfs", &options[..count], attributes)
}

/// Attaches a detached mount to the directory or file `target` is open on.
pub(crate) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", target, c"", flags)
}

/// A detached bind mount of what `fd` is open on.
pub(crate) fn bind(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    open_tree(
        fd,
        c"",
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH,
    )
}

/// [`bind`] with everything mounted below it.
pub(crate) fn bind_tree(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    open_tree(
        fd,
        c"",
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH
            | OpenTreeFlags::AT_RECURSIVE,
    )
}

/// A detached bind mount of a path of the host and everything mounted below it.
pub(crate) fn bind_host_tree(path: &str) -> Result<OwnedFd, Errno> {
    open_tree(
        CWD,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE,
    )
}

/// Adds attributes to a mount, and to those below it when `recursive`.
pub(crate) fn restrict(
    mount: BorrowedFd<'_>,
    attributes: MountAttrFlags,
    recursive: bool,
) -> Result<(), Errno> {
    crate::sys::mount_setattr(mount, attributes.bits().into(), recursive)
}
