//! Pushes images: layers, configs, manifests, attestations, index, tags last; all destinations at once.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use futures_util::future::BoxFuture;
use futures_util::stream;
use rbuild_cache::store::Store;
use rbuild_oci::{Digest, Reference, media_type};
use rbuild_registry::{BlobBody, BlobSource, BytesSource, Client, RegistryError};
use tokio::io::AsyncReadExt;

use crate::assemble::index::ImageSet;
use crate::assemble::manifest::{LayerBlob, PackedImage};
use crate::error::BuildError;
use crate::progress::{Events, VertexId};
use crate::resolve::Origin;

/// Bytes read from a blob at a time.
const READ_BYTES: usize = 256 << 10;

/// Pushes to every name. Nothing is tagged anywhere before all blobs of that destination are there; a failure of one
/// destination does not stop the others, and the first failure is returned.
pub async fn push(
    client: &Client,
    store: &Store,
    set: &ImageSet,
    names: &[Reference],
    events: &Events,
    vertex: VertexId,
) -> Result<(), BuildError> {
    let pushes = names.iter().map(|name| push_one(client, store, set, name, events, vertex));
    let mut first = Ok(());
    for (name, result) in names.iter().zip(futures_util::future::join_all(pushes).await) {
        if let Err(source) = result
            && first.is_ok()
        {
            first = Err(BuildError::Push { reference: name.familiar(), source: Box::new(source) });
        }
    }
    first
}

async fn push_one(
    client: &Client,
    store: &Store,
    set: &ImageSet,
    name: &Reference,
    events: &Events,
    vertex: VertexId,
) -> Result<(), RegistryError> {
    let name = name.clone().with_default_tag();
    let mut seen: Vec<Digest> = Vec::new();
    let mut uploads = Vec::new();
    for image in &set.images {
        for layer in &image.layers {
            if !seen.contains(&layer.digest) {
                seen.push(layer.digest);
                uploads.push(push_layer(client, store, image, &name, layer, events, vertex));
            }
        }
    }
    for result in futures_util::future::join_all(uploads).await {
        result?;
    }
    for image in &set.images {
        let config = &image.image.config_bytes;
        let source = BytesSource(config.clone().into());
        client.push_blob(&name, image.image.id, config.len() as u64, &source, |_| {}).await?;
        if set.index.is_some() {
            // Members of an index have no tag.
            let member = name.only_digest(image.digest);
            client.push_manifest(&member, &image.media_type, image.manifest.clone()).await?;
        }
    }
    for attestation in &set.attestations {
        for blob in &attestation.blobs {
            let source = BytesSource(blob.bytes.clone().into());
            client.push_blob(&name, blob.digest, blob.bytes.len() as u64, &source, |_| {}).await?;
        }
        let manifest = &attestation.manifest;
        let member = name.only_digest(manifest.digest);
        client.push_manifest(&member, media_type::OCI_MANIFEST, manifest.bytes.clone()).await?;
    }
    let root = set.root();
    client.push_manifest(&name, root.media_type, root.bytes.to_vec()).await?;
    Ok(())
}

async fn push_layer(
    client: &Client,
    store: &Store,
    image: &PackedImage,
    name: &Reference,
    layer: &LayerBlob,
    events: &Events,
    vertex: VertexId,
) -> Result<(), RegistryError> {
    if client.has_blob(name, layer.digest).await? {
        events.note(vertex, format!("{} layer already exists", short(layer.digest)));
        return Ok(());
    }
    if let Some(from) = mount_source(image, name, layer)
        && client.mount_blob(name, layer.digest, &from).await?
    {
        events.note(vertex, format!("{} mounted from {from}", short(layer.digest)));
        return Ok(());
    }
    let transfer = Arc::new(events.transfer(vertex, layer.digest.to_string(), Some(layer.size)));
    let report = Arc::clone(&transfer);
    let source = StoredBlob { store: store.clone(), digest: layer.digest };
    client.push_blob(name, layer.digest, layer.size, &source, move |bytes| report.set(bytes)).await?;
    if let Some(transfer) = Arc::into_inner(transfer) {
        transfer.finish();
    }
    Ok(())
}

fn short(digest: Digest) -> String {
    format!("sha256:{}", digest.short())
}

/// Repository of the same registry that has the layer: the base image's.
fn mount_source(image: &PackedImage, name: &Reference, layer: &LayerBlob) -> Option<String> {
    let base = image.image.base.as_ref()?;
    let Origin::Registry(reference) = &base.origin else { return None };
    let has = base.layers.iter().any(|l| l.blob.as_ref().is_some_and(|blob| blob.digest == layer.digest));
    let elsewhere = reference.domain() == name.domain() && reference.repository() != name.repository();
    (has && elsewhere).then(|| reference.repository().to_owned())
}

/// A blob of the store, opened anew for every try.
struct StoredBlob {
    store: Store,
    digest: Digest,
}

impl BlobSource for StoredBlob {
    fn open(&self) -> BoxFuture<'_, io::Result<BlobBody>> {
        Box::pin(async move {
            let blob = self.store.blob(&self.digest).map_err(io::Error::other)?;
            let file = blob.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?.file;
            let body = stream::try_unfold(tokio::fs::File::from_std(file), |mut file| async move {
                let mut buffer = BytesMut::with_capacity(READ_BYTES);
                let count = file.read_buf(&mut buffer).await?;
                Ok((count > 0).then(|| (buffer.freeze(), file)))
            });
            Ok(Box::pin(body) as BlobBody)
        })
    }
}
