//! Room for what there is too much of to hold in memory: files without a name.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::io::Errno;

/// Makes files without a name on one file system, which the kernel takes back when nobody has them open any more, however
/// the process ends.
#[derive(Debug, Clone)]
pub struct Scratch {
    dir: Arc<OwnedFd>,
}

impl Scratch {
    /// On the file system of `dir`, in which nothing ever shows of it, its times included.
    pub fn on(dir: impl AsFd) -> io::Result<Self> {
        Ok(Self { dir: Arc::new(dir.as_fd().try_clone_to_owned()?) })
    }

    /// An empty file to write and read; in memory where the file system has none without names.
    pub fn file(&self) -> io::Result<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
        let made = match rustix::fs::openat(&self.dir, c".", flags, Mode::RUSR | Mode::WUSR) {
            // The latter two from kernels or file systems that do not know of it.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => {
                rustix::fs::memfd_create(c"scratch", MemfdFlags::CLOEXEC)
            }
            made => made,
        };
        Ok(File::from(made?))
    }
}

#[cfg(test)]
impl Scratch {
    /// Somewhere.
    pub(crate) fn for_test() -> Self {
        Self::on(File::open(std::env::temp_dir()).unwrap()).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_scratch_file_keeps_bytes_and_does_not_show() {
        let temp = tempfile::tempdir().unwrap();
        let times = || {
            let stat = rustix::fs::stat(temp.path()).unwrap();
            (stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime_nsec)
        };
        let before = times();
        let scratch = Scratch::on(File::open(temp.path()).unwrap()).unwrap();
        let mut file = scratch.file().unwrap();
        file.write_all_at(b"kept", 0).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"kept");
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
        assert_eq!(times(), before);
    }

    #[test]
    fn where_no_file_is_without_a_name_memory_takes_the_bytes() {
        // The kernel makes none in /proc.
        let scratch = Scratch::on(File::open("/proc").unwrap()).unwrap();
        scratch.file().unwrap().write_all_at(b"kept", 0).unwrap();
    }
}
