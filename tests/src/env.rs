//! A world of its own for one test: home, store, temporary directory, environment.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Component, Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::binary::{rbuild, repository};
use crate::container::contained;
use crate::leak;
use crate::need::program_path;
use crate::registry::Registry;
use crate::run::Run;
use crate::tun::{with_masked_proc, with_tun};
use crate::user::User;

/// A build that takes longer hangs: no test waits for more than apt and npm on a slow machine.
const RUN_LIMIT: Duration = Duration::from_secs(420);

/// Variables of the caller that reach the binary: how this machine reaches the network, and who certifies it.
const PASSED_ON: &[&str] = &[
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "RUST_BACKTRACE",
];

/// One test's world. Dropping it removes everything, whoever owns it.
#[derive(Debug)]
pub struct TestEnv {
    // Order of fields is order of dropping: the files go before their owner's account does.
    dir: TempDir,
    user: Option<User>,
    root: PathBuf,
    variables: Vec<(String, String)>,
}

impl TestEnv {
    /// A world whose binary runs as the caller.
    ///
    /// # Errors
    ///
    /// When there is no binary to test or no room for the directories.
    pub fn new() -> Result<Self> {
        Self::owned_by(None)
    }

    /// A world whose binary runs as an ordinary user with a sub-id range. Only for root.
    ///
    /// # Errors
    ///
    /// As [`TestEnv::new`], and when the user cannot be made.
    pub fn rootless() -> Result<Self> {
        Self::owned_by(Some(User::create()?))
    }

    /// A world whose binary runs as an ordinary user without subordinate ids. Only for root.
    ///
    /// # Errors
    ///
    /// As [`TestEnv::rootless`].
    pub fn without_sub_ids() -> Result<Self> {
        Self::owned_by(Some(User::create_without_range()?))
    }

    fn owned_by(user: Option<User>) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("rbuild-test-").tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        for name in ["home", "tmp", "work", "bin"] {
            fs::create_dir(dir.path().join(name))?;
        }
        // A copy of its own: readable by the user under test, and a name that no other test's processes have.
        let binary = dir.path().join("bin/rbuild");
        fs::copy(rbuild()?, &binary).context("copy the binary")?;
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))?;
        if let Some(user) = &user {
            for name in ["home", "tmp", "work"] {
                user.give(&dir.path().join(name))?;
            }
        }
        let root = dir.path().join("work/store");
        Ok(Self { dir, user, root, variables: Vec::new() })
    }

    /// Serves Docker Hub's names from this registry, through `registries.conf`.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn using(self, registry: &Registry) -> Result<Self> {
        self.with_hub_at(&registry.host())
    }

    /// Serves Docker Hub's names from `HOST:PORT`, whether something listens there or not.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn with_hub_at(self, host: &str) -> Result<Self> {
        // The location too: no test may ever reach the real Docker Hub when its mirror says no.
        let text = format!(
            "[[registry]]\nprefix = \"docker.io\"\nlocation = \"{host}\"\ninsecure = true\n\n\
             [[registry.mirror]]\nlocation = \"{host}\"\ninsecure = true\n"
        );
        self.write("home/.config/containers/registries.conf", &text)?;
        Ok(self)
    }

    /// Puts the store elsewhere.
    #[must_use]
    pub fn with_store(mut self, root: &Path) -> Self {
        root.clone_into(&mut self.root);
        self
    }

    /// Sets a variable in the binary's environment.
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The directory all of it lies in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Path {
        &self.root
    }

    /// A directory that the binary may write to and that starts empty.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// Writes a file below [`TestEnv::dir`], with its directories, for the user under test.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&self, path: impl AsRef<Path>, text: &str) -> Result<PathBuf> {
        let path = path.as_ref();
        // An absolute path would be given to the user under test from the root directory on.
        let is_below = path.components().all(|component| matches!(component, Component::Normal(_)));
        ensure!(is_below, "{} does not stay below the test's directory", path.display());
        let full = self.dir.path().join(path);
        if let Some(parent) = full.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&full, text).with_context(|| format!("write {}", full.display()))?;
        let top = path.components().next().context("a path below the test's directory")?;
        self.give(&self.dir.path().join(top))?;
        Ok(full)
    }

    /// A context `work/NAME` with this Dockerfile and these files.
    ///
    /// # Errors
    ///
    /// When a file cannot be written.
    pub fn context(&self, name: &str, dockerfile: &str, files: &[(&str, &str)]) -> Result<PathBuf> {
        let dir = Path::new("work").join(name);
        self.write(dir.join("Dockerfile"), dockerfile)?;
        for (path, text) in files {
            self.write(dir.join(path), text)?;
        }
        Ok(self.dir.path().join(dir))
    }

    /// A copy of `fixtures/NAME` that the test may change.
    ///
    /// # Errors
    ///
    /// When it cannot be copied.
    pub fn fixture(&self, name: &str) -> Result<PathBuf> {
        let target = self.work().join(name.replace('/', "-"));
        copy_tree(&repository().join("fixtures").join(name), &target)?;
        self.give(&target)?;
        Ok(target)
    }

    fn give(&self, path: &Path) -> Result<()> {
        self.user.as_ref().map_or(Ok(()), |user| user.give(path))
    }

    /// The binary, with the world's environment and nothing else.
    #[must_use]
    pub fn command<I>(&self, args: I) -> Command
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let mut command = Command::new(self.dir.path().join("bin/rbuild"));
        command.args(args).env_clear().current_dir(self.work()).stdin(Stdio::null());
        command.env("HOME", self.dir.path().join("home")).env("TMPDIR", self.dir.path().join("tmp"));
        command.env("PATH", program_path()).env("RBUILD_ROOT", &self.root).env("LANG", "C.UTF-8");
        command.env(leak::MARK, self.dir.path());
        for name in PASSED_ON {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        if self.user.is_some() {
            command.env("USER", "rbuild-test");
        }
        self.as_user(&mut command);
        command
    }

    /// Has a command run as the user under test, if there is one.
    pub fn as_user<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        match &self.user {
            Some(user) => command.uid(user.uid()).gid(user.gid()),
            None => command,
        }
    }

    /// [`TestEnv::run`] where a process may have so many descriptors.
    ///
    /// # Errors
    ///
    /// As [`TestEnv::run`].
    pub fn run_with_descriptors<I>(&self, max: u32, args: I) -> Result<Run>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let inner = self.command(args);
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "ulimit -n \"$1\"; shift; exec \"$@\"", "sh", &max.to_string()]);
        command.arg(inner.get_program()).args(inner.get_args());
        command.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.current_dir(self.work()).stdin(Stdio::null());
        self.as_user(&mut command);
        self.start(command)?.finish()
    }

    /// [`TestEnv::run`] with a `/dev/net/tun` that the user under test may open: see [`crate::tun`].
    ///
    /// # Errors
    ///
    /// As [`TestEnv::run`].
    pub fn run_with_tun<I>(&self, args: I) -> Result<Run>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let command = self.command(args);
        let command = match &self.user {
            Some(user) => with_tun(&command, (user.uid(), user.gid())),
            None => command,
        };
        finish(self.start(command)?)
    }

    /// [`TestEnv::run`] as the user under test, where parts of `/proc` are covered: see [`crate::tun`].
    ///
    /// # Errors
    ///
    /// As [`TestEnv::run`], and for a world without a user.
    pub fn run_with_masked_proc<I>(&self, args: I) -> Result<Run>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let user = self.user.as_ref().context("a world with a user")?;
        finish(self.start(with_masked_proc(&self.command(args), (user.uid(), user.gid())))?)
    }

    /// Runs the binary to its end.
    ///
    /// # Errors
    ///
    /// When it cannot be started, or does not end in time (it is killed then).
    pub fn run<I>(&self, args: I) -> Result<Run>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let command = self.command(args);
        finish(self.start(command)?)
    }

    /// [`TestEnv::run`] as root of a container with docker's default profile: see [`crate::container`].
    ///
    /// # Errors
    ///
    /// As [`TestEnv::run`], and when there is no container to be had.
    pub fn run_contained<I>(&self, args: I) -> Result<Run>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let command = contained(&self.command(args), self.dir())?;
        finish(self.start(command)?)
    }

    /// `rbuild build --progress plain ARGS CONTEXT`.
    ///
    /// # Errors
    ///
    /// As [`TestEnv::run`].
    pub fn build(&self, context: &Path, args: &[&str]) -> Result<Run> {
        let mut all = vec!["build", "--progress", "plain"];
        all.extend(args);
        let context = context.to_str().context("a context path in UTF-8")?;
        all.push(context);
        self.run(all)
    }

    /// Builds and returns the run with the image's manifest digest.
    ///
    /// Compare only between builds with one kind of output: an image that no exporter asked for has no compressed
    /// layers yet, and so another manifest than the pushed one.
    ///
    /// # Errors
    ///
    /// As [`TestEnv::run`]; and when the metadata file has no digest.
    ///
    /// # Panics
    ///
    /// When the build fails.
    #[track_caller]
    pub fn build_digest(&self, context: &Path, args: &[&str]) -> Result<(Run, String)> {
        self.build_metadata(context, args, "containerimage.digest")
    }

    /// Builds and returns the run with the image's id, which is the same whatever the output.
    ///
    /// # Errors
    ///
    /// As [`TestEnv::build_digest`].
    ///
    /// # Panics
    ///
    /// When the build fails.
    #[track_caller]
    pub fn build_id(&self, context: &Path, args: &[&str]) -> Result<(Run, String)> {
        self.build_metadata(context, args, "containerimage.config.digest")
    }

    #[track_caller]
    fn build_metadata(&self, context: &Path, args: &[&str], key: &str) -> Result<(Run, String)> {
        let file = self.work().join("metadata.json");
        let mut all = vec!["--metadata-file", file.to_str().context("UTF-8")?];
        all.extend(args);
        let run = self.build(context, &all)?.ok();
        let metadata: Value = serde_json::from_slice(&fs::read(&file).context("read the metadata file")?)?;
        let digest = metadata[key].as_str().with_context(|| format!("no `{key}`"))?;
        Ok((run, digest.to_owned()))
    }

    /// Starts a command of this world; its output is collected while it runs.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(&self, mut command: Command) -> Result<Started> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let line: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
        let line = format!("rbuild {}", line.join(" "));
        let at = Instant::now();
        let child = self.spawn(&mut command).with_context(|| format!("start {line}"))?;
        Ok(Started { child, line, at })
    }

    /// Starts a command of [`TestEnv::command`] with whatever outputs it has.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let at = Instant::now();
        // A child that another test forks while this test's binary is being copied holds the copy open for writing until
        // it executes its own.
        loop {
            match command.spawn() {
                Err(e)
                    if e.kind() == ErrorKind::ExecutableFileBusy
                        && at.elapsed() < Duration::from_secs(10) =>
                {
                    thread::sleep(Duration::from_millis(5));
                }
                spawned => return Ok(spawned?),
            }
        }
    }

    /// Waits until a build of this world executes a step: its lock names the holder then.
    ///
    /// # Errors
    ///
    /// When none begins for long.
    pub fn await_step(&self) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(120);
        while Instant::now() < until {
            for entry in fs::read_dir(self.root.join("locks")).into_iter().flatten() {
                let entry = entry?;
                let is_step = entry.file_name().to_string_lossy().starts_with("content-");
                if is_step && fs::metadata(entry.path()).is_ok_and(|metadata| metadata.len() > 0) {
                    return Ok(());
                }
            }
            thread::yield_now();
        }
        bail!("no step began")
    }

    /// Fails when a mount, a process or an unfinished file of this world is left.
    ///
    /// # Panics
    ///
    /// Naming what is left.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let left = leak::left_behind(self.dir.path(), &self.root);
        assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
    }
}

/// A run that has begun.
#[derive(Debug)]
pub struct Started {
    child: Child,
    line: String,
    at: Instant,
}

impl Started {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it and waits for its end.
    ///
    /// # Errors
    ///
    /// When it is not to be killed.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// When it takes too long (it is killed then).
    pub fn finish(self) -> Result<Run> {
        finish(self)
    }
}

fn finish(mut started: Started) -> Result<Run> {
    let collect = |mut pipe: Box<dyn std::io::Read + Send>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.read_to_end(&mut bytes).map(|_| String::from_utf8_lossy(&bytes).into_owned())
        })
    };
    let stdout = collect(Box::new(started.child.stdout.take().context("stdout was taken")?));
    let stderr = collect(Box::new(started.child.stderr.take().context("stderr was taken")?));
    let status = loop {
        if let Some(status) = started.child.try_wait()? {
            break status;
        }
        if started.at.elapsed() > RUN_LIMIT {
            started.child.kill()?;
            started.child.wait()?;
            // Not joined: whatever it started may hold the pipes open for ever.
            bail!("`{}` did not end within {RUN_LIMIT:?}", started.line);
        }
        thread::sleep(Duration::from_millis(5));
    };
    let wall = started.at.elapsed();
    let text = |handle: thread::JoinHandle<std::io::Result<String>>| match handle.join() {
        Ok(text) => Ok(text?),
        Err(_) => bail!("the reader of the output panicked"),
    };
    Ok(Run { command: started.line, code: status.code(), stdout: text(stdout)?, stderr: text(stderr)?, wall })
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
