//! Pushes images: layers, configs, manifests, attestations, index, tags last; all destinations at once.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::BytesMut;
use futures_util::future::{BoxFuture, join_all};
use futures_util::{TryStreamExt as _, stream};
use rbuild_cache::store::Store;
use rbuild_oci::{Digest, Reference, media_type};
use rbuild_registry::{BlobBody, BlobSource, BytesSource, Client, RegistryError};
use tokio::io::AsyncReadExt;
use tokio::sync::OnceCell;

use crate::assemble::index::ImageSet;
use crate::assemble::manifest::LayerBlob;
use crate::error::BuildError;
use crate::progress::{Events, Outcome, VertexId};

/// Bytes read from a blob at a time.
const READ_BYTES: usize = 256 << 10;

/// Whether a layer is at a repository, by the name of that and its digest.
type Arrivals = HashMap<(String, Digest), Arc<OnceCell<()>>>;

/// One push to one or more names. A layer goes to a repository once, whoever asks for it first; what failed is tried
/// again by who asks next.
pub struct Push {
    client: Client,
    store: Store,
    events: Events,
    names: Vec<Reference>,
    vertex: OnceLock<VertexId>,
    arrivals: Mutex<Arrivals>,
}

impl Push {
    /// Nothing is asked or sent yet, and nothing shown.
    pub fn new(client: &Client, store: &Store, events: &Events, names: Vec<Reference>) -> Self {
        Self {
            client: client.clone(),
            store: store.clone(),
            events: events.clone(),
            names,
            vertex: OnceLock::new(),
            arrivals: Mutex::default(),
        }
    }

    /// The same, shown under a vertex that has been started.
    pub fn under(self, vertex: VertexId) -> Self {
        Self { vertex: OnceLock::from(vertex), ..self }
    }

    /// Where to.
    pub fn names(&self) -> &[Reference] {
        &self.names
    }

    /// What it is shown under.
    pub fn vertex(&self) -> VertexId {
        *self.vertex.get_or_init(|| {
            let names: Vec<String> = self.names.iter().map(Reference::familiar).collect();
            let vertex = self.events.vertex(format!("pushing {}", names.join(", ")));
            self.events.started(vertex);
            vertex
        })
    }

    /// Ends its vertex, if anything was shown.
    pub fn ended(&self, outcome: Outcome) {
        if let Some(vertex) = self.vertex.get() {
            self.events.finished(*vertex, outcome);
        }
    }

    /// Sees to it that the repository of `name` has a layer: looks, mounts or uploads.
    pub async fn layer(&self, name: &Reference, layer: &LayerBlob) -> Result<(), RegistryError> {
        let arrival = {
            let mut arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(arrivals.entry((name.name(), layer.digest)).or_default())
        };
        arrival.get_or_try_init(|| self.send(name, layer)).await.copied()
    }

    /// Pushes to every name; `set` goes by the digest alone to those that have no tag. Nothing is tagged anywhere before
    /// all blobs of that destination are there; a failure of one destination does not stop the others, and the first
    /// failure is returned.
    pub async fn finish(&self, set: &ImageSet, names: &[Reference]) -> Result<(), BuildError> {
        let results = join_all(names.iter().map(|name| self.finish_one(set, name))).await;
        let failed = names.iter().zip(results).find_map(|(name, result)| Some((name, result.err()?)));
        match failed {
            Some((name, source)) => {
                Err(BuildError::Push { reference: name.familiar(), source: Box::new(source) })
            }
            None => Ok(()),
        }
    }

    async fn finish_one(&self, set: &ImageSet, name: &Reference) -> Result<(), RegistryError> {
        let name = name.clone().with_default_tag();
        let root = set.root();
        // A registry takes no manifest without what it names: one question answers them all. Should it have lost
        // something since, it refuses the tag, and gets everything.
        if self.is_there(&name, root.digest).await
            && self.client.push_manifest(&name, root.media_type, root.bytes.to_vec()).await.is_ok()
        {
            for layer in set.images.iter().flat_map(|image| &image.layers) {
                self.note_present(layer.digest);
            }
            return Ok(());
        }
        let layers = set.images.iter().flat_map(|image| &image.layers);
        for result in join_all(layers.map(|layer| self.layer(&name, layer))).await {
            result?;
        }
        for image in &set.images {
            let config = &image.image.config_bytes;
            let source = BytesSource(config.clone().into());
            self.client.push_blob(&name, image.image.id, config.len() as u64, &source, |_| {}).await?;
            if set.index.is_some() {
                // Members of an index have no tag.
                let member = name.only_digest(image.digest);
                self.client.push_manifest(&member, &image.media_type, image.manifest.clone()).await?;
            }
        }
        for attestation in &set.attestations {
            for blob in &attestation.blobs {
                let source = BytesSource(blob.bytes.clone().into());
                self.client.push_blob(&name, blob.digest, blob.bytes.len() as u64, &source, |_| {}).await?;
            }
            let manifest = &attestation.manifest;
            let member = name.only_digest(manifest.digest);
            self.client.push_manifest(&member, media_type::OCI_MANIFEST, manifest.bytes.clone()).await?;
        }
        self.client.push_manifest(&name, root.media_type, root.bytes.to_vec()).await?;
        Ok(())
    }

    /// Whether the repository has the whole image already. Not asked when layers of it were sent just now.
    async fn is_there(&self, name: &Reference, root: Digest) -> bool {
        let has_begun = {
            let arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
            arrivals.keys().any(|(repository, _)| *repository == name.name())
        };
        // Whatever is wrong with the answer, what comes next will say it better.
        !has_begun && self.client.has_manifest(&name.only_digest(root)).await.unwrap_or(false)
    }

    fn note_present(&self, digest: Digest) {
        self.events.note(self.vertex(), format!("{}: Layer already exists", digest.short()));
    }

    async fn send(&self, name: &Reference, layer: &LayerBlob) -> Result<(), RegistryError> {
        if self.client.has_blob(name, layer.digest).await? {
            self.note_present(layer.digest);
            return Ok(());
        }
        let vertex = self.vertex();
        if let Some(from) = mount_source(name, layer)
            && self.client.mount_blob(name, layer.digest, &from).await?
        {
            self.events.note(vertex, format!("{}: Mounted from {from}", layer.digest.short()));
            return Ok(());
        }
        let transfer = Arc::new(self.events.transfer(vertex, layer.digest.to_string(), Some(layer.size)));
        let report = Arc::clone(&transfer);
        let source = self.source(layer);
        self.client
            .push_blob(name, layer.digest, layer.size, source.as_ref(), move |bytes| report.set(bytes))
            .await?;
        if let Some(transfer) = Arc::into_inner(transfer) {
            transfer.finish();
        }
        Ok(())
    }

    /// Where the bytes of a layer are.
    fn source(&self, layer: &LayerBlob) -> Box<dyn BlobSource> {
        let digest = layer.digest;
        match (&layer.from, self.store.blob(&digest)) {
            (Some(from), Ok(None)) => {
                let (client, from, size) = (self.client.clone(), from.clone(), layer.size);
                Box::new(RemoteBlob { client, from, digest, size })
            }
            _ => Box::new(StoredBlob { store: self.store.clone(), digest }),
        }
    }
}

/// Another repository of the same registry that has the layer: the base image's.
fn mount_source(name: &Reference, layer: &LayerBlob) -> Option<String> {
    let from = layer.from.as_ref()?;
    let is_elsewhere = from.domain() == name.domain() && from.repository() != name.repository();
    is_elsewhere.then(|| from.repository().to_owned())
}

/// A blob that goes from one registry to another without staying here.
struct RemoteBlob {
    client: Client,
    from: Reference,
    digest: Digest,
    size: u64,
}

impl BlobSource for RemoteBlob {
    fn open(&self) -> BoxFuture<'_, io::Result<BlobBody>> {
        Box::pin(async move {
            let blob = self.client.blob(&self.from, self.digest, self.size, |_| {}).await;
            let stream = blob.map_err(io::Error::other)?.into_stream();
            Ok(Box::pin(stream.map_err(io::Error::other)) as BlobBody)
        })
    }
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
