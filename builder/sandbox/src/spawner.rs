//! The builder's end of the spawner: the one process inits come from, and the one init that is kept ready.
//!
//! The spawner is started by the first step and lives as long as this process. It does once what every step would do again
//! (exec, dynamic linking, the filter), so that a step costs two forks. Most of what an init does needs neither the step nor
//! its root: from the second step on (a build with two has more) one init is kept in stock, and prepares itself on another
//! core while the step before it runs.

use crate::channel;
use crate::emulation::Emulator;
use crate::error::StepError;
use crate::network::UserNetwork;
use crate::sealed_self::{SPAWNER_MARKER, SealedSelf};
use crate::watched;
use crate::wire::Flavour;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

struct Spawner {
    /// Our end of the control socket; absent until the first step.
    control: Option<OwnedFd>,
    /// The init in stock: what it is good for, and our end of its socket.
    spare: Option<Spare>,
    steps_total: u64,
}

struct Spare {
    flavour: Flavour,
    /// Does not keep the network: an init in stock is no use of it.
    network: Option<Weak<UserNetwork>>,
    emulator: Option<Weak<Emulator>>,
    socket: OwnedFd,
}

impl Spare {
    fn is_for(&self, kind: &Kind) -> bool {
        let network = self.network.as_ref().map(Weak::as_ptr);
        let emulator = self.emulator.as_ref().map(Weak::as_ptr);
        self.flavour == kind.flavour
            && network == kind.network.as_ref().map(Arc::as_ptr)
            && emulator == kind.emulator.as_ref().map(Arc::as_ptr)
    }
}

/// What an init is asked for with.
pub(crate) struct Kind {
    /// What it is told.
    pub(crate) flavour: Flavour,
    /// The network it joins, for a flavour that joins one.
    pub(crate) network: Option<Arc<UserNetwork>>,
    /// The emulator whose namespace the command enters, for a flavour that is emulated.
    pub(crate) emulator: Option<Arc<Emulator>>,
}

fn spawner() -> MutexGuard<'static, Spawner> {
    static SPAWNER: Mutex<Spawner> = Mutex::new(Spawner { control: None, spare: None, steps_total: 0 });
    SPAWNER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An init of this kind, ready or on its way: our end of its socket.
pub(crate) fn take(kind: &Kind) -> Result<OwnedFd, StepError> {
    let mut spawner = spawner();
    spawner.steps_total += 1;
    match spawner.spare.take() {
        Some(spare) if spare.is_for(kind) && is_open(spare.socket.as_fd()) => Ok(spare.socket),
        // Of another kind, or killed meanwhile: it goes, which closing its socket tells it.
        _ => spawner.request(kind),
    }
}

/// Makes sure an init is in stock, if there is likely to be a step for it.
///
/// Best effort: what fails here fails again for the next step, and is reported then.
pub(crate) fn stock(kind: &Kind) {
    let mut spawner = spawner();
    if spawner.steps_total > 1 && spawner.spare.is_none() {
        spawner.spare = spawner.request_spare(kind);
    }
}

/// Starts the spawner. Best effort, as [`stock`] is.
pub(crate) fn prepare() {
    let mut spawner = spawner();
    if spawner.control.is_none() {
        spawner.control = start().ok();
    }
}

/// Puts an init in stock for the first step.
pub(crate) fn stock_first(kind: &Kind) {
    let mut spawner = spawner();
    if spawner.steps_total == 0 && spawner.spare.is_none() {
        spawner.spare = spawner.request_spare(kind);
    }
}

/// Does without the init in stock.
pub(crate) fn discard_spare() {
    spawner().spare = None;
}

/// Whether there is somebody at the other end.
fn is_open(socket: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::empty())];
    rustix::event::poll(&mut fds, Some(&Timespec::default())) == Ok(0)
}

fn parent(action: &'static str) -> impl Fn(Errno) -> StepError {
    move |errno| StepError::Parent { action, source: errno.into() }
}

impl Spawner {
    fn request_spare(&mut self, kind: &Kind) -> Option<Spare> {
        let socket = self.request(kind).ok()?;
        let network = kind.network.as_ref().map(Arc::downgrade);
        let emulator = kind.emulator.as_ref().map(Arc::downgrade);
        Some(Spare { flavour: kind.flavour, network, emulator, socket })
    }

    fn request(&mut self, kind: &Kind) -> Result<OwnedFd, StepError> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(parent("create the step's control socket"))?;
        let request = kind.flavour.encode();
        let fds: Vec<BorrowedFd<'_>> = [theirs.as_fd()]
            .into_iter()
            .chain(kind.network.as_deref().map(UserNetwork::namespace))
            .chain(kind.emulator.as_deref().map(Emulator::namespace))
            .collect();
        if let Some(control) = &self.control {
            match channel::send_with_fds(control.as_fd(), &request, &fds) {
                Ok(()) => return Ok(ours),
                // Somebody killed it: the next one is as good.
                Err(Errno::PIPE | Errno::CONNRESET) => self.control = None,
                Err(errno) => return Err(parent("ask for the step's init")(errno)),
            }
        }
        let control = start().map_err(|source| StepError::Parent { action: "start the spawner", source })?;
        channel::send_with_fds(control.as_fd(), &request, &fds).map_err(parent("ask for the step's init"))?;
        self.control = Some(control);
        Ok(ours)
    }
}

/// Starts a spawner; our end of its control socket. It ends when that is closed, and dies with this process.
fn start() -> io::Result<OwnedFd> {
    SealedSelf::run(|program| {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut command = Command::new(program);
        command
            .arg0(SPAWNER_MARKER)
            .arg(std::process::id().to_string())
            .env_clear()
            // Ctrl-C at a terminal goes to the builder's process group; what happens to steps is the builder's to decide.
            .process_group(0)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        watched::spawn("sandbox-spawner", command)?;
        Ok(ours)
    })
}
