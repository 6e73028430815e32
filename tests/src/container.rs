//! What most containers give a process that is root in one: docker's default capabilities, a system call filter without
//! namespaces and mounts, a masked `/proc`. Started by runc.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::need::{find_program, program_path};

/// Docker's default set.
pub const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Of what docker's default profile denies, all that a builder could want.
const DENIED: &[&str] = &[
    "add_key",
    "bpf",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "keyctl",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "request_key",
    "setns",
    "umount",
    "umount2",
    "unshare",
    "userfaultfd",
];

#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: &[&str] = &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"];
#[cfg(not(target_arch = "x86_64"))]
const ARCHITECTURES: &[&str] = &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"];

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// `CLONE_NEW*` as far as clone takes them.
const NAMESPACE_FLAGS: u32 = 0x7E02_0000;

/// The command that runs `command` in a container of the default profile, on the host's network, with the host's programs
/// read-only and `dir` writable under its own path. The bundle is made in `dir`.
///
/// # Errors
///
/// When runc is not installed or the bundle cannot be written.
pub fn contained(command: &Command, dir: &Path) -> Result<Command> {
    let bundle = dir.join("container");
    let root = bundle.join("rootfs");
    if !root.exists() {
        fs::create_dir_all(&root)?;
        for name in ["bin", "sbin", "lib", "lib64"] {
            symlink(Path::new("usr").join(name), root.join(name))?;
        }
    }
    fs::write(bundle.join("config.json"), serde_json::to_vec_pretty(&config(command, dir)?)?)?;
    let name = dir.file_name().context("a directory with a name")?;
    let mut runc = Command::new(find_program("runc").context("`runc` is not installed")?);
    runc.arg("--root").arg(dir.join("runc")).args(["run", "--bundle"]).arg(&bundle).arg(name);
    runc.env_clear().env("PATH", program_path()).current_dir(dir);
    Ok(runc)
}

fn config(command: &Command, dir: &Path) -> Result<Value> {
    let text = |text: &OsStr| text.to_str().map(str::to_owned).context("UTF-8");
    let mut args = vec![text(command.get_program())?];
    for arg in command.get_args() {
        args.push(text(arg)?);
    }
    let mut env = Vec::new();
    for (name, value) in command.get_envs() {
        env.push(format!("{}={}", text(name)?, text(value.unwrap_or_default())?));
    }
    let bind = |path: &Path, access: &str| json!({"destination": path, "source": path, "type": "bind", "options": ["rbind", access]});
    let cwd = command.get_current_dir().unwrap_or(dir);
    let call =
        |names: &[&str], errno: u32| json!({"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno});
    // One rule for each flag: a rule's arguments must all match.
    let clone = |flag: u32| {
        let mut rule = call(&["clone"], EPERM);
        rule["args"] = json!([{"index": 0, "value": flag, "valueTwo": flag, "op": "SCMP_CMP_MASKED_EQ"}]);
        rule
    };
    let flags = (0..32).map(|bit| 1u32 << bit).filter(|flag| flag & NAMESPACE_FLAGS != 0);
    let mut calls = vec![call(DENIED, EPERM), call(&["clone3"], ENOSYS)];
    calls.extend(flags.map(clone));
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": env,
            "cwd": cwd,
            "noNewPrivileges": false,
            "capabilities": {
                "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
                "inheritable": [], "ambient": [],
            },
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "container",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]},
            bind(Path::new("/usr"), "ro"),
            bind(Path::new("/etc"), "ro"),
            bind(dir, "rw"),
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ARCHITECTURES,
                "syscalls": calls,
            },
        },
    }))
}
