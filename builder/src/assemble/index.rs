//! What exporters get: one image, or an index of an image for each platform.

use rbuild_cache::layer::Compression;
use rbuild_oci::{Digest, Platform, canonical_json, media_type};
use serde_json::{Value, json};
use std::sync::Arc;

use crate::assemble::BuiltImage;
use crate::assemble::manifest::{PackedImage, pack};
use crate::error::BuildError;
use crate::ops::ExecEnv;

/// Images packed for the outside, in the order their platforms were asked for; never empty.
#[derive(Debug, Clone)]
pub struct ImageSet {
    /// The images.
    pub images: Vec<PackedImage>,
    /// The index over them. A single image has none, unless it was asked for as one of several
    /// (`BUILDKIT_MULTI_PLATFORM`).
    pub index: Option<Index>,
}

/// An image index.
#[derive(Debug, Clone)]
pub struct Index {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
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
    /// Packs every image; `is_multi` makes an index of them.
    pub async fn pack(
        env: &Arc<ExecEnv>,
        images: &[BuiltImage],
        compression: Compression,
        is_multi: bool,
    ) -> Result<Self, BuildError> {
        let packs = images.iter().map(|image| pack(env, image.clone(), compression));
        let images = futures_util::future::try_join_all(packs).await?;
        let index = is_multi.then(|| Index::over(&images));
        Ok(Self { images, index })
    }

    /// A set of one image without an index.
    pub fn single(image: PackedImage) -> Self {
        Self { images: vec![image], index: None }
    }

    /// What a name of the set stands for.
    pub fn root(&self) -> Root<'_> {
        match (&self.index, self.images.as_slice()) {
            (Some(index), _) => Root {
                bytes: &index.bytes,
                digest: index.digest,
                media_type: media_type::OCI_INDEX,
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

    /// When the latest of the images was made, RFC 3339.
    pub fn created(&self) -> Option<&str> {
        self.images.iter().filter_map(|image| image.image.config.created.as_deref()).max()
    }
}

impl Index {
    /// An index over these images, in this order.
    pub fn over(images: &[PackedImage]) -> Self {
        let entry = |image: &PackedImage| {
            json!({
                "mediaType": image.media_type,
                "digest": image.digest,
                "size": image.manifest.len(),
                "platform": image.image.config.platform,
            })
        };
        let manifests: Vec<Value> = images.iter().map(entry).collect();
        let bytes = canonical_json(&json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_INDEX,
            "manifests": manifests,
        }));
        Self { digest: Digest::of(&bytes), bytes }
    }
}
