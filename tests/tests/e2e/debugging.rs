//! A shell where a step failed.

use std::fs::File;

use anyhow::Result;
use rbuild_tests::{Run, TestEnv, need};

use crate::world;

/// Builds with `--on-error=shell`, `commands` on standard input.
fn build_with_shell(env: &TestEnv, name: &str, dockerfile: &str, commands: &str) -> Result<Run> {
    let context = env.context(name, dockerfile, &[])?;
    let script = env.write(format!("{name}.sh"), commands)?;
    let mut command = env.command(["build", "--progress", "plain", "--on-error", "shell"]);
    command.arg(&context).stdin(File::open(script)?);
    env.start(command)?.finish()
}

#[test]
fn a_shell_in_a_failed_step_has_its_files_user_directory_and_environment() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let text = "FROM busybox\nENV GREETING=hello\nARG WHO=you\nWORKDIR /srv\nRUN chown 1000 .\nUSER 1000\n\
                RUN --mount=type=tmpfs,target=/scratch echo half > made && echo kept > /scratch/file && false\n";
    let commands = "cat made /scratch/file\necho $GREETING $WHO\npwd\nid -u\ntouch more && exit 3\n";
    let run = build_with_shell(&env, "state", text, commands)?.exits(1);
    let run = run.says(&["exit code: 1", "shell in the failed step", "echo half", "user 1000, /srv"]);
    for line in ["half", "kept", "hello you", "/srv", "1000"] {
        assert!(
            run.stdout.lines().any(|l| l.trim_start_matches(['$', '#', '/', ' ']).ends_with(line)),
            "{line}: {run}"
        );
    }
    env.assert_nothing_left();
    // The step is as failed as before.
    let context = env.work().join("state");
    env.build(&context, &[])?.exits(1);
    Ok(())
}

#[test]
fn an_image_without_a_shell_is_looked_at_through_the_hosts_busybox() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let text = "FROM busybox AS tools\nFROM scratch\nCOPY --from=tools /bin/busybox /only/false\n\
                RUN [\"/only/false\", \"false\"]\n";
    let run = build_with_shell(&env, "bare", text, "echo /only/*\n/dev/busybox ls /dev/busybox\n")?.exits(1);
    let run = run.says(&["the image has no /bin/sh", "read-only"]);
    assert!(run.stdout.contains("/only/false") && run.stdout.contains("/dev/busybox"), "{run}");
    env.assert_nothing_left();
    Ok(())
}

/// `rbuild debug ARGS` with `commands` on standard input.
fn debug(env: &TestEnv, args: &[&str], commands: &str) -> Result<Run> {
    let script = env.write("debug.sh", commands)?;
    let mut command = env.command(["debug"]);
    command.args(args).stdin(File::open(script)?);
    env.start(command)?.finish()
}

#[track_caller]
fn assert_prints(run: &Run, lines: &[&str]) {
    for line in lines {
        // After a prompt, or on a line of its own.
        let is_it = |l: &str| l.trim_end() == *line || l.trim_end().ends_with(&format!(" {line}"));
        assert!(run.stdout.lines().any(is_it), "{line}: {run}");
    }
}

#[test]
fn debug_returns_to_the_step_that_failed_in_the_last_build() -> Result<()> {
    need!(Root, Registry, Bases, Subuid);
    let registry = rbuild_tests::Registry::shared()?;
    for env in [TestEnv::new()?, TestEnv::rootless()?] {
        let env = env.using(&registry)?;
        let text = "FROM busybox\nARG API_TOKEN\nWORKDIR /srv\nRUN echo before > first\nUSER 1000\n\
                    RUN echo half > /tmp/made; test -z \"$API_TOKEN\" || exit 5\n";
        let context = env.context("again", text, &[])?;
        let args = ["-t", "me/again", "--build-arg", "API_TOKEN=hunter2"];
        env.build(&context, &args)?.exits(1);
        let before = debug(&env, &[], "echo never\n")?.exits(1);
        // The value was not kept, so the step does what it does without, and the user hears of it.
        before.says(&["set API_TOKEN in the environment", "no step of this build fails"]);
        let env = env.with_variable("API_TOKEN", "hunter2");
        let run = debug(&env, &[], "cat /tmp/made first\npwd\nid -u\necho $API_TOKEN\n")?.ok();
        let run = run.says(&["shell in the failed step", "(user 1000, /srv)", "CACHED"]);
        assert_prints(&run, &["half", "before", "/srv", "1000", "hunter2"]);
        assert!(!env.run(["images"])?.ok().stdout.contains("me/again"), "debug names nothing");
        env.assert_nothing_left();
        env.run(["cache", "fsck"])?.ok();
    }
    Ok(())
}

#[test]
fn debug_enters_any_run_step_before_it_runs() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let text = "FROM busybox AS tools\nRUN echo tool > /tool\nFROM busybox\nENV A=1\nRUN echo one > /one\n\
                COPY --from=tools /tool /tool\nRUN --mount=type=tmpfs,target=/scratch --mount=type=secret,id=s echo two > /two\n\
                RUN echo three > /three\n";
    let context = env.context("steps", text, &[])?;
    let secret = env.write("work/s", "told\n")?;
    let secret = format!("id=s,src={}", secret.display());
    let first = env.build(&context, &["--secret", &secret, "-t", "me/steps"])?.ok();
    let look =
        "cat /one /tool /run/secrets/s\nls /two /three\nmount | grep -c ' /scratch '\necho changed > /one\n";
    // By number in the target's stage, by text, and after a build with nothing to do, whose steps are all cached.
    env.build(&context, &["--secret", &secret])?.ok().assert_all_cached();
    for step in ["4", "4/5", "echo two"] {
        let run = debug(&env, &["--step", step], look)?.ok();
        let run = run.says(&["shell before the step", "echo two > /two"]);
        assert_prints(&run, &["one", "tool", "told", "1"]);
        assert!(
            run.stdout.contains("/two: No such file") && run.stdout.contains("/three: No such file"),
            "{run}"
        );
        env.assert_nothing_left();
    }
    // Nothing of it came into a result.
    let again = env.build(&context, &["--secret", &secret, "-t", "me/steps"])?.ok();
    again.assert_all_cached();
    assert_eq!(first.executed().len(), 5, "{first}");
    // With a build's own arguments, from anywhere.
    let other = env.context("other", "FROM busybox\nRUN echo other\nRUN echo more\n", &[])?;
    let run = debug(&env, &["--step", "2", other.to_str().unwrap_or_default()], "echo here\n")?.ok();
    assert_prints(&run, &["here"]);
    debug(&env, &["--step", "9"], "")?.exits(1).says(&["no RUN step `9`", "echo two", "echo three"]);
    debug(&env, &["--step", "echo"], "")?.exits(1).says(&["may be several steps"]);
    debug(&env, &[], "")?.exits(1).says(&["no step of this build fails", "--step"]);
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn debug_without_a_build_to_return_to_says_so() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?;
    debug(&env, &[], "")?
        .exits(1)
        .says(&["no build that executed a step is remembered", "rbuild debug [--step STEP]"]);
    debug(&env, &["images"], "")?.exits(125).says(&["arguments of a build"]);
    Ok(())
}
