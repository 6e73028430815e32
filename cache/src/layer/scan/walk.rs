//! Walking the upper directory.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};

use super::super::diff::Mtime;
use super::super::dirs::Dirs;
use super::super::limits::Limits;
use super::super::overlay::{OverlayForm, Owners};
use super::{ParentEntry, ParentView, ScanError, StepOwners, io_error, note_owner, read_xattrs};
use crate::path::RelPath;
use crate::tree::{ContentDigest, Kind, Meta};

const NO_FOLLOW: AtFlags = AtFlags::SYMLINK_NOFOLLOW;

/// One thing in the upper directory, and what the parent has there.
pub(super) struct Found {
    pub(super) path: RelPath,
    pub(super) meta: Meta,
    pub(super) mtime: Mtime,
    pub(super) what: What,
    /// In a box: most of what a step makes is new.
    pub(super) parent: Option<Box<ParentEntry>>,
    /// Place of its directory in the list; the root's is its own.
    pub(super) dir: usize,
}

pub(super) enum What {
    Dir {
        opaque: bool,
    },
    /// Without `content` until it was opened: the rest, mode and time, and the owner where it is not noted, come with it.
    File {
        size: u64,
        inode: u64,
        links: u64,
        content: Option<ContentDigest>,
    },
    Symlink {
        target: Vec<u8>,
    },
    Device {
        major: u32,
        minor: u32,
        is_block: bool,
    },
    Fifo,
    Whiteout,
    Socket,
}

/// A directory whose names are being worked off.
struct Frame {
    place: usize,
    /// True when the parent's entries show through.
    is_merged: bool,
    /// Names left, last one first, and of what type the directory says that they are.
    names: Vec<(Vec<u8>, FileType)>,
}

/// Everything below `dir`, each directory right before what is in it, names in byte order: [`RelPath`]'s order. The
/// root is first.
pub(super) fn walk(
    dir: BorrowedFd<'_>,
    form: OverlayForm,
    parent: &dyn ParentView,
    owners: &StepOwners<'_>,
) -> Result<Vec<Found>, ScanError> {
    let mut walker = Walker {
        dirs: Dirs::new(dir),
        form,
        parent,
        owners,
        found: Vec::new(),
        buffer: Vec::new(),
        limits: Limits::default(),
        listing_bytes: 0,
    };
    walker.buffer.resize_with(32 << 10, MaybeUninit::uninit);
    // A stack of our own: the tree may be deeper than ours.
    let mut stack = Vec::new();
    stack.extend(walker.visit(RelPath::root(), b".", FileType::Directory, 0, true)?);
    while let Some(frame) = stack.last_mut() {
        let Some((name, listed)) = frame.names.pop() else {
            stack.pop();
            continue;
        };
        let (place, is_merged) = (frame.place, frame.is_merged);
        let path = walker.found[place].path.join(&name);
        stack.extend(walker.visit(path, &name, listed, place, is_merged)?);
    }
    Ok(walker.found)
}

struct Walker<'a> {
    dirs: Dirs<'a>,
    form: OverlayForm,
    parent: &'a dyn ParentView,
    owners: &'a StepOwners<'a>,
    found: Vec<Found>,
    buffer: Vec<MaybeUninit<u8>>,
    /// As for archives: what is listed must unpack again.
    limits: Limits,
    listing_bytes: u64,
}

impl Walker<'_> {
    /// Takes one name down; for a directory, the frame of what is in it. Of what the directory lists as a file nothing
    /// else is asked: opening it will tell.
    fn visit(
        &mut self,
        path: RelPath,
        name: &[u8],
        listed: FileType,
        dir: usize,
        is_merged: bool,
    ) -> Result<Option<Frame>, ScanError> {
        self.account(&path)?;
        let parent = if is_merged {
            self.parent.entry(&path).map_err(|source| ScanError::Parent { path: path.clone(), source })?
        } else {
            None
        };
        let holder = self.dirs.parent(&path).map_err(io_error("open the directory of", &path))?;
        let stat = match listed {
            FileType::RegularFile => None,
            _ => Some(rustix::fs::statat(&holder, name, NO_FOLLOW).map_err(io_error("look at", &path))?),
        };
        let file_type = stat.map_or(listed, |stat| FileType::from_raw_mode(stat.st_mode));
        let rdev = stat.map_or(0, |stat| stat.st_rdev);
        let (mut meta, mtime) = stat.map(|stat| (meta(&stat), mtime(&stat))).unwrap_or_default();
        let place = self.found.len();
        let mut frame = None;
        if self.form.owners() == Owners::Noted {
            let below = parent.as_ref().filter(|parent| is_of_type(&parent.entry.kind, file_type));
            let is_special = !matches!(file_type, FileType::Directory | FileType::RegularFile);
            let holder = self.found.get(dir).map(|dir| &dir.meta);
            (meta.uid, meta.gid) = self.owners.without_note(&path, is_special, below, holder);
        }
        let what = match file_type {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(&holder, name, flags, Mode::empty())
                    .map_err(io_error("open directory", &path))?;
                let attributes = read_xattrs(&fd, &path, self.form)?;
                meta.xattrs = attributes.kept;
                match attributes.owner {
                    Some(owner) => (meta.uid, meta.gid) = owner,
                    None => note_owner(&fd, &path, self.form, &meta)?,
                }
                let lower = matches!(&parent, Some(parent) if matches!(parent.entry.kind, Kind::Dir(_)));
                let mut opaque = self.form.is_opaque(&fd).map_err(io_error("read xattrs of", &path))?;
                if opaque && !lower {
                    self.form.clear_opaque(&fd).map_err(io_error("clear the opaque mark of", &path))?;
                    opaque = false;
                }
                let names = self.names(&fd, &path)?;
                frame = Some(Frame { place, is_merged: lower && !opaque, names });
                What::Dir { opaque }
            }
            FileType::RegularFile => What::File { size: 0, inode: 0, links: 0, content: None },
            FileType::Symlink => {
                meta.mode = 0o777;
                let target = rustix::fs::readlinkat(&holder, name, Vec::new())
                    .map_err(io_error("read the symbolic link", &path))?;
                What::Symlink { target: target.into_bytes() }
            }
            FileType::CharacterDevice if rdev == 0 => What::Whiteout,
            kind @ (FileType::CharacterDevice | FileType::BlockDevice) => What::Device {
                major: rustix::fs::major(rdev),
                minor: rustix::fs::minor(rdev),
                is_block: kind == FileType::BlockDevice,
            },
            FileType::Fifo => What::Fifo,
            // Nothing else exists on Linux.
            _ => What::Socket,
        };
        self.found.push(Found { path, meta, mtime, what, parent: parent.map(Box::new), dir });
        Ok(frame)
    }

    fn account(&mut self, path: &RelPath) -> Result<(), ScanError> {
        let Limits { entries_max, path_bytes_max, depth_max, listing_bytes_max, .. } = self.limits;
        if self.found.len() as u64 >= entries_max {
            return Err(ScanError::TooManyEntries { max: entries_max });
        }
        let bytes = path.as_bytes();
        // Counting components is for long paths only: each takes two bytes.
        if bytes.len() > path_bytes_max || (bytes.len() > depth_max && path.components().count() > depth_max)
        {
            let start = String::from_utf8_lossy(&bytes[..bytes.len().min(100)]).into_owned();
            return Err(ScanError::PathTooLong { max: path_bytes_max, start });
        }
        self.listing_bytes += bytes.len() as u64;
        if self.listing_bytes > listing_bytes_max {
            return Err(ScanError::ListingTooLarge { max: listing_bytes_max });
        }
        Ok(())
    }

    fn names(&mut self, fd: impl AsFd, path: &RelPath) -> Result<Vec<(Vec<u8>, FileType)>, ScanError> {
        let mut names = Vec::new();
        let mut entries = RawDir::new(fd, &mut self.buffer);
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(io_error("read directory", path))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push((name.to_vec(), entry.file_type()));
            }
            if names.len() as u64 > self.limits.entries_max {
                return Err(ScanError::TooManyEntries { max: self.limits.entries_max });
            }
        }
        names.sort_unstable_by(|(a, _), (b, _)| b.cmp(a));
        Ok(names)
    }
}

fn is_of_type(kind: &Kind, file_type: FileType) -> bool {
    match kind {
        Kind::Dir(_) => file_type == FileType::Directory,
        Kind::File { .. } => file_type == FileType::RegularFile,
        Kind::Symlink(_) => file_type == FileType::Symlink,
        Kind::CharDevice { .. } => file_type == FileType::CharacterDevice,
        Kind::BlockDevice { .. } => file_type == FileType::BlockDevice,
        Kind::Fifo => file_type == FileType::Fifo,
    }
}

/// All but the xattrs.
pub(super) fn meta(stat: &Stat) -> Meta {
    Meta { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid, xattrs: BTreeMap::new() }
}

pub(super) fn mtime(stat: &Stat) -> Mtime {
    Mtime { secs: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 }
}
