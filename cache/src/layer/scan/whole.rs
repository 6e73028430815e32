//! From a whole root that a step worked in to the changes alone, in the form an overlay's upper directory has.
//!
//! Where nothing can be mounted a step gets a copy of everything below it. What it did not touch is taken out again, by
//! inode and change time and so without reading it; what it removed becomes a whiteout. What is left is scanned like any
//! upper directory.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, Stat};
use rustix::io::Errno;

use super::super::diff::Mtime;
use super::super::dirs::Dirs;
use super::super::overlay;
use super::super::unpack::times;
use super::{ScanError, io_error, walk};
use crate::path::RelPath;
use crate::scratch::Scratch;
use crate::tree::{Entry, Kind, NodeStore, Tree, strip};

/// The files of a copy before a step got it: each one's stamp, in the order of the tree that it is a copy of. In a
/// scratch file: there may be a million.
#[derive(Debug)]
pub struct Untouched(File);

/// An inode and when it last changed, which no program can set.
type Stamp = [u8; 20];

fn stamp(stat: &Stat) -> Stamp {
    let mut stamp = Stamp::default();
    stamp[..8].copy_from_slice(&stat.st_ino.to_le_bytes());
    stamp[8..16].copy_from_slice(&stat.st_ctime.to_le_bytes());
    stamp[16..].copy_from_slice(&(stat.st_ctime_nsec as u32).to_le_bytes());
    stamp
}

/// Devices of the tree were never in the copy.
fn is_copied(kind: &Kind) -> bool {
    !matches!(kind, Kind::CharDevice { .. } | Kind::BlockDevice { .. })
}

impl Untouched {
    /// Looks at every file below `dir`, a copy of `tree`.
    pub fn of(
        dir: BorrowedFd<'_>,
        nodes: &dyn NodeStore,
        tree: &Tree,
        scratch: &Scratch,
    ) -> Result<Self, ScanError> {
        let mut dirs = Dirs::new(dir);
        let mut stamps = BufWriter::new(scratch.file().map_err(unkept)?);
        each(nodes, tree, |path, entry| {
            if matches!(entry.kind, Kind::Dir(_)) || !is_copied(&entry.kind) {
                return Ok(());
            }
            let stat = stat(&mut dirs, &path).map_err(io_error("look at", &path))?;
            stamps.write_all(&stamp(&stat)).map_err(unkept)
        })?;
        let mut stamps = stamps.into_inner().map_err(|error| unkept(error.into_error()))?;
        stamps.rewind().map_err(unkept)?;
        Ok(Self(stamps))
    }

    /// Takes out of `dir`, which held a copy of `tree`, what is as it was, and marks what is gone. That a device of the tree
    /// is not there says nothing.
    ///
    /// A file with several names, of which one is taken out, has changed for the others: they stay, and scanning finds
    /// that they are the parent's.
    pub fn keep_changes(
        self,
        dir: BorrowedFd<'_>,
        nodes: &dyn NodeStore,
        tree: &Tree,
    ) -> Result<(), ScanError> {
        let mut stamps = BufReader::new(self.0);
        let mut edit = Edit { dirs: Dirs::new(dir), open: Vec::new() };
        // Once a directory of the tree: nothing is looked for below it.
        let mut gone: Option<RelPath> = None;
        each(nodes, tree, |path, entry| {
            let is_dir = matches!(entry.kind, Kind::Dir(_));
            let mut before = Stamp::default();
            if !is_dir && is_copied(&entry.kind) {
                stamps.read_exact(&mut before).map_err(unkept)?;
            }
            if gone.as_ref().is_some_and(|gone| strip(&path, gone).is_some()) {
                return Ok(());
            }
            edit.leave(&path)?;
            let now = match stat(&mut edit.dirs, &path) {
                Ok(stat) => Some(stat),
                Err(Errno::NOENT) => None,
                Err(errno) => return Err(io_error("look at", &path)(errno)),
            };
            let is_dir_now =
                now.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
            match now {
                None if is_copied(&entry.kind) => edit.hide(&path)?,
                Some(stat) if is_dir && is_dir_now => edit.enter(path.clone(), walk::mtime(&stat)),
                Some(stat) if !is_dir && !is_dir_now && stamp(&stat) == before => edit.remove(&path)?,
                _ => {}
            }
            if is_dir && !is_dir_now {
                gone = Some(path);
            }
            Ok(())
        })?;
        edit.leave_all()
    }
}

/// Shows `take` everything in a tree, in [`RelPath`]'s order, the root first.
fn each(
    nodes: &dyn NodeStore,
    tree: &Tree,
    mut take: impl FnMut(RelPath, Entry) -> Result<(), ScanError>,
) -> Result<(), ScanError> {
    let root = RelPath::root();
    let unread = |source| ScanError::Parent { path: root.clone(), source };
    for item in tree.walk(nodes, &root).map_err(|error| unread(error.into()))? {
        let (path, entry) = item.map_err(|error| unread(error.into()))?;
        take(path, entry)?;
    }
    Ok(())
}

/// The copy while it is gone through and things are taken out.
struct Edit<'a> {
    dirs: Dirs<'a>,
    /// The directory at hand, last, and those that it is in.
    open: Vec<OpenDir>,
}

struct OpenDir {
    path: RelPath,
    mtime: Mtime,
    /// Taking things out of a directory, or hiding some, changes its time.
    was_touched: bool,
}

impl Edit<'_> {
    fn enter(&mut self, path: RelPath, mtime: Mtime) {
        self.open.push(OpenDir { path, mtime, was_touched: false });
    }

    /// Leaves the directories that `next` is not in.
    fn leave(&mut self, next: &RelPath) -> Result<(), ScanError> {
        while self.open.last().is_some_and(|dir| strip(next, &dir.path).is_none()) {
            self.close()?;
        }
        Ok(())
    }

    fn leave_all(mut self) -> Result<(), ScanError> {
        while !self.open.is_empty() {
            self.close()?;
        }
        Ok(())
    }

    /// Leaves the directory at hand with the time that the step left.
    fn close(&mut self) -> Result<(), ScanError> {
        let Some(OpenDir { path, mtime, was_touched: true }) = self.open.pop() else { return Ok(()) };
        let at = self.dirs.dir(&path).map_err(io_error("open directory", &path))?;
        rustix::fs::utimensat(&at, c".", &times(mtime), AtFlags::empty())
            .map_err(io_error("set the time of", &path))
    }

    fn remove(&mut self, path: &RelPath) -> Result<(), ScanError> {
        let holder = self.dirs.parent(path).map_err(io_error("open the directory of", path))?;
        rustix::fs::unlinkat(&holder, path.name(), AtFlags::empty())
            .map_err(io_error("take out the unchanged", path))?;
        self.touch();
        Ok(())
    }

    fn hide(&mut self, path: &RelPath) -> Result<(), ScanError> {
        let holder = self.dirs.parent(path).map_err(io_error("open the directory of", path))?;
        overlay::create_whiteout(&holder, path.name()).map_err(io_error("create whiteout", path))?;
        self.touch();
        Ok(())
    }

    fn touch(&mut self) {
        if let Some(dir) = self.open.last_mut() {
            dir.was_touched = true;
        }
    }
}

fn unkept(source: io::Error) -> ScanError {
    io_error("take down when the files changed that are in", &RelPath::root())(source)
}

fn stat(dirs: &mut Dirs<'_>, path: &RelPath) -> Result<Stat, Errno> {
    let name = if path.is_root() { b"." } else { path.name() };
    rustix::fs::statat(dirs.parent(path)?, name, AtFlags::SYMLINK_NOFOLLOW)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::{FileTypeExt as _, symlink};
    use std::path::Path;

    use super::*;
    use crate::layer::Change;
    use crate::tree::MemoryNodeStore;
    use crate::tree::testing::{dir, file, link, meta, tree};

    fn open(path: &Path) -> File {
        File::open(path).unwrap()
    }

    #[test]
    fn what_was_not_touched_is_taken_out_and_what_is_gone_is_marked() {
        let nodes = MemoryNodeStore::default();
        let entries = [
            ("changed", file("2")),
            ("d", dir(0o755)),
            ("d/deep", file("4")),
            ("disk", Change::BlockDevice { meta: meta(0o600), major: 8, minor: 0 }),
            ("gone", file("3")),
            ("gone-dir", dir(0o755)),
            ("gone-dir/f", file("5")),
            ("kept", file("1")),
            ("link", link("kept")),
            ("turned", dir(0o755)),
            ("turned/f", file("6")),
            ("z", file("7")),
        ];
        let tree = tree(&nodes, &entries);
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        for (name, text) in [("kept", "1"), ("changed", "2"), ("gone", "3")] {
            fs::write(root.join(name), text).unwrap();
        }
        symlink("kept", root.join("link")).unwrap();
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/deep"), "4").unwrap();
        for dir in ["gone-dir", "turned"] {
            fs::create_dir(root.join(dir)).unwrap();
            fs::write(root.join(dir).join("f"), "").unwrap();
        }
        fs::write(root.join("z"), "7").unwrap();
        let scratch = Scratch::on(open(root)).unwrap();
        let untouched = Untouched::of(open(root).as_fd(), &nodes, &tree, &scratch).unwrap();

        fs::write(root.join("changed"), "two").unwrap();
        fs::remove_file(root.join("gone")).unwrap();
        fs::remove_dir_all(root.join("gone-dir")).unwrap();
        fs::remove_dir_all(root.join("turned")).unwrap();
        fs::write(root.join("turned"), "no directory").unwrap();
        fs::write(root.join("new"), "n").unwrap();
        // Through another name, and so with another name.
        fs::hard_link(root.join("d/deep"), root.join("d/hard")).unwrap();
        let times = || ["", "d"].map(|dir| fs::metadata(root.join(dir)).unwrap().modified().unwrap());
        let left_at = times();
        untouched.keep_changes(open(root).as_fd(), &nodes, &tree).unwrap();

        let mut left: Vec<_> =
            fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, ["changed", "d", "gone", "gone-dir", "new", "turned"]);
        assert_eq!(times(), left_at);
        for name in ["gone", "gone-dir"] {
            assert!(fs::symlink_metadata(root.join(name)).unwrap().file_type().is_char_device(), "{name}");
        }
        assert!(root.join("d/deep").exists() && root.join("d/hard").exists());
    }
}
