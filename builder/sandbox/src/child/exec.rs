//! The last mile: filter, standard streams, identity, working directory, exec.

use super::identity;
use super::init::Order;
use crate::error::{AtStep as _, SetupFailure, SetupStep};
use crate::spec::RLIMITS;
use crate::sys;
use crate::wire::{ChildSpec, Flavour};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::process::Rlimit;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, OwnedFd};

/// Searched when the environment has no `PATH`, as `execvp` of the common C libraries does.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Loads the filter, waits for the step, and becomes its command; returns why it could not, or nothing if no step came.
pub(super) fn command_main(socket: &OwnedFd, flavour: Flavour, seccomp: &[u8]) -> Option<SetupFailure> {
    // First of all: loading it without `no_new_privs`, which stays off so that setuid programs work, takes CAP_SYS_ADMIN,
    // and it takes a tenth of a millisecond that nobody waits for here. It allows every call made from here to exec.
    let confined = match flavour.insecure {
        true => Ok(()),
        false => {
            identity::limit_capabilities().and_then(|()| sys::load_seccomp(seccomp).at(SetupStep::Seccomp))
        }
    };
    let order = confined.and_then(|()| Order::receive(socket.as_fd()));
    match order {
        Err(failure) => Some(failure),
        Ok(None) => None,
        Ok(Some(order)) => Some(match prepare(order, flavour) {
            Err(failure) => failure,
            Ok(spec) => exec(&spec),
        }),
    }
}

fn prepare(order: Order, flavour: Flavour) -> Result<ChildSpec, SetupFailure> {
    let Order { spec, root, stdout, stderr, cgroups, .. } = order;
    // pivot_root moves the root of every process that has the old one, and so this one's. Nothing here is done on trust.
    super::mounts::verify_entered(root.as_fd()).at(SetupStep::PivotRoot)?;
    // No directory is open when the image's working directory is entered: it could name it.
    drop(root);
    // No parent-death signal: the kernel kills this process when init, its parent, ends.
    rustix::process::setsid().at(SetupStep::Session)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .at(SetupStep::Stdio)?;
    rustix::stdio::dup2_stdin(&null).at(SetupStep::Stdio)?;
    rustix::stdio::dup2_stdout(&stdout).at(SetupStep::Stdio)?;
    rustix::stdio::dup2_stderr(&stderr).at(SetupStep::Stdio)?;
    // `/dev/stdout` opens the pipe anew, which only its owner may.
    let (uid, gid) = (Some(Uid::from_raw(spec.uid)), Some(Gid::from_raw(spec.gid)));
    rustix::fs::fchown(rustix::stdio::stdout(), uid, gid).at(SetupStep::Stdio)?;
    rustix::fs::fchown(rustix::stdio::stderr(), uid, gid).at(SetupStep::Stdio)?;
    for procs in &cgroups {
        // «Whoever writes this»: a pid of ours would mean another process to the hierarchy.
        rustix::io::write(procs, b"0").at(SetupStep::Cgroup)?;
    }
    for (index, soft, hard) in &spec.rlimits {
        let (name, resource) = *RLIMITS.get(*index as usize).ok_or(Errno::INVAL).at(SetupStep::Rlimit)?;
        let limit = Rlimit { current: *soft, maximum: *hard };
        rustix::process::setrlimit(resource, limit).at_path(SetupStep::Rlimit, name)?;
    }
    identity::become_user(&spec, flavour.insecure)?;
    enter_working_directory(&spec.cwd)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    sys::close_on_exec_from_3().at(SetupStep::CloseFds)?;
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
