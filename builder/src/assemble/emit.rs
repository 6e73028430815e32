//! Layers brought into their exported form: once each, whoever asks first.
//!
//! Exporters ask when the build is done; [`crate::export::ahead`] asks as soon as a step has ended. Then digest, length
//! and compressed form of its layer come out of one pass, on a thread that gives way to the steps.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_cache::layer::Compression;
use rbuild_cache::store::{LayerId, LayerInfo};
use rbuild_oci::DiffId;
use rustix::process::setpriority_process;
use tokio::sync::{OwnedMutexGuard, Semaphore, oneshot};

use crate::assemble::growing::{Grower, Listener};
use crate::assemble::manifest::{LayerBlob, Packing, layer_blob, layer_type};
use crate::assemble::passing::Again;
use crate::assemble::{ImageLayer, Place};
use crate::cancel::Cancel;
use crate::error::{BuildError, StepFailure};
use crate::ops::{ExecEnv, blocking};

/// How much a thread that works ahead gives way to the steps of the build.
const NICENESS: i32 = 10;

/// What those who emit layers in one build share. One works on a layer at a time: who comes second finds what the first
/// left.
pub struct Emissions {
    turns: Mutex<HashMap<LayerId, Arc<tokio::sync::Mutex<()>>>>,
    /// Digests and lengths of tars in which times were set back, which the store does not remember.
    clamped: Mutex<HashMap<(LayerId, i64), (DiffId, u64)>>,
    /// Layers emitted ahead at once: one, which takes the cores that the steps leave.
    ahead: Semaphore,
    /// Layers left at their registries that are brought into another form ahead at once: each has a connection and its blob
    /// open, or a thread. Taken before all that a layer needs; who has a turn waits for no other.
    left: Semaphore,
}

/// See [`Emissions::left`].
const LEFT_AT_ONCE: usize = 4;

impl Default for Emissions {
    fn default() -> Self {
        Self {
            turns: Mutex::default(),
            clamped: Mutex::default(),
            ahead: Semaphore::new(1),
            left: Semaphore::new(LEFT_AT_ONCE),
        }
    }
}

impl Emissions {
    /// Waits until nobody else works on the layer.
    pub(super) async fn turn(&self, id: LayerId) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(turns.entry(id).or_default())
        };
        turn.lock_owned().await
    }

    fn clamped(&self, id: LayerId, clamp: i64) -> Option<(DiffId, u64)> {
        self.clamped.lock().unwrap_or_else(PoisonError::into_inner).get(&(id, clamp)).copied()
    }

    fn remember(&self, id: LayerId, clamp: i64, tar: (DiffId, u64)) {
        self.clamped.lock().unwrap_or_else(PoisonError::into_inner).insert((id, clamp), tar);
    }
}

/// A layer with its digest, and when it was made. One whose tar was never emitted is hashed.
pub async fn image_layer(
    env: &Arc<ExecEnv>,
    id: LayerId,
    is_base: bool,
    clamp: Option<i64>,
) -> Result<(ImageLayer, i64), BuildError> {
    let layer = |(diff_id, _), info: &LayerInfo| {
        let layer = ImageLayer { place: Place::Here(id), diff_id, size: info.size_bytes, is_base, clamp };
        (layer, info.created_unix_ns)
    };
    if let (Some(tar), info) = known(env, id, clamp)? {
        return Ok(layer(tar, &info));
    }
    let _turn = env.emissions.turn(id).await;
    let (tar, info) = known(env, id, clamp)?;
    if let Some(tar) = tar {
        return Ok(layer(tar, &info));
    }
    let worker = Arc::clone(env);
    let tar = Pace::Now.run(env, move || {
        let mut sink = Stoppable { inner: io::sink(), cancel: &worker.cancel };
        let encoded = worker.encode_layer(id, clamp, Compression::None, Pace::Now, &mut sink)?;
        let tar = (encoded.diff_id, encoded.uncompressed);
        note(&worker, id, clamp, tar)?;
        Ok(tar)
    });
    Ok(layer(tar.await?, &info))
}

/// Emits a layer of an image whose other steps may still run. Nothing is done twice later. `listener` hears of it when
/// its bytes are not here yet and become many.
pub async fn emit_ahead(
    env: &Arc<ExecEnv>,
    id: LayerId,
    is_base: bool,
    clamp: Option<i64>,
    packing: &Packing,
    listener: Listener,
) -> Result<LayerBlob, BuildError> {
    let _slot = env.emissions.ahead.acquire().await.expect("the semaphore is never closed");
    if let (None, _) = known(env, id, clamp)? {
        let _turn = env.emissions.turn(id).await;
        if let (None, _) = known(env, id, clamp)? {
            return one_pass(env, id, clamp, packing.compression, listener).await;
        }
    }
    let (layer, _) = image_layer(env, id, is_base, clamp).await?;
    layer_blob(env, layer, packing, Pace::Ahead, Some(listener)).await
}

/// A layer that was left at its registry, in the form that is wanted of it.
pub async fn left_ahead(
    env: &Arc<ExecEnv>,
    layer: ImageLayer,
    packing: &Packing,
) -> Result<LayerBlob, BuildError> {
    let _turn = env.emissions.left.acquire().await.expect("the semaphore is never closed");
    layer_blob(env, layer, packing, Pace::Ahead, None).await
}

/// Digest and length of a layer's tar, when they are known, and what else is known of it.
fn known(
    env: &ExecEnv,
    id: LayerId,
    clamp: Option<i64>,
) -> Result<(Option<(DiffId, u64)>, LayerInfo), BuildError> {
    let info = env.store.layer(id)?.ok_or_else(|| BuildError::LayerVanished(id.to_string()))?;
    let tar = match clamp {
        None => info.tar,
        Some(clamp) => env.emissions.clamped(id, clamp),
    };
    Ok((tar, info))
}

fn note(env: &ExecEnv, id: LayerId, clamp: Option<i64>, tar: (DiffId, u64)) -> Result<(), StepFailure> {
    match clamp {
        None => env.store.set_diff_id(id, &tar.0, tar.1)?,
        Some(clamp) => env.emissions.remember(id, clamp, tar),
    }
    Ok(())
}

async fn one_pass(
    env: &Arc<ExecEnv>,
    id: LayerId,
    clamp: Option<i64>,
    compression: Compression,
    listener: Listener,
) -> Result<LayerBlob, BuildError> {
    let worker = Arc::clone(env);
    let emitted = Pace::Ahead.run(env, move || {
        let writer = Grower::new(&worker, compression, clamp, Some(listener))?;
        let mut sink = Stoppable { inner: writer, cancel: &worker.cancel };
        let encoded = worker.encode_layer(id, clamp, compression, Pace::Ahead, &mut sink)?;
        sink.inner.commit_as(&worker.passing, encoded.digest)?;
        let digest = encoded.digest;
        worker.store.put_encoding(&encoded.diff_id, &compression.params(), &digest, encoded.size)?;
        note(&worker, id, clamp, (encoded.diff_id, encoded.uncompressed))?;
        let (diff_id, size) = (encoded.diff_id, encoded.size);
        let media_type = layer_type(compression).to_owned();
        let again = Some(Again { layer: id, clamp, compression });
        Ok(LayerBlob { diff_id, digest, size, media_type, from: None, again })
    });
    Ok(emitted.await?)
}

/// How urgent an emission is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Somebody waits for it.
    Now,
    /// Steps of the build come first.
    Ahead,
}

impl Pace {
    pub(super) async fn run<T: Send + 'static>(
        self,
        env: &ExecEnv,
        work: impl FnOnce() -> Result<T, StepFailure> + Send + 'static,
    ) -> Result<T, StepFailure> {
        match self {
            Self::Now => {
                let _slot = env.disk_slots.acquire().await.expect("the semaphore is never closed");
                blocking(work).await
            }
            Self::Ahead => yielding(work).await,
        }
    }
}

/// [`blocking`] on a thread of its own, whose share of the cores is what the steps leave.
async fn yielding<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StepFailure> + Send + 'static,
) -> Result<T, StepFailure> {
    let (sender, receiver) = oneshot::channel();
    let spawned = std::thread::Builder::new().name("emit".to_owned()).spawn(move || {
        // It inherits to the threads that compress. Where it is refused the work is done all the same.
        let _ = setpriority_process(Some(rustix::thread::gettid()), NICENESS);
        let _ = sender.send(work());
    });
    let io = |source| StepFailure::Io { what: "start", path: "a thread".to_owned(), source };
    spawned.map_err(io)?;
    receiver.await.map_err(|_| io(io::Error::other("the thread that emits a layer ended early")))?
}

/// Fails as soon as the build is stopped: whoever writes into it ends then.
pub(super) struct Stoppable<'a, W> {
    pub(super) inner: W,
    pub(super) cancel: &'a Cancel,
}

impl<W: Write> Write for Stoppable<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.cancel.reason().is_some() {
            return Err(io::Error::other("the build was stopped"));
        }
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
