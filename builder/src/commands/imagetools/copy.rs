//! From one repository to another, without a detour over the store: blobs are mounted where registry and rights allow
//! it, else they stream through.

use std::io;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, TryStreamExt as _};
use rbuild_oci::{Digest, Document, Reference};
use rbuild_registry::{BlobBody, BlobSource, Client, RegistryError, StoredManifest};

use super::{entries, identity};

/// Makes everything that a document names be at `to`, and the document itself, by digest.
pub(super) fn copy<'a>(
    client: &'a Client,
    from: &'a Reference,
    to: &'a Reference,
    stored: &'a StoredManifest,
) -> BoxFuture<'a, Result<(), RegistryError>> {
    Box::pin(async move {
        if from.name() == to.name() {
            return Ok(());
        }
        match &stored.document {
            Document::Index(_) => {
                for (digest, _) in entries(stored).iter().filter_map(identity) {
                    let at = from.at_digest(digest);
                    let child = client.manifest(&at).await?;
                    copy(client, &at, to, &child).await?;
                }
            }
            Document::Manifest(manifest) => {
                let all = manifest.layers().iter().chain([manifest.config()]);
                let blobs: Vec<(Digest, u64)> = all
                    .filter_map(|blob| Some((blob.digest().to_string().parse().ok()?, blob.size())))
                    .collect();
                let copies = blobs.iter().map(|(digest, size)| blob(client, from, to, *digest, *size));
                futures_util::future::try_join_all(copies).await?;
            }
        }
        let at = to.at_digest(stored.digest);
        client.push_manifest(&at, &stored.media_type, stored.bytes.clone()).await.map(drop)
    })
}

async fn blob(
    client: &Client,
    from: &Reference,
    to: &Reference,
    digest: Digest,
    size: u64,
) -> Result<(), RegistryError> {
    if client.has_blob(to, digest).await? {
        return Ok(());
    }
    if from.domain() == to.domain() && client.mount_blob(to, digest, from.repository()).await? {
        return Ok(());
    }
    let source = Remote { client: client.clone(), from: from.clone(), digest, size };
    client.push_blob(to, digest, size, &source, |_| {}).await.map(drop)
}

/// A blob at a registry as the source of an upload to another one.
struct Remote {
    client: Client,
    from: Reference,
    digest: Digest,
    size: u64,
}

impl BlobSource for Remote {
    fn open(&self) -> BoxFuture<'_, io::Result<BlobBody>> {
        Box::pin(async {
            let stream = self.client.blob(&self.from, self.digest, self.size, |_| {}).await;
            Ok(stream.map_err(io::Error::other)?.into_stream().map_err(io::Error::other).boxed())
        })
    }
}
