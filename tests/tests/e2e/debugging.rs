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
                RUN echo half > made && false\n";
    let commands = "cat made\necho $GREETING $WHO\npwd\nid -u\ntouch more && exit 3\n";
    let run = build_with_shell(&env, "state", text, commands)?.exits(1);
    let run = run.says(&["exit code: 1", "shell in the failed step", "RUN echo half", "user 1000, /srv"]);
    for line in ["half", "hello you", "/srv", "1000"] {
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
