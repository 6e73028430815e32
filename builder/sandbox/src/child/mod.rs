//! The re-exec'd child: single-threaded from exec to exec, so it may fork and unshare.
//!
//! ```text
//! builder ── spawns ──▶ outer ── forks ──▶ init (pid 1 of the step) ── forks ──▶ the command
//!              spec + root mount over fd 0     mounts, pivots, reaps, reports      drops rights, execs
//! ```
//!
//! Every link dies with the one before it (parent-death signals), and the kernel kills whatever is in the pid namespace
//! with init. The outer process only waits: when it ends, the namespace is empty. The socket the reports go over is
//! close-on-exec and never reaches the command.

mod devices;
mod exec;
mod identity;
mod init;
mod mounts;

use crate::channel;
use crate::error::{AtStep as _, SetupFailure, SetupStep};
use crate::sys::{self, Fork};
use crate::wire::{ChildSpec, Report, SPEC_SIZE_BYTES_MAX};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, Signal, WaitOptions};
use rustix::thread::UnshareFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Exit status of child processes that could not report over the socket; the parent only ever prints it.
const EXIT_BROKEN: i32 = 121;

/// The body of the outer process; the socket is standard input.
pub(crate) fn outer_main() -> i32 {
    let closed = sys::close_from_3().at(SetupStep::CloseFds);
    let Ok(socket) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) else { return EXIT_BROKEN };
    match closed.and_then(|()| outer(&socket)) {
        Ok(code) => code,
        Err(failure) => report(socket.as_fd(), &failure.into()),
    }
}

/// Sends a report; the status to exit with.
fn report(socket: BorrowedFd<'_>, report: &Report) -> i32 {
    match channel::send_all(socket, &report.encode()) {
        Ok(()) => 0,
        // Nobody is listening any more: the builder is gone.
        Err(_) => EXIT_BROKEN,
    }
}

fn outer(socket: &OwnedFd) -> Result<i32, SetupFailure> {
    let (spec, root) = receive_spec(socket.as_fd())?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).at(SetupStep::ParentDeath)?;
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get().cast_unsigned());
    if parent != spec.parent_pid {
        return Err(Errno::SRCH).at(SetupStep::ParentDeath);
    }
    // Where the kernel allows it (a plain directory; since 6.15 also a detached mount) the step gets a mount of its own and
    // the builder's stays detached. Otherwise the builder's own mount is moved in.
    let root = match crate::mount::bind(root.as_fd()) {
        Ok(clone) => clone,
        Err(Errno::INVAL) => root,
        Err(errno) => return Err(errno).at(SetupStep::CloneRoot),
    };
    let mut namespaces =
        UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    if spec.own_network {
        namespaces |= UnshareFlags::NEWNET;
    }
    sys::unshare(namespaces).at(SetupStep::Unshare)?;
    match sys::unshare(UnshareFlags::NEWCGROUP) {
        // A kernel without cgroups has nothing to hide there.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(errno).at(SetupStep::Unshare),
    }
    match sys::fork().at(SetupStep::Fork)? {
        Fork::Child => std::process::exit(init::init_main(socket, &spec, root)),
        Fork::Parent(pid) => {
            let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).at(SetupStep::Fork)?;
            channel::send_with_fd(socket.as_fd(), &Report::Started.encode(), pidfd.as_fd())
                .at(SetupStep::Fork)?;
            // Init's zombie is reaped only after everything in its namespace is gone.
            rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(pid), WaitOptions::empty()))
                .at(SetupStep::Wait)?;
            Ok(0)
        }
    }
}

/// Reads the length, the spec, and the root mount that comes with the first byte.
fn receive_spec(socket: BorrowedFd<'_>) -> Result<(ChildSpec, OwnedFd), SetupFailure> {
    let mut root = None;
    let mut read_exact = |buffer: &mut [u8]| {
        let mut filled = 0;
        while filled < buffer.len() {
            let (count, fd) = channel::receive(socket, &mut buffer[filled..])?;
            if count == 0 {
                return Err(Errno::PIPE);
            }
            root = fd.or(root.take());
            filled += count;
        }
        Ok(())
    };
    let mut length = [0; 8];
    read_exact(&mut length).at(SetupStep::ReceiveSpec)?;
    let length = usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > SPEC_SIZE_BYTES_MAX {
        return Err(Errno::TOOBIG).at(SetupStep::ReceiveSpec);
    }
    let mut bytes = vec![0; length];
    read_exact(&mut bytes).at(SetupStep::ReceiveSpec)?;
    let spec = ChildSpec::decode(&bytes).map_err(|_| Errno::BADMSG).at(SetupStep::ReceiveSpec)?;
    let root = root.ok_or(Errno::BADF).at(SetupStep::ReceiveSpec)?;
    Ok((spec, root))
}
