//! From an archive to a layer directory.

mod create;
mod implied;
mod listing;
mod names;
mod paths;

use std::io::{self, Read};
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use self::create::Creator;
use self::listing::{DirNode, Listing, Node, Special, SpecialKind};
use self::names::Name;
use super::diff::{LayerDiff, ListingError, Mtime};
use super::limits::Limits;
use super::overlay::OverlayForm;
use super::tar::{Member, MemberKind, TarReader};
use super::{TarError, xattrs};
use crate::path::RelPath;
use crate::tree::{ContentDigest, Meta};

pub(super) use create::times;
pub use implied::fix_implied;

/// What [`unpack`] made.
#[derive(Debug)]
pub struct Unpacked {
    /// Everything the directory holds.
    pub diff: LayerDiff,
    /// Directories the archive does not list though entries are below them, sorted. They are made 0755, owned by 0:0;
    /// where a lower layer has the directory, that would change it in the merged view: see [`fix_implied`].
    pub implied_dirs: Vec<RelPath>,
    /// Device nodes in the listing that the kernel refused to make, as it does inside a user namespace. They are in
    /// images made from the listing, but not in the directory.
    pub absent_devices: Vec<RelPath>,
    /// Xattrs that were dropped: names no layer keeps, or on things that carry none.
    pub xattrs_dropped: u64,
}

/// Why an archive was not unpacked. The directory is left half-filled and must be thrown away.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The bytes are not an archive we read.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// A name leads out of the layer, or is none.
    #[error("the archive has the entry `{name}`: {why}")]
    Name {
        /// Name as it stands in the archive, shortened.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// ADD only: an entry below a file or symbolic link of the same archive.
    #[error("`{path}` is below `{above}`, which is not a directory in the same archive")]
    BelowNonDirectory {
        /// The entry.
        path: RelPath,
        /// What it is below.
        above: RelPath,
    },
    /// ADD only: a character device 0:0, which would be a deletion in an image layer.
    #[error("`{path}` is a character device 0:0, which means a deletion in image layers")]
    WhiteoutDevice {
        /// The entry.
        path: RelPath,
    },
    /// A hard link to something that is not an earlier regular file of this archive.
    #[error("`{path}` is a hard link to `{target}`, which is not an earlier regular file of the archive")]
    LinkTarget {
        /// The link.
        path: RelPath,
        /// Its target as it stands in the archive, shortened.
        target: String,
    },
    /// A symbolic link's target is empty, too long or contains NUL.
    #[error("the target of the symbolic link `{path}` is empty, too long or contains NUL")]
    SymlinkTarget {
        /// The link.
        path: RelPath,
    },
    /// More entries than allowed.
    #[error("the archive has more than the {max} entries allowed")]
    TooManyEntries {
        /// Limit.
        max: u64,
    },
    /// Names, targets and xattrs together take too much memory.
    #[error("the names in the archive take more than the {max} bytes allowed")]
    ListingTooLarge {
        /// Limit in bytes.
        max: u64,
    },
    /// An owner outside the user namespace's id map.
    #[error(
        "`{path}` belongs to {uid}:{gid}, which is outside the ids available here: \
         give this user a larger range in /etc/subuid and /etc/subgid"
    )]
    OwnerOutsideMap {
        /// The entry.
        path: RelPath,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// The list of what was unpacked cannot be kept.
    #[error(transparent)]
    Listing(#[from] ListingError),
    /// A system call failed.
    #[error("{step} `{path}`")]
    Io {
        /// What was being done.
        step: &'static str,
        /// To what, below the layer's root.
        path: RelPath,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Looking a directory up in the parent failed, in [`fix_implied`].
    #[error("look up `{path}` in the layers below")]
    Lookup {
        /// The directory.
        path: RelPath,
        /// Cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Turns a system call's failure into an [`UnpackError`].
fn io_error(step: &'static str, path: &RelPath) -> impl FnOnce(Errno) -> UnpackError {
    move |errno| UnpackError::Io { step, path: path.clone(), source: errno.into() }
}

/// Bytes read from the archive at once; a file up to this size takes one `write`.
const BODY_BYTES: usize = 256 << 10;

/// Unpacks an uncompressed layer archive into the empty directory `dir`.
///
/// Whiteouts become overlayfs' (`form`). The later of two entries with one name wins, as with docker and containerd:
/// a directory over a directory keeps what is inside, everything else replaces. Where an entry's parent is, in this
/// archive, not a directory (a symlink, say), it is replaced by one: nothing is ever written through a link. Owner,
/// mode, xattrs and times are set in this order, those of directories at the end. The archive is read to the end of
/// `reader`, so that digests taken there are complete.
///
/// Differences from docker: names that climb out with `..` are refused rather than clamped; device nodes that cannot
/// be made in a user namespace stay in the listing; a character device 0:0 is taken for the whiteout it would be.
pub fn unpack(
    reader: impl Read,
    dir: BorrowedFd<'_>,
    form: OverlayForm,
    limits: &Limits,
) -> Result<Unpacked, UnpackError> {
    unpack_as(Purpose::Layer, Creator::new(dir, form)?, reader, limits)
}

/// Unpacks an archive for ADD: what it lists goes into the [`Unpacked`], the bytes of its files into the empty directory
/// `dir`, where they are ours alone, without the owners, modes and times of the listing. Links to elsewhere, devices
/// and pipes are in the listing only.
///
/// Unlike in a layer, names that climb out with `..` stay at the top; names and devices that mean deletions in layers
/// are refused; so is an entry below something that the same archive has as a file or symbolic link.
pub(super) fn unpack_added(
    reader: impl Read,
    dir: BorrowedFd<'_>,
    limits: &Limits,
) -> Result<Unpacked, UnpackError> {
    unpack_as(Purpose::Add, Creator::bare(dir), reader, limits)
}

fn unpack_as(
    purpose: Purpose,
    creator: Creator<'_>,
    reader: impl Read,
    limits: &Limits,
) -> Result<Unpacked, UnpackError> {
    let mut tar = TarReader::new(reader, limits);
    let mut unpacker = Unpacker {
        purpose,
        creator,
        listing: Listing::default(),
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
    unpacker.finish()
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
    listing: Listing,
    limits: &'a Limits,
    entries: u64,
    listing_bytes: u64,
    xattrs_dropped: u64,
    buffer: Vec<u8>,
}

impl Unpacker<'_> {
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
                self.ensure_dir(&dir)?;
                self.listing.dir_mut(&dir).opaque = true;
                Ok(())
            }
            Name::Whiteout(path) => self.whiteout(path),
            Name::Entry(path) if path.is_root() && member.kind != MemberKind::Dir => Err(UnpackError::Name {
                name: shorten(&member.path),
                why: "it is the root but not a directory",
            }),
            Name::Entry(path) => {
                if self.purpose == Purpose::Add {
                    self.check_added(&path, &member.kind)?;
                }
                self.entry(path, member, tar)
            }
        }
    }

    fn name(&self, name: &[u8]) -> Result<Name, &'static str> {
        match self.purpose {
            Purpose::Layer => names::resolve(name, self.limits),
            Purpose::Add => names::resolve_added(name, self.limits).map(Name::Entry),
        }
    }

    /// Refuses what other tools do in ways that a layer cannot say, or that depends on what the image has there.
    fn check_added(&self, path: &RelPath, kind: &MemberKind) -> Result<(), UnpackError> {
        if *kind == (MemberKind::CharDevice { major: 0, minor: 0 }) {
            return Err(UnpackError::WhiteoutDevice { path: path.clone() });
        }
        // All above something listed are directories, so the nearest one decides.
        for above in std::iter::successors(path.parent(), RelPath::parent) {
            match self.listing.get(&above) {
                None => {}
                Some(Node::Dir(_)) => break,
                Some(_) => return Err(UnpackError::BelowNonDirectory { path: path.clone(), above }),
            }
        }
        Ok(())
    }

    fn whiteout(&mut self, path: RelPath) -> Result<(), UnpackError> {
        self.prepare(&path)?;
        self.creator.whiteout(&path)?;
        self.listing.insert(&path, Node::Whiteout);
        Ok(())
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
        let kind = match kind {
            MemberKind::Dir => return self.dir(&path, meta, mtime),
            MemberKind::Hardlink { target } => return self.hardlink(&path, &target),
            MemberKind::CharDevice { major: 0, minor: 0 } => return self.whiteout(path),
            MemberKind::File { size } => {
                self.prepare(&path)?;
                let buffer = &mut self.buffer;
                let mut body = |file: &mut dyn FnMut(&[u8]) -> Result<(), UnpackError>| {
                    let mut hash = blake3::Hasher::new();
                    loop {
                        match tar.read_body(buffer)? {
                            0 => return Ok(ContentDigest(*hash.finalize().as_bytes())),
                            len => {
                                hash.update(&buffer[..len]);
                                file(&buffer[..len])?;
                            }
                        }
                    }
                };
                let content = self.creator.file(&path, &meta, mtime, &mut body)?;
                self.listing.insert_file(&path, meta, mtime, size, content);
                return Ok(());
            }
            MemberKind::Symlink { target } => {
                let length = 1..=super::limits::LINK_BYTES_MAX;
                if !length.contains(&target.len()) || target.contains(&0) {
                    return Err(UnpackError::SymlinkTarget { path });
                }
                self.account(target.len())?;
                meta.mode = 0o777;
                SpecialKind::Symlink { target }
            }
            MemberKind::CharDevice { major, minor } => {
                SpecialKind::Device { major, minor, is_block: false, is_absent: false }
            }
            MemberKind::BlockDevice { major, minor } => {
                SpecialKind::Device { major, minor, is_block: true, is_absent: false }
            }
            MemberKind::Fifo => SpecialKind::Fifo,
        };
        self.prepare(&path)?;
        let mut special = Box::new(Special { meta, mtime, kind });
        self.creator.special(&path, &mut special)?;
        self.listing.insert(&path, Node::Special(special));
        Ok(())
    }

    fn dir(&mut self, path: &RelPath, meta: Meta, mtime: Mtime) -> Result<(), UnpackError> {
        self.ensure_dir(path)?;
        let dir = self.listing.dir_mut(path);
        (dir.meta, dir.mtime, dir.is_implied) = (meta, mtime, false);
        Ok(())
    }

    fn hardlink(&mut self, path: &RelPath, target: &[u8]) -> Result<(), UnpackError> {
        let refuse = || UnpackError::LinkTarget { path: path.clone(), target: shorten(target) };
        let Ok(Name::Entry(first)) = self.name(target) else { return Err(refuse()) };
        let Some(Node::File { group }) = self.listing.get(&first) else { return Err(refuse()) };
        let group = *group;
        if first == *path {
            return Ok(());
        }
        self.prepare(path)?;
        // Replacing what was at `path` may have taken the target along: `a/b`, then `a` as a link to `a/b`.
        if !matches!(self.listing.get(&first), Some(Node::File { .. })) {
            return Err(refuse());
        }
        self.creator.hardlink(path, &first)?;
        self.listing.insert(path, Node::File { group });
        Ok(())
    }

    /// Makes room for a new entry: its parents are directories and nothing is there.
    fn prepare(&mut self, path: &RelPath) -> Result<(), UnpackError> {
        self.ensure_dir(&path.parent().unwrap_or_default())?;
        self.remove(path)
    }

    fn remove(&mut self, path: &RelPath) -> Result<(), UnpackError> {
        // Deepest first, so directories are empty when their turn comes.
        for (removed, node) in self.listing.remove_all(path).into_iter().rev() {
            self.creator.remove(&removed, &node)?;
        }
        Ok(())
    }

    /// Makes `path` a directory, and all above it.
    fn ensure_dir(&mut self, path: &RelPath) -> Result<(), UnpackError> {
        match self.listing.get(path) {
            Some(Node::Dir(_)) => return Ok(()),
            None if path.is_root() => {
                // It is there already, and the merged root's metadata is the lower layers' unless listed.
                self.listing.insert(path, Node::Dir(Box::new(DirNode::implied())));
                return Ok(());
            }
            _ => {}
        }
        // Not recursive: a path may have thousands of components. The root is always found.
        let mut missing = vec![path.clone()];
        while let Some(parent) = missing.last().and_then(RelPath::parent) {
            if matches!(self.listing.get(&parent), Some(Node::Dir(_))) {
                break;
            }
            missing.push(parent);
        }
        for path in missing.into_iter().rev() {
            if path.is_root() {
                self.listing.insert(&path, Node::Dir(Box::new(DirNode::implied())));
                continue;
            }
            self.account(path.as_bytes().len())?;
            // What it replaces hid the lower directory of this name, and so must it.
            let replaces = self.listing.get(&path).is_some();
            self.remove(&path)?;
            self.creator.dir(&path)?;
            let dir = DirNode { opaque: replaces, ..DirNode::implied() };
            self.listing.insert(&path, Node::Dir(Box::new(dir)));
        }
        Ok(())
    }

    fn account(&mut self, bytes: usize) -> Result<(), UnpackError> {
        // A node takes about this much beside its names.
        const NODE_BYTES: u64 = 128;
        self.listing_bytes += bytes as u64 + NODE_BYTES;
        if self.listing_bytes > self.limits.listing_bytes_max {
            return Err(UnpackError::ListingTooLarge { max: self.limits.listing_bytes_max });
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Unpacked, UnpackError> {
        for (path, dir) in self.listing.dirs_deepest_first() {
            if !(path.is_root() && dir.is_implied) {
                self.creator.finish_dir(&path, dir)?;
            } else if dir.opaque {
                self.creator.mark_opaque(&path)?;
            }
        }
        let (diff, implied_dirs, absent_devices) = self.listing.into_diff()?;
        Ok(Unpacked { diff, implied_dirs, absent_devices, xattrs_dropped: self.xattrs_dropped })
    }
}

fn shorten(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(200).collect()
}

#[cfg(test)]
mod tests;
