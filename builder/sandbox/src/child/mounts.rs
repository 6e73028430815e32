//! The file system view of a step, assembled by descriptor and then entered.
//!
//! A scratch tmpfs is mounted over the host's `/dev` in our private mount namespace, once the devices are open: it holds
//! the kernel file systems until there is a root to move them to, the mount point of that root and the files shown in it,
//! and disappears with the old root after `pivot_root`. (Not over
//! `/`: then unmounting the old root by its place would take the scratch off and leave the host's root on top.)

use super::{devices, step_mounts};
use crate::error::{AtStep as _, SetupFailure, SetupStep};
use crate::mount::{self, INERT};
use crate::wire::{ChildSpec, Flavour, NetworkNamespace};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags};
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Hidden in /proc: kernel memory, keys, timers, hardware. The published container default.
const PROC_MASKED: &[&str] = &[
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
];
/// Read-only in /proc.
const PROC_READ_ONLY: &[&str] = &["bus", "fs", "irq", "sys", "sysrq-trigger"];
/// Hidden in /sys; each cpu's `thermal_throttle` as well.
const SYS_MASKED: &[&str] = &["firmware", "devices/virtual/powercap"];

/// For what a step may execute.
pub(super) const NOSUID_NODEV: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV);

/// Everything a step sees but its root: mounted in the scratch, to be moved into the root when that comes.
pub(super) struct World {
    flavour: Flavour,
    scratch: Scratch,
    proc: OwnedFd,
    sys: OwnedFd,
    dev: OwnedFd,
}

impl World {
    /// Mounts and masks what does not depend on the step.
    pub(super) fn assemble(flavour: Flavour, in_user_namespace: bool) -> Result<World, SetupFailure> {
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .at(SetupStep::PrivateMounts)?;
        // While the host's /proc and devices can still be looked at: a fresh proc is refused to a user namespace that cannot
        // see a complete one.
        let proc = mount::new_fs("proc", &[], INERT).at(SetupStep::Proc)?;
        let host_devices = devices::HostDevices::open()?;
        let sys = new_sys(flavour, in_user_namespace).at(SetupStep::Sys)?;

        let scratch = Scratch::mount()?;
        // Attached before they are masked: kernels before 6.15 mount nothing on a detached mount.
        mount::attach(proc.as_fd(), scratch.place("proc").at(SetupStep::Scratch)?.as_fd())
            .at(SetupStep::Proc)?;
        let place = |name| scratch.place(name).at(SetupStep::Scratch);
        if !flavour.insecure {
            protect_proc(proc.as_fd(), &scratch)?;
        }
        mount::attach(sys.as_fd(), place("sys")?.as_fd()).at(SetupStep::Sys)?;
        if !flavour.insecure {
            protect_sys(sys.as_fd(), &scratch)?;
        }
        let dev = devices::mount_dev(place("dev")?.as_fd(), &host_devices, flavour.shm_size_bytes)?;
        Ok(World { flavour, scratch, proc, sys, dev })
    }

    /// Makes `root` the root of this process with everything the step sees in it.
    ///
    /// `trees` are the mounts' descriptors.
    pub(super) fn enter(
        self,
        spec: &ChildSpec,
        root: BorrowedFd<'_>,
        trees: impl Iterator<Item = OwnedFd>,
    ) -> Result<(), SetupFailure> {
        let place = self.scratch.place("root").at(SetupStep::Scratch)?;
        mount::attach(root, place.as_fd()).at(SetupStep::AttachRoot)?;
        if !self.flavour.insecure {
            // See `devices` for why.
            mount::restrict(root, MountAttrFlags::MOUNT_ATTR_NODEV, false).at(SetupStep::AttachRoot)?;
        }

        mount::attach(self.proc.as_fd(), target(root, "proc")?.as_fd()).at(SetupStep::Proc)?;
        mount::attach(self.sys.as_fd(), target(root, "sys")?.as_fd()).at(SetupStep::Sys)?;
        mount::attach(self.dev.as_fd(), target(root, "dev")?.as_fd()).at(SetupStep::Dev)?;
        for (index, (path, mode, content)) in spec.files.iter().enumerate() {
            if let Some(below) = path.strip_prefix("/dev/") {
                place_file(self.dev.as_fd(), below).at_path(SetupStep::BindFile, path)?;
            }
            let file = self.scratch.file(&format!("file-{index}"), *mode, content);
            let file = file.at_path(SetupStep::BindFile, path)?;
            let file = mount::bind(file.as_fd()).at_path(SetupStep::BindFile, path)?;
            let is_program = mode & 0o111 != 0;
            let attributes = if is_program { NOSUID_NODEV } else { INERT };
            mount::restrict(file.as_fd(), attributes | MountAttrFlags::MOUNT_ATTR_RDONLY, false)
                .at_path(SetupStep::BindFile, path)?;
            mount::attach(file.as_fd(), target(root, path)?.as_fd()).at_path(SetupStep::BindFile, path)?;
        }
        step_mounts::attach_all(&self.scratch, root, &spec.mounts, &mut { trees })?;

        rustix::process::fchdir(root).at(SetupStep::PivotRoot)?;
        // With both arguments the same the old root lands on top of the new one, and needs no directory in it.
        rustix::process::pivot_root(".", ".").at(SetupStep::PivotRoot)?;
        rustix::mount::unmount(".", UnmountFlags::DETACH).at(SetupStep::DetachOldRoot)?;
        rustix::process::chdir("/").at(SetupStep::PivotRoot)?;
        verify_entered(root).at(SetupStep::DetachOldRoot)
    }
}

/// Makes sure nothing is left on top of the root: «..» of a mount below it climbs onto whatever covers it.
pub(super) fn verify_entered(root: BorrowedFd<'_>) -> Result<(), Errno> {
    let root = rustix::fs::fstat(root)?;
    for path in ["/", "/proc/..", "/dev/.."] {
        let seen = rustix::fs::stat(path)?;
        if (seen.st_dev, seen.st_ino) != (root.st_dev, root.st_ino) {
            return Err(Errno::XDEV);
        }
    }
    Ok(())
}

/// Makes an empty file, and the directories above it, in a file system of ours: the image's own `/dev` is hidden, so a
/// mount point there has to be made in the new one.
fn place_file(root: BorrowedFd<'_>, path: &str) -> Result<(), Errno> {
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let (dirs, name) = path.rsplit_once('/').unwrap_or(("", path));
    let mut dir = open_in(root, ".", beneath)?;
    for component in dirs.split('/').filter(|component| !component.is_empty()) {
        match rustix::fs::mkdirat(&dir, component, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        dir = open_in(dir.as_fd(), component, beneath)?;
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(0o644)).map(drop)
}

/// Opens a mount target as the step would see the path, without following `/proc` links.
fn target(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, SetupFailure> {
    let relative = path.trim_start_matches('/');
    let mut resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    if matches!(relative, "proc" | "sys" | "dev") {
        resolve |= ResolveFlags::NO_SYMLINKS;
    }
    open_in(root, relative, resolve).at_path(SetupStep::OpenTarget, path)
}

pub(super) fn open_in(at: BorrowedFd<'_>, path: &str, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    // EAGAIN: something on the host renamed while «..» was resolved.
    const ATTEMPTS_MAX: usize = 32;
    let mut result = Err(Errno::AGAIN);
    for _ in 0..ATTEMPTS_MAX {
        result = rustix::fs::openat2(at, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
        if !matches!(result, Err(Errno::AGAIN)) {
            break;
        }
    }
    result
}

fn new_sys(flavour: Flavour, in_user_namespace: bool) -> Result<OwnedFd, Errno> {
    if in_user_namespace && flavour.network == NetworkNamespace::Builder {
        // A fresh sysfs shows the network namespace's devices, so the kernel wants its owner; the host's tree is shown
        // instead, as other rootless builders do.
        let tree = mount::bind_host_tree("/sys")?;
        let read_only = if flavour.insecure { INERT } else { INERT | MountAttrFlags::MOUNT_ATTR_RDONLY };
        mount::restrict(tree.as_fd(), read_only, true)?;
        return Ok(tree);
    }
    if flavour.insecure {
        return mount::new_fs("sysfs", &[], INERT);
    }
    mount::new_fs("sysfs", &[("ro", None)], INERT | MountAttrFlags::MOUNT_ATTR_RDONLY)
}

fn protect_proc(proc_mount: BorrowedFd<'_>, scratch: &Scratch) -> Result<(), SetupFailure> {
    for path in PROC_MASKED {
        scratch.mask(proc_mount, path).at_path(SetupStep::MaskProc, path)?;
    }
    for path in PROC_READ_ONLY {
        protect(proc_mount, path).at_path(SetupStep::MaskProc, path)?;
    }
    Ok(())
}

fn protect(at: BorrowedFd<'_>, path: &str) -> Result<(), Errno> {
    let there = match open_in(at, path, ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let read_only = mount::bind(there.as_fd())?;
    mount::restrict(read_only.as_fd(), INERT | MountAttrFlags::MOUNT_ATTR_RDONLY, false)?;
    mount::attach(read_only.as_fd(), there.as_fd())
}

fn protect_sys(sys_mount: BorrowedFd<'_>, scratch: &Scratch) -> Result<(), SetupFailure> {
    for path in SYS_MASKED {
        scratch.mask(sys_mount, path).at_path(SetupStep::MaskSys, path)?;
    }
    // Empty in a fresh sysfs, the host's control groups in a borrowed one.
    scratch.mask(sys_mount, "fs/cgroup").at_path(SetupStep::MaskSys, "fs/cgroup")?;
    let cpus = match rustix::fs::openat(
        sys_mount,
        "devices/system/cpu",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Err(Errno::NOENT) => return Ok(()),
        other => other.at(SetupStep::MaskSys)?,
    };
    for entry in rustix::fs::Dir::read_from(&cpus).at(SetupStep::MaskSys)? {
        let entry = entry.at(SetupStep::MaskSys)?;
        let name = entry.file_name().to_string_lossy();
        let is_cpu = name.strip_prefix("cpu").is_some_and(|n| n.starts_with(|c: char| c.is_ascii_digit()));
        if is_cpu {
            let path = format!("{name}/thermal_throttle");
            scratch.mask(cpus.as_fd(), &path).at_path(SetupStep::MaskSys, &path)?;
        }
    }
    Ok(())
}

/// Our own tmpfs, gone with the old root.
pub(super) struct Scratch {
    mount: OwnedFd,
    empty_dir: OwnedFd,
    /// A null device verified by its number.
    null: OwnedFd,
}

impl Scratch {
    fn mount() -> Result<Scratch, SetupFailure> {
        let null = devices::open_host_device("null")?;
        let options = [("mode", Some("0700")), ("size", Some("64m"))];
        let mount = mount::new_fs("tmpfs", &options, NOSUID_NODEV).at(SetupStep::Scratch)?;
        let place = open_in(rustix::fs::CWD, "/dev", ResolveFlags::NO_SYMLINKS).at(SetupStep::Scratch)?;
        mount::attach(mount.as_fd(), place.as_fd()).at(SetupStep::Scratch)?;
        // A file system of its own: the files shown to the step must not be reachable through a mask.
        let options = [("mode", Some("0755")), ("size", Some("0")), ("nr_inodes", Some("2"))];
        let attributes = INERT | MountAttrFlags::MOUNT_ATTR_RDONLY;
        let empty_dir = mount::new_fs("tmpfs", &options, attributes).at(SetupStep::Scratch)?;
        let scratch = Scratch { mount, empty_dir, null };
        let place = scratch.place("empty").at(SetupStep::Scratch)?;
        mount::attach(scratch.empty_dir.as_fd(), place.as_fd()).at(SetupStep::Scratch)?;
        Ok(scratch)
    }

    /// A new directory to mount on.
    pub(super) fn place(&self, name: &str) -> Result<OwnedFd, Errno> {
        rustix::fs::mkdirat(&self.mount, name, Mode::from_raw_mode(0o700))?;
        open_in(self.mount.as_fd(), name, ResolveFlags::BENEATH)
    }

    /// A new file with this content.
    pub(super) fn file(&self, name: &str, mode: u32, content: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.mount, name, flags, Mode::from_raw_mode(mode))?;
        let mut file = std::fs::File::from(fd);
        let written = file.write_all(content);
        written.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        Ok(file.into())
    }

    /// Hides what is at `path`, if anything: a directory under an empty one, a file under the null device.
    fn mask(&self, at: BorrowedFd<'_>, path: &str) -> Result<(), Errno> {
        let there = match open_in(at, path, ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            other => other?,
        };
        let is_dir = FileType::from_raw_mode(rustix::fs::fstat(&there)?.st_mode) == FileType::Directory;
        let cover = mount::bind(if is_dir { self.empty_dir.as_fd() } else { self.null.as_fd() })?;
        mount::attach(cover.as_fd(), there.as_fd())
    }
}
