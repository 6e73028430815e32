//! Names an image in the local store.

use std::io;

use rbuild_cache::store::{AbsentLayers, ImageRecord, LayerId, Lease, ResolvedLayer, Store};
use rbuild_oci::{Platform, Reference};

use crate::assemble::BuiltImage;
use crate::assemble::file_blob::FileBlob;
use crate::assemble::index::ImageSet;
use crate::error::{BuildError, StepFailure};
use crate::ops::download::RemoteLayer;
use crate::resolve::BaseImage;
use crate::timestamp;

/// The record of a pulled image whose layers are all here.
pub fn record(
    store: &Store,
    lease: &Lease,
    image: &BaseImage,
    layers: &[LayerId],
) -> Result<ImageRecord, BuildError> {
    let mut size_bytes = 0;
    for layer in layers {
        size_bytes += store.layer(*layer)?.map_or(0, |info| info.size_bytes);
    }
    Ok(ImageRecord {
        config: store.put_blob(lease, &image.config_bytes)?,
        layers: layers.to_vec(),
        diff_ids: image.layers.iter().map(|layer| layer.diff_id).collect(),
        manifest: Some(image.identity),
        index: None,
        others: Vec::new(),
        absent: None,
        platform: image.config.platform.to_string(),
        size_bytes,
        created_unix_ns: created_ns(image.config.created.as_deref()),
    })
}

/// The layers that stay where they are.
fn absent(image: &BuiltImage) -> Option<AbsentLayers> {
    let from = image.remote_layers().next()?.from.to_string();
    let layer = |layer: &RemoteLayer| ResolvedLayer {
        diff_id: layer.diff_id,
        blob: layer.blob.digest,
        size: layer.blob.size,
        media_type: layer.blob.media_type.clone(),
    };
    Some(AbsentLayers { from, layers: image.remote_layers().map(layer).collect() })
}

fn created_ns(created: Option<&str>) -> i64 {
    created.and_then(timestamp::parse_rfc3339).unwrap_or(0).saturating_mul(1_000_000_000)
}

/// Records the images under every name and makes that durable, all names or none. Their layers are in the store
/// already; nothing is compressed. `set` is what exporters made of them, when they did: its documents are kept, so that
/// a later push sends what the build has told of.
///
/// A name stands for the first image that `host` runs, else for the first; the others are beside it.
pub fn tag(
    store: &Store,
    lease: &Lease,
    names: &[Reference],
    images: &[BuiltImage],
    set: Option<&ImageSet>,
    host: &Platform,
) -> Result<(), BuildError> {
    let mut records = Vec::with_capacity(images.len());
    for (at, image) in images.iter().enumerate() {
        let packed = set.map(|set| &set.images[at]);
        records.push(ImageRecord {
            config: store.put_blob(lease, &image.config_bytes)?,
            layers: image.local_layers().collect(),
            diff_ids: image.layers.iter().map(|layer| layer.diff_id).collect(),
            manifest: packed.map(|packed| store.put_blob(lease, &packed.manifest)).transpose()?,
            index: None,
            others: Vec::new(),
            absent: absent(image),
            platform: image.config.platform.to_string(),
            size_bytes: image.size(),
            created_unix_ns: created_ns(image.config.created.as_deref()),
        });
    }
    let own = images.iter().position(|image| image.config.platform.satisfies(host)).unwrap_or(0);
    let mut record = records.remove(own);
    record.others = records;
    for attestation in set.iter().flat_map(|set| &set.attestations) {
        store.put_blob(lease, &attestation.config.bytes)?;
        attestation.statements.iter().try_for_each(|blob| put_file(store, lease, blob))?;
        store.put_blob(lease, &attestation.manifest.bytes)?;
    }
    let index = set.and_then(|set| set.index.as_ref());
    record.index = index.map(|index| store.put_blob(lease, &index.bytes)).transpose()?;
    let names: Vec<String> = names.iter().map(|name| name.clone().with_default_tag().to_string()).collect();
    let records: Vec<_> = names.iter().map(|name| (name.as_str(), &record)).collect();
    Ok(store.put_images(&records)?)
}

/// Stores a blob that is in a file. Writes nothing when it is there.
fn put_file(store: &Store, lease: &Lease, blob: &FileBlob) -> Result<(), BuildError> {
    if store.blob(&blob.digest)?.is_some() {
        return Ok(());
    }
    let unwritten = |source| StepFailure::Io { what: "store", path: blob.digest.to_string(), source };
    let mut writer = store.ingest(lease)?;
    io::copy(&mut blob.reader(), &mut writer).map_err(unwritten)?;
    writer.commit(Some(blob.digest))?;
    Ok(())
}
