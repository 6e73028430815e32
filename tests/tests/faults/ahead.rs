//! Layers that are pushed while later steps of their build run, and what a push asks.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context as _, Result};
use rbuild_tests::fault::{FaultRegistry, Image, Reply, Request, wait_until};
use rbuild_tests::{Registry, TestEnv, need};
use rustix::process::{Pid, Signal, kill_process};

use crate::pull;

/// What a step of the build can ask for, and what holds uploads up.
#[derive(Default)]
struct Gate {
    /// Uploads whose bytes have come.
    uploads: AtomicUsize,
    /// Uploads get no answer as long as this is set.
    is_shut: AtomicBool,
}

impl Gate {
    /// A registry that counts uploads here and tells how many there were: `GET /uploads/N` is found when there were N.
    fn registry(self: &Arc<Self>) -> Result<FaultRegistry> {
        let gate = Arc::clone(self);
        FaultRegistry::new(move |request, _| {
            if let Some(wanted) = request.path.strip_prefix("/uploads/") {
                let is_so =
                    wanted.parse().is_ok_and(|wanted: usize| gate.uploads.load(Ordering::SeqCst) >= wanted);
                return Some(Reply::new(if is_so { 200 } else { 404 }));
            }
            if is_layer(request) && !request.body.is_empty() {
                gate.uploads.fetch_add(1, Ordering::SeqCst);
                while gate.is_shut.load(Ordering::SeqCst) {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
            }
            None
        })
    }
}

/// The upload of something other than a config.
fn is_layer(request: &Request) -> bool {
    request.method == "PUT" && request.path.contains("/blobs/uploads/") && !request.body.starts_with(b"{")
}

/// A step that ends when the registry has got this many layers.
fn waits_for(registry: &FaultRegistry, uploads: usize, then: &str) -> String {
    format!(
        "RUN n=0; until wget -q -O /dev/null http://{}/uploads/{uploads}; do n=$((n + 1)); test $n -lt 1200 || exit 9; \
         sleep 0.05; done; {then}\n",
        registry.host()
    )
}

/// A world, and a context with a layer before a step that waits until that and the base's layer were uploaded.
fn waiting(registry: &FaultRegistry, then: &str) -> Result<(Arc<Registry>, TestEnv, PathBuf)> {
    let bases = Registry::shared()?;
    let env = TestEnv::new()?.using(&bases)?;
    let text = format!(
        "FROM busybox\nRUN echo one > /one\n{}RUN echo three > /three\n",
        waits_for(registry, 2, then)
    );
    let context = env.context("ahead", &text, &[])?;
    Ok((bases, env, context))
}

const HOST: &str = "--network=host";

#[test]
fn a_layer_is_uploaded_while_the_next_step_runs() -> Result<()> {
    need!(Root, Registry, Bases);
    let gate = Arc::new(Gate::default());
    let registry = gate.registry()?;
    let (_bases, env, context) = waiting(&registry, "echo two > /two")?;
    let name = format!("{}/ahead:1", registry.host());
    let run = env.build(&context, &[HOST, "-t", &name, "--push"])?.ok();
    let seen = registry.seen();
    let last_upload = seen.iter().rposition(is_layer).context("uploads")?;
    let manifest =
        seen.iter().position(|request| request.method == "PUT" && request.path.contains("/manifests/"));
    assert!(last_upload < manifest.context("a manifest")?, "the manifest is last");
    // Each layer moved once, and was asked for before and after that and never again.
    assert_eq!(seen.iter().filter(|request| is_layer(request)).count(), 4, "{run}");
    for blob in seen.iter().filter(|request| request.method == "HEAD" && request.path.contains("/blobs/")) {
        assert!(registry.count("HEAD", &blob.path) <= 2, "{} was asked for again", blob.path);
    }
    assert_eq!(run.stderr.matches(&format!("pushing {name}")).count(), 1, "{run}");
    env.assert_nothing_left();
    Ok(())
}

#[test]
fn a_build_that_fails_tags_nothing_and_ends_its_uploads() -> Result<()> {
    need!(Root, Registry, Bases);
    for is_shut in [false, true] {
        let gate = Arc::new(Gate::default());
        let registry = gate.registry()?;
        gate.is_shut.store(is_shut, Ordering::SeqCst);
        let (_bases, env, context) = waiting(&registry, "exit 3")?;
        let name = format!("{}/ahead:1", registry.host());
        // With an upload that gets no answer, too.
        let run = env.build(&context, &[HOST, "-t", &name, "--push"])?.exits(1);
        gate.is_shut.store(false, Ordering::SeqCst);
        assert_eq!(registry.count("PUT", "/manifests/"), 0, "{run}");
        assert!(run.stderr.contains("exit code: 3"), "{run}");
        env.assert_nothing_left();
    }
    Ok(())
}

#[test]
fn an_interrupt_ends_uploads_that_get_no_answer() -> Result<()> {
    need!(Root, Registry, Bases);
    let gate = Arc::new(Gate::default());
    let registry = gate.registry()?;
    gate.is_shut.store(true, Ordering::SeqCst);
    let bases = Registry::shared()?;
    let env = TestEnv::new()?.using(&bases)?;
    let context = env.context("ahead", "FROM busybox\nRUN echo one > /one\nRUN sleep 600\n", &[])?;
    let name = format!("{}/ahead:1", registry.host());
    let path = context.to_str().context("UTF-8")?;
    let started = env.start(env.command(["build", HOST, "-t", &name, "--push", path]))?;
    wait_until("an upload", || gate.uploads.load(Ordering::SeqCst) > 0)?;
    let pid = Pid::from_raw(i32::try_from(started.pid())?).context("a pid")?;
    kill_process(pid, Signal::INT)?;
    let run = started.finish()?.exits(130);
    gate.is_shut.store(false, Ordering::SeqCst);
    assert_eq!(registry.count("PUT", "/manifests/"), 0, "{run}");
    env.assert_nothing_left();
    Ok(())
}

/// R15: an upload that fails while the build runs is tried again at its end, and what stays wrong is reported then.
#[test]
fn what_fails_on_the_way_is_tried_again_at_the_end() -> Result<()> {
    need!(Root, Registry, Bases);
    let bases = Registry::shared()?;
    for is_permanent in [false, true] {
        let refused = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&refused);
        let registry = FaultRegistry::new(move |request, _| {
            if request.path == "/refused" {
                return Some(Reply::new(if count.load(Ordering::SeqCst) > 0 { 200 } else { 404 }));
            }
            let is_refused = is_layer(request)
                && !request.body.is_empty()
                && (is_permanent || count.load(Ordering::SeqCst) == 0);
            is_refused.then(|| {
                count.fetch_add(1, Ordering::SeqCst);
                Reply::new(403).body(r#"{"errors":[{"code":"DENIED","message":"the quota is used up"}]}"#)
            })
        })?;
        let env = TestEnv::new()?.using(&bases)?;
        let wait = format!(
            "RUN until wget -q -O /dev/null http://{}/refused; do sleep 0.05; done\n",
            registry.host()
        );
        let context = env.context("refused", &format!("FROM busybox\nRUN echo one > /one\n{wait}"), &[])?;
        let name = format!("{}/refused:1", registry.host());
        let run = env.build(&context, &[HOST, "-t", &name, "--push"])?;
        if is_permanent {
            run.exits(1).says(&["the quota is used up", "DENIED", &name]);
            assert_eq!(registry.count("PUT", "/manifests/"), 0);
        } else {
            run.ok();
            assert!(registry.manifest("refused:1").is_some());
        }
    }
    Ok(())
}

/// One question whether all of it is there, and the tag.
#[test]
fn a_push_of_what_is_there_takes_two_round_trips() -> Result<()> {
    let registry = FaultRegistry::good()?;
    registry.add("app", "1", &Image::of_size(5000));
    let env = TestEnv::new()?;
    pull(&env, &registry)?.ok();
    let name = format!("{}/app:1", registry.host());
    let digest = env.run(["inspect", "-f", "{{index .RepoDigests 0}}", &name])?.ok();
    let digest = digest.stdout.trim().rsplit('@').next().context("a digest")?.to_owned();
    let before = registry.seen().len();
    env.run(["push", &name])?.ok().says(&[": Layer already exists"]);
    let asked: Vec<String> = registry.seen()[before..]
        .iter()
        .map(|request| format!("{} {}", request.method, request.path))
        .collect();
    // The first finds out whether loopback speaks TLS; a registry elsewhere is not asked.
    assert_eq!(asked, ["GET /v2/", &format!("HEAD /v2/app/manifests/{digest}"), "PUT /v2/app/manifests/1"]);

    // A build in which nothing is executed does the same.
    let context =
        env.context("again", &format!("FROM {name}\nCOPY file /file\n"), &[("file", "content\n")])?;
    let name = format!("{}/built:1", registry.host());
    env.build(&context, &["-t", &name, "--push"])?.ok();
    let before = registry.seen().len();
    env.build(&context, &["-t", &name, "--push"])?.ok().assert_all_cached();
    let methods: Vec<String> =
        registry.seen()[before..].iter().map(|request| request.method.clone()).collect();
    assert_eq!(methods, ["GET", "HEAD", "PUT"]);
    Ok(())
}

/// R14: a registry that has the manifest and lost a layer is given all of it.
#[test]
fn a_manifest_without_its_layers_is_pushed_anew() -> Result<()> {
    let image = Image::of_size(5000);
    let source = FaultRegistry::good()?;
    source.add("app", "1", &image);
    let is_first = AtomicBool::new(true);
    let registry = FaultRegistry::new(move |request, _| {
        let is_tag =
            request.method == "PUT" && request.path.ends_with("/manifests/1") && !request.body.is_empty();
        let unknown = r#"{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown to registry"}]}"#;
        (is_tag && is_first.swap(false, Ordering::SeqCst)).then(|| Reply::new(404).body(unknown))
    })?;
    registry.add_document("app", None, &image.media_type, &image.manifest);
    let env = TestEnv::new()?;
    pull(&env, &source)?.ok();
    let name = format!("{}/app:1", registry.host());
    env.run(["tag", &format!("{}/app:1", source.host()), &name])?.ok();
    env.run(["push", &name])?.ok();
    assert_eq!(registry.blob(&rbuild_tests::fault::digest(&image.layer)), Some(image.layer));
    assert!(registry.manifest("app:1").is_some());
    Ok(())
}
