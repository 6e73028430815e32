//! Pushes images: layers, configs, manifests, attestations, index, tags last; all destinations at once.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use futures_util::future::{BoxFuture, join_all};
use futures_util::{TryStreamExt as _, stream};
use rbuild_cache::store::{Resolution, StoreError};
use rbuild_oci::{Digest, Reference, media_type};
use rbuild_registry::{BlobBody, BlobSource, BytesSource, Client, PushOutcome, RegistryError};
use tokio::sync::OnceCell;

use crate::assemble::attestation::Blob;
use crate::assemble::file_blob::FileBlob;
use crate::assemble::growing::{Along, Growing, read_at};
use crate::assemble::index::ImageSet;
use crate::assemble::manifest::LayerBlob;
use crate::assemble::passing;
use crate::error::BuildError;
use crate::ops::ExecEnv;
use crate::progress::{Outcome, VertexId};

/// Bytes read from a blob at a time.
const READ_BYTES: u64 = 256 << 10;

/// Set when a layer is at a repository; locked while somebody brings it there.
type Arrival = Arc<OnceCell<()>>;

#[derive(Default)]
struct Arrivals {
    /// By the name of the repository and the digest of the layer.
    known: HashMap<(String, Digest), Arrival>,
    /// Of layers that had no digest when they were begun.
    growing: Vec<(Reference, Growing, Arrival)>,
}

/// One push to one or more names. A layer goes to a repository once, whoever asks for it first; what failed is tried
/// again by who asks next.
pub struct Push {
    client: Client,
    env: Arc<ExecEnv>,
    names: Vec<Reference>,
    vertex: OnceLock<VertexId>,
    arrivals: Mutex<Arrivals>,
    /// Layers whose sending began before they were whole.
    streams: AtomicUsize,
    /// Images that were pulled, and the blobs of their layers; looked up when one is missing.
    pulled: OnceLock<Vec<(Reference, Vec<Digest>)>>,
}

impl Arrivals {
    /// What to wait for; with it comes another repository of the same registry that gets the layer first.
    fn of(&mut self, name: &Reference, digest: Digest) -> (Arrival, Option<Reference>) {
        let same_registry = |(to, growing, _): &&(Reference, Growing, Arrival)| {
            to.domain() == name.domain() && growing.digest() == Some(digest)
        };
        let begun = self.growing.iter().find(same_registry);
        let arrival = self.known.entry((name.name(), digest)).or_insert_with(|| match begun {
            Some((to, _, arrival)) if to.name() == name.name() => Arc::clone(arrival),
            _ => Arrival::default(),
        });
        (Arc::clone(arrival), begun.map(|(to, ..)| to.clone()).filter(|to| to.name() != name.name()))
    }

    /// Whether any layer was on its way to the repository.
    fn has_begun(&self, repository: &str) -> bool {
        let known = self.known.keys().any(|(name, _)| name == repository);
        known || self.growing.iter().any(|(name, ..)| name.name() == repository)
    }
}

impl Push {
    /// Nothing is asked or sent yet, and nothing shown.
    pub fn new(client: &Client, env: &Arc<ExecEnv>, names: Vec<Reference>) -> Self {
        Self {
            client: client.clone(),
            env: Arc::clone(env),
            names,
            vertex: OnceLock::new(),
            arrivals: Mutex::default(),
            streams: AtomicUsize::new(0),
            pulled: OnceLock::new(),
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
            let vertex = self.env.events.vertex(format!("pushing {}", names.join(", ")));
            self.env.events.started(vertex);
            vertex
        })
    }

    /// Ends its vertex, if anything was shown.
    pub fn ended(&self, outcome: Outcome) {
        if let Some(vertex) = self.vertex.get() {
            self.env.events.finished(*vertex, outcome);
        }
    }

    /// Sends a layer while it is being made, to one repository of each registry. What goes wrong is tried again by who
    /// asks for the whole layer.
    pub async fn stream(&self, growing: &Growing) {
        let begun = {
            let mut arrivals = self.arrivals();
            // Too late: it may have been asked for by its digest.
            if growing.digest().is_some() {
                return;
            }
            let mut registries = HashSet::new();
            let first = |name: &&Reference| registries.insert(name.domain().to_owned());
            let begin = |name| (name, Arrival::default(), growing.along());
            let begun: Vec<_> = self.names.iter().filter(first).map(begin).collect();
            let known = |(name, arrival, _): &(&Reference, Arrival, Along)| {
                ((*name).clone(), growing.clone(), Arc::clone(arrival))
            };
            arrivals.growing.extend(begun.iter().map(known));
            begun
        };
        let sent = begun.into_iter().map(async |(name, arrival, along)| {
            arrival.get_or_try_init(|| self.send_growing(name, growing, along)).await.copied()
        });
        join_all(sent).await;
    }

    /// Sees to it that the repository of `name` has a layer: looks, mounts or uploads.
    pub async fn layer(&self, name: &Reference, layer: &LayerBlob) -> Result<(), RegistryError> {
        let (arrival, first) = self.arrivals().of(name, layer.digest);
        if let Some(first) = first {
            // From there it is mounted; if it did not get there, this repository gets it by itself.
            let _ = Box::pin(self.layer(&first, layer)).await;
        }
        arrival.get_or_try_init(|| self.send(name, layer)).await.copied()
    }

    fn arrivals(&self) -> MutexGuard<'_, Arrivals> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
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
            let Blob { bytes, digest } = &attestation.config;
            let source = BytesSource(bytes.clone().into());
            self.client.push_blob(&name, *digest, bytes.len() as u64, &source, |_| {}).await?;
            for blob in &attestation.statements {
                self.client.push_blob(&name, blob.digest, blob.size, blob, |_| {}).await?;
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
        let has_begun = self.arrivals().has_begun(&name.name());
        // Whatever is wrong with the answer, what comes next will say it better.
        !has_begun && self.client.has_manifest(&name.only_digest(root)).await.unwrap_or(false)
    }

    fn note_present(&self, digest: Digest) {
        self.env.events.note(self.vertex(), format!("{}: Layer already exists", digest.short()));
    }

    async fn send(&self, name: &Reference, layer: &LayerBlob) -> Result<(), RegistryError> {
        if self.client.has_blob(name, layer.digest).await? {
            self.note_present(layer.digest);
            return Ok(());
        }
        let vertex = self.vertex();
        if let Some(from) = self.mount_source(name, layer)
            && self.client.mount_blob(name, layer.digest, &from).await?
        {
            self.env.events.note(vertex, format!("{}: Mounted from {from}", layer.digest.short()));
            return Ok(());
        }
        let transfer = Arc::new(self.env.events.transfer(vertex, layer.digest.to_string(), Some(layer.size)));
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

    /// Another repository of the same registry that has the layer: it was left there, or came from there.
    fn mount_source(&self, name: &Reference, layer: &LayerBlob) -> Option<String> {
        let is_elsewhere =
            |from: &&Reference| from.domain() == name.domain() && from.repository() != name.repository();
        let pulled = || self.pulled.get_or_init(|| pulled(&self.env).unwrap_or_default()).iter();
        let having = pulled().filter(|(_, blobs)| blobs.contains(&layer.digest)).map(|(from, _)| from);
        layer.from.iter().chain(having).find(is_elsewhere).map(|from| from.repository().to_owned())
    }

    async fn send_growing(
        &self,
        name: &Reference,
        growing: &Growing,
        along: Along,
    ) -> Result<(), RegistryError> {
        let vertex = self.vertex();
        let number = self.streams.fetch_add(1, Ordering::Relaxed) + 1;
        let begun = Arc::new(self.env.events.transfer(vertex, format!("layer {number}"), None));
        let report = Arc::clone(&begun);
        let outcome = self.client.push_growing_blob(name, &along, move |bytes| report.set(bytes)).await;
        if let Some(begun) = Arc::into_inner(begun) {
            begun.finish();
        }
        if outcome? == PushOutcome::AlreadyThere
            && let Some(digest) = growing.digest()
        {
            self.note_present(digest);
        }
        Ok(())
    }

    /// Where the bytes of a layer are.
    fn source(&self, layer: &LayerBlob) -> Box<dyn BlobSource> {
        let digest = layer.digest;
        match (&layer.from, self.env.store.blob(&digest)) {
            (Some(from), Ok(None)) => {
                let (client, from, size) = (self.client.clone(), from.clone(), layer.size);
                Box::new(RemoteBlob { client, from, digest, size })
            }
            _ => Box::new(OwnBlob { env: Arc::clone(&self.env), layer: layer.clone() }),
        }
    }
}

fn pulled(env: &ExecEnv) -> Result<Vec<(Reference, Vec<Digest>)>, StoreError> {
    let known = env.store.resolutions()?.into_iter();
    let blobs = |resolution: Resolution| resolution.layers.iter().map(|layer| layer.blob).collect();
    Ok(known.filter_map(|(name, resolution)| Some((name.parse().ok()?, blobs(resolution)))).collect())
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

/// A blob of the store, or one that passes through, opened anew for every try; made again if it is neither.
struct OwnBlob {
    env: Arc<ExecEnv>,
    layer: LayerBlob,
}

impl OwnBlob {
    async fn file(&self) -> io::Result<Arc<File>> {
        let (env, digest) = (&self.env, &self.layer.digest);
        passing::make(env, &self.layer, true).await.map_err(io::Error::other)?;
        if let Some(file) = env.passing.file(digest) {
            return Ok(file);
        }
        let blob = env.store.blob(digest).map_err(io::Error::other)?;
        Ok(Arc::new(blob.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?.file))
    }
}

impl BlobSource for OwnBlob {
    fn open(&self) -> BoxFuture<'_, io::Result<BlobBody>> {
        Box::pin(async move { Ok(body(self.file().await?, self.layer.size)) })
    }
}

impl BlobSource for FileBlob {
    fn open(&self) -> BoxFuture<'_, io::Result<BlobBody>> {
        Box::pin(async move { Ok(body(Arc::clone(&self.file), self.size)) })
    }
}

fn body(file: Arc<File>, size: u64) -> BlobBody {
    Box::pin(stream::try_unfold((file, 0), move |(file, at)| async move {
        let piece = read_at(&file, at, READ_BYTES.min(size - at)).await?;
        let end = at + piece.len() as u64;
        Ok((!piece.is_empty()).then_some((piece, (file, end))))
    }))
}
