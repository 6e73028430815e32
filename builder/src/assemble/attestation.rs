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

use std::io;

use rbuild_cache::scratch::Scratch;
use rbuild_oci::{Digest, Platform, Reference, canonical_json, in_canonical_order, media_type};
use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::assemble::file_blob::FileBlob;
use crate::assemble::manifest::{LayerBlob, PackedImage};
use crate::assemble::{provenance, purl, sbom};

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
    pub said: Said,
    /// Said beside images only.
    pub inline_only: bool,
    /// Name of the file it goes to beside exported files.
    pub file_name: String,
}

/// The substance of a predicate.
#[derive(Debug, Clone)]
pub enum Said {
    /// How the image was made.
    Provenance(provenance::Document),
    /// A list of packages, which may be long.
    Packages(sbom::Document),
}

/// In which order the keys of objects are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// As people want to read them.
    AsSaid,
    /// That of [`canonical_json`].
    Sorted,
}

impl Keys {
    /// The value with its keys in this order.
    pub fn of(self, value: Value) -> Value {
        match self {
            Self::AsSaid => value,
            Self::Sorted => in_canonical_order(value),
        }
    }
}

/// A statement with everything in it.
struct Statement<'a, S> {
    predicate: &'a Predicate,
    subjects: S,
    layers: &'a [LayerBlob],
    keys: Keys,
}

impl<S: Serialize> Serialize for Statement<'_, S> {
    fn serialize<T: Serializer>(&self, serializer: T) -> Result<T::Ok, T::Error> {
        let mut statement = serializer.serialize_struct("Statement", 4)?;
        let said = Substance { said: &self.predicate.said, layers: self.layers, keys: self.keys };
        statement.serialize_field("_type", STATEMENT)?;
        if self.keys == Keys::Sorted {
            statement.serialize_field("predicate", &said)?;
        }
        statement.serialize_field("predicateType", self.predicate.kind)?;
        statement.serialize_field("subject", &self.subjects)?;
        if self.keys == Keys::AsSaid {
            statement.serialize_field("predicate", &said)?;
        }
        statement.end()
    }
}

/// What a statement says, with the layers of its image.
struct Substance<'a> {
    said: &'a Said,
    layers: &'a [LayerBlob],
    keys: Keys,
}

impl Serialize for Substance<'_> {
    fn serialize<T: Serializer>(&self, serializer: T) -> Result<T::Ok, T::Error> {
        match self.said {
            Said::Provenance(document) => document.with_keys(self.keys, self.layers, serializer),
            Said::Packages(document) => document.with_keys(self.keys, serializer),
        }
    }
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
#[derive(Debug, Clone)]
pub struct AttestationManifest {
    /// The image manifest that they are about.
    pub subject: Digest,
    /// The manifest.
    pub manifest: Blob,
    /// Its config.
    pub config: Blob,
    /// Its statements.
    pub statements: Vec<FileBlob>,
}

impl Blob {
    /// These bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { digest: Digest::of(&bytes), bytes }
    }
}

impl Predicate {
    /// The statement about `subjects`, a list of [`subject`]s whose keys are in this order, too.
    pub fn statement<'a, S: Serialize>(
        &'a self,
        subjects: S,
        layers: &'a [LayerBlob],
        keys: Keys,
    ) -> impl Serialize + use<'a, S> {
        Statement { predicate: self, subjects, layers, keys }
    }
}

impl AttestationManifest {
    /// Packs what is said about `image`, which has these names.
    pub fn of(
        image: &PackedImage,
        names: &[Reference],
        predicates: &[Predicate],
        form: Form,
        scratch: &Scratch,
    ) -> io::Result<Self> {
        let platform = &image.image.config.platform;
        let mut subjects: Vec<Value> =
            names.iter().map(|name| subject(&purl::image(name, Some(platform)), image.digest)).collect();
        if subjects.is_empty() {
            subjects.push(subject("_", image.digest));
        }
        let subjects = Keys::Sorted.of(subjects.into());
        let mut statements = Vec::with_capacity(predicates.len());
        let mut layers = Vec::with_capacity(predicates.len());
        for predicate in predicates {
            let statement = predicate.statement(&subjects, &image.layers, Keys::Sorted);
            let blob = FileBlob::write(scratch, |out| Ok(serde_json::to_writer(out, &statement)?))?;
            let mut layer = descriptor(IN_TOTO, blob.digest, blob.size);
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
        Ok(Self { subject: image.digest, manifest, config, statements })
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

/// How a blob is named where it is listed.
pub(super) fn descriptor(media_type: &str, digest: Digest, size: u64) -> Value {
    json!({"mediaType": media_type, "digest": digest, "size": size})
}
