//! What people and registries get wrong: one clear error each, in the registry's words, and nothing tagged.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use rbuild_tests::TestEnv;
use rbuild_tests::fault::{FaultRegistry, Image, Reply, digest};
use serde_json::json;

use crate::{CANARY, assert_nothing_came, log_in, pull};

fn context(env: &TestEnv) -> Result<PathBuf> {
    env.context("app", "FROM scratch\nCOPY f /f\n", &[("f", "x")])
}

#[test]
fn names_that_cannot_be_are_refused_before_anything_is_asked() -> Result<()> {
    let registry = FaultRegistry::good()?;
    let env = TestEnv::new()?;
    let name = format!("{}/Org/App:1", registry.host());
    let words = "invalid reference format: repository name (Org/App) must be lowercase";
    let run = env.build(&context(&env)?, &["-t", &name, "--push"])?.exits(1);
    assert!(run.says(&[words, &name.to_lowercase()]).executed().is_empty());
    for command in [&["pull", &name][..], &["push", &name], &["tag", "x", &name], &["images", &name]] {
        env.run(command)?.exits(1).says(&[words]);
    }
    env.run(["pull", &"0".repeat(64)])?.exits(1).says(&["invalid"]);
    let dockerfile = env.context("from", &format!("FROM {name}\n"), &[])?;
    env.build(&dockerfile, &[])?.exits(1).says(&["Dockerfile:1", words]);
    assert!(registry.seen().is_empty());
    Ok(())
}

#[test]
fn an_unknown_tag_is_answered_with_those_there_are() -> Result<()> {
    let registry = FaultRegistry::good()?;
    for tag in ["1.0", "1.1", "latest"] {
        registry.add("app", tag, &Image::of_size(10));
    }
    let env = TestEnv::new()?;
    let name = format!("{}/app:1.2", registry.host());
    let words = ["MANIFEST_UNKNOWN: manifest unknown", "tags that exist: ", "1.1"];
    env.run(["pull", &name])?.exits(1).says(&words);
    let dockerfile = env.context("from", &format!("FROM scratch\nFROM {name}\n"), &[])?;
    env.build(&dockerfile, &[])?.exits(1).says(&words).says(&["Dockerfile:2"]);
    assert_nothing_came(&env)
}

#[test]
fn wrong_credentials_are_named_with_host_and_remedy() -> Result<()> {
    let registry = FaultRegistry::new(|_, _| {
        let body = json!({"errors": [{"code": "UNAUTHORIZED", "message": "incorrect username or password"}]});
        Some(Reply::new(401).header("WWW-Authenticate", "Basic realm=x").body(body.to_string()))
    })?;
    let env = TestEnv::new()?;
    log_in(&env, &[&registry.host()])?;
    let words = [&*registry.host(), "incorrect username or password", "(HTTP 401)", "rbuild login"];
    pull(&env, &registry)?.exits(1).says(&words);
    let run = env.build(&context(&env)?, &["-t", &format!("{}/app:1", registry.host()), "--push"])?.exits(1);
    let run = run.says(&words).says(&["nothing was built"]);
    assert!(run.executed().is_empty() && !run.stderr.contains("docker login"), "{run}");
    assert!(!run.stderr.contains(CANARY));
    Ok(())
}

/// Tokens that are good for ten requests each: in the middle of a push a new one is got, and every byte arrives. Fewer
/// requests would let the uploads that run at once use up two tokens between the tries of one of them.
#[test]
fn tokens_that_expire_during_a_push_are_renewed() -> Result<()> {
    let uses: Mutex<BTreeMap<String, usize>> = Mutex::default();
    let registry = FaultRegistry::new(move |request, _| {
        let mut uses = uses.lock().unwrap_or_else(PoisonError::into_inner);
        if request.path.starts_with("/token") {
            let token = format!("t{}", uses.len());
            uses.insert(format!("Bearer {token}"), 0);
            return Some(Reply::new(200).body(json!({"token": token, "expires_in": 300}).to_string()));
        }
        let realm = format!("Bearer realm=\"http://{}/token\",service=\"s\"", request.header("host"));
        let refusal = Reply::new(401).header("WWW-Authenticate", realm);
        let Some(count) = uses.get_mut(request.header("authorization")) else { return Some(refusal) };
        // A request with a body is shown twice; it counts with its body.
        let is_head = request.body.is_empty() && !matches!(request.header("content-length"), "" | "0");
        if *count >= 10 {
            return Some(refusal);
        }
        *count += usize::from(!is_head);
        None
    })?;
    let env = TestEnv::new()?;
    let context = env.context(
        "layers",
        "FROM scratch\nCOPY a /a\nCOPY b /b\nCOPY c /c\nCOPY d /d\n",
        &[("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")],
    )?;
    env.build(&context, &["-t", &format!("{}/app:1", registry.host()), "--push"])?.ok();
    assert!(
        registry.count("GET", "/token") + registry.count("POST", "/token") >= 2,
        "the first token did expire"
    );
    let manifest: serde_json::Value =
        serde_json::from_slice(&registry.manifest("app:1").unwrap_or_default())?;
    assert_eq!(manifest["layers"].as_array().map(Vec::len), Some(4));
    for layer in manifest["layers"].as_array().into_iter().flatten() {
        assert!(registry.blob(layer["digest"].as_str().unwrap_or_default()).is_some(), "{layer}");
    }
    Ok(())
}

/// A platform that the index states and the image's own config does not: what is asked for is what must come.
#[test]
fn an_index_that_lies_about_a_platform_is_caught() -> Result<()> {
    let image = Image::with(b"x", |config| config["architecture"] = json!("s390x"));
    let registry = FaultRegistry::good()?;
    registry.add("app", "0", &image);
    let entry = json!({"mediaType": image.media_type, "digest": digest(&image.manifest), "size": image.manifest.len(),
        "platform": {"os": "linux", "architecture": "amd64"}});
    let index =
        json!({"schemaVersion": 2, "mediaType": rbuild_oci::media_type::OCI_INDEX, "manifests": [entry]});
    registry.add_document("app", Some("1"), rbuild_oci::media_type::OCI_INDEX, index.to_string().as_bytes());
    let env = TestEnv::new()?;
    let run = env.run(["pull", "--platform", "linux/amd64", &format!("{}/app:1", registry.host())])?.exits(1);
    run.says(&["linux/s390x", "linux/amd64", &registry.host()]);
    assert_nothing_came(&env)
}

/// The same for size and media type of an entry.
#[test]
fn an_index_that_lies_about_size_or_type_is_caught() -> Result<()> {
    let image = Image::of_size(10);
    for (field, value) in [("size", json!(7)), ("mediaType", json!(rbuild_oci::media_type::OCI_INDEX))] {
        let registry = FaultRegistry::good()?;
        registry.add("app", "0", &image);
        let mut entry = json!({"mediaType": image.media_type, "digest": digest(&image.manifest),
            "size": image.manifest.len(), "platform": {"os": "linux", "architecture": "amd64"}});
        entry[field] = value;
        let index =
            json!({"schemaVersion": 2, "mediaType": rbuild_oci::media_type::OCI_INDEX, "manifests": [entry]});
        registry.add_document(
            "app",
            Some("1"),
            rbuild_oci::media_type::OCI_INDEX,
            index.to_string().as_bytes(),
        );
        let env = TestEnv::new()?;
        env.run(["pull", "--platform", "linux/amd64", &format!("{}/app:1", registry.host())])?
            .exits(1)
            .says(&["app", &registry.host()]);
        assert_nothing_came(&env)?;
    }
    Ok(())
}
