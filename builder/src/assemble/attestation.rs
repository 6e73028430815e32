//! Attestations of an image: in-toto statements, and the manifest that an index lists them in.
//!
//! ```text
//! index
//! ├── image manifest  linux/amd64
//! └── attestation manifest  unknown/unknown, annotated with the digest of the image manifest
//!     └── one layer per statement: subject = the image manifest, predicate = provenance, packages, …
//! ```
//!
//! BuildKit's layout (its `docs/attestations/attestation-storage.md`), in the form of an OCI artifact unless
//! `oci-artifact=false` asks for the older one, whose config looks like an image's.

use rbuild_oci::{Digest, Platform, Reference, canonical_json, media_type};
use serde::Serialize;
use serde_json::{Value, json};

use crate::assemble::manifest::{LayerBlob, PackedImage};
use crate::assemble::purl;

/// What a statement says it is.
pub const STATEMENT: &str = "https://in-toto.io/Statement/v1";
/// Media type of a statement.
pub const IN_TOTO: &str = "application/vnd.in-toto+json";
/// Annotation of a statement's descriptor with what it says.
pub const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";
/// Annotation of a descriptor that is about another entry of the index.
pub const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
/// Its value for attestations.
pub const ATTESTATION: &str = "attestation-manifest";
/// Annotation with the digest of that other entry.
pub const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";
/// Largest statement read.
pub const STATEMENT_BYTES_MAX: u64 = 32 << 20;
/// What the artifact is.
const ARTIFACT: &str = "application/vnd.docker.attestation.manifest.v1+json";
/// Config of an artifact that needs none.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// Something said about an image, whatever its digest will be.
#[derive(Debug, Clone)]
pub struct Predicate {
    /// What kind of thing is said, as a URI.
    pub kind: &'static str,
    /// What is said.
    pub value: Value,
    /// Where the blobs of layers go in it once they are known.
    pub layers: Option<LayerPlaces>,
    /// Said beside images only.
    pub inline_only: bool,
    /// Name of the file it goes to beside exported files.
    pub file_name: String,
}

/// The fields of a statement, in this order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Statement<S> {
    #[serde(rename = "_type")]
    declares: &'static str,
    predicate_type: &'static str,
    subject: S,
    predicate: Value,
}

/// Where a predicate lists the layers of the image.
#[derive(Debug, Clone)]
pub struct LayerPlaces {
    /// JSON pointer of an object.
    pub at: &'static str,
    /// For each layer of the image, base first, the key that it belongs to.
    pub keys: Vec<String>,
}

/// A blob in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
}

/// The attestations of one image, packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttestationManifest {
    /// The image manifest that they are about.
    pub subject: Digest,
    /// The manifest.
    pub manifest: Blob,
    /// Its config and statements.
    pub blobs: Vec<Blob>,
}

impl Blob {
    /// These bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { digest: Digest::of(&bytes), bytes }
    }
}

impl Predicate {
    /// The statement about `subjects`, a list of [`subject`]s.
    pub fn statement<S: Serialize>(&self, subjects: S, layers: &[LayerBlob]) -> impl Serialize {
        Statement {
            declares: STATEMENT,
            predicate_type: self.kind,
            subject: subjects,
            predicate: self.with_layers(layers),
        }
    }

    fn with_layers(&self, layers: &[LayerBlob]) -> Value {
        let mut value = self.value.clone();
        let Some(places) = &self.layers else { return value };
        let Some(map) = value.pointer_mut(places.at).and_then(Value::as_object_mut) else { return value };
        for (key, layer) in places.keys.iter().zip(layers) {
            let entry = map.entry(key.clone()).or_insert_with(|| json!([[]]));
            if let Some(list) = entry.pointer_mut("/0").and_then(Value::as_array_mut) {
                list.push(descriptor(&layer.media_type, layer.digest, layer.size));
            }
        }
        value
    }
}

impl AttestationManifest {
    /// Packs what is said about `image`, which has these names.
    pub fn of(image: &PackedImage, names: &[Reference], predicates: &[Predicate], form: Form) -> Self {
        let platform = &image.image.config.platform;
        let mut subjects: Vec<Value> =
            names.iter().map(|name| subject(&purl::image(name, Some(platform)), image.digest)).collect();
        if subjects.is_empty() {
            subjects.push(subject("_", image.digest));
        }
        let mut statements = Vec::with_capacity(predicates.len());
        let mut layers = Vec::with_capacity(predicates.len());
        for predicate in predicates {
            let blob = Blob::new(canonical_json(&predicate.statement(&subjects, &image.layers)));
            let mut layer = descriptor(IN_TOTO, blob.digest, blob.bytes.len() as u64);
            layer["annotations"] = json!({ PREDICATE_TYPE: predicate.kind });
            layers.push(layer);
            statements.push(blob);
        }
        let (config, config_type) = match form {
            Form::Artifact => (b"{}".to_vec(), EMPTY),
            Form::Image => {
                let diff_ids: Vec<Digest> = statements.iter().map(|blob| blob.digest).collect();
                let config = json!({
                    "architecture": "unknown",
                    "os": "unknown",
                    "config": {},
                    "rootfs": {"type": "layers", "diff_ids": diff_ids},
                });
                (canonical_json(&config), media_type::OCI_CONFIG)
            }
        };
        let config = Blob::new(config);
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": descriptor(config_type, config.digest, config.bytes.len() as u64),
            "layers": layers,
        });
        if form == Form::Artifact {
            manifest["artifactType"] = json!(ARTIFACT);
            manifest["subject"] = descriptor(&image.media_type, image.digest, image.manifest.len() as u64);
        }
        let manifest = Blob::new(canonical_json(&manifest));
        let blobs = std::iter::once(config).chain(statements).collect();
        Self { subject: image.digest, manifest, blobs }
    }

    /// All that has to be where the index is, the manifest last.
    pub fn all_blobs(&self) -> impl Iterator<Item = &Blob> {
        self.blobs.iter().chain([&self.manifest])
    }

    /// Its entry in an index.
    pub fn entry(&self) -> Value {
        let size = self.manifest.bytes.len() as u64;
        let mut entry = descriptor(media_type::OCI_MANIFEST, self.manifest.digest, size);
        entry["annotations"] = json!({REFERENCE_DIGEST: self.subject, REFERENCE_TYPE: ATTESTATION});
        entry["platform"] = json!({"architecture": "unknown", "os": "unknown"});
        entry
    }
}

/// What an attestation manifest looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// An OCI artifact whose subject is the image.
    #[default]
    Artifact,
    /// An image of a platform that does not exist.
    Image,
}

/// A thing that a statement is about.
pub fn subject(name: &str, digest: Digest) -> Value {
    json!({"name": name, "digest": {"sha256": digest.hex()}})
}

/// `linux_amd64` for file names.
pub fn platform_suffix(platform: &Platform) -> String {
    platform.to_string().replace('/', "_")
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Value {
    json!({"mediaType": media_type, "digest": digest, "size": size})
}
