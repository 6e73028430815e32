//! A build with nothing to do against what it cannot do without: starting a process, and looking at every file of its context.
//!
//! `cargo bench -p rbuild --profile bench-fast --bench noop`, or with another binary in `RBUILD_BIN`. Wants `cc`.
//!
//! Two contexts. The large one is that of workload w2 (`tests/bench/gen.py`): 20,000 files, and 2,000 that its ignore file
//! leaves out; the floor is a walk and a stat of the 20,000 on two threads of a process that runs already, the limit 1.5 times
//! that. The small one has 20 files; the floor is a static program that does nothing, from its start to its end, and the
//! walk, the limit 6 times that. Whole processes of rbuild and floors take turns; medians of wall time, warm caches.

mod floor;
mod w2;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const ROUNDS: usize = 41;
const ROUNDS_SMALL: usize = 301;
/// The reference's, for ratios of wall time.
const LIMIT: f64 = 1.5;
const LIMIT_SMALL: f64 = 6.0;

fn main() {
    let dir = tempfile::tempdir().expect("a directory");
    large(dir.path());
    small(dir.path());
}

fn large(dir: &Path) {
    let (context, root) = (dir.join("context"), dir.join("root"));
    w2::generate(&context);
    let build = || build(&context, &root);
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
    let (build, floor, single) = (w2::median(builds), w2::median(floors), w2::median(singles));
    println!("20,000 files: walk and stat, one thread   {single:?}");
    println!("20,000 files: walk and stat, two threads  {floor:?}");
    let ratio = build.as_secs_f64() / floor.as_secs_f64();
    println!("20,000 files: rbuild with nothing to do   {build:?}  {ratio:.2} x the latter (limit {LIMIT})");
}

fn small(dir: &Path) {
    let (context, root, program) = (dir.join("small"), dir.join("small-root"), dir.join("empty"));
    fs::create_dir(&context).expect("a directory");
    for at in 0..19 {
        fs::write(context.join(format!("{at}.js")), format!("{at}\n")).expect("a file");
    }
    fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY . /app\n").expect("a file");
    fs::write(dir.join("empty.c"), "int main(void) { return 0; }\n").expect("a file");
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-static", "-o"]).arg(&program).arg(dir.join("empty.c"));
    assert!(compiler.status().expect("cc").success(), "no static program was made");
    let floor = || {
        let began = Instant::now();
        assert!(Command::new(&program).status().expect("a process").success());
        assert_eq!(floor::walk(&context, 1, |_| false), 20);
        began.elapsed()
    };
    // Files younger than a stat index are looked at again: until its clock has moved on, and once more.
    build(&context, &root);
    std::thread::sleep(Duration::from_millis(50));
    build(&context, &root);
    let (mut builds, mut floors) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS_SMALL {
        floors.push(floor());
        builds.push(build(&context, &root));
    }
    let (build, floor) = (w2::median(builds), w2::median(floors));
    println!("20 files: an empty static program, and walk  {floor:?}");
    let ratio = build.as_secs_f64() / floor.as_secs_f64();
    println!(
        "20 files: rbuild with nothing to do          {build:?}  {ratio:.2} x the former (limit {LIMIT_SMALL})"
    );
}

/// A whole process of rbuild.
fn build(context: &Path, root: &Path) -> Duration {
    let began = Instant::now();
    w2::build(context, root);
    began.elapsed()
}
