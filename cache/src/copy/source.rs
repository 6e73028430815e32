//! Reading the files that a COPY takes.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, linkat, openat, openat2, statat,
};
use rustix::io::Errno;

use crate::layer::{ListingError, Mtime};
use crate::path::RelPath;
use crate::tree::PATH_BYTES_MAX;

/// Symlinks are entries like any other: no path is resolved through one.
pub(super) const RESOLVE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Files by their real path in a tree.
pub trait FileSource: Send + Sync {
    /// Opens a regular file for reading from its start.
    fn open(&self, path: &RelPath) -> Result<OwnedFd, SourceError>;
    /// Modification time of any entry; a symlink's own.
    fn mtime(&self, path: &RelPath) -> Result<Mtime, SourceError>;
    /// True when files cannot change under the reader (layers of the store). Others are hashed while they are copied.
    fn is_immutable(&self) -> bool {
        false
    }
    /// Links the file itself as `name` into `dir`, for a caller who will change its metadata; false when the source
    /// keeps its files, or the system cannot link it, and the bytes must be copied.
    fn give(&self, _path: &RelPath, _dir: BorrowedFd<'_>, _name: &[u8]) -> Result<bool, SourceError> {
        Ok(false)
    }
}

/// A source that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The listing of a layer cannot be read.
    #[error(transparent)]
    Listing(#[from] ListingError),
    /// Nothing is there (any more), or only through a symlink.
    #[error("/{path}: no such file or directory")]
    Missing {
        /// Path in the source.
        path: RelPath,
    },
    /// A file of a layer of the store is not what was written there.
    #[error("/{path} is damaged in the store: {what}")]
    Damaged {
        /// Path in the source.
        path: RelPath,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Something other than a regular file is there.
    #[error("/{path} is not a regular file")]
    NotRegular {
        /// Path in the source.
        path: RelPath,
    },
    /// The system refused.
    #[error("cannot {action} /{path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Path in the source.
        path: RelPath,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A directory that is being copied from, such as the build context. Never leaves it, follows no symlink, and never
/// waits for a named pipe.
#[derive(Debug)]
pub struct DirSource {
    root: OwnedFd,
    is_immutable: bool,
    gives: bool,
    dirs: RecentDirs<OwnedFd>,
}

impl DirSource {
    /// Reads below `root`, a directory whose files may change at any time.
    pub fn new(root: OwnedFd) -> Self {
        Self { root, is_immutable: false, gives: false, dirs: RecentDirs::default() }
    }

    /// Reads below `root`, a directory that only this process changes, such as a freshly unpacked archive.
    pub fn immutable(root: OwnedFd) -> Self {
        Self { is_immutable: true, ..Self::new(root) }
    }

    /// Reads below `root`, a directory that is thrown away afterwards: whoever copies from it may have its files, each
    /// once.
    pub fn disposable(root: OwnedFd) -> Self {
        Self { gives: true, ..Self::immutable(root) }
    }

    fn parent(&self, path: &RelPath) -> Result<Option<Arc<OwnedFd>>, SourceError> {
        let Some(parent) = path.parent() else { return Ok(None) };
        let open = || open_dir(self.root.as_fd(), &parent);
        match self.dirs.get_or(&parent, open) {
            Ok(fd) => Ok(Some(fd)),
            Err(errno) => Err(source_error("open the directory of", path, errno)),
        }
    }
}

/// What was opened for the directories looked up last: siblings come one after the other, from each thread.
#[derive(Debug)]
pub(super) struct RecentDirs<T>(Mutex<VecDeque<(RelPath, Arc<T>)>>);

/// As many as there may be threads reading, and some.
const RECENT_DIRS: usize = 16;

/// Descriptors of them all, unless the last two have more: a stack of layers may have a directory in each.
const RECENT_DESCRIPTORS: usize = 128;

/// What is open for a directory.
pub(super) trait Opened {
    fn descriptors(&self) -> usize;
}

impl Opened for OwnedFd {
    fn descriptors(&self) -> usize {
        1
    }
}

impl<T> Default for RecentDirs<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Opened> RecentDirs<T> {
    /// What was opened for `dir`, opening it when that is long ago.
    pub(super) fn get_or<E>(&self, dir: &RelPath, open: impl FnOnce() -> Result<T, E>) -> Result<Arc<T>, E> {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, opened)) = lock().iter().find(|(at, _)| at == dir) {
            return Ok(Arc::clone(opened));
        }
        let opened = Arc::new(open()?);
        let mut recent = lock();
        recent.push_front((dir.clone(), Arc::clone(&opened)));
        let mut descriptors = 0;
        let fit = recent.iter().take(RECENT_DIRS).take_while(|(_, opened)| {
            descriptors += opened.descriptors();
            descriptors <= RECENT_DESCRIPTORS
        });
        let kept = fit.count().max(2);
        recent.truncate(kept);
        Ok(opened)
    }
}

impl FileSource for DirSource {
    fn open(&self, path: &RelPath) -> Result<OwnedFd, SourceError> {
        let dir = self.parent(path)?.ok_or_else(|| SourceError::NotRegular { path: path.clone() })?;
        open_file(dir.as_fd(), path)?.ok_or_else(|| SourceError::Missing { path: path.clone() })
    }

    fn mtime(&self, path: &RelPath) -> Result<Mtime, SourceError> {
        let stat = match self.parent(path)? {
            Some(dir) => statat(&dir, path.name(), AtFlags::SYMLINK_NOFOLLOW),
            None => fstat(&self.root),
        };
        stat.map(|stat| mtime_of(&stat)).map_err(|errno| source_error("look at", path, errno))
    }

    fn is_immutable(&self) -> bool {
        self.is_immutable
    }

    fn give(&self, path: &RelPath, dir: BorrowedFd<'_>, name: &[u8]) -> Result<bool, SourceError> {
        let from = if self.gives { self.parent(path)? } else { None };
        let Some(from) = from else { return Ok(false) };
        Ok(linkat(&from, path.name(), dir, name, AtFlags::empty()).is_ok())
    }
}

/// Opens a directory below `root` as a place to look things up in.
pub(super) fn open_dir(root: BorrowedFd<'_>, path: &RelPath) -> rustix::io::Result<OwnedFd> {
    // What an archive has may be as deep as the kernel takes, and is in a directory besides.
    if path.as_bytes().len() > PATH_BYTES_MAX
        && let Some((outer, inner)) = path.split_first()
    {
        return open_dir_of(open_dir_of(root, outer)?.as_fd(), inner.as_bytes());
    }
    open_dir_of(root, if path.is_root() { b"." } else { path.as_bytes() })
}

fn open_dir_of(root: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // The kernel may ask to try again when something else is renamed meanwhile; it does not do so for ever.
    for _ in 0..64 {
        match openat2(root, path, flags, Mode::empty(), RESOLVE) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens `path`'s last component in its directory; `None` when nothing is there.
pub(super) fn open_file(dir: BorrowedFd<'_>, path: &RelPath) -> Result<Option<OwnedFd>, SourceError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let not_regular = || SourceError::NotRegular { path: path.clone() };
    let fd = match openat(dir, path.name(), flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        // A symlink, a socket.
        Err(Errno::LOOP | Errno::NXIO) => return Err(not_regular()),
        Err(errno) => return Err(source_error("open", path, errno)),
    };
    let stat = fstat(&fd).map_err(|errno| source_error("look at", path, errno))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(Some(fd)),
        _ => Err(not_regular()),
    }
}

pub(super) fn source_error(action: &'static str, path: &RelPath, errno: Errno) -> SourceError {
    let path = path.clone();
    match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => SourceError::Missing { path },
        errno => SourceError::Io { action, path, source: errno.into() },
    }
}

pub(super) fn mtime_of(stat: &Stat) -> Mtime {
    Mtime { secs: stat.st_mtime, nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use super::*;

    struct Many(usize);

    impl Opened for Many {
        fn descriptors(&self) -> usize {
            self.0
        }
    }

    #[test]
    fn the_more_descriptors_a_directory_takes_the_fewer_are_kept() {
        for (descriptors, kept) in [(1, RECENT_DIRS), (30, 4), (100, 2), (1000, 2)] {
            let dirs = RecentDirs::default();
            let open = |at: usize| {
                let dir = RelPath::new(format!("d{at}")).unwrap();
                let opened: Result<_, Errno> = dirs.get_or(&dir, || Ok(Many(descriptors)));
                Arc::downgrade(&opened.unwrap())
            };
            let opened: Vec<Weak<Many>> = (0..40).map(open).collect();
            assert_eq!(opened.iter().filter(|dir| dir.upgrade().is_some()).count(), kept, "{descriptors}");
        }
    }
}
