//! Uploads.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use rbuild_tests::TestEnv;
use rbuild_tests::fault::{Cut, End, FaultProxy, FaultRegistry, Image, Reply, digest};
use serde_json::Value;

use crate::{CANARY, log_in, pull};

/// An environment that has an image named after `host`.
fn with_image(image: &Image, host: &str) -> Result<TestEnv> {
    let source = FaultRegistry::good()?;
    source.add("app", "1", image);
    let env = TestEnv::new()?;
    pull(&env, &source)?.ok();
    env.run(["tag", &format!("{}/app:1", source.host()), &format!("{host}/app:1")])?.ok();
    Ok(env)
}

fn push(env: &TestEnv, host: &str) -> Result<rbuild_tests::Run> {
    env.run(["push", &format!("{host}/app:1")])
}

/// The layers of what `app:1` stands for are there, with their bytes.
fn assert_arrived(registry: &FaultRegistry) {
    let manifest = registry.manifest("app:1").expect("a tag");
    let manifest: Value = serde_json::from_slice(&manifest).expect("a manifest");
    for layer in manifest["layers"].as_array().expect("layers") {
        let id = layer["digest"].as_str().expect("a digest");
        let bytes = registry.blob(id).expect("a layer");
        assert_eq!(
            (digest(&bytes), bytes.len() as u64),
            (id.to_owned(), layer["size"].as_u64().unwrap_or(0))
        );
    }
}

/// R12: a connection that breaks at any place of an upload costs nothing but time.
#[test]
fn a_broken_upload_goes_on() -> Result<()> {
    let image = Image::of_size(600_000);
    let size = image.layer.len();
    for cut in [Cut::Upload(0), Cut::Upload(size / 2), Cut::Upload(size), Cut::Answer] {
        let registry = FaultRegistry::good()?;
        let proxy = FaultProxy::new(registry.address(), cut, 1)?;
        let env = with_image(&image, &proxy.host())?;
        push(&env, &proxy.host())?.ok();
        assert_eq!(proxy.left(), 0, "{cut:?} did not happen");
        assert_arrived(&registry);
        assert_eq!(registry.count("PUT", "/manifests/1"), 1, "{cut:?}");
    }
    Ok(())
}

/// R12: the same with a session that keeps what came, and one that forgets it.
#[test]
fn an_upload_is_resumed_or_begun_anew() -> Result<()> {
    let image = Image::of_size(600_000);
    for forgets in [false, true] {
        let breaks = AtomicBool::new(true);
        let registry = FaultRegistry::new(move |request, _| {
            let is_session = request.path.contains("/uploads/");
            let is_large = request.header("content-length").len() > 5;
            match request.method.as_str() {
                "PUT" if is_session && is_large && breaks.swap(false, Ordering::Relaxed) => {
                    Some(Reply::hang_up(300_000))
                }
                "GET" if is_session && forgets => Some(Reply::new(404)),
                _ => None,
            }
        })?;
        let env = with_image(&image, &registry.host())?;
        push(&env, &registry.host())?.ok();
        assert_arrived(&registry);
        let resumed = registry.count("PATCH", "/uploads/");
        assert_eq!(resumed, usize::from(!forgets), "resumed where the registry stood");
    }
    Ok(())
}

/// R10: an upload address elsewhere is used without credentials; an internal one is not used at all.
#[test]
fn upload_addresses_elsewhere_get_no_credentials() -> Result<()> {
    let image = Image::of_size(1000);
    let storage = FaultRegistry::new(|_, _| Some(Reply::new(201)))?;
    let address = format!("http://{}/bucket?sig=1", storage.host());
    let elsewhere = FaultRegistry::new(move |request, before| {
        if request.header("authorization").is_empty() {
            return Some(Reply::new(401).header("WWW-Authenticate", "Basic realm=x"));
        }
        let is_blob = request.method == "HEAD" && request.path.contains("/blobs/");
        match request.method.as_str() {
            "POST" => Some(Reply::new(202).header("Location", address.clone())),
            "HEAD" if is_blob && before > 1 => Some(Reply::new(200)),
            _ => None,
        }
    })?;
    let env = with_image(&image, &elsewhere.host())?;
    log_in(&env, &[&elsewhere.host()])?;
    push(&env, &elsewhere.host())?.ok();
    assert!(storage.count("PUT", "/bucket?sig=1&digest=sha256") > 0);
    storage.assert_no_credentials(CANARY);

    let internal = FaultRegistry::new(|request, _| {
        (request.method == "POST")
            .then(|| Reply::new(202).header("Location", "http://169.254.169.254/latest/"))
    })?;
    let env = with_image(&image, &internal.host())?;
    push(&env, &internal.host())?.exits(1).says(&["internal address", "169.254.169.254"]);
    Ok(())
}

/// R14: a registry that stores something else, or says it has what it has not.
#[test]
fn what_was_taken_must_be_there() -> Result<()> {
    let image = Image::of_size(1000);
    let other = FaultRegistry::new(|request, _| {
        let is_upload = request.method == "PUT" && request.path.contains("/uploads/");
        is_upload.then(|| Reply::new(201).header("Docker-Content-Digest", digest(b"other")))
    })?;
    let env = with_image(&image, &other.host())?;
    push(&env, &other.host())?.exits(1).says(&["reports digest"]);
    let forgets = FaultRegistry::new(|request, _| {
        (request.method == "HEAD" && request.path.contains("/blobs/")).then(|| Reply::new(404))
    })?;
    let env = with_image(&image, &forgets.host())?;
    push(&env, &forgets.host())?.exits(1).says(&["does not have it"]);
    for registry in [other, forgets] {
        assert_eq!(registry.count("PUT", "/manifests/"), 0, "nothing is tagged");
    }
    Ok(())
}

/// R13: what a registry says about chunks is obeyed (the sizes are tested in the client's own `stream` tests).
#[test]
fn a_proxy_that_limits_bodies_gets_chunks() -> Result<()> {
    let image = Image::of_size(20 << 20);
    let registry = FaultRegistry::new(|request, _| {
        let length: usize = request.header("content-length").parse().unwrap_or(0);
        (length > 9 << 20).then(|| Reply::new(413).end(End::CloseAfter))
    })?;
    let env = with_image(&image, &registry.host())?;
    push(&env, &registry.host())?.ok();
    assert_arrived(&registry);
    Ok(())
}

/// R7: nothing is tagged when a manifest's upload fails for good; passing faults are waited out.
#[test]
fn passing_faults_are_waited_out() -> Result<()> {
    let image = Image::of_size(1000);
    let registry = FaultRegistry::new(|request, before| {
        let is_upload = request.method == "PUT" && request.path.contains("/uploads/");
        let is_faulty = before < 2 && !is_upload && request.method != "GET";
        is_faulty.then(|| Reply::new([500, 502][before]).body("oops"))
    })?;
    let env = with_image(&image, &registry.host())?;
    push(&env, &registry.host())?.ok();
    assert_arrived(&registry);
    Ok(())
}

/// Bad input: an immutable tag is refused in the registry's words, once.
#[test]
fn an_immutable_tag_is_refused_in_the_registry_s_words() -> Result<()> {
    let body = r#"{"errors":[{"code":"TAG_INVALID","message":"The image tag '1' already exists in the 'app' repository and cannot be overwritten because the tag is immutable."}]}"#;
    let registry = FaultRegistry::new(move |request, _| {
        (request.method == "PUT" && request.path.contains("/manifests/")).then(|| Reply::new(400).body(body))
    })?;
    let env = with_image(&Image::of_size(10), &registry.host())?;
    push(&env, &registry.host())?.exits(1).says(&["TAG_INVALID", "the tag is immutable", "another tag"]);
    Ok(())
}
