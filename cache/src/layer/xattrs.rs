//! Which xattrs a layer keeps, and reading and writing them.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// Prefixes inside `user.` that never enter a layer: overlayfs' own marks (also escaped ones) and ours.
const RESERVED: [&[u8]; 2] = [b"user.overlay.", b"user.rbuild."];

/// True for `user.*` (but reserved names) and `security.capability`. Everything else describes the machine that
/// wrote it (`security.selinux`, `system.*`) or could forge overlay state (`trusted.*`).
pub(super) fn is_kept(name: &[u8]) -> bool {
    if name == b"security.capability" {
        return true;
    }
    name.starts_with(b"user.")
        && name.len() > b"user.".len()
        && name.len() <= 255
        && !RESERVED.iter().any(|prefix| name.starts_with(prefix))
}

/// Reads the kept xattrs of an open file or directory: one `flistxattr` when it has none.
pub(super) fn read_kept(fd: impl AsFd) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Errno> {
    let fd = fd.as_fd();
    let mut names = [0u8; 1024];
    let listed = match rustix::fs::flistxattr(fd, &mut names[..]) {
        Ok(len) => names[..len].to_vec(),
        Err(Errno::OPNOTSUPP) => Vec::new(),
        // The kernel caps a list at 64 KiB.
        Err(Errno::RANGE) => {
            let mut names = vec![0u8; 64 << 10];
            let len = rustix::fs::flistxattr(fd, &mut names[..])?;
            names.truncate(len);
            names
        }
        Err(errno) => return Err(errno),
    };
    let mut kept = BTreeMap::new();
    for name in listed.split(|b| *b == 0).filter(|name| is_kept(name)) {
        let size = rustix::fs::fgetxattr_query(fd, name)?;
        let mut value = vec![0u8; size];
        let len = if size == 0 { 0 } else { rustix::fs::fgetxattr(fd, name, &mut value[..])? };
        value.truncate(len);
        kept.insert(name.to_vec(), value);
    }
    Ok(kept)
}

/// Writes xattrs to an open file or directory.
pub(super) fn write_all(fd: impl AsFd, xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<(), Errno> {
    let fd = fd.as_fd();
    for (name, value) in xattrs {
        rustix::fs::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty())?;
    }
    Ok(())
}
