//! What of a directory is in the context: the scan's walk without reading a file.

use std::ffi::OsStr;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rbuild_frontend::dockerignore::{Ignore, Verdict};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use super::scan::{ScanError, io, names_in, open_beneath};

/// One entry that is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed<'a> {
    /// Relative to the context.
    pub path: &'a [u8],
    /// `file`, `dir`, `symlink`, `other`.
    pub kind: &'static str,
    /// Bytes of a file.
    pub size: u64,
}

/// One directory on the way down.
struct Open {
    path: Vec<u8>,
    verdict: Verdict,
    /// What is still to look at, last one first.
    left: Vec<(Vec<u8>, FileType, u64)>,
    /// False for an excluded directory in which nothing was found yet.
    is_listed: bool,
}

/// Hands over all that `ignore` leaves of `root`, directories before what is in them, by name. A directory that is
/// excluded comes only with something in it that is not.
pub fn list(root: &Path, ignore: &Ignore, mut visit: impl FnMut(Listed<'_>)) -> Result<(), ScanError> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let top =
        rustix::fs::open(root, flags, Mode::empty()).map_err(io("open", root.as_os_str().as_bytes()))?;
    let open = |path: Vec<u8>, verdict, is_listed| -> Result<Open, ScanError> {
        let dir = open_beneath(top.as_fd(), &path, OFlags::DIRECTORY).map_err(io("open", &path))?;
        let mut left = Vec::new();
        for (name, _) in names_in(dir.as_fd(), &path)?.into_iter().rev() {
            match rustix::fs::statat(&dir, OsStr::from_bytes(&name), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => {
                    let size = u64::try_from(stat.st_size).unwrap_or(0);
                    left.push((name, FileType::from_raw_mode(stat.st_mode), size));
                }
                // It vanished between listing and looking.
                Err(rustix::io::Errno::NOENT) => {}
                Err(errno) => return Err(io("look at in", &path)(errno)),
            }
        }
        Ok(Open { path, verdict, left, is_listed })
    };
    let mut stack = vec![open(Vec::new(), Verdict::default(), true)?];
    while let Some(dir) = stack.last_mut() {
        let Some((name, kind, size)) = dir.left.pop() else {
            stack.pop();
            continue;
        };
        let mut path = dir.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&name);
        let text = String::from_utf8_lossy(&path);
        let verdict = ignore.below(dir.verdict, &text);
        let is_excluded = ignore.excludes(verdict);
        let (kind, size) = match kind {
            FileType::Directory => ("dir", 0),
            FileType::RegularFile => ("file", size),
            FileType::Symlink => ("symlink", 0),
            _ => ("other", 0),
        };
        if is_excluded && (kind != "dir" || ignore.may_skip(verdict, &text)) {
            continue;
        }
        if !is_excluded {
            for above in &mut stack {
                if !std::mem::replace(&mut above.is_listed, true) {
                    visit(Listed { path: &above.path, kind: "dir", size: 0 });
                }
            }
            visit(Listed { path: &path, kind, size });
        }
        if kind == "dir" {
            stack.push(open(path, verdict, !is_excluded)?);
        }
    }
    Ok(())
}
