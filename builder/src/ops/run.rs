//! Executes RUN: overlay mount, sandbox, scan of what changed.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use rbuild_cache::copy::{FileSource, StackSource};
use rbuild_cache::layer::{self, Mtime, Owners, ParentEntry, ParentViewError, StepOwners};
use rbuild_cache::path::RelPath;
use rbuild_cache::store::{Draft, LayerDraft};
use rbuild_cache::tree::{Kind, Meta};
use rbuild_frontend::graph::{Mount, Op, RunOp, Step};
use rbuild_sandbox::{Ended, Exit, LayerDir, OwnerTable, Rung, StepSpec, Stream as SandboxStream};

use crate::cancel::Reason;
use crate::cli::{HostAddress, SecretBytes};
use crate::debug::{HeldStep, Moment};
use crate::error::StepFailure;
use crate::mounts::cache::Caches;
use crate::mounts::redact::Redactor;
use crate::mounts::{self, MountInput, Prepared};
use crate::ops::cgroup::StepGroups;
use crate::ops::emulation::Emulation;
use crate::ops::layers::identify_small;
use crate::ops::network::StepNetwork;
use crate::ops::{DirToMount, ExecEnv, NewLayer, blocking, chroot, size_bytes};
use crate::progress::{Stream, VertexId};
use crate::solve::Solved;

/// Output kept for the failure report.
const LOG_TAIL_BYTES_MAX: usize = 64 << 10;

/// Runs the step on top of `root` and returns what it changed. A non-zero exit is [`StepFailure::Exit`]; nothing of
/// the step is alive and nothing is mounted when this returns.
pub async fn execute(
    env: &Arc<ExecEnv>,
    step: &Step,
    op: &RunOp,
    root: &Arc<Solved>,
    mounts: Vec<MountInput>,
    vertex: VertexId,
) -> Result<NewLayer, StepFailure> {
    check_rung(env, op)?;
    let (mounts, caches) = caches(env, op, mounts, vertex, step).await?;
    let slots = Arc::clone(&env.run_slots);
    let _slot = slots.acquire().await.expect("the semaphore is never closed");
    if env.cancel.reason().is_some() {
        return Err(StepFailure::Canceled);
    }
    env.events.started(vertex);
    let (env, step, op, root) = (Arc::clone(env), step.clone(), op.clone(), Arc::clone(root));
    blocking(move || match env.rung {
        Rung::Chroot => chroot::layer(&env, &op, &root, vertex),
        _ => layer(&env, &step, &op, &root, &mounts, &caches, vertex),
    })
    .await
}

/// Gets ready what the first of these steps starts from, on a thread of its own: the process that steps come from, and the
/// network. No step waits for it that has something else to wait for.
pub fn prepare<'a>(env: &ExecEnv, mut ops: impl Iterator<Item = &'a Op>) {
    let Some(Op::Run(first)) = ops.find(|op| matches!(op, Op::Run(_))) else { return };
    if matches!(env.rung, Rung::Chroot | Rung::NoRun) {
        return;
    }
    let (networks, asked) = (Arc::clone(&env.network), first.network);
    let spec = StepSpec {
        insecure: first.insecure,
        shm_size_bytes: env.steps.shm_size_bytes.unwrap_or(StepSpec::DEFAULT_SHM_SIZE_BYTES),
        ..StepSpec::new(Vec::new())
    };
    let body = move || {
        rbuild_sandbox::prepare_steps();
        let network = networks.prepare(asked);
        rbuild_sandbox::prepare_step(&StepSpec { network, ..spec });
    };
    // Without it the first step does the same.
    let _detached = std::thread::Builder::new().name("prepare-steps".to_owned()).spawn(body);
}

/// Mounts the step and keeps it so for a shell, without running it. The build ends here: the result is
/// [`StepFailure::Canceled`], or why the step cannot be mounted.
pub async fn hold(
    env: &Arc<ExecEnv>,
    step: &Step,
    op: &RunOp,
    root: &Arc<Solved>,
    mounts: Vec<MountInput>,
    vertex: VertexId,
) -> StepFailure {
    let held = async {
        check_rung(env, op)?;
        if env.rung == Rung::Chroot {
            return Err(StepFailure::ShellInChroot);
        }
        let (mounts, caches) = caches(env, op, mounts, vertex, step).await?;
        env.events.started(vertex);
        let (env, step, op, root) = (Arc::clone(env), step.clone(), op.clone(), Arc::clone(root));
        blocking(move || {
            let ready = Ready::new(&env, &op, &root, &mounts, &caches, vertex)?;
            ready.keep(&env, &step, Moment::Before);
            Ok(())
        })
        .await
    };
    match held.await {
        Ok(()) => {
            env.cancel.cancel(Reason::Failure);
            StepFailure::Canceled
        }
        Err(failure) => failure,
    }
}

/// Refuses what this rung does not have.
fn check_rung(env: &ExecEnv, op: &RunOp) -> Result<(), StepFailure> {
    match env.rung {
        Rung::NoRun => Err(StepFailure::RunRefused { remedies: Vec::new() }),
        Rung::Chroot if !op.devices.is_empty() => Err(StepFailure::DevicesInChroot),
        Rung::Chroot if op.insecure => Err(StepFailure::InsecureInChroot),
        _ => Ok(()),
    }
}

/// Takes the step's caches, for as long as that takes or until the build is stopped.
async fn caches(
    env: &Arc<ExecEnv>,
    op: &RunOp,
    mounts: Vec<MountInput>,
    vertex: VertexId,
    step: &Step,
) -> Result<(Vec<MountInput>, Caches), StepFailure> {
    if !op.mounts.iter().any(|mount| matches!(mount, Mount::Cache(_))) {
        return Ok((mounts, Caches::new()));
    }
    let (held, op, step) = (Arc::clone(env), op.clone(), step.name.clone());
    let taking = tokio::task::spawn_blocking(move || {
        let caches = mounts::cache::take(&held, &op, &mounts, vertex, &step)?;
        Ok((mounts, caches))
    });
    tokio::select! {
        taken = taking => taken.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())),
        () = env.cancel.cancelled() => Err(StepFailure::Canceled),
    }
}

/// A step that is mounted and has everything it gets.
struct Ready {
    spec: StepSpec,
    merged: OwnedFd,
    draft: LayerDraft,
    prepared: Prepared,
    groups: StepGroups,
    emulation: Emulation,
}

impl Ready {
    fn new(
        env: &ExecEnv,
        op: &RunOp,
        root: &Solved,
        mounts: &[MountInput],
        caches: &Caches,
        vertex: VertexId,
    ) -> Result<Self, StepFailure> {
        let mut prepared = mounts::prepare(env, op, mounts, caches)?;
        let lent = env.devices.lend(op, env.rung)?;
        for note in lent.notes {
            env.events.note(vertex, note);
        }
        prepared.mounts.extend(lent.mounts);
        prepared.env.extend(lent.env);
        let draft = env.store.draft(&env.lease)?;
        like_root(draft.diff_fd(), &root.tree.root, env.overlay.owners())?;
        let layers = env.layer_dirs(&root.stack)?;
        let mut dirs = vec![LayerDir::Path(mount_points(env)?)];
        dirs.extend(layers.iter().map(DirToMount::as_layer));
        let upper = (LayerDir::Open(draft.diff_fd().as_fd()), LayerDir::Open(draft.work_fd().as_fd()));
        let merged = env.mount(&dirs, Some(upper))?;
        if op.insecure && env.rung == Rung::Single {
            // It answers changes of owner, so it cannot be left out.
            env.events.note(vertex, "--security=insecure: isolation `single` keeps its system call filter");
        }
        let network = env.network.of(op.network, &env.events);
        let (groups, cgroups) = env.groups.for_step(&env.steps, &env.events);
        let mut spec = StepSpec {
            files: extra_files(env, root)?,
            mounts: std::mem::take(&mut prepared.mounts),
            held: std::mem::take(&mut prepared.held),
            owners: owner_table(env)?,
            cgroups: cgroups.into_iter().map(Arc::new).collect(),
            insecure: op.insecure,
            groups: lent.groups,
            keeps_groups: lent.has_host_nodes,
            ..spec(env, op, vertex, network)
        };
        set_variables(&mut spec, &prepared);
        let emulation = env.emulators.of(merged.as_fd(), &spec, op, &env.events);
        spec.emulator.clone_from(&emulation.emulator);
        Ok(Self { spec, merged, draft, prepared, groups, emulation })
    }

    /// Leaves it as it is for a shell, if somebody wants one.
    fn keep(self, env: &Arc<ExecEnv>, step: &Step, moment: Moment) {
        let Some(slot) = &env.failed_step else { return };
        let Self { spec, merged, draft, prepared, groups, .. } = self;
        let (name, env) = (step.name.clone(), Arc::clone(env));
        slot.keep(HeldStep { moment, name, spec, merged, draft, prepared, groups, env });
    }
}

fn layer(
    env: &Arc<ExecEnv>,
    step: &Step,
    op: &RunOp,
    root: &Solved,
    mounts: &[MountInput],
    caches: &Caches,
    vertex: VertexId,
) -> Result<NewLayer, StepFailure> {
    let ready = Ready::new(env, op, root, mounts, caches, vertex)?;
    let mut output = Output::of(env, vertex, &ready.prepared.secrets);
    let (spec, merged) = (&ready.spec, ready.merged.as_fd());
    let ended = rbuild_sandbox::run_step_to_exit(spec, merged, env.cancel.fd(), &mut output.sink());
    output.flush();
    let Ended { exit, teardown, ownership } = output.check(op, &ready.emulation, ended)?;
    if exit != Exit::Code(0) && ready.groups.ran_out_of_memory() {
        let limit_bytes = env.steps.resources.memory_bytes.unwrap_or(0);
        return Err(StepFailure::OutOfMemory { command: op.argv.join(" "), limit_bytes, log: output.log() });
    }
    if let Err(failure) = output.succeeded(op, exit) {
        if matches!(failure, StepFailure::Exit { .. } | StepFailure::Signal { .. }) {
            ready.keep(env, step, Moment::Failed);
        }
        return Err(failure);
    }
    let Ready { spec, merged, draft, prepared, groups: _groups, emulation: _ } = ready;
    // Its trees are the step's, and go with its mounts.
    drop(spec);
    written_back(&merged).map_err(|errno| StepFailure::Io {
        what: "write",
        path: "the step's layer".to_owned(),
        source: errno.into(),
    })?;
    let (parent, scratch) = (Parent::of(env, root), env.store.scratch());
    let diff = if env.overlay.owners() == Owners::Noted {
        // What cannot carry its owner is known by its inode in the merged root, which stays until it was looked at.
        let given = |path: &RelPath| ownership.given(merged.as_fd(), path.as_bytes());
        let owners = StepOwners { user: ownership.user, special: &given };
        let diff = layer::scan_upper_of(draft.diff_fd().as_fd(), env.overlay, &parent, &owners, &scratch)?;
        drop(merged);
        diff
    } else {
        drop(merged);
        layer::scan_upper(draft.diff_fd().as_fd(), env.overlay, &parent, &scratch)?
    };
    let tree = root.tree.apply(&env.store, &diff, &env.store.scratch())?;
    let size_bytes = size_bytes(&diff)?;
    if op.mounts.is_empty() {
        env.leaving.add(teardown, draft.work_dir());
    } else {
        // What the step was lent is somebody else's only when the step has let go of it.
        teardown.wait();
    }
    drop(prepared);
    let tar = identify_small(draft.diff_fd().as_fd(), &diff, size_bytes);
    Ok(NewLayer { draft: Draft::Dir(draft), diff, tree, size_bytes, tar, recent: None })
}

/// A lowest layer with the files that every step gets something mounted on. Where an image does not have them they
/// need not be made, and removed again, in each step's upper; where it does, its own hide these.
fn mount_points(env: &ExecEnv) -> Result<&Path, StepFailure> {
    if let Some(dir) = env.mount_points.get() {
        return Ok(dir);
    }
    let io =
        |source: std::io::Error| StepFailure::Io { what: "set up", path: "mount points".to_owned(), source };
    let dir = env.lease.new_dir()?;
    std::fs::create_dir(dir.join("etc")).map_err(io)?;
    for name in ["etc/hosts", "etc/resolv.conf"] {
        std::fs::write(dir.join(name), "").map_err(io)?;
    }
    for (path, mode) in [("", 0o755), ("etc", 0o755), ("etc/hosts", 0o644), ("etc/resolv.conf", 0o644)] {
        std::fs::set_permissions(dir.join(path), std::fs::Permissions::from_mode(mode)).map_err(io)?;
    }
    Ok(env.mount_points.get_or_init(|| dir))
}

/// Reports a write-back error of the upper that would otherwise be lost: it is mounted `volatile`, so this flushes
/// nothing.
fn written_back(merged: &OwnedFd) -> rustix::io::Result<()> {
    use rustix::fs::{Mode, OFlags};
    // A mount fd is an `O_PATH` one, which syncfs refuses.
    let root =
        rustix::fs::openat(merged, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::syncfs(&root)
}

/// Gives the upper directory the metadata of the state's root: overlayfs shows the upper's.
pub(crate) fn like_root(dir: &OwnedFd, root: &Meta, owners: Owners) -> Result<(), StepFailure> {
    use rustix::fs::Mode;
    let io = |errno: rustix::io::Errno| StepFailure::Io {
        what: "set up",
        path: "the step's root directory".to_owned(),
        source: errno.into(),
    };
    if (root.uid, root.gid) != (0, 0) {
        owners.give(dir, root).map_err(io)?;
    }
    if root.mode != 0o755 {
        rustix::fs::fchmod(dir, Mode::from_raw_mode(root.mode)).map_err(io)?;
    }
    Ok(())
}

/// Room for the owners that files cannot carry, where those are noted that they can.
fn owner_table(env: &ExecEnv) -> Result<Option<OwnerTable>, StepFailure> {
    if env.overlay.owners() != Owners::Noted {
        return Ok(None);
    }
    let file = env.store.scratch().file().map_err(|source| StepFailure::Io {
        what: "set up",
        path: "the step's owners".to_owned(),
        source,
    })?;
    Ok(Some(OwnerTable::in_file(file)))
}

/// Where one id is mapped apt cannot become the user it downloads as, and gives up; so it is told not to try.
fn extra_files(env: &ExecEnv, root: &Solved) -> Result<Vec<(String, Vec<u8>)>, StepFailure> {
    const DIR: &str = "etc/apt/apt.conf.d";
    if env.rung != Rung::Single {
        return Ok(Vec::new());
    }
    let dir = root.tree.get(&env.store, &RelPath::clamp(DIR.as_bytes()))?;
    let has_apt = dir.is_some_and(|entry| matches!(entry.kind, Kind::Dir(_)));
    let setting = || (format!("/{DIR}/zz-rbuild-one-id"), b"APT::Sandbox::User \"root\";\n".to_vec());
    Ok(has_apt.then(setting).into_iter().collect())
}

/// The step as the sandbox takes it.
pub(super) fn spec(
    env: &ExecEnv,
    op: &RunOp,
    vertex: VertexId,
    network: rbuild_sandbox::Network,
) -> StepSpec {
    let mut environment = op.env.clone();
    for (name, value) in &op.proxy_env {
        if !environment.iter().any(|(known, _)| known == name) {
            environment.push((name.clone(), value.clone()));
        }
    }
    let hosts = hosts(&env.steps.hosts, &network);
    if network != rbuild_sandbox::Network::Host
        && let Some((name, _)) = env.steps.hosts.iter().find(|(_, at)| *at == HostAddress::Gateway)
    {
        let why = "the step's own network has no way to this machine; --network=host has";
        env.events.note(vertex, format!("--add-host {name}:host-gateway is left out: {why}"));
    }
    let script = op.script.as_ref().map(|text| {
        let path = op.argv.first().cloned().unwrap_or_default();
        (path, text.clone().into_bytes())
    });
    StepSpec {
        hostname: op.hostname.clone().unwrap_or_else(|| StepSpec::DEFAULT_HOSTNAME.to_owned()),
        argv: op.argv.clone(),
        env: environment,
        cwd: op.cwd.clone(),
        user: op.user.clone(),
        resolv_conf: StepNetwork::resolv_conf(&network),
        network,
        script,
        hosts,
        shm_size_bytes: env.steps.shm_size_bytes.unwrap_or(StepSpec::DEFAULT_SHM_SIZE_BYTES),
        limits: env.steps.limits.clone(),
        ..StepSpec::new(Vec::new())
    }
}

/// Variables that mounts and devices are, instead of others of the name.
pub(super) fn set_variables(spec: &mut StepSpec, prepared: &Prepared) {
    for (name, value) in &prepared.env {
        spec.env.retain(|(known, _)| known != name);
        spec.env.push((name.clone(), value.clone()));
    }
}

/// Where a step's output goes, without the secrets it knows, and what its end means.
pub(super) struct Output<'a> {
    env: &'a ExecEnv,
    vertex: VertexId,
    redactors: [(Stream, Redactor); 2],
    tail: Tail,
}

impl<'a> Output<'a> {
    pub(super) fn of(env: &'a ExecEnv, vertex: VertexId, secrets: &[SecretBytes]) -> Self {
        let redactor = |stream| (stream, Redactor::new(secrets));
        let redactors = [redactor(Stream::Stdout), redactor(Stream::Stderr)];
        Self { env, vertex, redactors, tail: Tail::default() }
    }

    /// Takes what the step prints.
    pub(super) fn sink(&mut self) -> impl FnMut(SandboxStream, &[u8]) {
        |stream, bytes| {
            let at = match stream {
                SandboxStream::Stdout => 0,
                SandboxStream::Stderr => 1,
            };
            let (stream, redactor) = &mut self.redactors[at];
            redactor.push(bytes, &mut |bytes| {
                self.tail.push(bytes);
                self.env.events.log(self.vertex, *stream, bytes.to_vec());
            });
        }
    }

    /// Passes on what was held back: nothing more is printed.
    fn flush(&mut self) {
        for (stream, redactor) in &mut self.redactors {
            redactor.finish(&mut |bytes| {
                self.tail.push(bytes);
                self.env.events.log(self.vertex, *stream, bytes.to_vec());
            });
        }
    }

    /// What came of running it.
    pub(super) fn check<T>(
        &mut self,
        op: &RunOp,
        emulation: &Emulation,
        ended: Result<T, rbuild_sandbox::StepError>,
    ) -> Result<T, StepFailure> {
        match ended {
            Err(_) if self.env.cancel.reason().is_some() => Err(StepFailure::Canceled),
            Err(rbuild_sandbox::StepError::CommandNotExecutable { program, source })
                if source.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error())
                    && emulation.foreign.is_some() =>
            {
                let (platform, why) = (emulation.platform(op), emulation.obstacle.clone());
                Err(StepFailure::Foreign { program, platform, why })
            }
            Err(source) => Err(StepFailure::Sandbox { source, log: self.log() }),
            Ok(ended) => Ok(ended),
        }
    }

    /// Fails when the command did.
    pub(super) fn succeeded(&mut self, op: &RunOp, exit: Exit) -> Result<(), StepFailure> {
        let command = op.argv.join(" ");
        match exit {
            Exit::Code(0) => Ok(()),
            _ if self.env.cancel.reason().is_some() => Err(StepFailure::Canceled),
            Exit::Code(code) => {
                let lacked = self.env.store.lacks();
                Err(StepFailure::Exit { command, code, log: self.log(), lacked })
            }
            Exit::Signal(signal) => Err(StepFailure::Signal { command, signal, log: self.log() }),
        }
    }

    fn log(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.tail).into_bytes()
    }
}

/// `/etc/hosts` of a step. A network of its own has no way to this machine, so there `host-gateway` is no address.
fn hosts(named: &[(String, HostAddress)], network: &rbuild_sandbox::Network) -> Vec<u8> {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    for (name, address) in named {
        let address = match (address, network) {
            (HostAddress::Ip(ip), _) => ip.to_string(),
            (HostAddress::Gateway, rbuild_sandbox::Network::Host) => "127.0.0.1".to_owned(),
            (HostAddress::Gateway, _) => continue,
        };
        text.push_str(&format!("{address}\t{name}\n"));
    }
    text.into_bytes()
}

/// The state below the step, as the scanner asks for it.
pub(super) struct Parent<'a> {
    env: &'a ExecEnv,
    root: &'a Solved,
    files: OnceCell<StackSource>,
}

impl<'a> Parent<'a> {
    pub(super) fn of(env: &'a ExecEnv, root: &'a Solved) -> Self {
        Self { env, root, files: OnceCell::new() }
    }

    fn files(&self) -> Result<&StackSource, StepFailure> {
        if let Some(files) = self.files.get() {
            return Ok(files);
        }
        let files = self.env.stack_source(self.root)?;
        Ok(self.files.get_or_init(|| files))
    }
}

impl layer::ParentView for Parent<'_> {
    fn entry(&self, path: &RelPath) -> Result<Option<ParentEntry>, ParentViewError> {
        let Some(entry) = self.root.tree.get(&self.env.store, path)? else { return Ok(None) };
        // Directories are compared without their times: a step that only adds things opens no lower layer.
        let mtime = match entry.kind {
            Kind::Dir(_) => Mtime::default(),
            _ => self.files()?.mtime(path)?,
        };
        Ok(Some(ParentEntry { entry, mtime }))
    }
}

/// The last bytes of a step's output.
#[derive(Default)]
struct Tail(VecDeque<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(LOG_TAIL_BYTES_MAX)..];
        let excess = (self.0.len() + bytes.len()).saturating_sub(LOG_TAIL_BYTES_MAX);
        self.0.drain(..excess);
        self.0.extend(bytes);
    }

    fn into_bytes(self) -> Vec<u8> {
        self.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_keeps_the_last_bytes() {
        let mut tail = Tail::default();
        tail.push(&vec![b'a'; LOG_TAIL_BYTES_MAX]);
        tail.push(b"end");
        let bytes = tail.into_bytes();
        assert_eq!(bytes.len(), LOG_TAIL_BYTES_MAX);
        assert!(bytes.ends_with(b"aend"));
    }
}
