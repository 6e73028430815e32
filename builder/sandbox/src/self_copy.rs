//! The sealed copy of our own program that sandbox children execute.
//!
//! A process in a container can reach the program of another process through `/proc/<pid>/exe` and, in the past,
//! overwrite it (CVE-2019-5736). Children therefore run from a memory file nobody can write to any more. One copy per
//! process: a few milliseconds for the first step, memory shared by all.

use rustix::fs::{MemfdFlags, Mode, SealFlags};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
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

/// The sealed copy.
#[derive(Clone)]
pub(crate) struct SelfCopy(Arc<OwnedFd>);

impl SelfCopy {
    /// The copy of this process's program, made on first use.
    pub(crate) fn get() -> io::Result<SelfCopy> {
        static COPY: Mutex<Option<SelfCopy>> = Mutex::new(None);
        let mut copy = COPY.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(copy) = &*copy {
            return Ok(copy.clone());
        }
        let made = SelfCopy(Arc::new(seal_own_program()?));
        *copy = Some(made.clone());
        Ok(made)
    }

    /// Path to execute it by, from this process and its children before they close descriptors.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

fn seal_own_program() -> io::Result<OwnedFd> {
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
