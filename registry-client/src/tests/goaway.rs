//! HTTP/2 servers that go away (`GOAWAY`) in the middle of a transfer, as load balancers do when they are replaced.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{Request, Response};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::*;
use crate::{BytesSource, PushOutcome};

/// Bytes that pass before the server goes.
const HALF: usize = 150_000;

/// A registry of one repository and one blob, which goes away once.
#[derive(Default)]
struct Leaving {
    blob: Vec<u8>,
    goes: AtomicBool,
    /// Some of the download has arrived.
    has_begun: Notify,
    connections: AtomicUsize,
    /// `METHOD range-or-content-range`, in their order.
    seen: Mutex<Vec<String>>,
    received: Mutex<Vec<u8>>,
}

type Link = Connection<TlsStream<TcpStream>, Bytes>;

impl Leaving {
    fn new(blob: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { blob, goes: AtomicBool::new(true), ..Self::default() })
    }

    /// Listens; gives the registry's name.
    async fn serve(self: Arc<Self>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let acceptor = TlsAcceptor::from(Arc::new(tls()));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (leaving, acceptor) = (Arc::clone(&self), acceptor.clone());
                tokio::spawn(async move {
                    // The first try on this machine is clear text.
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let Ok(link) = h2::server::handshake(stream).await else { return };
                    leaving.connections.fetch_add(1, Ordering::Relaxed);
                    leaving.connection(link).await;
                });
            }
        });
        host
    }

    async fn connection(self: Arc<Self>, mut link: Link) {
        let (leave, mut leaves) = tokio::sync::mpsc::channel(1);
        loop {
            tokio::select! {
                next = link.accept() => {
                    let Some(Ok((request, answer))) = next else { return };
                    let (leaving, leave) = (Arc::clone(&self), leave.clone());
                    tokio::spawn(async move {
                        if leaving.answer(request, answer).await {
                            let _ = leave.send(()).await;
                        }
                    });
                }
                _ = leaves.recv() => link.abrupt_shutdown(Reason::NO_ERROR),
            }
        }
    }

    /// True when the connection is to end.
    async fn answer(&self, request: Request<RecvStream>, mut answer: SendResponse<Bytes>) -> bool {
        let header = |name: &str| {
            request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
        let (range, placed) = (header("range"), header("content-range"));
        self.seen.lock().unwrap().push(format!("{method} {range}{placed}"));
        let reply = |status: u16| Response::builder().status(status);
        let received = || self.received.lock().unwrap().len();
        let response = match method.as_str() {
            "HEAD" => reply(if self.received.lock().unwrap().ends_with(&self.blob) { 200 } else { 404 }),
            "GET" if path.starts_with("/v2/app/blobs/sha256:") => {
                let from: usize =
                    range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap_or(0);
                let last = self.blob.len() - 1;
                let head = reply(if from > 0 { 206 } else { 200 })
                    .header("content-range", format!("bytes {from}-{last}/{}", self.blob.len()));
                let mut body = answer.send_response(head.body(()).unwrap(), false).unwrap();
                let goes = self.goes.swap(false, Ordering::Relaxed);
                let end = if goes { HALF } else { self.blob.len() };
                send(&mut body, self.blob[from..end].to_vec(), !goes).await;
                if goes {
                    self.has_begun.notified().await;
                }
                return goes;
            }
            "POST" => reply(202).header("location", "/v2/app/blobs/uploads/1"),
            "PATCH" | "PUT" => {
                let goes = self.goes.load(Ordering::Relaxed);
                let mut body = request.into_body();
                while let Some(Ok(bytes)) = body.data().await {
                    let _ = body.flow_control().release_capacity(bytes.len());
                    self.received.lock().unwrap().extend_from_slice(&bytes);
                    if goes && received() > HALF {
                        self.goes.store(false, Ordering::Relaxed);
                        return true;
                    }
                }
                let done = reply(if method == "PUT" { 201 } else { 202 });
                done.header("location", "/v2/app/blobs/uploads/1")
                    .header("range", format!("0-{}", received() - 1))
            }
            "GET" if path.contains("/uploads/") => {
                let done = reply(204).header("location", "/v2/app/blobs/uploads/1");
                done.header("range", format!("0-{}", received().saturating_sub(1)))
            }
            _ => reply(200),
        };
        let _ = answer.send_response(response.body(()).unwrap(), true);
        false
    }
}

/// Sends as the other side has room.
async fn send(body: &mut h2::SendStream<Bytes>, bytes: Vec<u8>, ends: bool) {
    let mut rest = Bytes::from(bytes);
    while !rest.is_empty() {
        body.reserve_capacity(rest.len());
        let Some(Ok(room)) = std::future::poll_fn(|cx| body.poll_capacity(cx)).await else { return };
        let piece = rest.split_to(room.min(rest.len()));
        let is_last = ends && rest.is_empty();
        if body.send_data(piece, is_last).is_err() {
            return;
        }
    }
}

/// A certificate that nobody has signed: registries on loopback are not asked for more.
fn tls() -> ServerConfig {
    let dir = tempfile::tempdir().unwrap();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"])
        .args(["-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(dir.path())
        .output()
        .expect("openssl is installed (tests/scripts/setup)");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let certificate = CertificateDer::from_pem_file(dir.path().join("cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.path().join("key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

fn content() -> Vec<u8> {
    (0..4 * HALF as u32).map(|number| (number % 251) as u8).collect()
}

#[tokio::test]
async fn a_download_goes_on_when_an_http_2_server_goes_away() {
    let blob = content();
    let leaving = Leaving::new(blob.clone());
    let host = Arc::clone(&leaving).serve().await;
    let client = client();
    let (image, digest) = (reference(&host, "app:1"), Digest::of(&blob));
    let mut stream = client.blob(&image, digest, blob.len() as u64, |_| {}).await.unwrap();
    let mut all = Vec::new();
    while let Some(chunk) = stream.chunk().await.unwrap() {
        all.extend_from_slice(&chunk);
        leaving.has_begun.notify_one();
    }
    assert!(all == blob);
    let seen = leaving.seen.lock().unwrap().clone();
    assert!(
        seen.iter().any(|line| line.starts_with("GET bytes=")),
        "what came is not asked for again: {seen:?}"
    );
    assert!(leaving.connections.load(Ordering::Relaxed) >= 2, "{seen:?}");
}

/// Those who wait to be unpacked wait for one who is being unpacked, and whose bytes come by the same connection.
#[tokio::test]
async fn streams_that_nobody_reads_leave_room_for_one_that_is_read() {
    let blob = content().repeat(7);
    let leaving = Leaving::new(blob.clone());
    leaving.goes.store(false, Ordering::Relaxed);
    let host = Arc::clone(&leaving).serve().await;
    let client = client();
    let (image, digest) = (reference(&host, "app:1"), Digest::of(&blob));
    let mut streams = Vec::new();
    for _ in 0..settings().transfers_per_host {
        let mut stream = client.blob(&image, digest, blob.len() as u64, |_| {}).await.unwrap();
        stream.chunk().await.unwrap();
        streams.push(stream);
    }
    let rest = async {
        while let Some(mut stream) = streams.pop() {
            while stream.chunk().await.unwrap().is_some() {}
        }
    };
    tokio::time::timeout(Duration::from_secs(20), rest).await.expect("the one that is read gets on");
    assert_eq!(leaving.connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn an_upload_goes_on_when_an_http_2_server_goes_away() {
    let blob = content();
    let leaving = Leaving::new(blob.clone());
    let host = Arc::clone(&leaving).serve().await;
    let source = BytesSource(blob.clone().into());
    let (image, digest) = (reference(&host, "app:1"), Digest::of(&blob));
    let outcome = client().push_blob(&image, digest, blob.len() as u64, &source, |_| {}).await;
    let seen = leaving.seen.lock().unwrap().clone();
    assert!(matches!(outcome, Ok(PushOutcome::Uploaded)), "{outcome:?} {seen:?}");
    let received = leaving.received.lock().unwrap();
    assert!(received.ends_with(&blob[blob.len() - HALF..]), "{seen:?}");
    assert!(leaving.connections.load(Ordering::Relaxed) >= 2, "{seen:?}");
}
