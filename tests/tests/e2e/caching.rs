//! What is executed again, and what is not.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::Result;
use rbuild_tests::need;

use crate::world;

const TWO_FILES: &str = "FROM busybox\nCOPY a.txt /a\nRUN cat /a > /a2\nCOPY b.txt /b\nRUN cat /b > /b2\n";

#[test]
fn a_step_depends_on_its_own_sources_only() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("two", TWO_FILES, &[("a.txt", "a\n"), ("b.txt", "b\n")])?;
    let first = env.build(&context, &["-t", "two"])?.ok();
    assert_eq!(first.executed().len(), 4, "{first}");
    fs::write(context.join("b.txt"), "changed\n")?;
    let run = env.build(&context, &["-t", "two"])?.ok();
    assert_eq!(run.executed(), ["[4/5] COPY b.txt /b", "[5/5] RUN cat /b > /b2"], "{run}");
    fs::write(context.join("unused.txt"), "nobody copies it\n")?;
    env.build(&context, &["-t", "two"])?.ok().assert_all_cached();
    Ok(())
}

#[test]
fn a_touched_file_executes_nothing_and_a_changed_mode_does() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("touch", "FROM busybox\nCOPY run.sh /\n", &[("run.sh", "#!/bin/sh\n")])?;
    fs::set_permissions(context.join("run.sh"), fs::Permissions::from_mode(0o644))?;
    let (_, first) = env.build_digest(&context, &[])?;
    fs::write(context.join("run.sh"), "#!/bin/sh\n")?;
    let (touched, second) = env.build_digest(&context, &[])?;
    touched.assert_all_cached();
    assert_eq!(first, second, "{touched}");
    fs::set_permissions(context.join("run.sh"), fs::Permissions::from_mode(0o755))?;
    let (changed, third) = env.build_digest(&context, &[])?;
    assert_eq!(changed.executed(), ["[2/2] COPY run.sh /"], "{changed}");
    assert_ne!(second, third);
    Ok(())
}

#[test]
fn same_size_and_time_but_other_content_is_seen() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("sneaky", "FROM busybox\nCOPY f /f\nRUN cat /f\n", &[("f", "one\n")])?;
    let (_, first) = env.build_digest(&context, &[])?;
    let modified = fs::metadata(context.join("f"))?.modified()?;
    fs::write(context.join("f"), "two\n")?;
    fs::File::options().write(true).open(context.join("f"))?.set_modified(modified)?;
    let (run, second) = env.build_digest(&context, &[])?;
    assert_eq!(run.executed().len(), 2, "{run}");
    assert_ne!(first, second);
    Ok(())
}

#[test]
fn no_cache_executes_everything_again() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("again", TWO_FILES, &[("a.txt", "a\n"), ("b.txt", "b\n")])?;
    env.build(&context, &[])?.ok();
    let run = env.build(&context, &["--no-cache"])?.ok();
    assert_eq!(run.executed().len(), 4, "{run}");
    env.build(&context, &[])?.ok().assert_all_cached();
    Ok(())
}

#[test]
fn another_build_argument_executes_the_steps_that_see_it() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let text = "FROM busybox\nRUN echo before\nARG COLOUR=red\nRUN echo $COLOUR > /colour\n";
    let context = env.context("arg", text, &[])?;
    env.build(&context, &[])?.ok();
    let run = env.build(&context, &["--build-arg", "COLOUR=blue"])?.ok();
    assert_eq!(run.executed(), ["[3/3] RUN echo $COLOUR > /colour"], "{run}");
    env.build(&context, &["--build-arg", "COLOUR=red"])?.ok().assert_all_cached();
    Ok(())
}

#[test]
fn two_builds_at_once_execute_a_shared_step_once() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context =
        env.context("race", "FROM busybox\nRUN sleep 1; head -c 8 /dev/urandom > /random\n", &[])?;
    let context = context.to_string_lossy().into_owned();
    let files = [env.work().join("one.json"), env.work().join("two.json")];
    let mut started = Vec::new();
    for file in &files {
        let file = file.to_string_lossy();
        started.push(env.start(env.command([
            "build",
            "--progress=plain",
            "--metadata-file",
            &*file,
            &*context,
        ]))?);
    }
    for one in started {
        one.finish()?.ok();
    }
    let digest = |file| -> Result<_> {
        let metadata: serde_json::Value = serde_json::from_slice(&fs::read(file)?)?;
        Ok(metadata["containerimage.digest"].clone())
    };
    assert!(digest(&files[0])?.is_string());
    assert_eq!(digest(&files[0])?, digest(&files[1])?, "each executed the random step for itself");
    env.assert_nothing_left();
    Ok(())
}
