//! Folders of `fixtures/` that are a build: `context/` with the Dockerfile, `args` (options of the build, one word a
//! line; optional), `setup` (shell commands that make in the context what git does not keep: modes, links, pipes;
//! optional).

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use rbuild_tests::TestEnv;
use rbuild_tests::binary::repository;

/// What every file of a context is dated.
pub(crate) const CONTEXT_TIME: u64 = 1_234_567_890;

/// A copy of a folder that a build may have.
pub(crate) struct Case {
    pub(crate) name: String,
    /// The folder under `fixtures/`.
    pub(crate) folder: PathBuf,
    pub(crate) context: PathBuf,
    pub(crate) args: Vec<String>,
}

/// Calls `check` for every folder of `fixtures/AREA`, several at once, and returns what it said by the case's name.
pub(crate) fn each<T: Send>(
    area: &str,
    env: &TestEnv,
    at_once: usize,
    check: impl Fn(&Case) -> Result<T> + Sync,
) -> Result<BTreeMap<String, T>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(repository().join("fixtures").join(area))? {
        let path = entry?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    folders.sort();
    let queue = Mutex::new(VecDeque::from(folders));
    let found = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(folder) = next else { return };
                    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    let result = prepare(env, &name, folder).and_then(|case| check(&case));
                    found.lock().unwrap_or_else(PoisonError::into_inner).insert(name, result);
                }
            });
        }
    });
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.into_iter().map(|(name, result)| Ok((name.clone(), result.context(name)?))).collect()
}

fn prepare(env: &TestEnv, name: &str, folder: PathBuf) -> Result<Case> {
    let context = env.work().join(name);
    let setup = fs::read_to_string(folder.join("setup")).unwrap_or_default();
    // Modes do not depend on the umask of the checkout.
    let script = format!(
        "set -e; umask 022; cp -R \"$1\" \"$2\"; cd \"$2\"; chmod -R u=rwX,go=rX .\n{setup}\n\
         find . -exec touch -h -d @{CONTEXT_TIME} {{}} +\n"
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &script, "setup"]).arg(folder.join("context")).arg(&context);
    let output = shell.env("LC_ALL", "C").output()?;
    ensure!(output.status.success(), "setup: {}", String::from_utf8_lossy(&output.stderr));
    let args = fs::read_to_string(folder.join("args")).unwrap_or_default();
    let args = args.lines().map(str::to_owned).collect();
    Ok(Case { name: name.to_owned(), folder, context, args })
}

/// Builds a case, with the options that `more` has, too.
pub(crate) fn build(case: &Case, env: &TestEnv, more: &[&str]) -> Result<rbuild_tests::Run> {
    let args: Vec<&str> = more.iter().copied().chain(case.args.iter().map(String::as_str)).collect();
    env.build(&case.context, &args)
}

/// Compares with `expected.snap` in the case's folder. `INSTA_UPDATE=always` writes it anew.
pub(crate) fn snapshot(folder: &Path, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(folder);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!("expected", text));
}
