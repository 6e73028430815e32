//! runc as oracle: the probe runs in a container of runc with the published default profile, and what it finds there is
//! compared with what it finds in a step on rung `root`. Every difference stands in `oracle.txt` with its reason.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use rbuild_tests::container::CAPABILITIES;
use rbuild_tests::need;
use rbuild_tests::need::{find_program, program_path};
use serde_json::{Value, json};

use crate::probes::{HostSide, Probe, collect, context};
use crate::rungs::Place;
use crate::table::{Findings, USERS};

/// Differences: `ROW NAME: OURS, not RUNC'S -- REASON`. `ROW NAME/USER` where it is one user's.
const DIFFERENCES: &str = include_str!("oracle.txt");
/// The default profile as containers' tools publish it; Debian has it in a package that skopeo needs.
const PROFILE: &str = "/usr/share/containers/seccomp.json";

/// What containers get hidden and read-only by default (containerd and docker alike).
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The published profile as runc takes it, for our capabilities and this architecture.
fn seccomp() -> Result<Value> {
    let profile: Value = serde_json::from_slice(&fs::read(PROFILE).context(PROFILE)?)?;
    let (arch, sub_arch) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", "SCMP_ARCH_X86_64"),
        _ => ("arm64", "SCMP_ARCH_AARCH64"),
    };
    let list = |value: &Value| -> Vec<String> {
        let items = value.as_array().cloned().unwrap_or_default();
        items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
    };
    let has_cap = |name: &String| CAPABILITIES.contains(&name.as_str());
    let applies = |rule: &Value| {
        let (with, without) = (&rule["includes"], &rule["excludes"]);
        let arches = list(&with["arches"]);
        list(&with["caps"]).iter().all(has_cap)
            && !list(&without["caps"]).iter().any(has_cap)
            && (arches.is_empty() || arches.iter().any(|name| name == arch))
            && !list(&without["arches"]).iter().any(|name| name == arch)
    };
    let rules = profile["syscalls"].as_array().context("rules")?;
    let rules: Vec<Value> = rules
        .iter()
        .filter(|rule| applies(rule))
        .map(|rule| {
            let mut made = json!({"names": rule["names"], "action": rule["action"]});
            for field in ["args", "errnoRet"] {
                if !rule[field].is_null() {
                    made[field] = rule[field].clone();
                }
            }
            made
        })
        .collect();
    let known = profile["archMap"].as_array().context("architectures")?;
    let known = known.iter().find(|entry| entry["architecture"] == sub_arch).context("this architecture")?;
    let mut architectures = vec![sub_arch.to_owned()];
    architectures.extend(list(&known["subArchitectures"]));
    Ok(json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": architectures,
        "syscalls": rules,
    }))
}

fn config(args: &[&str], uid: u32) -> Result<Value> {
    let tmpfs = |at: &str, options: &[&str]| json!({"destination": at, "type": "tmpfs", "source": "tmpfs", "options": options});
    let caps = if uid == 0 { CAPABILITIES } else { &[] };
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": uid, "gid": 0},
            "args": args,
            "env": ["PATH=/bin", "HOME=/", "HOSTNAME=buildkitsandbox", "IMAGE=own"],
            "cwd": "/",
            "noNewPrivileges": false,
            "capabilities": {
                "bounding": CAPABILITIES, "effective": caps, "permitted": caps, "inheritable": [], "ambient": [],
            },
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "buildkitsandbox",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            tmpfs("/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            tmpfs("/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}, {"type": "cgroup"},
            ],
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "seccomp": seccomp()?,
        },
    }))
}

/// Runs the probe in a container; its output.
fn run_in_runc(dir: &Path, args: &[&str], uid: u32, name: &str) -> Result<String> {
    fs::write(dir.join("config.json"), serde_json::to_vec_pretty(&config(args, uid)?)?)?;
    let output = Command::new(find_program("runc").context("`runc` is not installed")?)
        .arg("--root")
        .arg(dir.join("state"))
        .args(["run", "--bundle"])
        .arg(dir)
        .arg(name)
        .env("PATH", program_path())
        .stdin(Stdio::null())
        .output()?;
    ensure!(output.status.success(), "runc: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// A bundle with the probe's files, as the image has them.
fn bundle(dir: &Path, context: &Path, probe: &Path) -> Result<()> {
    let root = dir.join("rootfs");
    let status = Command::new("cp").arg("-a").arg(context.join("root")).arg(&root).status()?;
    ensure!(status.success(), "cp: {status}");
    for (name, mode) in [("probe", 0o755), ("suid", 0o4755)] {
        fs::copy(probe, root.join(name))?;
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// S17, S15, S4: what a container of runc can and cannot do, a step can and cannot do, but for the listed differences.
#[test]
fn a_step_is_like_a_container_of_runc_but_for_known_differences() -> Result<()> {
    need!(Root, Runtime, Compiler, Judges);
    let probe = Probe::compile()?;
    let host = HostSide::start(&probe)?;
    let env = Place::Root.env()?;
    let context = context(&env, &probe, &host, Place::Root)?;
    let facts = "FROM probed\nRUN --network=none [\"/probe\", \"facts\", \"0\"]\nUSER 1000\nRUN --network=none [\"/probe\", \"facts\", \"1000\"]\n";
    let all = fs::read_to_string(context.join("Dockerfile"))?;
    let (mut ours, mut theirs) = (Findings::new(), Findings::new());
    collect(&env.build(&context, &[])?.ok().stderr, Place::Root, &mut ours)?;
    fs::write(context.join("Dockerfile"), all + facts)?;
    let dir = tempfile::tempdir()?;
    bundle(dir.path(), &context, &probe.path())?;
    collect(&env.build(&context, &[])?.ok().stderr, Place::Root, &mut ours)?;
    let (port, key, pid) = (host.port.as_str(), host.key.to_string(), host.pid.as_str());
    let marker = env.work().join("marker");
    let marker = marker.to_str().context("UTF-8")?;
    for user in USERS {
        let uid = user.parse()?;
        let name = format!("rbuild-oracle-{}-{user}", std::process::id());
        for args in [&["/probe", "facts", user][..], &["/probe", "all", user, port, &key, pid, marker]] {
            collect(&run_in_runc(dir.path(), args, uid, &name)?, Place::Root, &mut theirs)?;
        }
    }
    // What the network gives is compared by suite S alone, and the layers below are runc's caller's affair.
    let is_compared = |(row, name): &(String, String)| {
        !name.starts_with("default/")
            && !name.starts_with("none/")
            && !["S21", "S23", "S25"].contains(&row.as_str())
    };
    let mut found = BTreeMap::new();
    for key in ours.keys().chain(theirs.keys()).filter(|(finding, _)| is_compared(finding)) {
        let outcome = |of: &Findings| of.get(key).map_or("absent", String::as_str).to_owned();
        let (ours, theirs) = (outcome(&ours), outcome(&theirs));
        if ours != theirs {
            let ((row, name), (_, user)) = key;
            found.insert((format!("{row} {name}"), *user), format!("{ours}, not {theirs}"));
        }
    }
    check(&found)?;
    env.assert_nothing_left();
    Ok(())
}

/// Compares with the list, which must have neither less nor more.
fn check(found: &BTreeMap<(String, &'static str), String>) -> Result<()> {
    let mut listed = BTreeMap::new();
    for line in DIFFERENCES.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (difference, reason) = line.split_once(" -- ").with_context(|| format!("no reason: {line}"))?;
        ensure!(!reason.trim().is_empty(), "no reason: {line}");
        let (name, what) = difference.split_once(": ").with_context(|| format!("no outcome: {line}"))?;
        for user in USERS {
            let name = match name.strip_suffix(&format!("/{user}")) {
                Some(name) => name,
                None if USERS.iter().any(|other| name.ends_with(&format!("/{other}"))) => continue,
                None => name,
            };
            listed.insert((name.to_owned(), user), what.to_owned());
        }
    }
    let lines = |of: &BTreeMap<(String, &'static str), String>,
                 not: &BTreeMap<(String, &'static str), String>| {
        let only = of.iter().filter(|(key, what)| not.get(*key) != Some(*what));
        only.map(|((name, user), what)| format!("{name}/{user}: {what}")).collect::<Vec<_>>()
    };
    let (unlisted, gone) = (lines(found, &listed), lines(&listed, found));
    ensure!(
        unlisted.is_empty() && gone.is_empty(),
        "differences from runc that oracle.txt does not have:\n{}\nand that are none:\n{}",
        unlisted.join("\n"),
        gone.join("\n")
    );
    Ok(())
}
