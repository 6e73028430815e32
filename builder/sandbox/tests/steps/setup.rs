//! The host as the cases see it: a busybox root, overlays over it, and a user without rights.

use crate::host_command;
use rbuild_sandbox::{Exit, LayerDir, StepError, StepSpec, Stream, mount_overlay, run_step};
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const BUSYBOX: &str = "/bin/busybox";

/// Fails when the environment insists on a capability, else says why it is skipped.
pub(crate) fn require_or_skip(capability: &str, why: &str) {
    let required = std::env::var("RBUILD_TEST_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name == capability), "{capability} is required: {why}");
    println!("skipped: {why}");
}

/// A root file system to run steps on.
pub(crate) struct Host {
    /// `root` or `rootless`.
    pub(crate) rung: &'static str,
    /// The busybox root, never written to.
    pub(crate) lower: PathBuf,
    dir: PathBuf,
    overlays: AtomicU32,
}

/// One step's merged root and the directory its changes are in.
pub(crate) struct Merged {
    pub(crate) fd: OwnedFd,
    pub(crate) upper: PathBuf,
}

/// A step that ran.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) exit: Exit,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Host {
    pub(crate) fn new(rung: &'static str, dir: &Path) -> Host {
        let lower = dir.join("lower");
        for name in ["bin", "etc", "tmp", "mnt", "home/app", "proc", "sys", "dev"] {
            fs::create_dir_all(lower.join(name)).unwrap();
        }
        fs::set_permissions(lower.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::copy(BUSYBOX, lower.join("bin/busybox")).unwrap();
        let applets = host_command(BUSYBOX, &["--list"]).unwrap();
        for applet in applets.lines().filter(|applet| *applet != "busybox") {
            symlink("busybox", lower.join("bin").join(applet)).unwrap();
        }
        let passwd = "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n";
        fs::write(lower.join("etc/passwd"), passwd).unwrap();
        fs::write(lower.join("etc/group"), "root:x:0:\napp:x:1001:\nmedia:x:44:app\n").unwrap();
        Host { rung, lower, dir: dir.to_owned(), overlays: AtomicU32::new(0) }
    }

    pub(crate) fn try_overlay(&self) -> Result<(), String> {
        let (upper, work) = self.new_upper();
        let upper = Some((LayerDir::from(&upper), LayerDir::from(&work)));
        mount_overlay(&[LayerDir::from(&self.lower)], upper, rbuild_sandbox::in_user_namespace())
            .map(drop)
            .map_err(|error| format!("overlay: {error}: {:?}", std::error::Error::source(&error)))
    }

    pub(crate) fn new_upper(&self) -> (PathBuf, PathBuf) {
        let n = self.overlays.fetch_add(1, Ordering::Relaxed);
        let dirs = ["upper", "work"].map(|kind| self.dir.join(format!("{kind}-{n}")));
        dirs.iter().for_each(|dir| fs::create_dir_all(dir).unwrap());
        dirs.into()
    }

    /// A fresh overlay over the busybox root.
    pub(crate) fn merged(&self) -> Merged {
        self.merged_over(&[&self.lower])
    }

    pub(crate) fn merged_over(&self, lowers: &[&Path]) -> Merged {
        let (upper, work) = self.new_upper();
        let dirs = Some((LayerDir::from(&upper), LayerDir::from(&work)));
        let lowers: Vec<_> = lowers.iter().map(|lower| LayerDir::from(*lower)).collect();
        let fd = mount_overlay(&lowers, dirs, rbuild_sandbox::in_user_namespace()).unwrap();
        Merged { fd, upper }
    }

    /// Runs a spec on a fresh overlay.
    pub(crate) fn run(&self, spec: &StepSpec) -> Result<Ran, StepError> {
        run_on(&self.merged(), spec)
    }

    /// Runs a shell script as root and expects it to succeed; its output.
    #[track_caller]
    pub(crate) fn sh(&self, script: &str) -> String {
        self.sh_as("", script)
    }

    /// Runs a shell script as a user and expects it to succeed; its output.
    #[track_caller]
    pub(crate) fn sh_as(&self, user: &str, script: &str) -> String {
        let mut spec = shell(script);
        spec.user = user.to_owned();
        let ran = self.run(&spec).unwrap();
        assert_eq!(ran.exit, Exit::Code(0), "{ran:?}");
        ran.stdout
    }
}

/// A step that runs a shell script.
pub(crate) fn shell(script: &str) -> StepSpec {
    StepSpec::new(["/bin/sh", "-c", script].map(String::from).to_vec())
}

pub(crate) fn run_on(merged: &Merged, spec: &StepSpec) -> Result<Ran, StepError> {
    let (cancel, _never) = rustix::pipe::pipe().unwrap();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let exit = run_step(spec, merged.fd.as_fd(), cancel.as_fd(), &mut |stream, bytes| match stream {
        Stream::Stdout => stdout.extend(bytes),
        Stream::Stderr => stderr.extend(bytes),
    })?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Ran { exit, stdout: text(stdout), stderr: text(stderr) })
}

/// A user made for this run, with a sub-id range; removed when dropped.
pub(crate) struct User {
    name: String,
    uid: String,
    /// Holds a copy of this program: where the build directory is may be closed to others.
    dir: tempfile::TempDir,
}

impl User {
    pub(crate) fn create() -> Result<User, String> {
        let name = format!("rbuild-test-{}", std::process::id());
        host_command("useradd", &["--no-create-home", "--user-group", "--shell", "/bin/false", &name])?;
        let dir =
            tempfile::Builder::new().prefix("rbuild-steps-user").tempdir_in(crate::scratch_base()).unwrap();
        let mut user = User { name, uid: String::new(), dir };
        for (file, option) in [("/etc/subuid", "--add-subuids"), ("/etc/subgid", "--add-subgids")] {
            let granted = fs::read_to_string(file).unwrap_or_default();
            if !granted.lines().any(|line| line.starts_with(&format!("{}:", user.name))) {
                host_command("usermod", &[option, "1000000000-1000065535", &user.name])?;
            }
        }
        user.uid = host_command("id", &["-u", &user.name])?.trim().to_owned();
        fs::set_permissions(user.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy("/proc/self/exe", user.dir.path().join("steps")).unwrap();
        let work = user.dir.path().join("work");
        fs::create_dir(&work).unwrap();
        std::os::unix::fs::chown(&work, user.uid.parse().ok(), user.uid.parse().ok()).unwrap();
        Ok(user)
    }

    /// A command that runs this program as the user; a mode comes first, then a directory of the user's own.
    ///
    /// It sees a `/dev/net/tun` that users may open, as most hosts have it.
    pub(crate) fn command(&self, mode: &str, more: &[String]) -> Command {
        let mut command = self.command_as(&self.uid, mode);
        command.arg(self.dir.path().join("work")).args(more);
        command
    }

    fn command_as(&self, uid: &str, mode: &str) -> Command {
        // In a subshell, because the program is to get `PATH` as it is given.
        const WITH_TUN: &str = "(PATH=/usr/sbin:/usr/bin:/sbin:/bin; t=$(mktemp -d) && mount -t tmpfs tun $t && \
             mknod -m 0666 $t/tun c 10 200 && { [ ! -e /dev/net/tun ] || mount --bind $t/tun /dev/net/tun; } && \
             umount -l $t && rmdir $t) && exec \"$@\"";
        let mut command = Command::new("/usr/bin/unshare");
        command
            .args(["--mount", "/bin/sh", "-c", WITH_TUN, "sh", "/usr/bin/setpriv"])
            .args(["--reuid", uid, "--regid", uid, "--clear-groups", "--"])
            .arg(self.dir.path().join("steps"))
            .arg(mode)
            .current_dir("/");
        command
    }
}

/// The ways in that do not exist are told by name, with what to do.
pub(crate) fn check_bootstrap_errors(user: &User) {
    let output = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    // An id nobody has.
    let text = output(&mut user.command_as("54321", "--bootstrap-error"));
    assert!(text.contains("add the line `54321:100000:65536` to /etc/subuid"), "{text}");
    let text = output(user.command("--bootstrap-error", &[]).env("PATH", "/nowhere"));
    assert!(text.starts_with("`newuidmap` is not installed; install the package `uidmap`"), "{text}");
    println!("test bootstrap errors name the remedy ... ok");
}

impl Drop for User {
    fn drop(&mut self) {
        // Its last processes may still be on their way out.
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = host_command("userdel", &[&self.name]) {
            if Instant::now() > deadline {
                println!("could not remove the test user: {error}");
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
