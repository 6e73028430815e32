//! The smallest real image.

use rbuild_oci::{Digest, media_type};
use serde_json::{Value, json};

/// An image of one layer with one file.
#[derive(Debug, Clone)]
pub struct Image {
    /// An uncompressed tar.
    pub layer: Vec<u8>,
    /// The config's bytes.
    pub config: Vec<u8>,
    /// The manifest's bytes.
    pub manifest: Vec<u8>,
    /// The manifest's type.
    pub media_type: String,
}

/// `sha256:…` of bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

/// A descriptor of bytes.
#[must_use]
pub(super) fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()})
}

impl Image {
    /// An image whose file `/data` has this many bytes.
    #[must_use]
    pub fn of_size(bytes: usize) -> Self {
        let data: Vec<u8> = (0..bytes).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect();
        Self::with(&data, |_| {})
    }

    /// An image with this file, whose config a test may change.
    #[must_use]
    pub fn with(data: &[u8], change: impl FnOnce(&mut Value)) -> Self {
        Self::made_of(tar("data", data), change)
    }

    /// An image whose one file has this name in the archive.
    #[must_use]
    pub fn named(name: &str, data: &[u8]) -> Self {
        Self::made_of(tar(name, data), |_| {})
    }

    fn made_of(layer: Vec<u8>, change: impl FnOnce(&mut Value)) -> Self {
        let mut config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        });
        change(&mut config);
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": descriptor(media_type::OCI_CONFIG, &config),
            "layers": [descriptor(media_type::OCI_LAYER, &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        Self { layer, config, manifest, media_type: media_type::OCI_MANIFEST.to_owned() }
    }

    /// The manifest, changed.
    #[must_use]
    pub fn manifest_with(&self, change: impl FnOnce(&mut Value)) -> Vec<u8> {
        let mut manifest: Value = serde_json::from_slice(&self.manifest).unwrap_or_default();
        change(&mut manifest);
        manifest.to_string().into_bytes()
    }
}

/// A tar archive with one file and its end.
fn tar(name: &str, data: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", data.len()));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut archive = header.to_vec();
    archive.extend_from_slice(data);
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    archive
}
