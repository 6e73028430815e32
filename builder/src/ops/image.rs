//! Makes a base image's layers local: download, verify, decompress, unpack, all layers at once.
//!
//! Each layer streams socket -> SHA-256 and blob file -> inflate -> SHA-256 -> files, with bounded buffers; inflating
//! and making files are two threads. Nothing becomes visible before the blob's digest and the layer's diff id both
//! match.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use bytes::Bytes;
use rbuild_cache::copy::FileSource;
use rbuild_cache::layer::{self, Limits, UnpackBlobError, Unpacked, encode_diff};
use rbuild_cache::store::{BlobWriter, Key, LayerDraft, LayerId};
use rbuild_cache::tree::{Kind, Tree};
use rbuild_oci::{CanonicalWriter, ChainId, DiffId};
use rbuild_registry::RegistryError;

use crate::cancel::Cancel;
use crate::error::StepFailure;
use crate::ops::{ExecEnv, blocking, layer_diff, size_bytes};
use crate::progress::{Outcome, VertexId};
use crate::resolve::{BaseImage, BaseLayer, BlobRef, Origin, PULLED};
use crate::solve::Solved;

/// Chunks in flight between the network and the unpacking thread.
const CHUNKS_IN_FLIGHT: usize = 64;

/// Brings in what is missing and returns the image's state.
pub async fn materialise(
    env: &Arc<ExecEnv>,
    image: &Arc<BaseImage>,
    vertex: VertexId,
) -> Result<Solved, StepFailure> {
    env.events.started(vertex);
    let mut missing = Vec::new();
    let mut local: Vec<Option<LayerId>> = Vec::with_capacity(image.layers.len());
    for layer in &image.layers {
        let id = env.store.layer_by_diff_id(&layer.diff_id)?;
        if id.is_none() && !missing.contains(layer) {
            missing.push(layer.clone());
        }
        local.push(id);
    }
    let pulled_any = !missing.is_empty();
    let pulls = missing.into_iter().map(|layer| {
        let (env, image) = (Arc::clone(env), Arc::clone(image));
        async move { pull_layer(&env, &image, &layer, vertex).await }
    });
    let mut pending: Vec<Pending> = Vec::new();
    for result in futures_util::future::join_all(pulls).await {
        pending.extend(result?);
    }
    let mut stack = Vec::with_capacity(image.layers.len());
    for (layer, id) in image.layers.iter().zip(local) {
        let id = match id {
            Some(id) => id,
            None => match pending.iter().position(|p| p.layer.diff_id == layer.diff_id) {
                Some(at) => {
                    let below = Solved { tree: stack_tree(env, image, &stack)?, stack: stack.clone() };
                    pending.swap_remove(at).commit(env, &below)?
                }
                None => {
                    let found = env.store.layer_by_diff_id(&layer.diff_id)?;
                    found.ok_or(StepFailure::LayerVanished(layer.diff_id))?
                }
            },
        };
        stack.push(id);
    }
    let tree = stack_tree(env, image, &stack)?;
    let outcome = if pulled_any { Outcome::Done } else { Outcome::Cached };
    env.events.finished(vertex, outcome);
    Ok(Solved { tree, stack })
}

/// A verified layer that cannot be committed before the layers below it are known: its archive leaves directories
/// out, whose metadata must come from below.
struct Pending {
    layer: BaseLayer,
    blob: BlobRef,
    draft: LayerDraft,
    unpacked: Unpacked,
    tar_bytes: u64,
}

impl Pending {
    fn commit(mut self, env: &ExecEnv, below: &Solved) -> Result<LayerId, StepFailure> {
        let files = env.stack_source(below)?;
        let fixed =
            layer::fix_implied(self.draft.diff_fd().as_fd(), env.overlay, &mut self.unpacked, |path| {
                let Some(entry) = below.tree.get(&env.store, path)? else { return Ok(None) };
                let is_dir = matches!(entry.kind, Kind::Dir(_));
                Ok(if is_dir { Some((entry.meta, files.mtime(path)?)) } else { None })
            });
        fixed.map_err(|source| StepFailure::Unpack { layer: self.blob.digest, source })?;
        let size = size_bytes(&self.unpacked.diff);
        let id = env.store.commit_layer(self.draft, &encode_diff(&self.unpacked.diff), size)?;
        env.store.set_diff_id(id, &self.layer.diff_id, self.tar_bytes)?;
        env.store.put_encoding(&self.layer.diff_id, PULLED, &self.blob.digest, self.blob.size)?;
        Ok(id)
    }
}

/// Tree of a stack of image layers, remembered by chain id.
fn stack_tree(env: &ExecEnv, image: &BaseImage, stack: &[LayerId]) -> Result<Tree, StepFailure> {
    let diff_ids: Vec<DiffId> = image.layers.iter().map(|layer| layer.diff_id).collect();
    let known = |count: usize| -> Result<Option<Tree>, StepFailure> {
        let Some(chain) = ChainId::of(&diff_ids[..count]) else { return Ok(Some(Tree::empty())) };
        Ok(env.store.chain_tree(&chain)?.and_then(|bytes| Tree::decode(&bytes).ok()))
    };
    let (mut count, mut tree) = (stack.len(), None);
    while tree.is_none() {
        tree = known(count)?;
        if tree.is_none() {
            count -= 1;
        }
    }
    let mut tree = tree.unwrap_or_else(Tree::empty);
    for at in count..stack.len() {
        tree = tree.apply(&env.store, &layer_diff(env, stack[at])?)?;
        if let Some(chain) = ChainId::of(&diff_ids[..=at]) {
            env.store.put_chain_tree(&chain, &tree.encode())?;
        }
    }
    Ok(tree)
}

/// One download across all processes: the lock is per layer.
fn pull_key(diff_id: DiffId) -> Key {
    let mut out = CanonicalWriter::new("pull/1");
    out.value(&diff_id.0);
    Key::content(*blake3::hash(&out.finish()).as_bytes())
}

async fn pull_layer(
    env: &Arc<ExecEnv>,
    image: &Arc<BaseImage>,
    layer: &BaseLayer,
    vertex: VertexId,
) -> Result<Option<Pending>, StepFailure> {
    let key = pull_key(layer.diff_id);
    let name = format!("pull of {}", layer.diff_id);
    let lock = match env.store.try_key_lock(&key, &name)? {
        Some(lock) => lock,
        None => {
            let (store, events) = (env.store.clone(), env.events.clone());
            blocking(move || {
                Ok(store.key_lock(&key, &name, |holder| {
                    let text =
                        format!("waiting for another build that pulls the same layer (pid {})", holder.pid);
                    events.note(vertex, text);
                })?)
            })
            .await?
        }
    };
    if env.store.layer_by_diff_id(&layer.diff_id)?.is_some() {
        return Ok(None);
    }
    let blob = layer.blob.clone().ok_or(StepFailure::LayerVanished(layer.diff_id))?;
    let done = if let Some(file) = env.store.blob(&blob.digest)? {
        let (env, layer) = (Arc::clone(env), layer.clone());
        blocking(move || unpack(&env, &layer, &blob, file.file, None)).await
    } else {
        match &image.origin {
            Origin::Layout(layout) => {
                let file = layout.blob(blob.digest)?;
                let (env, layer) = (Arc::clone(env), layer.clone());
                blocking(move || {
                    let writer = env.store.ingest(&env.lease)?;
                    unpack(&env, &layer, &blob, file, Some(writer))
                })
                .await
            }
            Origin::Registry(reference) => download(env, reference, layer, blob, vertex).await,
            Origin::Local => Err(StepFailure::LayerVanished(layer.diff_id)),
        }
    };
    drop(lock);
    match done {
        Err(_) if env.cancel.reason().is_some() => Err(StepFailure::Canceled),
        done => done,
    }
}

async fn download(
    env: &Arc<ExecEnv>,
    reference: &rbuild_oci::Reference,
    layer: &BaseLayer,
    blob: BlobRef,
    vertex: VertexId,
) -> Result<Option<Pending>, StepFailure> {
    let transfer = Arc::new(env.events.transfer(vertex, blob.digest.to_string(), Some(blob.size)));
    let report = Arc::clone(&transfer);
    let mut stream =
        env.registry.blob(reference, blob.digest, blob.size, move |bytes| report.set(bytes)).await?;
    let (sender, receiver) = sync_channel::<Result<Bytes, RegistryError>>(CHUNKS_IN_FLIGHT);
    let unpacking = {
        let (env, layer, blob) = (Arc::clone(env), layer.clone(), blob.clone());
        tokio::task::spawn_blocking(move || {
            let writer = env.store.ingest(&env.lease)?;
            unpack(&env, &layer, &blob, ChannelReader { receiver, chunk: Bytes::new() }, Some(writer))
        })
    };
    loop {
        let chunk = tokio::select! {
            chunk = stream.chunk() => chunk,
            () = env.cancel.cancelled() => break,
        };
        let (item, is_last) = match chunk {
            Ok(Some(bytes)) => (Ok(bytes), false),
            Ok(None) => break,
            Err(error) => (Err(error), true),
        };
        // A full channel means that unpacking is behind: give the thread time without blocking the runtime.
        if send(&sender, item).await.is_err() || is_last {
            break;
        }
    }
    drop(sender);
    let result = match unpacking.await {
        Ok(result) => result,
        Err(join) => std::panic::resume_unwind(join.into_panic()),
    };
    if env.cancel.reason().is_some() {
        return Err(StepFailure::Canceled);
    }
    let pending = result?;
    if let Some(transfer) = Arc::into_inner(transfer) {
        transfer.finish();
    }
    Ok(pending)
}

async fn send<T: Send + 'static>(sender: &std::sync::mpsc::SyncSender<T>, item: T) -> Result<(), ()> {
    use std::sync::mpsc::TrySendError;
    match sender.try_send(item) {
        Ok(()) => Ok(()),
        Err(TrySendError::Disconnected(_)) => Err(()),
        Err(TrySendError::Full(item)) => {
            let sender = sender.clone();
            tokio::task::spawn_blocking(move || sender.send(item).map_err(drop)).await.unwrap_or(Err(()))
        }
    }
}

/// Unpacks one layer from its compressed bytes and commits it, unless that has to wait for the layers below; with a
/// `writer`, keeps the compressed blob too.
fn unpack(
    env: &ExecEnv,
    layer: &BaseLayer,
    blob: &BlobRef,
    reader: impl Read + Send,
    writer: Option<BlobWriter>,
) -> Result<Option<Pending>, StepFailure> {
    let draft = env.store.draft(&env.lease)?;
    let mut tee = Tee { inner: reader.take(blob.size.saturating_add(1)), writer, cancel: env.cancel.clone() };
    let (dir, media_type) = (draft.diff_fd().as_fd(), Some(blob.media_type.as_str()));
    let (unpacked, ends) = layer::unpack_blob(&mut tee, media_type, dir, env.overlay, &Limits::default())
        .map_err(|error| match error {
            UnpackBlobError::Decompress(source) => StepFailure::Blob { layer: blob.digest, source },
            UnpackBlobError::Unpack(source) => StepFailure::Unpack { layer: blob.digest, source },
        })?;
    if ends.digest != blob.digest || ends.size != blob.size {
        return Err(StepFailure::LayerDigest { wanted: blob.digest, found: ends.digest });
    }
    if ends.diff_id != layer.diff_id {
        return Err(StepFailure::LayerDiffId { wanted: layer.diff_id, found: ends.diff_id });
    }
    if let Some(writer) = tee.writer {
        writer.commit(Some(blob.digest))?;
    }
    let pending =
        Pending { layer: layer.clone(), blob: blob.clone(), draft, unpacked, tar_bytes: ends.uncompressed };
    if !pending.unpacked.implied_dirs.is_empty() {
        return Ok(Some(pending));
    }
    pending.commit(env, &Solved { tree: Tree::empty(), stack: Vec::new() })?;
    Ok(None)
}

/// Copies what is read into a blob.
struct Tee<R> {
    inner: R,
    writer: Option<BlobWriter>,
    /// Ends the reading, and so whoever reads, when the build is stopped.
    cancel: Cancel,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.reason().is_some() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the build was stopped"));
        }
        let count = self.inner.read(buffer)?;
        if let Some(writer) = &mut self.writer {
            io::Write::write_all(writer, &buffer[..count])?;
        }
        Ok(count)
    }
}

/// Reads the chunks of a channel; a closed channel is the end.
struct ChannelReader {
    receiver: Receiver<Result<Bytes, RegistryError>>,
    chunk: Bytes,
}

impl Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.receiver.recv() {
                Ok(Ok(chunk)) => self.chunk = chunk,
                Ok(Err(error)) => return Err(io::Error::other(error)),
                Err(_) => return Ok(0),
            }
        }
        let count = self.chunk.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.chunk.split_to(count));
        Ok(count)
    }
}
