//! What exporters get: one image, or an index of an image for each platform.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use rbuild_cache::layer::Compression;
use rbuild_oci::{Digest, Platform, Reference, canonical_json, media_type};
use serde_json::{Value, json};

use crate::assemble::BuiltImage;
use crate::assemble::attestation::{AttestationManifest, Form, Predicate};
use crate::assemble::manifest::{PackedImage, Packing, pack};
use crate::cli::{Annotation, AnnotationPlace};
use crate::error::{BuildError, StepFailure};
use crate::ops::ExecEnv;

/// Images packed for the outside, in the order their platforms were asked for; never empty.
#[derive(Debug, Clone)]
pub struct ImageSet {
    /// The images.
    pub images: Vec<PackedImage>,
    /// The index over them. A single image has none, unless something is said about it, or it was asked for as one of
    /// several (`BUILDKIT_MULTI_PLATFORM`).
    pub index: Option<Index>,
    /// What the index lists about the images, in their order.
    pub attestations: Vec<AttestationManifest>,
    /// Annotations of the descriptor of [`ImageSet::root`].
    pub descriptor_annotations: BTreeMap<String, String>,
}

/// An image index.
#[derive(Debug, Clone)]
pub struct Index {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
    /// OCI's or Docker's.
    pub media_type: String,
}

/// How a set of images is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetPacking {
    /// Of layers that were never compressed, and of all with `force`.
    pub compression: Compression,
    /// Bring base layers into this form, too.
    pub force: bool,
    /// Docker's media types in place of OCI's.
    pub docker_types: bool,
    /// Of manifests, index and descriptors.
    pub annotations: Vec<Annotation>,
    /// How attestation manifests look.
    pub attestation_form: Form,
}

/// The document that a name stands for.
#[derive(Debug, Clone, Copy)]
pub struct Root<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    /// Their digest.
    pub digest: Digest,
    /// What it is.
    pub media_type: &'a str,
    /// The platform of a single image.
    pub platform: Option<&'a Platform>,
}

impl ImageSet {
    /// Packs every image, which are to have these names; `is_multi` makes an index of them, and so does something to say:
    /// `predicates` are lists for each of the images, or empty.
    pub async fn pack(
        env: &Arc<ExecEnv>,
        images: &[BuiltImage],
        names: &[Reference],
        predicates: &[Vec<Predicate>],
        packing: &SetPacking,
        is_multi: bool,
    ) -> Result<Self, BuildError> {
        let annotations = &packing.annotations;
        let is_multi = is_multi || predicates.iter().any(|list| !list.is_empty());
        if !is_multi && let Some(one) = annotations.iter().find(|one| one.place == AnnotationPlace::Index) {
            return Err(BuildError::NoIndex { key: one.key.clone() });
        }
        let packs = images.iter().map(|image| {
            let platform = &image.config.platform;
            let packing = Packing {
                compression: packing.compression,
                force: packing.force,
                docker_types: packing.docker_types,
                annotations: annotations_of(annotations, AnnotationPlace::Manifest, Some(platform)),
            };
            async move { pack(env, image.clone(), &packing).await }
        });
        let set = Self::over(futures_util::future::try_join_all(packs).await?);
        let (place, platform) = match is_multi {
            true => (AnnotationPlace::IndexDescriptor, None),
            false => (AnnotationPlace::ManifestDescriptor, set.root().platform.cloned()),
        };
        let descriptor_annotations = annotations_of(annotations, place, platform.as_ref());
        let said = set.images.iter().zip(predicates).filter(|(_, list)| !list.is_empty());
        let (form, scratch) = (packing.attestation_form, env.store.scratch());
        let unkept = |source| StepFailure::Io { what: "write", path: "attestations".to_owned(), source };
        let attestations = said
            .map(|(image, list)| AttestationManifest::of(image, names, list, form, &scratch))
            .collect::<io::Result<Vec<_>>>()
            .map_err(unkept)?;
        let index =
            is_multi.then(|| Index::over(&set.images, &attestations, annotations, packing.docker_types));
        Ok(Self { index, attestations, descriptor_annotations, ..set })
    }

    /// Images without an index.
    pub fn over(images: Vec<PackedImage>) -> Self {
        Self { images, index: None, attestations: Vec::new(), descriptor_annotations: BTreeMap::new() }
    }

    /// What a name of the set stands for.
    pub fn root(&self) -> Root<'_> {
        match (&self.index, self.images.as_slice()) {
            (Some(index), _) => Root {
                bytes: &index.bytes,
                digest: index.digest,
                media_type: &index.media_type,
                platform: None,
            },
            (None, [image, ..]) => Root {
                bytes: &image.manifest,
                digest: image.digest,
                media_type: &image.media_type,
                platform: Some(&image.image.config.platform),
            },
            (None, []) => unreachable!("a set of images has at least one"),
        }
    }

    /// Annotations of the root's descriptor, with the time when the latest of the images was made.
    pub fn described_by(&self) -> BTreeMap<String, String> {
        let created = self.images.iter().filter_map(|image| image.image.config.created.clone()).max();
        let mut annotations: BTreeMap<String, String> =
            created.map(|time| ("org.opencontainers.image.created".to_owned(), time)).into_iter().collect();
        annotations.extend(self.descriptor_annotations.clone());
        annotations
    }
}

impl Index {
    /// An index over these images, in this order, then what is said about them.
    pub fn over(
        images: &[PackedImage],
        attestations: &[AttestationManifest],
        annotations: &[Annotation],
        docker_types: bool,
    ) -> Self {
        let entry = |image: &PackedImage| {
            let platform = &image.image.config.platform;
            let mut entry = json!({
                "mediaType": image.media_type,
                "digest": image.digest,
                "size": image.manifest.len(),
                "platform": platform,
            });
            let own = annotations_of(annotations, AnnotationPlace::ManifestDescriptor, Some(platform));
            if !own.is_empty() {
                entry["annotations"] = json!(own);
            }
            entry
        };
        let attested = attestations.iter().map(AttestationManifest::entry);
        let manifests: Vec<Value> = images.iter().map(entry).chain(attested).collect();
        let media_type = if docker_types { media_type::DOCKER_LIST } else { media_type::OCI_INDEX };
        let mut document = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests});
        let own = annotations_of(annotations, AnnotationPlace::Index, None);
        if !own.is_empty() {
            document["annotations"] = json!(own);
        }
        let bytes = canonical_json(&document);
        Self { digest: Digest::of(&bytes), bytes, media_type: media_type.to_owned() }
    }
}

/// The annotations for a place; the last of a key wins.
fn annotations_of(
    annotations: &[Annotation],
    place: AnnotationPlace,
    platform: Option<&Platform>,
) -> BTreeMap<String, String> {
    let fits = |one: &&Annotation| {
        one.place == place && one.platform.as_ref().is_none_or(|wanted| Some(wanted) == platform)
    };
    annotations.iter().filter(fits).map(|one| (one.key.clone(), one.value.clone())).collect()
}
