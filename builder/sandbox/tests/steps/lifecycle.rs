//! How steps end: by themselves, cancelled, and with a builder that is killed.

use super::setup::{Host, run_on, shell};
use crate::Case;
use rbuild_sandbox::{Exit, StepError, Stream, run_step, run_step_to_exit};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) const CASES: &[Case] = &[
    ("background_processes_die_with_the_step", background_processes_die_with_the_step),
    ("cancelling_kills_everything", cancelling_kills_everything),
    ("a_killed_builder_takes_the_step_with_it", a_killed_builder_takes_the_step_with_it),
    ("signals_of_the_terminal_do_not_reach_the_step", signals_of_the_terminal_do_not_reach_the_step),
    ("a_builder_whose_program_went_runs_steps", a_builder_whose_program_went_runs_steps),
    ("a_killed_init_is_reported", a_killed_init_is_reported),
    ("a_killed_spawner_is_reported_and_replaced", a_killed_spawner_is_reported_and_replaced),
    ("what_was_written_last_arrives", what_was_written_last_arrives),
    ("an_upper_is_free_after_the_teardown", an_upper_is_free_after_the_teardown),
    ("orphans_are_reaped", orphans_are_reaped),
    ("steps_of_many_threads_do_not_mix", steps_of_many_threads_do_not_mix),
    ("a_large_spec_arrives", a_large_spec_arrives),
    ("the_probe_agrees_that_steps_work", the_probe_agrees_that_steps_work),
];

const DEADLINE: Duration = Duration::from_secs(20);

/// How many processes of the host have `marker` among their arguments.
fn alive(marker: &str) -> usize {
    let has_marker = |entry: std::io::Result<std::fs::DirEntry>| {
        let line = std::fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        String::from_utf8_lossy(&line).contains(marker).then_some(())
    };
    std::fs::read_dir("/proc").unwrap().filter_map(has_marker).count()
}

/// A word no other process has in its arguments; a number of seconds, to be an argument of `sleep`.
fn marker(n: u32) -> String {
    format!("4{:07}{n}", std::process::id())
}

/// G6: whatever a step leaves behind dies with it.
fn background_processes_die_with_the_step(host: &Host) {
    let marker = marker(1);
    // Ignoring SIGTERM, in sessions of their own, without any of the step's descriptors.
    let script = format!(
        "for i in 1 2 3; do setsid sh -c 'trap \"\" TERM HUP; sleep {marker}' </dev/null >/dev/null 2>&1 & done; \
         sleep {marker} & exit 5"
    );
    assert_eq!(host.run(&shell(&script)).unwrap().exit, Exit::Code(5));
    assert_eq!(alive(&marker), 0);
}

fn cancelling_kills_everything(host: &Host) {
    let marker = marker(2);
    let (cancel, trigger) = rustix::pipe::pipe().unwrap();
    let merged = host.merged();
    let spec = shell(&format!("trap '' TERM INT; sleep {marker} & sleep {marker} & echo ready; wait; wait"));
    let started = Instant::now();
    let result = run_step(&spec, merged.fd.as_fd(), cancel.as_fd(), &mut |stream, bytes| {
        assert_eq!((stream, bytes), (Stream::Stdout, &b"ready\n"[..]));
        rustix::io::write(&trigger, b"x").unwrap();
    });
    assert!(matches!(result, Err(StepError::Cancelled)), "{result:?}");
    assert!(started.elapsed() < DEADLINE);
    assert_eq!(alive(&marker), 0);
    // Cancelled before it starts: nothing runs to its end, nothing is left.
    let result = run_step(
        &shell(&format!("sleep {marker}")),
        host.merged().fd.as_fd(),
        cancel.as_fd(),
        &mut |_, _| {},
    );
    assert!(matches!(result, Err(StepError::Cancelled)), "{result:?}");
    assert_eq!(alive(&marker), 0);
}

/// A builder to be killed: runs a step on the directory, says when it runs.
pub(crate) fn victim(dir: &Path) {
    let root = std::fs::File::open(dir).unwrap();
    let (cancel, _never) = rustix::pipe::pipe().unwrap();
    let marker = std::env::var("VICTIM_MARKER").unwrap();
    let spec = shell(&format!("setsid sleep {marker} & sleep {marker} & echo ready; wait; wait"));
    let exit = run_step(&spec, root.as_fd(), cancel.as_fd(), &mut |_, bytes| {
        std::io::stdout().write_all(bytes).unwrap();
        std::io::stdout().flush().unwrap();
    });
    println!("{exit:?}");
}

/// G4: and no mount is left.
fn a_killed_builder_takes_the_step_with_it(host: &Host) {
    let marker = marker(3);
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    let mut builder = Command::new("/proc/self/exe")
        .args(["--victim".as_ref(), host.lower.as_os_str()])
        .env("VICTIM_MARKER", &marker)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(builder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    assert!(alive(&marker) >= 2);
    builder.kill().unwrap();
    builder.wait().unwrap();
    let deadline = Instant::now() + DEADLINE;
    while alive(&marker) > 0 {
        assert!(Instant::now() < deadline, "the step outlives its builder");
        std::thread::yield_now();
    }
    assert_eq!(mounts(), before);
    // The mount points of a killed builder are garbage its store removes with the layer; this root is shared by the cases.
    for name in ["etc/hosts", "etc/resolv.conf"] {
        std::fs::remove_file(host.lower.join(name)).unwrap();
    }
}

/// A builder whose program is removed or replaced, as `fate` says, before its first step; prints what the step says, and
/// what its children run from.
pub(crate) fn homeless(dir: &Path, fate: &str) {
    let program = std::env::current_exe().unwrap();
    std::fs::remove_file(&program).unwrap();
    if fate == "replaced" {
        std::fs::copy("/bin/true", &program).unwrap();
    }
    let root = std::fs::File::open(dir).unwrap();
    let (cancel, _never) = rustix::pipe::pipe().unwrap();
    let exit = run_step(&shell("echo it runs"), root.as_fd(), cancel.as_fd(), &mut |_, bytes| {
        std::io::stdout().write_all(bytes).unwrap();
    });
    assert_eq!(exit.unwrap(), Exit::Code(0));
    let own = std::process::id().to_string();
    for process in std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path()) {
        let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
        if stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)) == Some(&own) {
            println!("{}", std::fs::read_link(process.join("exe")).unwrap().display());
        }
    }
}

/// There is nothing to make a view of, so children run from the copy.
fn a_builder_whose_program_went_runs_steps(host: &Host) {
    for fate in ["removed", "replaced"] {
        let dir =
            tempfile::Builder::new().prefix("program").tempdir_in(host.lower.parent().unwrap()).unwrap();
        let program = dir.path().join("steps");
        std::fs::copy("/proc/self/exe", &program).unwrap();
        let output = Command::new(&program).arg("--homeless").arg(&host.lower).arg(fate).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said, "it runs\n/memfd:rbuild-sandbox (deleted)\n", "{fate}: {output:?}");
    }
}

/// G5: the sandbox's init.
fn a_killed_init_is_reported(host: &Host) {
    let marker = marker(4);
    let merged = host.merged();
    let (cancel, _never) = rustix::pipe::pipe().unwrap();
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let result = run_step(
        &shell(&format!("echo ready; sleep {marker}")),
        merged.fd.as_fd(),
        cancel.as_fd(),
        // The one in stock for the next step as well.
        &mut |_, _| children_of(child_of(own)).into_iter().for_each(kill),
    );
    assert!(matches!(result, Err(StepError::Died)), "{result:?}");
    assert_eq!(alive(&marker), 0);
    assert_eq!(host.sh("echo next"), "next\n");
}

/// G5: the process that starts them.
fn a_killed_spawner_is_reported_and_replaced(host: &Host) {
    let marker = marker(5);
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let merged = host.merged();
    let (cancel, _never) = rustix::pipe::pipe().unwrap();
    let spec = shell(&format!("setsid sleep {marker} & echo ready; sleep {marker}"));
    let result = run_step(&spec, merged.fd.as_fd(), cancel.as_fd(), &mut |_, _| kill(child_of(own)));
    assert!(matches!(result, Err(StepError::Died)), "{result:?}");
    assert_eq!(alive(&marker), 0);
    assert_eq!(host.sh("echo next"), "next\n");
}

fn what_was_written_last_arrives(host: &Host) {
    // As much as the pipe holds, so that nobody needs to have read when the step is over; and more than that.
    for size in [60_000, 600_000] {
        let ran =
            host.run(&shell(&format!("sleep 1000 & yes | head -c {size}; echo end >&2; exit 3"))).unwrap();
        assert_eq!((ran.exit, ran.stdout.len(), ran.stderr), (Exit::Code(3), size, "end\n".to_owned()));
    }
}

/// The upper is a layer, and a lower of the next step, as soon as the teardown is over.
fn an_upper_is_free_after_the_teardown(host: &Host) {
    let (cancel, _never) = rustix::pipe::pipe().unwrap();
    for n in 0..20 {
        let merged = host.merged();
        let script = shell(&format!("sleep 1000 & echo {n} > /file"));
        let rbuild_sandbox::Ended { exit, teardown, .. } =
            run_step_to_exit(&script, merged.fd.as_fd(), cancel.as_fd(), &mut |_, _| {}).unwrap();
        assert_eq!(exit, Exit::Code(0));
        // What was written can be read before that.
        assert_eq!(std::fs::read_to_string(merged.upper.join("file")).unwrap(), format!("{n}\n"));
        drop(merged.fd);
        teardown.wait();
        check_free(&host.lower, &merged.upper);
    }
}

/// With an index the kernel refuses what it warns of otherwise: a lower that is the upper of a living overlay.
fn check_free(base: &Path, layer: &Path) {
    use rustix::mount::{FsOpenFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsopen};
    let dirs = ["free-upper", "free-work"].map(|kind| layer.with_extension(kind));
    dirs.iter().for_each(|dir| std::fs::create_dir(dir).unwrap());
    let context = fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    let context = context.as_fd();
    for (option, value) in
        [("lowerdir+", layer), ("lowerdir+", base), ("upperdir", &dirs[0]), ("workdir", &dirs[1])]
    {
        fsconfig_set_string(context, option, value).unwrap();
    }
    fsconfig_set_string(context, "index", "on").unwrap();
    if rbuild_sandbox::in_user_namespace() {
        fsconfig_set_flag(context, "userxattr").unwrap();
    }
    fsconfig_create(context).unwrap();
}

fn signals_of_the_terminal_do_not_reach_the_step(host: &Host) {
    let merged = host.merged();
    let (cancel, trigger) = rustix::pipe::pipe().unwrap();
    let mut groups = Vec::new();
    let result =
        run_step(&shell("echo ready; exec sleep 1000"), merged.fd.as_fd(), cancel.as_fd(), &mut |_, _| {
            let outer = child_of(rustix::process::getpid().as_raw_nonzero().get());
            for pid in [outer, child_of(outer)] {
                groups.push(rustix::process::getpgid(rustix::process::Pid::from_raw(pid)).unwrap());
            }
            rustix::io::write(&trigger, b"x").unwrap();
        });
    assert!(matches!(result, Err(StepError::Cancelled)), "{result:?}");
    assert_eq!(groups.len(), 2);
    assert!(!groups.contains(&rustix::process::getpgrp()));
}

/// The children of a process.
fn children_of(pid: i32) -> Vec<i32> {
    let child = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent: i32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        (parent == pid).then(|| entry.file_name().to_str()?.parse().ok())?
    };
    std::fs::read_dir("/proc").unwrap().filter_map(child).collect()
}

/// Some child of a process: ours is the spawner.
fn child_of(pid: i32) -> i32 {
    children_of(pid)[0]
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn orphans_are_reaped(host: &Host) {
    let script = "for i in 1 2 3 4 5 6 7 8; do (true & true & ) & done; wait; \
                  n=0; while grep -q '^State:.Z' /proc/[0-9]*/status 2>/dev/null; do n=$((n+1)); [ $n -gt 10000 ] && exit 1; done; exit 0";
    assert_eq!(run_on(&host.merged(), &shell(script)).unwrap().exit, Exit::Code(0));
}

fn the_probe_agrees_that_steps_work(host: &Host) {
    let (dir, _) = host.new_upper();
    let results = rbuild_sandbox::probe_rung(rbuild_sandbox::Isolation::Auto, &dir, false);
    let failed: Vec<_> = results.iter().filter(|result| !result.ok).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(results.iter().any(|result| result.name == "pivot_root"));
    assert!(std::fs::read_dir(&dir).unwrap().next().is_none());
}

fn steps_of_many_threads_do_not_mix(host: &Host) {
    std::thread::scope(|scope| {
        for thread in 0..6 {
            scope.spawn(move || {
                for n in 0..5 {
                    let ran = host
                        .run(&shell(&format!("echo {thread}-{n}; ls /proc/self/fd | wc -l; exit {n}")))
                        .unwrap();
                    assert_eq!((ran.exit, ran.stdout), (Exit::Code(n), format!("{thread}-{n}\n4\n")));
                }
            });
        }
    });
}

fn a_large_spec_arrives(host: &Host) {
    let mut spec = shell("wc -c < /etc/hosts; echo $#");
    spec.hosts = vec![b'\n'; 5 << 20];
    spec.argv.extend(std::iter::repeat_n("x".repeat(1000), 1001));
    assert_eq!(host.run(&spec).unwrap().stdout, format!("{}\n1000\n", 5 << 20));
    // Above what the kernel takes: its own answer, by name.
    spec.argv.push("x".repeat(1 << 20));
    match host.run(&spec) {
        Err(StepError::CommandNotExecutable { source, .. }) => {
            assert_eq!(source.raw_os_error(), Some(libc::E2BIG))
        }
        other => panic!("{other:?}"),
    }
}
