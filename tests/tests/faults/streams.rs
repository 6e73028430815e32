//! Large layers, which go up while they are being compressed.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};
use rbuild_tests::TestEnv;
use rbuild_tests::fault::{FaultRegistry, Reply, Request, digest, wait_until};
use serde_json::Value;

const LAYER_BYTES: usize = 24 << 20;

/// A context with one large file, and the arguments that push what is built of it to these places.
fn large(places: &[String]) -> Result<(TestEnv, PathBuf, Vec<String>)> {
    let env = TestEnv::new()?;
    let text: String = (0..LAYER_BYTES / 16).map(|number| format!("{number:015}\n")).collect();
    let context = env.context("large", "FROM scratch\nCOPY file /file\n", &[("file", &text)])?;
    let names = places.join(",");
    let output = format!("-otype=registry,\"name={names}\",compression=uncompressed");
    // Equal bytes whenever it is made.
    Ok((env, context, vec![output, "--source-date-epoch=1".to_owned()]))
}

fn is_streamed(request: &Request) -> bool {
    request.method == "PATCH" && request.header("transfer-encoding") == "chunked"
}

/// By its head.
fn is_large(request: &Request) -> bool {
    is_streamed(request) || request.header("content-length").len() > 6
}

/// What a name stands for is there with its layer.
fn assert_arrived(registry: &FaultRegistry, name: &str) -> Result<()> {
    let manifest: Value = serde_json::from_slice(&registry.manifest(name).context("a tag")?)?;
    let layer = manifest["layers"][0]["digest"].as_str().context("a layer")?.to_owned();
    let bytes = registry.blob(&layer).context("its bytes")?;
    assert_eq!(digest(&bytes), layer);
    assert!(bytes.len() > LAYER_BYTES);
    Ok(())
}

fn build(env: &TestEnv, context: &std::path::Path, arguments: &[String]) -> Result<rbuild_tests::Run> {
    env.build(context, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The request that carried a layer; there must be one.
fn the_large_one(registry: &FaultRegistry) -> Request {
    let mut carried: Vec<Request> =
        registry.seen().into_iter().filter(|request| request.body.len() > 1 << 20).collect();
    assert_eq!(carried.len(), 1);
    carried.remove(0)
}

/// On a machine with much else to do a layer can be whole before its upload begins; not every time.
#[test]
fn a_large_layer_goes_up_once_before_its_digest_is_known() -> Result<()> {
    for _ in 0..5 {
        let registry = FaultRegistry::good()?;
        let places = ["one:1", "two:1", "two:2"].map(|name| format!("{}/{name}", registry.host()));
        let (env, context, arguments) = large(&places)?;
        build(&env, &context, &arguments)?.ok();
        for name in ["one:1", "two:1", "two:2"] {
            assert_arrived(&registry, name)?;
        }
        if is_streamed(&the_large_one(&registry)) {
            return Ok(());
        }
    }
    bail!("no upload began before the layer was whole");
}

/// What was only kept in the store goes up as a build's result does.
#[test]
fn a_kept_image_goes_up_while_it_is_being_compressed() -> Result<()> {
    // Digits in no order, which half their bytes say as well.
    let mut state = 1_u64;
    let mut digits = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("{:08x}", state >> 32)
    };
    let text: String = (0..LAYER_BYTES / 8).map(|_| digits()).collect();
    for _ in 0..5 {
        let registry = FaultRegistry::good()?;
        let env = TestEnv::new()?;
        let context = env.context("kept", "FROM scratch\nCOPY file /file\n", &[("file", &text)])?;
        let name = format!("{}/kept:1", registry.host());
        env.build(&context, &["-t", &name])?.ok();
        env.run(["push", &name])?.ok();
        assert!(registry.manifest("kept:1").is_some());
        if is_streamed(&the_large_one(&registry)) {
            return Ok(());
        }
    }
    bail!("no upload began before the layer was whole");
}

/// Breaks the first large upload after so many bytes; `forgets` its session, too.
fn breaking_once(after: usize, forgets: bool) -> Result<FaultRegistry> {
    let breaks = AtomicBool::new(true);
    FaultRegistry::new(move |request, _| match request.method.as_str() {
        "PATCH" | "PUT" if is_large(request) && breaks.swap(false, Ordering::Relaxed) => {
            Some(Reply::hang_up(after))
        }
        "GET" if forgets && request.path.contains("/uploads/") => Some(Reply::new(404)),
        _ => None,
    })
}

/// R12: what was sent before a connection broke is not sent again, as long as the registry has it.
#[test]
fn a_stream_that_breaks_goes_on() -> Result<()> {
    for forgets in [false, true] {
        let registry = breaking_once(10 << 20, forgets)?;
        let (env, context, arguments) = large(&[format!("{}/app:1", registry.host())])?;
        build(&env, &context, &arguments)?.ok();
        assert_arrived(&registry, "app:1")?;
        let sent: usize = registry.seen().iter().map(|request| request.body.len()).sum();
        // Some was on its way when the connection broke.
        let all = LAYER_BYTES + if forgets { 10 << 20 } else { 0 };
        assert!((all..all + (4 << 20)).contains(&sent), "{sent} bytes");
    }
    Ok(())
}

/// R12 for what only passes through: what is not held any more when it is asked for again is made again.
#[test]
fn a_passing_stream_that_breaks_goes_on_or_is_made_again() -> Result<()> {
    // Bytes that do not compress.
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32).to_le_bytes()
    })
    .take(40 << 17)
    .flatten()
    .collect();
    for forgets in [false, true] {
        let registry = breaking_once(12 << 20, forgets)?;
        let env = TestEnv::new()?;
        let context = env.context("passing", "FROM scratch\nCOPY file /file\n", &[])?;
        std::fs::write(context.join("file"), &noise)?;
        let place = format!("{}/app:1", registry.host());
        env.build(&context, &["--push", "-t", &place])?.ok();
        assert_arrived(&registry, "app:1")?;
        env.run(["cache", "fsck"])?.ok();
    }
    Ok(())
}

/// R13: who takes no blob of unknown length gets it whole.
#[test]
fn a_registry_that_refuses_streams_gets_whole_layers() -> Result<()> {
    for status in [411, 413, 501] {
        let registry = FaultRegistry::new(move |request, _| {
            is_streamed(request).then(|| Reply::new(status).body("no"))
        })?;
        let (env, context, arguments) = large(&[format!("{}/app:1", registry.host())])?;
        build(&env, &context, &arguments)?.ok();
        assert_arrived(&registry, "app:1")?;
        assert!(registry.seen().iter().filter(|request| is_streamed(request)).count() <= 1);
    }
    Ok(())
}

/// A layer that the registry has is given up by who could not know.
#[test]
fn a_layer_that_turns_out_to_be_there_is_not_named_again() -> Result<()> {
    let [is_second, is_begun, is_given_up] = [(); 3].map(|()| Arc::new(AtomicBool::new(false)));
    let [holds, begun, given_up] = [&is_second, &is_begun, &is_given_up].map(Arc::clone);
    let registry = FaultRegistry::new(move |request, _| {
        // Sessions of the preflight are given up before.
        if request.method == "DELETE" && begun.load(Ordering::SeqCst) {
            given_up.store(true, Ordering::SeqCst);
        }
        // Under load the layer is whole when its upload begins, which then has a length.
        if request.method == "PATCH" && holds.load(Ordering::SeqCst) {
            begun.store(true, Ordering::SeqCst);
            wait_until("the session is given up", || given_up.load(Ordering::SeqCst)).ok();
            return Some(Reply::hang_up(0));
        }
        None
    })?;
    let place = format!("{}/app:1", registry.host());
    let (first, context, arguments) = large(std::slice::from_ref(&place))?;
    build(&first, &context, &arguments)?.ok();
    is_second.store(true, Ordering::SeqCst);
    let uploads = registry.count("PUT", "/blobs/uploads/");
    let (second, context, arguments) = large(&[place])?;
    build(&second, &context, &arguments)?.ok().says(&["Layer already exists"]);
    // What was hung up on need not be among the requests that were seen.
    assert_eq!(is_given_up.load(Ordering::SeqCst), is_begun.load(Ordering::SeqCst));
    assert!(registry.count("PUT", "/blobs/uploads/") <= uploads + 1, "its config at most");
    Ok(())
}
