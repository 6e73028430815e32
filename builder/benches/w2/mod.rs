//! What benchmarks of whole builds share: the context of workload w2 (`tests/bench/gen.py`), the command, the median.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// 20,000 files of 0 to 9 KB and 2,000 that the ignore file leaves out, as `gen.py` makes them, with other contents.
pub(crate) fn generate(context: &Path) {
    for at in 0..22_000_usize {
        let name = match at {
            0..20_000 => format!("pkg{:02}/d{}/file{at}.txt", at / 1000, at / 100 % 10),
            20_000..21_000 => format!("tmp/{at}.bin"),
            _ => format!("pkg{:02}/log/{at}.log", at % 20),
        };
        let path = context.join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(path, format!("{at}\n").repeat(at % 1400)).expect("a file");
    }
    fs::write(context.join(".dockerignore"), "tmp\n**/*.log\n!pkg00/keep.log\n.git\n").expect("a file");
    fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY . /app\n").expect("a file");
}

/// A whole process of rbuild: that of `RBUILD_BIN`, or the one the benchmark was built with.
pub(crate) fn build(context: &Path, root: &Path) {
    let binary =
        std::env::var_os("RBUILD_BIN").unwrap_or_else(|| OsString::from(env!("CARGO_BIN_EXE_rbuild")));
    let mut command = Command::new(&binary);
    command.arg("--root").arg(root).args(["build", "-q", "-t", "app:1"]).arg(context);
    let status = command.env("HOME", root).stdout(Stdio::null()).status().expect("a process");
    assert!(status.success(), "the build failed");
}

pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
