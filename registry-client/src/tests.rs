//! The client against scripted registries.

mod auth;
mod dial;
mod ecr;
mod fake;
mod fetch;
mod goaway;
mod lists;
mod pull;
mod push;
mod stream;

use std::time::Duration;

use rbuild_oci::{Digest, Platform, Reference, media_type};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;

use crate::{Client, Deadlines, ProxySetting, SetBy, Settings};

/// Settings that read nothing of this machine and never wait long.
fn settings() -> Settings {
    let deadlines = Deadlines {
        connect: Duration::from_secs(2),
        first_byte: Duration::from_secs(5),
        idle: Duration::from_secs(2),
        rate_window: Duration::from_secs(60),
        commit: Duration::from_secs(5),
        backoff: Duration::from_millis(5),
        retry_budget: Duration::from_secs(20),
    };
    Settings { deadlines, ..Settings::default() }
}

/// A proxy as a variable names it.
pub(crate) fn set_by_variable(address: &str, name: &str) -> ProxySetting {
    ProxySetting { address: address.to_owned(), set_by: SetBy::Variable(name.to_owned()) }
}

/// A server that answers every connection, and not in TLS; it runs until it is aborted.
pub(crate) async fn without_tls() -> (String, JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    (address, server)
}

fn client() -> Client {
    Client::new(settings()).unwrap()
}

fn reference(host: &str, rest: &str) -> Reference {
    format!("{host}/{rest}").parse().unwrap()
}

fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

/// An image with one layer: manifest, config and layer bytes.
struct Image {
    manifest: Vec<u8>,
    config: Vec<u8>,
    layer: Vec<u8>,
}

impl Image {
    fn new(architecture: &str) -> Self {
        let layer = format!("layer for {architecture}").repeat(1000).into_bytes();
        let config = json!({"architecture": architecture, "os": "linux", "config": {"Env": ["A=b"]},
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer)]}, "history": [], "x-own": 1});
        let config = serde_json::to_vec(&config).unwrap();
        let manifest = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
            "config": descriptor(media_type::OCI_CONFIG, &config),
            "layers": [descriptor(media_type::OCI_LAYER, &layer)]});
        Self { manifest: serde_json::to_vec(&manifest).unwrap(), config, layer }
    }

    /// The answer to a blob request, when the image has the blob.
    fn blob(&self, path: &str) -> Option<&[u8]> {
        [&self.config, &self.layer]
            .into_iter()
            .find(|bytes| path.ends_with(&format!("/blobs/{}", Digest::of(bytes))))
            .map(Vec::as_slice)
    }

    /// Serves the image as `tag` in any repository.
    fn serve(&self, request: &fake::Request, tag: &str) -> fake::Reply {
        let by_digest = format!("/manifests/{}", Digest::of(&self.manifest));
        if request.path.ends_with(&format!("/manifests/{tag}")) || request.path.ends_with(&by_digest) {
            return fake::reply(200)
                .header("Content-Type", media_type::OCI_MANIFEST)
                .body(self.manifest.clone());
        }
        match self.blob(&request.path) {
            Some(bytes) => fake::reply(200).body(bytes),
            None if request.path == "/v2/" => fake::reply(200),
            None => fake::reply(404)
                .body(r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#),
        }
    }
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": Digest::of(bytes), "size": bytes.len()})
}
