//! Reading files of an image, which may have made them anything.

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};

/// What is at a path of an image.
pub(crate) enum Opened {
    /// A regular file, open for reading.
    File(OwnedFd),
    /// Something else.
    NotRegular,
    /// Nothing.
    Absent,
}

/// Opens a regular file below `root`, as whoever has `root` as root directory would see the path.
pub(crate) fn open(root: BorrowedFd<'_>, path: &str) -> Result<Opened, Errno> {
    let path = path.trim_start_matches('/');
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // O_PATH first: opening a device or pipe can have effects, looking at it cannot.
    let looked_at =
        match rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Opened::Absent),
            Err(errno) => return Err(errno),
        };
    if FileType::from_raw_mode(rustix::fs::fstat(&looked_at)?.st_mode) != FileType::RegularFile {
        return Ok(Opened::NotRegular);
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve).map(Opened::File)
}
