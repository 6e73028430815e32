//! Devices and files of a step, put into its copy of the root and taken out again.

use crate::child::devices::DEVICES;
use crate::error::StepError;
use crate::mount_points::{self, Kind, MountPoints};
use crate::wire::ChildSpec;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timestamps};
use rustix::io::Errno;
use std::ffi::CString;
use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

/// Everything that was put into a root for one step.
pub(super) struct Placed<'a> {
    root: BorrowedFd<'a>,
    aside: BorrowedFd<'a>,
    points: MountPoints,
    placed: Vec<One>,
}

/// One name that is ours during the step.
struct One {
    dir: OwnedFd,
    name: CString,
    /// Name in `aside` of what the image has there.
    original: Option<CString>,
    /// Times of the directory before it was touched, and after.
    before: Timestamps,
    after: Timestamps,
}

impl<'a> Placed<'a> {
    /// Puts devices and the step's files in. On an error what was put in is out again.
    pub(super) fn create(
        root: BorrowedFd<'a>,
        aside: BorrowedFd<'a>,
        spec: &ChildSpec,
        sockets: &[(&str, BorrowedFd<'_>)],
    ) -> Result<Placed<'a>, StepError> {
        let files = spec.files.iter().map(|(path, ..)| path.as_str());
        let paths: Vec<(&str, Kind)> =
            files.chain(sockets.iter().map(|(path, _)| *path)).map(|path| (path, Kind::File)).collect();
        // The same places as for mounts: what is made for the step only goes with it.
        let points = MountPoints::create(root, &spec.cwd, &paths)?;
        let mut placed = Placed { root, aside, points, placed: Vec::new() };
        match placed.fill(spec, sockets) {
            Ok(()) => Ok(placed),
            Err(error) => {
                // The error that is told is the first.
                let _second = placed.remove();
                Err(error)
            }
        }
    }

    fn fill(&mut self, spec: &ChildSpec, sockets: &[(&str, BorrowedFd<'_>)]) -> Result<(), StepError> {
        let error =
            |path: &str, errno: Errno| StepError::MountPoint { path: path.to_owned(), source: errno.into() };
        for (name, major, minor) in DEVICES {
            let path = format!("/dev/{name}");
            self.put(&path, |dir, name| {
                let (mode, number) = (Mode::from_raw_mode(0o666), rustix::fs::makedev(*major, *minor));
                rustix::fs::mknodat(dir, name, FileType::CharacterDevice, mode, number)?;
                // The builder's umask counted.
                rustix::fs::chmodat(dir, name, mode, AtFlags::empty())
            })
            .map_err(|errno| error(&path, errno))?;
        }
        self.put("/dev/shm", |dir, name| {
            rustix::fs::mkdirat(dir, name, Mode::RWXU)?;
            rustix::fs::chmodat(dir, name, Mode::from_raw_mode(0o1777), AtFlags::empty())
        })
        .map_err(|errno| error("/dev/shm", errno))?;
        for (path, mode, content) in &spec.files {
            self.put(path, |dir, name| {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
                let mut file = std::fs::File::from(fd);
                file.write_all(content).map_err(super::errno)?;
                rustix::fs::fchmod(&file, Mode::from_raw_mode(*mode))
            })
            .map_err(|errno| error(path, errno))?;
        }
        for (path, socket) in sockets {
            self.put(path, |dir, name| {
                let open = format!("/proc/self/fd/{}", socket.as_raw_fd());
                rustix::fs::linkat(CWD, open, dir, name, AtFlags::SYMLINK_FOLLOW)
            })
            .map_err(|errno| error(path, errno))?;
        }
        Ok(())
    }

    /// Has `make` make something of ours at a path, where the image's waits aside.
    fn put(
        &mut self,
        path: &str,
        make: impl FnOnce(BorrowedFd<'_>, &CString) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let (dir, name) = mount_points::place_of(self.root, path)?;
        let before = mount_points::times_of(dir.as_fd())?;
        let kept = CString::new(format!("aside-{}", self.placed.len())).map_err(|_| Errno::INVAL)?;
        let original = match rustix::fs::renameat(&dir, &name, self.aside, &kept) {
            Ok(()) => Some(kept),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(errno),
        };
        let made = make(dir.as_fd(), &name);
        let after = mount_points::times_of(dir.as_fd())?;
        self.placed.push(One { dir, name, original, before, after });
        made
    }

    /// Takes everything out again, newest first. Whatever the step left under those names goes with it, as what is
    /// written over a mount would.
    pub(super) fn remove(mut self) -> Result<(), StepError> {
        let mut first = Ok(());
        while let Some(one) = self.placed.pop() {
            let name = one.name.to_string_lossy().into_owned();
            if let Err(errno) = one.remove(self.aside) {
                first =
                    first.and(Err(StepError::MountPoint { path: name, source: std::io::Error::from(errno) }));
            }
        }
        self.points.remove();
        first
    }
}

impl One {
    fn remove(self, aside: BorrowedFd<'_>) -> Result<(), Errno> {
        let now = mount_points::times_of(self.dir.as_fd())?;
        mount_points::remove_all(self.dir.as_fd(), &self.name)?;
        if let Some(original) = &self.original {
            rustix::fs::renameat(aside, original, &self.dir, &self.name)?;
        }
        // If the step changed the directory as well, its time is the step's.
        let is_ours = now.last_modification == self.after.last_modification;
        rustix::fs::futimens(&self.dir, if is_ours { &self.before } else { &now })
    }
}
