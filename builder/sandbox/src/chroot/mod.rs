//! Rung `chroot`: a step where there are no namespaces to be had, as in most containers.
//!
//! ```text
//! builder ── spawns per step ──▶ keeper (subreaper) ── forks ──▶ chroot, rights dropped, Landlock, filter ──▶ the command
//!               socket over fd 0    reaps, kills what is left when the command or the builder is gone
//! ```
//!
//! The step works in a private copy of its root, which is a plain directory: nothing is mounted. What takes the place of
//! mounts is put into the copy and taken out again ([`place`]): devices, `/etc/hosts`, the script, an agent's
//! socket. There is no `/proc`.
//! What takes the place of namespaces is Landlock: no file outside the root can be opened, whatever descriptor or working
//! directory a program holds, no process outside be signalled or traced, no abstract socket reached. Processes and network
//! are the builder's; that is why this rung is taken only when it is named.

mod landlock;
mod place;

pub(crate) use landlock::Confinement;

use crate::bootstrap::{self, BootstrapError, FILE_CAPABILITIES, Privilege};
use crate::error::StepError;
use crate::parent::{self, Running};
use crate::sealed_self::{CHROOT_MARKER, SealedSelf};
use crate::spec::{Exit, MountSource, Network, StepMount, StepSpec, Stream};
use place::Placed;
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::CapabilitySet;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

/// What running a step takes beyond files.
const STEP_CAPABILITIES: [(&str, CapabilitySet); 5] = [
    ("CAP_SYS_CHROOT", CapabilitySet::SYS_CHROOT),
    ("CAP_MKNOD", CapabilitySet::MKNOD),
    ("CAP_SETUID", CapabilitySet::SETUID),
    ("CAP_SETGID", CapabilitySet::SETGID),
    ("CAP_KILL", CapabilitySet::KILL),
];

/// Takes nothing that uid 0 of a container does not have, and makes sure that steps can be confined, unless `forced`.
pub(crate) fn enter(forced: bool) -> Result<Privilege, BootstrapError> {
    if !rustix::process::geteuid().is_root() {
        return Err(BootstrapError::NotRoot);
    }
    bootstrap::require_capabilities(&FILE_CAPABILITIES)?;
    bootstrap::require_capabilities(&STEP_CAPABILITIES)?;
    if !forced && let Some(why) = landlock::missing() {
        return Err(BootstrapError::Unconfined { why });
    }
    Ok(Privilege::Container { runs: true })
}

/// Runs one step to its end in the directory `root`, a copy that nobody else uses, without mounting anything.
///
/// As [`run_step`](crate::run_step) otherwise. `aside` is an empty directory of the same file system, not below `root`: what
/// the image has where files of the step go waits there. On return everything that was put into `root` for the step is out
/// of it again, whatever the result.
pub fn run_step_in_copy(
    spec: &StepSpec,
    root: BorrowedFd<'_>,
    aside: BorrowedFd<'_>,
    forced: bool,
    cancel: BorrowedFd<'_>,
    on_output: &mut dyn FnMut(Stream, &[u8]),
) -> Result<Exit, StepError> {
    parent::check(spec)?;
    match &spec.network {
        Network::Host => {}
        Network::None => return Err(StepError::NotInChroot { what: "RUN without network" }),
        Network::User(_) => return Err(StepError::NotInChroot { what: "RUN with a network of its own" }),
    }
    let child_spec = parent::resolve(spec, root)?;
    let placed = Placed::create(root, aside, &child_spec, &sockets(&spec.mounts)?)?;
    let outcome = start(forced).and_then(|socket| {
        let running = Running::take_over(socket, &child_spec, root)?;
        running.run(cancel, on_output)
    });
    let removed = placed.remove();
    let end = outcome?.0;
    removed?;
    end.into_result(spec)
}

/// The mounts that are sockets, by target: those can be put into a root as another name of theirs.
fn sockets(mounts: &[StepMount]) -> Result<Vec<(&str, BorrowedFd<'_>)>, StepError> {
    let refused = || StepError::NotInChroot { what: "RUN --mount" };
    let mut found = Vec::new();
    for mount in mounts {
        let MountSource::Tree { root, path } = &mount.source else { return Err(refused()) };
        let is_socket = rustix::fs::fstat(root)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket);
        if !is_socket || !path.is_empty() {
            return Err(refused());
        }
        found.push((mount.target.as_str(), root.as_fd()));
    }
    Ok(found)
}

/// Starts a keeper; our end of its socket. It ends, and ends the step, when that is closed.
fn start(forced: bool) -> Result<OwnedFd, StepError> {
    let started = SealedSelf::run(|program| {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let mut keeper = Command::new(program)
            .arg0(CHROOT_MARKER)
            .arg(if forced { "forced" } else { "confined" })
            .env_clear()
            // Ctrl-C at a terminal is the builder's to decide about.
            .process_group(0)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        // Somebody has to hear of its end; it may be long after its step's.
        std::thread::Builder::new().name("chroot-keeper".to_owned()).spawn(move || keeper.wait())?;
        Ok(ours)
    });
    started.map_err(|source| StepError::Parent { action: "start the step's keeper", source })
}

/// What a step of this rung did not get, in the words of a system call.
pub(crate) fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
