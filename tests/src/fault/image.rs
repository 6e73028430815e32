//! The smallest real image.

use rbuild_oci::{Digest, media_type};
use serde_json::{Value, json};

use super::tar::{Member, archive};

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
        Self::made_of(archive(&[Member::file(b"data", data).bytes()]), change)
    }

    /// An image whose one file has this name in the archive.
    #[must_use]
    pub fn named(name: &str, data: &[u8]) -> Self {
        Self::made_of(archive(&[Member::file(name.as_bytes(), data).bytes()]), |_| {})
    }

    /// An image of this layer, whatever it is.
    #[must_use]
    pub fn of_layer(layer: Vec<u8>) -> Self {
        Self::made_of(layer, |_| {})
    }

    /// An image whose layer is stored in this form, of this media type; `plain` is what it should come to.
    #[must_use]
    pub fn of_blob(plain: &[u8], media_type: &str, blob: Vec<u8>) -> Self {
        let mut image = Self::of_layer(plain.to_vec());
        image.manifest =
            image.manifest_with(|manifest| manifest["layers"][0] = descriptor(media_type, &blob));
        image.layer = blob;
        image
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
