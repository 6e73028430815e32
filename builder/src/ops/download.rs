//! Blobs from registries: once in all processes, through bounded buffers, into whatever reads them.

use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use rbuild_cache::store::{ImageRecord, Key, KeyLock, ResolvedLayer};
use rbuild_oci::{CanonicalWriter, DiffId, Digest, Reference};
use tokio::sync::mpsc::{Receiver, channel};

use crate::error::StepFailure;
use crate::ops::{ExecEnv, blocking};
use crate::progress::VertexId;
use crate::resolve::BlobRef;

/// Chunks in flight between the network and the thread that reads them. Where the network is the faster one a chunk holds
/// on to a read buffer of several hundred KiB.
const CHUNKS_IN_FLIGHT: usize = 4;

/// A layer of an image that was left at its registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteLayer {
    /// Digest of its uncompressed tar, by the image's word.
    pub diff_id: DiffId,
    /// The blob.
    pub blob: BlobRef,
    /// An image that has it.
    pub from: Reference,
}

impl RemoteLayer {
    /// A layer as it was resolved.
    pub fn of(layer: &ResolvedLayer, from: &Reference) -> Self {
        let (digest, size, media_type) = (layer.blob, layer.size, layer.media_type.clone());
        Self { diff_id: layer.diff_id, blob: BlobRef { digest, size, media_type }, from: from.clone() }
    }
}

/// One download across all processes: the lock is per layer.
pub async fn lock(env: &Arc<ExecEnv>, diff_id: DiffId, vertex: VertexId) -> Result<KeyLock, StepFailure> {
    let mut out = CanonicalWriter::new("pull/1");
    out.value(&diff_id.0);
    let key = Key::content(*blake3::hash(&out.finish()).as_bytes());
    let name = format!("pull of {diff_id}");
    if let Some(lock) = env.store.try_key_lock(&key, &name)? {
        return Ok(lock);
    }
    let (store, events) = (env.store.clone(), env.events.clone());
    blocking(move || {
        Ok(store.key_lock(&key, &name, |holder| {
            let text = format!("waiting for another build that pulls the same layer (pid {})", holder.pid);
            events.note(vertex, text);
        })?)
    })
    .await
}

/// Downloads a blob into `consume`, which reads it on a thread of its own and checks what it read.
pub async fn stream<T: Send + 'static>(
    env: &Arc<ExecEnv>,
    from: &Reference,
    blob: &BlobRef,
    vertex: VertexId,
    consume: impl FnOnce(ChannelReader) -> Result<T, StepFailure> + Send + 'static,
) -> Result<T, StepFailure> {
    let transfer = Arc::new(env.events.transfer(vertex, blob.digest.to_string(), Some(blob.size)));
    let report = Arc::clone(&transfer);
    let mut stream = env.registry.blob(from, blob.digest, blob.size, move |bytes| report.set(bytes)).await?;
    let (sender, receiver) = channel::<Result<Bytes, Broken>>(CHUNKS_IN_FLIGHT);
    let consuming =
        tokio::task::spawn_blocking(move || consume(ChannelReader { receiver, chunk: Bytes::new() }));
    let mut failed = None;
    loop {
        let chunk = tokio::select! {
            chunk = stream.chunk() => chunk,
            () = env.cancel.cancelled() => break,
        };
        let item = match chunk {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => break,
            Err(error) => {
                failed = Some(error);
                Err(Broken)
            }
        };
        if sender.send(item).await.is_err() || failed.is_some() {
            break;
        }
    }
    drop(sender);
    let result = match consuming.await {
        Ok(result) => result,
        Err(join) => std::panic::resume_unwind(join.into_panic()),
    };
    if env.cancel.reason().is_some() {
        return Err(StepFailure::Canceled);
    }
    if let Some(error) = failed {
        return Err(error.into());
    }
    let done = result?;
    if let Some(transfer) = Arc::into_inner(transfer) {
        transfer.finish();
    }
    Ok(done)
}

/// Brings the blobs of layers that were left elsewhere into the store, all at once; those that are here stay.
pub async fn keep(env: &Arc<ExecEnv>, layers: &[RemoteLayer], vertex: VertexId) -> Result<(), StepFailure> {
    let kept = layers.iter().map(|layer| keep_one(env, layer, vertex));
    futures_util::future::try_join_all(kept).await.map(drop)
}

async fn keep_one(env: &Arc<ExecEnv>, layer: &RemoteLayer, vertex: VertexId) -> Result<(), StepFailure> {
    if env.store.blob(&layer.blob.digest)?.is_some() {
        return Ok(());
    }
    let _lock = lock(env, layer.diff_id, vertex).await?;
    // Another process may have brought it in meanwhile.
    if env.store.blob(&layer.blob.digest)?.is_some() {
        return Ok(());
    }
    let digest = layer.blob.digest;
    let failed = match stream(env, &layer.from, &layer.blob, vertex, writing(env, digest)).await {
        Err(StepFailure::Registry(source)) => source,
        done => return done,
    };
    for other in also_at(env, layer)? {
        // What was wrong at the first place is said: there it was left.
        match stream(env, &other, &layer.blob, vertex, writing(env, digest)).await {
            Ok(()) => return Ok(()),
            Err(StepFailure::Canceled) => return Err(StepFailure::Canceled),
            Err(_) => {}
        }
    }
    Err(StepFailure::LayerElsewhere { layer: digest, from: layer.from.to_string(), source: failed })
}

/// Names of images that have the layer and are at other places: they may have been pushed there.
fn also_at(env: &ExecEnv, layer: &RemoteLayer) -> Result<Vec<Reference>, StepFailure> {
    let has = |record: &ImageRecord| {
        record.each().flat_map(ImageRecord::absent_layers).any(|other| other.blob == layer.blob.digest)
    };
    let names = env.store.images()?.into_iter().filter(|(_, record)| has(record));
    let mut places: Vec<Reference> = names.filter_map(|(name, _)| name.parse().ok()).collect();
    places.retain(|place| place.name() != layer.from.name());
    places.dedup_by_key(|place| place.name());
    Ok(places)
}

/// Makes what it reads a blob of the store.
fn writing(
    env: &Arc<ExecEnv>,
    digest: Digest,
) -> impl FnOnce(ChannelReader) -> Result<(), StepFailure> + Send + 'static {
    let env = Arc::clone(env);
    move |mut reader| {
        let mut writer = env.store.ingest(&env.lease)?;
        let io =
            |source| StepFailure::Io { what: "store the blob of", path: format!("layer {digest}"), source };
        let mut buffer = vec![0; 256 << 10];
        loop {
            match reader.read(&mut buffer).map_err(io)? {
                0 => break,
                count => writer.write_all(&buffer[..count]).map_err(io)?,
            }
        }
        writer.commit(Some(digest))?;
        Ok(())
    }
}

/// The download ended before its end; why is known where it was started.
struct Broken;

/// Reads the chunks of a channel; a closed channel is the end.
pub struct ChannelReader {
    receiver: Receiver<Result<Bytes, Broken>>,
    chunk: Bytes,
}

impl Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.receiver.blocking_recv() {
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(Broken)) => return Err(io::Error::other("the download broke off")),
                None => return Ok(0),
            }
        }
        let count = self.chunk.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.chunk.split_to(count));
        Ok(count)
    }
}
