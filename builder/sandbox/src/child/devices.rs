//! A minimal `/dev`: six devices, terminals, shared memory, message queues, links.
//!
//! The devices are bind mounts of the host's, verified by number, on every rung: the tmpfs itself, like every other file
//! system of a step, is `nodev`. Root of a step keeps CAP_MKNOD, and without that a node it makes for a disk of the host
//! would open. (docker relies on the device control group; we need none. Difference: a `null` a step makes itself cannot
//! be opened either.)

use crate::error::{AtStep as _, SetupFailure, SetupStep};
use crate::mount::{self, INERT};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Name and number of every device a step may open.
pub(crate) const DEVICES: &[(&str, u32, u32)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// Opens a device of the host and makes sure it is the one its name says.
pub(super) fn open_host_device(name: &str) -> Result<OwnedFd, SetupFailure> {
    let path = format!("/dev/{name}");
    let open = || {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path.as_str(), flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        let (_, major, minor) = DEVICES.iter().find(|(known, ..)| *known == name).ok_or(Errno::NODEV)?;
        let is_it = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && stat.st_rdev == rustix::fs::makedev(*major, *minor);
        if is_it { Ok(fd) } else { Err(Errno::NODEV) }
    };
    open().at_path(SetupStep::DeviceNode, &path)
}

/// Bind mounts of the host's devices, detached, to be put in place after the host's `/dev` is out of reach.
pub(super) struct HostDevices(Vec<(&'static str, OwnedFd)>);

impl HostDevices {
    pub(super) fn open() -> Result<HostDevices, SetupFailure> {
        let bind = |name: &'static str| {
            let fd = open_host_device(name)?;
            Ok((name, mount::bind(fd.as_fd()).at_path(SetupStep::DeviceNode, name)?))
        };
        DEVICES.iter().map(|(name, ..)| bind(name)).collect::<Result<_, _>>().map(HostDevices)
    }
}

/// Mounts a new `/dev` at `target` and returns it. The caller's umask is 0.
pub(super) fn mount_dev(
    target: BorrowedFd<'_>,
    devices: &HostDevices,
    shm_size_bytes: u64,
) -> Result<OwnedFd, SetupFailure> {
    // Mode 0755, not the default 1777: the sticky-directory rule would refuse `> /dev/null` in a user namespace.
    let options = [("mode", Some("0755")), ("size", Some("64m"))];
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        .union(MountAttrFlags::MOUNT_ATTR_NODEV)
        .union(MountAttrFlags::MOUNT_ATTR_STRICTATIME);
    let dev = mount::new_fs("tmpfs", &options, attributes).at(SetupStep::Dev)?;
    mount::attach(dev.as_fd(), target).at(SetupStep::Dev)?;
    add_nodes(dev.as_fd(), devices)?;
    for (to, name) in LINKS {
        rustix::fs::symlinkat(*to, &dev, *name).at_path(SetupStep::DeviceNode, name)?;
    }

    let pts_attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    mount_at(dev.as_fd(), "pts", new_pts(pts_attributes), SetupStep::Pts)?;
    let size = shm_size_bytes.to_string();
    let shm = mount::new_fs("tmpfs", &[("mode", Some("1777")), ("size", Some(&size))], INERT);
    mount_at(dev.as_fd(), "shm", shm, SetupStep::Shm)?;
    match mount::new_fs("mqueue", &[], INERT) {
        // A kernel without POSIX message queues.
        Err(Errno::NODEV) => {}
        mqueue => mount_at(dev.as_fd(), "mqueue", mqueue, SetupStep::Mqueue)?,
    }
    Ok(dev)
}

fn new_pts(attributes: MountAttrFlags) -> Result<OwnedFd, Errno> {
    let common = [("newinstance", None), ("ptmxmode", Some("0666")), ("mode", Some("0620"))];
    let with_group: Vec<_> = common.iter().copied().chain([("gid", Some("5"))]).collect();
    match mount::new_fs("devpts", &with_group, attributes) {
        // Group 5 (tty) is not mapped in a small user namespace.
        Err(Errno::INVAL) => mount::new_fs("devpts", &common, attributes),
        other => other,
    }
}

fn mount_at(
    dev: BorrowedFd<'_>,
    name: &str,
    mount: Result<OwnedFd, Errno>,
    step: SetupStep,
) -> Result<(), SetupFailure> {
    let attach = || {
        let mount = mount?;
        rustix::fs::mkdirat(dev, name, Mode::from_raw_mode(0o755))?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = rustix::fs::openat(dev, name, flags, Mode::empty())?;
        mount::attach(mount.as_fd(), target.as_fd())
    };
    attach().at(step)
}

fn add_nodes(dev: BorrowedFd<'_>, devices: &HostDevices) -> Result<(), SetupFailure> {
    for (name, mount) in &devices.0 {
        let bind = || {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = rustix::fs::openat(dev, *name, flags, Mode::from_raw_mode(0o666))?;
            mount::attach(mount.as_fd(), file.as_fd())
        };
        bind().at_path(SetupStep::DeviceNode, name)?;
    }
    Ok(())
}
