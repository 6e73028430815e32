//! The last mile: filter, standard streams, identity, working directory, exec.

use super::init::Order;
use super::{Filter, identity};
use crate::channel;
use crate::chroot::Confinement;
use crate::error::{AtStep as _, SetupFailure, SetupStep};
use crate::spec::RLIMITS;
use crate::sys;
use crate::wire::{ChildSpec, Flavour};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::process::{Rlimit, Signal};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, OwnedFd};

/// Searched when the environment has no `PATH`, as `execvp` of the common C libraries does.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Loads the filter, waits for the step, and becomes its command; returns why it could not, or nothing if no step came.
///
/// A filter that comes last sends init its listener over the socket, or, where there is none, a message without.
pub(super) fn command_main(
    socket: &OwnedFd,
    flavour: Flavour,
    user: Option<&OwnedFd>,
    filter: &Filter,
) -> Option<SetupFailure> {
    let order = enter_emulation(flavour, user)
        .and_then(|()| load_first(flavour, filter))
        .and_then(|()| Order::receive(socket.as_fd()));
    let prepared = match order {
        Err(failure) => Err(failure),
        Ok(None) => return None,
        Ok(Some(order)) => prepare(order, flavour, filter),
    };
    Some(match prepared.and_then(|spec| load_last(filter, socket).map(|()| spec)) {
        Err(failure) => failure,
        Ok(spec) => exec(&spec),
    })
}

/// Enters the user namespace of an emulated command. First of all: it gives every right in there, which are then limited as
/// everybody's, and the filter allows it no more.
fn enter_emulation(flavour: Flavour, user: Option<&OwnedFd>) -> Result<(), SetupFailure> {
    if !flavour.emulated {
        return Ok(());
    }
    let namespace = user.ok_or(Errno::BADF).at(SetupStep::JoinEmulation)?;
    let kind = Some(rustix::thread::LinkNameSpaceType::User);
    rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).at(SetupStep::JoinEmulation)
}

fn load_first(flavour: Flavour, filter: &Filter) -> Result<(), SetupFailure> {
    if !flavour.insecure {
        identity::limit_capabilities()?;
    }
    match filter {
        // First of all: loading it without `no_new_privs`, which stays off so that setuid programs work, takes
        // CAP_SYS_ADMIN, and it takes a tenth of a millisecond that nobody waits for here. It allows every call made from
        // here to exec.
        Filter::First(_) if flavour.insecure => Ok(()),
        Filter::First(program) => sys::load_seccomp(program).at(SetupStep::Seccomp),
        Filter::Last { .. } => Ok(()),
    }
}

fn load_last(filter: &Filter, socket: &OwnedFd) -> Result<(), SetupFailure> {
    let Filter::Last { reporting, silent } = filter else { return Ok(()) };
    let sent = match sys::load_seccomp_with_listener(reporting) {
        Ok(listener) => channel::send_with_fds(socket.as_fd(), b"l", &[listener.as_fd()]),
        // The kernel knows no notifications, or somebody around us listens already.
        Err(Errno::INVAL | Errno::BUSY) => {
            sys::load_seccomp(silent).at(SetupStep::Seccomp)?;
            channel::send_all(socket.as_fd(), b"n")
        }
        Err(errno) => Err(errno),
    };
    sent.at(SetupStep::Seccomp)
}

fn prepare(order: Order, flavour: Flavour, filter: &Filter) -> Result<ChildSpec, SetupFailure> {
    let Order { spec, root, stdout, stderr, cgroups, .. } = order;
    // pivot_root moves the root of every process that has the old one, and so this one's. Nothing here is done on trust.
    super::mounts::verify_entered(root.as_fd()).at(SetupStep::PivotRoot)?;
    // No directory is open when the image's working directory is entered: it could name it.
    drop(root);
    // No parent-death signal: the kernel kills this process when init, its parent, ends.
    new_session(&spec, &stdout, &stderr)?;
    for procs in &cgroups {
        // «Whoever writes this»: a pid of ours would mean another process to the hierarchy.
        rustix::io::write(procs, b"0").at(SetupStep::Cgroup)?;
    }
    limit_resources(&spec)?;
    match filter {
        Filter::First(_) => {
            give_output(&spec)?;
            identity::become_user(&spec, flavour.insecure)?;
        }
        Filter::Last { .. } => identity::stay_only_user(&spec)?,
    }
    enter_working_directory(&spec.cwd)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    sys::close_on_exec_from_3().at(SetupStep::CloseFds)?;
    Ok(spec)
}

fn limit_resources(spec: &ChildSpec) -> Result<(), SetupFailure> {
    for (index, soft, hard) in &spec.rlimits {
        let (name, resource) = *RLIMITS.get(*index as usize).ok_or(Errno::INVAL).at(SetupStep::Rlimit)?;
        let limit = Rlimit { current: *soft, maximum: *hard };
        rustix::process::setrlimit(resource, limit).at_path(SetupStep::Rlimit, name)?;
    }
    Ok(())
}

/// A session without terminal or input, and the step's pipes for output; or with a terminal for all three.
fn new_session(spec: &ChildSpec, stdout: &OwnedFd, stderr: &OwnedFd) -> Result<(), SetupFailure> {
    rustix::process::setsid().at(SetupStep::Session)?;
    if spec.has_console {
        rustix::process::ioctl_tiocsctty(stdout).at(SetupStep::Stdio)?;
        rustix::stdio::dup2_stdin(stdout).at(SetupStep::Stdio)?;
    } else {
        let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .at(SetupStep::Stdio)?;
        rustix::stdio::dup2_stdin(&null).at(SetupStep::Stdio)?;
    }
    rustix::stdio::dup2_stdout(stdout).at(SetupStep::Stdio)?;
    rustix::stdio::dup2_stderr(stderr).at(SetupStep::Stdio)
}

/// `/dev/stdout` opens the pipe or terminal anew, which only its owner may.
fn give_output(spec: &ChildSpec) -> Result<(), SetupFailure> {
    let (uid, gid) = (Some(Uid::from_raw(spec.uid)), Some(Gid::from_raw(spec.gid)));
    rustix::fs::fchown(rustix::stdio::stdout(), uid, gid).at(SetupStep::Stdio)?;
    rustix::fs::fchown(rustix::stdio::stderr(), uid, gid).at(SetupStep::Stdio)
}

/// What keeps a step inside where there are no namespaces.
pub(super) struct Confine {
    pub(super) filter: Vec<u8>,
    /// Absent where there is no Landlock and the user insists.
    pub(super) confinement: Option<Confinement>,
}

/// Becomes the command of a step in a chroot; returns why it could not.
pub(super) fn chroot_main(order: Order, confine: Confine) -> SetupFailure {
    match prepare_in_chroot(order, confine) {
        Err(failure) => failure,
        Ok(spec) => exec(&spec),
    }
}

fn prepare_in_chroot(order: Order, confine: Confine) -> Result<ChildSpec, SetupFailure> {
    let keeper = rustix::process::getppid();
    let Order { spec, root, stdout, stderr, .. } = order;
    sys::unblock_signals().at(SetupStep::Signals)?;
    new_session(&spec, &stdout, &stderr)?;
    give_output(&spec)?;
    rustix::process::fchdir(&root).at(SetupStep::Chroot)?;
    rustix::process::chroot(".").at(SetupStep::Chroot)?;
    rustix::process::chdir("/").at(SetupStep::Chroot)?;
    // No directory is open when the image's working directory is entered: it could name it.
    drop(root);
    limit_resources(&spec)?;
    identity::become_user_in_chroot(&spec)?;
    // A change of credentials takes it away, so only now. The keeper may have died before.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).at(SetupStep::ParentDeath)?;
    if rustix::process::getppid() != keeper {
        return Err(Errno::SRCH).at(SetupStep::ParentDeath);
    }
    if let Some(confinement) = confine.confinement {
        confinement.enforce().at(SetupStep::Landlock)?;
    }
    enter_working_directory(&spec.cwd)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    sys::close_on_exec_from_3().at(SetupStep::CloseFds)?;
    sys::load_seccomp(&confine.filter).at(SetupStep::Seccomp)?;
    Ok(spec)
}

fn enter_working_directory(path: &str) -> Result<(), SetupFailure> {
    let at_cwd = |result: Result<(), Errno>| result.at_path(SetupStep::WorkingDirectory, path);
    at_cwd(rustix::process::chdir(path))?;
    // A directory outside the root, reached through a descriptor of someone else, has no path (CVE-2024-21626).
    let cwd = rustix::process::getcwd(Vec::new()).at_path(SetupStep::WorkingDirectory, path)?;
    at_cwd(if cwd.to_bytes().starts_with(b"/") { Ok(()) } else { Err(Errno::XDEV) })
}

fn strings(items: &[String]) -> Result<Vec<CString>, SetupFailure> {
    items
        .iter()
        .map(|item| CString::new(item.as_bytes()))
        .collect::<Result<_, _>>()
        .map_err(|_| Errno::INVAL)
        .at(SetupStep::Exec)
}

fn exec(spec: &ChildSpec) -> SetupFailure {
    let (argv, env) = match (strings(&spec.argv), strings(&spec.env)) {
        (Ok(argv), Ok(env)) => (argv, env),
        (Err(failure), _) | (_, Err(failure)) => return failure,
    };
    let argv: Vec<&CStr> = argv.iter().map(CString::as_c_str).collect();
    let env: Vec<&CStr> = env.iter().map(CString::as_c_str).collect();
    let program = &spec.argv[0];
    let failure = |errno| SetupFailure { step: SetupStep::Exec, errno, detail: program.clone() };
    if program.contains('/') {
        return failure(sys::execve(argv[0], &argv, &env));
    }
    if program.is_empty() {
        return failure(Errno::NOENT);
    }
    let path = spec.env.iter().find_map(|var| var.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let mut worst = Errno::NOENT;
    for dir in path.split(':') {
        let dir = if dir.is_empty() { "." } else { dir };
        let Ok(candidate) = CString::new(format!("{dir}/{program}")) else { continue };
        match sys::execve(&candidate, &argv, &env) {
            Errno::NOENT | Errno::NOTDIR => {}
            // Goes on looking like every shell, and tells of it when nothing else is found.
            Errno::ACCESS => worst = Errno::ACCESS,
            errno => return failure(errno),
        }
    }
    failure(worst)
}
