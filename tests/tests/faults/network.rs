//! Nobody there, and layers that are none.

use std::time::Duration;

use anyhow::Result;
use rbuild_tests::TestEnv;
use rbuild_tests::fault::{FaultRegistry, Image, Reply, digest};

use crate::pull;

/// R7: nobody there, and no such name: said soon and plainly.
#[test]
fn nobody_there_is_said_soon() -> Result<()> {
    let registry = FaultRegistry::good()?;
    let host = registry.host();
    drop(registry);
    let env = TestEnv::new()?;
    env.run(["pull", &format!("{host}/app:1")])?.exits(1).says(&["cannot connect", &host]);
    Ok(())
}

/// L7, L12: a layer of another form than stated, and one that is no archive.
#[test]
fn layers_that_are_no_archive_are_refused() -> Result<()> {
    for (kind, bytes) in [
        ("application/vnd.oci.image.layer.v1.tar+gzip", b"\xfd7zXZ\x00 not gzip".to_vec()),
        ("application/vnd.oci.image.layer.v1.tar", vec![7; 2048]),
        ("application/vnd.oci.image.layer.v1.tar+zstd", b"\x28\xb5\x2f\xfdbroken".to_vec()),
        ("application/x-unknown", vec![0; 1024]),
    ] {
        let mut image =
            Image::with(b"x", |config| config["rootfs"]["diff_ids"] = serde_json::json!([digest(&bytes)]));
        image.manifest = image.manifest_with(|manifest| {
            manifest["layers"][0] =
                serde_json::json!({"mediaType": kind, "digest": digest(&bytes), "size": bytes.len()});
        });
        image.layer = bytes;
        let registry = FaultRegistry::good()?;
        registry.add("app", "1", &image);
        let env = TestEnv::new()?;
        pull(&env, &registry)?.exits(1);
        crate::assert_nothing_came(&env)?;
    }
    Ok(())
}

/// L1, L3: archives that reach outside: nothing lands there, and nothing is kept.
#[test]
fn archives_that_climb_do_not_get_out() -> Result<()> {
    for name in ["../../escaped", "/../escaped", "a/../../escaped"] {
        let image = Image::named(name, b"x");
        let registry = FaultRegistry::good()?;
        registry.add("app", "1", &image);
        let env = TestEnv::new()?;
        pull(&env, &registry)?;
        let found = std::process::Command::new("find").arg(env.dir()).args(["-name", "escaped"]).output()?;
        let found = String::from_utf8_lossy(&found.stdout).into_owned();
        let outside = found.lines().any(|path| !path.contains("/layers/"));
        assert!(!outside, "{name}: {found}");
    }
    Ok(())
}

/// R6, R7: passing faults of every kind are waited out as long as asked; refusals are not repeated.
#[test]
fn passing_faults_are_waited_out_and_refusals_are_final() -> Result<()> {
    for (status, after) in
        [(429, "1"), (503, "0"), (500, "-5"), (502, "Wed, 21 Oct 2015 07:28:00 GMT"), (403, "1")]
    {
        let registry = FaultRegistry::new(move |request, before| {
            (request.is_manifest() && request.path.ends_with("/1") && before < 2)
                .then(|| Reply::new(status).header("Retry-After", after))
        })?;
        registry.add("app", "1", &Image::of_size(10));
        let run = pull(&TestEnv::new()?, &registry)?.ok();
        assert!(after != "1" || run.wall >= Duration::from_secs(2), "{status}: {:?}", run.wall);
    }
    for status in [400, 403, 404, 410] {
        let registry =
            FaultRegistry::new(move |request, _| request.is_manifest().then(|| Reply::new(status)))?;
        pull(&TestEnv::new()?, &registry)?.exits(1);
        assert_eq!(registry.count("GET", "/manifests/1"), 1, "{status}");
    }
    Ok(())
}
