//! Pid 1 of a step: builds the step's world, starts the command, reaps, reports how it ended.

use super::ledger::Ledger;
use super::{EXIT_BROKEN, Filter, Joined, Template, exec, mounts};
use crate::channel;
use crate::error::{AtStep as _, SetupFailure, SetupStep};
use crate::owner_table::OwnerTable;
use crate::sys::{self, Fork};
use crate::wire::{ChildSpec, Flavour, NetworkNamespace, Report, SPEC_SIZE_BYTES_MAX};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{DumpableBehavior, Pid, PidfdFlags, Signal, WaitOptions, WaitStatus};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub(super) fn init_main(socket: &OwnedFd, flavour: Flavour, joined: Joined, template: &Template) -> i32 {
    // For people who look at processes: executed from a descriptor, its name would be a number. Nothing depends on it.
    let _ = rustix::thread::set_name(c"rbuild-init");
    let outcome = prepare(socket, flavour, joined, template).and_then(|(command, world)| {
        // A spare nobody needed.
        let Some(order) = Order::receive(socket.as_fd())? else { return Ok(None) };
        let (mut order, mounts, owners) = order.for_command();
        enter(world, &order.spec, order.root.as_fd(), mounts)?;
        // What is only mounted is nothing that the command's process has to know.
        order.spec.files.clear();
        order.spec.mounts.clear();
        start(command, &order, owners, &template.filter).map(Some)
    });
    match outcome {
        Ok(None) => 0,
        Ok(Some(report)) => super::report(socket.as_fd(), &report),
        Err(failure) => super::report(socket.as_fd(), &failure.into()),
    }
}

/// Everything that does not depend on the step.
fn prepare(
    socket: &OwnedFd,
    flavour: Flavour,
    joined: Joined,
    template: &Template,
) -> Result<(Waiting, mounts::World), SetupFailure> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).at(SetupStep::ParentDeath)?;
    // `getppid` is 0 across a pid namespace. A spawner that died before the call above can be seen to be dead.
    let mut spawner = [PollFd::new(&template.spawner, PollFlags::IN)];
    let alive = rustix::event::poll(&mut spawner, Some(&rustix::event::Timespec::default()));
    if alive.at(SetupStep::ParentDeath)? != 0 {
        return Err(Errno::SRCH).at(SetupStep::ParentDeath);
    }
    // From here on the builder can kill the step.
    let own =
        rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).at(SetupStep::Fork)?;
    channel::send_with_fds(socket.as_fd(), &Report::Started.encode(), &[own.as_fd()]).at(SetupStep::Fork)?;
    match sys::unshare(UnshareFlags::NEWCGROUP) {
        // A kernel without cgroups has nothing to hide there.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(errno).at(SetupStep::Unshare),
    }
    rustix::process::setsid().at(SetupStep::Session)?;
    join_new_keyring()?;
    if flavour.network == NetworkNamespace::Joined {
        let namespace = joined.network.ok_or(Errno::BADF).at(SetupStep::JoinNetwork)?;
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).at(SetupStep::JoinNetwork)?;
    }
    if flavour.network == NetworkNamespace::New {
        let flags = SocketFlags::CLOEXEC;
        let any = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)
            .at(SetupStep::Loopback)?;
        sys::loopback_up(any.as_fd()).at(SetupStep::Loopback)?;
    }
    // Modes given below are meant as written.
    rustix::process::umask(rustix::fs::Mode::empty());
    let command = Waiting::fork(socket, flavour, joined.user, &template.filter)?;
    let world = mounts::World::assemble(flavour, template.in_user_namespace)?;
    Ok((command, world))
}

/// Leaves the builder's session keyring.
pub(super) fn join_new_keyring() -> Result<(), SetupFailure> {
    match sys::new_session_keyring() {
        // No keys in this kernel, withheld by an outer sandbox, or the user's key quota is used up: in each case the step
        // cannot use keys either, its own filter denies the calls.
        Ok(()) | Err(Errno::NOSYS | Errno::PERM | Errno::ACCESS | Errno::DQUOT) => Ok(()),
        Err(errno) => Err(errno).at(SetupStep::Keyring),
    }
}

/// The process that becomes the command. It loads the filter while init mounts, and then waits for the step.
struct Waiting {
    pid: Pid,
    socket: OwnedFd,
}

impl Waiting {
    fn fork(
        reports: &OwnedFd,
        flavour: Flavour,
        user: Option<OwnedFd>,
        filter: &Filter,
    ) -> Result<Waiting, SetupFailure> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .at(SetupStep::Fork)?;
        match sys::fork().at(SetupStep::Fork)? {
            Fork::Child => {
                drop(ours);
                if let Some(failure) = exec::command_main(&theirs, flavour, user.as_ref(), filter) {
                    super::report(reports.as_fd(), &failure.into());
                }
                sys::exit_now(EXIT_BROKEN)
            }
            Fork::Parent(pid) => Ok(Waiting { pid, socket: ours }),
        }
    }
}

/// The step, as it comes over a socket.
pub(super) struct Order {
    pub(super) spec: ChildSpec,
    pub(super) root: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    /// The `cgroup.procs` files that the command joins.
    pub(super) cgroups: Vec<OwnedFd>,
    /// Mounts for init, and its table of owners; then what it keeps open for as long as it lives.
    others: Vec<OwnedFd>,
}

impl Order {
    /// Waits for the length, the spec, and the descriptors that come with the first byte; `None` if there never was one.
    pub(super) fn receive(socket: BorrowedFd<'_>) -> Result<Option<Order>, SetupFailure> {
        let mut fds = Vec::new();
        let mut read_exact = |buffer: &mut [u8]| {
            let mut filled = 0;
            while filled < buffer.len() {
                let (count, more) = channel::receive(socket, &mut buffer[filled..])?;
                if count == 0 {
                    return Err(Errno::PIPE);
                }
                fds.extend(more);
                filled += count;
            }
            Ok(())
        };
        let mut length = [0; 8];
        match read_exact(&mut length) {
            Err(Errno::PIPE) => return Ok(None),
            other => other.at(SetupStep::ReceiveSpec)?,
        }
        let length = usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX);
        if length > SPEC_SIZE_BYTES_MAX {
            return Err(Errno::TOOBIG).at(SetupStep::ReceiveSpec);
        }
        let mut bytes = vec![0; length];
        read_exact(&mut bytes).at(SetupStep::ReceiveSpec)?;
        let spec = ChildSpec::decode(&bytes).map_err(|_| Errno::BADMSG).at(SetupStep::ReceiveSpec)?;
        let mut fds = fds.into_iter();
        let mut next = || fds.next().ok_or(Errno::BADF).at(SetupStep::ReceiveSpec);
        let (root, stdout, stderr) = (next()?, next()?, next()?);
        let cgroups = (0..spec.cgroups).map(|_| next()).collect::<Result<_, _>>()?;
        Ok(Some(Order { spec, root, stdout, stderr, cgroups, others: fds.collect() }))
    }

    /// Takes out what is init's alone: the mounts and the table of owners.
    fn for_command(mut self) -> (Order, impl Iterator<Item = OwnedFd>, Option<OwnerTable>) {
        let trees = self.spec.mounts.iter().filter(|mount| mount.source.has_descriptor()).count();
        let mut others = std::mem::take(&mut self.others).into_iter();
        let mounts: Vec<OwnedFd> = others.by_ref().take(trees).collect();
        let owners = self.spec.has_owner_table.then(|| others.next()).flatten();
        self.others = others.collect();
        (self, mounts.into_iter(), owners.map(OwnerTable::in_file))
    }

    /// Passes the order on.
    fn send(&self, socket: BorrowedFd<'_>) -> Result<(), Errno> {
        let mut fds = vec![self.root.as_fd(), self.stdout.as_fd(), self.stderr.as_fd()];
        fds.extend(self.cgroups.iter().map(AsFd::as_fd));
        let bytes = self.spec.encode();
        channel::send_with_fds(socket, &(bytes.len() as u64).to_le_bytes(), &fds)?;
        channel::send_all(socket, &bytes)
    }
}

fn enter(
    world: mounts::World,
    spec: &ChildSpec,
    root: BorrowedFd<'_>,
    trees: impl Iterator<Item = OwnedFd>,
) -> Result<(), SetupFailure> {
    world.enter(spec, root, trees)?;
    rustix::system::sethostname(spec.hostname.as_bytes()).at(SetupStep::Hostname)?;
    // From here on /proc/1 shows nothing to the step: not our program, descriptors or environment.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).at(SetupStep::Session)
}

/// Starts the command and reaps until it, and everything it left behind, is gone.
fn start(
    command: Waiting,
    order: &Order,
    owners: Option<OwnerTable>,
    filter: &Filter,
) -> Result<Report, SetupFailure> {
    // What is left to do needs one right: to kill what other users of the step left behind.
    let kill = CapabilitySet::KILL;
    let answers_calls = matches!(filter, Filter::Last { .. });
    let kept = if answers_calls { kill | LEDGER } else { kill };
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).at(SetupStep::Capabilities)?;
    match order.send(command.socket.as_fd()) {
        // It failed before, has reported that, and the builder goes by the first report.
        Ok(()) | Err(Errno::PIPE | Errno::CONNRESET) => {}
        Err(errno) => return Err(errno).at(SetupStep::ReceiveSpec),
    }
    let listener = if answers_calls { receive_listener(command.socket.as_fd())? } else { None };
    drop(command.socket);
    let report = match listener {
        Some(listener) => answer_until(command.pid, &Ledger::new(listener, owners, &order.spec))?,
        None => reap_until(command.pid).at(SetupStep::Wait)?,
    };
    kill_the_rest().at(SetupStep::Wait)?;
    Ok(report)
}

/// What the ledger takes: every file of the step can be opened and marked, and every process's arguments read. All within
/// the step's own namespaces.
const LEDGER: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::SYS_PTRACE);

/// The listener of the command's filter; `None` if it has none, or failed before.
fn receive_listener(socket: BorrowedFd<'_>) -> Result<Option<OwnedFd>, SetupFailure> {
    let mut byte = [0];
    match channel::receive(socket, &mut byte) {
        Ok((_, fds)) => Ok(fds.into_iter().next()),
        Err(Errno::CONNRESET) => Ok(None),
        Err(errno) => Err(errno).at(SetupStep::Ledger),
    }
}

/// Answers the calls of the step, and reaps, until the command is gone.
fn answer_until(command: Pid, ledger: &Ledger<'_>) -> Result<Report, SetupFailure> {
    let signals = sys::child_signals().at(SetupStep::Wait)?;
    // It may have gone before the signals were looked for.
    let mut is_signalled = true;
    loop {
        if is_signalled {
            let mut buffer = [0; 1024];
            // Empty already when this is the first time; what came is looked for below.
            let _none = rustix::io::read(&signals, &mut buffer);
            while let Some((pid, status)) = reap_ready().at(SetupStep::Wait)? {
                if let Some(report) = (pid == command).then(|| ended(status)).flatten() {
                    return Ok(report);
                }
            }
        }
        let mut fds = [
            PollFd::from_borrowed_fd(ledger.listener(), PollFlags::IN),
            PollFd::new(&signals, PollFlags::IN),
        ];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, None)).at(SetupStep::Wait)?;
        let [calls, signal] = [fds[0].revents(), fds[1].revents()];
        is_signalled = !signal.is_empty();
        if calls.contains(PollFlags::IN) {
            ledger.answer_next()?;
        } else if !calls.is_empty() && !is_signalled {
            // Nobody is left who could call, the command included.
            return reap_until(command).at(SetupStep::Wait);
        }
    }
}

/// A child that has ended, if one has.
pub(super) fn reap_ready() -> Result<Option<(Pid, WaitStatus)>, Errno> {
    match try_reap() {
        Err(Errno::CHILD) => Ok(None),
        other => other,
    }
}

/// [`reap_ready`], which fails with ECHILD when there are no children.
pub(super) fn try_reap() -> Result<Option<(Pid, WaitStatus)>, Errno> {
    rustix::io::retry_on_intr(|| rustix::process::wait(WaitOptions::NOHANG))
}

fn reap_until(command: Pid) -> Result<Report, Errno> {
    loop {
        let waited = rustix::io::retry_on_intr(|| rustix::process::wait(WaitOptions::empty()))?;
        let Some((pid, status)) = waited else { continue };
        // A command that could not be executed has reported that before; the parent goes by the first report.
        if let Some(report) = (pid == command).then(|| ended(status)).flatten() {
            return Ok(report);
        }
    }
}

pub(super) fn ended(status: WaitStatus) -> Option<Report> {
    let by_signal = status.terminating_signal().map(Report::Signaled);
    by_signal.or_else(|| status.exit_status().map(Report::Exited))
}

/// Kills and reaps whatever is left of the step.
///
/// The kernel does the same when init exits. Doing it before lets the builder go on while the kernel takes our mounts down.
fn kill_the_rest() -> Result<(), Errno> {
    // The call below is for pid 1 of a namespace only: on the host it would kill the host.
    if rustix::process::getpid() != Pid::INIT {
        return Err(Errno::PERM);
    }
    // «Process group 1» is how kill(2) spells everyone but the caller and init. Signals are sent and processes forked under
    // one lock, so nothing slips through; and what loses its parent becomes our child.
    match rustix::process::kill_process_group(Pid::INIT, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(errno) => return Err(errno),
    }
    loop {
        match rustix::io::retry_on_intr(|| rustix::process::wait(WaitOptions::empty())) {
            Err(Errno::CHILD) => return Ok(()),
            other => drop(other?),
        }
    }
}
