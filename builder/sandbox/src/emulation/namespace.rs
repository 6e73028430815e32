//! The user namespace in which programs for another processor run, and the child that makes it.

use super::machine::{self, Machine};
use crate::idmap::{self, IdRange};
use crate::sealed_self::EMULATION_MARKER;
use crate::{channel, mount, sys, watched};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Signal;
use rustix::thread::UnshareFlags;
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

/// The child answers in a millisecond.
const ANSWER_SECONDS_MAX: i64 = 10;
const ANSWER_SIZE_BYTES_MAX: usize = 1 << 10;
const IN_NAMESPACE: &[u8] = b"in";
const READY: &[u8] = b"ready";

/// Why a step for another processor cannot be emulated; [`remedy`](EmulationError::remedy) says what to do.
#[derive(Debug, thiserror::Error)]
pub enum EmulationError {
    /// There is no emulator.
    #[error("`qemu-{qemu}-static` is not installed")]
    NotInstalled {
        /// The processor, as QEMU names it.
        qemu: &'static str,
    },
    /// The child could not be started or talked to.
    #[error("start the process that registers the emulator")]
    Registrar {
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel gives a user namespace no registrations of its own.
    #[error("register `{program}` for the steps only: {why}")]
    Refused {
        /// The emulator.
        program: String,
        /// What the kernel said to which step.
        why: String,
    },
}

impl EmulationError {
    /// What the user or an administrator can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            EmulationError::NotInstalled { .. } => {
                "install the package `qemu-user-static`: apt-get install qemu-user-static"
            }
            EmulationError::Registrar { .. } => "make sure /proc is mounted",
            EmulationError::Refused { .. } => {
                "use Linux 6.7 or newer with CONFIG_BINFMT_MISC, or register the emulator with the kernel: \
                 apt-get install qemu-user-static binfmt-support"
            }
        }
    }
}

/// A user namespace in which programs for one other processor run. It ends with this value.
#[derive(Debug)]
pub struct Emulator {
    namespace: OwnedFd,
    /// Detached: the registrations go with it.
    _registrations: OwnedFd,
}

/// Emulators are the same when they are one namespace.
impl PartialEq for Emulator {
    fn eq(&self, other: &Emulator) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Emulator {}

impl Emulator {
    /// Makes the namespace, with the installed emulator registered in it: some milliseconds.
    pub fn start(machine: &Machine) -> Result<Emulator, EmulationError> {
        let (program, file) =
            installed(machine).ok_or(EmulationError::NotInstalled { qemu: machine.qemu })?;
        let registrar = |source: io::Error| EmulationError::Registrar { source };
        let refused = |why| EmulationError::Refused { program: program.clone(), why };
        let ours = spawn(machine, file).map_err(registrar)?;
        let (said, _) = receive(ours.as_fd()).map_err(registrar)?;
        let Some(pid) = said.strip_prefix(IN_NAMESPACE) else { return Err(refused(words(&said))) };
        let pid = str::from_utf8(pid).ok().and_then(|pid| pid.trim().parse::<u32>().ok());
        let pid = pid.ok_or_else(|| registrar(io::ErrorKind::InvalidData.into()))?;
        for kind in ["uid_map", "gid_map"] {
            let own = std::fs::read_to_string(format!("/proc/self/{kind}")).map_err(registrar)?;
            let written = std::fs::write(format!("/proc/{pid}/{kind}"), identity(&own));
            written.map_err(|error| refused(format!("map ids: {error}")))?;
        }
        channel::send_all(ours.as_fd(), b"m").map_err(|errno| registrar(errno.into()))?;
        let (said, fds) = receive(ours.as_fd()).map_err(registrar)?;
        let mut fds = fds.into_iter();
        match (&said[..], fds.next(), fds.next()) {
            (READY, Some(namespace), Some(registrations)) => {
                Ok(Emulator { namespace, _registrations: registrations })
            }
            _ => Err(refused(words(&said))),
        }
    }

    /// Whether there is a program that can be registered for the machine.
    pub(super) fn is_installed(machine: &Machine) -> bool {
        installed(machine).is_some()
    }

    pub(crate) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

/// Every id of this namespace, as it is.
fn identity(own: &str) -> String {
    let mut text = String::new();
    for IdRange { inside, count, .. } in idmap::parse_proc_map(own) {
        let _ = writeln!(text, "{inside} {inside} {count}");
    }
    text
}

fn words(said: &[u8]) -> String {
    if said.is_empty() { "its process died".to_owned() } else { String::from_utf8_lossy(said).into_owned() }
}

/// What is on this process's `PATH`, and whole in itself: the kernel starts it in the root of the step, where nothing
/// that it would load is.
fn installed(machine: &Machine) -> Option<(String, OwnedFd)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<_> = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).collect();
    // Newer Debians have it without the suffix.
    let names = [format!("qemu-{}-static", machine.qemu), format!("qemu-{}", machine.qemu)];
    names.iter().flat_map(|name| dirs.iter().map(move |dir| dir.join(name))).find_map(|file| {
        let fd = rustix::fs::open(&file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        machine::is_static(&fd).is_ok_and(|is| is).then(|| (file.display().to_string(), fd))
    })
}

/// Starts the child; our end of its socket.
fn spawn(machine: &Machine, program: OwnedFd) -> io::Result<OwnedFd> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(EMULATION_MARKER)
        .arg(std::process::id().to_string())
        .arg(machine.architecture)
        .env_clear()
        .process_group(0)
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    watched::spawn("sandbox-emulation", command)?;
    channel::send_with_fds(ours.as_fd(), b"p", &[program.as_fd()])?;
    Ok(ours)
}

/// One message; empty when the child is gone.
fn receive(socket: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let timeout = Timespec { tv_sec: ANSWER_SECONDS_MAX, tv_nsec: 0 };
    let mut answer = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
    if rustix::io::retry_on_intr(|| rustix::event::poll(&mut answer, Some(&timeout)))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut bytes = vec![0; ANSWER_SIZE_BYTES_MAX];
    match channel::receive(socket, &mut bytes) {
        Err(Errno::CONNRESET) => Ok((Vec::new(), Vec::new())),
        Err(errno) => Err(errno.into()),
        Ok((count, fds)) => {
            bytes.truncate(count);
            Ok((bytes, fds))
        }
    }
}

/// The body of the child; the control socket is standard input.
pub(crate) fn registrar_main() -> i32 {
    let Ok(control) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) else { return 1 };
    match register(control.as_fd()) {
        Ok(()) => 0,
        Err(why) => {
            // A builder that is gone needs no reason.
            let _gone = channel::send_all(control.as_fd(), why.as_bytes());
            1
        }
    }
}

fn register(control: BorrowedFd<'_>) -> Result<(), String> {
    fn failed(what: &'static str) -> impl Fn(Errno) -> String {
        move |errno| format!("{what}: {}", io::Error::from(errno))
    }
    let mut args = std::env::args().skip(1);
    let builder: Option<i32> = args.next().and_then(|pid| pid.parse().ok());
    let machine =
        args.next().and_then(|name| Machine::of_architecture(&name)).ok_or("malformed command line")?;
    let (_, fds) = channel::receive(control, &mut [0]).map_err(failed("receive the emulator"))?;
    let program = fds.into_iter().next().ok_or("no emulator came")?;

    // Mounting takes rights over the mount namespace as well. Nothing is attached in it.
    sys::unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS).map_err(failed("create a user namespace"))?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(failed("die with the builder"))?;
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    if Some(parent) != builder {
        return Err("the builder is gone".to_owned());
    }
    let hello = [IN_NAMESPACE, std::process::id().to_string().as_bytes()].concat();
    channel::send_all(control, &hello).map_err(failed("answer the builder"))?;
    if channel::receive(control, &mut [0]).map_err(failed("wait for the maps"))?.0 == 0 {
        return Ok(());
    }

    let inert = mount::INERT | MountAttrFlags::MOUNT_ATTR_RELATIME;
    let registrations = mount::new_fs("binfmt_misc", &[], inert).map_err(failed("mount binfmt_misc"))?;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&registrations, "register", flags, Mode::empty())
        .map_err(failed("open binfmt_misc/register"))?;
    let line = registration(machine, program.as_fd());
    rustix::io::write(&file, line.as_bytes()).map_err(failed("write to binfmt_misc/register"))?;
    let namespace = rustix::fs::open("/proc/self/ns/user", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed("open the user namespace"))?;
    channel::send_with_fds(control, READY, &[namespace.as_fd(), registrations.as_fd()])
        .map_err(failed("answer the builder"))
}

/// A line for `binfmt_misc/register`. Flags: F opens the emulator now, here, so that none is looked for in the image; O and C
/// give it the program as an open file, and a setuid program's rights as without emulation; P tells it the program's own
/// name for itself (QEMU asks the kernel whether it did, from 6.0 on).
fn registration(machine: &Machine, program: BorrowedFd<'_>) -> String {
    let hex = |bytes: &[u8]| {
        bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "\\x{byte:02x}");
            text
        })
    };
    let (magic, mask) = machine.magic();
    let interpreter = format!("/proc/self/fd/{}", program.as_raw_fd());
    format!(":qemu-{}:M:0:{}:{}:{interpreter}:POCF", machine.qemu, hex(&magic), hex(&mask))
}
