use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::fake::{Fake, Request, reply};
use super::*;
use crate::{ErrorKind, RegistryError, Violation};

async fn read(client: &Client, from: &Reference, bytes: &[u8]) -> Result<Vec<u8>, RegistryError> {
    read_as(client, from, Digest::of(bytes), bytes.len() as u64).await
}

async fn read_as(
    client: &Client,
    from: &Reference,
    digest: Digest,
    size: u64,
) -> Result<Vec<u8>, RegistryError> {
    let mut stream = client.blob(from, digest, size, |_| {}).await?;
    let mut all = Vec::new();
    while let Some(chunk) = stream.chunk().await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

#[tokio::test]
async fn a_tag_resolves_to_the_image_of_the_platform_and_its_blobs_stream_verified() {
    let (amd, arm) = (Image::new("amd64"), Image::new("arm64"));
    let entry = |image: &Image, architecture: &str| {
        let mut entry = descriptor(media_type::OCI_MANIFEST, &image.manifest);
        entry["platform"] = json!({"os": if architecture == "unknown" { "unknown" } else { "linux" }, "architecture": architecture});
        entry
    };
    let attestation = Image::new("unknown");
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX,
        "manifests": [entry(&attestation, "unknown"), entry(&arm, "arm64"), entry(&amd, "amd64")]});
    let index = serde_json::to_vec(&index).unwrap();
    let index_digest = Digest::of(&index);
    let expected = amd.manifest.clone();
    let layer = amd.layer.clone();
    let fake = Fake::start(move |request| {
        if request.path.ends_with("/manifests/1.0") {
            return reply(200).header("Content-Type", media_type::OCI_INDEX).body(index.clone());
        }
        amd.serve(request, "none")
    })
    .await;
    let (client, image) = (client(), reference(&fake.host, "team/app:1.0"));
    let found = client.resolve(&image, &amd64()).await.unwrap();
    assert_eq!(found.manifest_bytes, expected);
    assert_eq!((found.index_digest, found.manifest_digest), (index_digest, Digest::of(&expected)));
    assert_eq!(found.config.config.env, ["A=b"]);
    assert_eq!(found.config_digest, Digest::of(&found.config_bytes));
    assert_eq!(found.served_by, fake.host);

    let told = Arc::new(Mutex::new(0));
    let teller = told.clone();
    let tell = move |bytes| *teller.lock().unwrap() = bytes;
    let mut stream = client.blob(&image, Digest::of(&layer), layer.len() as u64, tell).await.unwrap();
    let mut all = Vec::new();
    while let Some(chunk) = stream.chunk().await.unwrap() {
        all.extend_from_slice(&chunk);
    }
    assert_eq!((all.len() as u64, all), (*told.lock().unwrap(), layer));
    assert_eq!(stream.chunk().await.unwrap(), None, "the end stays the end");

    let s390x = "linux/s390x".parse().unwrap();
    let error = client.resolve(&image, &s390x).await.unwrap_err();
    assert!(
        matches!(&error, RegistryError::NoPlatform { available, .. } if available.len() == 2),
        "{error:?}"
    );
    assert_eq!(error.kind(), ErrorKind::Unsuitable);
}

#[tokio::test]
async fn a_digest_reference_takes_no_other_content() {
    let image = Image::new("amd64");
    let digest = Digest::of(&image.manifest);
    let fake = Fake::start(move |request| image.serve(request, &Digest::of(b"other").to_string())).await;
    let good = reference(&fake.host, &format!("app@{digest}"));
    assert_eq!(client().resolve(&good, &amd64()).await.unwrap().manifest_digest, digest);
    let wrong = reference(&fake.host, &format!("app:ignored@{}", Digest::of(b"other")));
    let error = client().resolve(&wrong, &amd64()).await.unwrap_err();
    assert!(matches!(error, RegistryError::DigestMismatch { actual, .. } if actual == digest), "{error:?}");
}

#[tokio::test]
async fn a_missing_image_is_reported_in_the_words_of_the_registry() {
    let image = Image::new("amd64");
    let fake = Fake::start(move |request| image.serve(request, "1")).await;
    let error = client().resolve(&reference(&fake.host, "app:2"), &amd64()).await.unwrap_err();
    assert_eq!((error.kind(), error.status()), (ErrorKind::NotFound, Some(404)));
    let expected = format!(
        "pull manifest `2` of {}/app: not found (HTTP 404): MANIFEST_UNKNOWN: manifest unknown",
        fake.host
    );
    assert_eq!(error.to_string(), expected);
    assert!(error.hint().is_some());
    let asked = ["GET /v2/app/manifests/2", "GET /v2/app/tags/list?n=1000"];
    assert_eq!(fake.lines(), asked, "a 404 is not retried");
}

#[tokio::test]
async fn wrong_bytes_and_wrong_sizes_are_refused_before_the_end_of_the_stream() {
    let good = b"the right bytes".to_vec();
    let (digest, size) = (Digest::of(&good), good.len() as u64);
    let fake = Fake::start(move |request: &Request| match request.path.split('/').nth(2) {
        Some("wrong") => reply(200).body("the wrong bytes"),
        Some("endless") => reply(200).body([good.as_slice(), b"x"].concat()),
        Some("short") => reply(200).body(&good[..5]),
        _ => reply(200),
    })
    .await;
    let client = client();
    let error = read_as(&client, &reference(&fake.host, "wrong"), digest, size).await.unwrap_err();
    assert!(
        matches!(error, RegistryError::DigestMismatch { expected, .. } if expected == digest),
        "{error:?}"
    );
    let error = read_as(&client, &reference(&fake.host, "endless"), digest, size).await.unwrap_err();
    assert!(matches!(error, RegistryError::SizeMismatch { actual: 16, .. }), "{error:?}");
    let error = read_as(&client, &reference(&fake.host, "short"), digest, size).await.unwrap_err();
    assert!(matches!(error, RegistryError::SizeMismatch { actual: 5, .. }), "{error:?}");
    let tries = fake.lines().iter().filter(|line| line.contains("short")).count();
    assert_eq!(tries, crate::limits::RESUMES_WITHOUT_PROGRESS_MAX + 1, "{:?}", fake.lines());
}

/// Serves `blob` in pieces: each connection breaks after `piece` bytes; ranges are honoured, ignored or refused.
async fn breaking(blob: Vec<u8>, piece: usize, ranges: &'static str) -> Fake {
    let first = AtomicUsize::new(0);
    Fake::start(move |request| {
        if request.path == "/v2/" {
            return reply(200);
        }
        let start: usize =
            request.header("range").trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap_or(0);
        match ranges {
            _ if start == 0 => reply(200).body(blob.clone()).cut(piece),
            "honoured" => {
                let range = format!("bytes {start}-{}/{}", blob.len() - 1, blob.len());
                reply(206).header("Content-Range", range).body(&blob[start..]).cut(piece)
            }
            "wrong" => reply(206).header("Content-Range", "bytes 999999-1000000/1000001").body("x"),
            "refused" => reply(416),
            _ if first.fetch_add(1, Ordering::Relaxed) == 0 => reply(200).body(blob.clone()).cut(piece / 2),
            _ => reply(200).body(blob.clone()),
        }
    })
    .await
}

#[tokio::test]
async fn broken_downloads_are_resumed_where_they_broke() {
    let blob: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    let fake = breaking(blob.clone(), 90_000, "honoured").await;
    assert_eq!(read(&client(), &reference(&fake.host, "app"), &blob).await.unwrap(), blob);
    assert_eq!(fake.lines().len(), 5);
    let fake = breaking(blob.clone(), 90_000, "ignored").await;
    assert_eq!(read(&client(), &reference(&fake.host, "app"), &blob).await.unwrap(), blob);
    let fake = breaking(blob.clone(), 90_000, "wrong").await;
    let error = read(&client(), &reference(&fake.host, "app"), &blob).await.unwrap_err();
    assert!(matches!(error, RegistryError::Protocol { violation: Violation::Range(_), .. }), "{error:?}");
    let fake = breaking(blob.clone(), 90_000, "refused").await;
    let error = read(&client(), &reference(&fake.host, "app"), &blob).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
}

/// R6: seconds and dates.
#[tokio::test]
async fn overload_is_waited_out_as_long_as_asked() {
    let image = Image::new("amd64");
    let count = AtomicUsize::new(0);
    let fake = Fake::start(move |request| {
        if request.path == "/v2/" {
            return reply(200);
        }
        match count.fetch_add(1, Ordering::Relaxed) {
            0 => reply(429).header("Retry-After", "1"),
            1 => reply(503),
            _ => image.serve(request, "1"),
        }
    })
    .await;
    let started = Instant::now();
    client().resolve(&reference(&fake.host, "app:1"), &amd64()).await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
    let busy = Fake::start(|request| match request.path.as_str() {
        "/v2/" => reply(200),
        _ => reply(429).body(r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#),
    })
    .await;
    let error = client().resolve(&reference(&busy.host, "app:1"), &amd64()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RateLimited);
    assert!(error.to_string().ends_with("TOOMANYREQUESTS: slow down"), "{error}");
    assert_eq!(busy.lines().len(), 5);
}

#[tokio::test]
async fn hostile_documents_are_refused() {
    let fake = Fake::start(|request| match request.path.rsplit('/').next() {
        Some("huge") => reply(200).header("Content-Length", "999999999").cut(0),
        Some("both") => reply(200).body(r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#),
        Some("mislabelled") => reply(200)
            .header("Content-Type", media_type::OCI_INDEX)
            .body(r#"{"schemaVersion":2,"layers":[],"config":{}}"#),
        _ => reply(200),
    })
    .await;
    let client = client();
    let error = client.resolve(&reference(&fake.host, "app:huge"), &amd64()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error:?}");
    for tag in ["both", "mislabelled"] {
        let error =
            client.resolve(&reference(&fake.host, &format!("app:{tag}")), &amd64()).await.unwrap_err();
        assert!(matches!(error, RegistryError::Manifest { .. }), "{tag}: {error:?}");
    }
}

#[tokio::test]
async fn mirrors_are_asked_first_and_the_registry_last() {
    let image = Image::new("amd64");
    let layer = image.layer.clone();
    let empty = Fake::start(|request| reply(if request.path == "/v2/" { 200 } else { 404 })).await;
    let full = Fake::start(move |request| image.serve(request, "10")).await;
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("registries.conf");
    let text = format!(
        "[[registry]]\nprefix = \"docker.io\"\nlocation = \"{0}\"\n[[registry.mirror]]\nlocation = \"{0}/a\"\n\
         [[registry.mirror]]\nlocation = \"{1}/hub\"\n",
        empty.host, full.host
    );
    std::fs::write(&conf, text).unwrap();
    let client = Client::new(Settings { registries_conf: vec![conf], ..settings() }).unwrap();
    let node: Reference = "node:10".parse().unwrap();
    let found = client.resolve(&node, &amd64()).await.unwrap();
    assert_eq!(found.served_by, full.host);
    assert_eq!(empty.lines(), ["GET /v2/a/library/node/manifests/10"]);
    assert_eq!(full.lines()[0], "GET /v2/hub/library/node/manifests/10");
    // Blobs are asked for where the manifest came from.
    assert_eq!(read(&client, &node, &layer).await.unwrap(), layer);
    assert_eq!(empty.lines().len(), 1);

    let error = client.resolve(&"node:11".parse().unwrap(), &amd64()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let RegistryError::AfterMirrors { mirrors, upstream } = &error else { panic!("{error:?}") };
    assert_eq!(mirrors.len(), 2);
    assert_eq!(upstream.target().unwrap().repository, "library/node");
    assert!(error.hint().unwrap().contains(&format!("{}/hub", full.host)));
}

/// R7: nobody there.
#[tokio::test]
async fn a_registry_that_is_away_is_unreachable_soon() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = client().resolve(&reference(&host, "app:1"), &amd64()).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unreachable { reason: crate::Reason::Connect, .. }), "{error:?}");
}

#[tokio::test]
async fn blocked_registries_are_not_contacted() {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("registries.conf");
    std::fs::write(&conf, "[[registry]]\nlocation = \"bad.test\"\nblocked = true\n").unwrap();
    let client = Client::new(Settings { registries_conf: vec![conf], ..settings() }).unwrap();
    let error = client.resolve(&"bad.test/x:1".parse().unwrap(), &amd64()).await.unwrap_err();
    assert!(matches!(&error, RegistryError::Blocked { prefix, .. } if prefix == "bad.test"));
}

#[tokio::test]
async fn a_stream_that_failed_never_reports_a_good_end() {
    let fake = Fake::start(|_| reply(200).body("wrong")).await;
    let from = reference(&fake.host, "app");
    let mut stream = client().blob(&from, Digest::of(b"right"), 5, |_| {}).await.unwrap();
    while stream.chunk().await.is_ok_and(|chunk| chunk.is_some()) {}
    assert!(stream.chunk().await.is_err());
}

/// R11: a stall.
#[tokio::test]
async fn silence_in_a_download_ends_at_the_idle_deadline() {
    let blob = vec![1; 10_000];
    let sent = blob.clone();
    let fake = Fake::start(move |request| match request.header("range") {
        _ if request.path == "/v2/" => reply(200),
        "" => reply(200).body(sent.clone()).stall(100),
        _ => reply(206).header("Content-Range", "bytes 100-9999/10000").body(&sent[100..]),
    })
    .await;
    let mut settings = settings();
    settings.deadlines.idle = Duration::from_millis(500);
    let client = Client::new(settings).unwrap();
    assert_eq!(read(&client, &reference(&fake.host, "app"), &blob).await.unwrap(), blob);
    assert_eq!(fake.lines().len(), 2);
}

#[tokio::test]
async fn downloads_from_one_host_wait_for_their_turn() {
    let blob = vec![1; 100];
    let sent = blob.clone();
    let fake = Fake::start(move |_| reply(200).body(sent.clone())).await;
    let client = Client::new(Settings { transfers_per_host: 1, ..settings() }).unwrap();
    let (from, digest) = (reference(&fake.host, "app"), Digest::of(&blob));
    let first = client.blob(&from, digest, 100, |_| {}).await.unwrap();
    let mut second = Box::pin(client.blob(&from, digest, 100, |_| {}));
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut second).await.is_err());
    drop(first);
    let mut second = second.await.unwrap();
    while second.chunk().await.unwrap().is_some() {}
}

#[tokio::test]
async fn operations_can_be_spawned_on_any_thread() {
    fn check<T: Send>(_: T) {}
    let (client, image) = (client(), reference("r.test", "app"));
    let source = crate::BytesSource(bytes::Bytes::new());
    check(client.resolve(&image, &amd64()));
    check(client.blob(&image, Digest::of(b""), 0, |_| {}));
    check(client.push_permission(&image));
    check(client.has_blob(&image, Digest::of(b"")));
    check(client.mount_blob(&image, Digest::of(b""), "other"));
    check(client.push_blob(&image, Digest::of(b""), 0, &source, |_| {}));
    check(client.push_manifest(&image, media_type::OCI_MANIFEST, Vec::new()));
}

#[tokio::test]
async fn a_config_that_does_not_belong_to_its_manifest_is_refused() {
    let mut image = Image::new("amd64");
    let two_layers = json!({"schemaVersion": 2, "config": descriptor(media_type::OCI_CONFIG, &image.config),
        "layers": [descriptor(media_type::OCI_LAYER, &image.layer), descriptor(media_type::OCI_LAYER, b"")]});
    image.manifest = serde_json::to_vec(&two_layers).unwrap();
    let fake = Fake::start(move |request| image.serve(request, "1")).await;
    let error = client().resolve(&reference(&fake.host, "app:1"), &amd64()).await.unwrap_err();
    let expected = Violation::LayerCount { layers: 2, diff_ids: 1 };
    assert!(
        matches!(&error, RegistryError::Protocol { violation, .. } if *violation == expected),
        "{error:?}"
    );

    let chart = json!({"schemaVersion": 2, "config": descriptor("application/vnd.cncf.helm.config.v1+json", b"{}"),
        "layers": []});
    let chart = serde_json::to_vec(&chart).unwrap();
    let fake = Fake::start(move |_| reply(200).body(chart.clone())).await;
    let error = client().resolve(&reference(&fake.host, "app:1"), &amd64()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsuitable, "{error:?}");
}

#[tokio::test]
async fn indexes_that_never_end_are_refused() {
    // Each level names the next by digest, built from the inside out.
    let mut levels: Vec<Vec<u8>> = vec![Image::new("amd64").manifest];
    for _ in 0..5 {
        let mut entry = descriptor(media_type::OCI_INDEX, &levels[levels.len() - 1]);
        entry["platform"] = json!({"os": "linux", "architecture": "amd64"});
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        levels.push(serde_json::to_vec(&index).unwrap());
    }
    let fake = Fake::start(move |request| {
        let named = request.path.rsplit('/').next().unwrap();
        let found = levels.iter().find(|level| Digest::of(level).to_string() == named);
        reply(200).body(found.or(levels.last()).unwrap().clone())
    })
    .await;
    let error = client().resolve(&reference(&fake.host, "app:1"), &amd64()).await.unwrap_err();
    assert!(matches!(&error, RegistryError::Protocol { violation: Violation::IndexDepth, .. }), "{error:?}");
}

/// R20: and only for those.
#[tokio::test]
async fn a_proxy_is_asked_for_hosts_that_are_not_on_this_machine() {
    let image = Image::new("amd64");
    let proxy = Fake::start(move |request| {
        let mut inner = request.clone();
        inner.path = request.path.trim_start_matches("http://r.test").to_owned();
        image.serve(&inner, "10")
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let daemon = dir.path().join("daemon.json");
    std::fs::write(&daemon, r#"{"registry-mirrors":["http://r.test"]}"#).unwrap();
    let proxies =
        crate::ProxySettings { http: Some(set_by_variable(&proxy.host, "HTTP_PROXY")), ..Default::default() };
    let client = Client::new(Settings { daemon_json: Some(daemon), proxies, ..settings() }).unwrap();
    let found = client.resolve(&"node:10".parse().unwrap(), &amd64()).await.unwrap();
    assert_eq!(found.served_by, "r.test");
    assert_eq!(proxy.lines()[0], "GET http://r.test/v2/library/node/manifests/10");
}
