//! What no walk can be faster than: the system calls that it cannot do without, and nothing else.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir};

const FLAGS: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);

/// Lists every directory and stats every entry by its directory's descriptor, on so many threads. Gives their number.
/// Directories that `leaves_out` names are not entered, as an ignore file would have it.
pub(crate) fn walk(root: &Path, threads: usize, leaves_out: fn(&[u8]) -> bool) -> usize {
    let top = rustix::fs::open(root, FLAGS, Mode::empty()).expect("the root");
    let open = Mutex::new(vec![top]);
    // Directories that are open or being listed: none left means that none will come.
    let (pending, count) = (AtomicUsize::new(1), AtomicUsize::new(0));
    let work = || {
        while pending.load(Ordering::Acquire) > 0 {
            let next = open.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(dir) = next else {
                std::hint::spin_loop();
                continue;
            };
            let (seen, found) = list(&dir, leaves_out);
            count.fetch_add(seen, Ordering::Relaxed);
            pending.fetch_add(found.len(), Ordering::AcqRel);
            open.lock().unwrap_or_else(PoisonError::into_inner).extend(found);
            pending.fetch_sub(1, Ordering::AcqRel);
        }
    };
    std::thread::scope(|scope| {
        (1..threads).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    count.into_inner()
}

fn list(dir: &OwnedFd, leaves_out: fn(&[u8]) -> bool) -> (usize, Vec<OwnedFd>) {
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut names: Vec<Vec<u8>> = Vec::new();
    let mut reader = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = reader.next() {
        let entry = entry.expect("an entry");
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." && !leaves_out(name) {
            names.push(name.to_vec());
        }
    }
    let (mut count, mut dirs) = (0, Vec::new());
    for name in names {
        let name = OsStr::from_bytes(&name);
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).expect("a stat");
        count += 1;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            dirs.push(rustix::fs::openat(dir.as_fd(), name, FLAGS, Mode::empty()).expect("a directory"));
        }
    }
    (count, dirs)
}
