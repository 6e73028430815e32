//! The manifest of an image: its layers in their exported form.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::sync::Arc;

use rbuild_cache::layer::{
    self, Compression, DecompressError, EncodeError, EncodeShare, Encoded, LayerReader, Limits,
};
use rbuild_oci::{DiffId, Digest, Reference, canonical_json, media_type};
use serde_json::json;

use crate::assemble::emit::{Pace, Stoppable};
use crate::assemble::growing::{Grower, Listener};
use crate::assemble::passing::{Again, remembered};
use crate::assemble::{BuiltImage, ImageLayer, Place};
use crate::build::ended;
use crate::error::{BuildError, StepFailure};
use crate::ops::download::RemoteLayer;
use crate::ops::{ExecEnv, download};
use crate::progress::Outcome;
use crate::resolve::{BlobRef, PULLED};

/// A layer as the manifest names it; its bytes are a blob of the store, pass through, are made again when they are wanted,
/// or `from` has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerBlob {
    /// Digest of its tar.
    pub diff_id: DiffId,
    /// Digest of the compressed bytes.
    pub digest: Digest,
    /// Their length.
    pub size: u64,
    /// OCI media type.
    pub media_type: String,
    /// The image at a registry that has it, when it was left there.
    pub from: Option<Reference>,
    /// How its bytes are made again, when they were made before and need not be here.
    pub again: Option<Again>,
}

impl LayerBlob {
    /// The layer as it can be fetched, when it is not here.
    pub fn remote(&self) -> Option<RemoteLayer> {
        let blob = BlobRef { digest: self.digest, size: self.size, media_type: self.media_type.clone() };
        Some(RemoteLayer { diff_id: self.diff_id, blob, from: self.from.clone()? })
    }
}

/// An image ready to be written somewhere.
#[derive(Debug, Clone)]
pub struct PackedImage {
    /// The image.
    pub image: BuiltImage,
    /// Its layers' blobs, base first.
    pub layers: Vec<LayerBlob>,
    /// Manifest bytes.
    pub manifest: Vec<u8>,
    /// Digest of the manifest.
    pub digest: Digest,
    /// Media type of the manifest.
    pub media_type: String,
}

/// How an image is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packing {
    /// Of layers that were never compressed, and of all with `force`.
    pub compression: Compression,
    /// Bring base layers into this form, too.
    pub force: bool,
    /// Docker's media types in place of OCI's.
    pub docker_types: bool,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
}

impl From<Compression> for Packing {
    fn from(compression: Compression) -> Self {
        Self { compression, force: false, docker_types: false, annotations: BTreeMap::new() }
    }
}

/// Compresses what was never compressed and writes the manifest. A blob that exists is never encoded again, and a
/// layer is encoded again only when its blob has passed through and somebody wants the bytes.
pub async fn pack(
    env: &Arc<ExecEnv>,
    image: BuiltImage,
    packing: &Packing,
) -> Result<PackedImage, BuildError> {
    let packs = image.layers.iter().map(|layer| layer_blob(env, layer.clone(), packing, Pace::Now, None));
    let mut layers = Vec::with_capacity(image.layers.len());
    for blob in futures_util::future::join_all(packs).await {
        let blob = blob?;
        let media_type = if packing.docker_types { docker_layer(&blob.media_type) } else { blob.media_type };
        layers.push(LayerBlob { media_type, ..blob });
    }
    let (media_type, config_type) = match packing.docker_types {
        true => (media_type::DOCKER_MANIFEST, media_type::DOCKER_CONFIG),
        false => (media_type::OCI_MANIFEST, media_type::OCI_CONFIG),
    };
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": {
            "mediaType": config_type,
            "digest": image.id,
            "size": image.config_bytes.len(),
        },
        "layers": layers
            .iter()
            .map(|layer| json!({"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}))
            .collect::<Vec<_>>(),
    });
    if !packing.annotations.is_empty() {
        manifest["annotations"] = json!(packing.annotations);
    }
    let manifest = canonical_json(&manifest);
    let media_type = media_type.to_owned();
    Ok(PackedImage { digest: Digest::of(&manifest), image, layers, manifest, media_type })
}

/// Docker's name of an OCI layer type.
fn docker_layer(oci: &str) -> String {
    match oci {
        media_type::OCI_LAYER => media_type::DOCKER_LAYER,
        media_type::OCI_LAYER_GZIP => media_type::DOCKER_LAYER_GZIP,
        media_type::OCI_LAYER_ZSTD => media_type::DOCKER_LAYER_ZSTD,
        other => other,
    }
    .to_owned()
}

/// OCI's name of a layer type, by the form it tells of.
fn oci_layer(stated: &str) -> &'static str {
    match stated {
        stated if stated.ends_with("gzip") => media_type::OCI_LAYER_GZIP,
        stated if stated.ends_with("zstd") => media_type::OCI_LAYER_ZSTD,
        _ => media_type::OCI_LAYER,
    }
}

/// OCI media type of a layer blob by its first bytes; a pulled blob keeps the form its registry had it in.
fn sniff(mut file: &File) -> Option<&'static str> {
    let mut magic = [0; 4];
    file.read_exact(&mut magic).ok()?;
    Some(match magic {
        [0x1f, 0x8b, ..] => media_type::OCI_LAYER_GZIP,
        [0x28, 0xb5, 0x2f, 0xfd] => media_type::OCI_LAYER_ZSTD,
        _ => media_type::OCI_LAYER,
    })
}

/// Brings a blob into another form.
fn recompress(
    blob: Digest,
    mut file: File,
    compression: Compression,
    pace: Pace,
    out: &mut dyn Write,
) -> Result<Encoded, StepFailure> {
    let failed = |source| StepFailure::Blob { layer: blob, source };
    // Its first bytes were looked at.
    file.rewind().map_err(|source| failed(DecompressError::Read(source)))?;
    // More than most have, so that no thread too few is taken.
    let archive_bytes = file.metadata().map_or(u64::MAX, |metadata| metadata.len().saturating_mul(8));
    // Before the first byte is read: that may take the permit for a large window, whose holder waits for no share.
    let share = EncodeShare::wait(compression, archive_bytes, pace == Pace::Ahead);
    let mut reader = LayerReader::sniff(file, &Limits::default()).map_err(failed)?;
    let copy = |tar: &mut dyn Write| io::copy(&mut reader, tar).map(drop);
    layer::encode(copy, share, out).map_err(|error| StepFailure::Io {
        what: "recompress layer",
        path: blob.to_string(),
        source: match error {
            EncodeError::Source(source) | EncodeError::Sink(source) | EncodeError::Compressor(source) => {
                source
            }
        },
    })
}

/// OCI's name of what we make.
pub(crate) fn layer_type(compression: Compression) -> &'static str {
    match compression {
        Compression::None => media_type::OCI_LAYER,
        Compression::Gzip(_) => media_type::OCI_LAYER_GZIP,
        Compression::Zstd { .. } => media_type::OCI_LAYER_ZSTD,
    }
}

/// A layer as the manifest names it, compressed if it never was; of one that was, the bytes need not be
/// here. `listener` hears of it when it is and becomes large.
pub(crate) async fn layer_blob(
    env: &Arc<ExecEnv>,
    layer: ImageLayer,
    packing: &Packing,
    pace: Pace,
    listener: Option<Listener>,
) -> Result<LayerBlob, BuildError> {
    let (compression, clamp) = (packing.compression, layer.clamp);
    let own = layer_type(compression);
    let params = compression.params();
    let layer = at_its_registry(env, layer, &params)?;
    let id = match &layer.place {
        Place::Here(id) => Some(*id),
        Place::There(remote) => {
            let BlobRef { digest, size, media_type: stated } = &remote.blob;
            let media_type = oci_layer(stated);
            if !packing.force || media_type == own {
                let (diff_id, media_type) = (layer.diff_id, media_type.to_owned());
                let from = Some(remote.from.clone());
                let again = None;
                return Ok(LayerBlob { diff_id, digest: *digest, size: *size, media_type, from, again });
            }
            None
        }
    };
    // Who emits it at this moment leaves it in the store.
    let _turn = match id {
        Some(id) => Some(env.emissions.turn(id).await),
        None => None,
    };
    let pulled = if layer.is_base { env.store.encoding(&layer.diff_id, PULLED)? } else { None };
    let mut foreign = None;
    for (digest, size) in pulled.into_iter().chain(env.store.encoding(&layer.diff_id, &params)?) {
        if let Some(blob) = env.store.blob(&digest)? {
            let media_type = sniff(&blob.file).unwrap_or(own);
            if packing.force && media_type != own {
                foreign = Some((digest, blob.file));
                continue;
            }
            let media_type = media_type.to_owned();
            let (diff_id, again) = (layer.diff_id, None);
            return Ok(LayerBlob { diff_id, digest, size, media_type, from: None, again });
        }
    }
    if let (None, Some((digest, size, again))) = (&foreign, remembered(&env.store, &layer, compression)?) {
        // It passed through, or was collected. Whether anybody wants its bytes is for the exporter to say.
        let (diff_id, media_type, again) = (layer.diff_id, own.to_owned(), Some(again));
        return Ok(LayerBlob { diff_id, digest, size, media_type, from: None, again });
    }
    if let (Place::There(remote), None) = (&layer.place, &foreign) {
        // Another form of it is wanted: that takes its bytes.
        let vertex = env.events.vertex(format!("fetching a layer of {}", remote.from.familiar()));
        env.events.started(vertex);
        let kept = download::keep(env, std::slice::from_ref(remote), vertex).await.map_err(BuildError::from);
        ended(&env.events, vertex, kept)?;
        env.events.finished(vertex, Outcome::Done);
        let blob = env.store.blob(&remote.blob.digest)?.ok_or(StepFailure::LayerVanished(layer.diff_id))?;
        foreign = Some((remote.blob.digest, blob.file));
    }
    let worker = Arc::clone(env);
    let encode = move || {
        let writer = match id {
            Some(_) => Grower::new(&worker, compression, clamp, listener)?,
            None => Grower::made_again(&worker, false)?,
        };
        let mut writer = Stoppable { inner: writer, cancel: &worker.cancel };
        let encoded = match (foreign, id) {
            // Somebody else's tar: only its own bytes have its diff id.
            (Some((blob, file)), _) => recompress(blob, file, compression, pace, &mut writer)?,
            (None, Some(id)) => worker.encode_layer(id, clamp, compression, pace, &mut writer)?,
            (None, None) => return Err(StepFailure::LayerVanished(layer.diff_id)),
        };
        if encoded.diff_id != layer.diff_id {
            return Err(StepFailure::LayerDiffId { wanted: layer.diff_id, found: encoded.diff_id });
        }
        writer.inner.commit_as(&worker.passing, encoded.digest)?;
        let digest = encoded.digest;
        worker.store.put_encoding(&layer.diff_id, &params, &digest, encoded.size)?;
        let (size, media_type) = (encoded.size, own.to_owned());
        let again = id.map(|layer| Again { layer, clamp, compression });
        let diff_id = layer.diff_id;
        Ok(LayerBlob { diff_id, digest, size, media_type, from: None, again })
    };
    Ok(pace.run(env, encode).await?)
}

/// A layer of a base whose blob was collected is still at its registry, and nowhere else: its files, which may be here, make
/// another tar than the one that the registry's image names.
fn at_its_registry(env: &ExecEnv, layer: ImageLayer, params: &str) -> Result<ImageLayer, BuildError> {
    let store = &env.store;
    let Some((digest, _)) = store.encoding(&layer.diff_id, PULLED)?.filter(|_| layer.is_base) else {
        return Ok(layer);
    };
    for known in [Some(digest), store.encoding(&layer.diff_id, params)?.map(|(digest, _)| digest)] {
        if known.is_some_and(|known| store.blob(&known).is_ok_and(|blob| blob.is_some())) {
            return Ok(layer);
        }
    }
    for (reference, resolution) in store.resolutions()? {
        let found = resolution.layers.iter().find(|known| known.blob == digest);
        if let (Some(known), Ok(from)) = (found, reference.parse()) {
            return Ok(ImageLayer { place: Place::There(RemoteLayer::of(known, &from)), ..layer });
        }
    }
    Ok(layer)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use rbuild_cache::layer::DEFAULT_ZSTD;

    use super::*;

    /// A frame that asks for a window of 128 MiB in its first six bytes, and has an empty archive in one block.
    fn of_large_window() -> Vec<u8> {
        let archive = [0; 1024];
        let block = (archive.len() as u32) << 3 | 1;
        [&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x88], &block.to_le_bytes()[..3], &archive].concat()
    }

    #[test]
    fn who_waits_for_a_share_has_no_permit_for_a_window() {
        let all = EncodeShare::wait(Compression::Zstd { level: 19 }, u64::MAX, true);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&of_large_window()).unwrap();
        let recompressing = std::thread::spawn(move || {
            recompress(Digest::of(b"blob"), file, DEFAULT_ZSTD, Pace::Ahead, &mut io::sink())
        });
        std::thread::sleep(Duration::from_millis(200));
        let (done, is_done) = channel();
        std::thread::spawn(move || {
            let bytes = of_large_window();
            let mut reader = LayerReader::sniff(bytes.as_slice(), &Limits::default()).unwrap();
            let copied = io::copy(&mut reader, &mut io::sink()).unwrap();
            done.send(copied).unwrap();
        });
        let copied = is_done.recv_timeout(Duration::from_secs(20));
        assert_eq!(copied, Ok(1024), "it waits for the permit of who waits for a share");
        drop(all);
        assert_eq!(recompressing.join().unwrap().unwrap().uncompressed, 1024);
    }
}
