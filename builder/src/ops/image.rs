//! Makes a base image's layers local: download, verify, decompress, unpack, several layers at once.
//!
//! Each layer streams socket -> SHA-256 and blob file -> inflate -> SHA-256 -> files, with bounded buffers; inflating
//! and making files are two threads. Nothing becomes visible before the blob's digest and the layer's diff id both
//! match.

use std::cmp::Reverse;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::Arc;

use rbuild_cache::copy::FileSource;
use rbuild_cache::layer::{self, Limits, UnpackBlobError, Unpacked};
use rbuild_cache::store::{LayerDraft, LayerId, UnhashedBlob};
use rbuild_cache::tree::{Kind, Tree, TreeReader};
use rbuild_oci::{ChainId, DiffId};

use crate::cancel::Cancel;
use crate::error::StepFailure;
use crate::ops::{ExecEnv, blocking, download, size_bytes};
use crate::progress::{Outcome, VertexId};
use crate::resolve::{BaseImage, BaseLayer, BlobRef, Origin, PULLED};
use crate::solve::Solved;

/// The state of an image whose files nothing looks at: its layers stay where they are. `None` when they are all here, or
/// where they are is not a registry that can be asked later.
pub fn left_there(
    env: &ExecEnv,
    image: &Arc<BaseImage>,
    vertex: VertexId,
) -> Result<Option<Solved>, StepFailure> {
    let is_known = image.layers.iter().all(|layer| layer.blob.is_some());
    if !matches!(image.origin, Origin::Registry(_)) || !is_known {
        return Ok(None);
    }
    let mut is_here = true;
    for layer in placed(image) {
        is_here &= layer.id(env)?.is_some();
    }
    if is_here {
        return Ok(None);
    }
    env.events.started(vertex);
    env.events.note(vertex, "no step reads its files: its layers are not fetched");
    env.events.finished(vertex, Outcome::Done);
    Ok(Some(Solved { tree: Tree::empty(), stack: Vec::new(), below: Some(Arc::clone(image)) }))
}

/// Brings in what is missing and returns the image's state.
pub async fn materialise(
    env: &Arc<ExecEnv>,
    image: &Arc<BaseImage>,
    vertex: VertexId,
) -> Result<Solved, StepFailure> {
    env.events.started(vertex);
    let layers = placed(image);
    let mut missing: Vec<Placed> = Vec::new();
    let mut local: Vec<Option<LayerId>> = Vec::with_capacity(layers.len());
    for placed in &layers {
        let id = placed.id(env)?;
        if id.is_none() && !missing.iter().any(|other| other.layer == placed.layer) {
            missing.push(placed.clone());
        }
        local.push(id);
    }
    // The largest takes longest: it gets the first of the connections, and the others fit in beside it.
    missing.sort_by_key(|placed| Reverse(placed.layer.blob.as_ref().map_or(0, |blob| blob.size)));
    let pulled_any = !missing.is_empty();
    let pulls = missing.into_iter().map(|placed| {
        let (env, image) = (Arc::clone(env), Arc::clone(image));
        async move { pull_layer(&env, &image, &placed, vertex).await }
    });
    let mut pending: Vec<Pending> = Vec::new();
    for result in futures_util::future::join_all(pulls).await {
        pending.extend(result?);
    }
    let diff_ids: Vec<DiffId> = image.layers.iter().map(|layer| layer.diff_id).collect();
    let chains: Vec<ChainId> = ChainId::each(&diff_ids).collect();
    let mut stack = Vec::with_capacity(layers.len());
    for (placed, id) in layers.iter().zip(local) {
        let id = match id {
            Some(id) => id,
            None => {
                let waits = match pending.iter().position(|p| p.placed.layer.diff_id == placed.layer.diff_id)
                {
                    Some(at) => Some(pending.swap_remove(at)),
                    None => match placed.id(env)? {
                        Some(_) => None,
                        // It comes again, on other layers than the first time.
                        None => pull_layer(env, image, placed, vertex).await?,
                    },
                };
                match waits {
                    Some(pending) => {
                        let below = Solved::whole(stack_tree(env, &chains, &stack)?, stack.clone());
                        Pending { placed: placed.clone(), ..pending }.commit(env, &below)?
                    }
                    None => placed.id(env)?.ok_or(StepFailure::LayerVanished(placed.layer.diff_id))?,
                }
            }
        };
        stack.push(id);
    }
    let tree = stack_tree(env, &chains, &stack)?;
    let outcome = if pulled_any { Outcome::Done } else { Outcome::Cached };
    env.events.finished(vertex, outcome);
    Ok(Solved::whole(tree, stack))
}

/// A layer of an image, and what is below it there.
#[derive(Clone)]
struct Placed {
    layer: BaseLayer,
    below: Option<ChainId>,
}

impl Placed {
    /// The layer in the store, if it is there.
    fn id(&self, env: &ExecEnv) -> Result<Option<LayerId>, StepFailure> {
        Ok(env.store.layer_by_diff_id(&self.layer.diff_id, self.below.as_ref())?)
    }
}

fn placed(image: &BaseImage) -> Vec<Placed> {
    let diff_ids: Vec<DiffId> = image.layers.iter().map(|layer| layer.diff_id).collect();
    let belows = std::iter::once(None).chain(ChainId::each(&diff_ids).map(Some));
    let place = |(layer, below): (&BaseLayer, _)| Placed { layer: layer.clone(), below };
    image.layers.iter().zip(belows).map(place).collect()
}

/// A verified layer that cannot be committed before the layers below it are known: its archive leaves directories
/// out, whose metadata must come from below.
struct Pending {
    placed: Placed,
    blob: BlobRef,
    draft: LayerDraft,
    unpacked: Unpacked,
    tar_bytes: u64,
}

impl Pending {
    fn commit(mut self, env: &ExecEnv, below: &Solved) -> Result<LayerId, StepFailure> {
        let has_from_below = !self.unpacked.implied_dirs.is_empty();
        let files = env.stack_source(below)?;
        let mut entries = TreeReader::new(&env.store, &below.tree);
        let scratch = env.store.scratch();
        let fixed = layer::fix_implied(
            self.draft.diff_fd().as_fd(),
            env.overlay,
            &mut self.unpacked,
            &scratch,
            |path| {
                if env.cancel.reason().is_some() {
                    return Err(Box::new(StepFailure::Canceled));
                }
                let Some(entry) = entries.get(path)? else { return Ok(None) };
                let is_dir = matches!(entry.kind, Kind::Dir(_));
                Ok(if is_dir { Some((entry.meta, files.mtime(path)?)) } else { None })
            },
        );
        fixed.map_err(|source| match env.cancel.reason() {
            Some(_) => StepFailure::Canceled,
            None => StepFailure::Unpack { layer: self.blob.digest, source },
        })?;
        if has_from_below {
            env.store.lies_on(&self.draft, self.placed.below.as_ref())?;
        }
        env.store.pulled_as(&self.draft, &self.blob.digest)?;
        let size = size_bytes(&self.unpacked.diff)?;
        let id = env.store.commit_layer(self.draft, &self.unpacked.diff, size)?;
        let diff_id = &self.placed.layer.diff_id;
        env.store.set_diff_id(id, diff_id, self.tar_bytes)?;
        env.store.put_encoding(diff_id, PULLED, &self.blob.digest, self.blob.size)?;
        Ok(id)
    }
}

/// Tree of the lowest layers of an image, remembered by the chain ids of the image's layers.
fn stack_tree(env: &ExecEnv, chains: &[ChainId], stack: &[LayerId]) -> Result<Tree, StepFailure> {
    let (mut count, mut tree) = (stack.len(), Tree::empty());
    while count > 0 {
        let known = env.store.chain_tree(&chains[count - 1])?;
        if let Some(known) = known.and_then(|bytes| Tree::decode(&bytes).ok()) {
            tree = known;
            break;
        }
        count -= 1;
    }
    for (layer, chain) in stack.iter().zip(chains).skip(count) {
        tree = tree.apply(&env.store, &env.store.layer_diff(*layer)?, &env.store.scratch())?;
        env.store.put_chain_tree(chain, &tree.encode())?;
    }
    Ok(tree)
}

async fn pull_layer(
    env: &Arc<ExecEnv>,
    image: &Arc<BaseImage>,
    placed: &Placed,
    vertex: VertexId,
) -> Result<Option<Pending>, StepFailure> {
    let layer = &placed.layer;
    let lock = download::lock(env, layer.diff_id, vertex).await?;
    // After the lock, for which who has a slot must not wait; before the download, which must not wait for a slot when
    // it has a connection: the order of `LayerLock`.
    let _slot = env.unpack_slots.acquire().await.expect("the semaphore is never closed");
    if env.cancel.reason().is_some() {
        return Err(StepFailure::Canceled);
    }
    if placed.id(env)?.is_some() {
        return Ok(None);
    }
    let blob = layer.blob.clone().ok_or(StepFailure::LayerVanished(layer.diff_id))?;
    let done = if let Some(file) = env.store.blob(&blob.digest)? {
        let (env, placed) = (Arc::clone(env), placed.clone());
        blocking(move || unpack(&env, &placed, &blob, file.file, None)).await
    } else {
        match &image.origin {
            Origin::Layout(layout) => {
                let file = layout.blob(blob.digest)?;
                let (env, placed) = (Arc::clone(env), placed.clone());
                blocking(move || {
                    let writer = env.store.ingest_unhashed(&env.lease)?;
                    unpack(&env, &placed, &blob, file, Some(writer))
                })
                .await
            }
            Origin::Registry(reference) => {
                let (worker, placed, of) = (Arc::clone(env), placed.clone(), blob.clone());
                let unpack = move |reader| {
                    let writer = worker.store.ingest_unhashed(&worker.lease)?;
                    unpack(&worker, &placed, &of, reader, Some(writer))
                };
                download::stream(env, reference, &blob, vertex, unpack).await
            }
            Origin::Local => Err(StepFailure::LayerVanished(layer.diff_id)),
        }
    };
    drop(lock);
    match done {
        Err(_) if env.cancel.reason().is_some() => Err(StepFailure::Canceled),
        done => done,
    }
}

/// Unpacks one layer from its compressed bytes and commits it, unless that has to wait for the layers below; with a
/// `writer`, keeps the compressed blob too.
fn unpack(
    env: &ExecEnv,
    placed: &Placed,
    blob: &BlobRef,
    reader: impl Read + Send,
    writer: Option<UnhashedBlob>,
) -> Result<Option<Pending>, StepFailure> {
    let draft = env.store.draft(&env.lease)?;
    let mut tee = Tee { inner: reader.take(blob.size.saturating_add(1)), writer, cancel: env.cancel.clone() };
    let (dir, media_type) = (draft.diff_fd().as_fd(), Some(blob.media_type.as_str()));
    let (limits, scratch) = (Limits::default(), env.store.scratch());
    let (unpacked, ends) = layer::unpack_blob(&mut tee, media_type, dir, env.overlay, &limits, &scratch)
        .map_err(|error| match error {
            UnpackBlobError::Decompress(source) => StepFailure::Blob { layer: blob.digest, source },
            UnpackBlobError::Unpack(source) => StepFailure::Unpack { layer: blob.digest, source },
        })?;
    if ends.digest != blob.digest || ends.size != blob.size {
        return Err(StepFailure::LayerDigest { wanted: blob.digest, found: ends.digest });
    }
    let wanted = placed.layer.diff_id;
    if ends.diff_id != wanted {
        return Err(StepFailure::LayerDiffId { wanted, found: ends.diff_id });
    }
    if let Some(writer) = tee.writer {
        writer.commit_as(blob.digest)?;
    }
    let pending =
        Pending { placed: placed.clone(), blob: blob.clone(), draft, unpacked, tar_bytes: ends.uncompressed };
    if !pending.unpacked.implied_dirs.is_empty() {
        return Ok(Some(pending));
    }
    pending.commit(env, &Solved::whole(Tree::empty(), Vec::new()))?;
    Ok(None)
}

/// Copies what is read into a blob.
struct Tee<R> {
    inner: R,
    writer: Option<UnhashedBlob>,
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
