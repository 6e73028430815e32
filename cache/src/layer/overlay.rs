//! How overlayfs writes deletions down.

use std::os::fd::AsFd;

use rustix::fs::{FileType, Mode, XattrFlags};
use rustix::io::Errno;

/// Which xattr namespace overlayfs uses for its marks in a layer directory. Whiteouts are character devices 0:0 in
/// both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OverlayForm {
    /// `trusted.overlay.*`: mounted by real root.
    Trusted,
    /// `user.overlay.*`: mounted with `userxattr` inside a user namespace.
    User,
}

impl OverlayForm {
    fn opaque_name(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.opaque",
            Self::User => "user.overlay.opaque",
        }
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

/// Creates a whiteout: a character device 0:0, which an ordinary user may create inside a user namespace.
pub(super) fn create_whiteout(dir: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), rustix::fs::makedev(0, 0))
}
