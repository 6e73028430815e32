//! Manifests and indexes: reading untrusted bytes, choosing a platform.

use oci_spec::image;
use serde::Deserialize as _;

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
    /// Docker layer, plain tar.
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    /// Docker layer, gzip.
    pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

    /// Docker layer, zstd.
    pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";

    /// True for the types of manifests and indexes.
    pub fn is_document(kind: &str) -> bool {
        matches!(kind, OCI_MANIFEST | OCI_INDEX | DOCKER_MANIFEST | DOCKER_LIST)
    }
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

/// What tells documents apart: read by itself, as a tree of all values takes many times what the document does.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u64>,
    media_type: Option<String>,
    #[serde(default, deserialize_with = "there")]
    manifests: bool,
    #[serde(default, deserialize_with = "there")]
    layers: bool,
    #[serde(default, deserialize_with = "there")]
    config: bool,
    #[serde(default, deserialize_with = "there")]
    fs_layers: bool,
}

fn there<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    serde::de::IgnoredAny::deserialize(deserializer).map(|_| true)
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
        let shape: Shape = serde_json::from_slice(bytes)?;
        let is_index = match (shape.manifests, shape.layers || shape.config || shape.fs_layers) {
            (true, false) => true,
            (false, true) => false,
            (true, true) => {
                return Err(DocumentError::Ambiguous("it has both `manifests` and `layers`".into()));
            }
            (false, false) => {
                return Err(DocumentError::Ambiguous("it has neither `manifests` nor `layers`".into()));
            }
        };
        if shape.schema_version != Some(2) {
            return Err(DocumentError::Ambiguous("its `schemaVersion` is not 2".into()));
        }
        let kinds = [shape.media_type.as_deref(), content_type];
        if let [Some(stated), Some(sent)] = kinds
            && stated != sent
            && [stated, sent].iter().all(|kind| media_type::is_document(kind))
        {
            return Err(DocumentError::Ambiguous(format!("it says `{stated}` and was sent as `{sent}`")));
        }
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
            Self::Index(Box::new(serde_json::from_slice(bytes)?))
        } else {
            Self::Manifest(Box::new(serde_json::from_slice::<image::ImageManifest>(bytes)?))
        })
    }

    /// Chooses the entry of `index` for `wanted`, as [`Platform::choose`] does. Attestations (`unknown/unknown`) are
    /// never chosen.
    pub fn choose<'a>(index: &'a Index, wanted: &Platform) -> Option<&'a Descriptor> {
        let stated = index.manifests().iter().filter_map(|entry| Some((Self::platform(entry)?, entry)));
        Platform::choose(stated, wanted).map(|(_, entry)| entry)
    }

    /// True for an entry of an index that states to be an index itself.
    pub fn is_index(entry: &Descriptor) -> bool {
        matches!(entry.media_type().as_ref(), media_type::OCI_INDEX | media_type::DOCKER_LIST)
    }

    /// The platform that an entry of an index states.
    pub fn platform(entry: &Descriptor) -> Option<Platform> {
        let stated = entry.platform().as_ref()?;
        let (os, architecture) = (stated.os().to_string(), stated.architecture().to_string());
        Some(Platform::new(&os, &architecture, stated.variant().as_deref()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn parse(value: &serde_json::Value, content_type: Option<&str>) -> Result<Document, DocumentError> {
        Document::parse(&serde_json::to_vec(value).unwrap(), content_type)
    }

    fn manifest() -> serde_json::Value {
        let config = json!({"mediaType": media_type::OCI_CONFIG, "digest": Digest::of(b""), "size": 0});
        json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": []})
    }

    fn index(platforms: &[(&str, &str, Option<&str>)]) -> Index {
        let entries: Vec<_> = platforms
            .iter()
            .enumerate()
            .map(|(number, (os, architecture, variant))| {
                let mut platform = json!({"os": os, "architecture": architecture});
                if let Some(variant) = variant {
                    platform["variant"] = json!(variant);
                }
                json!({"mediaType": media_type::OCI_MANIFEST, "digest": Digest::of(b""), "size": number,
                    "platform": platform})
            })
            .collect();
        match parse(&json!({"schemaVersion": 2, "manifests": entries}), None) {
            Ok(Document::Index(index)) => *index,
            other => panic!("{other:?}"),
        }
    }

    /// The position of the entry chosen.
    fn choose(platforms: &[(&str, &str, Option<&str>)], wanted: &str) -> Option<u64> {
        Document::choose(&index(platforms), &wanted.parse().unwrap()).map(Descriptor::size)
    }

    #[test]
    fn manifests_and_indexes_are_told_apart_by_shape() {
        assert!(matches!(parse(&manifest(), Some(media_type::OCI_MANIFEST)), Ok(Document::Manifest(_))));
        assert!(matches!(parse(&manifest(), Some("text/plain")), Ok(Document::Manifest(_))));
        let index = json!({"schemaVersion": 2, "manifests": []});
        assert!(matches!(parse(&index, Some(media_type::DOCKER_LIST)), Ok(Document::Index(_))));
    }

    #[test]
    fn documents_that_can_be_read_two_ways_are_refused() {
        let mut both = manifest();
        both["manifests"] = json!([]);
        let mut old = manifest();
        old["schemaVersion"] = json!(1);
        let mut mislabelled = manifest();
        mislabelled["mediaType"] = json!(media_type::OCI_INDEX);
        for (value, content_type) in [
            (both, None),
            (old, None),
            (mislabelled, None),
            (manifest(), Some(media_type::OCI_INDEX)),
            (manifest(), Some(media_type::DOCKER_MANIFEST)),
            (json!({"schemaVersion": 2}), None),
            (json!({"schemaVersion": 1, "fsLayers": []}), None),
        ] {
            let result = parse(&value, content_type);
            assert!(
                matches!(result, Err(DocumentError::Ambiguous(_))),
                "{value} {content_type:?}: {result:?}"
            );
        }
    }

    #[test]
    fn large_deep_and_broken_documents_are_refused() {
        let large = vec![b' '; Document::BYTES_MAX + 1];
        assert!(matches!(Document::parse(&large, None), Err(DocumentError::TooLarge { .. })));
        assert!(matches!(Document::parse(b"[]", None), Err(DocumentError::Json(_))));
        let deep = "[".repeat(100_000);
        assert!(matches!(Document::parse(deep.as_bytes(), None), Err(DocumentError::Json(_))));
        let mut hostile = manifest();
        hostile["config"]["digest"] = json!("sha256:../../etc/passwd");
        assert!(matches!(parse(&hostile, None), Err(DocumentError::Json(_))));
        hostile["config"]["digest"] = json!(Digest::of(b""));
        hostile["config"]["size"] = json!(-1);
        assert!(matches!(parse(&hostile, None), Err(DocumentError::Json(_))));
    }

    #[test]
    fn the_best_fitting_platform_is_chosen_and_attestations_never() {
        let all = [
            ("unknown", "unknown", None),
            ("linux", "arm", Some("v5")),
            ("linux", "arm", Some("v6")),
            ("linux", "amd64", Some("v3")),
            ("linux", "amd64", None),
            ("linux", "arm64", Some("v8")),
            ("linux", "amd64", None),
        ];
        assert_eq!(choose(&all, "linux/amd64"), Some(4));
        assert_eq!(choose(&all, "linux/amd64/v3"), Some(3));
        assert_eq!(choose(&all, "linux/amd64/v4"), Some(3));
        assert_eq!(choose(&all, "linux/arm64"), Some(5));
        assert_eq!(choose(&all, "linux/arm/v7"), Some(2));
        assert_eq!(choose(&all, "linux/s390x"), None);
        assert_eq!(choose(&all[..1], "linux/amd64"), None);
        assert_eq!(choose(&[("linux", "amd64", Some("v3"))], "linux/amd64"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused_without_panic(bytes: Vec<u8>) {
            let _ = Document::parse(&bytes, None);
        }
    }
}
