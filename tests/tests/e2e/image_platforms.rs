//! Images of several platforms under one name, and what `images` can be asked.

use anyhow::{Context, Result};
use rbuild_tests::{TestEnv, judge, need};
use serde_json::Value;

use crate::world;

const TWO: &str = "linux/amd64,linux/arm64";

/// `me/two:1`, one image for each of two platforms, with a label that says which.
fn with_two(env: &TestEnv) -> Result<()> {
    let text = "FROM scratch\nARG TARGETARCH\nLABEL arch=$TARGETARCH\nCOPY f /f\n";
    let context = env.context("two", text, &[("f", "x")])?;
    env.build(&context, &["-t", "me/two:1", "--platform", TWO])?.ok();
    Ok(())
}

#[test]
fn a_platform_chooses_among_the_images_of_a_name() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (_registry, env) = world()?;
    with_two(&env)?;
    let label = |platform: &str| -> Result<String> {
        let args = [
            "inspect",
            "--platform",
            platform,
            "-f",
            "{{.Config.Labels.arch}} {{.Architecture}}",
            "me/two:1",
        ];
        Ok(env.run(args)?.ok().stdout)
    };
    assert_eq!(label("linux/amd64")?, "amd64 amd64\n");
    assert_eq!(label("linux/arm64")?, "arm64 arm64\n");
    // A variant runs what names none.
    assert_eq!(label("linux/arm64/v9")?, "arm64 arm64\n");
    env.run(["inspect", "--platform", "linux/s390x", "me/two:1"])?.exits(1).says(&[
        "not for linux/s390x",
        "linux/amd64",
        "linux/arm64",
    ]);
    env.run(["inspect", "--platform", "no such", "me/two:1"])?.exits(125).says(&["os/arch"]);
    let history =
        env.run(["history", "--platform", "linux/arm64", "--format", "{{.CreatedBy}}", "me/two:1"])?.ok();
    assert!(history.stdout.contains("LABEL arch=arm64"), "{history}");

    let path = env.work().join("arm.tar").to_string_lossy().into_owned();
    env.run(["save", "--platform", "linux/arm64", "-o", &path, "me/two:1"])?.ok();
    assert_eq!(judge::config(&format!("docker-archive:{path}"))?["architecture"], "arm64");

    let removed = env.run(["rmi", "--platform", "linux/amd64", "me/two:1"])?.ok();
    assert!(
        removed.stdout.starts_with("Deleted: sha256:") && removed.stdout.lines().count() == 1,
        "{removed}"
    );
    env.run(["inspect", "--platform", "linux/amd64", "me/two:1"])?.exits(1).says(&["not for linux/amd64"]);
    assert_eq!(label("linux/arm64")?, "arm64 arm64\n");
    // With its last image the name goes too.
    let last = env.run(["rmi", "--platform", "linux/arm64", "me/two:1"])?.ok();
    assert!(last.stdout.contains("Untagged: me/two:1"), "{last}");
    assert!(env.run(["images", "-q"])?.ok().stdout.is_empty());
    env.run(["cache", "fsck"])?.ok();
    Ok(())
}

#[test]
fn a_push_sends_all_platforms_of_a_name() -> Result<()> {
    need!(Root, Registry, Bases);
    let (registry, env) = world()?;
    with_two(&env)?;
    let name = format!("{}/platforms/two:1", registry.host());
    env.run(["tag", "me/two:1", &name])?.ok();
    let pushed = env.run(["push", &name])?.ok();
    let first = format!("The push refers to repository [{}/platforms/two]", registry.host());
    assert_eq!(pushed.stdout.lines().next(), Some(&*first), "{pushed}");
    let index: Value =
        serde_json::from_str(&env.run(["imagetools", "inspect", "--raw", &name])?.ok().stdout)?;
    assert_eq!(index["manifests"].as_array().map(Vec::len), Some(2), "{index}");
    // One that is left is pushed alone, and says what is there already.
    env.run(["rmi", "--platform", "linux/amd64", &name])?.ok();
    let again = env.run(["push", &name])?.ok();
    assert!(again.stderr.contains(": Layer already exists"), "{again}");
    let manifest: Value =
        serde_json::from_str(&env.run(["imagetools", "inspect", "--raw", &name])?.ok().stdout)?;
    assert!(manifest["layers"].is_array(), "{manifest}");
    Ok(())
}

#[test]
fn layers_of_a_base_at_the_same_registry_are_mounted_in_docker_s_words() -> Result<()> {
    need!(Root, Registry, Bases);
    let (registry, env) = world()?;
    let host = registry.host();
    let context = env.context("mounted", &format!("FROM {host}/library/busybox\nLABEL a=b\n"), &[])?;
    let name = format!("{host}/mounted/app:1");
    let run = env.build(&context, &["-t", &name, "--push"])?.ok();
    assert!(run.stderr.contains(": Mounted from library/busybox"), "{run}");
    let again = env.run(["push", &name])?.ok();
    assert!(again.stderr.contains(": Layer already exists"), "{again}");
    // What was only kept here is pushed in the same way.
    let context = env.context("kept", &format!("FROM {host}/library/busybox\nRUN echo a > /a\n"), &[])?;
    let name = format!("{host}/mounted/kept:1");
    env.build(&context, &["-t", &name])?.ok();
    let run = env.run(["push", &name])?.ok();
    assert!(run.stderr.contains(": Mounted from library/busybox"), "{run}");
    Ok(())
}

#[test]
fn an_archive_of_several_platforms_keeps_its_index() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (_registry, env) = world()?;
    with_two(&env)?;
    let at = |name: &str| env.work().join(name).to_string_lossy().into_owned();
    let (first, second, theirs) = (at("first.tar"), at("second.tar"), at("theirs.tar"));
    env.run(["save", "-o", &first, "me/two:1"])?.ok();
    let loaded = env.run(["--root", &at("other"), "load", "-q", "-i", &first])?.ok();
    assert_eq!(loaded.stdout, "Loaded image: me/two:1\n");
    env.run(["--root", &at("other"), "save", "-o", &second, "me/two:1"])?.ok();
    assert!(std::fs::read(&first)? == std::fs::read(&second)?, "the round trip loses nothing");
    let archive = |path: &str| format!("oci-archive:{path}");
    let index = judge::raw(&archive(&second))?;
    assert_eq!(index["manifests"].as_array().map(Vec::len), Some(2), "{index}");
    assert_eq!(judge::config_for(&archive(&second), "arm64")?["architecture"], "arm64");

    // As another tool writes it, and then one of the two.
    judge::skopeo(&[
        "copy",
        "--quiet",
        "--all",
        &archive(&first),
        &archive(&format!("{theirs}:me/theirs:1")),
    ])?;
    env.run(["--root", &at("third"), "load", "-q", "-i", &theirs])?.ok();
    let digest = env.run(["--root", &at("third"), "images", "--format", "{{.Digest}}", "me/theirs"])?.ok();
    assert_eq!(digest.stdout.trim(), judge::digest(&archive(&first))?);
    env.run(["--root", &at("fourth"), "load", "-q", "--platform", "linux/arm64", "-i", &theirs])?.ok();
    let args = ["--root", &at("fourth"), "inspect", "-f", "{{.Architecture}}", "me/theirs:1"];
    assert_eq!(env.run(args)?.ok().stdout, "arm64\n");
    let args = ["--root", &at("fourth"), "inspect", "--platform", "linux/amd64", "me/theirs:1"];
    env.run(args)?.exits(1).says(&["not for linux/amd64"]);
    env.run(["--root", &at("third"), "cache", "fsck"])?.ok();
    Ok(())
}

#[test]
fn images_are_filtered_by_time_and_shown_as_a_tree() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    with_two(&env)?;
    let context = env.context("old", "FROM scratch\nCOPY f /f\n", &[("f", "old")])?;
    env.build(&context, &["-t", "me/old:1", "-t", "me/old:2", "--source-date-epoch", "1000000000"])?.ok();
    let names = |filter: &str| -> Result<String> {
        Ok(env.run(["images", "--format", "{{.Repository}}:{{.Tag}}", "-f", filter])?.ok().stdout)
    };
    let old = "me/old:1\nme/old:2\n";
    assert_eq!(names("until=24h")?, old);
    assert_eq!(names("until=2010-01-31")?, old);
    assert_eq!(names("until=2001-09-09T01:46:40Z")?, "", "made at that very second");
    assert_eq!(names("until=2001-09-09T01:46:41Z")?, old);
    assert_eq!(names("until=1000000000")?, "");
    env.run(["images", "-f", "until=soon"])?.exits(125).says(&["until"]);

    let tree = env.run(["images", "--tree"])?.ok().stdout;
    let lines: Vec<&str> = tree.lines().collect();
    let words: Vec<&str> = lines[0].split_whitespace().collect();
    assert_eq!(words, ["IMAGE", "ID", "DISK", "USAGE", "CONTENT", "SIZE", "EXTRA"], "{tree}");
    let at =
        |start: &str| lines.iter().position(|line| line.starts_with(start)).with_context(|| tree.clone());
    assert_eq!(at("├─ linux/amd64")?, at("me/two:1")? + 1, "{tree}");
    assert_eq!(at("└─ linux/arm64")?, at("me/two:1")? + 2, "{tree}");
    assert_eq!(at("me/old:2")?, at("me/old:1")? + 1, "names of one image stand together\n{tree}");
    env.run(["images", "--tree", "-q"])?.exits(125);

    // `image prune` knows the same times, and docker's other word for -a.
    let kept =
        env.run(["image", "prune", "-f", "--filter", "dangling=false", "--filter", "until=2002-01-01"])?.ok();
    assert!(kept.stdout.contains("untagged: me/old:1") && !kept.stdout.contains("me/two"), "{kept}");
    Ok(())
}

/// Docker Hub tells how many pulls are left; when they are few, a build says so as a pull does.
#[test]
fn a_low_quota_is_shown() -> Result<()> {
    use rbuild_tests::fault::{FaultRegistry, Image, Reply, digest};
    let image = Image::of_size(100);
    let stored = image.clone();
    let registry = FaultRegistry::new(move |request, _| {
        request.is_manifest().then(|| {
            Reply::new(200)
                .header("Content-Type", stored.media_type.clone())
                .header("Docker-Content-Digest", digest(&stored.manifest))
                .header("ratelimit-limit", "100;w=21600")
                .header("ratelimit-remaining", "7;w=21600")
                .body(stored.manifest.clone())
        })
    })?;
    registry.add("app", "1", &image);
    let name = format!("{}/app:1", registry.host());
    let words = format!("7 of 100 pulls per 6 hours are left at {}", registry.host());
    let env = TestEnv::new()?;
    env.run(["pull", &name])?.ok().says(&[&words]);
    let context = env.context("quota", &format!("FROM {name}\nLABEL a=b\n"), &[])?;
    env.build(&context, &["--pull"])?.ok().says(&[&words]);
    Ok(())
}
