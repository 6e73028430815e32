//! Docker's own builder as an oracle: a `dockerd` of one test, with BuildKit inside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::need::{find_program, program_path};
use crate::registry::Registry;

/// How long the daemon may take to start, and to end.
const LIMIT: Duration = Duration::from_secs(60);

/// A daemon with directories of its own. Dropping it ends it and what it started.
#[derive(Debug)]
pub struct Docker {
    daemon: Child,
    client: PathBuf,
    dir: TempDir,
}

impl Docker {
    /// Starts a daemon that gets Docker Hub's images from this registry.
    ///
    /// # Errors
    ///
    /// When it is not installed or does not start.
    pub fn start(registry: &Registry) -> Result<Self> {
        let program = find_program("dockerd").context("`dockerd` is not installed")?;
        // Debian's own client: newer ones want a buildx plugin, which Debian does not have.
        let debian = Path::new("/usr/bin/docker");
        let client = if debian.is_file() { Some(debian.to_owned()) } else { find_program("docker") };
        let client = client.context("`docker` is not installed")?;
        let dir = tempfile::Builder::new().prefix("rbuild-docker-").tempdir()?;
        let at = |name: &str| dir.path().join(name);
        let log = fs::File::create(at("log"))?;
        let daemon = Command::new(program)
            .args(["--iptables=false", "--ip6tables=false", "--ip-forward=false", "--bridge=none"])
            .arg("--data-root")
            .arg(at("data"))
            .arg("--exec-root")
            .arg(at("exec"))
            .arg("--pidfile")
            .arg(at("pid"))
            .arg("--host")
            .arg(format!("unix://{}", at("socket").display()))
            .arg("--registry-mirror")
            .arg(format!("http://{}", registry.host()))
            .args(["--insecure-registry", &registry.host()])
            .env_clear()
            .env("PATH", program_path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start dockerd")?;
        let mut docker = Self { daemon, client, dir };
        let deadline = Instant::now() + LIMIT;
        while !docker.command(&["version"]).output()?.status.success() {
            let has_ended = docker.daemon.try_wait()?;
            let log = || fs::read_to_string(docker.dir.path().join("log")).unwrap_or_default();
            ensure!(has_ended.is_none() && Instant::now() < deadline, "dockerd does not start:\n{}", log());
            thread::sleep(Duration::from_millis(100));
        }
        Ok(docker)
    }

    /// Builds a context with BuildKit and saves the image to a docker archive.
    ///
    /// # Errors
    ///
    /// When the build fails; what it printed is in the error.
    pub fn build(&self, context: &Path, name: &str, args: &[String], archive: &Path) -> Result<()> {
        let mut build = self.command(&["build", "--network=host", "--progress=plain", "--tag", name]);
        finish(build.args(args).arg(context))?;
        finish(self.command(&["save", name, "--output"]).arg(archive))?;
        Ok(())
    }

    /// Its client, with an environment of its own and nothing on standard input.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.client);
        let socket = format!("unix://{}", self.dir.path().join("socket").display());
        command.args(["--host", &socket]).args(args).env_clear();
        command.env("PATH", program_path()).env("HOME", self.dir.path()).env("DOCKER_BUILDKIT", "1");
        command.stdin(Stdio::null());
        command
    }
}

fn finish(command: &mut Command) -> Result<Output> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

impl Drop for Docker {
    fn drop(&mut self) {
        // It ends its containerd and unmounts what it mounted when it is asked to.
        let pid = i32::try_from(self.daemon.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM).ok();
        }
        let deadline = Instant::now() + LIMIT;
        while matches!(self.daemon.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        self.daemon.kill().ok();
        self.daemon.wait().ok();
        for mount in mounts_below(self.dir.path()) {
            Command::new("umount").arg("--lazy").arg(mount).status().ok();
        }
    }
}

/// Innermost first.
fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut found: Vec<PathBuf> = points.filter(|point| point.starts_with(dir)).collect();
    found.reverse();
    found
}
