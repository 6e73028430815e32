//! Runs `git` with nothing of the user's or the system's around it.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use rbuild_frontend::remote::{GitSource, without_user};

use super::{GitError, Route};
use crate::cancel::Cancel;
use crate::cli::AgentArg;

/// Most that a command may say whose output is held: thousands of submodules' addresses.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;
/// Characters of git's own words in a message.
const MESSAGE_CHARS_MAX: usize = 600;
/// Between looks at the build's switch.
const POLL: Duration = Duration::from_millis(20);

/// What of the user's surroundings git is told.
#[derive(Debug, Clone, Default)]
pub struct GitSettings {
    /// `PATH`.
    pub path: Option<OsString>,
    /// The user's home: for ssh keys and known hosts, never for git's own configuration.
    pub home: Option<PathBuf>,
    /// `SSH_AUTH_SOCK`.
    pub ssh_agent: Option<OsString>,
    /// Keys to try before those of the home.
    pub ssh_keys: Vec<PathBuf>,
    /// Variables for proxies and certificates, as they are.
    pub passed_on: Vec<(String, OsString)>,
}

impl GitSettings {
    /// With what `--ssh default` names, for repositories that are reached by ssh.
    #[must_use]
    pub fn with_ssh(mut self, agents: &[AgentArg]) -> Self {
        let paths = agents.iter().filter(|agent| agent.id == "default").flat_map(|agent| &agent.paths);
        // git runs in a directory of its own.
        for path in paths.filter_map(|path| std::path::absolute(path).ok()) {
            match std::fs::metadata(&path) {
                Ok(meta) if meta.file_type().is_socket() => self.ssh_agent = Some(path.into_os_string()),
                _ => self.ssh_keys.push(path),
            }
        }
        self
    }

    /// True when a proxy is set for a scheme.
    pub fn is_proxied(&self, scheme: &str) -> bool {
        let own = format!("{scheme}_proxy");
        let is_for = |name: &str| name.eq_ignore_ascii_case(&own) || name.eq_ignore_ascii_case("all_proxy");
        scheme.starts_with("http")
            && self.passed_on.iter().any(|(name, value)| is_for(name) && !value.is_empty())
    }
}

/// Git in a directory of its own, for one repository and its submodules.
pub struct Runner {
    settings: GitSettings,
    dir: PathBuf,
    repository: PathBuf,
    remote: String,
    route: Route,
    cancel: Cancel,
}

impl Runner {
    /// Prepares `dir`, an empty directory that goes when the build ends. `authorization` is a header for the server of
    /// `source` alone, `route` the way there.
    pub fn new(
        settings: &GitSettings,
        dir: &Path,
        source: &GitSource,
        authorization: Option<String>,
        route: Route,
        cancel: &Cancel,
    ) -> Result<Self, GitError> {
        let remote = without_user(&source.remote);
        let header = match authorization {
            Some(header) => Some(header),
            None => user_of(&source.remote),
        };
        let mut config = CONFIG.to_owned();
        if let (Some(header), Some(origin)) = (header, origin(&source.remote)) {
            if header.chars().any(char::is_control) {
                return Err(GitError::Credentials(remote));
            }
            let quoted = header.replace('\\', "\\\\").replace('"', "\\\"");
            config.push_str(&format!("[http \"{origin}\"]\n\textraHeader = \"Authorization: {quoted}\"\n"));
        }
        if let Some(pin) = &route.pin {
            config.push_str(&format!("[http]\n\tcurloptResolve = {pin}\n"));
        }
        // A file and no argument or variable: those of a process can be read by others.
        write_private(&dir.join("gitconfig"), config.as_bytes()).map_err(GitError::Run)?;
        let (settings, dir, repository) = (settings.clone(), dir.to_owned(), dir.join("repository"));
        Ok(Self { settings, dir, repository, remote, route, cancel: cancel.clone() })
    }

    /// Works on the objects of another.
    pub fn into_repository_of(self, other: &Self) -> Self {
        Self { repository: other.repository.clone(), ..self }
    }

    /// The directory everything happens in.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The way to its repository.
    pub fn route(&self) -> &Route {
        &self.route
    }

    /// The repository for messages.
    pub fn remote(&self) -> &str {
        &self.remote
    }

    /// The address to give git: without a password, which its configuration has.
    pub fn address(&self, source: &GitSource) -> String {
        match source.remote.starts_with("http") {
            true => without_user(&source.remote),
            false => source.remote.clone(),
        }
    }

    /// Runs a command to its end and gives what it wrote, as text without the final line break.
    pub async fn text(&self, what: &'static str, args: &[&str]) -> Result<String, GitError> {
        let bytes = self.bytes(what, args, &[]).await?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(text.trim_end_matches('\n').to_owned())
    }

    /// The same as bytes, with variables of its own.
    pub async fn bytes(
        &self,
        what: &'static str,
        args: &[&str],
        variables: &[(&str, &OsStr)],
    ) -> Result<Vec<u8>, GitError> {
        let mut command = self.command(args);
        command.envs(variables.iter().copied());
        let (cancel, remote) = (self.cancel.clone(), self.remote.clone());
        let run = move || {
            let mut running = Running::start(command, what, remote, cancel)?;
            let mut bytes = Vec::new();
            let read = running.stdout().take(OUTPUT_BYTES_MAX + 1).read_to_end(&mut bytes);
            if bytes.len() as u64 > OUTPUT_BYTES_MAX {
                return Err(GitError::TooMuch { what, remote: running.remote.clone() });
            }
            running.finish()?;
            read.map_err(GitError::Run)?;
            Ok(bytes)
        };
        tokio::task::spawn_blocking(run)
            .await
            .unwrap_or_else(|join| std::panic::resume_unwind(join.into_panic()))
    }

    /// Starts a command whose output is read while it runs.
    pub fn start(&self, what: &'static str, args: &[&str]) -> Result<Running, GitError> {
        Running::start(self.command(args), what, self.remote.clone(), self.cancel.clone())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.args(args).current_dir(&self.dir).env_clear();
        if let Some(path) = &self.settings.path {
            command.env("PATH", path);
        }
        command
            .env("HOME", &self.dir)
            .env("XDG_CONFIG_HOME", &self.dir)
            .env("LC_ALL", "C")
            .env("GIT_DIR", &self.repository)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", self.dir.join("gitconfig"))
            .env("GIT_ALLOW_PROTOCOL", "http:https:git:ssh")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .env("GIT_SSH_COMMAND", self.ssh())
            .envs(self.settings.passed_on.iter().map(|(name, value)| (name, value)));
        if let Some(agent) = &self.settings.ssh_agent {
            command.env("SSH_AUTH_SOCK", agent);
        }
        command
    }

    /// ssh that asks nothing, learns no new host, and reads no configuration.
    fn ssh(&self) -> String {
        let mut words =
            "ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=yes -o ClearAllForwardings=yes \
                         -o ForwardAgent=no -o ConnectTimeout=10"
                .to_owned();
        let quoted = |path: PathBuf| format!("'{}'", path.display().to_string().replace('\'', "'\\''"));
        for key in &self.settings.ssh_keys {
            words.push_str(&format!(" -i {}", quoted(key.clone())));
        }
        if let Some(home) = &self.settings.home {
            let known = quoted(home.join(".ssh/known_hosts"));
            words.push_str(&format!(" -o UserKnownHostsFile={known}"));
            let keys = ["id_ed25519", "id_ecdsa", "id_rsa"].map(|name| home.join(".ssh").join(name));
            for key in keys.into_iter().filter(|key| key.is_file()) {
                words.push_str(&format!(" -i {}", quoted(key)));
            }
        }
        words
    }
}

/// All of git's configuration.
const CONFIG: &str = "\
[core]
\thooksPath = /dev/null
\tattributesFile = /dev/null
\texcludesFile = /dev/null
\tfsmonitor = false
\tsymlinks = true
\tsharedRepository = 0644
[init]
\tdefaultBranch = master
\ttemplateDir =
[safe]
\tdirectory = *
[credential]
\thelper =
[http]
\tfollowRedirects = false
\tlowSpeedLimit = 1024
\tlowSpeedTime = 60
[fetch]
\trecurseSubmodules = false
\tnegotiationAlgorithm = noop
[gc]
\tauto = 0
[maintenance]
\tauto = false
[tar]
\tumask = 0022
[protocol]
\tversion = 2
";

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)
}

/// `https://host:port/` of an address, without its user.
fn origin(address: &str) -> Option<String> {
    let (scheme, rest) = address.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let is_plain = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b));
    (scheme.starts_with("http") && is_plain).then(|| format!("{scheme}://{host}/"))
}

/// The user and password of an address, as a header's value.
fn user_of(address: &str) -> Option<String> {
    let rest = address.strip_prefix("http://").or_else(|| address.strip_prefix("https://"))?;
    let (user, _) = rest.split(['/', '?', '#']).next()?.rsplit_once('@')?;
    let user = if user.contains(':') { user.to_owned() } else { format!("{user}:") };
    Some(basic(&user))
}

/// A header's value for `user:password`.
pub(crate) fn basic(user: &str) -> String {
    format!("basic {}", base64::engine::general_purpose::STANDARD.encode(user))
}

/// A running git. Dropping it kills it and all it started.
pub struct Running {
    child: Child,
    what: &'static str,
    remote: String,
    cancel: Cancel,
    said: Option<std::thread::JoinHandle<Vec<u8>>>,
    watch: Option<Arc<()>>,
}

impl Running {
    fn start(
        mut command: Command,
        what: &'static str,
        remote: String,
        cancel: Cancel,
    ) -> Result<Self, GitError> {
        // A group of its own: git's helpers end with it, and a Ctrl-C at the terminal is for us to handle.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => GitError::NoProgram,
            _ => GitError::Run(error),
        })?;
        let stderr = child.stderr.take().expect("piped");
        let said = std::thread::spawn(move || last_words(stderr));
        let watch = Arc::new(());
        let (running, switch) = (Arc::downgrade(&watch), cancel.clone());
        let group = rustix::process::Pid::from_child(&child);
        std::thread::spawn(move || {
            // Ends with the command: by then nobody else holds the watch.
            while running.strong_count() > 0 {
                if switch.reason().is_some() {
                    let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
                    return;
                }
                std::thread::sleep(POLL);
            }
        });
        Ok(Self { child, what, remote, cancel, said: Some(said), watch: Some(watch) })
    }

    /// Its output.
    pub fn stdout(&mut self) -> std::process::ChildStdout {
        self.child.stdout.take().expect("taken once")
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Result<(), GitError> {
        drop(self.child.stdout.take());
        let status = self.child.wait();
        self.watch = None;
        let said = self.said.take().map(std::thread::JoinHandle::join);
        let status = status.map_err(GitError::Run)?;
        if status.success() {
            return Ok(());
        }
        if self.cancel.reason().is_some() {
            return Err(GitError::Run(io::Error::other("the build was stopped")));
        }
        let said = said.and_then(Result::ok).unwrap_or_default();
        let text = String::from_utf8_lossy(&said);
        let text: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let message: String = text.join("; ").chars().take(MESSAGE_CHARS_MAX).collect();
        let message = message.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        Err(GitError::Failed { what: self.what, remote: self.remote.clone(), message })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.watch = None;
        if self.said.is_some() {
            let group = rustix::process::Pid::from_child(&self.child);
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// The beginning of what a command complains about; the rest is read and dropped, or it would wait for us for ever.
fn last_words(mut stderr: impl Read) -> Vec<u8> {
    let mut kept = Vec::new();
    let _ = stderr.by_ref().take(64 << 10).read_to_end(&mut kept);
    let _ = io::copy(&mut stderr, &mut io::sink());
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_uses_the_default_agent_or_keys() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, key) = (dir.path().join("agent"), dir.path().join("id"));
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        std::fs::write(&key, "").unwrap();
        let arg = |id: &str, path: &Path| AgentArg { id: id.to_owned(), paths: vec![path.to_owned()] };
        let with = |args: &[AgentArg]| GitSettings::default().with_ssh(args);
        assert_eq!(with(&[arg("default", &socket)]).ssh_agent.as_deref(), Some(socket.as_os_str()));
        assert_eq!(with(&[arg("default", &key)]).ssh_keys, std::slice::from_ref(&key));
        let other = with(&[arg("other", &key)]);
        assert!(other.ssh_keys.is_empty() && other.ssh_agent.is_none());
    }

    #[test]
    fn credentials_leave_the_address_for_the_configuration() {
        assert_eq!(origin("https://u:p@h:8443/a.git").as_deref(), Some("https://h:8443/"));
        assert_eq!(origin("ssh://git@h/a.git"), None);
        assert_eq!(origin("https://h\"]/a.git"), None);
        assert_eq!(user_of("https://u:p@h/a.git").as_deref(), Some("basic dTpw"));
        assert_eq!(user_of("https://h/a@b.git"), None);
    }
}
