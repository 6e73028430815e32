//! Writes an OCI image layout, as a directory or as one tar (image-spec, image-layout.md).
//!
//! Files are written beside their destination under a temporary name and renamed when complete, so a failed export
//! leaves nothing and an older file stays until the new one is whole. An archive for a pipe or device goes there as it
//! is made (`place`).

use std::fs;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use rbuild_cache::store::Store;
use rbuild_oci::{Digest, Reference, canonical_json, media_type};
use serde_json::{Value, json};

use crate::assemble::index::ImageSet;
use crate::error::BuildError;
use crate::export::blobs::{Part, blob_name, header, in_order, open_blob};
use crate::export::place;

/// Where the layout goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// One tar file.
    Archive(PathBuf),
    /// A tar on standard output.
    Stdout,
    /// A directory; blobs already there stay, `index.json` is replaced.
    Directory(PathBuf),
}

/// Writes the images with one index entry per name, or one unnamed entry.
pub fn write(store: &Store, set: &ImageSet, names: &[Reference], to: &Destination) -> Result<(), BuildError> {
    match to {
        Destination::Archive(path) => {
            let failed = |source| BuildError::Export { path: path.clone(), source };
            place::write(path, 0o666, failed, |file| {
                archive(store, set, names, BufWriter::new(file)).map_err(failed)
            })
        }
        Destination::Stdout => archive(store, set, names, io::stdout().lock())
            .map_err(|source| BuildError::Export { path: PathBuf::from("-"), source }),
        Destination::Directory(path) => directory(store, set, names, path)
            .map_err(|source| BuildError::Export { path: path.clone(), source }),
    }
}

fn index(set: &ImageSet, names: &[Reference]) -> Vec<u8> {
    let root = set.root();
    let entry = |name: Option<Reference>| {
        let mut annotations = set.described_by();
        if let Some(name) = name.map(Reference::with_default_tag) {
            annotations.insert("io.containerd.image.name".to_owned(), name.to_string());
            let tag = name.tag_or_latest().to_owned();
            annotations.insert("org.opencontainers.image.ref.name".to_owned(), tag);
        }
        let mut entry = json!({
            "mediaType": root.media_type,
            "digest": root.digest,
            "size": root.bytes.len(),
            "annotations": annotations,
        });
        if let Some(platform) = root.platform {
            entry["platform"] = json!(platform);
        }
        entry
    };
    let mut manifests: Vec<Value> = names.iter().map(|name| entry(Some(name.clone()))).collect();
    if manifests.is_empty() {
        manifests.push(entry(None));
    }
    canonical_json(&json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests}))
}

fn parts(set: &ImageSet) -> Vec<(Digest, Part<'_>)> {
    let mut parts: Vec<(Digest, Part<'_>)> = Vec::new();
    for image in &set.images {
        parts.extend(image.layers.iter().map(|layer| (layer.digest, Part::Blob(layer.size))));
        parts.push((image.image.id, Part::Bytes(&image.image.config_bytes)));
        parts.push((image.digest, Part::Bytes(&image.manifest)));
    }
    for attestation in &set.attestations {
        let known = [&attestation.config, &attestation.manifest];
        parts.extend(known.map(|blob| (blob.digest, Part::Bytes(&blob.bytes))));
        parts.extend(attestation.statements.iter().map(|blob| (blob.digest, Part::File(blob))));
    }
    let root = set.root();
    parts.push((root.digest, Part::Bytes(root.bytes)));
    in_order(parts)
}

fn archive(store: &Store, set: &ImageSet, names: &[Reference], out: impl Write) -> io::Result<()> {
    let mut tar = tar::Builder::new(out);
    for dir in ["blobs/", "blobs/sha256/"] {
        tar.append_data(&mut header(0, tar::EntryType::Directory), dir, io::empty())?;
    }
    for (digest, part) in parts(set) {
        let name = blob_name(digest);
        match part {
            Part::Bytes(bytes) => {
                tar.append_data(&mut header(bytes.len() as u64, tar::EntryType::Regular), name, bytes)?;
            }
            Part::File(blob) => {
                let mut header = header(blob.size, tar::EntryType::Regular);
                tar.append_data(&mut header, name, blob.reader())?;
            }
            Part::Blob(size) => {
                let file = open_blob(store, digest)?.take(size);
                tar.append_data(&mut header(size, tar::EntryType::Regular), name, file)?;
            }
        }
    }
    for (name, bytes) in [("index.json", index(set, names)), ("oci-layout", LAYOUT.to_vec())] {
        tar.append_data(&mut header(bytes.len() as u64, tar::EntryType::Regular), name, bytes.as_slice())?;
    }
    tar.into_inner()?.flush()
}

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

fn directory(store: &Store, set: &ImageSet, names: &[Reference], to: &Path) -> io::Result<()> {
    let blobs = to.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    for (digest, part) in parts(set) {
        let path = blobs.join(digest.hex());
        match part {
            Part::Bytes(bytes) => replace(&path, &mut &*bytes)?,
            Part::File(blob) => replace(&path, &mut blob.reader())?,
            Part::Blob(size) if fs::metadata(&path).is_ok_and(|m| m.len() == size) => {}
            Part::Blob(size) => replace(&path, &mut open_blob(store, digest)?.take(size))?,
        }
    }
    replace(&to.join("oci-layout"), &mut &*LAYOUT)?;
    replace(&to.join("index.json"), &mut &*index(set, names))
}

fn replace(path: &Path, from: &mut dyn Read) -> io::Result<()> {
    place::replace(path, 0o666, |error| error, |mut file| io::copy(from, &mut file).map(drop))
}
