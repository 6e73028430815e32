//! The last build's command line, kept in the store for `rbuild debug`.
//!
//! Written by builds that execute something or fail: one with nothing to do writes nothing. What might be a secret is not
//! kept: of build arguments whose names look secret only the names, and nothing of a build whose sources are addresses.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rbuild_frontend::lint::looks_secret;
use serde::{Deserialize, Serialize};

use crate::cli::{BuildRequest, ContextArg, DockerfileArg, NamedContextArg};

const FILE: &str = "last-build.json";

/// A command line and where it was typed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastBuild {
    /// Working directory, which paths are relative to.
    pub dir: PathBuf,
    /// Arguments, without the program's name.
    pub args: Vec<String>,
    /// Build arguments of which only the name is among them.
    pub withheld: Vec<String>,
}

/// Why there is no last build to return to.
#[derive(Debug, thiserror::Error)]
pub enum LastBuildError {
    /// None was remembered.
    #[error("no build that executed a step is remembered in {}", .0.display())]
    None(PathBuf),
    /// It cannot be read.
    #[error("read what is remembered of the last build in {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its directory is gone.
    #[error("enter {}, where the last build was started", .dir.display())]
    Dir {
        /// Which.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Keeps a build's command line in the store at `root`, or forgets the one before when this one must not be kept.
///
/// A convenience: what cannot be written is not there later, and that is all.
pub fn remember(root: &Path, typed: &[OsString], request: &BuildRequest) {
    let path = root.join(FILE);
    let written = last(typed, request).map(|last| write(&path, &last));
    if !matches!(written, Some(Ok(()))) {
        let _absent = fs::remove_file(&path);
    }
}

fn last(typed: &[OsString], request: &BuildRequest) -> Option<LastBuild> {
    let is_here = matches!(request.context, ContextArg::Local(_))
        && !matches!(request.dockerfile, Some(DockerfileArg::Stdin | DockerfileArg::Http(_)))
        && !request
            .named_contexts
            .iter()
            .any(|(_, context)| matches!(context, NamedContextArg::Git(_) | NamedContextArg::Http(_)));
    let typed: Option<Vec<String>> = typed.iter().map(|arg| arg.to_str().map(str::to_owned)).collect();
    let (args, withheld) = without_secrets(typed.filter(|_| is_here)?);
    Some(LastBuild { dir: std::env::current_dir().ok()?, args, withheld })
}

/// Takes the values of build arguments out whose names look secret.
fn without_secrets(typed: Vec<String>) -> (Vec<String>, Vec<String>) {
    const FLAG: &str = "--build-arg";
    let mut withheld = Vec::new();
    let mut args: Vec<String> = Vec::new();
    for arg in typed {
        let is_value = args.last().is_some_and(|before| before == FLAG);
        let prefix = if is_value { "" } else { "--build-arg=" };
        let kept = match arg.strip_prefix(prefix).and_then(|pair| pair.split_once('=')) {
            Some((name, _)) if looks_secret(name) && (is_value || arg.starts_with(prefix)) => {
                withheld.push(name.to_owned());
                format!("{prefix}{name}")
            }
            _ => arg,
        };
        args.push(kept);
    }
    (args, withheld)
}

fn write(path: &Path, last: &LastBuild) -> io::Result<()> {
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
        file.write_all(&serde_json::to_vec(last)?)?;
        fs::rename(&partial, path)
    };
    let written = write();
    if written.is_err() {
        let _absent = fs::remove_file(&partial);
    }
    written
}

/// What [`remember`] kept in the store at `root`.
pub fn recall(root: &Path) -> Result<LastBuild, LastBuildError> {
    let path = root.join(FILE);
    match fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?)) {
        Ok(last) => Ok(last),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(LastBuildError::None(root.to_owned())),
        Err(source) => Err(LastBuildError::Read { path, source }),
    }
}

impl LastBuild {
    /// Goes where it was started.
    pub fn enter_dir(&self) -> Result<(), LastBuildError> {
        std::env::set_current_dir(&self.dir)
            .map_err(|source| LastBuildError::Dir { dir: self.dir.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_secret_build_arguments_are_not_kept() {
        let typed = [
            "build",
            "--build-arg",
            "NPM_TOKEN=hunter2",
            "--build-arg=API_PASSWORD=x",
            "--build-arg",
            "A=1",
            ".",
        ];
        let (args, withheld) = without_secrets(typed.map(str::to_owned).to_vec());
        assert_eq!(
            args,
            ["build", "--build-arg", "NPM_TOKEN", "--build-arg=API_PASSWORD", "--build-arg", "A=1", "."]
        );
        assert_eq!(withheld, ["NPM_TOKEN", "API_PASSWORD"]);
    }

    #[test]
    fn nothing_is_recalled_where_nothing_was_kept() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(recall(dir.path()), Err(LastBuildError::None(_))));
        let last = LastBuild { dir: "/".into(), args: vec!["x".into()], withheld: Vec::new() };
        write(&dir.path().join(FILE), &last).unwrap();
        assert_eq!(recall(dir.path()).unwrap(), last);
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(matches!(recall(dir.path()), Err(LastBuildError::Read { .. })));
    }
}
