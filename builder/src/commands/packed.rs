//! Images of the store in the form that archives and registries get.

use std::sync::Arc;

use rbuild_cache::layer::DEFAULT_GZIP;
use rbuild_cache::store::{ImageRecord, Store};
use rbuild_oci::{Document, ImageConfig, Reference, media_type};

use super::ImageError;
use crate::assemble::attestation::{
    ATTESTATION, AttestationManifest, Blob, REFERENCE_DIGEST, REFERENCE_TYPE,
};
use crate::assemble::file_blob::FileBlob;
use crate::assemble::index::{ImageSet, Index};
use crate::assemble::manifest::{LayerBlob, PackedImage, pack};
use crate::assemble::passing::remembered_as;
use crate::assemble::{BuiltImage, ImageLayer, Place};
use crate::error::BuildError;
use crate::export::ahead::send_layer;
use crate::export::registry::Push;
use crate::ops::ExecEnv;
use crate::ops::download::RemoteLayer;
use crate::timestamp;

/// What a name stands for: one image, or an index with all its images. Layers that were never compressed go up with `push`
/// while they are.
pub(super) async fn set(
    env: &Arc<ExecEnv>,
    record: &ImageRecord,
    push: Option<&Push>,
) -> Result<ImageSet, BuildError> {
    let Some(digest) = record.index else {
        let mut images = Vec::new();
        for record in record.each() {
            images.push(image(env, record, push).await?);
        }
        // Built for several platforms and not exported yet.
        let index = (images.len() > 1).then(|| Index::over(&images, &[], &[], false));
        return Ok(ImageSet { index, ..ImageSet::over(images) });
    };
    let gone = || ImageError::Config(digest.to_string());
    let bytes = env.store.blob_bytes(&digest, Document::BYTES_MAX as u64)?.ok_or_else(gone)?;
    let Ok(Document::Index(listed)) = Document::parse(&bytes, None) else { return Err(gone().into()) };
    let mut images = Vec::new();
    for record in record.each() {
        images.push(image(env, record, push).await?);
    }
    let place = |image: &PackedImage| {
        let digest = image.digest.to_string();
        listed.manifests().iter().position(|entry| entry.digest().to_string() == digest)
    };
    let is_same = images.iter().all(|image| place(image).is_some());
    let attestations = if is_same { attestations(&env.store, &listed)? } else { Some(Vec::new()) };
    images.sort_by_key(place);
    let stated = listed.media_type().as_ref().map(ToString::to_string);
    let media_type = stated.unwrap_or_else(|| media_type::OCI_INDEX.to_owned());
    // Blobs that went and were made anew in another form make another index.
    let index = match &attestations {
        Some(_) if is_same => Index { digest, bytes, media_type },
        _ => Index::over(&images, &[], &[], false),
    };
    let attestations = attestations.unwrap_or_default();
    Ok(ImageSet { index: Some(index), attestations, ..ImageSet::over(images) })
}

/// What an index of the store lists about its images; `None` when some of it is not here.
fn attestations(
    store: &Store,
    listed: &rbuild_oci::Index,
) -> Result<Option<Vec<AttestationManifest>>, BuildError> {
    let mut found = Vec::new();
    for entry in listed.manifests() {
        let annotation = |key: &str| entry.annotations().as_ref()?.get(key).map(String::as_str);
        if annotation(REFERENCE_TYPE) != Some(ATTESTATION) {
            continue;
        }
        let blob = |digest: &str| -> Result<Option<Blob>, BuildError> {
            let Ok(digest) = digest.parse() else { return Ok(None) };
            let bytes = store.blob_bytes(&digest, Document::BYTES_MAX as u64)?;
            Ok(bytes.map(|bytes| Blob { bytes, digest }))
        };
        let subject = annotation(REFERENCE_DIGEST).and_then(|digest| digest.parse().ok());
        let (Some(subject), Some(manifest)) = (subject, blob(entry.digest().as_ref())?) else {
            return Ok(None);
        };
        let Ok(Document::Manifest(parsed)) = Document::parse(&manifest.bytes, None) else { return Ok(None) };
        let Some(config) = blob(parsed.config().digest().as_ref())? else { return Ok(None) };
        let mut statements = Vec::new();
        for descriptor in parsed.layers() {
            let Ok(digest) = descriptor.digest().as_ref().parse() else { return Ok(None) };
            let Some(blob) = store.blob(&digest)? else { return Ok(None) };
            // One that cannot be read is none either.
            let Ok(Some(statement)) = FileBlob::stored(digest, blob) else { return Ok(None) };
            statements.push(statement);
        }
        found.push(AttestationManifest { subject, manifest, config, statements });
    }
    Ok(Some(found))
}

/// The image with its manifest as it was made or pulled when that is possible, so that its digest stays; else a new
/// one.
pub(super) async fn image(
    env: &Arc<ExecEnv>,
    record: &ImageRecord,
    push: Option<&Push>,
) -> Result<PackedImage, BuildError> {
    let gone = || ImageError::Config(record.config.to_string());
    let config_bytes = env.store.blob_bytes(&record.config, ImageConfig::BYTES_MAX)?.ok_or_else(gone)?;
    let config = ImageConfig::parse(&config_bytes).map_err(|_| gone())?;
    let mut layers = Vec::with_capacity(record.layers.len());
    if let Some(absent) = &record.absent {
        let from: Reference = absent.from.parse().map_err(|_| gone())?;
        layers.extend(absent.layers.iter().map(|layer| {
            let remote = RemoteLayer::of(layer, &from);
            let (diff_id, size) = (layer.diff_id, layer.size);
            ImageLayer { place: Place::There(remote), diff_id, size, is_base: true, clamp: None }
        }));
    }
    let times = layer_times(&config);
    for (at, (id, diff_id)) in record.local_layers().enumerate() {
        let info = env.store.layer(id)?.ok_or_else(|| BuildError::LayerVanished(id.to_string()))?;
        // Built for an epoch, the image has another tar of these files than the layer itself: newer times are set back
        // to the time that its history gives.
        let is_clamped = info.tar.is_none_or(|(own, _)| own != diff_id);
        let clamp = times.get(record.absent_layers().len() + at).copied().flatten().filter(|_| is_clamped);
        // A pulled layer has a blob that some registry made: it is used as it is.
        let (place, size, is_base) = (Place::Here(id), info.size_bytes, clamp.is_none());
        layers.push(ImageLayer { place, diff_id, size, is_base, clamp });
    }
    let image = BuiltImage { config, config_bytes, id: record.config, layers, base: None };
    if let Some(packed) = as_recorded(&env.store, record, &image)? {
        return Ok(packed);
    }
    let packing = DEFAULT_GZIP.into();
    if let Some(push) = push {
        let sent = image.layers.iter().filter_map(|layer| match layer.place {
            Place::Here(id) => Some(send_layer(env, push, (id, layer.is_base, layer.clamp), &packing, None)),
            Place::There(_) => None,
        });
        futures_util::future::join_all(sent).await;
    }
    pack(env, image, &packing).await
}

/// When each layer was made, in Unix seconds, where the history says it in whole ones: an epoch has no others.
fn layer_times(config: &ImageConfig) -> Vec<Option<i64>> {
    let steps = config.history.iter().filter(|step| !step.empty_layer);
    let whole = |text: &&str| !text.contains('.');
    steps.map(|step| step.created.as_deref().filter(whole).and_then(timestamp::parse_rfc3339)).collect()
}

/// The recorded manifest, when the store has it and all its layers' blobs, or can make them again.
fn as_recorded(
    store: &Store,
    record: &ImageRecord,
    image: &BuiltImage,
) -> Result<Option<PackedImage>, BuildError> {
    let Some(digest) = record.manifest else { return Ok(None) };
    let Some(bytes) = store.blob_bytes(&digest, Document::BYTES_MAX as u64)? else { return Ok(None) };
    let Ok(Document::Manifest(manifest)) = Document::parse(&bytes, None) else { return Ok(None) };
    let fits = manifest.config().digest().to_string() == record.config.to_string()
        && manifest.layers().len() == record.diff_ids.len();
    if !fits {
        return Ok(None);
    }
    let mut layers = Vec::with_capacity(record.diff_ids.len());
    for ((descriptor, diff_id), layer) in manifest.layers().iter().zip(&record.diff_ids).zip(&image.layers) {
        let Ok(digest) = descriptor.digest().to_string().parse() else { return Ok(None) };
        let from = image.remote_layers().find(|remote| remote.blob.digest == digest);
        let from = from.map(|remote| remote.from.clone());
        let mut again = None;
        if from.is_none() && store.blob(&digest)?.is_none_or(|blob| blob.size != descriptor.size()) {
            again = remembered_as(store, layer, digest)?;
            if again.is_none() {
                return Ok(None);
            }
        }
        layers.push(LayerBlob {
            diff_id: *diff_id,
            digest,
            size: descriptor.size(),
            media_type: descriptor.media_type().to_string(),
            from,
            again,
        });
    }
    let stated = manifest.media_type().as_ref().map(ToString::to_string);
    let media_type = stated.unwrap_or_else(|| media_type::OCI_MANIFEST.to_owned());
    Ok(Some(PackedImage { image: image.clone(), layers, manifest: bytes, digest, media_type }))
}
