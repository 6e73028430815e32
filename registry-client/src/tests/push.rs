use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::fake::{Fake, Reply, Request, reply};
use super::*;
use crate::{BytesSource, ErrorKind, FileSource, PushOutcome, RegistryError, Violation};

/// What a registry that stores things holds.
#[derive(Default)]
struct Stored {
    blobs: BTreeMap<String, Vec<u8>>,
    manifests: BTreeMap<String, Vec<u8>>,
    session: Vec<u8>,
    hang_up_after: Option<usize>,
    keeps_sessions: bool,
}

/// A registry that really takes uploads, with one scripted break.
async fn storing(stored: Arc<Mutex<Stored>>) -> Fake {
    Fake::start(move |request| serve(&mut stored.lock().unwrap(), request)).await
}

fn serve(stored: &mut Stored, request: &Request) -> Reply {
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let digest =
        query.split('&').find_map(|pair| pair.strip_prefix("digest=")).unwrap_or("").replace("%3A", ":");
    let length: usize = request.header("content-length").parse().unwrap_or(0);
    let session = "/v2/app/blobs/uploads/1?_state=kept";
    match request.method.as_str() {
        "HEAD" => reply(if stored.blobs.contains_key(path.rsplit('/').next().unwrap()) { 200 } else { 404 }),
        "POST" if query.ends_with("from=has") => reply(201),
        "POST" if query.contains("from=forbidden") => reply(401).header("WWW-Authenticate", "Basic"),
        "POST" => {
            stored.session.clear();
            reply(202).header("Location", session)
        }
        "PUT" | "PATCH" if length > request.body.len() => match stored.hang_up_after {
            Some(bytes) => {
                stored.hang_up_after = None;
                // The fake reads no more than this; what it read counts as received.
                if stored.keeps_sessions {
                    stored.session = vec![0; bytes];
                }
                Reply::hang_up_after(bytes)
            }
            None => reply(202),
        },
        "PATCH" => {
            assert!(query.contains("_state=kept"));
            let start = request.header("content-range").split('-').next().unwrap().parse::<usize>().unwrap();
            assert_eq!(start, stored.session.len());
            stored.session.extend_from_slice(&request.body);
            reply(202).header("Location", "1?_state=kept")
        }
        "PUT" if path.contains("/manifests/") => {
            stored.manifests.insert(path.rsplit('/').next().unwrap().to_owned(), request.body.clone());
            reply(201).header("Docker-Content-Digest", Digest::of(&request.body).to_string())
        }
        "PUT" => {
            assert!(query.contains("_state=kept"), "the registry's own query is kept");
            let mut bytes = std::mem::take(&mut stored.session);
            bytes.extend_from_slice(&request.body);
            stored.blobs.insert(digest, bytes);
            reply(201)
        }
        "GET" if path.ends_with("/uploads/1") && stored.keeps_sessions => {
            let last = stored.session.len().saturating_sub(1);
            reply(204).header("Range", format!("0-{last}")).header("Location", session)
        }
        "GET" if path.ends_with("/uploads/1") => reply(404),
        "DELETE" => reply(204),
        _ => reply(200),
    }
}

fn blob() -> Vec<u8> {
    (0..500_000u32).flat_map(u32::to_le_bytes).collect()
}

#[tokio::test]
async fn blobs_and_manifests_are_uploaded_once() {
    let stored = Arc::new(Mutex::new(Stored::default()));
    let fake = storing(stored.clone()).await;
    let (client, to, bytes) = (client(), reference(&fake.host, "app:1"), blob());
    let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
    client.push_permission(&to).await.unwrap();
    assert_eq!(fake.lines(), ["POST /v2/app/blobs/uploads/", "DELETE /v2/app/blobs/uploads/1?_state=kept"]);
    assert!(!client.has_blob(&to, digest).await.unwrap());
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("blob"), &bytes).unwrap();
    let source = FileSource(dir.path().join("blob"));
    let told = Arc::new(Mutex::new(0));
    let teller = told.clone();
    let tell = move |bytes| *teller.lock().unwrap() = bytes;
    assert_eq!(client.push_blob(&to, digest, size, &source, tell).await.unwrap(), PushOutcome::Uploaded);
    assert_eq!(*told.lock().unwrap(), size);
    assert_eq!(stored.lock().unwrap().blobs[&digest.to_string()], bytes);
    assert!(client.has_blob(&to, digest).await.unwrap());
    assert_eq!(
        client.push_blob(&to, digest, size, &source, |_| {}).await.unwrap(),
        PushOutcome::AlreadyThere
    );

    let manifest = Image::new("amd64").manifest;
    let pushed = client.push_manifest(&to, media_type::OCI_MANIFEST, manifest.clone()).await.unwrap();
    assert_eq!(pushed, Digest::of(&manifest));
    assert_eq!(stored.lock().unwrap().manifests["1"], manifest);
    assert_eq!(fake.seen().last().unwrap().header("content-type"), media_type::OCI_MANIFEST);
    let by_digest: Reference = format!("{}/app@{}", fake.host, Digest::of(b"x")).parse().unwrap();
    let error = client.push_manifest(&by_digest, media_type::OCI_MANIFEST, manifest).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn an_empty_blob_can_be_pushed() {
    let stored = Arc::new(Mutex::new(Stored::default()));
    let fake = storing(stored.clone()).await;
    let source = BytesSource(Bytes::new());
    let to = reference(&fake.host, "app:1");
    client().push_blob(&to, Digest::of(b""), 0, &source, |_| {}).await.unwrap();
    assert_eq!(stored.lock().unwrap().blobs[&Digest::of(b"").to_string()], b"");
}

#[tokio::test]
async fn a_broken_upload_starts_over_when_the_session_is_gone() {
    let stored = Arc::new(Mutex::new(Stored { hang_up_after: Some(1000), ..Stored::default() }));
    let fake = storing(stored.clone()).await;
    let bytes = blob();
    let source = BytesSource(bytes.clone().into());
    let to = reference(&fake.host, "app:1");
    client().push_blob(&to, Digest::of(&bytes), bytes.len() as u64, &source, |_| {}).await.unwrap();
    assert_eq!(stored.lock().unwrap().blobs[&Digest::of(&bytes).to_string()], bytes);
    assert_eq!(fake.lines().iter().filter(|line| line.starts_with("POST")).count(), 2);
}

#[tokio::test]
async fn a_broken_upload_is_resumed_where_the_registry_stands() {
    let kept = Stored { hang_up_after: Some(1000), keeps_sessions: true, ..Stored::default() };
    let stored = Arc::new(Mutex::new(kept));
    let fake = storing(stored.clone()).await;
    let mut bytes = blob();
    // The fake stands for the bytes it kept with zeros.
    bytes[..1000].fill(0);
    let source = BytesSource(bytes.clone().into());
    let to = reference(&fake.host, "app:1");
    client().push_blob(&to, Digest::of(&bytes), bytes.len() as u64, &source, |_| {}).await.unwrap();
    assert_eq!(stored.lock().unwrap().blobs[&Digest::of(&bytes).to_string()], bytes);
    let lines = fake.lines();
    assert_eq!(lines.iter().filter(|line| line.starts_with("POST")).count(), 1, "{lines:?}");
    assert_eq!(lines.iter().filter(|line| line.starts_with("PATCH")).count(), 1, "{lines:?}");
}

#[tokio::test]
async fn a_blob_that_is_not_its_digest_never_arrives_whole() {
    let stored = Arc::new(Mutex::new(Stored::default()));
    let fake = storing(stored.clone()).await;
    let bytes = blob();
    let (client, to, size) = (client(), reference(&fake.host, "app:1"), bytes.len() as u64);
    let source = BytesSource(bytes.into());
    let error = client.push_blob(&to, Digest::of(b"other"), size, &source, |_| {}).await.unwrap_err();
    assert!(matches!(error, RegistryError::DigestMismatch { .. }), "{error:?}");
    let error = client.push_blob(&to, Digest::of(b"other"), size + 1, &source, |_| {}).await.unwrap_err();
    assert!(matches!(error, RegistryError::SizeMismatch { .. }), "{error:?}");
    let gone = FileSource("/nonexistent/blob".into());
    let error = client.push_blob(&to, Digest::of(b"other"), 1, &gone, |_| {}).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Local);
    assert!(stored.lock().unwrap().blobs.is_empty());
}

/// R15: whatever a registry says to a mount.
#[tokio::test]
async fn mounting_is_only_a_saving() {
    let fake = storing(Arc::default()).await;
    let (client, to, digest) = (client(), reference(&fake.host, "app:1"), Digest::of(b"x"));
    assert!(client.mount_blob(&to, digest, "has").await.unwrap());
    assert!(!client.mount_blob(&to, digest, "hasnot").await.unwrap());
    assert!(!client.mount_blob(&to, digest, "forbidden").await.unwrap());
    assert!(!client.mount_blob(&to, digest, "in valid&scope=x").await.unwrap());
    assert_eq!(fake.lines()[0], format!("POST /v2/app/blobs/uploads/?mount={digest}&from=has"));
}

/// R14: another digest than ours.
#[tokio::test]
async fn a_registry_that_stores_something_else_is_caught() {
    let fake = Fake::start(|request| match request.method.as_str() {
        "PUT" => reply(201).header("Docker-Content-Digest", Digest::of(b"else").to_string()),
        _ => reply(200),
    })
    .await;
    let to = reference(&fake.host, "app:1");
    let error = client().push_manifest(&to, media_type::OCI_MANIFEST, b"{}".to_vec()).await.unwrap_err();
    assert!(
        matches!(error, RegistryError::Protocol { violation: Violation::StoredDigest { .. }, .. }),
        "{error:?}"
    );
}

/// `HEAD` of a blob that is there from the second question on: asked before an upload and after it.
fn there_after(asked: &AtomicBool) -> Reply {
    reply(if asked.swap(true, Ordering::Relaxed) { 200 } else { 404 })
}

/// R10: storage elsewhere.
#[tokio::test]
async fn uploads_sent_elsewhere_go_without_credentials() {
    let bytes = blob();
    let storage = Fake::start(|_| reply(201)).await;
    let address = format!("http://{}/bucket?signature=s", storage.host);
    let asked = AtomicBool::new(false);
    let fake = Fake::start(move |request| match request.method.as_str() {
        _ if request.header("authorization").is_empty() => reply(401).header("WWW-Authenticate", "Basic"),
        "HEAD" => there_after(&asked),
        _ => reply(202).header("Location", address.clone()),
    })
    .await;
    let text = format!(r#"{{"auths":{{"{}":{{"auth":"dTpw"}}}}}}"#, fake.host);
    let client = Client::new(Settings { docker_auth_config: Some(text), ..settings() }).unwrap();
    let source = BytesSource(bytes.clone().into());
    let to = reference(&fake.host, "app");
    client.push_blob(&to, Digest::of(&bytes), bytes.len() as u64, &source, |_| {}).await.unwrap();
    let seen = storage.seen();
    assert_eq!(seen.len(), 1);
    assert!(seen[0].path.starts_with("/bucket?signature=s&digest=sha256"), "{}", seen[0].path);
    assert_eq!((seen[0].header("authorization"), seen[0].body.len()), ("", bytes.len()));
}

/// R5: in the middle of a push.
#[tokio::test]
async fn a_token_that_expires_during_an_upload_is_renewed() {
    let (bytes, asked) = (blob(), AtomicBool::new(false));
    let fake = Fake::start(move |request| match request.method.as_str() {
        "HEAD" => there_after(&asked),
        "POST" => reply(202).header("Location", "/v2/app/blobs/uploads/1"),
        "PUT" if request.header("authorization").is_empty() => reply(401).header("WWW-Authenticate", "Basic"),
        "PUT" => reply(201),
        _ => reply(404),
    })
    .await;
    let text = format!(r#"{{"auths":{{"{}":{{"auth":"dTpw"}}}}}}"#, fake.host);
    let client = Client::new(Settings { docker_auth_config: Some(text), ..settings() }).unwrap();
    let source = BytesSource(bytes.clone().into());
    let to = reference(&fake.host, "app");
    client.push_blob(&to, Digest::of(&bytes), bytes.len() as u64, &source, |_| {}).await.unwrap();
    let puts = fake.seen().iter().filter(|request| request.method == "PUT").count();
    assert_eq!(puts, 2);
}

#[tokio::test]
async fn an_upload_nobody_answers_ends_at_its_deadline() {
    let asked = AtomicBool::new(false);
    let fake = Fake::start(move |request| match request.method.as_str() {
        "HEAD" => there_after(&asked),
        "GET" => reply(404),
        "POST" => reply(202).header("Location", "/v2/app/blobs/uploads/1"),
        _ => reply(201).body("x").header("X-Never", "sent").stall(0),
    })
    .await;
    let mut settings = settings();
    settings.deadlines.commit = Duration::from_millis(50);
    settings.deadlines.first_byte = Duration::from_millis(200);
    let client = Client::new(settings).unwrap();
    let to = reference(&fake.host, "app");
    // The head of the answer comes, so the upload itself counts as done.
    let source = BytesSource(Bytes::from_static(b"abc"));
    client.push_blob(&to, Digest::of(b"abc"), 3, &source, |_| {}).await.unwrap();

    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/upload", silent.local_addr().unwrap());
    let fake = Fake::start(move |request| match request.method.as_str() {
        "HEAD" | "GET" => reply(404),
        _ => reply(202).header("Location", address.clone()),
    })
    .await;
    let to = reference(&fake.host, "app");
    let error = client.push_blob(&to, Digest::of(b"abc"), 3, &source, |_| {}).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unreachable { reason: crate::Reason::Timeout, .. }), "{error:?}");
}
