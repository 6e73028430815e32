//! Walking the upper directory.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};

use super::super::diff::Mtime;
use super::super::dirs::Dirs;
use super::super::limits::Limits;
use super::super::overlay::{OverlayForm, Owners};
use super::{
    ParentEntry, ParentView, ScanError, StepOwners, inherited_group, io_error, note_owner, read_xattrs,
};
use crate::names::{Aside, Listed, Names};
use crate::path::RelPath;
use crate::scratch::Scratch;
use crate::tree::{ContentDigest, Kind, Meta};

const NO_FOLLOW: AtFlags = AtFlags::SYMLINK_NOFOLLOW;

const HOLD_NAMES: &str = "take down what is in";

/// Things gathered before their files are read: enough for two threads, little enough to be in memory.
pub(super) const AT_ONCE: usize = 2048;

/// Bytes that are known of them before that.
const BYTES_AT_ONCE: usize = 4 << 20;

/// One thing in the upper directory, and what the parent has there.
pub(super) struct Found {
    pub(super) path: RelPath,
    /// How many directories it is in: none for the root.
    pub(super) depth: usize,
    pub(super) meta: Meta,
    pub(super) mtime: Mtime,
    pub(super) what: What,
    /// A file whose xattrs, and with them the owner that is noted there, were too much to hold as well: they are read when it
    /// is its turn.
    pub(super) lacks_xattrs: bool,
    /// In a box: most of what a step makes is new.
    pub(super) parent: Option<Box<ParentEntry>>,
}

impl Found {
    /// Bytes that it takes beside itself.
    fn held_bytes(&self) -> usize {
        let target = match &self.what {
            What::Symlink { target } => target.len(),
            _ => 0,
        };
        let below = self.parent.as_ref().map_or(0, |parent| {
            let target = match &parent.entry.kind {
                Kind::Symlink(target) => target.len(),
                _ => 0,
            };
            target + parent.entry.meta.held_xattr_bytes()
        });
        self.path.as_bytes().len() + target + self.meta.held_xattr_bytes() + below
    }
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
        /// Its first name in [`RelPath`]'s order, when this is another.
        first: Option<RelPath>,
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
    path: RelPath,
    /// True when the parent's entries show through.
    is_merged: bool,
    /// That it gives to what is made in it.
    group: Option<u32>,
    names: Names,
}

/// Goes through everything below a directory, each directory right before what is in it, names in byte order:
/// [`RelPath`]'s order.
///
/// The names of a directory are read when it is come to: what was come to may be taken out while the rest is walked.
pub(super) struct Walker<'a> {
    dirs: Dirs<'a>,
    form: OverlayForm,
    parent: &'a dyn ParentView,
    owners: &'a StepOwners<'a>,
    /// The way to the next name. A stack of our own: the tree may be deeper than ours.
    stack: Vec<Frame>,
    scratch: Scratch,
    /// Names of all on the stack but the last.
    aside: Aside,
    buffer: Vec<MaybeUninit<u8>>,
    /// As for archives: what is listed must unpack again.
    limits: Limits,
    /// Names read so far, and the root.
    entries: u64,
    listing_bytes: u64,
}

impl<'a> Walker<'a> {
    pub(super) fn new(
        dir: BorrowedFd<'a>,
        form: OverlayForm,
        parent: &'a dyn ParentView,
        owners: &'a StepOwners<'a>,
        scratch: &Scratch,
    ) -> Self {
        let mut buffer = Vec::new();
        buffer.resize_with(32 << 10, MaybeUninit::uninit);
        Self {
            dirs: Dirs::new(dir),
            form,
            parent,
            owners,
            stack: Vec::new(),
            scratch: scratch.clone(),
            aside: Aside::new(scratch.clone()),
            buffer,
            limits: Limits::default(),
            entries: 1,
            listing_bytes: 0,
        }
    }

    /// The root, which comes first.
    pub(super) fn root(&mut self) -> Result<Found, ScanError> {
        self.visit(RelPath::root(), FileType::Directory, true, None)
    }

    /// Adds what comes next until there are `at_once`, or they are large: none when nothing is left.
    pub(super) fn fill(&mut self, batch: &mut Vec<Found>, at_once: usize) -> Result<(), ScanError> {
        let mut held_bytes = 0;
        while batch.len() < at_once && held_bytes < BYTES_AT_ONCE {
            let Some(frame) = self.stack.last_mut() else { break };
            let next = frame.names.next(&self.aside).map_err(io_error("go through", &frame.path))?;
            let Some((name, listed)) = next else {
                if let Some(done) = self.stack.pop() {
                    self.aside.free(done.names);
                }
                continue;
            };
            let path = frame.path.join(name);
            let (is_merged, group) = (frame.is_merged, frame.group);
            let found = self.visit(path, listed, is_merged, group)?;
            held_bytes += found.held_bytes();
            batch.push(found);
        }
        Ok(())
    }

    /// Takes one name down, and if it is a directory, what is in it. Of what its directory lists as a file nothing else
    /// is asked: opening it will tell.
    fn visit(
        &mut self,
        path: RelPath,
        listed: FileType,
        is_merged: bool,
        group: Option<u32>,
    ) -> Result<Found, ScanError> {
        let depth = self.stack.len();
        let name = if path.is_root() { b"." } else { path.name() };
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
        if self.form.owners() == Owners::Noted {
            let below = parent.as_ref().filter(|parent| is_of_type(&parent.entry.kind, file_type));
            let is_special = !matches!(file_type, FileType::Directory | FileType::RegularFile);
            (meta.uid, meta.gid) = self
                .owners
                .without_note(&path, is_special, below, group)
                .map_err(io_error("read the owner of", &path))?;
        }
        let what = match file_type {
            FileType::Directory => {
                let fd = open_dir(&holder, &path)?;
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
                if let Some(around) = self.stack.last_mut() {
                    self.aside.put(&mut around.names).map_err(io_error(HOLD_NAMES, &around.path))?;
                }
                let names = self.names(&fd, &path)?;
                let group = inherited_group(&meta);
                self.stack.push(Frame { path: path.clone(), is_merged: lower && !opaque, group, names });
                What::Dir { opaque }
            }
            FileType::RegularFile => What::File { size: 0, inode: 0, links: 0, content: None, first: None },
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
        let parent = parent.map(Box::new);
        Ok(Found { path, depth, meta, mtime, what, lacks_xattrs: false, parent })
    }

    fn account(&mut self, path: &RelPath) -> Result<(), ScanError> {
        let Limits { path_bytes_max, depth_max, listing_bytes_max, .. } = self.limits;
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

    fn names(&mut self, fd: impl AsFd, path: &RelPath) -> Result<Names, ScanError> {
        let Limits { entries_max, .. } = self.limits;
        let mut names = Listed::new(&self.scratch);
        let mut entries = RawDir::new(fd, &mut self.buffer);
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(io_error("read directory", path))?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            // Counted before they are come to: the names that wait are bounded, too.
            self.entries += 1;
            if self.entries > entries_max {
                return Err(ScanError::TooManyEntries { max: entries_max });
            }
            names.add(name, entry.file_type()).map_err(io_error(HOLD_NAMES, path))?;
        }
        names.sorted().map_err(io_error(HOLD_NAMES, path))
    }
}

/// Opens the directory at a path, which is in `holder`, or is it when it is the root.
pub(super) fn open_dir(holder: impl AsFd, path: &RelPath) -> Result<OwnedFd, ScanError> {
    let name = if path.is_root() { b"." } else { path.name() };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(holder, name, flags, Mode::empty()).map_err(io_error("open directory", path))
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
