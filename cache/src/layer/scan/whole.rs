//! From a whole root that a step worked in to the changes alone, in the form an overlay's upper directory has.
//!
//! Where nothing can be mounted a step gets a copy of everything below it. What it did not touch is taken out again, by
//! inode and change time and so without reading it; what it removed becomes a whiteout. What is left is scanned like any
//! upper directory.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};

use super::super::diff::Mtime;
use super::super::dirs::Dirs;
use super::super::overlay;
use super::super::unpack::times;
use super::{ScanError, io_error};
use crate::path::RelPath;
use crate::tree::{DirReader, Kind, NodeStore, Tree};

/// The files of a copy before a step got it: each inode with the time it last changed, which no program can set.
#[derive(Debug, Default)]
pub struct Untouched(HashMap<u64, (i64, i64)>);

fn changed(stat: &Stat) -> (i64, i64) {
    (stat.st_ctime, stat.st_ctime_nsec as i64)
}

/// Something to do below a directory, once all of it was looked at: taking one name of a file away touches its others.
enum Edit {
    Remove(RelPath),
    Whiteout(RelPath),
}

impl Untouched {
    /// Looks at every file below `dir`.
    pub fn of(dir: BorrowedFd<'_>) -> Result<Self, ScanError> {
        let mut found = Self::default();
        let mut dirs = Dirs::new(dir);
        let mut pending = vec![RelPath::root()];
        while let Some(path) = pending.pop() {
            for name in names(&mut dirs, &path)? {
                let path = path.join(&name);
                let stat = stat(&mut dirs, &path)?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    pending.push(path);
                } else {
                    found.0.insert(stat.st_ino, changed(&stat));
                }
            }
        }
        Ok(found)
    }

    /// Takes out of `dir`, which held a copy of `tree`, what is as it was, and marks what is gone. Devices of the tree
    /// were never in the copy: that they are not there says nothing.
    pub fn keep_changes(
        &self,
        dir: BorrowedFd<'_>,
        nodes: &dyn NodeStore,
        tree: &Tree,
    ) -> Result<(), ScanError> {
        let mut dirs = Dirs::new(dir);
        let (mut edits, mut touched) = (Vec::new(), Vec::new());
        let mut pending = vec![(RelPath::root(), tree.node)];
        while let Some((path, node)) = pending.pop() {
            let before = edits.len();
            let own = stat(&mut dirs, &path)?;
            let unread = |error| ScanError::Parent { path: path.clone(), source: Box::new(error) };
            let mut below = DirReader::open(nodes, &node).map_err(unread)?;
            let present = names(&mut dirs, &path)?;
            while let Some((name, entry)) = below.next().map_err(unread)? {
                let path = path.join(name);
                if present.binary_search_by(|known| known.as_slice().cmp(name)).is_err() {
                    if !matches!(entry.kind, Kind::CharDevice { .. } | Kind::BlockDevice { .. }) {
                        edits.push(Edit::Whiteout(path));
                    }
                    continue;
                }
                let stat = stat(&mut dirs, &path)?;
                match (FileType::from_raw_mode(stat.st_mode), &entry.kind) {
                    (FileType::Directory, Kind::Dir(node)) => pending.push((path, *node)),
                    (FileType::Directory, _) => {}
                    _ if self.0.get(&stat.st_ino) == Some(&changed(&stat)) => edits.push(Edit::Remove(path)),
                    _ => {}
                }
            }
            if edits.len() > before {
                let mtime = Mtime { secs: own.st_mtime, nanos: own.st_mtime_nsec as u32 };
                touched.push((path, mtime));
            }
        }
        for edit in &edits {
            apply(&mut dirs, edit)?;
        }
        for (path, mtime) in &touched {
            let at = dirs.dir(path).map_err(io_error("open directory", path))?;
            rustix::fs::utimensat(&at, c".", &times(*mtime), AtFlags::empty())
                .map_err(io_error("set the time of", path))?;
        }
        Ok(())
    }
}

fn apply(dirs: &mut Dirs<'_>, edit: &Edit) -> Result<(), ScanError> {
    let (Edit::Remove(path) | Edit::Whiteout(path)) = edit;
    let holder = dirs.parent(path).map_err(io_error("open the directory of", path))?;
    match edit {
        Edit::Remove(_) => rustix::fs::unlinkat(&holder, path.name(), AtFlags::empty())
            .map_err(io_error("take out the unchanged", path)),
        Edit::Whiteout(_) => {
            overlay::create_whiteout(&holder, path.name()).map_err(io_error("create whiteout", path))
        }
    }
}

fn stat(dirs: &mut Dirs<'_>, path: &RelPath) -> Result<Stat, ScanError> {
    let holder = dirs.parent(path).map_err(io_error("open the directory of", path))?;
    let name = if path.is_root() { b"." } else { path.name() };
    rustix::fs::statat(&holder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(io_error("look at", path))
}

/// What is in a directory, sorted.
fn names(dirs: &mut Dirs<'_>, path: &RelPath) -> Result<Vec<Vec<u8>>, ScanError> {
    let at = dirs.dir(path).map_err(io_error("open directory", path))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(at.as_fd(), c".", flags, Mode::empty())
        .map_err(io_error("open directory", path))?;
    let mut names = Vec::new();
    for entry in Dir::new(fd).map_err(io_error("read directory", path))? {
        let entry = entry.map_err(io_error("read directory", path))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileTypeExt as _, symlink};
    use std::path::Path;

    use super::*;
    use crate::layer::Change;
    use crate::tree::MemoryNodeStore;
    use crate::tree::testing::{dir, file, link, meta, tree};

    fn open(path: &Path) -> fs::File {
        fs::File::open(path).unwrap()
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
            ("kept", file("1")),
            ("link", link("kept")),
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
        fs::create_dir(root.join("gone-dir")).unwrap();
        let untouched = Untouched::of(open(root).as_fd()).unwrap();

        fs::write(root.join("changed"), "two").unwrap();
        fs::remove_file(root.join("gone")).unwrap();
        fs::remove_dir(root.join("gone-dir")).unwrap();
        fs::write(root.join("new"), "n").unwrap();
        // Through another name, and so with another name.
        fs::hard_link(root.join("d/deep"), root.join("d/hard")).unwrap();
        untouched.keep_changes(open(root).as_fd(), &nodes, &tree).unwrap();

        let mut left: Vec<_> =
            fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, ["changed", "d", "gone", "gone-dir", "new"]);
        for name in ["gone", "gone-dir"] {
            assert!(fs::symlink_metadata(root.join(name)).unwrap().file_type().is_char_device(), "{name}");
        }
        assert!(root.join("d/deep").exists() && root.join("d/hard").exists());
    }
}
