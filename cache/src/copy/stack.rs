//! Reading a stack of layers as one state.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, fstat, statat};
use rustix::io::Errno;

use super::source::{
    FileSource, Opened, RecentDirs, SourceError, mtime_of, open_dir, open_file, source_error,
};
use crate::layer::{Change, DiffEntry, LayerDiff, Mtime};
use crate::path::RelPath;

/// A layer as the store knows it: by its listing, and with a directory when somebody wants a file of it.
pub trait ListedLayer: Send + Sync {
    /// What is in it.
    fn listing(&self) -> Result<&LayerDiff, SourceError>;
    /// Its directory, made at the first call.
    fn dir(&self) -> Result<BorrowedFd<'_>, SourceError>;
}

/// One layer of a stack.
pub enum StackLayer {
    /// With a directory. What could not be made there (devices, without root) is only in the listing.
    Dir(OwnedFd, Box<dyn ListedLayer>),
    /// Without one so far.
    Listed(Box<dyn ListedLayer>),
}

/// Layers of a stack, read without mounting them.
///
/// Only for paths that the stack's tree has: then the topmost layer with an entry there is the one that shows, since
/// a layer that hides lower ones has either the entry itself or nothing. What the tree does not have may well be found.
pub struct StackSource {
    /// Base first.
    layers: Vec<StackLayer>,
    /// Directories in the layers that have them, topmost first.
    recent: RecentDirs<Vec<DirOf>>,
}

/// A directory in one of the layers.
enum DirOf {
    /// Open.
    Dir(OwnedFd),
    /// In the listing of the layer at this place.
    Listed(usize),
}

impl Opened for Vec<DirOf> {
    fn descriptors(&self) -> usize {
        self.iter().filter(|place| matches!(place, DirOf::Dir(_))).count()
    }
}

impl StackSource {
    /// Takes the layers, base first. None are needed for `FROM scratch`.
    pub fn new(layers: Vec<StackLayer>) -> Self {
        Self { layers, recent: RecentDirs::default() }
    }

    fn dirs(&self, dir: &RelPath) -> Result<Arc<Vec<DirOf>>, SourceError> {
        self.recent.get_or(dir, || {
            let mut found = Vec::new();
            for (at, layer) in self.layers.iter().enumerate().rev() {
                match layer {
                    StackLayer::Dir(fd, _) => match open_dir(fd.as_fd(), dir) {
                        Ok(fd) => found.push(DirOf::Dir(fd)),
                        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                        Err(errno) => return Err(source_error("open the directory", dir, errno)),
                    },
                    // Listings have the directories that lead to what is in them; the root may be left out.
                    StackLayer::Listed(layer) => {
                        let entry = layer.listing()?.get(dir)?;
                        let is_dir = entry.is_some_and(|entry| matches!(entry.change, Change::Dir { .. }));
                        if is_dir || dir.is_root() {
                            found.push(DirOf::Listed(at));
                        }
                    }
                }
            }
            Ok(found)
        })
    }

    /// The layer at a place, and what its listing has at `path`.
    fn listed(
        &self,
        at: usize,
        path: &RelPath,
    ) -> Result<Option<(&dyn ListedLayer, DiffEntry)>, SourceError> {
        let (StackLayer::Listed(layer) | StackLayer::Dir(_, layer)) = &self.layers[at];
        let entry = layer.listing()?.get(path)?.filter(|entry| entry.change != Change::Whiteout);
        Ok(entry.map(|entry| (&**layer, entry)))
    }
}

impl FileSource for StackSource {
    fn open(&self, path: &RelPath) -> Result<OwnedFd, SourceError> {
        let dir = path.parent().ok_or_else(|| SourceError::NotRegular { path: path.clone() })?;
        for place in self.dirs(&dir)?.iter() {
            let file = match place {
                DirOf::Dir(fd) => open_file(fd.as_fd(), path)?,
                DirOf::Listed(at) => match self.listed(*at, path)? {
                    Some((layer, _)) => {
                        let parent = open_dir(layer.dir()?, &dir)
                            .map_err(|errno| source_error("open the directory of", path, errno))?;
                        open_file(parent.as_fd(), path)?
                    }
                    None => None,
                },
            };
            if let Some(file) = file {
                return Ok(file);
            }
        }
        // The tree has it.
        Err(SourceError::Damaged { path: path.clone(), what: "its layer has no such file any more" })
    }

    fn mtime(&self, path: &RelPath) -> Result<Mtime, SourceError> {
        let missing = || SourceError::Missing { path: path.clone() };
        let failed = |errno| source_error("look at", path, errno);
        let Some(dir) = path.parent() else {
            for layer in self.layers.iter().rev() {
                match layer {
                    StackLayer::Dir(fd, _) => return fstat(fd).map(|stat| mtime_of(&stat)).map_err(failed),
                    StackLayer::Listed(layer) => {
                        if let Some(entry) = layer.listing()?.get(path)? {
                            return Ok(entry.mtime);
                        }
                    }
                }
            }
            return Err(missing());
        };
        for place in self.dirs(&dir)?.iter() {
            match place {
                DirOf::Dir(fd) => match statat(fd, path.name(), AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => return Ok(mtime_of(&stat)),
                    Err(Errno::NOENT) => {}
                    Err(errno) => return Err(failed(errno)),
                },
                DirOf::Listed(at) => {
                    if let Some((_, entry)) = self.listed(*at, path)? {
                        return Ok(entry.mtime);
                    }
                }
            }
        }
        // No directory has it: a device that could not be made. Listings of whole layers are read for nothing else.
        for at in (0..self.layers.len()).rev() {
            if let Some((_, entry)) = self.listed(at, path)? {
                return Ok(entry.mtime);
            }
        }
        Err(missing())
    }

    fn is_immutable(&self) -> bool {
        true
    }
}
