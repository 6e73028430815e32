//! Blobs from registries: once in all processes, through bounded buffers, into whatever reads them.

use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use rbuild_cache::store::{ImageRecord, Key, KeyLock, ResolvedLayer, Store};
use rbuild_oci::{CanonicalWriter, DiffId, Digest, Reference};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::error::StepFailure;
use crate::ops::{ExecEnv, blocking};
use crate::progress::VertexId;
use crate::resolve::BlobRef;

/// Chunks in flight between the network and the thread that reads them. Where the network is the faster one a chunk holds
/// on to a read buffer of several hundred KiB.
pub(super) const CHUNKS_IN_FLIGHT: usize = 4;

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

/// Layers at once of which a process has the lock, or waits for it on a thread: more than it unpacks or downloads at once,
/// and far from the 512 threads that the runtime has for all that blocks. Had an image of many layers all of those, nobody
/// could unpack what he has the lock of, and another process that does the same would wait for him as he does for it.
const LOCKS_AT_ONCE: usize = 32;

static LOCK_TURNS: Semaphore = Semaphore::const_new(LOCKS_AT_ONCE);

/// The right to pull a layer.
///
/// What a layer needs is taken in one order: a turn, its lock, a turn to unpack, a connection, and the permit for a large window
/// ([`rbuild_cache::layer::LayerReader`]). Each has one layer's lock and never waits for a second, so who has a lock
/// waits only for those of its own process that are further on, and gets there whatever other processes wait for.
pub struct LayerLock<'turns> {
    // Dropped in this order.
    _lock: KeyLock,
    _turn: SemaphorePermit<'turns>,
}

/// One download across all processes: the lock is per layer. Waits for a turn first.
pub async fn lock(
    env: &Arc<ExecEnv>,
    diff_id: DiffId,
    vertex: VertexId,
) -> Result<LayerLock<'static>, StepFailure> {
    let events = env.events.clone();
    let waiting = move |pid| {
        let text = format!("waiting for another build that pulls the same layer (pid {pid})");
        events.note(vertex, text);
    };
    tokio::select! {
        lock = lock_in_turn(&LOCK_TURNS, &env.store, diff_id, waiting) => lock,
        () = env.cancel.cancelled() => Err(StepFailure::Canceled),
    }
}

/// `waiting` is told the process that has the lock.
async fn lock_in_turn<'turns>(
    turns: &'turns Semaphore,
    store: &Store,
    diff_id: DiffId,
    waiting: impl FnOnce(u32) + Send + 'static,
) -> Result<LayerLock<'turns>, StepFailure> {
    let turn = turns.acquire().await.expect("the semaphore is never closed");
    let mut out = CanonicalWriter::new("pull/1");
    out.value(&diff_id.0);
    let key = Key::content(*blake3::hash(&out.finish()).as_bytes());
    let name = format!("pull of {diff_id}");
    let lock = match store.try_key_lock(&key, &name)? {
        Some(lock) => lock,
        None => {
            let store = store.clone();
            blocking(move || Ok(store.key_lock(&key, &name, |holder| waiting(holder.pid))?)).await?
        }
    };
    Ok(LayerLock { _lock: lock, _turn: turn })
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use rbuild_cache::store::StoreOptions;

    use super::*;

    fn open(root: &std::path::Path) -> Store {
        Store::open(root, StoreOptions { id_map: "test".into(), durable: false }).unwrap()
    }

    fn layer(number: u32) -> DiffId {
        DiffId(Digest::of(&number.to_le_bytes()))
    }

    /// The lock of a layer, and how many waited for theirs.
    async fn lock<'a>(
        turns: &'a Semaphore,
        store: &Store,
        number: u32,
        waited: &Arc<AtomicUsize>,
    ) -> LayerLock<'a> {
        let waited = Arc::clone(waited);
        let waiting = move |_| {
            waited.fetch_add(1, Ordering::SeqCst);
        };
        lock_in_turn(turns, store, layer(number), waiting).await.unwrap()
    }

    #[tokio::test]
    async fn no_more_threads_wait_for_locks_than_have_a_turn() {
        let temp = tempfile::tempdir().unwrap();
        // As two processes would.
        let [ours, theirs] = [(); 2].map(|()| open(temp.path()));
        let (free, turns, waited) = (Semaphore::new(100), Semaphore::new(3), Arc::default());
        let mut held = Vec::new();
        for number in 0..20 {
            held.push(lock(&free, &theirs, number, &waited).await);
        }
        assert_eq!(waited.load(Ordering::SeqCst), 0);
        let all = futures_util::future::join_all((0..20).map(|number| lock(&turns, &ours, number, &waited)));
        let mut all = Box::pin(all);
        let a_while = Duration::from_millis(300);
        assert!(tokio::time::timeout(a_while, &mut all).await.is_err());
        assert_eq!(waited.load(Ordering::SeqCst), 3);
        // What was got first keeps its turn as long as the lock.
        held.clear();
        assert!(tokio::time::timeout(a_while, &mut all).await.is_err());
        assert_eq!(turns.available_permits(), 0);
    }

    #[test]
    fn processes_that_pull_the_same_layers_in_different_orders_all_end() {
        const LAYERS: u32 = 40;
        const TURNS: usize = 3;
        let temp = tempfile::tempdir().unwrap();
        // Of the runtime of one process each: who waits has a thread, and who has a lock needs one more.
        let runtime = || {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .max_blocking_threads(TURNS + 1)
                .enable_all()
                .build()
                .unwrap()
        };
        let pull_all = |order: Vec<u32>| {
            let (store, waited) = (open(temp.path()), Arc::default());
            let (turns, slots) = (Semaphore::new(TURNS), Semaphore::new(1));
            runtime().block_on(async {
                let pulls = order.into_iter().map(async |number| {
                    let _lock = lock(&turns, &store, number, &waited).await;
                    let _slot = slots.acquire().await.unwrap();
                    let unpacked = || std::thread::sleep(Duration::from_millis(2));
                    tokio::task::spawn_blocking(unpacked).await.unwrap();
                });
                let pulls = futures_util::future::join_all(pulls);
                tokio::time::timeout(Duration::from_secs(60), pulls).await.expect("somebody waits for ever")
            })
        };
        std::thread::scope(|scope| {
            scope.spawn(|| pull_all((0..LAYERS).rev().collect()));
            scope.spawn(|| pull_all((0..LAYERS).map(|number| (number * 7) % LAYERS).collect()));
            pull_all((0..LAYERS).collect());
        });
    }
}
