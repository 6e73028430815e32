//! What this host allows, found by doing: for the choice of a rung and for `rbuild doctor`.
//!
//! A child of our own goes the whole way a build goes on a rung: enters the namespaces, mounts an overlay, sets steps up in
//! an empty root. The step's command does not exist, so «not found» is success: everything before exec worked.

use crate::error::{SetupStep, StepError};
use crate::ladder::{self, Isolation, Rung};
use crate::network::UserNetwork;
use crate::sealed_self::PROBE_MARKER;
use crate::spec::{Network, StepSpec};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Last argument of the probing process.
const WITH_NETWORK: &str = "network";
const RESULTS_SIZE_BYTES_MAX: u64 = 64 << 10;

/// One thing a build needs, and whether it works here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeResult {
    /// What was tried, for example `user namespace`.
    pub name: String,
    /// Whether it worked.
    pub ok: bool,
    /// Whether this was a whole step: when one works, steps can be run.
    pub is_step: bool,
    /// How it went, on one line.
    pub detail: String,
    /// What to do, when it did not work and something is known.
    pub remedy: Option<String>,
}

/// Tries everything a build needs on a rung, with scratch directories below `work_dir` (where the store is, or would be).
///
/// Call it before [`enter`](crate::ladder::enter), so that the way in is tried as well; a separate process does the
/// trying. Blocks for some ten milliseconds. Results are in the order of a build; after a failure what depends on it is
/// left out. `with_network` also tries to give steps a network of their own, which takes longer and which steps can do
/// without.
pub fn probe_rung(isolation: Isolation, work_dir: &Path, with_network: bool) -> Vec<ProbeResult> {
    let failed = |detail: String| {
        vec![ProbeResult {
            name: "probe process".to_owned(),
            ok: false,
            is_step: false,
            detail,
            remedy: Some("make sure /proc is mounted".to_owned()),
        }]
    };
    let child = Command::new("/proc/self/exe")
        .arg0(PROBE_MARKER)
        .arg(isolation.to_string())
        .arg(work_dir)
        .args(with_network.then_some(WITH_NETWORK))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return failed(format!("start: {error}")),
    };
    let mut text = Vec::new();
    let read = child.stdout.take().map(|out| out.take(RESULTS_SIZE_BYTES_MAX).read_to_end(&mut text));
    match (read, child.wait()) {
        (Some(Ok(_)), Ok(status)) if status.success() => parse(&String::from_utf8_lossy(&text)),
        (_, Ok(status)) => failed(format!("ended with {status}")),
        (_, Err(error)) => failed(format!("wait: {error}")),
    }
}

/// Five tab-separated fields a line.
fn parse(text: &str) -> Vec<ProbeResult> {
    let parse_line = |line: &str| {
        let mut fields = line.split('\t');
        let (kind, name) = (fields.next()?, fields.next()?.to_owned());
        let (ok, detail) = (fields.next()? == "ok", fields.next()?.to_owned());
        let remedy = fields.next().filter(|remedy| !remedy.is_empty()).map(str::to_owned);
        Some(ProbeResult { name, ok, is_step: kind == "step", detail, remedy })
    };
    text.lines().filter_map(parse_line).collect()
}

fn print(results: &[ProbeResult]) -> String {
    let one_line = |text: &str| text.replace(['\t', '\n', '\r'], " ");
    let print_line = |result: &ProbeResult| {
        let kind = if result.is_step { "step" } else { "part" };
        let ok = if result.ok { "ok" } else { "fails" };
        let remedy = result.remedy.as_deref().unwrap_or("");
        format!("{kind}\t{}\t{ok}\t{}\t{}\n", result.name, one_line(&result.detail), one_line(remedy))
    };
    results.iter().map(print_line).collect()
}

/// The body of the probing process.
pub(crate) fn probe_main() -> i32 {
    let mut args = std::env::args_os().skip(1);
    let isolation = args.next().and_then(|text| Isolation::parse(text.to_str()?));
    let (Some(isolation), Some(work_dir)) = (isolation, args.next().map(PathBuf::from)) else { return 1 };
    let with_network = args.next().is_some_and(|arg| arg == WITH_NETWORK);
    let results = try_everything(isolation, &work_dir, with_network);
    match std::io::stdout().write_all(print(&results).as_bytes()) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

fn ok(name: &str, detail: impl Into<String>) -> ProbeResult {
    ProbeResult { name: name.to_owned(), ok: true, is_step: false, detail: detail.into(), remedy: None }
}

fn fails(name: &str, error: &dyn std::error::Error, remedy: Option<String>) -> ProbeResult {
    let mut detail = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        detail = format!("{detail}: {error}");
        cause = error.source();
    }
    ProbeResult { name: name.to_owned(), ok: false, is_step: false, detail, remedy }
}

fn try_everything(isolation: Isolation, work_dir: &Path, with_network: bool) -> Vec<ProbeResult> {
    let mut results = Vec::new();
    let privilege = match ladder::enter(isolation) {
        Ok(privilege) => privilege,
        Err(error) => {
            results.push(fails("privileges", &error, Some(error.remedy())));
            return results;
        }
    };
    results.push(ok("privileges", privilege.describe()));
    let scratch = work_dir.join(format!("probe-{}", std::process::id()));
    let dirs = ["lower", "upper", "work", "root"].map(|name| scratch.join(name));
    // What is made on the way may become the store: nobody else's to write to, whatever the umask.
    let make = |dir: &PathBuf| std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    if let Err(error) = dirs.iter().try_for_each(make) {
        let remedy = format!("make `{}` writable", work_dir.display());
        results.push(fails("work directory", &error, Some(remedy)));
    } else {
        results.push(ok("work directory", work_dir.display().to_string()));
        let [lower, upper, work, root] = &dirs;
        match privilege.rung() {
            Rung::Root | Rung::Rootless | Rung::Single => {
                results.push(try_overlay(lower, upper, work));
                results.extend(try_step(root));
                results.extend(with_network.then(|| try_network(root)));
                results.extend(with_network.then(try_emulation));
            }
            Rung::Chroot => results.extend(try_chroot(root, work, isolation == Isolation::ForcedChroot)),
            Rung::NoRun => {}
        }
    }
    if let Err(error) = std::fs::remove_dir_all(&scratch) {
        results.push(fails("clean-up", &error, None));
    }
    results
}

fn try_overlay(lower: &Path, upper: &Path, work: &Path) -> ProbeResult {
    let name = "overlay";
    let merged = match crate::mount_overlay(
        &[lower.into()],
        Some((upper.into(), work.into())),
        crate::in_user_namespace(),
    ) {
        Ok(merged) => merged,
        Err(error) => {
            let remedy = match error {
                crate::MountError::Option { option: "upperdir", .. } => {
                    "keep the store on another file system than this one, such as ext4, xfs, btrfs or tmpfs (--root DIR, a \
                     volume): an overlay, as containers have it, cannot be the upper layer of another"
                }
                _ => "use a kernel from 6.8 on with overlayfs, and a store on ext4, xfs, btrfs or tmpfs",
            };
            return fails(name, &error, Some(remedy.to_owned()));
        }
    };
    let mode = rustix::fs::Mode::from_raw_mode(0o755);
    let written = rustix::fs::mkdirat(&merged, "probe", mode)
        .and_then(|()| rustix::fs::unlinkat(&merged, "probe", rustix::fs::AtFlags::REMOVEDIR));
    match written {
        Ok(()) => ok(name, "mounted and written to without a mount point"),
        Err(error) => {
            fails(name, &error, Some("put the store on a file system overlayfs can write to".to_owned()))
        }
    }
}

/// What the parts of a step are called, in the order the child does them.
const PARTS: &[(&str, &[SetupStep])] = &[
    ("step process", &[SetupStep::ReceiveSpec, SetupStep::ParentDeath]),
    ("namespaces", &[SetupStep::Unshare, SetupStep::Fork, SetupStep::Session, SetupStep::Keyring]),
    ("loopback device", &[SetupStep::Loopback, SetupStep::JoinNetwork]),
    ("fresh /proc", &[SetupStep::PrivateMounts, SetupStep::Proc, SetupStep::MaskProc]),
    ("/sys", &[SetupStep::Sys, SetupStep::MaskSys]),
    ("devices", &[SetupStep::Dev, SetupStep::DeviceNode, SetupStep::Scratch]),
    ("terminals", &[SetupStep::Pts]),
    ("shared memory", &[SetupStep::Shm]),
    ("message queues", &[SetupStep::Mqueue]),
    (
        "pivot_root",
        &[
            SetupStep::AttachRoot,
            SetupStep::OpenTarget,
            SetupStep::BindFile,
            SetupStep::PivotRoot,
            SetupStep::DetachOldRoot,
            SetupStep::Hostname,
        ],
    ),
    ("system call filter", &[SetupStep::Seccomp]),
];

fn try_step(root: &Path) -> Vec<ProbeResult> {
    let mut results = Vec::new();
    for (network, label) in
        [(Network::None, "step without network"), (Network::Host, "step on the host's network")]
    {
        let is_alone = network == Network::None;
        let error = match set_up_step(root, network) {
            Ok(()) => {
                if is_alone {
                    results.extend(PARTS.iter().map(|(name, _)| ok(name, "works")));
                }
                results.push(ProbeResult { is_step: true, ..ok(label, "set up completely") });
                continue;
            }
            Err(error) => error,
        };
        let part = |step: &SetupStep| PARTS.iter().find(|(_, steps)| steps.contains(step));
        if let StepError::Setup { step, .. } = &error
            && let Some((name, _)) = part(step)
        {
            results.push(fails(name, &error, remedy(*step)));
        }
        results.push(ProbeResult { is_step: true, ..fails(label, &error, None) });
    }
    results
}

fn try_chroot(root: &Path, aside: &Path, forced: bool) -> Option<ProbeResult> {
    let name = "step in a chroot";
    let dirs = [root, aside].map(std::fs::File::open);
    let (Ok(root), Ok(aside)) = (&dirs[0], &dirs[1]) else { return None };
    let mut spec = StepSpec::new(vec!["probe-command-that-is-not-there".to_owned()]);
    spec.network = Network::Host;
    let result = no_cancel().and_then(|(cancel, _never)| {
        let fds = (root.as_fd(), aside.as_fd(), cancel.as_fd());
        crate::run_step_in_copy(&spec, fds.0, fds.1, forced, fds.2, &mut |_, _| {})
    });
    Some(match result {
        Ok(_) | Err(StepError::CommandNotFound { .. }) => {
            ProbeResult { is_step: true, ..ok(name, "set up completely") }
        }
        Err(error) => ProbeResult {
            is_step: true,
            ..fails(name, &error, Some("start the container with docker's default capabilities".to_owned()))
        },
    })
}

fn no_cancel() -> Result<(OwnedFd, OwnedFd), StepError> {
    rustix::pipe::pipe().map_err(|e| StepError::Parent { action: "create a pipe", source: e.into() })
}

/// Without it steps share the host's network.
fn try_network(root: &Path) -> ProbeResult {
    let name = "network of their own for steps";
    match UserNetwork::start(false) {
        Err(error) => fails(name, &error, Some(error.remedy().to_owned())),
        Ok(network) => {
            let stack = network.stack_name();
            match set_up_step(root, Network::User(Arc::new(network))) {
                Ok(()) => ok(name, format!("through {stack}; the host's loopback is closed")),
                Err(error) => fails(name, &error, None),
            }
        }
    }
}

/// Without it steps are for this processor only, and those that the host registered.
fn try_emulation() -> ProbeResult {
    let name = "steps for other processors";
    match crate::emulation::survey() {
        Ok(detail) => ok(name, detail),
        Err(error) => fails(name, &error, Some(error.remedy().to_owned())),
    }
}

fn remedy(step: SetupStep) -> Option<String> {
    let text = match step {
        SetupStep::Unshare => "in a container, allow `unshare` and nested namespaces in its seccomp profile",
        SetupStep::Proc => {
            "a fresh /proc is refused where the existing one is covered (a container): run it with an unmasked /proc \
             (`--security-opt systempaths=unconfined` with docker)"
        }
        SetupStep::Seccomp => "use a kernel with CONFIG_SECCOMP_FILTER",
        _ => return None,
    };
    Some(text.to_owned())
}

/// Sets a step up in an empty directory; its command not being there is the success.
fn set_up_step(root: &Path, network: Network) -> Result<(), StepError> {
    let io_error = |action| move |source| StepError::Parent { action, source };
    let root = std::fs::File::open(root).map_err(io_error("open the probe's root"))?;
    let (cancel, _never) = no_cancel()?;
    let mut spec = StepSpec::new(vec!["probe-command-that-is-not-there".to_owned()]);
    spec.network = network;
    match crate::run_step(&spec, root.as_fd(), cancel.as_fd(), &mut |_, _| {}) {
        Ok(_) | Err(StepError::CommandNotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
