//! What git knows of a directory of this machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rbuild_frontend::remote::without_user;

use crate::error::BuildError;

/// The repository that a directory belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Top of its working tree.
    pub root: PathBuf,
    /// The commit of `HEAD`.
    pub revision: String,
    /// Address of the remote `origin`, without what may be secret.
    pub source: Option<String>,
}

impl Origin {
    /// Asks git; `None` where there is no git, no repository or no commit, as Buildx has it.
    pub fn of(dir: &Path) -> Option<Self> {
        let said = |args: &[&str]| {
            let output = plumbing(dir, args).ok().filter(|output| output.status.success())?;
            String::from_utf8(output.stdout).ok()
        };
        let places = said(&["rev-parse", "--show-toplevel", "--verify", "HEAD"])?;
        let (root, revision) = places.trim_end().rsplit_once('\n')?;
        let source = said(&["config", "--get", "remote.origin.url"]);
        Some(Self {
            root: PathBuf::from(root),
            revision: revision.to_owned(),
            source: source.map(|address| without_user(address.trim_end())).filter(|a| !a.is_empty()),
        })
    }

    /// Where a file or directory of this machine stands in the repository, `.` for its top; `None` outside of it.
    pub fn place(&self, path: &Path) -> Option<String> {
        let path = path.canonicalize().ok()?;
        let below = path.strip_prefix(self.root.canonicalize().ok()?).ok()?;
        let text = below.to_string_lossy().into_owned();
        Some(if text.is_empty() { ".".to_owned() } else { text })
    }
}

/// Asks git for the commit time of `HEAD`, in seconds.
pub fn commit_time(dir: &Path) -> Result<i64, BuildError> {
    let failed = |why: String| BuildError::GitTime { dir: dir.to_owned(), why };
    let output = plumbing(dir, &["rev-list", "--max-count=1", "--timestamp", "HEAD", "--"])
        .map_err(|error| failed(format!("git cannot be run: {error}")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let seconds = text.split_whitespace().next().and_then(|word| word.parse::<i64>().ok());
    match seconds.filter(|_| output.status.success()) {
        Some(seconds) if seconds >= 0 => Ok(seconds),
        _ => {
            let said = String::from_utf8_lossy(&output.stderr);
            let line = said.lines().next().unwrap_or("git names no commit");
            Err(failed(line.chars().take(300).collect()))
        }
    }
}

/// Runs one of git's plumbing commands, which run no hook, pager, signature program or file system monitor that the
/// repository's configuration names.
fn plumbing(dir: &Path, args: &[&str]) -> std::io::Result<Output> {
    Command::new("git")
        .args(["-c", "core.fsmonitor=false", "-C"])
        .arg(dir)
        .args(args)
        .env("GIT_OPTIONAL_LOCKS", "0")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
}
