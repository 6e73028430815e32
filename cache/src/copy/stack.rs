//! Reading a stack of layer directories as one state.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, fstat, statat};
use rustix::io::Errno;

use super::source::{FileSource, RecentDirs, SourceError, mtime_of, open_dir, open_file, source_error};
use crate::layer::Mtime;
use crate::path::RelPath;

/// Layer directories of a stack, read without mounting it.
///
/// Only for paths that the stack's tree has: then the topmost layer with an entry there is the one that shows, since
/// a layer that hides lower ones has either the entry itself or nothing. What the tree does not have may well be found.
#[derive(Debug)]
pub struct StackSource {
    /// Base first.
    layers: Vec<OwnedFd>,
    /// Directories in the layers that have them, topmost first.
    recent: RecentDirs<Vec<OwnedFd>>,
}

impl StackSource {
    /// Takes the layers' directories, base first. None are needed for `FROM scratch`.
    pub fn new(layers: Vec<OwnedFd>) -> Self {
        Self { layers, recent: RecentDirs::default() }
    }

    fn dirs(&self, dir: &RelPath) -> Result<Arc<Vec<OwnedFd>>, SourceError> {
        self.recent.get_or(dir, || {
            let mut fds = Vec::new();
            for layer in self.layers.iter().rev() {
                match open_dir(layer.as_fd(), dir) {
                    Ok(fd) => fds.push(fd),
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    Err(errno) => return Err(source_error("open the directory", dir, errno)),
                }
            }
            Ok(fds)
        })
    }
}

impl FileSource for StackSource {
    fn open(&self, path: &RelPath) -> Result<OwnedFd, SourceError> {
        let dir = path.parent().ok_or_else(|| SourceError::NotRegular { path: path.clone() })?;
        for fd in self.dirs(&dir)?.iter() {
            if let Some(file) = open_file(fd.as_fd(), path)? {
                return Ok(file);
            }
        }
        Err(SourceError::Missing { path: path.clone() })
    }

    fn mtime(&self, path: &RelPath) -> Result<Mtime, SourceError> {
        let missing = || SourceError::Missing { path: path.clone() };
        let failed = |errno| source_error("look at", path, errno);
        let Some(dir) = path.parent() else {
            let top = self.layers.last().ok_or_else(missing)?;
            return fstat(top).map(|stat| mtime_of(&stat)).map_err(failed);
        };
        for fd in self.dirs(&dir)?.iter() {
            match statat(fd, path.name(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => return Ok(mtime_of(&stat)),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        Err(missing())
    }

    fn is_immutable(&self) -> bool {
        true
    }
}
