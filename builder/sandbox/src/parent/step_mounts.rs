//! The builder's part of a step's mounts: their order, their descriptors, where they need a mount point in the root.

use crate::error::StepError;
use crate::mount;
use crate::mount_points::Kind;
use crate::spec::{MountSource, StepMount};
use crate::wire::{WireMount, WireSource};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A mount as it is sent to init.
pub(super) enum Tree<'a> {
    /// A mount of the step's own. Possible where the kernel allows it: of a plain directory or file, and since 6.15 of a
    /// detached mount.
    Clone(OwnedFd),
    /// The builder's own, which is moved in.
    Own(BorrowedFd<'a>),
}

impl<'a> Tree<'a> {
    pub(super) fn of(fd: BorrowedFd<'a>) -> Result<Tree<'a>, Errno> {
        match mount::bind(fd) {
            Ok(clone) => Ok(Tree::Clone(clone)),
            Err(Errno::INVAL) => Ok(Tree::Own(fd)),
            Err(errno) => Err(errno),
        }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Tree::Clone(fd) => fd.as_fd(),
            Tree::Own(fd) => *fd,
        }
    }
}

/// The mounts as init makes them, outermost first, and the descriptors that go with them. `user` is the step's user and
/// group.
pub(super) fn order(
    mounts: &[StepMount],
    user: (u32, u32),
) -> Result<(Vec<WireMount>, Vec<Tree<'_>>), StepError> {
    let mut ordered: Vec<&StepMount> = mounts.iter().collect();
    ordered.sort_by(|a, b| components(&a.target).cmp(components(&b.target)));
    let (mut wire, mut trees) = (Vec::new(), Vec::new());
    for mount in ordered {
        let failed =
            |errno: Errno| StepError::MountSource { target: mount.target.clone(), source: errno.into() };
        let (source, is_dir) = match &mount.source {
            MountSource::Tmpfs { size_bytes } => {
                (WireSource::Tmpfs { size_bytes: size_bytes.unwrap_or(0) }, true)
            }
            MountSource::File { mode, uid, gid, content } => {
                let (mode, uid, gid) = (*mode, *uid, *gid);
                (WireSource::File { mode, uid, gid, content: content.clone() }, false)
            }
            MountSource::Host { root, executable } => {
                let is_dir = is_dir(root.as_fd(), "").map_err(failed)?;
                trees.push(Tree::Clone(mount::bind_tree(root.as_fd()).map_err(failed)?));
                (WireSource::Host { executable: *executable }, is_dir)
            }
            MountSource::Device { node } => {
                trees.push(Tree::Clone(mount::bind(node.as_fd()).map_err(failed)?));
                (WireSource::Device, false)
            }
            MountSource::Node(node) => (
                WireSource::Node {
                    is_block: node.is_block,
                    major: node.major,
                    minor: node.minor,
                    mode: node.mode,
                    uid: node.uid.unwrap_or(user.0),
                    gid: node.gid.unwrap_or(user.1),
                },
                false,
            ),
            MountSource::Tree { root, path } => {
                let is_dir = is_dir(root.as_fd(), path).map_err(failed)?;
                trees.push(Tree::of(root.as_fd()).map_err(failed)?);
                (WireSource::Tree { path: path.clone() }, is_dir)
            }
        };
        wire.push(WireMount { target: mount.target.clone(), source, read_only: mount.read_only, is_dir });
    }
    Ok((wire, trees))
}

/// Those that need a mount point in the root: not what is below another, nor in the step's own `/dev`.
pub(super) fn in_root(mounts: &[WireMount]) -> impl Iterator<Item = (&str, Kind)> {
    let mut outer: Option<&str> = None;
    mounts.iter().filter_map(move |mount| {
        // Sorted by component, so what is below a mount follows it directly.
        let is_nested = ["/dev"].into_iter().chain(outer).any(|outer| is_below(&mount.target, outer));
        if is_nested {
            return None;
        }
        outer = Some(&mount.target);
        Some((mount.target.as_str(), if mount.is_dir { Kind::Directory } else { Kind::File }))
    })
}

fn is_below(path: &str, outer: &str) -> bool {
    let mut path = components(path);
    components(outer).all(|name| path.next() == Some(name))
}

fn components(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|name| !name.is_empty())
}

/// Looks only: init resolves it again, and mounts what it finds then.
fn is_dir(root: BorrowedFd<'_>, path: &str) -> Result<bool, Errno> {
    let stat = if path.is_empty() {
        rustix::fs::fstat(root)?
    } else {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::fstat(rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)?)?
    };
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(targets: &[&str]) -> Vec<StepMount> {
        let tmpfs = |target: &&str| StepMount {
            target: (*target).to_owned(),
            source: MountSource::Tmpfs { size_bytes: None },
            read_only: false,
        };
        targets.iter().map(tmpfs).collect()
    }

    #[test]
    fn outer_mounts_come_first_and_only_they_need_mount_points() {
        let mounts = mounts(&["/a/b/c", "/a-b", "/dev/x", "/a", "/a/b", "/b/c"]);
        let (ordered, _) = order(&mounts, (0, 0)).unwrap();
        let targets: Vec<&str> = ordered.iter().map(|mount| mount.target.as_str()).collect();
        assert_eq!(targets, ["/a", "/a/b", "/a/b/c", "/a-b", "/b/c", "/dev/x"]);
        let in_root: Vec<&str> = in_root(&ordered).map(|(target, _)| target).collect();
        assert_eq!(in_root, ["/a", "/a-b", "/b/c"]);
    }
}
