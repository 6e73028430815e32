//! The first build of a context of 20,000 files against what any builder does with them: read, hash, create.
//!
//! `cargo bench -p rbuild --profile bench-fast --bench cold`, or with another binary in `RBUILD_BIN`.
//!
//! The context is that of workload w2; both go to the file system of the temporary directory, which should be journalled and
//! quiet. A loop that opens, reads and closes every file, takes its blake3 and writes a new file with its bytes, on one thread,
//! takes turns with whole builds into new stores, kept local. CPU time, user and system; medians. The limit is 1.3 times the
//! loop's.

mod w2;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const ROUNDS: usize = 7;
/// The reference's, for ratios of CPU time.
const LIMIT: f64 = 1.3;

fn main() {
    let dir = tempfile::tempdir().expect("a directory");
    let context = dir.path().join("context");
    w2::generate(&context);
    let files = list(&context);
    assert_eq!(files.len(), 20_000);
    let (mut builds, mut floors) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let floor = copy(&files, &context, &dir.path().join(format!("copy-{round}")));
        let build = build(&context, &dir.path().join(format!("root-{round}")));
        // The first round warms the caches.
        if round > 0 {
            floors.push(floor);
            builds.push(build);
        }
    }
    let (build, floor) = (w2::median(builds), w2::median(floors));
    println!("read, blake3 and create 20,000 files  {floor:?} of CPU");
    let ratio = build.as_secs_f64() / floor.as_secs_f64();
    println!("first build of them                   {build:?} of CPU  {ratio:.2} x (limit {LIMIT})");
}

/// What the ignore file leaves in.
fn list(context: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut dirs = vec![context.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => dirs.push(path),
                false if path.extension().is_some_and(|extension| extension == "txt") => files.push(path),
                false => {}
            }
        }
    }
    files.sort();
    files
}

fn copy(files: &[PathBuf], context: &Path, to: &Path) -> Duration {
    let targets: Vec<PathBuf> =
        files.iter().map(|path| to.join(path.strip_prefix(context).expect("below the context"))).collect();
    for target in &targets {
        fs::create_dir_all(target.parent().expect("a directory")).expect("a directory");
    }
    let began = own_time();
    for (from, to) in files.iter().zip(&targets) {
        let bytes = fs::read(from).expect("a file");
        std::hint::black_box(blake3::hash(&bytes));
        fs::write(to, &bytes).expect("a file");
    }
    own_time() - began
}

fn own_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).expect("nanoseconds"))
}

fn build(context: &Path, root: &Path) -> Duration {
    let before = children_time();
    w2::build(context, root);
    children_time() - before
}

/// User and system time of all children that ended, in steps of 10 ms (proc(5), `stat`).
fn children_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").expect("proc");
    // After the name, which may hold anything: the fields from the third on.
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    let ticks = |at: usize| fields.split_whitespace().nth(at - 3).and_then(|field| field.parse::<u64>().ok());
    let sum = ticks(16).expect("cutime") + ticks(17).expect("cstime");
    Duration::from_millis(sum * 10)
}
