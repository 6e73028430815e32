//! Blobs pushed while they are made, and in chunks.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::fake::{Fake, Reply, Request, reply};
use super::*;
use crate::limits::CHUNK_BYTES;
use crate::{BlobBody, BlobSource, BytesSource, ErrorKind, GrowingBlob, PushOutcome};

/// A registry that takes uploads piece by piece.
#[derive(Default)]
struct Taking {
    blobs: BTreeMap<String, Vec<u8>>,
    session: Vec<u8>,
    /// Sizes of the pieces that came.
    pieces: Vec<usize>,
    chunk_min: u64,
    /// The first piece's connection breaks after so many bytes of this blob; with the flag the session keeps them.
    breaks_after: Option<(usize, Vec<u8>, bool)>,
    /// Keeps only half of each chunk the first time.
    keeps_half: bool,
    refuses_pieces: u16,
    body_max: usize,
}

async fn taking(state: Arc<Mutex<Taking>>) -> Fake {
    Fake::start(move |request| serve(&mut state.lock().unwrap(), request)).await
}

fn serve(state: &mut Taking, request: &Request) -> Reply {
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let length: usize = request.header("content-length").parse().unwrap_or(0);
    let body_is_to_come = request.body.is_empty() && (request.is_chunked() || length > 0);
    if body_is_to_come {
        if request.method == "PATCH"
            && let Some((bytes, blob, keeps)) = state.breaks_after.take()
        {
            state.session.extend_from_slice(&blob[..if keeps { bytes } else { 0 }]);
            return Reply::hang_up_after(bytes);
        }
        return reply(202);
    }
    let range = |state: &Taking| format!("0-{}", state.session.len().saturating_sub(1));
    // A new address each time, relative, with a query of its own.
    let next = |state: &Taking| format!("/v2/app/blobs/uploads/{}?_state=a%2Bb", state.pieces.len());
    match request.method.as_str() {
        "HEAD" => reply(if state.blobs.contains_key(path.rsplit('/').next().unwrap()) { 200 } else { 404 }),
        "POST" => {
            state.session.clear();
            reply(202)
                .header("Location", next(state))
                .header("OCI-Chunk-Min-Length", state.chunk_min.to_string())
        }
        "PATCH" if state.refuses_pieces > 0 => reply(state.refuses_pieces),
        "PATCH" => {
            assert!(query.contains("_state=a%2Bb"), "{query}");
            let begin = request.header("content-range").split('-').next().unwrap().parse::<usize>();
            assert_eq!(begin.is_err(), request.is_chunked(), "{request:?}");
            if begin.is_ok_and(|begin| begin != state.session.len()) {
                return reply(416).header("Range", range(state));
            }
            let taken = request.body.len() / if state.keeps_half { 2 } else { 1 };
            state.keeps_half = false;
            state.session.extend_from_slice(&request.body[..taken]);
            state.pieces.push(request.body.len());
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

/// A blob of which a test says how much is made.
#[derive(Clone)]
struct Growing {
    bytes: Bytes,
    made: watch::Receiver<usize>,
}

impl Growing {
    fn new(bytes: &[u8]) -> (watch::Sender<usize>, Self) {
        let (sender, made) = watch::channel(0);
        (sender, Self { bytes: Bytes::copy_from_slice(bytes), made })
    }

    fn whole(bytes: &[u8]) -> Self {
        Self { bytes: Bytes::copy_from_slice(bytes), made: watch::channel(bytes.len()).1 }
    }
}

impl GrowingBlob for Growing {
    /// In odd pieces.
    fn open(&self, offset: u64) -> BlobBody {
        let state = (self.clone(), offset as usize);
        futures_util::stream::try_unfold(state, |(mut blob, at)| async move {
            if at == blob.bytes.len() {
                return Ok(None);
            }
            let made = *blob.made.wait_for(|made| *made > at).await.map_err(io::Error::other)?;
            let piece = blob.bytes.slice(at..made.min(at + 300_001));
            let next = at + piece.len();
            Ok(Some((piece, (blob, next))))
        })
        .boxed()
    }

    fn name(&self) -> BoxFuture<'_, io::Result<(Digest, u64)>> {
        Box::pin(async {
            let size = self.bytes.len();
            self.made.clone().wait_for(|made| *made == size).await.map_err(io::Error::other)?;
            Ok((Digest::of(&self.bytes), size as u64))
        })
    }
}

#[tokio::test]
async fn a_blob_is_sent_while_it_is_made_and_named_at_its_end() {
    let state = Arc::new(Mutex::new(Taking::default()));
    let fake = taking(state.clone()).await;
    let (client, to, bytes) = (client(), reference(&fake.host, "app:1"), bytes(1_000_000));
    let (made, blob) = Growing::new(&bytes);
    let (sent, mut seen) = watch::channel(0);
    let pushing = async {
        let report = move |bytes| {
            sent.send_replace(bytes);
        };
        client.push_growing_blob(&to, &blob, report).await.unwrap()
    };
    // The second half is made when the first has been sent.
    let making = async {
        made.send_replace(500_000);
        seen.wait_for(|sent| *sent == 500_000).await.unwrap();
        made.send_replace(1_000_000);
    };
    let (outcome, ()) = tokio::join!(pushing, making);
    assert_eq!(outcome, PushOutcome::Uploaded);
    assert!(client.has_blob(&to, Digest::of(&bytes)).await.unwrap());
    let state = state.lock().unwrap();
    assert!(state.blobs[&Digest::of(&bytes).to_string()] == bytes);
    assert_eq!(state.pieces, [1_000_000], "one request");
}

#[tokio::test]
async fn a_stream_and_a_push_of_the_same_blob_do_not_wait_for_each_other() {
    let fake = taking(Arc::default()).await;
    let client = Client::new(Settings { transfers_per_host: 1, ..settings() }).unwrap();
    let (to, other, bytes) = (reference(&fake.host, "app:1"), reference(&fake.host, "other:1"), bytes(1000));
    let (made, blob) = Growing::new(&bytes);
    let streaming = async { client.push_growing_blob(&to, &blob, |_| ()).await.map(drop) };
    let pushing = async {
        // The stream has the only transfer, and the push the blob's place, when the blob's name is known.
        while !fake.lines().iter().any(|line| line.starts_with("POST")) {
            tokio::task::yield_now().await;
        }
        let source = BytesSource(Bytes::from(bytes.clone()));
        client.push_blob(&other, Digest::of(&bytes), 1000, &source, |_| ()).await.map(drop)
    };
    let making = async {
        while !fake.lines().iter().any(|line| line.starts_with("HEAD")) {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        made.send_replace(1000);
    };
    let all = async { tokio::join!(streaming, pushing, making) };
    let (streamed, pushed, ()) = tokio::time::timeout(Duration::from_secs(20), all).await.unwrap();
    streamed.unwrap();
    pushed.unwrap();
}

/// R12, R13: breaks with and without memory, shorter ranges, a new address each time.
#[tokio::test]
async fn a_broken_stream_goes_on_from_where_it_got() {
    let bytes = bytes(3_000_000);
    for (breaks_after, keeps_half) in
        [(None, true), (Some(true), false), (Some(false), false), (Some(true), true)]
    {
        for is_whole in [true, false] {
            let breaks_after = breaks_after.map(|keeps| (1_234_567, bytes.clone(), keeps));
            let state = Taking { breaks_after, keeps_half, ..Taking::default() };
            let state = Arc::new(Mutex::new(state));
            let fake = taking(state.clone()).await;
            let (client, to) = (client(), reference(&fake.host, "app:1"));
            let (made, growing) = Growing::new(&bytes);
            made.send_replace(2_999_999);
            let blob = if is_whole { Growing::whole(&bytes) } else { growing };
            // The last byte is made when all others were sent.
            let report = move |sent| {
                if sent >= 2_999_999 {
                    made.send_replace(3_000_000);
                }
            };
            let outcome = client.push_growing_blob(&to, &blob, report).await;
            assert_eq!(outcome.unwrap(), PushOutcome::Uploaded);
            assert!(state.lock().unwrap().blobs[&Digest::of(&bytes).to_string()] == bytes);
        }
    }
}

#[tokio::test]
async fn a_blob_that_turns_out_to_be_there_is_sent_no_further() {
    let bytes = bytes(1_000_000);
    let state = Arc::new(Mutex::new(Taking::default()));
    state.lock().unwrap().blobs.insert(Digest::of(&bytes).to_string(), bytes.clone());
    let inner = state.clone();
    // The upload itself gets no answer before its session was given up.
    let fake = Fake::start(move |request| match request.method.as_str() {
        "PATCH" => Reply::silent(),
        _ => serve(&mut inner.lock().unwrap(), request),
    })
    .await;
    let (client, to) = (client(), reference(&fake.host, "app:1"));
    let outcome = client.push_growing_blob(&to, &Growing::whole(&bytes), |_| {}).await.unwrap();
    assert_eq!(outcome, PushOutcome::AlreadyThere);
    assert!(
        fake.lines().iter().any(|line| line.starts_with("DELETE /v2/app/blobs/uploads/")),
        "{:?}",
        fake.lines()
    );
}

/// A blob that is never finished is none at the registry.
#[tokio::test]
async fn a_blob_that_ends_early_gets_no_name() {
    let state = Arc::new(Mutex::new(Taking::default()));
    let fake = taking(state.clone()).await;
    let (client, to, bytes) = (client(), reference(&fake.host, "app:1"), bytes(1_000_000));
    let (made, blob) = Growing::new(&bytes);
    made.send_replace(500_000);
    drop(made);
    let error = client.push_growing_blob(&to, &blob, |_| {}).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Local, "{error:?}");
    assert!(state.lock().unwrap().blobs.is_empty());
}

/// R13: `OCI-Chunk-Min-Length`; and no chunk is as large as what was refused, whatever a registry asks.
#[tokio::test]
async fn chunks_are_as_large_as_the_registry_asks() {
    for (chunk_min, expected) in [(9 << 20, vec![9 << 20, 9 << 20, 2 << 20]), (1 << 40, vec![])] {
        let state = Arc::new(Mutex::new(Taking { chunk_min, body_max: 1, ..Taking::default() }));
        let fake = taking(state.clone()).await;
        let (client, to, bytes) = (client(), reference(&fake.host, "app:1"), bytes(20 << 20));
        let (digest, source) = (Digest::of(&bytes), BytesSource(bytes.clone().into()));
        let pushed = client.push_blob(&to, digest, 20 << 20, &source, |_| {}).await;
        let state = state.lock().unwrap();
        assert_eq!(pushed.is_ok(), !expected.is_empty(), "{pushed:?}");
        assert_eq!(state.pieces, expected);
        assert!(pushed.is_err() || state.blobs[&digest.to_string()] == bytes);
    }
}

/// R13: no pieces at all, or none so large.
#[tokio::test]
async fn a_registry_that_wants_whole_blobs_says_so_once_and_gets_them() {
    for refuses_pieces in [405, 413] {
        let state = Arc::new(Mutex::new(Taking { refuses_pieces, ..Taking::default() }));
        let fake = taking(state.clone()).await;
        let (client, to, bytes) = (client(), reference(&fake.host, "app:1"), bytes(CHUNK_BYTES + 9));
        for _ in 0..2 {
            let error = client.push_growing_blob(&to, &Growing::whole(&bytes), |_| {}).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotStreamed, "{error:?}");
        }
        let patches = fake.lines().iter().filter(|line| line.starts_with("PATCH")).count();
        assert_eq!(patches, 1, "what it refused once it is not offered again");
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        let source = BytesSource(bytes.into());
        let outcome = client.push_blob(&to, digest, size, &source, |_| {}).await.unwrap();
        assert_eq!(outcome, PushOutcome::Uploaded);
    }
    let google: Reference = "europe-docker.pkg.dev/project/app:1".parse().unwrap();
    let error = client().push_growing_blob(&google, &Growing::whole(b"x"), |_| {}).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotStreamed);
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
    assert!(state.pieces.iter().all(|chunk| *chunk as u64 <= CHUNK_BYTES));
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

/// Bytes that count as held until they are dropped.
struct Held(Vec<u8>, Arc<AtomicUsize>);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.1.fetch_sub(self.0.len(), Ordering::Relaxed);
    }
}

/// A blob of which, from the second reading on, all but the first piece waits for a request to which it belongs.
struct Awaiting {
    bytes: Vec<u8>,
    held: Arc<AtomicUsize>,
    held_max: Arc<AtomicUsize>,
    readings: AtomicUsize,
    chunks: watch::Receiver<usize>,
}

impl BlobSource for Awaiting {
    fn open(&self) -> BoxFuture<'_, io::Result<BlobBody>> {
        const PIECE_BYTES: usize = 256 << 10;
        let is_in_chunks = self.readings.fetch_add(1, Ordering::Relaxed) > 0;
        let pieces: Vec<Vec<u8>> = self.bytes.chunks(PIECE_BYTES).map(<[u8]>::to_vec).collect();
        let (held, held_max, chunks) = (self.held.clone(), self.held_max.clone(), self.chunks.clone());
        let body = futures_util::stream::iter(pieces.into_iter().enumerate()).then(move |(at, piece)| {
            let (held, held_max, mut chunks) = (held.clone(), held_max.clone(), chunks.clone());
            async move {
                if is_in_chunks && at > 0 {
                    // All of these bytes are of the first chunk, or of the second.
                    let chunk = at * PIECE_BYTES / CHUNK_BYTES as usize;
                    chunks.wait_for(|seen| *seen > chunk).await.map_err(io::Error::other)?;
                }
                let now = held.fetch_add(piece.len(), Ordering::Relaxed) + piece.len();
                held_max.fetch_max(now, Ordering::Relaxed);
                Ok(Bytes::from_owner(Held(piece, held)))
            }
        });
        Box::pin(async move { Ok(body.boxed()) })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_are_sent_while_they_are_read_however_many_uploads_there_are() {
    const UPLOADS: usize = 6;
    let (seen, arrived): (Vec<_>, Vec<_>) = (0..UPLOADS).map(|_| watch::channel(0)).unzip();
    let sessions: Arc<Mutex<BTreeMap<String, Vec<u8>>>> = Arc::default();
    let stored = sessions.clone();
    let fake = Fake::start(move |request| {
        let path = request.path.split('?').next().unwrap().to_owned();
        let repository = path.split('/').nth(2).unwrap_or_default().to_owned();
        let length: usize = request.header("content-length").parse().unwrap_or(0);
        let mut sessions = stored.lock().unwrap();
        let taken = sessions.entry(repository.clone()).or_default();
        match request.method.as_str() {
            "HEAD" => reply(if taken.len() > CHUNK_BYTES as usize { 200 } else { 404 }),
            "POST" => reply(202).header("Location", format!("{path}1")),
            "GET" => reply(404),
            "PUT" if length > 0 => reply(413),
            "PUT" => reply(201),
            "PATCH" if request.body.is_empty() => {
                seen[repository.parse::<usize>().unwrap()].send_modify(|chunks| *chunks += 1);
                reply(202)
            }
            "PATCH" => {
                taken.extend_from_slice(&request.body);
                reply(202).header("Location", path).header("Range", format!("0-{}", taken.len() - 1))
            }
            _ => reply(200),
        }
    })
    .await;
    let (client, held, held_max) = (client(), Arc::default(), Arc::new(AtomicUsize::new(0)));
    let pushes = arrived.into_iter().enumerate().map(|(at, chunks)| {
        let (client, to) = (client.clone(), reference(&fake.host, &format!("{at}:1")));
        let (held, held_max, readings) = (Arc::clone(&held), held_max.clone(), AtomicUsize::new(0));
        let bytes = bytes(CHUNK_BYTES + 300_000 + at as u64);
        async move {
            let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
            let source = Awaiting { bytes, held, held_max, readings, chunks };
            client.push_blob(&to, digest, size, &source, |_| {}).await.map(|_| source.bytes)
        }
    });
    let pushed = futures_util::future::join_all(pushes);
    let pushed = tokio::time::timeout(Duration::from_secs(60), pushed).await.expect("a chunk is not sent");
    for (at, bytes) in pushed.into_iter().enumerate() {
        assert!(sessions.lock().unwrap()[&at.to_string()] == bytes.unwrap(), "{at}");
    }
    assert_eq!(held.load(Ordering::Relaxed), 0);
    let most = held_max.load(Ordering::Relaxed);
    assert!((1..UPLOADS << 20).contains(&most), "{most}");
}
