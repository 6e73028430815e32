//! Writes images to one tar that is an OCI image layout and a Docker archive at once, as `docker save` does.
//!
//! ```text
//! blobs/sha256/<hex>   layers, configs, manifests: each once
//! index.json           OCI: one entry per name, for an image or for an index of several
//! manifest.json        Docker: one entry per image; of several platforms the one that names stand for here
//! oci-layout
//! ```
//!
//! Equal images give equal bytes: entries are sorted and have no times.

use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use rbuild_cache::store::Store;
use rbuild_oci::{Digest, Platform, Reference, canonical_json, media_type};
use serde_json::{Value, json};

use crate::assemble::index::{ImageSet, Index};
use crate::assemble::manifest::{LayerBlob, PackedImage};
use crate::cancel::Cancel;
use crate::export::blobs::{Part, blob_name, header, in_order, open_blob};
use crate::export::place;

/// Bytes copied between two looks at the switch.
const COPY_BYTES: usize = 256 << 10;

/// An image whose blobs are all in the store, or here.
#[derive(Debug, Clone)]
pub struct SavedImage {
    /// Manifest bytes.
    pub manifest: Vec<u8>,
    /// Media type of the manifest.
    pub manifest_type: String,
    /// Config bytes.
    pub config: Vec<u8>,
    /// Layer blobs, base first; in the store.
    pub layers: Vec<LayerBlob>,
    /// What it is for.
    pub platform: Platform,
    /// When it was made, RFC 3339.
    pub created: String,
    /// Its names; may be empty.
    pub names: Vec<Reference>,
    /// The index that its names stand for.
    pub index: Option<Index>,
    /// The other images of the index.
    pub others: Vec<SavedImage>,
}

impl SavedImage {
    /// A packed image under these names.
    pub fn new(packed: PackedImage, names: Vec<Reference>) -> Self {
        let PackedImage { image, layers, manifest, media_type, .. } = packed;
        Self {
            manifest,
            manifest_type: media_type,
            platform: image.config.platform.clone(),
            created: image.config.created.clone().unwrap_or_default(),
            config: image.config_bytes,
            layers,
            names,
            index: None,
            others: Vec::new(),
        }
    }

    /// All that names stand for. `own` is the config of the image that they stand for on this machine.
    pub fn set(set: ImageSet, own: Digest, names: Vec<Reference>) -> Self {
        let (mut own, others): (Vec<_>, Vec<_>) =
            set.images.into_iter().partition(|image| image.image.id == own);
        let others = own.split_off(1).into_iter().chain(others);
        let others = others.map(|image| Self::new(image, Vec::new())).collect();
        let own = own.pop().expect("a record's own image is in its set");
        Self { index: set.index, others, ..Self::new(own, names) }
    }

    /// Itself and the others of its index.
    fn each(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.others)
    }
}

/// Writes to a file that only its owner may read, complete or not at all. A pipe or device is written to as it is.
pub fn write_file(store: &Store, images: &[SavedImage], path: &Path, cancel: &Cancel) -> io::Result<()> {
    let fill = |file| write(store, images, BufWriter::new(file), cancel);
    place::write(path, 0o600, |error| error, fill)
}

/// Writes the archive. Stops with an error when the switch is thrown.
pub fn write(store: &Store, images: &[SavedImage], out: impl Write, cancel: &Cancel) -> io::Result<()> {
    let mut tar = tar::Builder::new(out);
    for dir in ["blobs/", "blobs/sha256/"] {
        tar.append_data(&mut header(0, tar::EntryType::Directory), dir, io::empty())?;
    }
    for (digest, part) in parts(images) {
        let name = blob_name(digest);
        match part {
            Part::Bytes(bytes) => file(&mut tar, &name, bytes)?,
            Part::File(blob) => {
                let mut header = header(blob.size, tar::EntryType::Regular);
                tar.append_data(&mut header, name, blob.reader())?;
            }
            Part::Blob(size) => {
                let body = Watched { inner: open_blob(store, digest)?.take(size), cancel };
                let body = io::BufReader::with_capacity(COPY_BYTES, body);
                tar.append_data(&mut header(size, tar::EntryType::Regular), name, body)?;
            }
        }
    }
    file(&mut tar, "index.json", &index(images))?;
    file(&mut tar, "manifest.json", &docker_manifest(images))?;
    file(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    tar.into_inner()?.flush()
}

fn file(tar: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) -> io::Result<()> {
    tar.append_data(&mut header(bytes.len() as u64, tar::EntryType::Regular), name, bytes)
}

/// Every blob once, by digest.
fn parts(images: &[SavedImage]) -> Vec<(Digest, Part<'_>)> {
    let mut parts = Vec::new();
    for image in images.iter().flat_map(SavedImage::each) {
        parts.extend(image.layers.iter().map(|layer| (layer.digest, Part::Blob(layer.size))));
        parts.extend([&image.config, &image.manifest].map(|bytes| (Digest::of(bytes), Part::Bytes(bytes))));
    }
    let indexes = images.iter().filter_map(|image| image.index.as_ref());
    parts.extend(indexes.map(|index| (index.digest, Part::Bytes(&index.bytes))));
    in_order(parts)
}

fn index(images: &[SavedImage]) -> Vec<u8> {
    let mut manifests = Vec::new();
    for image in images {
        let entry = match &image.index {
            Some(index) => json!({
                "mediaType": index.media_type,
                "digest": index.digest,
                "size": index.bytes.len(),
            }),
            None => json!({
                "mediaType": image.manifest_type,
                "digest": Digest::of(&image.manifest),
                "size": image.manifest.len(),
                "platform": image.platform,
            }),
        };
        if image.names.is_empty() {
            manifests.push(entry.clone());
        }
        for name in &image.names {
            let mut named = entry.clone();
            named["annotations"] = json!({
                "io.containerd.image.name": name.to_string(),
                "org.opencontainers.image.ref.name": name.tag_or_latest(),
                "org.opencontainers.image.created": image.created,
            });
            manifests.push(named);
        }
    }
    canonical_json(&json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests}))
}

fn docker_manifest(images: &[SavedImage]) -> Vec<u8> {
    let entry = |image: &SavedImage| {
        let names: Vec<String> = image.names.iter().map(Reference::familiar).collect();
        json!({
            "Config": blob_name(Digest::of(&image.config)),
            "RepoTags": if names.is_empty() { Value::Null } else { json!(names) },
            "Layers": image.layers.iter().map(|layer| blob_name(layer.digest)).collect::<Vec<_>>(),
        })
    };
    canonical_json(&images.iter().map(entry).collect::<Vec<_>>())
}

/// Ends with an error when the switch is thrown.
struct Watched<'a, R> {
    inner: R,
    cancel: &'a Cancel,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.reason().is_some() {
            return Err(io::Error::other("canceled"));
        }
        self.inner.read(buffer)
    }
}
