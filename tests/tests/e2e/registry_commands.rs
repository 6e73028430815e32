//! Commands that work at registries, and those that give space back.

use anyhow::{Context, Result};
use rbuild_tests::{Registry, TestEnv, judge, need};
use serde_json::Value;

use crate::world;

#[test]
fn images_of_two_builds_are_joined_at_the_registry() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (registry, env) = world()?;
    let host = registry.host();
    let mut digests = Vec::new();
    for (name, label) in [("one", "linux/amd64"), ("two", "linux/arm64")] {
        let context =
            env.context(name, &format!("FROM scratch\nLABEL of={name}\nCOPY f /f\n"), &[("f", name)])?;
        let tag = format!("{host}/joined/{name}:1");
        let (_, digest) = env.build_digest(&context, &["-t", &tag, "--platform", label, "--push"])?;
        digests.push(format!("{host}/joined/{name}@{digest}"));
    }
    let name = format!("{host}/joined/app:1");
    let dry = env.run(["imagetools", "create", "--dry-run", "-t", &name, &digests[0], &digests[1]])?.ok();
    let index: Value = serde_json::from_str(&dry.stdout)?;
    assert_eq!(index["manifests"].as_array().map(Vec::len), Some(2), "{dry}");
    assert!(judge::manifest(&format!("docker://{name}")).is_err(), "a dry run pushes nothing");

    env.run(["imagetools", "create", "-t", &name, &digests[0], &digests[1]])?.ok();
    let shown = env.run(["imagetools", "inspect", &name])?.ok();
    for text in
        ["MediaType: application/vnd.oci.image.index.v1+json", "Platform:    linux/amd64", "linux/arm64"]
    {
        assert!(shown.stdout.contains(text), "{shown}");
    }
    let raw = env.run(["imagetools", "inspect", "--raw", &name])?.ok();
    assert_eq!(serde_json::from_str::<Value>(&raw.stdout)?, index);
    let digest = env.run(["imagetools", "inspect", "--format", "{{.Manifest.digest}}", &name])?.ok();
    assert!(shown.stdout.contains(digest.stdout.trim()), "{digest}");
    let format = r#"{{range $p, $i := .Image}}{{$p}}={{index $i.config.Labels "of"}};{{end}}"#;
    let images = env.run(["imagetools", "inspect", "--format", format, &name])?.ok();
    assert_eq!(images.stdout.trim(), "linux/amd64=one;linux/arm64=two;");
    // Somebody else pulls it, for each platform.
    assert_eq!(judge::unpack(&format!("docker://{name}"))?.text("/f")?, "one");

    // One platform is replaced, the other stays.
    env.run(["imagetools", "create", "--append", "-t", &name, &digests[0]])?.ok();
    let again = env.run(["imagetools", "inspect", "--raw", &name])?.ok();
    assert_eq!(serde_json::from_str::<Value>(&again.stdout)?["manifests"].as_array().map(Vec::len), Some(2));
    env.run(["imagetools", "create", "-t", &name])?.exits(125);
    env.run(["imagetools", "inspect", &format!("{host}/joined/none:1")])?
        .exits(1)
        .says(&["not found", &host]);
    Ok(())
}

#[test]
fn an_image_is_copied_to_another_registry_whole() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (registry, env) = world()?;
    let other = Registry::empty()?;
    let from = format!("{}/library/busybox:latest", registry.host());
    let to = format!("{}/mirror/busybox:1", other.host());
    env.run(["imagetools", "create", "--prefer-index=false", "-t", &to, &from])?.ok();
    let digest =
        |name: &str| Ok::<_, anyhow::Error>(judge::manifest(&format!("docker://{name}"))?["Digest"].clone());
    assert_eq!(digest(&to)?, digest(&from)?);
    assert!(judge::unpack(&format!("docker://{to}"))?.text("/etc/passwd")?.contains("root"));
    Ok(())
}

#[test]
fn all_tags_of_a_repository_are_pushed_and_pulled() -> Result<()> {
    need!(Root, Registry, Bases);
    let (registry, env) = world()?;
    let repository = format!("{}/all/tags", registry.host());
    for tag in ["1", "2"] {
        let context = env.context(tag, "FROM scratch\nCOPY f /f\n", &[("f", tag)])?;
        env.build(&context, &["-t", &format!("{repository}:{tag}")])?.ok();
    }
    let pushed = env.run(["push", "-a", &repository])?.ok();
    for tag in ["1", "2"] {
        assert!(pushed.stdout.contains(&format!("{tag}: digest: sha256:")), "{pushed}");
    }
    let other = TestEnv::new()?;
    let pulled = other.run(["pull", "-a", "-q", &repository])?.ok();
    assert_eq!(pulled.stdout, format!("{repository}\n"), "the repository once, as docker prints it");
    let listed = other.run(["images", "--format", "{{.Repository}}:{{.Tag}}"])?.ok().stdout;
    let mut names: Vec<_> = listed.lines().collect();
    names.sort_unstable();
    assert_eq!(names, [format!("{repository}:1"), format!("{repository}:2")]);
    env.run(["push", "-a", &format!("{repository}:1")])?.exits(125).says(&["--all-tags"]);
    env.run(["push", "-a", &format!("{repository}-none")])?.exits(1).says(&["does not exist locally"]);
    env.run(["push", "--platform", "linux/riscv64", &format!("{repository}:1")])?
        .exits(1)
        .says(&["not for linux/riscv64"]);
    // A tag that is not there is answered with those that are.
    other.run(["pull", &format!("{repository}:3")])?.exits(1).says(&["tags that exist: ", "2", "1"]);
    Ok(())
}

#[test]
fn unused_images_are_pruned_and_cache_stays() -> Result<()> {
    need!(Root, Registry, Bases);
    let (registry, env) = world()?;
    let base = format!("{}/library/busybox", registry.host());
    env.run(["pull", &base])?.ok();
    let context = env.context("kept", "FROM busybox\nLABEL keep=yes\nRUN echo x > /x\n", &[])?;
    env.build(&context, &["-t", "me/kept"])?.ok();
    let none = env.run(["image", "prune", "-f"])?.ok();
    assert_eq!(none.stdout, "Total reclaimed space: 0B\n");
    let refused = env.run(["image", "prune", "-a"])?.ok();
    assert!(refused.stdout.contains("Are you sure"), "no answer is no");
    let pruned = env.run(["image", "prune", "-a", "-f", "--filter", "label!=keep"])?.ok();
    assert!(pruned.stdout.starts_with("Deleted Images:\nuntagged: "), "{pruned}");
    assert!(pruned.stdout.contains("deleted: sha256:") && !pruned.stdout.contains("me/kept"), "{pruned}");
    let left = env.run(["images", "--format", "{{.Repository}}"])?.ok();
    assert_eq!(left.stdout, "me/kept\n");
    env.run(["image", "prune", "-a", "-f", "--filter", "until=1h"])?.ok();
    assert_eq!(env.run(["images", "-q"])?.ok().stdout.lines().count(), 1, "made just now");
    env.run(["image", "prune", "-af"])?.ok();
    assert!(env.run(["images", "-q"])?.ok().stdout.is_empty());
    env.build(&context, &["-t", "me/kept"])?.ok().assert_all_cached();
    env.run(["cache", "fsck"])?.ok();
    Ok(())
}

#[test]
fn system_df_shows_docker_s_lines() -> Result<()> {
    need!(Root, Registry, Bases);
    let (_registry, env) = world()?;
    let context = env.context("df", "FROM busybox\nRUN echo x > /x\n", &[])?;
    env.build(&context, &["-t", "me/df"])?.ok();
    let table = env.run(["system", "df"])?.ok();
    let mut lines = table.stdout.lines();
    let header: Vec<_> = lines.next().context("a header")?.split_whitespace().collect();
    assert_eq!(header, ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]);
    let types: Vec<_> = lines.map(|line| line.split("  ").next().unwrap_or_default()).collect();
    assert_eq!(types, ["Images", "Containers", "Local Volumes", "Build Cache"]);
    let images = env.run(["system", "df", "--format", "{{.Type}}: {{.TotalCount}}"])?.ok();
    assert!(images.stdout.starts_with("Images: 1\n"), "{images}");
    let json = env.run(["system", "df", "--format", "json"])?.ok();
    let first: Value = serde_json::from_str(json.stdout.lines().next().unwrap_or_default())?;
    assert_eq!(first["Type"], "Images");
    let verbose = env.run(["system", "df", "-v"])?.ok();
    for text in ["Images space usage:", "UNIQUE SIZE", "me/df", "Build cache usage:"] {
        assert!(verbose.stdout.contains(text), "{verbose}");
    }
    env.run(["system", "df", "--format", "{{.Nope}}"])?.exits(1);
    Ok(())
}

#[test]
fn nothing_is_built_for_a_registry_that_does_not_take_it() -> Result<()> {
    need!(Root, Registry, Bases, Password);
    let closed = Registry::with_password("user", "secret")?;
    let (open, env) = world()?;
    let context = env.context("preflight", "FROM busybox\nRUN echo built > /x\n", &[])?;
    let refused = format!("{}/team/app:1", closed.host());
    let taken = format!("{}/preflight/app:1", open.host());
    let run = env.build(&context, &["-t", &taken, "-t", &refused, "--push"])?.exits(1);
    let run = run.says(&[
        "nothing was built",
        &format!("{}/team/app", closed.host()),
        "rbuild login",
        "(HTTP 401)",
    ]);
    assert!(run.executed().is_empty(), "a step ran\n{run}");
    assert!(judge::manifest(&format!("docker://{taken}")).is_err(), "nothing is tagged anywhere");
    env.build(&context, &["-t", &taken, "--push"])?.ok();
    Ok(())
}
