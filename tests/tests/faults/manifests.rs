//! Suite M: documents that lie.

use anyhow::Result;
use rbuild_oci::media_type;
use rbuild_tests::TestEnv;
use rbuild_tests::fault::{FaultRegistry, Image, Reply, digest};
use serde_json::{Value, json};

use crate::{assert_nothing_came, pull};

/// Serves these bytes as `app:1` under this type and expects the pull to fail with these words.
#[track_caller]
fn refused(image: &Image, kind: &str, bytes: &[u8], words: &[&str]) -> Result<()> {
    let registry = FaultRegistry::good()?;
    registry.add("app", "1", image);
    registry.add_document("app", Some("1"), kind, bytes);
    let env = TestEnv::new()?;
    pull(&env, &registry)?.exits(1).says(words);
    assert_nothing_came(&env)
}

/// M1: documents of two kinds at once, of another type than stated, of the old schema.
#[test]
fn ambiguous_documents_are_refused() -> Result<()> {
    let image = Image::of_size(10);
    let both = image.manifest_with(|manifest| manifest["manifests"] = json!([]));
    refused(&image, media_type::OCI_MANIFEST, &both, &["app"])?;
    refused(&image, media_type::OCI_INDEX, &image.manifest, &["app"])?;
    let schema1 = br#"{"schemaVersion":1,"name":"app","tag":"1","fsLayers":[]}"#;
    refused(&image, "application/vnd.docker.distribution.manifest.v1+json", schema1, &["app"])
}

/// M2: descriptors whose size or digest is not true, or is none.
#[test]
fn descriptors_that_lie_are_refused() -> Result<()> {
    let image = Image::of_size(10);
    for digest in
        ["sha256:ABC", "md5:d41d8cd98f00b204e9800998ecf8427e", "sha256:../../../etc/passwd", "", "x"]
    {
        let bytes = image.manifest_with(|manifest| manifest["layers"][0]["digest"] = json!(digest));
        refused(&image, media_type::OCI_MANIFEST, &bytes, &["app"])?;
    }
    for (field, size) in [("config", 3_u64), ("config", 1 << 40), ("layers", 3)] {
        let bytes = image.manifest_with(|manifest| match field {
            "config" => manifest["config"]["size"] = json!(size),
            _ => manifest["layers"][0]["size"] = json!(size),
        });
        refused(&image, media_type::OCI_MANIFEST, &bytes, &["app"])?;
    }
    Ok(())
}

/// M3: only our own hash counts: a lying header changes nothing, a lying body everything.
#[test]
fn only_our_own_hash_counts() -> Result<()> {
    let image = Image::of_size(10);
    let stored = image.clone();
    let registry = FaultRegistry::new(move |request, _| {
        request.is_manifest().then(|| {
            Reply::new(200)
                .header("Content-Type", stored.media_type.clone())
                .header("Docker-Content-Digest", digest(b"a lie"))
                .body(stored.manifest.clone())
        })
    })?;
    registry.add("app", "1", &image);
    let env = TestEnv::new()?;
    pull(&env, &registry)?.ok();
    let pinned = format!("{}/app@{}", registry.host(), digest(b"a lie"));
    env.run(["pull", &pinned])?.exits(1).says(&["digest"]);
    Ok(())
}

/// M4: documents without end, in depth and in length.
#[test]
fn documents_have_limits() -> Result<()> {
    let image = Image::of_size(10);
    let huge = image.manifest_with(|manifest| manifest["annotations"]["a"] = json!("x".repeat(5 << 20)));
    refused(&image, media_type::OCI_MANIFEST, &huge, &["limit"])?;
    // An index of an index of an index …
    let registry = FaultRegistry::good()?;
    registry.add("app", "0", &image);
    let (mut bytes, mut kind) = (image.manifest.clone(), media_type::OCI_MANIFEST);
    for _ in 0..10 {
        let entry = json!({"mediaType": kind, "digest": digest(&bytes), "size": bytes.len(),
            "platform": {"os": "linux", "architecture": "amd64"}});
        let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [entry]});
        bytes = index.to_string().into_bytes();
        kind = media_type::OCI_INDEX;
        registry.add_document("app", Some("1"), kind, &bytes);
    }
    let env = TestEnv::new()?;
    env.run(["pull", "--platform", "linux/amd64", &format!("{}/app:1", registry.host())])?
        .exits(1)
        .says(&["nested too deeply"]);
    Ok(())
}

/// M5: entries without platform, for attestations, or for others: never taken for the image.
#[test]
fn only_a_matching_platform_is_chosen() -> Result<()> {
    let image = Image::of_size(10);
    let registry = FaultRegistry::good()?;
    registry.add("app", "0", &image);
    let entry = |platform: Value| {
        let mut entry = json!({"mediaType": image.media_type, "digest": digest(&image.manifest),
            "size": image.manifest.len()});
        if !platform.is_null() {
            entry["platform"] = platform;
        }
        entry
    };
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [
        entry(json!({"os": "unknown", "architecture": "unknown"})),
        entry(json!({"os": "linux", "architecture": "s390x"})),
    ]});
    registry.add_document("app", Some("1"), media_type::OCI_INDEX, index.to_string().as_bytes());
    let env = TestEnv::new()?;
    env.run(["pull", "--platform", "linux/amd64", &format!("{}/app:1", registry.host())])?
        .exits(1)
        .says(&["no image for platform linux/amd64", "linux/s390x"]);
    assert_nothing_came(&env)
}

/// M6: configs that are none; fields that nobody knows are kept.
#[test]
fn odd_configs_are_refused_or_kept() -> Result<()> {
    type Change<'a> = &'a dyn Fn(&mut Value);
    let changes: [(Change<'_>, &str); 4] = [
        (&|config| config["rootfs"]["type"] = json!("tar"), "rootfs"),
        (&|config| config["rootfs"]["diff_ids"] = json!([]), "layers"),
        (&|config| config["rootfs"] = json!(7), "config"),
        (&|config| config["config"]["Cmd"] = json!(7), "config"),
    ];
    for (change, words) in changes {
        let image = Image::with(b"x", change);
        refused(&image, &image.media_type, &image.manifest, &[words])?;
    }
    let kept = Image::with(b"x", |config| config["x-unknown"] = json!({"a": 1}));
    let registry = FaultRegistry::good()?;
    registry.add("app", "1", &kept);
    let env = TestEnv::new()?;
    pull(&env, &registry)?.ok();
    assert_eq!(env.run(["images", "-q", "--no-trunc"])?.ok().stdout.trim(), digest(&kept.config));
    Ok(())
}

/// M7: layers that are elsewhere are not fetched from there.
#[test]
fn foreign_layers_are_not_fetched() -> Result<()> {
    let (image, elsewhere) = (Image::of_size(10), FaultRegistry::good()?);
    let address = format!("http://{}/layer", elsewhere.host());
    let bytes = image.manifest_with(|manifest| {
        manifest["layers"][0]["mediaType"] =
            json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
        manifest["layers"][0]["urls"] = json!([address]);
        manifest["layers"][0]["digest"] = json!(digest(b"elsewhere"));
    });
    refused(&image, media_type::OCI_MANIFEST, &bytes, &["app"])?;
    assert!(elsewhere.seen().is_empty());
    Ok(())
}

/// M8: labels may hold anything; what they hold does not reach the terminal.
#[test]
fn labels_do_not_steer_terminals() -> Result<()> {
    let image = Image::with(b"x", |config| config["config"]["Labels"] = json!({"a": "\u{1b}[31mred\u{7}"}));
    let registry = FaultRegistry::good()?;
    registry.add("app", "1", &image);
    let env = TestEnv::new()?;
    let run = pull(&env, &registry)?.ok();
    let name = format!("{}/app:1", registry.host());
    let inspected = env.run(["inspect", &name])?.ok();
    assert!(!run.stderr.contains('\u{1b}') && !inspected.stdout.contains('\u{1b}'), "{inspected}");
    assert!(inspected.stdout.contains("\\u001b[31mred"));
    Ok(())
}

/// M9: no layer, and the same layer many times.
#[test]
fn no_layer_and_many_layers_work() -> Result<()> {
    let none = Image::with(b"x", |config| config["rootfs"]["diff_ids"] = json!([]));
    let bytes = none.manifest_with(|manifest| manifest["layers"] = json!([]));
    let registry = FaultRegistry::good()?;
    registry.add("app", "0", &none);
    registry.add_document("app", Some("1"), media_type::OCI_MANIFEST, &bytes);
    pull(&TestEnv::new()?, &registry)?.ok();

    let repeated = Image::with(b"x", |config| {
        let id = config["rootfs"]["diff_ids"][0].clone();
        config["rootfs"]["diff_ids"] = vec![id; 100].into();
    });
    let bytes = repeated.manifest_with(|manifest| {
        let layer = manifest["layers"][0].clone();
        manifest["layers"] = vec![layer; 100].into();
    });
    let registry = FaultRegistry::good()?;
    registry.add("app", "0", &repeated);
    registry.add_document("app", Some("1"), media_type::OCI_MANIFEST, &bytes);
    pull(&TestEnv::new()?, &registry)?.ok();
    assert_eq!(registry.count("GET", &digest(&repeated.layer)), 1, "one blob is fetched once");
    Ok(())
}

/// M10: a layout whose blob is a link to a file outside.
#[test]
fn links_in_layouts_are_not_followed() -> Result<()> {
    let image = Image::of_size(10);
    let env = TestEnv::new()?;
    let blobs = env.write("layout/oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let layout = blobs.parent().map(std::path::Path::to_owned).unwrap_or_default();
    let entry = json!({"mediaType": image.media_type, "digest": digest(&image.manifest), "size": image.manifest.len()});
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    env.write("layout/index.json", &index.to_string())?;
    let write = |bytes: &[u8], link: bool| -> Result<()> {
        let path = layout.join("blobs/sha256").join(digest(bytes).trim_start_matches("sha256:"));
        std::fs::create_dir_all(layout.join("blobs/sha256"))?;
        if link {
            let outside = env.dir().join("outside");
            std::fs::write(&outside, bytes)?;
            std::os::unix::fs::symlink(outside, path)?;
        } else {
            std::fs::write(path, bytes)?;
        }
        Ok(())
    };
    write(&image.manifest, false)?;
    write(&image.config, false)?;
    write(&image.layer, true)?;
    let context = env.context("links", "FROM base\nCOPY data /copy\n", &[("data", "x")])?;
    let named = format!("base=oci-layout://{}", layout.display());
    env.build(&context, &["--build-context", &named, "-o", "type=oci,dest=/dev/null"])?.exits(1);
    Ok(())
}
