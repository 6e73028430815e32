//! Stores in odd places and among odd neighbours: rows of suite D.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use rbuild_tests::fault::SmallDisk;
use rbuild_tests::{TestEnv, bases, need};
use rustix::process::{Pid, Signal, kill_process};

use crate::world;

/// D8: who waits for a builder that stands still says for whom, and both have their image once that goes on.
#[test]
fn a_stopped_builder_is_waited_for_by_name_and_loses_nothing() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    env.build(&env.context("warm", "FROM busybox\nRUN true\n", &[])?, &[])?.ok();
    let context = env.context("wait", "FROM busybox\nRUN sleep 1 && echo done > /done\n", &[])?;
    let path = context.to_str().context("UTF-8")?;
    let first = env.start(env.command(["build", "--progress=plain", "-t", "me/first", path]))?;
    env.await_step()?;
    let pid = Pid::from_raw(first.pid().cast_signed()).context("a pid")?;
    kill_process(pid, Signal::STOP)?;
    let mut command = env.command(["build", "--progress=plain", "-t", "me/second", path]);
    let mut second = env.spawn(command.stderr(Stdio::piped()).stdout(Stdio::null()))?;
    let mut lines = BufReader::new(second.stderr.take().context("a pipe")?).lines();
    let waits = format!("waiting for pid {}, which has been at this step for ", first.pid());
    let said = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains(&waits)));
    // Before anything can fail: a stopped process would stay for ever.
    kill_process(pid, Signal::CONT)?;
    assert!(said.is_some(), "the second ended without waiting");
    first.finish()?.ok();
    let rest: Vec<String> = lines.collect::<std::io::Result<_>>()?;
    assert!(second.wait()?.success(), "{rest:?}");
    env.build(&context, &[])?.ok().assert_all_cached();
    env.run(["image", "inspect", "me/first", "me/second"])?.ok();
    env.run(["cache", "fsck"])?.ok();
    env.assert_nothing_left();
    Ok(())
}

/// D9: no store without locks.
#[test]
fn a_file_system_without_locks_is_refused_with_the_remedy() -> Result<()> {
    need!(Root, Strace);
    let env = TestEnv::new()?;
    let context = env.context("locks", "FROM scratch\nLABEL a=b\n", &[])?;
    for errno in ["ENOLCK", "EOPNOTSUPP"] {
        let built = env.command(["build", context.to_str().context("UTF-8")?]);
        let mut command = Command::new("strace");
        command.args([
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "trace=flock",
            "-e",
            &format!("inject=flock:error={errno}"),
        ]);
        command.arg(built.get_program()).args(built.get_args()).env_clear();
        for (name, value) in built.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        let run = env.start(command)?.finish()?.exits(1);
        run.says(&["is on a file system without locks; choose a directory on a local disk"]);
    }
    Ok(())
}

/// What no command can use is told by the one that says what is wrong with this machine.
#[test]
fn doctor_tells_of_a_store_that_is_refused() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?;
    env.run(["images"])?.ok();
    assert!(!env.run(["doctor"])?.ok().stdout.contains("no build can use it"));
    fs::write(env.store().join("store.json"), "{\"format\": 99}")?;
    env.run(["images"])?.exits(1).says(&["was written by a newer rbuild"]);
    let told = env.run(["doctor"])?.ok();
    assert!(told.stdout.contains("no build can use it: `"), "{told}");
    assert!(told.stdout.contains("was written by a newer rbuild (format 99"), "{told}");
    let json: serde_json::Value = serde_json::from_str(&env.run(["doctor", "--format=json"])?.ok().stdout)?;
    assert!(json["store_refused"].as_str().is_some_and(|why| why.contains("newer rbuild")), "{json}");
    Ok(())
}

/// A store closed to others is told to be another's.
#[test]
fn a_private_store_of_somebody_else_is_told_to_be_theirs() -> Result<()> {
    need!(Root, Subuid);
    let env = TestEnv::rootless()?;
    let other = tempfile::tempdir_in("/tmp")?;
    fs::set_permissions(other.path(), fs::Permissions::from_mode(0o700))?;
    let root = other.path().to_str().context("UTF-8")?;
    for isolation in ["rootless", "norun"] {
        let run = env.run(["--root", root, "--isolation", isolation, "images"])?.exits(1);
        let run =
            run.says(&["belongs to uid 0, this process runs as uid ", "; choose another store: --root DIR"]);
        assert!(!run.stderr.contains("runs as uid 0"), "{run}");
    }
    Ok(())
}

/// A container's own file system is an overlay, which cannot be the upper layer of another.
#[test]
fn a_store_on_an_overlay_is_told_with_the_remedy() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let disk = SmallDisk::new(64 << 20)?;
    let [lower, upper, work, merged] =
        ["lower", "upper", "work", "merged"].map(|name| disk.path().join(name));
    for dir in [&lower, &upper, &work, &merged] {
        fs::create_dir(dir)?;
    }
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let mounted =
        Command::new("mount").args(["-t", "overlay", "-o", &options, "overlay"]).arg(&merged).status()?;
    assert!(mounted.success());
    let env = env.with_store(&merged.join("store"));
    let context = env.context("over", "FROM busybox\nRUN true\n", &[])?;
    let run = env.build(&context, &["--isolation=root"]);
    let doctor = env.run(["doctor"]);
    Command::new("umount").arg("--lazy").arg(&merged).status()?;
    run?.exits(1).says(&[
        "hint: the store is on a file system that cannot be the upper layer of an overlay",
        "--root DIR",
    ]);
    let doctor = doctor?.stdout;
    assert!(doctor.contains("keep the store on another file system than this one"), "{doctor}");
    Ok(())
}

/// D11: a time in the future is a time like any other: nothing is taken for changed, and nothing changed for equal.
#[test]
fn files_from_the_future_are_known_again_and_looked_at_when_they_change() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?;
    let context = env.context("future", "FROM scratch\nCOPY f /\n", &[("f", "one\n")])?;
    let file = context.join("f");
    let future = SystemTime::now() + Duration::from_secs(30 * 365 * 86_400);
    let dated = |text: &str| -> Result<()> {
        fs::write(&file, text)?;
        Ok(File::options().write(true).open(&file)?.set_modified(future)?)
    };
    dated("one\n")?;
    env.build(&context, &[])?.ok();
    env.build(&context, &[])?.ok().assert_all_cached();
    dated("two\n")?;
    env.build(&context, &[])?.ok().says(&["not cached: 1 file changed: f (content)"]);
    Ok(())
}

/// An image on a base, in a store that lost its index since.
fn without_an_index(env: &TestEnv) -> Result<Vec<u8>> {
    let base = format!("base=oci-layout://{}:latest", bases::dir()?.join("busybox").display());
    let context = env.context("lost", "FROM base\nRUN echo x > /f\n", &[])?;
    env.build(&context, &["--build-context", &base, "-t", "me/lost"])?.ok();
    let saved = save(env, "before.tar")?;
    lose_index(env)?;
    Ok(saved)
}

fn lose_index(env: &TestEnv) -> Result<()> {
    for suffix in ["", "-wal", "-shm"] {
        fs::remove_file(env.store().join(format!("index.sqlite{suffix}")))?;
    }
    Ok(())
}

fn save(env: &TestEnv, name: &str) -> Result<Vec<u8>> {
    let archive = env.work().join(name);
    env.run(["save", "-o", archive.to_str().context("UTF-8")?, "me/lost"])?.ok();
    Ok(fs::read(archive)?)
}

#[test]
fn an_image_can_be_saved_and_built_on_after_its_index_was_made_anew() -> Result<()> {
    need!(Root, Bases);
    let env = TestEnv::new()?;
    let saved = without_an_index(&env)?;
    let before = env.run(["cache", "fsck"])?.exits(1);
    before.says(&["the store has images; `rbuild cache fsck --rebuild` makes it anew"]);
    env.run(["cache", "fsck", "--rebuild"])?.ok();
    assert!(save(&env, "after.tar")? == saved, "another archive");
    let on_it = env.context("on-it", "FROM me/lost\nRUN cat /f\n", &[])?;
    env.build(&on_it, &["-t", "me/on-it"])?.ok();
    let layers = |name: &str| -> Result<Vec<String>> {
        let shown = env.run(["image", "inspect", "--format", "{{json .RootFS.Layers}}", name])?.ok();
        Ok(serde_json::from_str(&shown.stdout)?)
    };
    let (lower, upper) = (layers("me/lost")?, layers("me/on-it")?);
    assert_eq!(upper[..lower.len()], lower);
    env.run(["cache", "fsck"])?.ok();
    env.assert_nothing_left();
    Ok(())
}

/// Wherever it is killed, the next one finds all images; until then the store is refused or is what it was.
#[test]
fn a_rebuild_that_is_killed_loses_no_image() -> Result<()> {
    need!(Root, Bases, Strace);
    let env = TestEnv::new()?;
    let saved = without_an_index(&env)?;
    for call in ["pwrite64", "renameat2", "unlinkat", "syncfs"] {
        for when in 1.. {
            let log = env.work().join("strace");
            let mut command = Command::new("strace");
            command.args(["-f", "-qq", "-o", log.to_str().context("UTF-8")?]);
            command.args(["-e", &format!("trace={call}")]);
            command.args(["-e", &format!("inject={call}:signal=KILL:when={when}")]);
            let rebuild = env.command(["cache", "fsck", "--rebuild"]);
            command.arg(rebuild.get_program()).args(rebuild.get_args()).env_clear();
            for (name, value) in rebuild.get_envs() {
                command.env(name, value.unwrap_or_default());
            }
            if env.start(command)?.finish()?.code == Some(0) {
                break;
            }
            let listed = env.run(["images"])?;
            let is_refused = listed.code == Some(1) && listed.stderr.contains("cache fsck --rebuild");
            assert!(is_refused || listed.stdout.contains("me/lost"), "{call} {when}: {listed}");
        }
        assert!(save(&env, "after.tar")? == saved, "another archive");
        env.run(["cache", "fsck"])?.ok();
        lose_index(&env)?;
    }
    env.run(["cache", "fsck", "--rebuild"])?.ok();
    assert_eq!(fs::read_dir(env.store().join("work"))?.count(), 0);
    env.assert_nothing_left();
    Ok(())
}

/// A log that is gone takes the last transactions with it, and SQLite says nothing.
#[test]
fn an_image_that_was_lost_with_the_log_of_the_index_is_told_and_comes_back() -> Result<()> {
    need!(Root);
    let env = TestEnv::new()?;
    let context = env.context("log", "FROM scratch\nCOPY f /\n", &[("f", "one\n")])?;
    env.build(&context, &["-t", "me/log"])?.ok();
    for suffix in ["-wal", "-shm"] {
        fs::remove_file(env.store().join(format!("index.sqlite{suffix}")))?;
    }
    let lost = ["image docker.io/me/log:latest: the index lost it", "cache fsck --rebuild"];
    let checked = env.run(["cache", "fsck"])?.exits(1);
    assert!(lost.iter().all(|text| checked.stdout.contains(text)), "{checked}");
    env.run(["cache", "fsck", "--repair"])?.exits(1);
    let refused = env.run(["prune", "-af"])?.exits(1);
    refused.says(&["the index lost the image `docker.io/me/log:latest`", "nothing is removed before"]);
    env.run(["cache", "fsck", "--rebuild"])?.ok();
    env.run(["save", "-o", env.work().join("log.tar").to_str().context("UTF-8")?, "me/log"])?.ok();
    env.assert_nothing_left();
    Ok(())
}
