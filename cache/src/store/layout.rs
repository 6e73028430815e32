//! Where things are below the root, and the few file operations everything else is made of.
//!
//! Every path is relative to the root directory's fd, made of names chosen here (hex digits and fixed words), so
//! nothing outside can steer it.

use std::cell::Cell;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rbuild_oci::Digest;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::LayerId;
use super::error::{IoContext, StoreError};

/// Directories of a store; all are 0700.
pub(super) const DIRS: [&str; 9] =
    ["blobs", "blobs/sha256", "layers", "images", "work", "leases", "locks", "readers", "contexts"];

/// The root, open.
#[derive(Debug)]
pub(super) struct Layout {
    root: PathBuf,
    fd: OwnedFd,
}

impl Layout {
    pub(super) fn new(root: PathBuf, fd: OwnedFd) -> Self {
        Self { root, fd }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Absolute form of a relative path, for messages and for callers that need one.
    pub(super) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    pub(super) fn open(&self, relative: &str, flags: OFlags) -> Result<OwnedFd, StoreError> {
        self.try_open(relative, flags).doing("open", &self.path(relative))
    }

    /// As [`Self::open`] with the bare error, for callers to whom "not there" is an answer.
    pub(super) fn try_open(&self, relative: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let open = || {
            let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            rustix::fs::openat(&self.fd, relative, flags, Mode::RUSR | Mode::WUSR)
        };
        match open() {
            // What is made lacks nothing but the directory it is made in.
            Err(Errno::NOENT)
                if (flags.contains(OFlags::CREATE) || DIRS.contains(&relative)) && self.make_lost_dirs() =>
            {
                open()
            }
            opened => opened,
        }
    }

    /// Makes the directories of the layout that somebody removed; false when none was gone. What was in them is lost as
    /// any blob or layer may be: a miss. Asked where something is not found, so that opening a store looks at none of them.
    fn make_lost_dirs(&self) -> bool {
        DIRS.iter().filter(|dir| rustix::fs::mkdirat(&self.fd, **dir, Mode::RWXU).is_ok()).count() > 0
    }

    pub(super) fn exists(&self, relative: &str) -> bool {
        rustix::fs::statat(&self.fd, relative, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Creates a 0700 directory; one that is there already is fine.
    pub(super) fn make_dir(&self, relative: &str) -> Result<(), StoreError> {
        match rustix::fs::mkdirat(&self.fd, relative, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(Errno::NOENT) if self.make_lost_dirs() => self.make_dir(relative),
            Err(error) => Err(error).doing("create", &self.path(relative)),
        }
    }

    /// Renames within the store without replacing; `Ok(false)` when the target exists.
    pub(super) fn publish(&self, from: &str, to: &str) -> Result<bool, StoreError> {
        match rustix::fs::renameat_with(&self.fd, from, &self.fd, to, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(Errno::NOENT) if self.make_lost_dirs() => self.publish(from, to),
            Err(error) => Err(error).doing("publish", &self.path(to)),
        }
    }

    /// Renames within the store, replacing a file.
    pub(super) fn replace(&self, from: &str, to: &str) -> Result<(), StoreError> {
        match rustix::fs::renameat(&self.fd, from, &self.fd, to) {
            Err(Errno::NOENT) if self.make_lost_dirs() => self.replace(from, to),
            replaced => replaced.doing("replace", &self.path(to)),
        }
    }

    /// Creates a new 0600 file.
    pub(super) fn new_file(&self, relative: &str) -> Result<File, StoreError> {
        self.open(relative, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL).map(File::from)
    }

    /// Creates a new 0600 file with these bytes.
    pub(super) fn write_new(&self, relative: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.new_file(relative)?.write_all(bytes).doing("write", &self.path(relative))
    }

    /// Opens a file for reading; `None` when it is not there.
    pub(super) fn open_file(&self, relative: &str) -> Result<Option<File>, StoreError> {
        match self.try_open(relative, OFlags::RDONLY) {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error).doing("open", &self.path(relative)),
        }
    }

    /// Reads a whole file of at most `limit_bytes`; `None` when it is not there.
    pub(super) fn read(&self, relative: &str, limit_bytes: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path(relative);
        let Some(file) = self.open_file(relative)? else { return Ok(None) };
        let size = file.metadata().doing("stat", &path)?.len();
        if size > limit_bytes {
            return Err(StoreError::Damaged { path, why: "it is larger than anything rbuild writes there" });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
        file.take(limit_bytes).read_to_end(&mut bytes).doing("read", &path)?;
        Ok(Some(bytes))
    }

    /// Removes a directory and all below it; absent is fine. Nothing else may be changing it.
    ///
    /// Depth costs nothing: a directory found below [`LEVELS_IN_PLACE`] is first moved up, so neither fds nor stack
    /// grow with what a RUN step managed to nest; nor does memory with how much there is.
    pub(super) fn remove_tree(&self, relative: &str) -> Result<(), StoreError> {
        // Mostly a lease's, which is empty by then.
        if let Ok(()) | Err(Errno::NOENT) = rustix::fs::unlinkat(&self.fd, relative, AtFlags::REMOVEDIR) {
            return Ok(());
        }
        match remove_dir(&self.fd, OsStr::new(relative), |dir| empty(dir, LEVELS_IN_PLACE)) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error).doing("remove", &self.path(relative)),
        }
    }
}

/// Removes what has this name in a directory, whatever it is, without following links; absent is fine. Costs as
/// [`Layout::remove_tree`] does.
pub(crate) fn remove_at(dir: impl AsFd, name: &OsStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => remove_dir(dir, name, |inner| empty(inner, LEVELS_IN_PLACE)),
        Err(error) => Err(error),
    }
}

/// `blobs/sha256/ab/<hex>`.
pub(super) fn blob(digest: &Digest) -> String {
    let hex = digest.hex();
    format!("blobs/sha256/{}/{hex}", &hex[..2])
}

/// `blobs/sha256/ab`.
pub(super) fn blob_dir(digest: &Digest) -> String {
    format!("blobs/sha256/{}", &digest.hex()[..2])
}

/// `layers/<id>`.
pub(super) fn layer(id: LayerId) -> String {
    format!("layers/{id}")
}

/// `layers/<id>/diff`.
pub(super) fn layer_diff(id: LayerId) -> String {
    format!("layers/{id}/diff")
}

/// `layers/<id>/packs`.
pub(super) fn layer_packs(id: LayerId) -> String {
    format!("layers/{id}/packs")
}

/// `layers/<id>/entries`.
pub(super) fn layer_entries(id: LayerId) -> String {
    format!("layers/{id}/entries")
}

/// `layers/<id>/below`.
pub(super) fn layer_below(id: LayerId) -> String {
    format!("layers/{id}/below")
}

/// `layers/<id>/pulled`.
pub(super) fn layer_pulled(id: LayerId) -> String {
    format!("layers/{id}/pulled")
}

/// `layers/<id>/marks`.
pub(super) fn layer_marks(id: LayerId) -> String {
    format!("layers/{id}/marks")
}

/// Names in a directory, without `.` and `..`, in no order.
pub(crate) fn names(dir: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    read_names(dir)?.map(|name| Ok(name?.to_bytes().to_vec())).collect()
}

/// The same one after the other: a directory may have millions.
pub(crate) fn read_names(dir: impl AsFd) -> Result<impl Iterator<Item = Result<CString, Errno>>, Errno> {
    let name_of = |entry: Result<rustix::fs::DirEntry, Errno>| match entry {
        Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => None,
        entry => Some(entry.map(|entry| entry.file_name().to_owned())),
    };
    Ok(rustix::fs::Dir::read_from(dir)?.filter_map(name_of))
}

/// Names in a directory of the store that are text; all of ours are.
pub(super) fn list(layout: &Layout, dir: &str) -> Result<Vec<String>, StoreError> {
    let fd = layout.open(dir, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let names = names(&fd).doing("list", &layout.path(dir))?;
    Ok(names.into_iter().filter_map(|name| String::from_utf8(name).ok()).collect())
}

/// 64 random bits.
pub(super) fn random_id() -> Result<u64, StoreError> {
    let mut bytes = [0; 8];
    match rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty()) {
        Ok(8) => Ok(u64::from_le_bytes(bytes)),
        Ok(_) => Err(io::Error::from(io::ErrorKind::UnexpectedEof)).doing("read", Path::new("getrandom")),
        Err(error) => Err(error).doing("read", Path::new("getrandom")),
    }
}

fn open_dir(parent: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(&parent, name, flags, Mode::empty()) {
        // Overlay's own work directory is mode 000, and a RUN can leave directories nobody may read.
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(&parent, name, Mode::RWXU, AtFlags::empty())?;
            rustix::fs::openat(&parent, name, flags, Mode::empty())
        }
        other => other,
    }
}

/// Levels that are emptied where they are: moving a directory costs more than removing it.
const LEVELS_IN_PLACE: usize = 8;

/// Removes a directory after `empty`, which says whether there was anything.
fn remove_dir(
    parent: impl AsFd,
    name: &OsStr,
    mut empty: impl FnMut(&OwnedFd) -> Result<bool, Errno>,
) -> Result<(), Errno> {
    loop {
        let found = empty(&open_dir(&parent, name)?)?;
        match rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR) {
            // A file system may pass over names in a directory while others go.
            Err(Errno::NOTEMPTY | Errno::EXIST) if found => {}
            removed => return removed,
        }
    }
}

fn empty(dir: &OwnedFd, levels: usize) -> Result<bool, Errno> {
    let Some(levels_below) = levels.checked_sub(1) else { return flatten(dir) };
    remove_each(dir, |name| remove_dir(dir, name, |inner| empty(inner, levels_below)))
}

/// Removes what is in a directory as far as it is found, with `remove_dir` where it is a directory itself; false when
/// nothing was.
fn remove_each(
    dir: &OwnedFd,
    mut remove_dir: impl FnMut(&OsStr) -> Result<(), Errno>,
) -> Result<bool, Errno> {
    let mut found = false;
    for name in read_names(dir)? {
        let name = name?;
        let name = OsStr::from_bytes(name.to_bytes());
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Err(Errno::NOENT) => continue,
            Ok(()) => {
                found = true;
                continue;
            }
            Err(Errno::ISDIR | Errno::PERM) => {}
            // A directory without write permission for us, its owner.
            Err(Errno::ACCESS) => {
                rustix::fs::fchmod(dir, Mode::RWXU)?;
                if rustix::fs::unlinkat(dir, name, AtFlags::empty()).is_ok() {
                    found = true;
                    continue;
                }
            }
            Err(error) => return Err(error),
        }
        remove_dir(name)?;
        found = true;
    }
    Ok(found)
}

/// [`empty`] where there may be any number of levels: each directory gives those in it to `top` and goes.
fn flatten(top: &OwnedFd) -> Result<bool, Errno> {
    let moved = Cell::new(0);
    let take_apart = |name: &OsStr| {
        remove_dir(top, name, |dir| remove_each(dir, |inner| move_up(dir, inner, top, &moved)))
    };
    let found = remove_each(top, take_apart)?;
    // Looking for them among what went before could take long, but they have numbers.
    let mut next = 0;
    while next < moved.get() {
        match take_apart(OsStr::new(&moved_name(next))) {
            // It was found already, or passed over as a file of this name was in the way.
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => next += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn moved_name(number: u64) -> String {
    format!("~{number}")
}

fn move_up(child: &OwnedFd, name: &OsStr, top: &OwnedFd, moved: &Cell<u64>) -> Result<(), Errno> {
    if rustix::fs::unlinkat(child, name, AtFlags::REMOVEDIR).is_ok() {
        return Ok(());
    }
    let mut is_ours = false;
    loop {
        let to = moved_name(moved.replace(moved.get() + 1));
        match rustix::fs::renameat_with(child, name, top, &to, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            // Moving a directory needs write permission on itself, for its `..`.
            Err(Errno::ACCESS) if !is_ours => {
                rustix::fs::chmodat(child, name, Mode::RWXU, AtFlags::empty())?;
                is_ours = true;
            }
            done => return done,
        }
    }
}
