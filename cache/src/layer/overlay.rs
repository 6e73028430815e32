//! How a layer directory is written: deletions as overlayfs has them, and owners as far as we may set them.

use std::os::fd::AsFd;

use rustix::fs::{FileType, Gid, Mode, Uid, XattrFlags};
use rustix::io::Errno;

use crate::tree::Meta;

/// The form of a store's layer directories, which the privileges of its user decide.
///
/// The listing beside a directory always has the owners, modes and xattrs of the image. Whiteouts are character devices
/// 0:0 in all forms: an ordinary user may make those.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OverlayForm {
    /// `trusted.overlay.*`: mounted by real root.
    Trusted,
    /// `user.overlay.*`: mounted with `userxattr` inside a user namespace.
    User,
    /// As `User`, where only one id is mapped: everything belongs to it, and an owner other than 0:0 is noted in the
    /// xattr `user.rbuild.owner`, which overlayfs takes along when it copies a file up. Symbolic links, pipes and devices
    /// cannot carry one: theirs is in the listing alone.
    SingleId,
    /// Never mounted, by somebody with no rights at all: everything belongs to that user, who can read it whatever its
    /// mode; owners, modes and xattrs are in the listing alone.
    Listed,
}

/// Where the owners of files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// On the files: needs privileges, or a user namespace that maps them.
    Set,
    /// In an xattr of files and directories.
    Noted,
    /// Only in the listing.
    Keep,
}

/// Decimal `uid:gid`.
pub(super) const OWNER_NAME: &str = "user.rbuild.owner";

impl OverlayForm {
    fn opaque_name(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.opaque",
            Self::User | Self::SingleId | Self::Listed => "user.overlay.opaque",
        }
    }

    /// Where owners are in this form.
    pub fn owners(self) -> Owners {
        match self {
            Self::Trusted | Self::User => Owners::Set,
            Self::SingleId => Owners::Noted,
            Self::Listed => Owners::Keep,
        }
    }

    /// Whether files and directories have the mode and xattrs of the image.
    pub fn has_modes(self) -> bool {
        self != Self::Listed
    }

    /// Whether the kernel mounts it with `userxattr`.
    pub fn is_userxattr(self) -> bool {
        self != Self::Trusted
    }

    /// Marks a directory opaque.
    pub(crate) fn set_opaque(self, dir: impl AsFd) -> Result<(), Errno> {
        rustix::fs::fsetxattr(dir, self.opaque_name(), b"y", XattrFlags::empty())
    }

    /// True when the directory is opaque. The value `x` of newer kernels means something else (whiteouts kept as
    /// xattrs inside), which only prepared lower layers carry.
    pub(super) fn is_opaque(self, dir: impl AsFd) -> Result<bool, Errno> {
        let mut value = [0u8; 4];
        match rustix::fs::fgetxattr(dir, self.opaque_name(), &mut value[..]) {
            Ok(len) => Ok(&value[..len] == b"y"),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Takes the opaque mark away.
    pub(super) fn clear_opaque(self, dir: impl AsFd) -> Result<(), Errno> {
        match rustix::fs::fremovexattr(dir, self.opaque_name()) {
            Ok(()) | Err(Errno::NODATA) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

impl Owners {
    /// Gives an open file or directory, which has its first owner still, to the owner in `meta`.
    pub fn give(self, fd: impl AsFd, meta: &Meta) -> Result<(), Errno> {
        match self {
            Self::Set => rustix::fs::fchown(fd, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid))),
            Self::Noted if (meta.uid, meta.gid) == (0, 0) => match rustix::fs::fremovexattr(fd, OWNER_NAME) {
                Err(Errno::NODATA) => Ok(()),
                other => other,
            },
            Self::Noted => {
                let owner = format!("{}:{}", meta.uid, meta.gid);
                rustix::fs::fsetxattr(fd, OWNER_NAME, owner.as_bytes(), XattrFlags::empty())
            }
            Self::Keep => Ok(()),
        }
    }
}

/// The owner noted on an open file or directory, which has the xattr.
pub(super) fn noted_owner(fd: impl AsFd) -> Result<Option<(u32, u32)>, Errno> {
    let mut buffer = [0u8; 32];
    let value = match rustix::fs::fgetxattr(fd, OWNER_NAME, &mut buffer[..]) {
        Ok(len) => &buffer[..len],
        // Too long for two numbers: not ours.
        Err(Errno::RANGE) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    // A step may write what it likes there; what is no owner is none.
    let parse = |text: &str| {
        let (uid, gid) = text.split_once(':')?;
        let id = |text: &str| text.parse().ok().filter(|id: &u32| *id != u32::MAX);
        Some((id(uid)?, id(gid)?))
    };
    Ok(std::str::from_utf8(value).ok().and_then(parse))
}

/// Creates a whiteout: a character device 0:0, which an ordinary user may create inside a user namespace.
pub(super) fn create_whiteout(dir: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), rustix::fs::makedev(0, 0))
}
