//! Builds for several platforms at once.

use std::fs;

use anyhow::Result;
use rbuild_tests::{judge, need};
use serde_json::{Value, json};

use crate::world;

const CROSS: &str = "FROM --platform=$BUILDPLATFORM busybox AS tools\n\
    RUN echo made-once > /shared\n\
    FROM --platform=$BUILDPLATFORM tools AS build\n\
    ARG TARGETARCH\n\
    RUN echo for $TARGETARCH > /out\n\
    FROM scratch\n\
    COPY --from=tools /shared /shared\n\
    COPY --from=build /out /out\n\
    LABEL made=here\n";

/// `(architecture, variant, digest)` of an index's entries, in order.
fn entries(index: &Value) -> Vec<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let manifests = index["manifests"].as_array().cloned().unwrap_or_default();
    let entry = |entry: &Value| {
        let platform = &entry["platform"];
        (text(&platform["architecture"]), text(&platform["variant"]), text(&entry["digest"]))
    };
    manifests.iter().map(entry).collect()
}

fn architectures(index: &Value) -> Vec<String> {
    entries(index).into_iter().map(|(architecture, variant, _)| format!("{architecture}{variant}")).collect()
}

#[test]
fn golden_158_two_platforms_are_one_index_and_share_what_is_built_for_both() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (_registry, env) = world()?;
    let context = env.context("cross", CROSS, &[])?;
    let file = env.work().join("cross.tar");
    let output = format!("type=oci,dest={}", file.display());
    let (run, digest) = env.build_digest(
        &context,
        &["--platform", "linux/arm64,linux/amd64", "--platform", "linux/arm", "-o", &output],
    )?;
    let executed = run.executed();
    assert_eq!(executed.iter().filter(|step| step.contains("RUN echo made-once")).count(), 1, "{run}");
    assert_eq!(executed.iter().filter(|step| step.contains("RUN echo for")).count(), 3, "{run}");
    let run = run.says(&[
        "[linux/amd64->arm64 build 1/1] RUN",
        "[linux/amd64->arm/v7 build 1/1] RUN",
        "[linux/arm64 stage-2 1/2] COPY",
    ]);
    assert!(run.stderr.contains("exporting manifest list"), "{run}");

    let image = format!("oci-archive:{}", file.display());
    let index = judge::raw(&image)?;
    assert_eq!(index["mediaType"], json!("application/vnd.oci.image.index.v1+json"));
    assert_eq!(architectures(&index), ["arm64", "amd64", "armv7"], "in the order asked for");
    assert!(digest.starts_with("sha256:"));
    for architecture in ["arm64", "amd64", "arm"] {
        let config = judge::config_for(&image, architecture)?;
        assert_eq!(config["architecture"], json!(architecture));
        assert_eq!(config["config"]["Labels"], json!({"made": "here"}));
        let unpacked = judge::unpack_for(&image, architecture)?;
        assert_eq!(unpacked.text("/out")?, format!("for {architecture}\n"));
        assert_eq!(unpacked.text("/shared")?, "made-once\n");
    }
    let same = ["--platform=linux/arm64,linux/amd64,linux/arm/v7", "-o", &output];
    let (again, second) = env.build_digest(&context, &same)?;
    again.assert_all_cached();
    assert_eq!(second, digest);
    Ok(())
}

#[test]
fn an_index_is_named_pushed_kept_and_built_upon() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (registry, env) = world()?;
    let context = env.context("index", CROSS, &[])?;
    let name = format!("{}/platforms/index:1", registry.host());
    let platforms = "--platform=linux/amd64,linux/arm64";
    let id = env.work().join("id").to_string_lossy().into_owned();
    let (_, digest) = env.build_digest(&context, &[platforms, "-t", &name, "--iidfile", &id])?;
    let metadata: Value = serde_json::from_slice(&fs::read(env.work().join("metadata.json"))?)?;
    assert_eq!(metadata["containerimage.config.digest"], Value::Null, "{metadata}");
    let kind = "application/vnd.oci.image.index.v1+json";
    assert_eq!(metadata["containerimage.descriptor"]["mediaType"], json!(kind));
    assert_eq!(fs::read_to_string(&id)?, digest, "of several images the index identifies the result");
    assert!(env.run(["images", "--digests"])?.ok().stdout.contains(&digest));

    // What nothing names goes; what the index names stays.
    env.run(["prune", "--all", "--force"])?.ok();
    env.run(["cache", "fsck"])?.ok();
    let pushed = env.run(["push", &name])?.ok();
    assert!(pushed.stdout.contains(&digest), "{pushed}");
    let remote = format!("docker://{name}");
    let index = judge::raw(&remote)?;
    assert_eq!(architectures(&index), ["amd64", "arm64"]);
    assert_eq!(judge::digest(&remote)?, digest);
    assert_eq!(judge::unpack_for(&remote, "arm64")?.text("/out")?, "for arm64\n");

    // FROM the index takes the image of each platform: from this store, and from the registry.
    let on = env.context("on", &format!("FROM {name}\nCOPY <<x /more\nhere\nx\n"), &[])?;
    let elsewhere = rbuild_tests::TestEnv::new()?.using(&registry)?;
    let other = elsewhere.context("on", &format!("FROM {name}\nCOPY <<x /more\nhere\nx\n"), &[])?;
    for (env, context) in [(&env, on), (&elsewhere, other)] {
        let file = env.work().join("on.tar");
        let output = format!("type=oci,dest={}", file.display());
        env.build(&context, &["--platform=linux/arm64,linux/amd64", "-o", &output])?.ok();
        let image = format!("oci-archive:{}", file.display());
        for architecture in ["arm64", "amd64"] {
            let unpacked = judge::unpack_for(&image, architecture)?;
            assert_eq!(unpacked.text("/out")?, format!("for {architecture}\n"));
            assert_eq!(unpacked.text("/more")?, "here\n");
        }
    }
    Ok(())
}

#[test]
fn an_index_is_saved_whole_and_survives_skopeo() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (registry, env) = world()?;
    let context = env.context("saved", CROSS, &[])?;
    let (_, digest) =
        env.build_digest(&context, &["--platform=linux/amd64,linux/arm64", "-t", "me/saved:1"])?;
    let file = env.work().join("saved.tar").to_string_lossy().into_owned();
    env.run(["save", "-o", &file, "me/saved:1"])?.ok();
    // Docker's half of the archive can only hold one image: this machine's.
    assert_eq!(judge::config(&format!("docker-archive:{file}:me/saved:1"))?["architecture"], json!("amd64"));
    let archive = format!("oci-archive:{file}");
    assert_eq!(architectures(&judge::raw(&archive)?), ["amd64", "arm64"]);
    let remote = format!("docker://{}/me/saved:1", registry.host());
    judge::skopeo(&["copy", "--all", "--quiet", "--dest-tls-verify=false", &archive, &remote])?;
    assert_eq!(judge::digest(&remote)?, digest, "the same index");
    for architecture in ["amd64", "arm64"] {
        let unpacked = judge::unpack_for(&remote, architecture)?;
        assert_eq!(unpacked.text("/out")?, format!("for {architecture}\n"));
    }
    let other = env.work().join("other-store").to_string_lossy().into_owned();
    env.run(["--root", &other, "load", "-i", &file])?.ok();
    let told = env.run(["--root", &other, "inspect", "-f", "{{.Architecture}}", "me/saved:1"])?.ok();
    assert_eq!(told.stdout, "amd64\n");
    Ok(())
}

#[test]
fn one_platform_makes_an_index_only_when_asked() -> Result<()> {
    need!(Root, Registry, Bases, Judges);
    let (_registry, env) = world()?;
    let context = env.context("one", "FROM scratch\nCOPY <<x /x\n1\nx\n", &[])?;
    let dir = env.work().join("layout");
    let output = format!("type=oci,tar=false,dest={}", dir.display());
    for (arguments, kind) in [
        (&[][..], "application/vnd.oci.image.manifest.v1+json"),
        (&["--build-arg", "BUILDKIT_MULTI_PLATFORM=1"], "application/vnd.oci.image.index.v1+json"),
    ] {
        let mut all = vec!["--platform", "linux/arm64", "-o", &output];
        all.extend(arguments);
        env.build(&context, &all)?.ok();
        assert_eq!(judge::raw(&format!("oci:{}", dir.display()))?["mediaType"], json!(kind));
    }
    Ok(())
}
