//! What an ignore file costs on top of walking a context.
//!
//! `CARGO_PROFILE_DEV_OPT_LEVEL=3 cargo bench -p rbuild --profile dev --bench ignore_walk`: only our own crates are
//! compiled anew.
//!
//! A tree of 100,000 entries is walked bare (list and stat, nothing else), with an ignore file as people have them, and
//! with ten thousand patterns. Best of seven with warm caches, in CPU time of the thread.

mod floor;

use std::fs;
use std::time::Duration;

use rbuild::context::list::list;
use rbuild_frontend::dockerignore::Ignore;

const DIRS: usize = 1000;
const FILES_EACH: usize = 99;
const ROUNDS: usize = 7;

/// As in a web project.
const USUAL: &str = "# comment\n.git\n**/node_modules\n**/*.log\n*.md\n!README.md\ndist\nbuild/\n**/.DS_Store\n\
                     **/__pycache__\n*.tmp\ncoverage/**\ndocs/*.pdf\n!docs/keep.pdf\ntest/**/fixtures/*.bin\n.env*\n";

fn main() {
    let dir = tempfile::tempdir().expect("a directory");
    for at in 0..DIRS {
        let path = dir.path().join(format!("pkg{}/mod{at}", at % 25));
        fs::create_dir_all(&path).expect("a directory");
        for file in 0..FILES_EACH {
            let end = ["ts", "js", "log", "md"][file % 4];
            fs::write(path.join(format!("file{file}.{end}")), "").expect("a file");
        }
    }
    let forms = ["dir{}/file", "**/name{}", "*.ext{}", "top{}/*/x?", "!**/keep{}.txt"];
    let many: String = (0..Ignore::PATTERNS_MAX)
        .map(|n| forms[n % forms.len()].replace("{}", &n.to_string()) + "\n")
        .collect();
    let backtracking = format!("{}x\n{}y\n", "**/".repeat(20), "*a".repeat(20));
    let bare = best(|| floor::walk(dir.path(), 1, |_| false));
    println!("bare walk and stat      {bare:?}");
    for (name, text) in [
        ("no patterns", ""),
        ("usual file", USUAL),
        ("10,000 patterns", &many),
        ("backtracking", &backtracking),
    ] {
        let ignore = Ignore::parse(text.as_bytes()).expect("patterns");
        let walk = best(|| {
            let mut count = 0;
            list(dir.path(), &ignore, |_| count += 1).expect("a walk");
            count
        });
        println!("{name:<23} {walk:?}  {:.2} x bare", walk.as_secs_f64() / bare.as_secs_f64());
    }
}

fn best(mut work: impl FnMut() -> usize) -> Duration {
    let measure = |_| {
        let start = cpu_time();
        std::hint::black_box(work());
        cpu_time() - start
    };
    (0..ROUNDS).map(measure).min().unwrap_or_default()
}

/// What this thread has spent on a processor.
fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}
