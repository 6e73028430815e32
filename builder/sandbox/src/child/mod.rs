//! The re-exec'd children: single-threaded from exec to exec, so they may fork and enter namespaces.
//!
//! ```text
//! builder ── spawns once ──▶ spawner ── forks per step ──▶ init (pid 1 of the step) ── forks ──▶ the command
//!              control socket over fd 0      builds everything but the root, waits for the spec      drops rights, execs
//!                                            and the root, pivots, reaps, reports
//! ```
//!
//! What does not depend on the step is done once, in the spawner: exec, filter, signals, bounding set. The spawner never
//! sees a spec: it passes on the socket each init gets its own over. Every link dies with the one before it (parent-death
//! signals), and the kernel kills whatever is in the pid namespace with init. Sockets are close-on-exec and never reach the
//! command.

pub(crate) mod devices;
mod exec;
mod identity;
mod init;
mod keeper;
mod ledger;
mod mounts;
mod step_mounts;

use crate::channel;
use crate::error::{AtStep as _, SetupFailure, SetupStep};
use crate::seccomp::{self, Owners, Policy};
use crate::sys::{self, Fork};
use crate::wire::{Flavour, NetworkNamespace, Report};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, Signal, WaitOptions};
use rustix::thread::UnshareFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Exit status of child processes that could not report over the socket; nobody looks at it.
const EXIT_BROKEN: i32 = 121;

/// Namespaces that exist already.
struct Joined {
    /// For a flavour that joins one.
    network: Option<OwnedFd>,
    /// For an emulated command.
    user: Option<OwnedFd>,
}

/// What every init starts from.
struct Template {
    in_user_namespace: bool,
    filter: Filter,
    /// The spawner itself, for an init to notice that it is gone.
    spawner: OwnedFd,
}

pub(crate) use exec::DEFAULT_PATH;
pub(crate) use keeper::keeper_main;

/// The system call filter of steps.
enum Filter {
    /// Everything the command does after it is allowed, and loading it takes rights that are dropped later: first of all.
    First(Vec<u8>),
    /// Where one id is mapped: answers calls for it, and so comes last. Without a listener where the system has none to
    /// give.
    Last { reporting: Vec<u8>, silent: Vec<u8> },
}

impl Filter {
    fn new() -> Result<Filter, SetupFailure> {
        let arch = seccomp::Arch::native().ok_or(Errno::NOSYS).at(SetupStep::Seccomp)?;
        let compile = |policy| seccomp::to_bytes(&seccomp::compile(arch, policy));
        Ok(if crate::idmap::is_single_id() {
            Filter::Last {
                reporting: compile(Policy::SingleId(Owners::Notified)),
                silent: compile(Policy::SingleId(Owners::Ignored)),
            }
        } else {
            Filter::First(compile(Policy::Namespaced))
        })
    }
}

/// The body of the spawner; the control socket is standard input, the only argument the builder's pid.
pub(crate) fn spawner_main() -> i32 {
    let closed = sys::close_from_3().at(SetupStep::CloseFds);
    let Ok(control) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) else { return EXIT_BROKEN };
    let template = closed.and_then(|()| Template::new());
    serve(control, &template)
}

/// Gives up what the builder's own start left here: standard input, ignored and blocked signals.
fn start_clean() -> Result<(), SetupFailure> {
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .at(SetupStep::Stdio)?;
    rustix::stdio::dup2_stdin(&null).at(SetupStep::Stdio)?;
    for signal in 1..=64 {
        // KILL and STOP cannot be changed, nor ignored.
        let _unchangeable = sys::default_signal(signal);
    }
    sys::unblock_signals().at(SetupStep::Signals)
}

impl Template {
    fn new() -> Result<Template, SetupFailure> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).at(SetupStep::ParentDeath)?;
        let builder = std::env::args().nth(1).and_then(|pid| pid.parse().ok()).ok_or(Errno::INVAL);
        let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
        if parent != builder.at(SetupStep::ParentDeath)? {
            return Err(Errno::SRCH).at(SetupStep::ParentDeath);
        }
        // The socket lives on as a copy only the spawner has: an init must not keep the builder's requests from failing.
        start_clean()?;
        let spawner = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
            .at(SetupStep::ParentDeath)?;
        Ok(Template { in_user_namespace: crate::in_user_namespace(), filter: Filter::new()?, spawner })
    }
}

/// Starts an init for each request until the builder is gone: a flavour, with the init's end of its socket attached,
/// and the network namespace that a flavour joins.
fn serve(control: OwnedFd, template: &Result<Template, SetupFailure>) -> i32 {
    loop {
        let mut request = [0; Flavour::SIZE_BYTES];
        let (count, fds) = match channel::receive(control.as_fd(), &mut request) {
            Ok((0, _)) => return 0,
            Err(_) => return EXIT_BROKEN,
            Ok(request) => request,
        };
        // Of earlier steps. They would do no harm, and are gone with the spawner at last.
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
        let mut fds = fds.into_iter();
        let (Some(socket), Ok(flavour)) = (fds.next(), Flavour::decode(&request[..count])) else {
            return EXIT_BROKEN;
        };
        let joined = (flavour.network == NetworkNamespace::Joined).then(|| fds.next()).flatten();
        let emulated = flavour.emulated.then(|| fds.next()).flatten();
        let joined = Joined { network: joined, user: emulated };
        let template = match template {
            Ok(template) => template,
            Err(failure) => {
                report(socket.as_fd(), &failure.clone().into());
                continue;
            }
        };
        match sys::fork_into(namespaces(flavour)).at(SetupStep::Unshare) {
            Ok(Fork::Child) => {
                drop(control);
                sys::exit_now(init::init_main(&socket, flavour, joined, template))
            }
            Ok(Fork::Parent(_)) => {}
            Err(failure) => drop(report(socket.as_fd(), &failure.into())),
        }
    }
}

fn namespaces(flavour: Flavour) -> UnshareFlags {
    let always = UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    if flavour.network == NetworkNamespace::New { always | UnshareFlags::NEWNET } else { always }
}

/// Sends a report; the status to exit with.
fn report(socket: BorrowedFd<'_>, report: &Report) -> i32 {
    match channel::send_all(socket, &report.encode()) {
        Ok(()) => 0,
        // Nobody is listening any more: the builder is gone.
        Err(_) => EXIT_BROKEN,
    }
}
