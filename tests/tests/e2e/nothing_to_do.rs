//! What a build does not do, by its system calls: that is what makes it fast.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use rbuild_tests::{TestEnv, need};

const DIRS: usize = 25;
const FILES_EACH: usize = 400;

/// Calls that make something durable, in whatever way.
const SYNCS: [&str; 6] = ["fsync", "fdatasync", "syncfs", "sync", "sync_file_range", "msync"];
/// Calls that change a file, by descriptor or by name.
const CHANGES: [&str; 20] = [
    "write",
    "pwrite64",
    "writev",
    "pwritev",
    "pwritev2",
    "ftruncate",
    "truncate",
    "fallocate",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "rmdir",
    "link",
    "linkat",
    "utimensat",
    "copy_file_range",
];

/// Calls of a thread that helps to look at files, and of any thread that begins and ends.
const LOOKS: [&str; 25] = [
    "newfstatat",
    "statx",
    "fstat",
    "openat2",
    "getdents64",
    "flistxattr",
    "readlinkat",
    "pread64",
    "close",
    "futex",
    "set_robust_list",
    "rseq",
    "rt_sigprocmask",
    "sigaltstack",
    "sched_getaffinity",
    "gettid",
    "prctl",
    "mmap",
    "munmap",
    "mprotect",
    "madvise",
    "brk",
    "exit",
    // Only where assertions are compiled in.
    "fcntl",
    "sched_yield",
];

/// The command under strace, every call of every thread and child with the paths of its descriptors into `log`.
fn traced(command: &Command, log: &Path) -> Command {
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-qq", "-y", "-o"])
        .arg(log)
        .arg(command.get_program())
        .args(command.get_args())
        .env_clear();
    for (name, value) in command.get_envs() {
        strace.env(name, value.unwrap_or_default());
    }
    if let Some(dir) = command.get_current_dir() {
        strace.current_dir(dir);
    }
    strace
}

/// `1234 openat(AT_FDCWD</x>, "y", O_RDONLY) = 3</x/y>` as thread, name of the call, and the rest.
fn call(line: &str) -> Option<(&str, &str, &str)> {
    let (thread, line) = line.trim_start().split_once(' ')?;
    let (name, rest) = line.trim_start().split_once('(')?;
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_').then_some((thread, name, rest))
}

#[test]
fn a_build_with_nothing_to_do_looks_at_each_file_once_and_does_nothing_else() -> Result<()> {
    need!(Root, Strace);
    let env = TestEnv::new()?;
    let context = env.context("large", "FROM scratch\nCOPY . /app\n", &[(".dockerignore", "**/*.log\n")])?;
    for dir in 0..DIRS {
        let dir = context.join(format!("pkg{dir}"));
        fs::create_dir(&dir)?;
        for file in 0..FILES_EACH {
            fs::write(dir.join(format!("file{file}.txt")), format!("{file}\n"))?;
            if file % 10 == 0 {
                fs::write(dir.join(format!("file{file}.log")), "")?;
            }
        }
    }
    let args = ["build", "-q", "-t", "large", "."];
    // The second one trusts the times of files that were written right before the first.
    for _ in 0..2 {
        let mut build = env.command(args);
        build.current_dir(&context);
        env.start(build)?.finish()?.ok();
    }
    let log = env.work().join("trace");
    let mut build = env.command(args);
    build.current_dir(&context);
    env.start(traced(&build, &log))?.finish()?.ok();

    let trace = fs::read_to_string(&log).context("read the trace")?;
    let calls: Vec<(&str, &str, &str)> = trace.lines().filter_map(call).collect();
    let of = |names: &[&str]| -> Vec<String> {
        let named = calls.iter().filter(|(_, name, _)| names.contains(name));
        named.map(|(_, name, rest)| format!("{name}({rest}")).collect()
    };
    let nothing: [&str; 0] = [];
    assert_eq!(of(&SYNCS), nothing, "synced");
    assert_eq!(of(&["socket", "connect"]), nothing, "looked for a network");
    // Threads help to look at files, and do nothing else: those of a pool would wait for events.
    let first = calls.first().context("an empty trace")?.0;
    let helping = calls.iter().filter(|(thread, name, _)| *thread != first && !LOOKS.contains(name));
    assert_eq!(helping.map(|(_, name, rest)| format!("{name}({rest}")).collect::<Vec<_>>(), nothing);
    let store = env.store().to_str().context("UTF-8")?;
    let mut changes = of(&CHANGES);
    let opened = of(&["open", "openat", "openat2", "creat"]).into_iter();
    changes.extend(opened.filter(|call| call.contains("O_TRUNC") || call.contains("O_TMPFILE")));
    changes.retain(|call| call.contains(store));
    // What says that a process is here: its lease, with a directory for work, both removed at the end, and the memory
    // that SQLite's readers share, which its first one makes.
    let is_presence = |call: &String| {
        let names = ["mkdirat(", "unlinkat("].iter().any(|name| call.starts_with(name));
        call.contains("index.sqlite-shm>")
            || (names && (call.contains("\"work/") || call.contains("\"leases/")))
    };
    changes.retain(|call| !is_presence(call));
    assert_eq!(changes, nothing, "wrote into the store");
    let files = DIRS * FILES_EACH;
    let most = files + files / 15;
    assert!(calls.len() <= most, "{} system calls for {files} files", calls.len());
    Ok(())
}

#[test]
fn a_first_build_reads_each_small_file_of_its_context_once() -> Result<()> {
    need!(Root, Strace);
    let env = TestEnv::new()?;
    let context = env.context("first", "FROM scratch\nCOPY . /app\n", &[(".dockerignore", "**/*.log\n")])?;
    let large = "0123456789".repeat(50_000);
    let mut expected = Vec::new();
    for dir in ["b", "a"] {
        fs::create_dir(context.join(dir))?;
        for file in 0..100 {
            // Some are equal, and one is read twice, as it is large.
            let name = format!("{dir}/file{file}.txt");
            let text = if name == "a/file7.txt" { large.clone() } else { format!("{}\n", file % 60) };
            fs::write(context.join(&name), &text)?;
            expected.push((name, text));
        }
        fs::write(context.join(format!("{dir}/x.log")), "")?;
    }
    let log = env.work().join("trace");
    let mut build = env.command(["build", "-q", "-t", "first", "."]);
    build.current_dir(&context);
    env.start(traced(&build, &log))?.finish()?.ok();
    let trace = fs::read_to_string(&log).context("read the trace")?;
    let opens: Vec<&str> = trace
        .lines()
        .filter_map(call)
        .filter(|(_, name, rest)| name.starts_with("openat") && rest.contains(".txt\""))
        .map(|(_, _, rest)| rest)
        .collect();
    assert_eq!(opens.len(), expected.len() + 1, "{opens:#?}");
    // What was packed then is what the image has.
    let out = env.work().join("out");
    let output = format!("type=local,dest={}", out.display());
    env.build(&context, &["-o", &output])?.ok();
    for (name, text) in expected {
        assert_eq!(fs::read_to_string(out.join("app").join(&name))?, text, "{name}");
    }
    assert!(!out.join("app/a/x.log").exists());
    env.run(["cache", "fsck"])?.ok();
    Ok(())
}
