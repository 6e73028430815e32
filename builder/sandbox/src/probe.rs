//! What this host allows, found by doing: for `rbuild doctor`.
//!
//! A child of our own goes the whole way a build goes: enters the namespaces, mounts an overlay, sets steps up in an empty
//! root. The step's command does not exist, so «not found» is success: everything before exec worked.

use crate::bootstrap::{self, Privilege};
use crate::error::{SetupStep, StepError};
use crate::network::UserNetwork;
use crate::self_copy::PROBE_MARKER;
use crate::spec::{Network, StepSpec};
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

const RESULTS_SIZE_BYTES_MAX: u64 = 64 << 10;

/// One thing a build needs, and whether it works here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeResult {
    /// What was tried, for example `user namespace`.
    pub name: String,
    /// Whether it worked.
    pub ok: bool,
    /// How it went, on one line.
    pub detail: String,
    /// What to do, when it did not work and something is known.
    pub remedy: Option<String>,
}

/// Tries everything a build needs, with scratch directories below `work_dir` (where the store is, or would be).
///
/// Call it before [`bootstrap`](fn@crate::bootstrap), so that the way in is tried as well; a separate process does the
/// trying. Blocks for some ten milliseconds. Results are in the order of a build; after a failure what depends on it is
/// left out.
pub fn probe(work_dir: &Path) -> Vec<ProbeResult> {
    let failed = |detail: String| {
        vec![ProbeResult { name: "probe process".to_owned(), ok: false, detail, remedy: None }]
    };
    let child = Command::new("/proc/self/exe")
        .arg0(PROBE_MARKER)
        .arg(work_dir)
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

/// Four tab-separated fields a line.
fn parse(text: &str) -> Vec<ProbeResult> {
    let parse_line = |line: &str| {
        let mut fields = line.split('\t');
        let (name, ok, detail) = (fields.next()?, fields.next()? == "ok", fields.next()?);
        let remedy = fields.next().filter(|remedy| !remedy.is_empty()).map(str::to_owned);
        Some(ProbeResult { name: name.to_owned(), ok, detail: detail.to_owned(), remedy })
    };
    text.lines().filter_map(parse_line).collect()
}

fn print(results: &[ProbeResult]) -> String {
    let one_line = |text: &str| text.replace(['\t', '\n', '\r'], " ");
    let print_line = |result: &ProbeResult| {
        let ok = if result.ok { "ok" } else { "fails" };
        let remedy = result.remedy.as_deref().unwrap_or("");
        format!("{}\t{ok}\t{}\t{}\n", result.name, one_line(&result.detail), one_line(remedy))
    };
    results.iter().map(print_line).collect()
}

/// The body of the probing process.
pub(crate) fn probe_main() -> i32 {
    let Some(work_dir) = std::env::args_os().nth(1).map(PathBuf::from) else { return 1 };
    let results = try_everything(&work_dir);
    match std::io::stdout().write_all(print(&results).as_bytes()) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

fn ok(name: &str, detail: impl Into<String>) -> ProbeResult {
    ProbeResult { name: name.to_owned(), ok: true, detail: detail.into(), remedy: None }
}

fn fails(name: &str, error: &dyn std::error::Error, remedy: Option<String>) -> ProbeResult {
    let mut detail = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        detail = format!("{detail}: {error}");
        cause = error.source();
    }
    ProbeResult { name: name.to_owned(), ok: false, detail, remedy }
}

fn try_everything(work_dir: &Path) -> Vec<ProbeResult> {
    let mut results = Vec::new();
    let privilege = match bootstrap::bootstrap() {
        Ok(privilege) => privilege,
        Err(error) => {
            results.push(fails("user namespace", &error, Some(error.remedy())));
            return results;
        }
    };
    results.push(match &privilege {
        Privilege::Root => ok("user namespace", "not needed: running as root"),
        Privilege::Rootless { .. } => ok("user namespace", privilege.describe()),
    });
    let scratch = work_dir.join(format!("probe-{}", std::process::id()));
    let dirs = ["lower", "upper", "work", "root"].map(|name| scratch.join(name));
    if let Err(error) = dirs.iter().try_for_each(std::fs::create_dir_all) {
        let remedy = format!("make `{}` writable", work_dir.display());
        results.push(fails("work directory", &error, Some(remedy)));
    } else {
        results.push(ok("work directory", work_dir.display().to_string()));
        let [lower, upper, work, root] = &dirs;
        results.push(try_overlay(lower, upper, work));
        results.extend(try_step(root));
    }
    if let Err(error) = std::fs::remove_dir_all(&scratch) {
        results.push(fails("clean-up", &error, None));
    }
    results
}

fn try_overlay(lower: &Path, upper: &Path, work: &Path) -> ProbeResult {
    let name = "overlay";
    let merged = match crate::mount_overlay(&[lower], Some((upper, work)), crate::in_user_namespace()) {
        Ok(merged) => merged,
        Err(error) => {
            let remedy = "use a kernel from 6.8 on with overlayfs, and a store on ext4, xfs, btrfs or tmpfs";
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
                results.push(ok(label, "set up completely"));
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
        results.push(fails(label, &error, None));
    }
    results.push(try_network(root));
    results
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
    let (cancel, _never) =
        rustix::pipe::pipe().map_err(|e| StepError::Parent { action: "create a pipe", source: e.into() })?;
    let mut spec = StepSpec::new(vec!["probe-command-that-is-not-there".to_owned()]);
    spec.network = network;
    match crate::run_step(&spec, root.as_fd(), cancel.as_fd(), &mut |_, _| {}) {
        Ok(_) | Err(StepError::CommandNotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
