//! Manifests and indexes: reading untrusted bytes, choosing a platform.

use oci_spec::image;

use crate::{Digest, Platform};

pub use oci_spec::image::{Descriptor, ImageIndex as Index, ImageManifest as Manifest};

/// Media types, OCI and Docker.
pub mod media_type {
    /// OCI image manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI image config.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// OCI layer, plain tar.
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// OCI layer, gzip.
    pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// OCI layer, zstd.
    pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    /// Docker schema 2 manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker manifest list.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker image config.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// Docker layer, gzip.
    pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
}

/// A manifest or an index, told apart by shape and media type.
#[derive(Debug, Clone)]
pub enum Document {
    /// One image.
    Manifest(Box<Manifest>),
    /// A list of images.
    Index(Box<Index>),
}

/// A manifest's own descriptor beside its parsed form.
#[derive(Debug, Clone)]
pub struct ManifestDescriptor {
    /// Digest of the manifest bytes.
    pub digest: Digest,
    /// Length of the manifest bytes.
    pub size: u64,
    /// Media type.
    pub media_type: String,
}

/// Why bytes are not an acceptable manifest or index.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Larger than [`Document::BYTES_MAX`].
    #[error("manifest is {size} bytes, more than the limit of {} bytes", Document::BYTES_MAX)]
    TooLarge {
        /// Its size.
        size: usize,
    },
    /// Not JSON, or not of the expected shape.
    #[error("manifest is not valid JSON of its type")]
    Json(#[from] serde_json::Error),
    /// Has both `manifests` and `layers`/`config`, or neither, or its media type disagrees with its shape.
    #[error("manifest is ambiguous: {0}")]
    Ambiguous(String),
}

impl Document {
    /// Largest manifest or index accepted.
    pub const BYTES_MAX: usize = 4 << 20;

    /// Parses untrusted bytes. `content_type` is what the transport said, when it said anything.
    ///
    /// A document whose shape, `mediaType` field and `content_type` disagree is refused (CVE-2021-41190).
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, DocumentError> {
        if bytes.len() > Self::BYTES_MAX {
            return Err(DocumentError::TooLarge { size: bytes.len() });
        }
        let value: serde_json::Value = serde_json::from_slice(bytes)?;
        let has = |key: &str| value.get(key).is_some();
        let is_index = match (has("manifests"), has("layers") || has("config") || has("fsLayers")) {
            (true, false) => true,
            (false, true) => false,
            (true, true) => {
                return Err(DocumentError::Ambiguous("it has both `manifests` and `layers`".into()));
            }
            (false, false) => {
                return Err(DocumentError::Ambiguous("it has neither `manifests` nor `layers`".into()));
            }
        };
        if value.get("schemaVersion").and_then(serde_json::Value::as_u64) != Some(2) {
            return Err(DocumentError::Ambiguous("its `schemaVersion` is not 2".into()));
        }
        let kinds = [value.get("mediaType").and_then(|v| v.as_str()), content_type];
        for kind in kinds.into_iter().flatten() {
            let says_index = matches!(kind, media_type::OCI_INDEX | media_type::DOCKER_LIST);
            let says_manifest = matches!(kind, media_type::OCI_MANIFEST | media_type::DOCKER_MANIFEST);
            if (says_index && !is_index) || (says_manifest && is_index) {
                return Err(DocumentError::Ambiguous(format!(
                    "media type `{kind}` does not fit its content"
                )));
            }
        }
        Ok(if is_index {
            Self::Index(Box::new(serde_json::from_value(value)?))
        } else {
            Self::Manifest(Box::new(serde_json::from_value::<image::ImageManifest>(value)?))
        })
    }

    /// Chooses the entry of `index` for `wanted`: exact match first, then the first that satisfies it. Attestations
    /// (`unknown/unknown`) are never chosen.
    pub fn choose<'a>(index: &'a Index, wanted: &Platform) -> Option<&'a Descriptor> {
        let platform = |d: &Descriptor| {
            d.platform().as_ref().map(|p| {
                Platform::new(&p.os().to_string(), &p.architecture().to_string(), p.variant().as_deref())
            })
        };
        let candidates = || index.manifests().iter().filter_map(|d| platform(d).map(|p| (d, p)));
        candidates()
            .find(|(_, p)| p == wanted)
            .or_else(|| candidates().find(|(_, p)| p.satisfies(wanted)))
            .map(|(d, _)| d)
    }
}
