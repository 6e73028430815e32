//! Suite Q: steps that use up what there is, and builds that are large.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result, ensure};
use rbuild_tests::{Run, TestEnv, need};

use crate::probes::Probe;
use crate::rungs::Place;

/// What a process used at most while it ran.
#[derive(Debug, Default)]
struct Used {
    memory_kib: u64,
    threads: u64,
    descriptors: usize,
}

/// Runs a build and looks at its process until it ends.
fn watched(env: &TestEnv, args: &[&str]) -> Result<(Run, Used)> {
    let started = env.start(env.command(args))?;
    let pid = started.pid();
    let watcher = std::thread::spawn(move || {
        let mut used = Used::default();
        // The process is gone, or a zombie without memory, when it has ended.
        while let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) {
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name))?;
                line.split_whitespace().next()?.parse::<u64>().ok()
            };
            let Some(memory) = field("VmHWM:") else { break };
            used.memory_kib = used.memory_kib.max(memory);
            used.threads = used.threads.max(field("Threads:").unwrap_or(0));
            let open = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
            used.descriptors = used.descriptors.max(open);
            std::thread::yield_now();
        }
        used
    });
    let run = started.finish()?;
    Ok((run, watcher.join().unwrap_or_default()))
}

fn with_probe(env: &TestEnv, probe: &Probe, text: &str) -> Result<String> {
    let context = env.context("limits", text, &[])?;
    fs::copy(probe.path(), context.join("probe"))?;
    Ok(context.to_str().context("UTF-8")?.to_owned())
}

/// Q4: a GiB of output in one line, then as much in short ones with bytes of every kind: memory stays bounded, the
/// exit status is the step's.
#[test]
fn floods_of_output_are_taken_in_bounded_memory() -> Result<()> {
    need!(Root, Compiler);
    let probe = Probe::compile()?;
    let env = TestEnv::new()?;
    let text = "FROM scratch\nCOPY --chmod=755 probe /probe\nRUN [\"/probe\", \"flood\", \"1073741824\"]\n";
    let context = with_probe(&env, &probe, text)?;
    let (run, used) = watched(&env, &["build", "--progress", "quiet", &context])?;
    run.exits(1).says(&["exit code: 42"]);
    assert!(used.memory_kib < 200 << 10, "{used:?}");
    env.assert_nothing_left();
    Ok(())
}

/// Q5: a step on more layers than the kernel takes by their names, as many as it takes at all; one more is refused before
/// anything is done.
#[test]
fn a_step_runs_on_hundreds_of_layers() -> Result<()> {
    need!(Root, Compiler);
    let probe = Probe::compile()?;
    let env = TestEnv::new()?;
    let chain = |count: usize| -> Result<String> {
        let mut text = "FROM scratch\nCOPY --chmod=755 probe /probe\n".to_owned();
        for n in 0..count {
            write!(text, "COPY <<x /f{n}\n{n}\nx\n")?;
        }
        Ok(text + "RUN [\"/probe\", \"write\", \"0\"]\n")
    };
    let context = with_probe(&env, &probe, &chain(499)?)?;
    let refused = env.build(context.as_ref(), &[])?.exits(1);
    let refused = refused.says(&["the stage has more than 500 layers", "RUN [\"/probe\"", "COPY --from"]);
    ensure!(!refused.stderr.contains("[1/"), "{refused}");
    let context = with_probe(&env, &probe, &chain(498)?)?;
    env.build(context.as_ref(), &[])?.ok();
    env.run(["cache", "fsck"])?.ok();
    env.assert_nothing_left();
    Ok(())
}

/// Q6: a thousand steps that could all run at once use a bounded number of threads and descriptors.
#[test]
fn a_thousand_steps_use_few_threads_and_descriptors() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?;
    let mut text = String::new();
    for n in 0..500 {
        write!(text, "FROM scratch AS s{n}\nCOPY <<x /f\n{n}\nx\n")?;
    }
    text.push_str("FROM scratch\n");
    for n in 0..500 {
        writeln!(text, "COPY --from=s{n} /f /f{n}")?;
    }
    let context = env.context("thousand", &text, &[])?;
    let (run, used) = watched(&env, &["build", "--progress", "quiet", context.to_str().context("UTF-8")?])?;
    run.ok();
    ensure!(used.threads > 0 && used.threads < 128, "{used:?}");
    ensure!(used.descriptors < 512, "{used:?}");
    ensure!(used.memory_kib < 400 << 10, "{used:?}");
    env.assert_nothing_left();
    Ok(())
}

/// Q7: limits that a rung cannot set are told, once, and what would change the result is refused.
#[test]
fn limits_that_a_chroot_cannot_set_are_told() -> Result<()> {
    need!(Root, Compiler);
    let probe = Probe::compile()?;
    let env = Place::Chroot.env()?;
    let text = "FROM scratch\nCOPY --chmod=755 probe /probe\nRUN [\"/probe\", \"write\", \"0\"]\nRUN [\"/probe\", \"lower\", \"0\"]\n";
    let context = with_probe(&env, &probe, text)?;
    let args = ["--resource", "memory=64m,pids=10", "--cgroup-parent", "/x", "--shm-size", "1m"];
    let run = env.build(context.as_ref(), &args)?.ok();
    let run =
        run.says(&["limits that are not enforced here", "memory", "pids", "--cgroup-parent", "--shm-size"]);
    assert_eq!(run.stderr.matches("limits that are not enforced here").count(), 1, "{run}");
    // What rlimits can do they do.
    let text = "FROM scratch\nCOPY --chmod=755 probe /probe\nRUN [\"/probe\", \"facts\", \"0\"]\n";
    let context = with_probe(&env, &probe, text)?;
    env.build(context.as_ref(), &["--ulimit", "nofile=77:88"])?.ok().says(&["limit:nofile 77:88"]);
    let text = "FROM scratch\nCOPY --chmod=755 probe /probe\nRUN --security=insecure [\"/probe\", \"lower\", \"0\"]\n";
    let context = with_probe(&env, &probe, text)?;
    let run = env.build(context.as_ref(), &["--allow", "security.insecure"])?.exits(1);
    run.says(&["RUN --security=insecure", "`chroot`"]);
    env.assert_nothing_left();
    Ok(())
}
