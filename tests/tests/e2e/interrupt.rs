//! A build that is stopped in the middle.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rbuild_tests::env::Started;
use rbuild_tests::fault::wait_until;
use rbuild_tests::{Run, TestEnv, need};
use rustix::fs::{CWD, FileType, Mode};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::world;

/// After a signal rbuild ends within this time (security reference, G1).
const END_LIMIT: Duration = Duration::from_secs(5);

/// Starts a build whose step runs `sleep SECONDS`, and returns when it sleeps. `seconds` is the test's own mark.
fn sleeping_build(env: &TestEnv, context: &Path, seconds: &str) -> Result<Started> {
    let mut command =
        env.command(["build", "--progress=plain", "-t", "me/stopped", context.to_str().context("UTF-8")?]);
    command.process_group(0);
    let started = env.start(command)?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_running(seconds) {
        ensure!(Instant::now() < deadline, "the step never started\n{}", started.finish()?);
        thread::sleep(Duration::from_millis(20));
    }
    Ok(started)
}

fn is_running(seconds: &str) -> bool {
    let Ok(entries) = fs::read_dir("/proc") else { return false };
    entries.flatten().any(|entry| {
        fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| line == format!("sleep\0{seconds}\0").as_bytes())
    })
}

fn pid(started: &Started) -> Result<Pid> {
    Pid::from_raw(i32::try_from(started.pid())?).context("a pid")
}

#[track_caller]
fn assert_stopped(env: &TestEnv, run: &Run, took: Duration, seconds: &str) {
    assert!(took < END_LIMIT, "took {took:?} to stop\n{run}");
    assert!(!is_running(seconds), "the step's process lives on\n{run}");
    env.assert_nothing_left();
    let images = env.run(["images"]).expect("images after a stopped build").ok();
    assert!(!images.stdout.contains("me/stopped"), "{images}");
}

fn next_build_works(env: &TestEnv, context: &Path) -> Result<()> {
    fs::write(context.join("Dockerfile"), "FROM busybox\nRUN echo before > /x\nRUN echo after\n")?;
    let run = env.build(context, &["-t", "me/next"])?.ok();
    // What was finished before the signal is not done again.
    assert_eq!(run.executed(), ["[3/3] RUN echo after"], "{run}");
    env.assert_nothing_left();
    Ok(())
}

fn context(env: &TestEnv, seconds: &str) -> Result<std::path::PathBuf> {
    let text = format!("FROM busybox\nRUN echo before > /x\nRUN sleep {seconds}\n");
    env.context("sleeps", &text, &[])
}

/// G1: SIGINT.
#[test]
fn an_interrupted_build_exits_130_and_leaves_nothing() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = context(&env, "86411")?;
    let started = sleeping_build(&env, &context, "86411")?;
    let at = Instant::now();
    kill_process(pid(&started)?, Signal::INT)?;
    let run = started.finish()?.exits(130);
    assert_stopped(&env, &run, at.elapsed(), "86411");
    next_build_works(&env, &context)
}

#[test]
fn ctrl_c_on_a_terminal_reaches_every_process_and_still_exits_130() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = context(&env, "86412")?;
    let started = sleeping_build(&env, &context, "86412")?;
    let at = Instant::now();
    kill_process_group(pid(&started)?, Signal::INT)?;
    let run = started.finish()?.exits(130);
    assert_stopped(&env, &run, at.elapsed(), "86412");
    next_build_works(&env, &context)
}

/// G1: SIGTERM.
#[test]
fn a_terminated_build_exits_143_and_leaves_nothing() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = context(&env, "86413")?;
    let started = sleeping_build(&env, &context, "86413")?;
    let at = Instant::now();
    kill_process(pid(&started)?, Signal::TERM)?;
    let run = started.finish()?.exits(143);
    assert_stopped(&env, &run, at.elapsed(), "86413");
    next_build_works(&env, &context)
}

/// G3: SIGHUP.
#[test]
fn a_build_whose_terminal_went_away_exits_129_and_leaves_nothing() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = context(&env, "86414")?;
    let started = sleeping_build(&env, &context, "86414")?;
    let at = Instant::now();
    kill_process(pid(&started)?, Signal::HUP)?;
    let run = started.finish()?.exits(129);
    assert_stopped(&env, &run, at.elapsed(), "86414");
    next_build_works(&env, &context)
}

/// G4: SIGKILL.
#[test]
fn a_killed_build_takes_its_step_along_and_the_next_build_works() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = context(&env, "86415")?;
    let started = sleeping_build(&env, &context, "86415")?;
    kill_process(pid(&started)?, Signal::KILL)?;
    let run = started.finish()?;
    assert_eq!(run.code, None, "{run}");
    let deadline = Instant::now() + END_LIMIT;
    while is_running("86415") {
        ensure!(Instant::now() < deadline, "the step outlives its builder\n{run}");
        thread::sleep(Duration::from_millis(20));
    }
    // Nobody was there to remove the unfinished files: the next build does.
    next_build_works(&env, &context)
}

#[test]
fn a_build_whose_results_nobody_reads_can_be_stopped() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?;
    let context = env.context("unread", "FROM scratch\nCOPY f /\n", &[("f", "f")])?;
    let pipe = env.work().join("pipe");
    rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::from_bits_retain(0o600), 0)?;
    let context = context.to_str().context("UTF-8")?;
    let started = env.start(env.command(["build", "--iidfile=id", "--metadata-file=pipe", context]))?;
    // The file comes before the pipe.
    wait_until("the id is written", || env.work().join("id").exists())?;
    thread::sleep(Duration::from_millis(200));
    kill_process(pid(&started)?, Signal::INT)?;
    let at = Instant::now();
    started.finish()?.exits(130);
    ensure!(at.elapsed() < END_LIMIT, "{:?}", at.elapsed());
    ensure!(fs::metadata(&pipe)?.file_type().is_fifo());
    env.assert_nothing_left();
    Ok(())
}
