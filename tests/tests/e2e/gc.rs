//! What leaves the store, and what never does.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use anyhow::{Context as _, Result};
use rbuild_tests::{Run, need};

use crate::explain::misses;
use crate::world;

const STEPS: &str =
    "FROM busybox\nCOPY f /f\nRUN cat /f > /g && echo done\nRUN dd if=/dev/zero of=/big bs=1024 count=512\n";

/// Itself, when it printed all of these.
#[track_caller]
fn prints(run: Run, texts: &[&str]) -> Run {
    for text in texts {
        assert!(run.stdout.contains(text), "stdout does not say `{text}`\n{run}");
    }
    run
}

#[test]
fn prune_leaves_what_images_need_and_removes_the_rest() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("prune", STEPS, &[("f", "kept\n")])?;
    let (_, kept) = env.build_digest(&context, &["-t", "me/kept"])?;
    fs::write(context.join("f"), "lost\n")?;
    env.build(&context, &[])?.ok();
    let before = prints(env.run(["du"])?.ok(), &["RECLAIMABLE", "Total:"]);
    assert!(before.stdout.contains("true"), "{before}");

    // The table tells how long ago something was used, which changes while one looks.
    let held = || -> Result<String> { Ok(env.run(["du", "--format", "json"])?.ok().stdout) };
    let before = held()?;
    prints(env.run(["prune"])?.ok(), &["WARNING! This will remove"]);
    assert_eq!(held()?, before, "an empty answer is no");
    let pruned =
        prints(env.run(["prune", "-f"])?.ok(), &["Deleted build cache objects:", "Total reclaimed space: "]);
    assert!(!pruned.stdout.contains("space: 0B"), "{pruned}");
    prints(env.run(["prune", "-f"])?.ok(), &["Total reclaimed space: 0B"]);
    prints(env.run(["cache", "fsck"])?.ok(), &["The store is sound."]);
    env.assert_nothing_left();

    // The image's own steps are still cached, the other's are not.
    let lost = env.build(&context, &[])?.ok();
    assert_eq!(lost.executed().len(), 3, "{lost}");
    fs::write(context.join("f"), "kept\n")?;
    let (run, again) = env.build_digest(&context, &["-t", "me/kept"])?;
    run.assert_all_cached();
    assert_eq!(kept, again);
    Ok(())
}

/// As Docker's: what has no name goes first, then everything; what a time keeps stays.
#[test]
fn system_prune_gives_back_images_and_build_cache_together() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("system", STEPS, &[("f", "kept\n")])?;
    env.build(&context, &["-t", "me/kept"])?.ok();
    fs::write(context.join("f"), "lost\n")?;
    env.build(&context, &[])?.ok();
    let says = "all dangling images and all build cache that no image uses";
    prints(env.run(["system", "prune"])?.ok(), &[says]);
    prints(env.run(["system", "prune", "-f", "--filter", "until=24h"])?.ok(), &["space: 0B"]);
    prints(env.run(["system", "prune", "-f", "--filter", "label=a"])?.ok(), &["space: 0B"]);
    prints(env.run(["system", "prune", "-f"])?.ok(), &["Deleted build cache objects:"]);
    env.run(["inspect", "me/kept"])?.ok();
    fs::write(context.join("f"), "kept\n")?;
    env.build(&context, &[])?.ok().assert_all_cached();
    prints(
        env.run(["system", "prune", "-af"])?.ok(),
        &["untagged: me/kept:latest", "Total reclaimed space: "],
    );
    assert_eq!(env.run(["images", "-q"])?.ok().stdout, "");
    // What is left says which image the tag of the base is.
    let left = env.run(["du", "--format", "json"])?.ok();
    assert!(!left.stdout.contains("\"Reclaimable\":true"), "{left}");
    prints(env.run(["cache", "fsck"])?.ok(), &["The store is sound."]);
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn filters_choose_what_is_shown_and_what_goes() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("filter", STEPS, &[("f", "x\n")])?;
    env.build(&context, &[])?.ok();
    let shown = |filter: &str| -> Result<usize> {
        let run = env.run(["du", "--format=json", "--filter", filter])?.ok();
        Ok(run.stdout.lines().count())
    };
    let all = shown("immutable")?;
    assert_eq!(shown("description~=RUN dd")?, 1);
    assert_eq!(shown("description~=RUN dd")? + shown("type!=regular")?, 1 + all - shown("type=regular")?);
    assert_eq!((shown("mutable")?, shown("until=48h")?, shown("parents=x")?), (0, 0, 0));
    prints(env.run(["du", "--by", "stage"])?.ok(), &["STAGE", "stage-0", "Total:"]);
    prints(env.run(["du", "--by", "kind"])?.ok(), &["KIND", "regular", "pulled"]);
    let by_image = env.run(["du", "--by", "image", "--format", "json"])?.ok();
    let whole: serde_json::Value = serde_json::from_str(by_image.stdout.trim())?;
    // What is resolved stays without an image: its manifest and config.
    let (size, reclaimable) = (whole["Size"].as_u64(), whole["Reclaimable"].as_u64());
    assert_eq!(whole["Name"], "<none>", "{by_image}");
    assert!(reclaimable > Some(1 << 20) && reclaimable < size, "{by_image}");
    let unused = ["--filter", "until=0.5h", "--filter", "unused-for=1ms"];
    prints(env.run([["prune", "-f"].as_slice(), &unused].concat())?.ok(), &["space: 0B"]);
    let gone = env.run(["prune", "-f", "--verbose", "--filter", "description~=RUN dd"])?.ok();
    prints(gone, &["ID:           ", "Description:  [4/4] RUN dd", "Type:         regular"]);
    assert_eq!((shown("description~=RUN dd")?, shown("immutable")?), (0, all - 1));
    let run = env.build(&context, &[])?.ok();
    assert_eq!(run.executed(), ["[4/4] RUN dd if=/dev/zero of=/big bs=1024 count=512"], "{run}");
    env.run(["prune", "-f", "--filter", "colour=red"])?.exits(125).says(&["there is no key `colour`"]);
    Ok(())
}

#[test]
fn all_forgets_results_but_no_image() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("all", "FROM busybox\nRUN echo x > /x\n", &[])?;
    env.build(&context, &["-t", "me/all"])?.ok();
    env.run(["prune", "-f", "-a"])?.ok();
    prints(env.run(["images"])?.ok(), &["me/all"]);
    let file = env.work().join("all.tar");
    let output = format!("type=oci,dest={}", file.display());
    let run = env.build(&context, &["-o", &output])?.ok();
    assert_eq!(run.executed().len(), 1, "{run}");
    prints(env.run(["cache", "fsck"])?.ok(), &["The store is sound."]);
    Ok(())
}

#[test]
fn a_build_over_its_budget_makes_room_and_the_image_it_made_stays() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let env = env.with_variable("RBUILD_CACHE_BUDGET", "100k");
    let context = env.context("budget", STEPS, &[("f", "0\n")])?;
    for round in 0..3 {
        fs::write(context.join("f"), format!("{round}\n"))?;
        env.build(&context, &["-t", "me/budget"])?.ok();
        env.build(&context, &["-t", "me/budget"])?.ok().assert_all_cached();
    }
    let usage = env.run(["du", "--format", "json"])?.ok();
    let mut reclaimable = 0;
    for line in usage.stdout.lines() {
        let entry: serde_json::Value = serde_json::from_str(line)?;
        if entry["Reclaimable"] == true {
            reclaimable += entry["Size"].as_u64().unwrap_or(0);
        }
    }
    assert!(reclaimable <= 100 << 10, "{reclaimable} bytes\n{usage}");
    prints(env.run(["cache", "fsck"])?.ok(), &["The store is sound."]);
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn builds_and_prunes_at_the_same_time_all_succeed() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let env = env.with_variable("RBUILD_CACHE_BUDGET", "1k");
    let contexts: Vec<_> = (0..2)
        .map(|n| env.context(&format!("race{n}"), STEPS, &[("f", &format!("{n}\n"))]))
        .collect::<Result<_>>()?;
    for round in 0..4 {
        let mut running = Vec::new();
        for (n, context) in contexts.iter().enumerate() {
            fs::write(context.join("f"), format!("{n} {}\n", round % 2))?;
            let name = format!("me/race{n}");
            let mut command = env.command(["build", "--progress=plain", "-t", &name]);
            command.arg(context);
            running.push(env.start(command)?);
        }
        // Whoever is second to collect waits for the first.
        env.run(["prune", "-f", "-a"])?.ok();
        for build in running {
            build.finish()?.ok();
        }
    }
    prints(env.run(["images"])?.ok(), &["me/race0", "me/race1"]);
    prints(env.run(["cache", "fsck"])?.ok(), &["The store is sound."]);
    env.assert_nothing_left();
    Ok(())
}

/// One after the other: the second takes nothing away before it is its turn, and tells all that it takes.
#[test]
fn a_second_prune_waits_for_the_first_before_it_removes_anything() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("second", STEPS, &[("f", "kept\n")])?;
    for args in [["image", "prune", "-af"].as_slice(), &["system", "prune", "-af"], &["prune", "-af"]] {
        env.build(&context, &["-t", "me/app"])?.ok();
        let lock = env.store().join("locks/gc");
        fs::write(&lock, "4242\n")?;
        let first = File::options().write(true).open(&lock)?;
        first.lock()?;
        let mut second = env.command(args);
        let mut second = env.spawn(second.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        let mut errors = BufReader::new(second.stderr.take().context("a pipe")?).lines();
        let said = errors.next().context("it ended without waiting")??;
        let whom = "waiting for pid 4242, which has been collecting or checking the store";
        assert!(said.starts_with(whom), "{said}");
        env.run(["inspect", "me/app"])?.ok();
        drop(first);
        let out = second.wait_with_output()?;
        let (out, status) = (String::from_utf8_lossy(&out.stdout).into_owned(), out.status);
        assert!(status.success() && out.contains("Total reclaimed space: "), "{args:?}: {out}");
        let tells = out.contains("untagged: me/app:latest\ndeleted: sha256:");
        assert_eq!(tells, args.len() == 3, "{args:?}: {out}");
        assert_eq!(errors.count(), 0);
    }
    // Nothing of it can go: nobody needs to be waited for.
    let lock = File::options().write(true).open(env.store().join("locks/gc"))?;
    lock.lock()?;
    env.run(["rmi", "me/app"])?.ok();
    prints(env.run(["image", "prune", "-af"])?.ok(), &["Total reclaimed space: 0B"]);
    Ok(())
}

#[test]
fn fsck_names_what_is_damaged_and_repair_leaves_a_store_that_builds() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("damage", STEPS, &[("f", "x\n")])?;
    env.build(&context, &["-t", "me/damage"])?.ok();
    let big = fs::read_dir(env.store().join("layers"))?
        .filter_map(|layer| Some(layer.ok()?.path().join("diff/big")))
        .find(|file| file.exists())
        .expect("one layer has it");
    let mut bytes = fs::read(&big)?;
    bytes[1000] ^= 4;
    fs::write(&big, bytes)?;
    prints(env.run(["cache", "fsck"])?.exits(1), &["`big`", "image docker.io/me/damage:latest relies on"]);
    env.run(["cache", "fsck", "--repair"])?.ok();
    prints(env.run(["cache", "fsck"])?.ok(), &["The store is sound."]);
    let run = env.build(&context, &["-t", "me/damage"])?.ok();
    assert_eq!(run.executed(), ["[4/4] RUN dd if=/dev/zero of=/big bs=1024 count=512"], "{run}");
    Ok(())
}

#[test]
fn a_store_that_lost_a_database_says_so_and_needs_at_most_one_command() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("lost", STEPS, &[("f", "1\n")])?;
    env.build(&context, &["-t", "me/lost"])?.ok();
    let id = || -> Result<String> { Ok(env.run(["images", "-q", "--no-trunc", "me/lost"])?.ok().stdout) };
    let first = id()?;
    let lose = |database: &str| -> Result<()> {
        for suffix in ["", "-wal", "-shm"] {
            match fs::remove_file(env.store().join(format!("{database}{suffix}"))) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    };
    // Nodes: the image stays, everything runs again.
    lose("trees.sqlite")?;
    let listed = prints(env.run(["images"])?.ok(), &["me/lost"]);
    listed.says(&["trees.sqlite` was gone: cached results went with it, images stay"]);
    assert_eq!(id()?, first);
    let run = env.build(&context, &["-t", "me/lost"])?.ok();
    assert_eq!(run.executed().len(), 3, "{run}");
    env.build(&context, &["-t", "me/lost"])?.ok().assert_all_cached();
    let second = id()?;
    // The index: images are named nowhere else, so that nothing happens without being asked for.
    lose("index.sqlite")?;
    env.build(&context, &[])?.exits(1).says(&["index.sqlite` is gone", "rbuild cache fsck --rebuild"]);
    prints(env.run(["cache", "fsck", "--rebuild"])?.ok(), &["The index is made anew", "1 image."]);
    assert_eq!(id()?, second);
    let run = env.build(&context, &["-t", "me/lost"])?.ok();
    let since = "first build of this step since the store's index was made anew on 20";
    assert!(misses(&run).iter().all(|miss| miss.contains(since)), "{run}");
    env.build(&context, &["-t", "me/lost"])?.ok().assert_all_cached();
    prints(env.run(["cache", "fsck"])?.ok(), &["The store is sound."]);
    Ok(())
}
