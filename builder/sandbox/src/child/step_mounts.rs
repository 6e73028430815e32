//! What a step asks to have mounted: trees, memory, files.
//!
//! Everything goes by descriptor. A path is resolved once, inside the root it belongs to (`openat2` with
//! `RESOLVE_IN_ROOT`), and what that opened is what is mounted: renaming or replacing things meanwhile changes nothing.

use super::mounts::{NOSUID_NODEV, Scratch, open_in};
use crate::error::{AtStep as _, SetupFailure, SetupStep};
use crate::mount::{self, INERT};
use crate::wire::{WireMount, WireSource};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, StatxFlags, Uid};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// For a device that the step may open.
const DEVICE: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// Mounts everything, in the order given: what is below another comes after it. `trees` are the descriptors of those
/// [`WireSource`]s that have one, in their order.
pub(super) fn attach_all(
    scratch: &Scratch,
    root: BorrowedFd<'_>,
    mounts: &[WireMount],
    trees: &mut impl Iterator<Item = OwnedFd>,
) -> Result<(), SetupFailure> {
    let mut read_only = Vec::new();
    for (index, wanted) in mounts.iter().enumerate() {
        let at = SetupStep::StepMount;
        let made = make(scratch, index, wanted, trees).at_path(at, &wanted.target)?;
        let target = target(root, &wanted.target, wanted.is_dir).at_path(at, &wanted.target)?;
        mount::attach(made.as_fd(), target.as_fd()).at_path(at, &wanted.target)?;
        if wanted.read_only {
            read_only.push((made, &wanted.target));
        }
    }
    // Only now: mount points for what is below may have had to be made in them.
    for (made, target) in read_only {
        mount::restrict(made.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY, false)
            .at_path(SetupStep::StepMount, target)?;
    }
    Ok(())
}

fn make(
    scratch: &Scratch,
    index: usize,
    wanted: &WireMount,
    trees: &mut impl Iterator<Item = OwnedFd>,
) -> Result<OwnedFd, Errno> {
    match &wanted.source {
        WireSource::Tmpfs { size_bytes } => mount::new_tmpfs((*size_bytes > 0).then_some(*size_bytes)),
        WireSource::File { mode, uid, gid, content } => {
            let file = scratch.file(&format!("mount-{index}"), *mode, content)?;
            rustix::fs::fchown(&file, Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)))?;
            let made = mount::bind(file.as_fd())?;
            mount::restrict(made.as_fd(), INERT, false)?;
            Ok(made)
        }
        WireSource::Host { executable } => {
            let tree = trees.next().ok_or(Errno::BADF)?;
            let mut attributes = if *executable { NOSUID_NODEV } else { INERT };
            if wanted.read_only {
                attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
            }
            mount::restrict(tree.as_fd(), attributes, true)?;
            Ok(tree)
        }
        WireSource::Device => {
            let device = trees.next().ok_or(Errno::BADF)?;
            mount::restrict(device.as_fd(), DEVICE, false)?;
            Ok(device)
        }
        WireSource::Node { is_block, major, minor, mode, uid, gid } => {
            // A file system of its own: everything else that a step sees is `nodev`.
            let options = [("mode", Some("0700")), ("size", Some("0")), ("nr_inodes", Some("2"))];
            let dir = mount::new_fs("tmpfs", &options, DEVICE)?;
            mount::attach(dir.as_fd(), scratch.place(&format!("node-{index}"))?.as_fd())?;
            let kind = if *is_block { FileType::BlockDevice } else { FileType::CharacterDevice };
            let number = rustix::fs::makedev(*major, *minor);
            rustix::fs::mknodat(&dir, "node", kind, Mode::from_raw_mode(*mode), number)?;
            let (uid, gid) = (Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)));
            rustix::fs::chownat(&dir, "node", uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
            let node = open_in(dir.as_fd(), "node", ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)?;
            mount::bind(node.as_fd())
        }
        WireSource::Tree { path } => {
            let tree = trees.next().ok_or(Errno::BADF)?;
            mount::restrict(tree.as_fd(), NOSUID_NODEV, false)?;
            if path.is_empty() {
                return Ok(tree);
            }
            // A part of it can be cloned only once it is attached somewhere: it is gone with the scratch.
            mount::attach(tree.as_fd(), scratch.place(&format!("tree-{index}"))?.as_fd())?;
            let part = open_in(tree.as_fd(), path, IN_ROOT)?;
            let made = mount::bind(part.as_fd())?;
            mount::restrict(made.as_fd(), NOSUID_NODEV, false)?;
            Ok(made)
        }
    }
}

/// Opens a mount target as the step would see the path. What is missing is made, but only in what was mounted for this
/// step: in the root file system it would end up in the layer, and the builder has made it there already.
fn target(root: BorrowedFd<'_>, path: &str, is_dir: bool) -> Result<OwnedFd, Errno> {
    let relative = path.trim_matches('/');
    match open_in(root, relative, IN_ROOT) {
        Err(Errno::NOENT) => {}
        Ok(found) => {
            let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
            return match (kind == FileType::Directory, is_dir) {
                (true, false) => Err(Errno::ISDIR),
                (false, true) => Err(Errno::NOTDIR),
                _ => Ok(found),
            };
        }
        Err(errno) => return Err(errno),
    }
    let (parent, name) = match relative.rsplit_once('/') {
        Some((parent, name)) => (target(root, parent, true)?, name),
        None => (open_in(root, ".", IN_ROOT)?, relative),
    };
    if mount_id(parent.as_fd())? == mount_id(root)? {
        return Err(Errno::NOENT);
    }
    if is_dir {
        rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
    } else {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)?;
    }
    open_in(parent.as_fd(), name, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

fn mount_id(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    Ok(rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id)
}
