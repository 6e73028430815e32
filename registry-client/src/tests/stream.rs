//! Blobs pushed while they are made.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::fake::{Fake, Reply, Request, reply};
use super::*;
use crate::limits::CHUNK_BYTES;
use crate::{BytesSource, ErrorKind, PushOutcome, RegistryError};

/// A registry that takes chunks.
#[derive(Default)]
struct Taking {
    blobs: BTreeMap<String, Vec<u8>>,
    session: Vec<u8>,
    /// Sizes of the chunks that came.
    chunks: Vec<usize>,
    chunk_min: u64,
    /// Chunk (from 1) whose connection breaks in the middle.
    breaks_at: Option<usize>,
    /// Keeps only half of each chunk the first time.
    keeps_half: bool,
    refuses_chunks: bool,
    body_max: usize,
}

async fn taking(state: Arc<Mutex<Taking>>) -> Fake {
    Fake::start(move |request| serve(&mut state.lock().unwrap(), request)).await
}

fn serve(state: &mut Taking, request: &Request) -> Reply {
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let length: usize = request.header("content-length").parse().unwrap_or(0);
    if length > request.body.len() {
        if request.method == "PATCH" && state.breaks_at == Some(state.chunks.len() + 1) {
            state.breaks_at = None;
            return Reply::hang_up_after(length / 2);
        }
        return reply(202);
    }
    let range = |state: &Taking| format!("0-{}", state.session.len().saturating_sub(1));
    // A new address each time, relative, with a query of its own.
    let next = |state: &Taking| format!("/v2/app/blobs/uploads/{}?_state=a%2Bb", state.chunks.len());
    match request.method.as_str() {
        "HEAD" => reply(if state.blobs.contains_key(path.rsplit('/').next().unwrap()) { 200 } else { 404 }),
        "POST" => {
            state.session.clear();
            reply(202)
                .header("Location", next(state))
                .header("OCI-Chunk-Min-Length", state.chunk_min.to_string())
        }
        "PATCH" if state.refuses_chunks => reply(405),
        "PATCH" => {
            assert!(query.contains("_state=a%2Bb"), "{query}");
            let start = request.header("content-range").split('-').next().unwrap().parse::<usize>().unwrap();
            if start != state.session.len() {
                return reply(416).header("Range", range(state));
            }
            let body = if state.keeps_half { &request.body[..length / 2] } else { &request.body[..] };
            state.keeps_half = false;
            state.session.extend_from_slice(body);
            state.chunks.push(request.body.len());
            reply(202).header("Location", next(state)).header("Range", range(state))
        }
        "GET" => reply(204).header("Location", next(state)).header("Range", range(state)),
        "PUT" if state.body_max > 0 && length > state.body_max => reply(413),
        "PUT" => {
            let digest = query.split("digest=").nth(1).unwrap().replace("%3A", ":");
            let mut bytes = std::mem::take(&mut state.session);
            bytes.extend_from_slice(&request.body);
            state.blobs.insert(digest, bytes);
            reply(201)
        }
        "DELETE" => reply(204),
        _ => reply(200),
    }
}

fn bytes(length: u64) -> Vec<u8> {
    (0..length).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

/// Writes in odd pieces.
async fn stream(client: &Client, to: &Reference, bytes: &[u8]) -> Result<(Digest, u64), RegistryError> {
    let mut upload = client.start_upload(to, |_| {}).await?;
    for piece in bytes.chunks(300_001) {
        upload.write(Bytes::copy_from_slice(piece)).await?;
    }
    upload.finish().await
}

#[tokio::test]
async fn a_blob_is_pushed_while_it_is_made_and_named_at_its_end() {
    for length in [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES - 5] {
        let state = Arc::new(Mutex::new(Taking::default()));
        let fake = taking(state.clone()).await;
        let (client, to, bytes) = (client(), reference(&fake.host, "app:1"), bytes(length));
        let pushed = stream(&client, &to, &bytes).await.unwrap();
        assert_eq!(pushed, (Digest::of(&bytes), length));
        assert!(client.has_blob(&to, pushed.0).await.unwrap());
        let state = state.lock().unwrap();
        assert!(state.blobs[&pushed.0.to_string()] == bytes, "{length}");
        let chunks = if length > CHUNK_BYTES { length.div_ceil(CHUNK_BYTES) } else { 0 };
        assert_eq!(state.chunks.len() as u64, chunks, "a small blob goes in one piece");
    }
}

/// R12, R13: breaks, shorter ranges, 416, a new address each time.
#[tokio::test]
async fn a_broken_chunk_is_sent_again_from_where_it_got() {
    for (breaks_at, keeps_half) in [(Some(1), false), (Some(2), false), (None, true), (Some(2), true)] {
        let state = Taking { breaks_at, keeps_half, ..Taking::default() };
        let state = Arc::new(Mutex::new(state));
        let fake = taking(state.clone()).await;
        let (client, to, bytes) = (client(), reference(&fake.host, "app:1"), bytes(2 * CHUNK_BYTES + 77));
        let (digest, _) = stream(&client, &to, &bytes).await.unwrap();
        assert_eq!(digest, Digest::of(&bytes));
        assert!(state.lock().unwrap().blobs[&digest.to_string()] == bytes);
    }
}

/// R13: `OCI-Chunk-Min-Length`.
#[tokio::test]
async fn chunks_are_as_large_as_the_registry_asks() {
    let chunk_min = 9 << 20;
    let state = Arc::new(Mutex::new(Taking { chunk_min, ..Taking::default() }));
    let fake = taking(state.clone()).await;
    let (client, to, bytes) = (client(), reference(&fake.host, "app:1"), bytes(20 << 20));
    let (digest, _) = stream(&client, &to, &bytes).await.unwrap();
    let state = state.lock().unwrap();
    assert!(state.blobs[&digest.to_string()] == bytes);
    assert_eq!(state.chunks, [9 << 20, 9 << 20, 2 << 20]);
}

/// R13: chunks nobody can hold, and none at all.
#[tokio::test]
async fn a_registry_that_wants_whole_blobs_says_so_and_gets_them() {
    // 1 TB: nobody can hold such a chunk. 405: no chunks at all.
    for (chunk_min, refuses_chunks) in [(1 << 40, false), (0, true)] {
        let state = Arc::new(Mutex::new(Taking { chunk_min, refuses_chunks, ..Taking::default() }));
        let fake = taking(state.clone()).await;
        let (client, to, bytes) = (client(), reference(&fake.host, "app:1"), bytes(CHUNK_BYTES + 9));
        let error = stream(&client, &to, &bytes).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotStreamed, "{error:?}");
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        let source = BytesSource(bytes.into());
        let outcome = client.push_blob(&to, digest, size, &source, |_| {}).await.unwrap();
        assert_eq!(outcome, PushOutcome::Uploaded);
        assert!(state.lock().unwrap().chunks.is_empty());
    }
    let google: Reference = "europe-docker.pkg.dev/project/app:1".parse().unwrap();
    assert_eq!(client().start_upload(&google, |_| {}).await.unwrap_err().kind(), ErrorKind::NotStreamed);
}

#[tokio::test]
async fn a_proxy_that_refuses_large_bodies_gets_small_ones() {
    let state = Taking { body_max: 10 << 20, keeps_half: true, ..Taking::default() };
    let state = Arc::new(Mutex::new(state));
    let fake = taking(state.clone()).await;
    let (client, to, bytes) = (client(), reference(&fake.host, "app:1"), bytes(20 << 20));
    let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
    let source = BytesSource(bytes.clone().into());
    let outcome = client.push_blob(&to, digest, size, &source, |_| {}).await.unwrap();
    assert_eq!(outcome, PushOutcome::Uploaded);
    let state = state.lock().unwrap();
    assert!(state.blobs[&digest.to_string()] == bytes);
    assert!(state.chunks.iter().all(|chunk| *chunk as u64 <= CHUNK_BYTES));
}

#[tokio::test]
async fn two_repositories_of_one_registry_get_one_upload() {
    let state = Arc::new(Mutex::new(Taking::default()));
    let mounted = Arc::new(Mutex::new(false));
    let (inner, mounts) = (state.clone(), mounted.clone());
    let fake = Fake::start(move |request| {
        if request.method == "POST" && request.path.contains("mount=") {
            *mounts.lock().unwrap() = true;
            return reply(201);
        }
        serve(&mut inner.lock().unwrap(), request)
    })
    .await;
    let (client, bytes) = (client(), bytes(1000));
    let (digest, size, source) = (Digest::of(&bytes), 1000, BytesSource(bytes.into()));
    let (a, b, again) =
        (reference(&fake.host, "one:1"), reference(&fake.host, "two:1"), reference(&fake.host, "one:2"));
    let push = |to| client.push_blob(to, digest, size, &source, |_| {});
    let (first, second, third) = tokio::join!(push(&a), push(&b), push(&again));
    let mut outcomes = [first.unwrap(), second.unwrap(), third.unwrap()];
    outcomes.sort_by_key(|outcome| format!("{outcome:?}"));
    // The fake has one store for all repositories: who asks after the upload finds the blob there.
    assert_eq!(
        outcomes.iter().filter(|outcome| **outcome == PushOutcome::Uploaded).count(),
        1,
        "{outcomes:?}"
    );
    let posts = fake.lines().iter().filter(|line| line.ends_with("/blobs/uploads/")).count();
    assert_eq!(posts, 1);
}
