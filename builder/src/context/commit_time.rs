//! When the last commit of a directory's repository was made.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::BuildError;

/// Asks git for the commit time of `HEAD`, in seconds. Plumbing only: no hook, pager, signature program or file system
/// monitor that the repository's configuration names is run.
pub fn commit_time(dir: &Path) -> Result<i64, BuildError> {
    let failed = |why: String| BuildError::GitTime { dir: dir.to_owned(), why };
    let output = Command::new("git")
        .args(["-c", "core.fsmonitor=false", "-C"])
        .arg(dir)
        .args(["rev-list", "--max-count=1", "--timestamp", "HEAD", "--"])
        .env("GIT_OPTIONAL_LOCKS", "0")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
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
