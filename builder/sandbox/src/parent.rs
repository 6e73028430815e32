//! The builder's side of a step: resolve, spawn, stream, kill, clean up.

use crate::channel;
use crate::error::{SetupStep, SpecError, StepError};
use crate::mount_points::MountPoints;
use crate::seccomp;
use crate::self_copy::{STEP_MARKER, SelfCopy};
use crate::spec::{Exit, Network, StepSpec, Stream};
use crate::wire::{ChildSpec, REPORT_SIZE_BYTES_MAX, Report, SPEC_SIZE_BYTES_MAX};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Signal;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;

/// Bytes read from an output pipe at once: what a pipe holds.
const CHUNK_SIZE_BYTES: usize = 64 << 10;

/// Runs one step to its end in the root file system `root`, a detached mount (or a plain directory).
///
/// Blocks; the step dies when the *thread* that called this dies. Chunks of output go to `on_output` as they come, split
/// anywhere; a slow callback slows the step down. When `cancel` becomes readable (or its other end closes) everything is
/// killed and the result is [`StepError::Cancelled`]. On return, whatever the result, nothing of the step is alive and the
/// mount points made for it are gone from `root`. A detached mount serves one step: on older kernels it is moved into it.
pub fn run_step(
    spec: &StepSpec,
    root: BorrowedFd<'_>,
    cancel: BorrowedFd<'_>,
    on_output: &mut dyn FnMut(Stream, &[u8]),
) -> Result<Exit, StepError> {
    check(spec)?;
    let child_spec = resolve(spec, root)?;
    let files: Vec<&str> = child_spec.files.iter().map(|(path, ..)| path.as_str()).collect();
    let mount_points = MountPoints::create(root, &child_spec.cwd, &files)?;
    let outcome = Running::spawn(&child_spec, root).and_then(|running| running.run(cancel, on_output));
    mount_points.remove();
    outcome.and_then(|end| end.into_result(spec))
}

fn check(spec: &StepSpec) -> Result<(), SpecError> {
    let no_nul = |what, text: &str| if text.contains('\0') { Err(SpecError::Nul { what }) } else { Ok(()) };
    if spec.argv.is_empty() {
        return Err(SpecError::EmptyArgv);
    }
    for arg in &spec.argv {
        no_nul("an argument", arg)?;
    }
    for (name, value) in &spec.env {
        if name.is_empty() || name.contains('=') {
            return Err(SpecError::VariableName { name: name.clone() });
        }
        no_nul("a variable", name)?;
        no_nul("a variable", value)?;
    }
    let path = |what, path: &str| {
        no_nul(what, path)?;
        let is_plain = path.starts_with('/') && !path.split('/').any(|c| c == "..");
        if is_plain { Ok(()) } else { Err(SpecError::Path { what, path: path.to_owned() }) }
    };
    path("the working directory", &spec.cwd)?;
    if let Some((script, _)) = &spec.script {
        path("the script's path", script)?;
    }
    let size = spec.argv.iter().map(String::len).sum::<usize>()
        + spec.env.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
        + spec.cwd.len()
        + spec.hosts.len()
        + spec.resolv_conf.len()
        + spec.script.as_ref().map_or(0, |(path, content)| path.len() + content.len());
    // Room for lengths, groups and the filter.
    let overhead = (1 << 20) + (spec.argv.len() + spec.env.len()) * 8;
    if size.saturating_add(overhead) > SPEC_SIZE_BYTES_MAX { Err(SpecError::TooLarge) } else { Ok(()) }
}

fn resolve(spec: &StepSpec, root: BorrowedFd<'_>) -> Result<ChildSpec, StepError> {
    let user = crate::passwd::resolve_user_in(root, &spec.user)?;
    let mut env = spec.env.clone();
    for (name, value) in [("HOME", &user.home), ("HOSTNAME", &spec.hostname)] {
        if !env.iter().any(|(known, _)| known == name) {
            env.push((name.to_owned(), value.clone()));
        }
    }
    let mut files = vec![
        ("/etc/hosts".to_owned(), 0o644, spec.hosts.clone()),
        ("/etc/resolv.conf".to_owned(), 0o644, spec.resolv_conf.clone()),
    ];
    if let Some((path, content)) = &spec.script {
        files.push((path.clone(), 0o755, content.clone()));
    }
    Ok(ChildSpec {
        parent_pid: std::process::id(),
        in_user_namespace: crate::in_user_namespace(),
        own_network: spec.network == Network::None,
        uid: user.uid,
        gid: user.gid,
        shm_size_bytes: spec.shm_size_bytes,
        groups: user.groups,
        argv: spec.argv.clone(),
        env: env.into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
        cwd: spec.cwd.clone(),
        hostname: spec.hostname.clone(),
        files,
        seccomp: seccomp_program()?.to_vec(),
    })
}

/// The filter, compiled once per process.
fn seccomp_program() -> Result<&'static [u8], StepError> {
    static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();
    let arch = seccomp::Arch::native().ok_or(StepError::NoSeccompTable { arch: std::env::consts::ARCH })?;
    Ok(PROGRAM.get_or_init(|| seccomp::to_bytes(&seccomp::compile(arch))))
}

fn parent(action: &'static str) -> impl Fn(Errno) -> StepError {
    move |errno| StepError::Parent { action, source: errno.into() }
}

/// How a step came to its end.
struct End {
    was_cancelled: bool,
    report: Option<Report>,
    status: ExitStatus,
}

impl End {
    fn into_result(self, spec: &StepSpec) -> Result<Exit, StepError> {
        match self.report {
            // A step that ended by itself before the cancellation reached it has its own result.
            Some(Report::Exited(code)) => Ok(Exit::Code(code)),
            Some(Report::Signaled(_)) | None if self.was_cancelled => Err(StepError::Cancelled),
            Some(Report::Signaled(signal)) => Ok(Exit::Signal(signal)),
            Some(Report::Failed { step: SetupStep::Exec, errno, .. }) => {
                let program = spec.argv[0].clone();
                if errno == libc::ENOENT && !program.contains('/') {
                    return Err(StepError::CommandNotFound { program });
                }
                let source = io::Error::from_raw_os_error(errno);
                Err(StepError::CommandNotExecutable { program, source })
            }
            Some(Report::Failed { step, errno, detail }) => {
                Err(StepError::Setup { step, detail, source: io::Error::from_raw_os_error(errno) })
            }
            Some(Report::Started) | None => Err(StepError::Died { status: self.status }),
        }
    }
}

/// A spawned sandbox. Dropping it kills everything and waits.
struct Running {
    outer: Child,
    socket: OwnedFd,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    /// Init; absent until it reports, or when setup failed before it existed.
    init: Option<OwnedFd>,
    reports: Vec<u8>,
    report: Option<Report>,
}

impl Running {
    fn spawn(spec: &ChildSpec, root: BorrowedFd<'_>) -> Result<Running, StepError> {
        let io_error = |action| move |source| StepError::Parent { action, source };
        let program = SelfCopy::get().map_err(io_error("make a sealed copy of the program"))?;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(parent("create the step's control socket"))?;
        let mut outer = Command::new(program.path())
            .arg0(STEP_MARKER)
            .env_clear()
            // Ctrl-C at a terminal goes to the builder's process group; what happens to the step is the builder's to decide.
            .process_group(0)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(io_error("start the step's process"))?;
        let stdout = outer.stdout.take().map(OwnedFd::from);
        let stderr = outer.stderr.take().map(OwnedFd::from);
        let mut running =
            Running { outer, socket: ours, stdout, stderr, init: None, reports: Vec::new(), report: None };
        let encoded = spec.encode();
        let sent = channel::send_with_fd(running.socket.as_fd(), &(encoded.len() as u64).to_le_bytes(), root)
            .and_then(|()| channel::send_all(running.socket.as_fd(), &encoded));
        match sent {
            // A child that failed before it read everything has reported why, or its status says so.
            Ok(()) | Err(Errno::PIPE | Errno::CONNRESET) => {}
            Err(errno) => return Err(parent("send the step to its process")(errno)),
        }
        // No later than the first mount of the step: from here on init can be killed by its descriptor.
        running.receive_report()?;
        Ok(running)
    }

    /// Reads what is there; `false` at the end of the conversation.
    fn receive_report(&mut self) -> Result<bool, StepError> {
        let mut buffer = [0; REPORT_SIZE_BYTES_MAX];
        let (count, fd) = match channel::receive(self.socket.as_fd(), &mut buffer) {
            Err(Errno::CONNRESET) => (0, None),
            other => other.map_err(parent("read the step's reports"))?,
        };
        self.init = self.init.take().or(fd);
        self.reports.extend(&buffer[..count]);
        let malformed = |_| StepError::Parent {
            action: "read the step's reports",
            source: io::Error::from(io::ErrorKind::InvalidData),
        };
        while let Some(report) = Report::take_from(&mut self.reports).map_err(malformed)? {
            if self.report.is_none() && report != Report::Started {
                self.report = Some(report);
            }
        }
        Ok(count > 0)
    }

    fn run(
        mut self,
        cancel: BorrowedFd<'_>,
        on_output: &mut dyn FnMut(Stream, &[u8]),
    ) -> Result<End, StepError> {
        let mut was_cancelled = false;
        let mut is_talking = true;
        let mut buffer = vec![0; CHUNK_SIZE_BYTES];
        while is_talking || self.stdout.is_some() || self.stderr.is_some() {
            let ready = self.wait_for_input(is_talking, (!was_cancelled).then_some(cancel))?;
            if ready.cancel {
                was_cancelled = true;
                self.kill();
            }
            if ready.stdout {
                drain(&mut self.stdout, Stream::Stdout, &mut buffer, on_output)?;
            }
            if ready.stderr {
                drain(&mut self.stderr, Stream::Stderr, &mut buffer, on_output)?;
            }
            if ready.socket {
                is_talking = self.receive_report()?;
            }
        }
        let status = self.reap().map_err(parent("wait for the step's process"))?;
        Ok(End { was_cancelled, report: self.report.take(), status })
    }

    fn wait_for_input(&self, is_talking: bool, cancel: Option<BorrowedFd<'_>>) -> Result<Ready, StepError> {
        let stdout = self.stdout.as_ref().map(AsFd::as_fd);
        let stderr = self.stderr.as_ref().map(AsFd::as_fd);
        let socket = is_talking.then(|| self.socket.as_fd());
        let mut fds: Vec<PollFd<'_>> = [stdout, stderr, socket, cancel]
            .into_iter()
            .flatten()
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, None))
            .map_err(parent("wait for the step"))?;
        // Hang-ups and errors count as well: reading tells what they mean.
        let mut results = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut next = |fd: Option<BorrowedFd<'_>>| fd.is_some() && results.next() == Some(true);
        Ok(Ready { stdout: next(stdout), stderr: next(stderr), socket: next(socket), cancel: next(cancel) })
    }

    /// Kills init, and with it everything in its namespace; the outer process where init does not exist yet.
    fn kill(&mut self) {
        match &self.init {
            // Gone already is as good as killed.
            Some(init) => drop(rustix::process::pidfd_send_signal(init, Signal::KILL)),
            None => drop(self.outer.kill()),
        }
    }

    /// Waits until nothing of the step is alive.
    fn reap(&mut self) -> Result<ExitStatus, Errno> {
        if let Some(init) = &self.init {
            // Even if the outer process was killed by somebody: init is readable once its whole namespace is dead.
            let mut dead = [PollFd::new(init, PollFlags::IN)];
            rustix::io::retry_on_intr(|| rustix::event::poll(&mut dead, None))?;
        }
        self.outer.wait().map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::CHILD))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After `run` both are no-ops on processes that are gone.
        self.kill();
        let _gone = self.reap();
    }
}

#[derive(Clone, Copy)]
struct Ready {
    stdout: bool,
    stderr: bool,
    socket: bool,
    cancel: bool,
}

/// Reads one chunk; closes the pipe at its end.
fn drain(
    pipe: &mut Option<OwnedFd>,
    stream: Stream,
    buffer: &mut [u8],
    on_output: &mut dyn FnMut(Stream, &[u8]),
) -> Result<(), StepError> {
    let Some(fd) = &*pipe else { return Ok(()) };
    match rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut *buffer)) {
        Ok(0) => *pipe = None,
        Ok(count) => on_output(stream, &buffer[..count]),
        Err(errno) => return Err(parent("read the step's output")(errno)),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
