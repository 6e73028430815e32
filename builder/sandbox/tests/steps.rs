//! Steps on the host, end to end: as root, and as an ordinary user made for the run.
//!
//! Has its own `main`, as every program that uses the crate: `dispatch` comes first, `bootstrap` before any thread. What
//! cannot run here says «skipped: why»; capabilities named in `RBUILD_TEST_REQUIRE` (`root`, `userns`, `overlay`,
//! `subuid`, `cc`, `network`) must work.
#![expect(clippy::unwrap_used, reason = "a test; there is no #[test] function for clippy to go by")]

mod steps {
    pub(crate) mod cases;
    pub(crate) mod confinement;
    pub(crate) mod lifecycle;
    pub(crate) mod network;
    pub(crate) mod races;
    pub(crate) mod setup;
}

use std::path::Path;
use std::process::{Command, ExitCode};
use steps::setup::{Host, User, require_or_skip};

type Case = (&'static str, fn(&Host));

fn main() -> ExitCode {
    rbuild_sandbox::dispatch();
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("--rootless") => rootless(Path::new(&args[1]), &args[2..]),
        Some("--bootstrap-error") => {
            let error = rbuild_sandbox::bootstrap().expect_err("this user has no way in");
            println!("{error}; {}", error.remedy());
            ExitCode::SUCCESS
        }
        Some("--homeless") => {
            steps::lifecycle::homeless(Path::new(&args[1]), &args[2]);
            ExitCode::SUCCESS
        }
        Some("--victim") => {
            steps::lifecycle::victim(Path::new(&args[1]));
            ExitCode::SUCCESS
        }
        _ => all(&args),
    }
}

/// As root: everything as root, then everything again as a user. As a user: what the user can do.
fn all(filters: &[String]) -> ExitCode {
    let dir = tempfile::Builder::new().prefix("rbuild-steps").tempdir_in(scratch_base()).unwrap();
    if !rustix::process::geteuid().is_root() {
        return rootless(dir.path(), filters);
    }
    let as_root = run_cases(&Host::new("root", dir.path()), filters);
    let as_user = match User::create() {
        Err(why) => {
            require_or_skip("subuid", &why);
            ExitCode::SUCCESS
        }
        Ok(user) => {
            steps::setup::check_bootstrap_errors(&user);
            let status = user.command("--rootless", filters).status().unwrap();
            if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
    };
    if as_root == ExitCode::SUCCESS { as_user } else { as_root }
}

/// `/tmp` may be an overlay itself, and an upper on overlay is refused: a directory can be named.
fn scratch_base() -> std::path::PathBuf {
    std::env::var_os("RBUILD_TEST_TMPDIR").map_or_else(std::env::temp_dir, Into::into)
}

fn rootless(dir: &Path, filters: &[String]) -> ExitCode {
    match rbuild_sandbox::bootstrap() {
        Err(error) => {
            require_or_skip("userns", &format!("{error}; {}", error.remedy()));
            ExitCode::SUCCESS
        }
        Ok(privilege) => {
            println!("rootless: {}", privilege.describe());
            run_cases(&Host::new("rootless", dir), filters)
        }
    }
}

fn run_cases(host: &Host, filters: &[String]) -> ExitCode {
    if let Err(why) = host.try_overlay() {
        require_or_skip("overlay", &why);
        return ExitCode::SUCCESS;
    }
    let cases: Vec<Case> = [
        steps::cases::CASES,
        steps::confinement::CASES,
        steps::lifecycle::CASES,
        steps::network::CASES,
        steps::races::CASES,
    ]
    .concat();
    let wanted = |name: &str| {
        let mut words = filters.iter().filter(|f| !f.starts_with('-')).peekable();
        words.peek().is_none() || words.any(|filter| name.contains(filter.as_str()))
    };
    let mut failed = 0;
    for (name, case) in cases.iter().filter(|(name, _)| wanted(name)) {
        let result = std::panic::catch_unwind(|| case(host));
        println!("test {} {name} ... {}", host.rung, if result.is_ok() { "ok" } else { "FAILED" });
        failed += u32::from(result.is_err());
    }
    println!("{}: {failed} of {} failed", host.rung, cases.len());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a command of the host to its end; its output as text.
pub(crate) fn host_command(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}
