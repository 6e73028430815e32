//! The base images: made once by `tests/scripts/make-bases`, found again by its cache.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};

use crate::binary::repository;
use crate::need::program_path;

/// Directory with one OCI layout per base (`busybox`, `debian`, `ubuntu`, `nginx`, `node`) and `registry`, the storage
/// of a docker-registry that serves them as `library/NAME`. Shared and read-only: copy what a test changes.
///
/// The first call on a machine takes a minute or two; later ones milliseconds.
///
/// # Errors
///
/// When the script fails; what it said is on stderr.
pub fn dir() -> Result<&'static Path> {
    static BASES: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match BASES.get_or_init(|| make().map_err(|error| format!("{error:#}"))) {
        Ok(path) => Ok(path),
        Err(error) => bail!("no base images: {error}"),
    }
}

fn make() -> Result<PathBuf> {
    let path = run_script("make-bases")?;
    ensure!(path.join("complete").exists(), "make-bases printed `{}`, where no bases are", path.display());
    Ok(path)
}

/// busybox for arm64: one static binary.
///
/// # Errors
///
/// When the script fails; what it said is on stderr.
pub fn foreign_busybox() -> Result<PathBuf> {
    run_script("make-foreign")
}

/// Runs a script of `tests/scripts`; the path that it prints.
fn run_script(name: &str) -> Result<PathBuf> {
    let script = repository().join("tests/scripts").join(name);
    let output = Command::new(&script)
        .env("PATH", program_path())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("run {}", script.display()))?;
    ensure!(output.status.success(), "{}: {}", script.display(), output.status);
    Ok(PathBuf::from(String::from_utf8(output.stdout).context("a path")?.trim_end()))
}
