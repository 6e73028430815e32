//! The client against the real `docker-registry` server, judged by `skopeo`.
//!
//! Runs where these are installed and says so where they are not; `RBUILD_TEST_REQUIRE=docker-registry,skopeo` turns
//! skipping into failing.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rbuild_oci::{Digest, Platform, Reference, media_type};
use rbuild_registry::{BytesSource, Client, ErrorKind, PushOutcome, Settings};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// `hunter2` for `user`, hashed with bcrypt at its lowest cost.
const HTPASSWD: &str = "user:$2y$04$abcdefghijklmnopqrstuuV3duMsC0HpUex6N9qapiuOHHWkwRXVm\n";

struct Server {
    child: Child,
    host: String,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// True when the program is there; otherwise says what is skipped, or fails when it is required.
fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    let required = std::env::var("RBUILD_TEST_REQUIRE").unwrap_or_default();
    assert!(found || !required.split(',').any(|name| name == program), "{program} is required");
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

impl Server {
    /// Starts a server with extra configuration; `@DIR@` there stands for its directory.
    fn start(extra: &str, prepare: impl FnOnce(&Path)) -> Option<Self> {
        if !installed("docker-registry") {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path());
        let host = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: @DIR@/data}}}}\n\
             http:\n  addr: {host}\n{extra}\n"
        )
        .replace("@DIR@", &dir.path().display().to_string());
        std::fs::write(dir.path().join("config.yml"), config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.path().join("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { child, host, _dir: dir };
        let started = Instant::now();
        while std::net::TcpStream::connect(&server.host).is_err() {
            assert!(started.elapsed() < Duration::from_secs(20), "the registry does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(server)
    }

    fn reference(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.host).parse().unwrap()
    }
}

/// Pushes an image of one layer and pulls it again.
async fn round_trip(client: &Client, to: &Reference) {
    let layer: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/x"]},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer)]}});
    let config = serde_json::to_vec(&config).unwrap();
    let descriptor = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": Digest::of(bytes), "size": bytes.len()});
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": descriptor(media_type::OCI_CONFIG, &config),
        "layers": [descriptor(media_type::OCI_LAYER, &layer)]});
    let manifest = serde_json::to_vec(&manifest).unwrap();

    client.push_permission(to).await.unwrap();
    for blob in [&layer, &config] {
        let (digest, size) = (Digest::of(blob), blob.len() as u64);
        assert!(!client.has_blob(to, digest).await.unwrap());
        let source = BytesSource(blob.clone().into());
        assert_eq!(client.push_blob(to, digest, size, &source, |_| {}).await.unwrap(), PushOutcome::Uploaded);
        assert_eq!(
            client.push_blob(to, digest, size, &source, |_| {}).await.unwrap(),
            PushOutcome::AlreadyThere
        );
    }
    let digest = client.push_manifest(to, media_type::OCI_MANIFEST, manifest.clone()).await.unwrap();
    assert_eq!(digest, Digest::of(&manifest));

    let platform: Platform = "linux/amd64".parse().unwrap();
    for reference in [to.clone(), to.at_digest(digest)] {
        let found = client.resolve(&reference, &platform).await.unwrap();
        assert_eq!((found.manifest_bytes, found.config_bytes), (manifest.clone(), config.clone()));
    }
    let mut stream = client.blob(to, Digest::of(&layer), layer.len() as u64, |_| {}).await.unwrap();
    let mut pulled = Vec::new();
    while let Some(chunk) = stream.chunk().await.unwrap() {
        pulled.extend_from_slice(&chunk);
    }
    assert_eq!(pulled, layer);

    let other: Reference = format!("{}/other:1", to.domain()).parse().unwrap();
    assert!(client.mount_blob(&other, Digest::of(&layer), to.repository()).await.unwrap());
    assert!(client.has_blob(&other, Digest::of(&layer)).await.unwrap());
    assert!(!client.mount_blob(&other, Digest::of(b"nowhere"), to.repository()).await.unwrap());
    let missing: Reference = format!("{}/app:missing", to.domain()).parse().unwrap();
    let error = client.resolve(&missing, &platform).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("MANIFEST_UNKNOWN: manifest unknown"), "{error}");
}

#[tokio::test]
async fn an_image_pushed_is_the_image_pulled_and_skopeo_agrees() {
    let Some(server) = Server::start("", |_| {}) else { return };
    let to = server.reference("app:1.0");
    round_trip(&Client::new(Settings::default()).unwrap(), &to).await;
    if !installed("skopeo") {
        return;
    }
    let output = Command::new("skopeo")
        .args(["inspect", "--tls-verify=false", &format!("docker://{to}")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let seen: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&seen["Architecture"], seen["Layers"].as_array().unwrap().len()), (&json!("amd64"), 1));
}

#[tokio::test]
async fn passwords_open_a_registry_that_asks_for_them() {
    let extra = "auth: {htpasswd: {realm: test, path: @DIR@/htpasswd}}";
    let Some(server) = Server::start(extra, |dir| std::fs::write(dir.join("htpasswd"), HTPASSWD).unwrap())
    else {
        return;
    };
    let to = server.reference("app:1.0");
    let error = Client::new(Settings::default()).unwrap().push_permission(&to).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
    let config = format!(r#"{{"auths":{{"{}":{{"auth":"dXNlcjpodW50ZXIy"}}}}}}"#, server.host);
    let settings = Settings { docker_auth_config: Some(config), ..Settings::default() };
    round_trip(&Client::new(settings).unwrap(), &to).await;
}

#[tokio::test]
async fn a_loopback_registry_with_tls_is_found_to_speak_it() {
    if !installed("openssl") {
        return;
    }
    let extra = "  tls: {certificate: @DIR@/cert.pem, key: @DIR@/key.pem}";
    let certificate = |dir: &Path| {
        let status = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
            .args(["-keyout", "key.pem", "-out", "cert.pem"])
            .current_dir(dir)
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
    };
    let Some(server) = Server::start(extra, certificate) else { return };
    round_trip(&Client::new(Settings::default()).unwrap(), &server.reference("app:1.0")).await;
}

/// Forwards to `server`, cutting each of the first `cuts` connections that carry more than `limit` bytes one way.
async fn breaking_proxy(server: String, limit: u64, cuts: usize) -> (String, Arc<AtomicU64>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let (left, carried) = (Arc::new(AtomicUsize::new(cuts)), Arc::new(AtomicU64::new(0)));
    let total = carried.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let upstream = tokio::net::TcpStream::connect(&server).await.unwrap();
            let ((client_read, client_write), (server_read, server_write)) =
                (client.into_split(), upstream.into_split());
            let (left, total) = (left.clone(), total.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = forward(client_read, server_write, limit, &left, &total) => {}
                    () = forward(server_read, client_write, limit, &left, &total) => {}
                }
            });
        }
    });
    (host, carried)
}

/// Returns, and so closes, when either side does or when it is time to cut.
async fn forward(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    limit: u64,
    left: &AtomicUsize,
    total: &AtomicU64,
) {
    let (mut buffer, mut carried) = (vec![0; 64 << 10], 0);
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
        carried += read as u64;
        total.fetch_add(read as u64, Ordering::Relaxed);
        let take = |left: usize| left.checked_sub(1);
        if carried > limit && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
            return;
        }
    }
}

#[tokio::test]
async fn transfers_survive_connections_that_break() {
    let Some(server) = Server::start("", |_| {}) else { return };
    // The layer has 12 MB: its upload breaks twice, then its download.
    let (host, carried) = breaking_proxy(server.host.clone(), 5_000_000, 3).await;
    let to: Reference = format!("{host}/app:1.0").parse().unwrap();
    round_trip(&Client::new(Settings::default()).unwrap(), &to).await;
    eprintln!("carried {} bytes", carried.load(Ordering::Relaxed));
}
