//! The manifest of an image: its layers in their exported form.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::Arc;

use rbuild_cache::layer::{self, Compression};
use rbuild_oci::{DiffId, Digest, canonical_json, media_type};
use serde_json::json;

use crate::assemble::{BuiltImage, ImageLayer};
use crate::error::BuildError;
use crate::ops::{ExecEnv, blocking, layer_diff};
use crate::resolve::PULLED;

/// A layer as the manifest names it; its bytes are a blob of the store.
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

/// Compresses what was never compressed and writes the manifest. A blob that exists is never encoded again, and a
/// layer is encoded once in its life for given parameters.
pub async fn pack(
    env: &Arc<ExecEnv>,
    image: BuiltImage,
    compression: Compression,
) -> Result<PackedImage, BuildError> {
    let packs = image.layers.iter().map(|layer| layer_blob(env, layer.clone(), image.clamp, compression));
    let mut layers = Vec::with_capacity(image.layers.len());
    for blob in futures_util::future::join_all(packs).await {
        layers.push(blob?);
    }
    let manifest = canonical_json(&json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": {
            "mediaType": media_type::OCI_CONFIG,
            "digest": image.id,
            "size": image.config_bytes.len(),
        },
        "layers": layers
            .iter()
            .map(|layer| json!({"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}))
            .collect::<Vec<_>>(),
    }));
    let media_type = media_type::OCI_MANIFEST.to_owned();
    Ok(PackedImage { digest: Digest::of(&manifest), image, layers, manifest, media_type })
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

async fn layer_blob(
    env: &Arc<ExecEnv>,
    layer: ImageLayer,
    clamp: Option<i64>,
    compression: Compression,
) -> Result<LayerBlob, BuildError> {
    let own = match compression {
        Compression::None => media_type::OCI_LAYER,
        Compression::Gzip { .. } => media_type::OCI_LAYER_GZIP,
        Compression::Zstd { .. } => media_type::OCI_LAYER_ZSTD,
    };
    let params = compression.params();
    let pulled = if layer.is_base { env.store.encoding(&layer.diff_id, PULLED)? } else { None };
    for (digest, size) in pulled.into_iter().chain(env.store.encoding(&layer.diff_id, &params)?) {
        if let Some(blob) = env.store.blob(&digest)? {
            let media_type = sniff(&blob.file).unwrap_or(own);
            return Ok(LayerBlob { diff_id: layer.diff_id, digest, size, media_type: media_type.to_owned() });
        }
    }
    let _slot = env.disk_slots.acquire().await.expect("the semaphore is never closed");
    let worker = Arc::clone(env);
    let blob = blocking(move || {
        let diff = layer_diff(&worker, layer.id)?;
        let dir = worker.store.layer_dir(layer.id)?;
        let clamp = if layer.is_base { None } else { clamp };
        let mut writer = worker.store.ingest(&worker.lease)?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let encoded = layer::encode(
            |out| layer::emit_tar(dir.as_fd(), &diff, clamp, out),
            compression,
            &mut writer,
            threads,
        )?;
        if encoded.diff_id != layer.diff_id {
            return Err(crate::error::StepFailure::LayerDiffId {
                wanted: layer.diff_id,
                found: encoded.diff_id,
            });
        }
        let digest = writer.commit(Some(encoded.digest))?;
        worker.store.put_encoding(&layer.diff_id, &params, &digest, encoded.size)?;
        Ok(LayerBlob { diff_id: layer.diff_id, digest, size: encoded.size, media_type: own.to_owned() })
    })
    .await?;
    Ok(blob)
}
