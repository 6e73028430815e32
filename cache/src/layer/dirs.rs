//! Directories below a root, by descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::path::RelPath;

/// Open directories kept at once. Sorted walks hit the first one almost always; the rest serve archives that jump.
const OPEN_MAX: usize = 16;

/// Longest piece of a path given to the kernel at once, below `PATH_MAX`.
const PIECE_BYTES_MAX: usize = 4000;

/// `openat2` answers EAGAIN when something below was renamed meanwhile.
const AGAIN_MAX: usize = 16;

const DIR_FLAGS: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens directories below one root, never through a link, keeping the last few open.
///
/// Descriptors are `O_PATH`: good for every `*at` call, needing no permission on the directory itself. Any depth
/// works with a bounded number of descriptors.
#[derive(Debug)]
pub(super) struct Dirs<'root> {
    root: BorrowedFd<'root>,
    /// Most recently used first.
    open: Vec<(Box<[u8]>, Arc<OwnedFd>)>,
}

/// An open directory below the root, or the root.
#[derive(Debug, Clone)]
pub(super) enum DirFd<'root> {
    Root(BorrowedFd<'root>),
    Below(Arc<OwnedFd>),
}

impl AsFd for DirFd<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Root(fd) => *fd,
            Self::Below(fd) => fd.as_fd(),
        }
    }
}

impl<'root> Dirs<'root> {
    /// Starts with nothing but the root open.
    pub(super) fn new(root: BorrowedFd<'root>) -> Self {
        Self { root, open: Vec::new() }
    }

    /// The directory at `path`.
    pub(super) fn dir(&mut self, path: &RelPath) -> Result<DirFd<'root>, Errno> {
        self.at(path.as_bytes())
    }

    /// [`Self::dir`] at the bytes of a clean path.
    fn at(&mut self, path: &[u8]) -> Result<DirFd<'root>, Errno> {
        if path.is_empty() {
            return Ok(DirFd::Root(self.root));
        }
        if let Some(at) = self.open.iter().position(|(open, _)| **open == *path) {
            self.open[..=at].rotate_right(1);
            return Ok(DirFd::Below(self.open[0].1.clone()));
        }
        let nearest =
            self.open.iter().filter(|(open, _)| is_below(path, open)).max_by_key(|(open, _)| open.len());
        let fd = match nearest {
            Some((open, fd)) => open_below(fd.as_fd(), &path[open.len() + 1..])?,
            None => open_below(self.root, path)?,
        };
        let fd = Arc::new(fd);
        self.open.truncate(OPEN_MAX - 1);
        self.open.insert(0, (path.into(), fd.clone()));
        Ok(DirFd::Below(fd))
    }

    /// The directory that holds `path`. The root's own is the root: `(root, ".")` names it.
    pub(super) fn parent(&mut self, path: &RelPath) -> Result<DirFd<'root>, Errno> {
        let dir_and_slash = path.as_bytes().len() - path.name().len();
        self.at(&path.as_bytes()[..dir_and_slash.saturating_sub(1)])
    }

    /// Forgets directories at or below `path`: it was removed.
    pub(super) fn forget(&mut self, path: &RelPath) {
        let path = path.as_bytes();
        self.open.retain(|(open, _)| **open != *path && !is_below(open, path));
    }
}

/// True when `path` is strictly below `dir` (neither is the root).
pub(crate) fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.len() > dir.len() && path[dir.len()] == b'/' && path.starts_with(dir)
}

/// Opens a directory below another in as few calls as path lengths allow.
fn open_below(from: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let mut at: Option<OwnedFd> = None;
    let mut rest = path;
    loop {
        let piece_len = if rest.len() <= PIECE_BYTES_MAX {
            rest.len()
        } else {
            rest[..PIECE_BYTES_MAX].iter().rposition(|b| *b == b'/').ok_or(Errno::NAMETOOLONG)?
        };
        let next = open_piece(at.as_ref().map_or(from, AsFd::as_fd), &rest[..piece_len])?;
        if piece_len == rest.len() {
            return Ok(next);
        }
        rest = &rest[piece_len + 1..];
        at = Some(next);
    }
}

fn open_piece(from: BorrowedFd<'_>, piece: &[u8]) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..AGAIN_MAX {
        match rustix::fs::openat2(from, piece, DIR_FLAGS, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            // An old kernel, or a seccomp profile that hides the call.
            Err(Errno::NOSYS | Errno::PERM) => return open_by_component(from, piece),
            done => return done,
        }
    }
    Err(Errno::AGAIN)
}

/// The same without `openat2`: one component at a time, none of them a link.
fn open_by_component(from: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let mut at: Option<OwnedFd> = None;
    for name in path.split(|b| *b == b'/') {
        let next = rustix::fs::openat(at.as_ref().map_or(from, AsFd::as_fd), name, DIR_FLAGS, Mode::empty())?;
        at = Some(next);
    }
    at.ok_or(Errno::NOENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_on_the_way_is_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(temp.path().join("real/inner")).unwrap();
        std::os::unix::fs::symlink("real", temp.path().join("link")).unwrap();
        let root = std::fs::File::open(temp.path()).unwrap();
        let mut dirs = Dirs::new(root.as_fd());
        assert!(dirs.dir(&RelPath::new("real/inner").unwrap()).is_ok());
        assert!(dirs.dir(&RelPath::new("link/inner").unwrap()).is_err());
        assert!(open_by_component(root.as_fd(), b"link/inner").is_err());
        assert!(open_by_component(root.as_fd(), b"real/inner").is_ok());
    }

    #[test]
    fn a_path_far_beyond_path_max_opens_with_few_descriptors() {
        let temp = tempfile::tempdir().unwrap();
        let root = std::fs::File::open(temp.path()).unwrap();
        let mut dirs = Dirs::new(root.as_fd());
        let mut path = RelPath::root();
        for _ in 0..600 {
            let parent = dirs.dir(&path).unwrap();
            rustix::fs::mkdirat(&parent, "a-rather-long-name", Mode::RWXU).unwrap();
            path = path.join(b"a-rather-long-name");
        }
        assert!(path.as_bytes().len() > 2 * 4096);
        assert!(Dirs::new(root.as_fd()).dir(&path).is_ok());
        assert!(dirs.open.len() <= OPEN_MAX);
    }
}
