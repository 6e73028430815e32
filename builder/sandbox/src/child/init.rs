//! Pid 1 of a step: builds the step's world, starts the command, reaps, reports how it ended.

use super::{EXIT_BROKEN, exec, mounts};
use crate::error::{AtStep as _, SetupFailure, SetupStep};
use crate::sys::{self, Fork};
use crate::wire::{ChildSpec, Report};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{DumpableBehavior, Pid, Signal, WaitOptions};
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::os::fd::{AsFd, OwnedFd};

pub(super) fn init_main(socket: &OwnedFd, spec: &ChildSpec, root: OwnedFd) -> i32 {
    let outcome = match prepare(socket, spec, root) {
        Ok(()) => start(socket, spec),
        Err(failure) => Err(failure),
    };
    let report = match outcome {
        Ok(report) => report,
        Err(failure) => failure.into(),
    };
    super::report(socket.as_fd(), &report)
}

fn prepare(socket: &OwnedFd, spec: &ChildSpec, root: OwnedFd) -> Result<(), SetupFailure> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).at(SetupStep::ParentDeath)?;
    // `getppid` is 0 across a pid namespace; a builder that died before the call above has closed its end instead.
    let mut builder = [PollFd::new(socket, PollFlags::empty())];
    rustix::event::poll(&mut builder, Some(&rustix::event::Timespec::default()))
        .at(SetupStep::ParentDeath)?;
    if builder[0].revents().contains(PollFlags::HUP) {
        return Err(Errno::SRCH).at(SetupStep::ParentDeath);
    }
    rustix::process::setsid().at(SetupStep::Session)?;
    match sys::new_session_keyring() {
        // No keys in this kernel, withheld by an outer sandbox, or the user's key quota is used up: in each case the step
        // cannot use keys either, its own filter denies the calls.
        Ok(()) | Err(Errno::NOSYS | Errno::PERM | Errno::ACCESS | Errno::DQUOT) => {}
        Err(errno) => return Err(errno).at(SetupStep::Keyring),
    }
    if spec.own_network {
        let flags = SocketFlags::CLOEXEC;
        let any = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)
            .at(SetupStep::Loopback)?;
        sys::loopback_up(any.as_fd()).at(SetupStep::Loopback)?;
    }
    // Modes given below are meant as written.
    rustix::process::umask(rustix::fs::Mode::empty());
    mounts::enter_root(spec, root)?;
    rustix::system::sethostname(spec.hostname.as_bytes()).at(SetupStep::Hostname)?;
    // From here on /proc/1 shows nothing to the step: not our program, descriptors or environment.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).at(SetupStep::Session)
}

/// Starts the command and reaps until it ends.
fn start(socket: &OwnedFd, spec: &ChildSpec) -> Result<Report, SetupFailure> {
    match sys::fork().at(SetupStep::Fork)? {
        Fork::Child => {
            let failure = exec::exec_command(spec);
            super::report(socket.as_fd(), &failure.into());
            std::process::exit(EXIT_BROKEN)
        }
        Fork::Parent(command) => {
            // What is left to do needs no right at all.
            let none = CapabilitySet::empty();
            let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
            rustix::thread::set_capabilities(None, sets).at(SetupStep::Capabilities)?;
            reap_until(command).at(SetupStep::Wait)
        }
    }
}

fn reap_until(command: Pid) -> Result<Report, Errno> {
    loop {
        let waited = rustix::io::retry_on_intr(|| rustix::process::wait(WaitOptions::empty()))?;
        let Some((pid, status)) = waited else { continue };
        if pid != command {
            continue;
        }
        // A command that could not be executed has reported that before; the parent goes by the first report.
        if let Some(signal) = status.terminating_signal() {
            return Ok(Report::Signaled(signal));
        }
        if let Some(code) = status.exit_status() {
            return Ok(Report::Exited(code));
        }
    }
}
