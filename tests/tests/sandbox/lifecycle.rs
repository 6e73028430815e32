//! Suite G: signals, lost terminals and odd surroundings. What a shell in the sandbox can show alone is in the sandbox's
//! own suite; here is what the binary does.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rbuild_tests::env::Started;
use rbuild_tests::fault::{End, FaultRegistry, Image, Reply, digest, wait_until};
use rbuild_tests::{TestEnv, need};
use rustix::process::{Pid, Signal, kill_process};

/// After a signal rbuild ends within this time.
const END_LIMIT: Duration = Duration::from_secs(5);

fn signal(started: &Started, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(started.pid())?).context("a pid")?;
    Ok(kill_process(pid, signal)?)
}

/// G1: a signal in the middle of a pull, and of a push.
#[test]
fn a_signal_ends_transfers_within_seconds() -> Result<()> {
    need!(Root);
    let image = Image::of_size(3 << 20);
    let (stored, layer) = (image.layer.clone(), format!("/blobs/{}", digest(&image.layer)));
    let wanted = layer.clone();
    // Some of the layer comes, and then nothing; what is sent is never acknowledged.
    let registry = FaultRegistry::new(move |request, _| {
        if request.method == "GET" && request.path.ends_with(&wanted) {
            return Some(Reply::new(200).body(stored.clone()).end(End::Stall(1000)));
        }
        (request.method == "PUT" && request.path.contains("/uploads/"))
            .then(|| Reply::new(201).body(vec![b'x'; 2000]).end(End::Stall(1000)))
    })?;
    registry.add("app", "1", &image);
    let env = TestEnv::new()?;
    let pull = env.start(env.command(["pull", &format!("{}/app:1", registry.host())]))?;
    wait_until("the pull asks for the layer", || registry.count("GET", &layer) > 0)?;
    let at = Instant::now();
    signal(&pull, Signal::TERM)?;
    pull.finish()?.exits(143);
    assert!(at.elapsed() < END_LIMIT, "the pull took {:?} to end", at.elapsed());
    env.assert_nothing_left();

    let context = env.context("push", "FROM scratch\nCOPY Dockerfile /\n", &[])?;
    let name = format!("{}/built:1", registry.host());
    let context = context.to_str().context("UTF-8")?;
    let push = env.start(env.command(["build", "--progress", "plain", "-t", &name, "--push", context]))?;
    wait_until("the push sends a blob", || registry.count("PUT", "/uploads/") > 0)?;
    let at = Instant::now();
    signal(&push, Signal::INT)?;
    push.finish()?.exits(130);
    assert!(at.elapsed() < END_LIMIT, "the push took {:?} to end", at.elapsed());
    assert!(registry.manifest("built:1").is_none(), "a manifest was pushed");
    env.run(["cache", "fsck"])?.ok();
    env.assert_nothing_left();
    Ok(())
}

/// A build whose step says `running` and then sleeps; returned when it has said it.
fn sleeping(
    env: &TestEnv,
    mut command: Command,
) -> Result<(std::process::Child, impl std::io::BufRead + use<>)> {
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut lines = BufReader::new(child.stderr.take().context("standard error")?);
    let mut line = String::new();
    while !line.contains(" probe running") {
        line.clear();
        ensure!(lines.read_line(&mut line)? > 0, "the step never ran in {}", env.dir().display());
    }
    Ok((child, lines))
}

/// A context whose step ignores SIGINT and SIGTERM; made of the probe alone, so that no registry is needed.
fn stubborn(env: &TestEnv, probe: &Path) -> Result<String> {
    let context = env.context(
        "stubborn",
        "FROM scratch\nCOPY --chmod=755 probe /probe\nRUN [\"/probe\", \"sleep\", \"x\"]\n",
        &[],
    )?;
    fs::copy(probe, context.join("probe"))?;
    Ok(context.to_str().context("UTF-8")?.to_owned())
}

/// G2: a second SIGINT ends it at once, whatever the first one waits for, and leaves nothing either.
#[test]
fn a_second_signal_leaves_nothing_either() -> Result<()> {
    need!(Root, Compiler);
    let probe = crate::probes::Probe::compile()?;
    let env = TestEnv::new()?;
    let context = stubborn(&env, &probe.path())?;
    let (mut child, _lines) = sleeping(&env, env.command(["build", "--progress", "plain", &context]))?;
    let pid = Pid::from_raw(i32::try_from(child.id())?).context("a pid")?;
    let at = Instant::now();
    kill_process(pid, Signal::INT)?;
    // It may have ended by now.
    kill_process(pid, Signal::INT).ok();
    let status = child.wait()?;
    assert_eq!(status.code(), Some(130), "{status}");
    assert!(at.elapsed() < END_LIMIT, "took {:?}", at.elapsed());
    // Ended at once, it may not have removed its unfinished files: the next build does.
    let next = env.context("next", "FROM scratch\nCOPY Dockerfile /\n", &[])?;
    env.build(&next, &[])?.ok();
    env.assert_nothing_left();
    Ok(())
}

/// G3: nobody reads what is printed any more: the build goes on, and its result is there.
#[test]
fn a_build_whose_output_nobody_reads_succeeds() -> Result<()> {
    need!(Root, Compiler);
    let probe = crate::probes::Probe::compile()?;
    let env = TestEnv::new()?;
    let text = "FROM scratch\nCOPY --chmod=755 probe /probe\nRUN [\"/probe\", \"lower\", \"0\"]\nRUN [\"/probe\", \"facts\", \"0\"]\n";
    let context = env.context("unread", text, &[])?;
    fs::copy(probe.path(), context.join("probe"))?;
    let context = context.to_str().context("UTF-8")?;
    let mut command = env.command(["build", "--progress", "plain", "-t", "me/unread", context]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    drop((child.stdout.take(), child.stderr.take()));
    let status = child.wait()?;
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(env.run(["images"])?.ok().stdout.contains("me/unread"));
    env.assert_nothing_left();
    Ok(())
}

/// G8: without standard streams, HOME or a terminal, with any umask, a huge environment, few descriptors: one image.
#[test]
fn surroundings_do_not_reach_the_image() -> Result<()> {
    need!(Root, Compiler);
    let probe = crate::probes::Probe::compile()?;
    let env = TestEnv::new()?.with_variable("SOURCE_DATE_EPOCH", "1700000000");
    let text = "FROM scratch\nCOPY --chmod=755 probe /probe\nCOPY dir /dir/\nWORKDIR /made/deep\n\
                RUN [\"/probe\", \"write\", \"0\"]\n";
    let context = env.context("around", text, &[("dir/f", "f\n")])?;
    fs::copy(probe.path(), context.join("probe"))?;
    let context = context.to_str().context("UTF-8")?;
    let id_file = env.work().join("id");
    let built = |number: usize, setting: &str| -> Result<String> {
        // Each has a store of its own: nothing comes from the cache.
        let store = env.work().join(format!("store-{number}"));
        let inner = env.command([
            "build",
            "--progress",
            "plain",
            "--iidfile",
            id_file.to_str().context("UTF-8")?,
            context,
        ]);
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(setting).arg("sh").arg(inner.get_program()).args(inner.get_args());
        command.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("RBUILD_ROOT", &store).current_dir(env.work()).stdin(Stdio::null());
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{setting}: {}: {said}", output.status);
        fs::read_to_string(&id_file).with_context(|| format!("{setting}: no image id"))
    };
    let settings = [
        "umask 022; exec \"$@\"",
        "umask 000; exec \"$@\"",
        "umask 077; exec \"$@\"",
        "unset HOME; exec \"$@\"",
        "exec \"$@\" <&-",
        "exec setsid --wait \"$@\" </dev/null",
        "HUGE=$(head -c 100000 /dev/zero | tr '\\0' x); export HUGE; exec \"$@\"",
        "ulimit -n 64; exec \"$@\"",
        "cd /; exec \"$@\"",
    ];
    let first = built(0, settings[0])?;
    for (number, setting) in settings.iter().enumerate().skip(1) {
        assert_eq!(built(number, setting)?, first, "{setting}");
    }
    env.assert_nothing_left();
    Ok(())
}
