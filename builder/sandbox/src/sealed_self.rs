//! Our own program as sandbox children execute it: what they run from cannot be written to.
//!
//! A process in a container can reach the program of another process through `/proc/<pid>/exe` and, in the past,
//! overwrite it (CVE-2019-5736). Children therefore run from a file of an overlay without an upper, which no right can
//! make writable, made of the directory that our program is in and mounted nowhere. Where there is no such mount, they run
//! from a sealed memory file: a copy, which takes a millisecond for each MB or two of the program. One per process.

use crate::mount::{self, FsOption};
use rustix::fs::{MemfdFlags, Mode, OFlags, ResolveFlags, SealFlags};
use rustix::mount::MountAttrFlags;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// `argv[0]` of the spawner. Nothing in an image can start us under this name: the program is not in there.
pub(crate) const SPAWNER_MARKER: &str = "rbuild-sandbox-spawner";

/// `argv[0]` of the process that keeps a step in a chroot.
pub(crate) const CHROOT_MARKER: &str = "rbuild-sandbox-chroot";
/// `argv[0]` of the helper that maps ids.
pub(crate) const IDMAP_MARKER: &str = "rbuild-sandbox-idmap";
/// `argv[0]` of the process that holds the network of a build's steps.
pub(crate) const NETWORK_MARKER: &str = "rbuild-sandbox-network";
/// `argv[0]` of the child that registers an emulator for steps.
pub(crate) const EMULATION_MARKER: &str = "rbuild-sandbox-emulation";
/// `argv[0]` of the child that tries what the host allows.
pub(crate) const PROBE_MARKER: &str = "rbuild-sandbox-probe";

/// The program, open for execution.
#[derive(Clone)]
pub(crate) struct SealedSelf(Arc<OwnedFd>);

static SEALED: Mutex<Option<SealedSelf>> = Mutex::new(None);

impl SealedSelf {
    /// Starts it as `start` does, given its path; from the copy, if the host's policy forbids to execute what is mounted
    /// nowhere.
    pub(crate) fn run<T>(start: impl Fn(&Path) -> io::Result<T>) -> io::Result<T> {
        match start(&SealedSelf::get(|| view().or_else(|_| copy()))?.path()) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                *SEALED.lock().unwrap_or_else(PoisonError::into_inner) = None;
                start(&SealedSelf::get(copy)?.path())
            }
            other => other,
        }
    }

    /// That of this process, made on first use.
    fn get(make: impl FnOnce() -> io::Result<OwnedFd>) -> io::Result<SealedSelf> {
        let mut sealed = SEALED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sealed) = &*sealed {
            return Ok(sealed.clone());
        }
        let made = SealedSelf(Arc::new(make()?));
        *sealed = Some(made.clone());
        Ok(made)
    }

    /// Path to execute it by, from this process and its children before they close descriptors.
    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// The program as a file of a read-only overlay.
fn view() -> io::Result<OwnedFd> {
    let unlike = || io::Error::other("its directory has another file of its name");
    let program = std::fs::read_link("/proc/self/exe")?;
    let (Some(dir), Some(name)) = (program.parent(), program.file_name()) else { return Err(unlike()) };
    // Without an upper an overlay wants two lowers.
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    let empty = mount::new_fs("tmpfs", &[], attributes)?;
    let path_only = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY;
    let dir = rustix::fs::open(dir, path_only, Mode::empty())?;
    let lowers = [dir, empty].map(|lower| (format!("/proc/self/fd/{}", lower.as_raw_fd()), lower));
    let mut options: Vec<FsOption<'_>> =
        lowers.iter().map(|(name, _)| ("lowerdir+", Some(name.as_str()))).collect();
    if crate::in_user_namespace() {
        options.push(("userxattr", None));
    }
    let root = mount::new_fs("overlay", &options, attributes)?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let seen = rustix::fs::openat2(&root, name, flags, Mode::empty(), resolve)?;
    // By now another version may have been installed there. An overlay has inode numbers of its own.
    let identity = |stat: rustix::fs::Stat| {
        let times = (stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec);
        (stat.st_size, stat.st_mode, times)
    };
    let running = rustix::fs::stat("/proc/self/exe")?;
    if identity(rustix::fs::fstat(&seen)?) != identity(running) {
        return Err(unlike());
    }
    Ok(seen)
}

/// The program as a sealed memory file.
fn copy() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know the flag, and always allow execution.
    let memfd = match rustix::fs::memfd_create(c"rbuild-sandbox", flags | MemfdFlags::EXEC) {
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create(c"rbuild-sandbox", flags),
        other => other,
    }?;
    let mut program = File::open("/proc/self/exe")?;
    let mut copy = File::from(memfd);
    io::copy(&mut program, &mut copy)?;
    rustix::fs::fchmod(copy.as_fd(), Mode::from_raw_mode(0o511))?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(copy.as_fd(), seals)?;
    Ok(copy.into())
}

#[cfg(test)]
mod tests {
    use super::{SealedSelf, copy, view};
    use crate::chroot::Confinement;
    use std::io::{ErrorKind, Write as _};
    use std::os::fd::AsFd as _;
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::sync::{Arc, Mutex};

    #[test]
    fn nobody_can_write_to_what_children_run_from() {
        // The view takes rights that a test may not have; the copy takes none.
        let programs = [view().ok(), Some(copy().unwrap())];
        for program in programs.into_iter().flatten() {
            let program = SealedSelf(Arc::new(program));
            let path = program.path();
            let whole = std::fs::read(&path).unwrap();
            assert_eq!(whole, std::fs::read("/proc/self/exe").unwrap());
            let written = std::fs::OpenOptions::new().write(true).open(&path);
            assert!(written.and_then(|mut file| file.write_all(b"x")).is_err(), "{path:?} was written to");
            assert!(std::fs::File::create(&path).and_then(|mut file| file.write_all(b"x")).is_err());
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
    }

    /// Landlock as the policy: it knows files by what they are below of, and a view is below nothing.
    #[test]
    fn where_a_policy_forbids_the_view_children_run_from_the_copy() {
        let is_confined = || -> Result<bool, rustix::io::Errno> {
            let root = std::fs::File::open("/").unwrap();
            rustix::thread::set_no_new_privs(true)?;
            let confinement = Confinement::to(root.as_fd())?;
            confinement.map(Confinement::enforce).transpose().map(|done| done.is_some())
        };
        if view().is_err() || !matches!(crate::sys::landlock_abi(), Ok(1..)) {
            println!("skipped: the view takes rights, or this kernel has no Landlock");
            return;
        }
        // Of this thread only, and of what it starts.
        let confined = std::thread::spawn(move || {
            assert_eq!(is_confined(), Ok(true));
            let tries = Mutex::new(Vec::new());
            let start = |program: &Path| {
                let mut command = Command::new(program);
                let status = command.args(["--exact", "no such test"]).stdout(Stdio::null()).status();
                let target = std::fs::read_link(program).unwrap().to_string_lossy().into_owned();
                tries.lock().unwrap().push((target, status.as_ref().err().map(std::io::Error::kind)));
                status
            };
            let first = SealedSelf::run(start).unwrap();
            let second = SealedSelf::run(start).unwrap();
            (first.success() && second.success(), tries.into_inner().unwrap())
        });
        let (worked, tries) = confined.join().unwrap();
        assert!(worked, "{tries:?}");
        let is_copy: Vec<bool> = tries.iter().map(|(target, _)| target.starts_with("/memfd:")).collect();
        let refused: Vec<Option<ErrorKind>> = tries.iter().map(|(_, refused)| *refused).collect();
        assert_eq!(is_copy, [false, true, true], "{tries:?}");
        assert_eq!(refused, [Some(ErrorKind::PermissionDenied), None, None]);
    }
}
