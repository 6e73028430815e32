//! Finds the `rbuild` binary under test.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};

/// The repository's root directory.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository")
}

/// The binary under test: `$RBUILD_BIN`, else the one cargo builds, in the profile of the running test.
///
/// # Errors
///
/// When `$RBUILD_BIN` names no file, or the build fails.
pub fn rbuild() -> Result<&'static Path> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match BINARY.get_or_init(|| find().map_err(|error| format!("{error:#}"))) {
        Ok(path) => Ok(path),
        Err(error) => bail!("no rbuild binary to test: {error}"),
    }
}

fn find() -> Result<PathBuf> {
    if let Some(path) = env::var_os("RBUILD_BIN").filter(|path| !path.is_empty()) {
        let path = repository().join(path);
        ensure!(path.is_file(), "RBUILD_BIN is `{}`, which is not a file", path.display());
        return Ok(path);
    }
    // The test runs as TARGET/PROFILE/deps/NAME, and cargo holds no lock while tests run.
    let test = env::current_exe().context("where the test binary is")?;
    let profile_dir =
        test.parent().and_then(Path::parent).context("the test binary lies in no target directory")?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--package", "rbuild", "--bin", "rbuild"]).current_dir(repository());
    if profile_dir.file_name().is_some_and(|name| name == "release") {
        cargo.arg("--release");
    }
    let status = cargo.status().context("run cargo")?;
    ensure!(status.success(), "`cargo build -p rbuild`: {status}");
    let path = profile_dir.join("rbuild");
    ensure!(path.is_file(), "cargo built no `{}`", path.display());
    Ok(path)
}
