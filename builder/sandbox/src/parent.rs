//! The builder's side of a step: resolve, spawn, stream, kill, clean up.

use crate::error::{SetupStep, SpecError, StepError};
use crate::mount_points::{Kind, MountPoints};
use crate::owner_table::{Inode, OwnerTable};
use crate::spec::{Console, Exit, MountSource, Network, StepMount, StepSpec, Stream};
use crate::wire::{ChildSpec, Flavour, NetworkNamespace, REPORT_SIZE_BYTES_MAX, Report, SPEC_SIZE_BYTES_MAX};
use crate::{channel, seccomp, spawner};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::Signal;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use step_mounts::Tree;

mod step_mounts;

/// Bytes read from an output pipe at once: few at first, as most steps say little, at most what a pipe holds.
const CHUNK_SIZE_BYTES_MIN: usize = 2 << 10;
const CHUNK_SIZE_BYTES_MAX: usize = 64 << 10;

/// Runs one step to its end in the root file system `root`, a detached mount (or a plain directory).
///
/// Blocks; the step dies when this process dies. Chunks of output go to `on_output` as they come, split anywhere; a slow
/// callback slows the step down. When `cancel` becomes readable (or its other end closes) everything is killed and the
/// result is [`StepError::Cancelled`]. On return, whatever the result, nothing of the step is alive, its mounts are gone,
/// and so are the mount points made for it in `root`. A detached mount serves one step: on older kernels it is moved into it.
pub fn run_step(
    spec: &StepSpec,
    root: BorrowedFd<'_>,
    cancel: BorrowedFd<'_>,
    on_output: &mut dyn FnMut(Stream, &[u8]),
) -> Result<Exit, StepError> {
    run_step_to_exit(spec, root, cancel, on_output).map(|ended| ended.exit)
}

/// A step whose command has ended.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub exit: Exit,
    /// Its mounts, going away.
    pub teardown: Teardown,
    /// Owners of what it left, where one id is mapped and files cannot have them.
    pub ownership: Ownership,
}

/// As [`run_step`], without waiting for the kernel to take the step's mounts down.
///
/// All processes of the step are gone on return but its init, which only exits: what the step wrote can be read. The
/// [`Teardown`] says when its overlay is no longer mounted.
pub fn run_step_to_exit(
    spec: &StepSpec,
    root: BorrowedFd<'_>,
    cancel: BorrowedFd<'_>,
    on_output: &mut dyn FnMut(Stream, &[u8]),
) -> Result<Ended, StepError> {
    check(spec)?;
    if seccomp::Arch::native().is_none() {
        return Err(StepError::NoSeccompTable { arch: std::env::consts::ARCH });
    }
    let mut child_spec = resolve(spec, root)?;
    let kind = kind(spec);
    let (mounts, trees) = step_mounts::order(&spec.mounts, (child_spec.uid, child_spec.gid))?;
    child_spec.mounts = mounts;
    let mut targets: Vec<(&str, Kind)> =
        child_spec.files.iter().map(|(path, ..)| (path.as_str(), Kind::File)).collect();
    targets.extend(step_mounts::in_root(&child_spec.mounts));
    let mount_points = MountPoints::create(root, &child_spec.cwd, &targets)?;
    let attached: Vec<BorrowedFd<'_>> = spec
        .cgroups
        .iter()
        .map(|fd| fd.as_fd())
        .chain(trees.iter().map(Tree::as_fd))
        .chain(spec.owners.as_ref().map(AsFd::as_fd))
        .chain(spec.held.iter().map(|fd| fd.as_fd()))
        .collect();
    let outcome = Running::start(kind, &child_spec, spec.console.as_ref(), root, &attached)
        .and_then(|running| running.run(cancel, on_output));
    mount_points.remove();
    let (end, teardown) = outcome?;
    let given = spec.owners.clone().filter(|table| !table.is_empty());
    let ownership = Ownership { user: (child_spec.uid, child_spec.gid), given };
    Ok(Ended { exit: end.into_result(spec)?, teardown, ownership })
}

/// Starts the process that steps come from, while nobody waits for it. Never fails: what is not ready is made by the step.
pub fn prepare_steps() {
    spawner::prepare();
}

/// Starts the init of a step like this one, as [`prepare_steps`] does. For the first step of a process; those after it have
/// one ready.
pub fn prepare_step(spec: &StepSpec) {
    spawner::stock_first(&kind(spec));
}

/// What kind of init the step wants.
fn kind(spec: &StepSpec) -> spawner::Kind {
    let (namespace, network) = match &spec.network {
        Network::Host => (NetworkNamespace::Builder, None),
        Network::None => (NetworkNamespace::New, None),
        Network::User(network) => (NetworkNamespace::Joined, Some(Arc::clone(network))),
    };
    let flavour = Flavour {
        network: namespace,
        shm_size_bytes: spec.shm_size_bytes,
        insecure: spec.insecure,
        emulated: spec.emulator.is_some(),
    };
    spawner::Kind { flavour, network, emulator: spec.emulator.clone() }
}

/// Owners that files of a step cannot have themselves: see [`ladder`](crate::ladder), rung `single`.
#[derive(Debug, Default)]
pub struct Ownership {
    /// User and group of the step, whose what it made is.
    pub user: (u32, u32),
    /// Those given to what cannot carry them; `None` if there are none.
    given: Option<OwnerTable>,
}

impl Ownership {
    /// The owner that the step gave what is at `path` in its root, a symbolic link or something else that cannot carry a
    /// note; `None` if it gave none. `root` is the mount the step ran on.
    pub fn given(&self, root: BorrowedFd<'_>, path: &[u8]) -> io::Result<Option<(u32, u32)>> {
        let Some(table) = &self.given else { return Ok(None) };
        let Some(inode) = inode_at(root, path) else { return Ok(None) };
        Ok(table.get(inode)?)
    }
}

fn inode_at(root: BorrowedFd<'_>, path: &[u8]) -> Option<Inode> {
    use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
    let (dir, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&b"."[..], path),
    };
    // The path is where the layer's directory has it, which has no links in it.
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let dir = rustix::fs::openat2(root, dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve).ok()?;
    Inode::at(&dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()
}

/// A step's mounts, going away. Dropping it waits until they are gone, which takes less than a millisecond.
///
/// Until then the upper directory counts as in use: it must not become a lower of another overlay, which the kernel would
/// warn of or refuse. The descriptor of the merged root holds the overlay as well and is to be dropped first.
#[derive(Debug)]
#[must_use = "dropping it at once is waiting at once"]
pub struct Teardown {
    /// Init: readable when it is dead, which it is after it has left its mount namespace, the last to do so.
    init: Option<OwnedFd>,
}

impl Teardown {
    /// Waits until nothing of the step is left.
    pub fn wait(self) {}
}

impl Drop for Teardown {
    fn drop(&mut self) {
        if let Some(init) = &self.init {
            let mut dead = [PollFd::new(init, PollFlags::IN)];
            // Polling one open descriptor fails for want of kernel memory at most, and then waits in vain anyway.
            let _dead = rustix::io::retry_on_intr(|| rustix::event::poll(&mut dead, None));
        }
    }
}

pub(crate) fn check(spec: &StepSpec) -> Result<(), SpecError> {
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
    for mount in &spec.mounts {
        path("a mount target", &mount.target)?;
        if let MountSource::Tree { path, .. } = &mount.source {
            no_nul("a mount source", path)?;
        }
    }
    let owners = usize::from(spec.owners.is_some());
    if spec.mounts.len() + spec.cgroups.len() + spec.held.len() + owners + 3 > channel::FDS_MAX {
        return Err(SpecError::TooManyMounts { max: channel::FDS_MAX - 3 });
    }
    let mounted = |mount: &StepMount| match &mount.source {
        MountSource::Tree { path, .. } => path.len(),
        MountSource::File { content, .. } => content.len(),
        MountSource::Tmpfs { .. }
        | MountSource::Host { .. }
        | MountSource::Device { .. }
        | MountSource::Node(_) => 0,
    };
    if let Some((script, _)) = &spec.script {
        path("the script's path", script)?;
    }
    for (file, _) in &spec.files {
        path("a file's path", file)?;
    }
    let size = spec.argv.iter().map(String::len).sum::<usize>()
        + spec.env.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
        + spec.cwd.len()
        + spec.hosts.len()
        + spec.resolv_conf.len()
        + spec.files.iter().map(|(path, content)| path.len() + content.len()).sum::<usize>()
        + spec.script.as_ref().map_or(0, |(path, content)| path.len() + content.len())
        + spec.mounts.iter().map(|mount| mount.target.len() + mounted(mount)).sum::<usize>();
    // Room for lengths, groups and the filter.
    let overhead = (1 << 20) + (spec.argv.len() + spec.env.len()) * 8;
    if size.saturating_add(overhead) > SPEC_SIZE_BYTES_MAX { Err(SpecError::TooLarge) } else { Ok(()) }
}

pub(crate) fn resolve(spec: &StepSpec, root: BorrowedFd<'_>) -> Result<ChildSpec, StepError> {
    let mut user = crate::passwd::resolve_user_in(root, &spec.user)?;
    for gid in &spec.groups {
        if !user.groups.contains(gid) {
            user.groups.push(*gid);
        }
    }
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
    files.extend(spec.files.iter().map(|(path, content)| (path.clone(), 0o644, content.clone())));
    if let Some((path, content)) = &spec.script {
        files.push((path.clone(), 0o755, content.clone()));
    }
    Ok(ChildSpec {
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
        keeps_groups: spec.keeps_groups,
        argv: spec.argv.clone(),
        env: env.into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
        cwd: spec.cwd.clone(),
        hostname: spec.hostname.clone(),
        has_console: spec.console.is_some(),
        files,
        mounts: Vec::new(),
        rlimits: spec
            .limits
            .iter()
            .map(|limit| (u32::try_from(limit.index).unwrap_or(u32::MAX), limit.soft, limit.hard))
            .collect(),
        cgroups: u32::try_from(spec.cgroups.len()).unwrap_or(u32::MAX),
        has_owner_table: spec.owners.is_some(),
    })
}

fn parent(action: &'static str) -> impl Fn(Errno) -> StepError {
    move |errno| StepError::Parent { action, source: errno.into() }
}

/// How a step came to its end.
pub(crate) struct End {
    was_cancelled: bool,
    report: Option<Report>,
}

impl End {
    pub(crate) fn into_result(self, spec: &StepSpec) -> Result<Exit, StepError> {
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
            Some(Report::Started) | None => Err(StepError::Died),
        }
    }
}

/// How a step is stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// Everything is in init's pid namespace and goes with it.
    KillInit,
    /// Whoever keeps the step kills it, one by one.
    CloseSocket,
}

/// One of a step's output streams: our end, if it is ours to read, and the step's.
fn output(console: Option<&Console>) -> Result<(Option<OwnedFd>, OwnedFd), StepError> {
    if let Some(Console(terminal)) = console {
        let theirs = rustix::io::fcntl_dupfd_cloexec(terminal, 3).map_err(parent("pass the terminal on"))?;
        return Ok((None, theirs));
    }
    let (ours, theirs) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(parent("create an output pipe"))?;
    Ok((Some(ours), theirs))
}

/// A started step. Dropping it kills everything and waits.
pub(crate) struct Running {
    socket: OwnedFd,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    teardown: Teardown,
    stop: Stop,
    reports: Vec<u8>,
    report: Option<Report>,
}

impl Running {
    /// `attached` goes to init besides the root and the pipes.
    fn start(
        kind: spawner::Kind,
        spec: &ChildSpec,
        console: Option<&Console>,
        root: BorrowedFd<'_>,
        attached: &[BorrowedFd<'_>],
    ) -> Result<Running, StepError> {
        let clone = Tree::of(root).map_err(parent("clone the root mount"))?;
        let root = clone.as_fd();
        let (stdout, their_stdout) = output(console)?;
        let (stderr, their_stderr) = output(console)?;
        let mut running = Running {
            socket: spawner::take(&kind)?,
            stdout,
            stderr,
            teardown: Teardown { init: None },
            stop: Stop::KillInit,
            reports: Vec::new(),
            report: None,
        };
        // With its first report init can be killed by its descriptor.
        if !running.receive_report()? {
            // Nothing was started: the spawner is being killed. By now it is dead, and the next request starts another one.
            running.socket = spawner::take(&kind)?;
            running.receive_report()?;
        }
        running.send(spec, root, their_stdout, their_stderr, attached)?;
        spawner::stock(&kind);
        Ok(running)
    }

    /// A step whose keeper is at the other end of `socket`: it kills the step when the socket is closed.
    pub(crate) fn take_over(
        socket: OwnedFd,
        spec: &ChildSpec,
        root: BorrowedFd<'_>,
    ) -> Result<Running, StepError> {
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(parent("create an output pipe"));
        let ((stdout, their_stdout), (stderr, their_stderr)) = (pipe()?, pipe()?);
        let mut running = Running {
            socket,
            stdout: Some(stdout),
            stderr: Some(stderr),
            teardown: Teardown { init: None },
            stop: Stop::CloseSocket,
            reports: Vec::new(),
            report: None,
        };
        running.receive_report()?;
        running.send(spec, root, their_stdout, their_stderr, &[])?;
        Ok(running)
    }

    /// Sends the step to its init; the ends of the pipes go with it.
    fn send(
        &self,
        spec: &ChildSpec,
        root: BorrowedFd<'_>,
        stdout: OwnedFd,
        stderr: OwnedFd,
        attached: &[BorrowedFd<'_>],
    ) -> Result<(), StepError> {
        let encoded = spec.encode();
        let fds = [&[root, stdout.as_fd(), stderr.as_fd()], attached].concat();
        let socket = self.socket.as_fd();
        let sent = channel::send_with_fds(socket, &(encoded.len() as u64).to_le_bytes(), &fds)
            .and_then(|()| channel::send_all(socket, &encoded));
        match sent {
            // An init that failed before it read everything has reported why.
            Ok(()) | Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
            Err(errno) => Err(parent("send the step to its process")(errno)),
        }
    }

    /// Reads what is there; `false` at the end of the conversation: init has said that all is over, or is gone.
    fn receive_report(&mut self) -> Result<bool, StepError> {
        let mut buffer = [0; REPORT_SIZE_BYTES_MAX];
        let (count, fds) = match channel::receive(self.socket.as_fd(), &mut buffer) {
            Err(Errno::CONNRESET) => (0, Vec::new()),
            other => other.map_err(parent("read the step's reports"))?,
        };
        if self.teardown.init.is_none() {
            self.teardown.init = fds.into_iter().next();
        }
        self.reports.extend(&buffer[..count]);
        let malformed = |_| StepError::Parent {
            action: "read the step's reports",
            source: io::Error::from(io::ErrorKind::InvalidData),
        };
        let mut is_over = count == 0;
        while let Some(report) = Report::take_from(&mut self.reports).map_err(malformed)? {
            is_over |= matches!(report, Report::Exited(_) | Report::Signaled(_));
            if self.report.is_none() && report != Report::Started {
                self.report = Some(report);
            }
        }
        Ok(!is_over)
    }

    pub(crate) fn run(
        mut self,
        cancel: BorrowedFd<'_>,
        on_output: &mut dyn FnMut(Stream, &[u8]),
    ) -> Result<(End, Teardown), StepError> {
        let mut was_cancelled = false;
        let mut is_talking = true;
        let mut buffer = vec![0; CHUNK_SIZE_BYTES_MIN];
        while is_talking {
            let ready = self.wait_for_input((!was_cancelled).then_some(cancel))?;
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
        if !matches!(self.report, Some(Report::Exited(_) | Report::Signaled(_))) {
            // Init went without saying that the others are gone; they go with it.
            drop(Teardown { init: self.teardown.init.take() });
            // Whatever killed it may be about to kill the next one.
            spawner::discard_spare();
        }
        // Nobody is left who could write: what the pipes hold is all there will be, also where the step managed to give their
        // ends to somebody outside.
        for (pipe, stream) in [(&mut self.stdout, Stream::Stdout), (&mut self.stderr, Stream::Stderr)] {
            while is_readable(pipe.as_ref())? {
                drain(pipe, stream, &mut buffer, on_output)?;
            }
        }
        let end = End { was_cancelled, report: self.report.take() };
        Ok((end, Teardown { init: self.teardown.init.take() }))
    }

    fn wait_for_input(&self, cancel: Option<BorrowedFd<'_>>) -> Result<Ready, StepError> {
        let stdout = self.stdout.as_ref().map(AsFd::as_fd);
        let stderr = self.stderr.as_ref().map(AsFd::as_fd);
        let socket = Some(self.socket.as_fd());
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

    /// Kills init, and with it everything in its namespace, or tells the keeper to.
    fn kill(&mut self) {
        if self.stop == Stop::CloseSocket {
            // Closed already is as good. What the keeper reports still arrives.
            let _closed = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write);
        } else if let Some(init) = &self.teardown.init {
            // Gone already is as good as killed.
            let _gone = rustix::process::pidfd_send_signal(init, Signal::KILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After `run` there is nothing to kill, and nothing to wait for but by its caller.
        self.kill();
    }
}

#[derive(Clone, Copy)]
struct Ready {
    stdout: bool,
    stderr: bool,
    socket: bool,
    cancel: bool,
}

/// Whether a read from an open pipe would return at once.
fn is_readable(pipe: Option<&OwnedFd>) -> Result<bool, StepError> {
    let Some(pipe) = pipe else { return Ok(false) };
    let mut fds = [PollFd::new(pipe, PollFlags::IN)];
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&Timespec::default())))
        .map(|ready| ready > 0)
        .map_err(parent("wait for the step"))
}

/// Reads one chunk; closes the pipe at its end. A buffer that was filled is a larger one for the next.
fn drain(
    pipe: &mut Option<OwnedFd>,
    stream: Stream,
    buffer: &mut Vec<u8>,
    on_output: &mut dyn FnMut(Stream, &[u8]),
) -> Result<(), StepError> {
    let Some(fd) = &*pipe else { return Ok(()) };
    match rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut buffer[..])) {
        Ok(0) => *pipe = None,
        Ok(count) => {
            on_output(stream, &buffer[..count]);
            if count == buffer.len() && count < CHUNK_SIZE_BYTES_MAX {
                buffer.resize(CHUNK_SIZE_BYTES_MAX, 0);
            }
        }
        Err(errno) => return Err(parent("read the step's output")(errno)),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
