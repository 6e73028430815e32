//! From an archive to a layer directory.
//!
//! Nothing is remembered of what was unpacked but in the directory itself, which is ours alone: only when something is in the
//! way of an entry, or nothing where it should be, is the directory asked what there is. What happened is written down
//! aside, by path, and the listing made from that in the end, so memory does not grow with the number of entries.

mod create;
mod error;
mod events;
mod finish;
mod implied;
mod listing;
mod names;

use std::io::Read;
use std::os::fd::BorrowedFd;

use rustix::fs::FileType;
use rustix::io::Errno;

use self::create::Creator;
use self::error::{io_error, shorten};
use self::events::{Event, Events};
use self::names::Name;
use super::diff::{Change, LayerDiff, Mtime};
use super::dirs::DirFd;
use super::limits::Limits;
use super::overlay::{self, OverlayForm};
use super::tar::{Member, MemberKind, TarReader};
use super::xattrs;
use crate::path::RelPath;
use crate::scratch::Scratch;
use crate::tree::{ContentDigest, Meta};

pub(super) use create::times;
pub use error::UnpackError;
pub use implied::{ImpliedDirs, fix_implied};

/// What [`unpack`] made.
#[derive(Debug)]
#[cfg_attr(test, derive(PartialEq))]
pub struct Unpacked {
    /// Everything the directory holds, and device nodes that the kernel refused to make, as it does inside a user namespace:
    /// they are in images made from the listing, but not in the directory.
    pub diff: LayerDiff,
    /// Which of it are directories that the archive only implies. They are made 0755, owned by 0:0; where a lower layer
    /// has the directory, that would change it in the merged view: see [`fix_implied`].
    pub implied_dirs: ImpliedDirs,
    /// Xattrs that were dropped: names no layer keeps, or on things that carry none.
    pub xattrs_dropped: u64,
}

/// Bytes read from the archive at once; a file up to this size takes one `write`.
const BODY_BYTES: usize = 256 << 10;

/// Unpacks an uncompressed layer archive into the directory `dir`, which is empty and nobody else's: what is found there is
/// taken for what the archive had.
///
/// Whiteouts become overlayfs' (`form`). The later of two entries with one name wins, as with docker and containerd:
/// a directory over a directory keeps what is inside, everything else replaces. Where an entry's parent is, in this
/// archive, not a directory (a symlink, say), it is replaced by one: nothing is ever written through a link. Owner,
/// mode, xattrs and times are set in this order, those of directories at the end. The archive is read to the end of
/// `reader`, so that digests taken there are complete. Memory does not grow with what is in it.
///
/// Differences from docker: names that climb out with `..` are refused rather than clamped; device nodes that cannot
/// be made in a user namespace stay in the listing; a character device 0:0 is taken for the whiteout it would be.
pub fn unpack(
    reader: impl Read,
    dir: BorrowedFd<'_>,
    form: OverlayForm,
    limits: &Limits,
    scratch: &Scratch,
) -> Result<Unpacked, UnpackError> {
    unpack_as(Purpose::Layer, Creator::new(dir, form)?, reader, limits, scratch)
}

/// Unpacks an archive for ADD: what it lists goes into the [`Unpacked`], the bytes of its files into the directory
/// `dir`, empty as for [`unpack`], where they are ours alone, without the owners, modes and times of the listing. Links to elsewhere, devices
/// and pipes are in the listing only.
///
/// Unlike in a layer, names that climb out with `..` stay at the top; names and devices that mean deletions in layers
/// are refused; so is an entry below something that the same archive has as a file or symbolic link.
pub(super) fn unpack_added(
    reader: impl Read,
    dir: BorrowedFd<'_>,
    limits: &Limits,
    scratch: &Scratch,
) -> Result<Unpacked, UnpackError> {
    unpack_as(Purpose::Add, Creator::bare(dir), reader, limits, scratch)
}

fn unpack_as(
    purpose: Purpose,
    creator: Creator<'_>,
    reader: impl Read,
    limits: &Limits,
    scratch: &Scratch,
) -> Result<Unpacked, UnpackError> {
    let mut tar = TarReader::new(reader, limits);
    let mut unpacker = Unpacker {
        purpose,
        creator,
        events: Events::new(scratch),
        limits,
        entries: 0,
        listing_bytes: 0,
        xattrs_dropped: 0,
        buffer: vec![0; BODY_BYTES],
    };
    while let Some(member) = tar.next()? {
        unpacker.take(member, &mut tar)?;
    }
    tar.drain()?;
    unpacker.finish(scratch)
}

/// What the entries of an archive mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Changes to lower layers.
    Layer,
    /// Files for ADD to put into an image.
    Add,
}

struct Unpacker<'a> {
    purpose: Purpose,
    creator: Creator<'a>,
    events: Events,
    limits: &'a Limits,
    /// So far: the number of the one at hand.
    entries: u64,
    listing_bytes: u64,
    xattrs_dropped: u64,
    buffer: Vec<u8>,
}

impl<'a> Unpacker<'a> {
    fn take(&mut self, member: Member, tar: &mut TarReader<'_, impl Read>) -> Result<(), UnpackError> {
        self.entries += 1;
        if self.entries > self.limits.entries_max {
            return Err(UnpackError::TooManyEntries { max: self.limits.entries_max });
        }
        let name =
            self.name(&member.path).map_err(|why| UnpackError::Name { name: shorten(&member.path), why })?;
        match name {
            Name::AufsMetadata => Ok(()),
            Name::Opaque(dir) => {
                self.ensure_dir(&dir, &dir)?;
                self.account(dir.as_bytes().len())?;
                self.push(&dir, &Event::Opaque)
            }
            Name::Whiteout(path) => self.whiteout(&path),
            Name::Entry(path) if path.is_root() && member.kind != MemberKind::Dir => Err(UnpackError::Name {
                name: shorten(&member.path),
                why: "it is the root but not a directory",
            }),
            // Other tools would make the device.
            Name::Entry(path)
                if self.purpose == Purpose::Add
                    && member.kind == (MemberKind::CharDevice { major: 0, minor: 0 }) =>
            {
                Err(UnpackError::WhiteoutDevice { path })
            }
            Name::Entry(path) => self.entry(path, member, tar),
        }
    }

    fn name(&self, name: &[u8]) -> Result<Name, &'static str> {
        match self.purpose {
            Purpose::Layer => names::resolve(name, self.limits),
            Purpose::Add => names::resolve_added(name, self.limits).map(Name::Entry),
        }
    }

    fn whiteout(&mut self, path: &RelPath) -> Result<(), UnpackError> {
        self.account(path.as_bytes().len())?;
        self.make(path, "create whiteout", |dir, name| overlay::create_whiteout(dir, name))?;
        self.push_entry(path, Change::Whiteout, Mtime::default())
    }

    fn entry(
        &mut self,
        path: RelPath,
        member: Member,
        tar: &mut TarReader<'_, impl Read>,
    ) -> Result<(), UnpackError> {
        let Member { kind, mode, uid, gid, mtime, xattrs, .. } = member;
        let (given, mut meta) = (xattrs.len(), Meta { mode, uid, gid, xattrs });
        // The kernel keeps user xattrs on files and directories only.
        let carries = matches!(kind, MemberKind::File { .. } | MemberKind::Dir);
        meta.xattrs.retain(|name, _| carries && xattrs::is_kept(name));
        if !matches!(kind, MemberKind::Hardlink { .. }) {
            self.xattrs_dropped += (given - meta.xattrs.len()) as u64;
        }
        self.account(
            path.as_bytes().len() + meta.xattrs.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>(),
        )?;
        let special = match kind {
            MemberKind::Dir => {
                self.dir(&path)?;
                return self.push_entry(&path, Change::Dir { meta, opaque: false }, mtime);
            }
            MemberKind::Hardlink { target } => return self.hardlink(&path, &target),
            MemberKind::CharDevice { major: 0, minor: 0 } => return self.whiteout(&path),
            MemberKind::File { size } => {
                let content = self.file(&path, &meta, mtime, tar)?;
                return self.push_entry(&path, Change::File { meta, size, content }, mtime);
            }
            MemberKind::Symlink { target } => {
                let length = 1..=super::limits::LINK_BYTES_MAX;
                if !length.contains(&target.len()) || target.contains(&0) {
                    return Err(UnpackError::SymlinkTarget { path });
                }
                self.account(target.len())?;
                meta.mode = 0o777;
                Change::Symlink { meta, target }
            }
            MemberKind::CharDevice { major, minor } => Change::CharDevice { meta, major, minor },
            MemberKind::BlockDevice { major, minor } => Change::BlockDevice { meta, major, minor },
            MemberKind::Fifo => Change::Fifo { meta },
        };
        self.special(&path, special, mtime)
    }

    /// Makes a directory that the archive lists, unless there is one.
    fn dir(&mut self, path: &RelPath) -> Result<(), UnpackError> {
        if path.is_root() {
            return Ok(());
        }
        let parent = self.parent(path)?;
        match create::dir(&parent, path.name()) {
            Err(Errno::EXIST) if self.creator.is_dir(path)? => return Ok(()),
            Err(Errno::EXIST) => self.make_in(&parent, path, "create directory", create::dir)?,
            made => made.map_err(io_error("create directory", path))?,
        }
        self.account(path.as_bytes().len())
    }

    fn file(
        &mut self,
        path: &RelPath,
        meta: &Meta,
        mtime: Mtime,
        tar: &mut TarReader<'_, impl Read>,
    ) -> Result<ContentDigest, UnpackError> {
        let file = self.make(path, "create", create::file)?;
        let mut hash = blake3::Hasher::new();
        loop {
            match tar.read_body(&mut self.buffer)? {
                0 => break,
                len => {
                    hash.update(&self.buffer[..len]);
                    create::write(&file, &self.buffer[..len]).map_err(io_error("write", path))?;
                }
            }
        }
        self.creator.finish_file(&file, path, meta, mtime)?;
        Ok(ContentDigest(*hash.finalize().as_bytes()))
    }

    fn hardlink(&mut self, path: &RelPath, target: &[u8]) -> Result<(), UnpackError> {
        let refuse = || UnpackError::LinkTarget { path: path.clone(), target: shorten(target) };
        let Ok(Name::Entry(first)) = self.name(target) else { return Err(refuse()) };
        self.account(first.as_bytes().len())?;
        let parent = self.parent(path)?;
        let Some(from) = self.creator.parent(&first)? else { return Err(refuse()) };
        let is_file = || Ok(create::kind(&from, first.name())? == Some(FileType::RegularFile));
        let is_linked = if first == *path {
            is_file().map_err(io_error("look at", path))?
        } else {
            // Asked each time: making room for `path` may have taken the target along.
            self.make_in(&parent, path, "create hard link", |dir, name| {
                Ok(is_file()? && create::hardlink(&from, first.name(), dir, name).map(|()| true)?)
            })?
        };
        match is_linked {
            false => Err(refuse()),
            true if first == *path => Ok(()),
            true => self.events.push_link(path, &first, self.entries).map_err(UnpackError::Scratch),
        }
    }

    /// Takes a symbolic link, device or pipe.
    fn special(&mut self, path: &RelPath, change: Change, mtime: Mtime) -> Result<(), UnpackError> {
        if self.purpose == Purpose::Add {
            self.make(path, "create", create::placeholder)?;
        } else if self.make(path, "create", |dir, name| create::special(dir, name, &change))? {
            self.creator.finish_special(path, &change, mtime)?;
        } else {
            // The kernel may have refused it before it saw what is there.
            self.creator.remove(path)?;
        }
        self.push_entry(path, change, mtime)
    }

    /// Makes something at `path`, in place of what is there. Its parents are directories then.
    fn make<T>(
        &mut self,
        path: &RelPath,
        step: &'static str,
        make: impl Fn(&DirFd<'_>, &[u8]) -> Result<T, Errno>,
    ) -> Result<T, UnpackError> {
        let parent = self.parent(path)?;
        self.make_in(&parent, path, step, make)
    }

    /// The same below an open parent.
    fn make_in<T>(
        &mut self,
        parent: &DirFd<'_>,
        path: &RelPath,
        step: &'static str,
        make: impl Fn(&DirFd<'_>, &[u8]) -> Result<T, Errno>,
    ) -> Result<T, UnpackError> {
        let made = match make(parent, path.name()) {
            Err(Errno::EXIST) => {
                self.creator.remove(path)?;
                make(parent, path.name())
            }
            made => made,
        };
        made.map_err(io_error(step, path))
    }

    /// The directory of `path`, from now on in any case.
    fn parent(&mut self, path: &RelPath) -> Result<DirFd<'a>, UnpackError> {
        if let Some(parent) = self.creator.parent(path)? {
            return Ok(parent);
        }
        self.ensure_dir(&path.parent().unwrap_or_default(), path)?;
        self.creator.known_parent(path)
    }

    /// Makes `dir` a directory, and all above it, for the entry at `path`.
    fn ensure_dir(&mut self, dir: &RelPath, path: &RelPath) -> Result<(), UnpackError> {
        // Not recursive: a path may have thousands of components. The root is always there.
        let (mut missing, mut next) = (Vec::new(), Some(dir.clone()));
        while let Some(dir) = next
            && !self.creator.is_dir(&dir)?
        {
            next = dir.parent();
            missing.push(dir);
        }
        for dir in missing.into_iter().rev() {
            let parent = self.creator.known_parent(&dir)?;
            // Elsewhere, what is below a link goes to where that leads.
            if self.purpose == Purpose::Add
                && create::kind(&parent, dir.name()).map_err(io_error("look at", &dir))?.is_some()
            {
                return Err(UnpackError::BelowNonDirectory { path: path.clone(), above: dir });
            }
            self.account(dir.as_bytes().len())?;
            self.make_in(&parent, &dir, "create directory", create::dir)?;
            self.push(&dir, &Event::Implied)?;
        }
        Ok(())
    }

    fn push_entry(&mut self, path: &RelPath, change: Change, mtime: Mtime) -> Result<(), UnpackError> {
        self.push(path, &Event::Entry { change, mtime })
    }

    fn push(&mut self, path: &RelPath, event: &Event) -> Result<(), UnpackError> {
        self.events.push(path, self.entries, event).map_err(UnpackError::Scratch)
    }

    fn account(&mut self, bytes: usize) -> Result<(), UnpackError> {
        // An entry counts this much beside its names.
        const NODE_BYTES: u64 = 128;
        self.listing_bytes += bytes as u64 + NODE_BYTES;
        if self.listing_bytes > self.limits.listing_bytes_max {
            return Err(UnpackError::ListingTooLarge { max: self.limits.listing_bytes_max });
        }
        Ok(())
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
