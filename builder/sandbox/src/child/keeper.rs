//! The keeper of a step in a chroot: what init is where there is a pid namespace.
//!
//! It is the subreaper of everything the step starts: whatever loses its parent becomes its child, and no other process
//! reaps that, so a pid it finds among its children is theirs until it has waited for it. When the command is gone, or the
//! builder, which it sees by the socket, it kills its children until there are none.

use super::EXIT_BROKEN;
use super::exec::{self, Confine};
use super::init::{self, Order};
use crate::channel;
use crate::chroot::Confinement;
use crate::error::{AtStep as _, SetupFailure, SetupStep};
use crate::seccomp::{self, Policy};
use crate::sys::{self, Fork};
use crate::wire::Report;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

/// Between two looks for what is left: those that were killed need a moment to be gone.
const LEFT_NANOSECONDS: i64 = 5_000_000;

/// The body of the keeper; the socket is standard input, the only argument whether it must confine.
pub(crate) fn keeper_main() -> i32 {
    let closed = sys::close_from_3().at(SetupStep::CloseFds);
    let Ok(socket) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) else { return EXIT_BROKEN };
    // For people who look at processes. Nothing depends on it.
    let _ = rustix::thread::set_name(c"rbuild-keeper");
    let is_forced = std::env::args().nth(1).is_some_and(|arg| arg == "forced");
    match closed.and_then(|()| keep(&socket, is_forced)) {
        Ok(None) => 0,
        Ok(Some(report)) => super::report(socket.as_fd(), &report),
        Err(failure) => super::report(socket.as_fd(), &failure.into()),
    }
}

fn keep(socket: &OwnedFd, is_forced: bool) -> Result<Option<Report>, SetupFailure> {
    super::start_clean()?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).at(SetupStep::Subreaper)?;
    init::join_new_keyring()?;
    let own =
        rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).at(SetupStep::Fork)?;
    channel::send_with_fds(socket.as_fd(), &Report::Started.encode(), &[own.as_fd()]).at(SetupStep::Fork)?;
    let Some(order) = Order::receive(socket.as_fd())? else { return Ok(None) };
    let arch = seccomp::Arch::native().ok_or(Errno::NOSYS).at(SetupStep::Seccomp)?;
    let filter = seccomp::to_bytes(&seccomp::compile(arch, Policy::Chroot));
    let confinement = Confinement::to(order.root.as_fd()).at(SetupStep::Landlock)?;
    if confinement.is_none() && !is_forced {
        return Err(Errno::NOSYS).at(SetupStep::Landlock);
    }
    let signals = sys::child_signals().at(SetupStep::Wait)?;
    let command = match sys::fork().at(SetupStep::Fork)? {
        Fork::Child => {
            let failure = exec::chroot_main(order, Confine { filter, confinement });
            super::report(socket.as_fd(), &failure.into());
            std::process::exit(EXIT_BROKEN)
        }
        Fork::Parent(pid) => pid,
    };
    drop(order);
    let report = watch(command, socket.as_fd(), signals.as_fd()).at(SetupStep::Wait)?;
    kill_children().at(SetupStep::Wait)?;
    Ok(report)
}

/// Reaps until the command or the builder is gone; `None` for the builder.
fn watch(command: Pid, socket: BorrowedFd<'_>, signals: BorrowedFd<'_>) -> Result<Option<Report>, Errno> {
    loop {
        let mut buffer = [0; 1024];
        // Never blocks; what came is looked for next.
        let _none = rustix::io::read(signals, &mut buffer);
        while let Some((pid, status)) = init::reap_ready()? {
            if let Some(report) = (pid == command).then(|| init::ended(status)).flatten() {
                return Ok(Some(report));
            }
        }
        let mut fds = [
            PollFd::from_borrowed_fd(signals, PollFlags::IN),
            PollFd::from_borrowed_fd(socket, PollFlags::IN),
        ];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, None))?;
        if !fds[1].revents().is_empty() {
            // Nothing is ever sent any more but the end.
            return Ok(None);
        }
    }
}

/// Kills and reaps until there is no child left, and so nothing of the step.
fn kill_children() -> Result<(), Errno> {
    loop {
        for pid in children()? {
            // Nobody else waits for it, so it still is our child, dead or alive.
            match rustix::process::kill_process(pid, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err(errno),
            }
        }
        loop {
            match init::try_reap() {
                Err(Errno::CHILD) => return Ok(()),
                Ok(None) => break,
                other => drop(other?),
            }
        }
        let pause = Timespec { tv_sec: 0, tv_nsec: LEFT_NANOSECONDS };
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut [], Some(&pause)))?;
    }
}

/// Pids of our children, as the kernel lists them, or, where it does not, found among all processes.
fn children() -> Result<Vec<Pid>, Errno> {
    let own = rustix::process::getpid().as_raw_nonzero();
    let pid = |text: &str| text.parse().ok().and_then(Pid::from_raw);
    if let Ok(text) = std::fs::read_to_string(format!("/proc/self/task/{own}/children")) {
        return Ok(text.split_whitespace().filter_map(pid).collect());
    }
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc").map_err(crate::chroot::errno)? {
        let name = entry.map_err(crate::chroot::errno)?.file_name();
        let Some(pid) = name.to_str().and_then(pid) else { continue };
        // Gone meanwhile, and so not ours: ours stay until we wait for them.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())) else {
            continue;
        };
        // «pid (name) state parent …», and a name may hold anything.
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        if parent == Some(own.to_string().as_str()) {
            children.push(pid);
        }
    }
    Ok(children)
}
