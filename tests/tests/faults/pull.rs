//! Downloads.

use anyhow::Result;
use rbuild_tests::TestEnv;
use rbuild_tests::fault::{End, FaultRegistry, Image, Reply, digest};

use crate::{assert_nothing_came, pull};

/// A registry with the image, whose answers for the layer are the test's.
fn with_layer(
    image: &Image,
    layer: impl Fn(&rbuild_tests::fault::Request, usize) -> Option<Reply> + Send + Sync + 'static,
) -> Result<FaultRegistry> {
    let id = digest(&image.layer);
    let registry = FaultRegistry::new(move |request, before| {
        if request.is_blob() && request.path.ends_with(&id) { layer(request, before) } else { None }
    })?;
    registry.add("app", "1", image);
    Ok(registry)
}

/// R1: a blob cut short once is resumed, with any stated length.
#[test]
fn a_blob_cut_short_is_resumed() -> Result<()> {
    let image = Image::of_size(300_000);
    let size = image.layer.len();
    for cut in [0, 1, size - 1] {
        for stated in [None, Some(size), Some(cut)] {
            let bytes = image.layer.clone();
            let registry = with_layer(&image, move |_, before| {
                let reply = Reply::new(200).body(bytes.clone());
                let end = if stated.is_some() { End::Cut(cut) } else { End::Unframed(cut) };
                (before == 0).then(|| Reply { stated_length: stated, ..reply.end(end) })
            })?;
            let env = TestEnv::new()?;
            pull(&env, &registry)?.ok();
            env.run(["cache", "fsck"])?.ok();
        }
    }
    Ok(())
}

/// R1: a blob that is cut short every time is refused in the end, and nothing stays.
#[test]
fn a_blob_that_never_comes_whole_is_refused() -> Result<()> {
    let image = Image::of_size(5000);
    let bytes = image.layer.clone();
    let registry =
        with_layer(&image, move |_, _| Some(Reply::new(200).body(bytes.clone()).end(End::Cut(100))))?;
    let env = TestEnv::new()?;
    pull(&env, &registry)?.exits(1).says(&[&registry.host(), "app"]);
    assert_nothing_came(&env)
}

/// R2, R3: too many bytes and wrong bytes are refused, and nothing of them is used later.
#[test]
fn wrong_bytes_are_refused_and_not_resumed_from() -> Result<()> {
    let image = Image::of_size(5000);
    for (wrong, words) in [
        ([image.layer.as_slice(), b"x"].concat(), "expected"),
        (image.layer.iter().map(|byte| byte ^ 1).collect(), "digest"),
    ] {
        let registry =
            with_layer(&image, move |_, before| (before == 0).then(|| Reply::new(200).body(wrong.clone())))?;
        let env = TestEnv::new()?;
        pull(&env, &registry)?.exits(1).says(&[words, &registry.host()]);
        assert_nothing_came(&env)?;
        pull(&env, &registry)?.ok();
        let ranged = registry.seen().iter().any(|request| !request.header("range").is_empty());
        assert!(!ranged, "wrong bytes are no beginning to resume from");
    }
    Ok(())
}

/// R4: a range that is ignored, answered wrongly or refused.
#[test]
fn odd_answers_to_a_range_do_not_harm() -> Result<()> {
    let image = Image::of_size(200_000);
    let bytes = image.layer.clone();
    let ignored = with_layer(&image, {
        let bytes = bytes.clone();
        move |_, before| {
            let reply = Reply::new(200).body(bytes.clone());
            Some(if before == 0 { reply.end(End::Cut(50_000)) } else { reply })
        }
    })?;
    let env = TestEnv::new()?;
    pull(&env, &ignored)?.ok();
    for (status, range) in [(206, "bytes 70000-199999/200000"), (206, "nonsense"), (416, "bytes */9")] {
        let bytes = bytes.clone();
        let registry = with_layer(&image, move |request, _| {
            Some(match request.header("range") {
                "" => Reply::new(200).body(bytes.clone()).end(End::Cut(50_000)),
                _ => Reply::new(status).header("Content-Range", range).body(&bytes[70_000..]),
            })
        })?;
        let env = TestEnv::new()?;
        pull(&env, &registry)?.exits(1);
        assert_nothing_came(&env)?;
    }
    Ok(())
}

/// R16: a tag that moves while it is pulled: what was resolved first is used throughout.
#[test]
fn a_tag_that_moves_does_not_mix_two_images() -> Result<()> {
    let (old, new) = (Image::of_size(1000), Image::of_size(2000));
    let (first, second) = (old.clone(), new.clone());
    let registry = FaultRegistry::new(move |request, before| {
        let image = if before == 0 { &first } else { &second };
        (request.is_manifest() && request.path.ends_with("/1")).then(|| {
            Reply::new(200).header("Content-Type", image.media_type.clone()).body(image.manifest.clone())
        })
    })?;
    registry.add("app", "1", &old);
    registry.add("app", "2", &new);
    let env = TestEnv::new()?;
    pull(&env, &registry)?.ok();
    assert_eq!(env.run(["images", "-q", "--no-trunc"])?.ok().stdout.trim(), digest(&old.config));
    assert_eq!(registry.count("GET", "/manifests/1"), 1);
    Ok(())
}

/// R17: error bodies that are endless, steer a terminal, or are a web page.
#[test]
fn error_bodies_are_cut_and_made_harmless() -> Result<()> {
    let huge = format!("{{\"errors\":[{{\"code\":\"X\",\"message\":\"{}\"}}]}}", "y".repeat(40 << 20));
    for (body, shown) in [
        (huge.into_bytes(), ""),
        (b"\x1b[31mred\x1b]0;title\x07".to_vec(), "red"),
        (b"<html><head><title>Blocked by the proxy</title></head>".to_vec(), "Blocked by the proxy"),
    ] {
        let registry = FaultRegistry::new(move |request, _| {
            request.is_manifest().then(|| Reply::new(403).body(body.clone()))
        })?;
        let run = pull(&TestEnv::new()?, &registry)?.exits(1).says(&[shown]);
        assert!(!run.stderr.contains('\u{1b}') && run.stderr.len() < 10_000, "{} bytes", run.stderr.len());
    }
    Ok(())
}

/// R18: nobody in between may encode a blob: identity is asked for, and the digest is of the bytes as stored.
#[test]
fn blobs_are_asked_for_as_they_are() -> Result<()> {
    let image = Image::of_size(1000);
    let bytes = image.layer.clone();
    let registry = with_layer(&image, move |_, _| {
        Some(Reply::new(200).header("Content-Encoding", "gzip").body(bytes.clone()))
    })?;
    let env = TestEnv::new()?;
    pull(&env, &registry)?.ok();
    let blobs: Vec<_> = registry.seen().into_iter().filter(|request| request.is_blob()).collect();
    assert!(blobs.iter().all(|request| request.header("accept-encoding") == "identity"), "{blobs:?}");
    Ok(())
}

/// R21: a store without room: the error names it, and the next pull works.
#[test]
fn a_full_disk_is_named_and_leaves_the_store_whole() -> Result<()> {
    rbuild_tests::need!(Root);
    let disk = rbuild_tests::fault::SmallDisk::new(24 << 20)?;
    let registry = FaultRegistry::good()?;
    registry.add("app", "1", &Image::of_size(40 << 20));
    registry.add("small", "1", &Image::of_size(1000));
    let env = TestEnv::new()?.with_store(&disk.path().join("store"));
    pull(&env, &registry)?.exits(102).says(&["free space", "No space left"]);
    env.run(["cache", "fsck"])?.ok();
    env.run(["pull", &format!("{}/small:1", registry.host())])?.ok();
    Ok(())
}

/// R23: two processes want one image: each blob moves once, and one that is killed does not harm the other.
#[test]
fn two_processes_download_once() -> Result<()> {
    let image = Image::of_size(3 << 20);
    let registry = FaultRegistry::good()?;
    registry.add("app", "1", &image);
    let name = format!("{}/app:1", registry.host());
    let env = TestEnv::new()?;
    let runs = [env.start(env.command(["pull", &name]))?, env.start(env.command(["pull", &name]))?];
    for run in runs {
        run.finish()?.ok();
    }
    assert_eq!(registry.count("GET", &format!("/blobs/{}", digest(&image.layer))), 1);

    // The first is killed in the middle of the layer; the second goes on by itself.
    let slow = with_layer(&image, {
        let bytes = image.layer.clone();
        move |_, before| (before == 0).then(|| Reply::new(200).body(bytes.clone()).end(End::Stall(1000)))
    })?;
    let name = format!("{}/app:1", slow.host());
    let env = TestEnv::new()?;
    let first = env.start(env.command(["pull", &name]))?;
    let layer = format!("/blobs/{}", digest(&image.layer));
    rbuild_tests::fault::wait_until("the first pull asks for the layer", || slow.count("GET", &layer) > 0)?;
    let second = env.start(env.command(["pull", &name]))?;
    first.kill()?;
    second.finish()?.ok();
    assert!(slow.count("GET", &layer) <= 2);
    env.run(["cache", "fsck"])?.ok();
    Ok(())
}

/// R24: a server that closes idle connections without a word: requests that are safe to repeat are repeated.
#[test]
fn closed_connections_are_no_failure() -> Result<()> {
    let image = Image::of_size(1000);
    let stored = image.clone();
    let registry = FaultRegistry::new(move |request, _| {
        let kind = stored.media_type.clone();
        match request.path.as_str() {
            "/v2/" => Some(Reply::new(200).end(End::CloseAfter)),
            _ if request.is_manifest() => Some(
                Reply::new(200)
                    .header("Content-Type", kind)
                    .body(stored.manifest.clone())
                    .end(End::CloseAfter),
            ),
            _ => None,
        }
    })?;
    registry.add("app", "1", &image);
    pull(&TestEnv::new()?, &registry)?.ok();
    Ok(())
}

/// R11: heads without end are refused.
#[test]
fn floods_of_headers_are_refused() -> Result<()> {
    let many = FaultRegistry::new(|request, _| {
        let flood = (0..100_000).fold(Reply::new(200), |reply, n| reply.header(&format!("X-{n}"), "y"));
        request.is_manifest().then_some(flood)
    })?;
    let long = FaultRegistry::new(|request, _| {
        request.is_manifest().then(|| Reply::new(200).end(End::HeaderFlood(100 << 20)))
    })?;
    for registry in [many, long] {
        pull(&TestEnv::new()?, &registry)?.exits(1).says(&[&registry.host()]);
    }
    Ok(())
}
