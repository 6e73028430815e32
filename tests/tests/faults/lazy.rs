//! Base images whose files no step reads: their layers stay where they are.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rbuild_tests::fault::{End, FaultRegistry, Image, Reply, digest};
use rbuild_tests::{Run, TestEnv};
use serde_json::Value;

/// A registry with `base:1`, a world, and a context whose Dockerfile stands on it.
fn on_base(image: &Image, text: &str) -> Result<(FaultRegistry, TestEnv, PathBuf)> {
    // It keeps blobs for all repositories; when first asked, `app` has none.
    let registry = FaultRegistry::new(|request, before| {
        let asks = request.method == "HEAD" && request.path.starts_with("/v2/app/blobs/");
        (asks && before == 0).then(|| Reply::new(404))
    })?;
    registry.add("base", "1", image);
    let env = TestEnv::new()?;
    let from = format!("FROM {}/base:1\n{text}", registry.host());
    let context = env.context("lazy", &from, &[("file", "content\n")])?;
    Ok((registry, env, context))
}

fn layers(registry: &FaultRegistry, name: &str) -> Vec<String> {
    let manifest: Value = serde_json::from_slice(&registry.manifest(name).expect(name)).expect("a manifest");
    let layers = manifest["layers"].as_array().expect("layers");
    layers.iter().filter_map(|layer| Some(layer["digest"].as_str()?.to_owned())).collect()
}

fn has_blob(env: &TestEnv, id: &str) -> bool {
    env.store().join(format!("blobs/sha256/{}/{}", &id[7..9], &id[7..])).exists()
}

fn push_to(env: &TestEnv, context: &Path, host: &str) -> Result<Run> {
    env.build(context, &["-t", &format!("{host}/app:2"), "--push"])
}

/// Metadata on a base of the same registry: no byte of a layer comes or goes.
#[test]
fn metadata_alone_moves_no_layer_within_a_registry() -> Result<()> {
    let image = Image::of_size(300_000);
    let id = digest(&image.layer);
    let (registry, env, context) = on_base(&image, "ENV A=b\nLABEL c=d\n")?;
    push_to(&env, &context, &registry.host())?.ok().says(&[": Mounted from base"]);
    assert_eq!(layers(&registry, "app:2"), [id.as_str()]);
    assert_eq!(registry.count("GET", &id), 0, "not fetched");
    assert_eq!(registry.count("POST", &format!("mount={id}&from=base")), 1);
    assert!(!has_blob(&env, &id));

    // What is named here without its layers is an image all the same.
    let name = format!("{}/app:2", registry.host());
    assert!(env.run(["images"])?.ok().stdout.contains("app"));
    assert!(env.run(["history", &name])?.ok().stdout.contains("ENV A=b"));
    let inspected = env.run(["inspect", "-f", "{{json .RootFS.Layers}}", &name])?.ok();
    assert_eq!(inspected.stdout.trim(), format!("[\"{id}\"]"));
    env.run(["prune", "-af"])?.ok();
    env.run(["cache", "fsck"])?.ok();
    assert!(env.run(["images"])?.ok().stdout.contains("app"), "collection leaves it");

    // Its layers are fetched when something wants them, once.
    let out = env.work().join("saved.tar");
    env.run(["save", "-o", &out.to_string_lossy(), &name])?.ok();
    assert!(has_blob(&env, &id));
    env.run(["save", "-o", &out.to_string_lossy(), &name])?.ok();
    assert_eq!(registry.count("GET", &id), 1);
    env.run(["prune", "-af"])?.ok();
    assert!(has_blob(&env, &id), "a named image holds what it is made of");
    Ok(())
}

/// The same to another registry: blobs pass through and stay nowhere.
#[test]
fn metadata_alone_streams_layers_to_another_registry() -> Result<()> {
    let image = Image::of_size(300_000);
    let id = digest(&image.layer);
    let (source, env, context) = on_base(&image, "ENV A=b\n")?;
    let target = FaultRegistry::good()?;
    push_to(&env, &context, &target.host())?.ok();
    assert_eq!(target.blob(&id), Some(image.layer.clone()));
    assert_eq!(layers(&target, "app:2"), [id.as_str()]);
    assert_eq!(source.count("GET", &id), 1);
    assert!(!has_blob(&env, &id));
    env.assert_nothing_left();
    Ok(())
}

/// R2, R3: what passes through is checked like what stays: a registry that lies half way makes no image anywhere.
#[test]
fn a_base_that_breaks_on_its_way_through_tags_nothing() -> Result<()> {
    let image = Image::of_size(300_000);
    let id = digest(&image.layer);
    let wrong: Vec<u8> = image.layer.iter().map(|byte| byte ^ 1).collect();
    let replies = [
        Reply::new(200).body(wrong),
        Reply::new(200).body(image.layer.clone()).end(End::Cut(100)),
        Reply::new(404).body(r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}"#),
    ];
    for reply in replies {
        let of = id.clone();
        let source = FaultRegistry::new(move |request, _| {
            (request.is_blob() && request.path.ends_with(&of)).then(|| reply.clone())
        })?;
        source.add("base", "1", &image);
        let target = FaultRegistry::good()?;
        let env = TestEnv::new()?;
        let context = env.context("broken", &format!("FROM {}/base:1\nENV A=b\n", source.host()), &[])?;
        push_to(&env, &context, &target.host())?.exits(1).says(&["failed to push", &target.host()]);
        assert_eq!(target.manifest("app:2"), None);
        assert_eq!(target.blob(&id), None, "nothing unverified is committed");
        assert!(env.run(["images", "-q"])?.ok().stdout.is_empty());
        env.run(["cache", "fsck"])?.ok();
    }
    Ok(())
}

/// An image that is kept has its blobs here: it can be used when the registry is gone.
#[test]
fn an_image_that_is_kept_needs_no_registry_later() -> Result<()> {
    let image = Image::of_size(300_000);
    let (registry, env, context) = on_base(&image, "ENV A=b\n")?;
    env.build(&context, &["-t", "kept"])?.ok();
    assert_eq!(registry.count("GET", &digest(&image.layer)), 1);
    drop(registry);
    let out = env.work().join("kept.tar");
    env.run(["save", "-o", &out.to_string_lossy(), "kept"])?.ok();
    let context = env.context("later", "FROM kept\nCOPY file /other\n", &[("file", "content\n")])?;
    let files = env.work().join("files");
    env.build(&context, &["-o", &files.to_string_lossy()])?.ok();
    assert_eq!(files.join("data").metadata()?.len(), 300_000);
    env.run(["cache", "fsck"])?.ok();
    Ok(())
}

/// When the registry of the base is gone, the one that the image was pushed to has its layers, too; with both gone, it is
/// said what is where.
#[test]
fn a_registry_that_is_gone_is_named_unless_another_has_the_layers() -> Result<()> {
    for is_alone in [true, false] {
        let image = Image::of_size(5000);
        let (registry, env, context) = on_base(&image, "ENV A=b\n")?;
        let target = FaultRegistry::good()?;
        push_to(&env, &context, &target.host())?.ok();
        let from = format!("{}/base:1", registry.host());
        let name = format!("{}/app:2", target.host());
        drop(registry);
        let target = Some(target).filter(|_| !is_alone);
        let out = env.work().join("saved.tar");
        let saved = env.run(["save", "-o", &out.to_string_lossy(), &name])?;
        if let Some(target) = target {
            saved.ok();
            assert_eq!(target.count("GET", &digest(&image.layer)), 1);
            assert!(has_blob(&env, &digest(&image.layer)));
        } else {
            saved.exits(1).says(&["was left at", &from, &digest(&image.layer)]);
            assert!(!out.exists());
            env.run(["history", &name])?.ok();
        }
        env.run(["cache", "fsck"])?.ok();
    }
    Ok(())
}

/// The files of a base are here, its blob is not any more: what needs it gets it again.
#[test]
fn a_blob_that_was_collected_is_fetched_when_it_is_wanted() -> Result<()> {
    let image = Image::of_size(300_000);
    let (registry, env, context) = on_base(&image, "COPY file /file\n")?;
    env.build(&context, &["-o", "type=cacheonly"])?.ok();
    let id = digest(&image.layer);
    std::fs::remove_file(env.store().join(format!("blobs/sha256/{}/{}", &id[7..9], &id[7..])))?;
    let fetched = || registry.count("GET", &id);
    // Neither for a build with nothing to do, nor for a push to where it is.
    env.build(&context, &["-t", "kept"])?.ok().assert_all_cached();
    push_to(&env, &context, &registry.host())?.ok();
    assert_eq!(fetched(), 1);
    assert_eq!(layers(&registry, "app:2")[0], id);
    let out = env.work().join("saved.tar");
    env.build(&context, &["-o", &format!("type=oci,dest={}", out.display())])?.ok();
    assert_eq!(fetched(), 2);
    Ok(())
}

/// `COPY --link` stands on anything; a step that reads the base brings it in.
#[test]
fn linked_copies_leave_the_base_and_other_steps_fetch_it() -> Result<()> {
    let image = Image::of_size(5000);
    let id = digest(&image.layer);
    let linked = "COPY --link file /linked\nENV A=b\n";
    let (registry, env, context) = on_base(&image, linked)?;
    for is_again in [false, true] {
        let run = push_to(&env, &context, &registry.host())?.ok();
        assert_eq!(run.stderr.contains("CACHED"), is_again, "{run}");
        assert_eq!(registry.count("GET", &id), 0, "{run}");
    }
    let lazily = layers(&registry, "app:2");
    assert_eq!(lazily[0], id);

    // The same image with its base here: nothing about it differs.
    let text = format!("FROM {}/base:1 AS linked\n{linked}", registry.host());
    env.write("work/lazy/Dockerfile", &format!("{text}FROM linked\nCOPY file /copied\n"))?;
    env.build(&context, &[])?.ok();
    assert_eq!(registry.count("GET", &id), 1);
    env.write("work/lazy/Dockerfile", &text)?;
    push_to(&env, &context, &registry.host())?.ok();
    assert_eq!(layers(&registry, "app:2"), lazily);
    assert_eq!(registry.count("GET", &id), 1);
    Ok(())
}

/// What is listed for an image on such a base is read from its files, which are fetched for it.
#[test]
fn packages_of_a_base_that_nothing_else_reads_are_listed() -> Result<()> {
    let status = b"Package: gcc\nStatus: install ok installed\nArchitecture: amd64\nVersion: 4:12.2.0-3\n";
    let image = Image::named("var/lib/dpkg/status", status);
    let id = digest(&image.layer);
    for (text, arguments) in
        [("LABEL a=b\n", &["--sbom"][..]), ("COPY --link file /\n", &["--sbom", "--provenance"])]
    {
        let (registry, env, context) = on_base(&image, text)?;
        let name = format!("{}/app:2", registry.host());
        let arguments = [&["-t", &name, "--push"][..], arguments].concat();
        env.build(&context, &arguments)?.ok();
        assert_eq!(registry.count("GET", &id), 1, "fetched for its files");
        let listed = env.run(["imagetools", "inspect", "--format", "{{json .SBOM}}", &name])?.ok();
        assert!(listed.stdout.contains("\"gcc\"") && listed.stdout.contains("4:12.2.0-3"), "{listed}");
        // Without the list nothing of it is wanted, and nothing is listed.
        let (registry, env, context) = on_base(&image, text)?;
        push_to(&env, &context, &registry.host())?.ok();
        assert_eq!(registry.count("GET", &id), 0);
    }
    Ok(())
}
