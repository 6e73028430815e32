//! What an ignore file costs on top of walking a context.
//!
//! `CARGO_PROFILE_DEV_OPT_LEVEL=3 cargo bench -p rbuild --profile dev --bench ignore_walk`: only our own crates are
//! compiled anew.
//!
//! A tree of 100,000 entries is walked bare (list and stat, nothing else), with an ignore file as people have them, and
//! with ten thousand patterns. Best of seven with warm caches, in CPU time of the thread.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use rbuild::context::list::list;
use rbuild_frontend::dockerignore::Ignore;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir};

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
    let bare = best(|| bare(dir.path()));
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

/// Lists every directory and stats every entry by its directory's descriptor.
fn bare(root: &Path) -> usize {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let top = rustix::fs::open(root, flags, Mode::empty()).expect("the root");
    let (mut open, mut count): (Vec<OwnedFd>, usize) = (vec![top], 0);
    while let Some(dir) = open.pop() {
        let mut buffer = Vec::with_capacity(32 << 10);
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut reader = RawDir::new(&dir, buffer.spare_capacity_mut());
        while let Some(entry) = reader.next() {
            let entry = entry.expect("an entry");
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        for name in names {
            let name = OsStr::from_bytes(&name);
            let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).expect("a stat");
            count += 1;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                open.push(rustix::fs::openat(dir.as_fd(), name, flags, Mode::empty()).expect("a directory"));
            }
        }
    }
    count
}
