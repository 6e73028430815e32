//! A build with nothing to do against what it cannot do without: looking at every file of its context.
//!
//! `cargo bench -p rbuild --profile bench-fast --bench noop`, or with another binary in `RBUILD_BIN`.
//!
//! The context is that of workload w2 (`tests/bench/gen.py`): 20,000 files, and 2,000 that its ignore file leaves out. The
//! floor is a walk and a stat of the 20,000 on two threads of a process that runs already. Whole processes of rbuild
//! and floors take turns; medians of wall time, warm caches. The limit is 1.5 times the floor.

mod floor;

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 41;
/// The reference's, for ratios of wall time.
const LIMIT: f64 = 1.5;

fn main() {
    let dir = tempfile::tempdir().expect("a directory");
    let (context, root) = (dir.path().join("context"), dir.path().join("root"));
    generate(&context);
    let binary =
        std::env::var_os("RBUILD_BIN").unwrap_or_else(|| OsString::from(env!("CARGO_BIN_EXE_rbuild")));
    let build = || {
        let mut command = Command::new(&binary);
        command.arg("--root").arg(&root).args(["build", "-q", "-t", "app:1"]).arg(&context);
        let began = Instant::now();
        let status = command.env("HOME", dir.path()).stdout(Stdio::null()).status().expect("a process");
        assert!(status.success(), "the build failed");
        began.elapsed()
    };
    let walk = |threads| {
        let began = Instant::now();
        let count = floor::walk(&context, threads, |name| name == b"tmp" || name.ends_with(b".log"));
        assert!(count > 20_000);
        began.elapsed()
    };
    // The second trusts the files that the first one found too young.
    build();
    build();
    walk(2);
    let (mut builds, mut floors, mut singles) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        floors.push(walk(2));
        builds.push(build());
        singles.push(walk(1));
    }
    let (build, floor, single) = (median(builds), median(floors), median(singles));
    println!("walk and stat, one thread   {single:?}");
    println!("walk and stat, two threads  {floor:?}");
    let ratio = build.as_secs_f64() / floor.as_secs_f64();
    println!("rbuild with nothing to do   {build:?}  {ratio:.2} x the latter (limit {LIMIT})");
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// As `gen.py` does, with other contents.
fn generate(context: &Path) {
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
