//! What people and machines get wrong: the message names the thing and the fix, nothing is left, the next build works.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rbuild_tests::{TestEnv, need};

use crate::world;

/// Builds with `-t me/bad`, expects the status and the texts, and that the world is as it was and still works.
#[track_caller]
fn check_bad(env: &TestEnv, context: &Path, args: &[&str], says: &[&str]) -> Result<()> {
    check_bad_exits(1, env, context, args, says)
}

/// Status 102: the machine ran out of something.
#[track_caller]
fn check_bad_exits(code: i32, env: &TestEnv, context: &Path, args: &[&str], says: &[&str]) -> Result<()> {
    let mut all = vec!["-t", "me/bad"];
    all.extend(args);
    let run = env.build(context, &all)?.exits(code).says(says);
    assert!(run.stderr.contains("ERROR: "), "{run}");
    assert!(!run.stderr.contains("panicked"), "{run}");
    env.assert_nothing_left();
    let images = env.run(["images"])?.ok();
    assert!(!images.stdout.contains("me/bad"), "a failed build was tagged\n{images}");
    Ok(())
}

#[track_caller]
fn check_next_build_works(env: &TestEnv) -> Result<()> {
    let good = env.context("good", "FROM busybox\nRUN echo good > /good\n", &[])?;
    env.build(&good, &["-t", "me/good"])?.ok();
    assert!(env.run(["images"])?.ok().stdout.contains("me/good"));
    env.assert_nothing_left();
    Ok(())
}

#[track_caller]
fn check_dockerfile(dockerfile: &str, args: &[&str], says: &[&str]) -> Result<()> {
    let (_registry, env) = world()?;
    let context = env.context("bad", dockerfile, &[("index.js", "x")])?;
    check_bad(&env, &context, args, says)?;
    check_next_build_works(&env)
}

#[test]
fn no_dockerfile() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.work().join("empty");
    fs::create_dir(&context)?;
    check_bad(&env, &context, &[], &["Dockerfile", "-f"])?;
    check_bad(&env, &context, &["-f", "Dockerfile.missing"], &["Dockerfile.missing"])?;
    check_bad(&env, &env.work().join("nowhere"), &[], &["nowhere"])?;
    check_next_build_works(&env)
}

#[test]
fn unknown_instruction() -> Result<()> {
    need!(Root, Registry, Bases);
    check_dockerfile("FROM busybox\nRUNN echo x\n", &[], &["RUNN", "RUN", "Dockerfile:2", ">>> RUNN echo x"])
}

#[test]
fn missing_copy_source() -> Result<()> {
    need!(Root, Registry, Bases);
    check_dockerfile(
        "FROM busybox\nCOPY indx.js /app/\n",
        &[],
        &["indx.js", "Dockerfile:2", ">>> COPY indx.js /app/"],
    )
}

#[test]
fn unknown_stage() -> Result<()> {
    need!(Root, Registry, Bases);
    let text = "FROM busybox AS build\nRUN true\nFROM busybox AS final\nRUN true\n";
    check_dockerfile(text, &["--target", "biuld"], &["biuld", "build", "final"])
}

#[test]
fn base_image_not_found() -> Result<()> {
    need!(Root, Registry, Bases);
    check_dockerfile("FROM me/no-such-image:4\nRUN true\n", &[], &["me/no-such-image:4", "Dockerfile:1"])?;
    check_dockerfile("FROM busybox:no-such-tag\nRUN true\n", &[], &["busybox:no-such-tag"])
}

#[test]
fn registry_away() -> Result<()> {
    need!(Root, Registry, Bases);
    let (registry, env) = world()?;
    env.run(["pull", "busybox"])?.ok();
    let away = rbuild_tests::registry::free_address()?.to_string();
    let context = env.context("away", &format!("FROM {away}/base\nRUN true\n"), &[])?;
    check_bad(&env, &context, &[], &[&away])?;
    let push = env.context("push", "FROM busybox\nRUN true\n", &[])?;
    let name = format!("{away}/out");
    env.build(&push, &["-t", &name, "--push"])?.exits(1).says(&[&away]);
    env.assert_nothing_left();
    drop(registry);
    check_next_build_works(&env)
}

#[test]
fn run_exits_7() -> Result<()> {
    need!(Root, Registry, Bases);
    let text = "FROM busybox\n# a comment\nRUN echo last-words; exit 7\nRUN echo never-reached\n";
    let says = [
        "Dockerfile:3",
        ">>> RUN echo last-words; exit 7",
        "last-words\n",
        "exit code: 7",
        "ERROR: failed to solve: process \"/bin/sh -c echo last-words; exit 7\" did not complete successfully: exit code: 7",
    ];
    check_dockerfile(text, &[], &says)
}

#[test]
fn run_command_not_found() -> Result<()> {
    need!(Root, Registry, Bases);
    check_dockerfile("FROM busybox\nRUN no-such-program --x\n", &[], &["no-such-program", "exit code: 127"])?;
    check_dockerfile("FROM busybox\nRUN [\"no-such-program\"]\n", &[], &["no-such-program", "Dockerfile:2"])?;
    check_dockerfile(
        "FROM scratch\nRUN echo x\n",
        &[],
        &["/bin/sh", "Dockerfile:2", "hint: the image has no shell"],
    )?;
    check_dockerfile(
        "FROM busybox\nRUN echo true > /script && chmod +x /script\nRUN [\"/script\"]\n",
        &[],
        &["/script", "Dockerfile:3", "hint: it is no program of this machine", "#!/bin/sh"],
    )
}

#[test]
fn a_step_killed_by_a_signal_is_said_so() -> Result<()> {
    need!(Root, Registry, Bases);
    check_dockerfile("FROM busybox\nRUN kill -9 $$\n", &[], &["Dockerfile:2", "signal 9"])
}

#[test]
fn wrong_options_are_usage_errors() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("usage", "FROM busybox\nRUN true\n", &[])?;
    env.build(&context, &["--no-such-flag"])?.exits(125).says(&["--no-such-flag"]);
    env.run(["build"])?.exits(125);
    env.build(&context, &["--memory", "64m"])?
        .ok()
        .says(&["--memory has no effect", "--resource memory=VALUE"]);
    env.build(&context, &["-t", "Upper/Case"])?.exits(1).says(&["Upper/Case", "must be lowercase"]);
    env.build(&context, &["-o", "dest=x,name=y"])?.exits(125).says(&["type is required for output"]);
    check_next_build_works(&env)
}

#[test]
fn unsupported_features_are_errors_at_their_line() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    // Either it works or it is refused at its line; it is never ignored.
    let context = env.context(
        "network",
        "FROM busybox\nRUN --network=none wget -q http://127.0.0.1/ || touch /none\n",
        &[],
    )?;
    let run = env.build(&context, &[])?;
    assert!(run.code == Some(0) || run.stderr.contains("Dockerfile:2"), "{run}");
    let secret = env.context(
        "secret",
        "FROM busybox\nRUN --mount=type=secret,id=s,required=true cat /run/secrets/s\n",
        &[],
    )?;
    env.build(&secret, &[])?.exits(1).says(&["Dockerfile:2"]);
    check_next_build_works(&env)
}

/// A small disk, unmounted when dropped.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(at: &'a Path, size: &str) -> Result<Self> {
        fs::create_dir_all(at)?;
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", size, "tmpfs"]).arg(at).status()?;
        ensure!(status.success(), "mount a small disk: {status}");
        Ok(Self(at))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(self.0).status().ok();
    }
}

/// Q3: a step, and the builder, that fill the disk.
#[test]
fn disk_full() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let store = env.work().join("small-disk");
    let env = env.with_store(&store);
    let _disk = SmallDisk::mount(&store, "size=32m,mode=700")?;
    let filler = "x".repeat(1 << 20);

    // In a step: the step's own message, and which disk it is.
    let run = env.context("run", "FROM busybox\nRUN dd if=/dev/zero of=/big bs=1M count=60\n", &[])?;
    let hint = "hint: the disk that holds the store has no space left: free space on ";
    check_bad_exits(102, &env, &run, &[], &["No space left on device", "exit code: 1", hint])?;

    // In our own work: what could not be written where, and what to do.
    let copy = env.context("copy", "FROM busybox\nCOPY . /big/\nRUN true\n", &[])?;
    for file in 0..50 {
        fs::write(copy.join(format!("file-{file}")), format!("{file}{filler}"))?;
    }
    check_bad_exits(102, &env, &copy, &[], &["No space left on device", "hint: free space"])?;
    check_next_build_works(&env)
}

/// What makes room has some, however full the disk is.
#[test]
fn a_full_disk_can_be_given_room_by_removing_images() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let store = env.work().join("small-disk");
    let env = env.with_store(&store);
    let _disk = SmallDisk::mount(&store, "size=32m,mode=700")?;
    let context =
        env.context("large", "FROM busybox\nRUN dd if=/dev/urandom of=/big bs=1M count=8\n", &[])?;
    for prune in [["image", "prune", "-af"].as_slice(), &["prune", "-af"]] {
        env.build(&context, &["-t", "me/large"])?.ok();
        let mut ballast = fs::File::create(store.join("ballast"))?;
        for size in [64 << 10, 4096, 1] {
            while ballast.write_all(&vec![1; size]).is_ok() {}
        }
        if prune.len() == 2 {
            env.run(["rmi", "me/large"])?.ok();
        }
        let pruned = env.run(prune)?.ok();
        assert!(pruned.stdout.contains("Total reclaimed space: "), "{pruned}");
        assert!(!pruned.stdout.contains("space: 0B"), "{pruned}");
        fs::remove_file(store.join("ballast"))?;
        env.run(["prune", "-f"])?.ok();
        ensure!(store.join("reserve").is_file(), "the reserve is made again");
    }
    check_next_build_works(&env)
}

/// Each result that is written somewhere else than the store: that disk is named.
#[test]
fn another_disk_that_is_full_is_named() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context =
        env.context("large", "FROM busybox\nRUN dd if=/dev/urandom of=/big bs=1M count=4\n", &[])?;
    env.build(&context, &["-t", "me/large"])?.ok();
    let other = env.work().join("other-disk");
    let _disk = SmallDisk::mount(&other, "size=1m,mode=700")?;
    let path = |name: &str| -> Result<String> { Ok(other.join(name).to_str().context("UTF-8")?.to_owned()) };
    let (archive, dir) = (path("app.tar")?, path("out")?);
    let named =
        |path: &str| format!("hint: free space on the disk that holds `{path}`, or write it somewhere");
    let output = format!("type=oci,compression=uncompressed,dest={archive}");
    env.run(["save", "-o", &archive, "me/large"])?.exits(102).says(&[&named(&archive)]);
    env.build(&context, &["-o", &output])?.exits(102).says(&[&named(&archive)]);
    env.build(&context, &["-o", &dir])?.exits(102).says(&[&named(&dir)]);
    Ok(())
}

#[test]
fn disk_full_while_a_base_is_unpacked() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let store = env.work().join("small-disk");
    let env = env.with_store(&store);
    let _disk = SmallDisk::mount(&store, "size=48m,mode=700")?;
    let context = env.context("large", "FROM debian\nRUN true\n", &[])?;
    check_bad_exits(102, &env, &context, &[], &["No space left on device", "hint: free space"])?;
    check_next_build_works(&env)
}
