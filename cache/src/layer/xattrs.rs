//! Which xattrs a layer keeps, and reading and writing them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::limits::Limits;

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

/// Names of a file's xattrs, as the kernel lists them.
pub(super) struct Names(Vec<u8>);

impl Names {
    /// One `flistxattr` for almost every file.
    pub(super) fn of(fd: impl AsFd) -> Result<Self, Errno> {
        let fd = fd.as_fd();
        let mut names = [0u8; 1024];
        match rustix::fs::flistxattr(fd, &mut names[..]) {
            Ok(len) => Ok(Self(names[..len].to_vec())),
            Err(Errno::OPNOTSUPP) => Ok(Self(Vec::new())),
            // The kernel caps a list at 64 KiB.
            Err(Errno::RANGE) => {
                let mut names = vec![0u8; 64 << 10];
                let len = rustix::fs::flistxattr(fd, &mut names[..])?;
                names.truncate(len);
                Ok(Self(names))
            }
            Err(errno) => Err(errno),
        }
    }

    /// True when `name` is one of them.
    pub(super) fn contain(&self, name: &str) -> bool {
        self.iter().any(|known| known == name.as_bytes())
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|b| *b == 0).filter(|name| !name.is_empty())
    }

    /// True when overlayfs keeps the file's bytes or the directory's entries elsewhere (`metacopy`, `redirect`), so
    /// that what is here is not all.
    pub(super) fn refer_to_lower(&self) -> bool {
        self.iter().any(|name| {
            let name = name.strip_prefix(b"trusted.overlay.").or_else(|| name.strip_prefix(b"user.overlay."));
            matches!(name, Some(b"metacopy" | b"redirect"))
        })
    }
}

/// The xattrs of a file or directory that a layer keeps. What cannot be read is not there: this is for trees that people
/// own, whose file systems and rights are theirs. More than a layer may have, which would not unpack again, is an error.
pub fn kept_xattrs(fd: impl AsFd) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let max = Limits::default().xattr_bytes_max;
    match Names::of(&fd).and_then(|names| read_kept(fd, &names, max)) {
        Err(Errno::TOOBIG) => Err(io::Error::other(format!("they take more than {max} bytes"))),
        kept => Ok(kept.unwrap_or_default()),
    }
}

/// Reads the kept ones of `names`, which are those of `fd`. `E2BIG` when their names and values take more than `max` bytes;
/// no more of them is read then.
pub(super) fn read_kept(
    fd: impl AsFd,
    names: &Names,
    max: usize,
) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Errno> {
    let fd = fd.as_fd();
    let (mut kept, mut bytes) = (BTreeMap::new(), 0);
    for name in names.iter().filter(|name| is_kept(name)) {
        let size = rustix::fs::fgetxattr_query(fd, name)?;
        bytes += name.len() + size;
        if bytes > max {
            return Err(Errno::TOOBIG);
        }
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

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn more_than_a_layer_may_have_is_not_read() {
        let temp = tempfile::tempdir().unwrap();
        let file = File::create(temp.path().join("f")).unwrap();
        let all = [(b"user.a".to_vec(), vec![1; 20]), (b"user.b".to_vec(), vec![2; 30])].into();
        if write_all(&file, &all).is_err() {
            eprintln!("skipped: the temporary directory has no user xattrs");
            return;
        }
        let names = Names::of(&file).unwrap();
        assert_eq!(read_kept(&file, &names, 6 + 20 + 6 + 30), Ok(all.clone()));
        assert_eq!(read_kept(&file, &names, 6 + 20 + 6 + 29), Err(Errno::TOOBIG));
        assert_eq!(kept_xattrs(&file).unwrap(), all);
    }
}
