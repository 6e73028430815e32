//! A layer's exported form while it is being written, and those who read along.
//!
//! A file of the store that grows, or a window of what passes through, is the buffer between compressing and sending. Each
//! reader has its own place in it and can go back, so none slows another or the writer, and little is kept in memory.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream;
use rbuild_cache::layer::Compression;
use rbuild_cache::store::{Lease, Store, StoreError, UnhashedBlob};
use rbuild_oci::Digest;
use rbuild_registry::{BlobBody, GrowingBlob};
use rustix::io::Errno;
use tokio::sync::{oneshot, watch};

use crate::assemble::passing::{PASSING_BYTES_MIN, Passing};
use crate::assemble::window::{Found, Place, Whole, Window, WindowWriter};
use crate::ops::ExecEnv;

/// Blobs are read along from this length on: a smaller one is whole before a registry has answered the first question,
/// and can be looked for by its digest.
const READ_ALONG_BYTES_MIN: u64 = 8 << 20;
/// Growth of which readers are told.
const TOLD_BYTES: u64 = 1 << 20;
/// Most bytes read at a time.
const READ_BYTES: u64 = 1 << 20;

/// Is told of a blob that is being written and large enough.
pub type Listener = Box<dyn FnOnce(Growing) + Send>;

/// One who waits for that, and whom it tells.
pub(crate) fn listener() -> (Listener, oneshot::Receiver<Growing>) {
    let (sender, heard) = oneshot::channel();
    // Nobody may wait any more.
    (Box::new(move |growing| drop(sender.send(growing))), heard)
}

/// A blob that is being written. It stays readable when the store has removed it.
#[derive(Clone)]
pub struct Growing {
    source: Source,
    growth: watch::Receiver<Growth>,
}

/// Where they are.
#[derive(Clone)]
enum Source {
    File(Arc<File>),
    Window(Arc<Window>),
}

/// One reader of it, who can go back some way.
pub struct Along {
    growing: Growing,
    /// In a window.
    place: Option<Arc<Place>>,
}

/// How far a blob has got.
#[derive(Debug, Clone, Copy)]
struct Growth {
    bytes: u64,
    /// Set with the last byte.
    digest: Option<Digest>,
}

/// Writes a blob of the store, or one that passes through.
pub(crate) struct Grower {
    to: To,
    listener: Option<Listener>,
    growth: Option<watch::Sender<Growth>>,
    told: u64,
    bytes: u64,
}

enum To {
    Store(UnhashedBlob),
    Passing { writer: WindowWriter, store: Store, lease: Lease },
}

impl Grower {
    /// For a blob of this form, which passes through where that is allowed.
    pub(crate) fn new(
        env: &ExecEnv,
        compression: Compression,
        clamp: Option<i64>,
        listener: Option<Listener>,
    ) -> Result<Self, StoreError> {
        let passes = env.passing.takes(compression, clamp).then_some(&env.passing);
        Self::into_store(&env.store, &env.lease, passes, listener)
    }

    /// For a blob that was made before.
    pub(super) fn made_again(env: &ExecEnv, passes: bool) -> Result<Self, StoreError> {
        Self::into_store(&env.store, &env.lease, passes.then_some(&env.passing), None)
    }

    fn into_store(
        store: &Store,
        lease: &Lease,
        passes: Option<&Passing>,
        listener: Option<Listener>,
    ) -> Result<Self, StoreError> {
        let to = match passes {
            Some(passing) => {
                let writer = WindowWriter::new(store, lease, passing.share());
                To::Passing { writer, store: store.clone(), lease: lease.clone() }
            }
            None => To::Store(store.ingest_unhashed(lease)?),
        };
        Ok(Self { to, listener, growth: None, told: READ_ALONG_BYTES_MIN - TOLD_BYTES, bytes: 0 })
    }

    /// See [`UnhashedBlob::commit_as`]; a blob that passes goes there, unless its readers alone have got it all. Readers
    /// know the digest before anybody can ask for the blob.
    pub(crate) fn commit_as(self, passing: &Passing, digest: Digest) -> Result<(), StoreError> {
        let bytes = self.bytes;
        match self.to {
            To::Store(blob) => blob.commit_as(digest)?,
            To::Passing { writer, store, lease } => {
                let failed = |source| StoreError::io("write", &lease.work_dir(), source);
                match writer.finish(PASSING_BYTES_MIN).map_err(failed)? {
                    Whole::Small(pieces) => {
                        let mut blob = store.ingest_unhashed(&lease)?;
                        pieces.iter().try_for_each(|piece| blob.write_all(piece)).map_err(failed)?;
                        blob.commit_as(digest)?;
                    }
                    Whole::File(file) => passing.put(digest, file),
                    Whole::Gone => {}
                }
            }
        }
        if let Some(growth) = self.growth {
            growth.send_replace(Growth { bytes, digest: Some(digest) });
        }
        Ok(())
    }

    fn tell(&mut self, bytes: u64) {
        self.told = bytes;
        let now = Growth { bytes, digest: None };
        if let Some(growth) = &self.growth {
            growth.send_replace(now);
            return;
        }
        let source = match &self.to {
            To::Store(blob) => blob.reader().ok().map(|file| Source::File(Arc::new(file))),
            To::Passing { writer, .. } => Some(Source::Window(Arc::clone(writer.window()))),
        };
        // Whoever cannot read along reads the blob when it is whole.
        if let (Some(listener), Some(source)) = (self.listener.take(), source) {
            let (sender, growth) = watch::channel(now);
            listener(Growing { source, growth });
            self.growth = Some(sender);
        }
    }
}

impl Write for Grower {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (written, readable) = match &mut self.to {
            To::Store(blob) => (blob.write(bytes)?, blob.bytes_in_file()),
            To::Passing { writer, .. } => (writer.write(bytes)?, writer.readable()),
        };
        self.bytes += written as u64;
        if readable >= self.told + TOLD_BYTES {
            self.tell(readable);
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.to {
            To::Store(blob) => blob.flush(),
            To::Passing { writer, .. } => writer.flush(),
        }
    }
}

impl Growing {
    /// Its digest, when it is whole.
    pub fn digest(&self) -> Option<Digest> {
        self.growth.borrow().digest
    }

    /// One more reader, who is waited for from now on.
    pub fn along(&self) -> Along {
        let place = match &self.source {
            Source::File(_) => None,
            Source::Window(window) => Some(Arc::new(Place::new(window))),
        };
        Along { growing: self.clone(), place }
    }

    /// At most so many bytes from a place that has been reached.
    async fn piece(&self, at: u64, length: u64) -> io::Result<Bytes> {
        let (file, length) = match &self.source {
            Source::File(file) => (Arc::clone(file), length),
            Source::Window(window) => match window.at(at) {
                Found::Memory(mut piece) => {
                    piece.truncate(usize::try_from(length).unwrap_or(usize::MAX));
                    return Ok(piece);
                }
                Found::File(file, there) => (file, length.min(there)),
                // Who wants it all the same has it made again when it is whole.
                Found::Gone => return Err(io::Error::other("this part of the layer is not kept any more")),
            },
        };
        read_at(&file, at, length).await
    }
}

impl GrowingBlob for Along {
    fn open(&self, offset: u64) -> BlobBody {
        let reader = (self.growing.clone(), self.place.clone());
        if let Some(place) = &self.place {
            place.move_to(offset);
        }
        stream::try_unfold((reader, offset), |((mut growing, place), at)| async move {
            let grown = growing.growth.wait_for(|now| now.bytes > at || now.digest.is_some());
            let bytes = grown.await.map_err(|_| unfinished())?.bytes;
            let length = bytes.saturating_sub(at).min(READ_BYTES);
            if length == 0 {
                return Ok(None);
            }
            let piece = growing.piece(at, length).await?;
            let end = at + piece.len() as u64;
            if let Some(place) = &place {
                place.move_to(end);
            }
            Ok(Some((piece, ((growing, place), end))))
        })
        .boxed()
    }

    fn name(&self) -> BoxFuture<'_, io::Result<(Digest, u64)>> {
        let mut growth = self.growing.growth.clone();
        Box::pin(async move {
            let whole = *growth.wait_for(|now| now.digest.is_some()).await.map_err(|_| unfinished())?;
            Ok((whole.digest.ok_or_else(unfinished)?, whole.bytes))
        })
    }
}

/// Reads a piece of a file.
pub(crate) async fn read_at(file: &Arc<File>, at: u64, length: u64) -> io::Result<Bytes> {
    let file = Arc::clone(file);
    let read = tokio::task::spawn_blocking(move || {
        let mut buffer = Vec::with_capacity(length as usize);
        while buffer.len() < length as usize {
            let at = at + buffer.len() as u64;
            match rustix::io::pread(&file, rustix::buffer::spare_capacity(&mut buffer), at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(Bytes::from(buffer))
    });
    read.await.map_err(io::Error::other)?
}

fn unfinished() -> io::Error {
    io::Error::other("the layer was not finished")
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, TryStreamExt as _};
    use rbuild_cache::store::StoreOptions;

    use super::*;

    /// Bytes that differ from place to place.
    fn piece(at: u64) -> Vec<u8> {
        (at..at + TOLD_BYTES / 2).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
    }

    #[tokio::test]
    async fn readers_follow_the_writer_each_at_its_own_place() {
        for passes in [false, true] {
            follow(passes).await;
        }
    }

    async fn follow(passes: bool) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreOptions { id_map: "test".into(), durable: false }).unwrap();
        let (listener, mut heard) = listener();
        let passing = Passing::default();
        let lease = store.lease().unwrap();
        let mut grower =
            Grower::into_store(&store, &lease, passes.then_some(&passing), Some(listener)).unwrap();
        let mut all = Vec::new();
        while (all.len() as u64) < READ_ALONG_BYTES_MIN {
            assert!(heard.try_recv().is_err(), "small blobs are nobody's business");
            let piece = piece(all.len() as u64);
            grower.write_all(&piece).unwrap();
            all.extend(piece);
        }
        let growing = heard.try_recv().unwrap();
        let along = growing.along();
        let mut body = along.open(7);
        let mut read = Vec::new();
        while read.len() + 7 < all.len() {
            read.extend(body.try_next().await.unwrap().unwrap());
        }
        assert!(read == all[7..]);
        assert!(body.next().now_or_never().is_none(), "more may come");
        assert_eq!((growing.digest(), along.name().now_or_never().is_none()), (None, true));

        let rest = piece(all.len() as u64);
        grower.write_all(&rest).unwrap();
        all.extend(rest);
        let digest = Digest::of(&all);
        grower.commit_as(&passing, digest).unwrap();
        assert_eq!(growing.digest(), Some(digest));
        assert_eq!(store.blob(&digest).unwrap().is_some(), !passes);
        assert_eq!(passing.file(&digest).is_some(), passes);
        assert_eq!(along.name().await.unwrap(), (digest, all.len() as u64));
        let pieces: Vec<Bytes> = along.open(0).try_collect().await.unwrap();
        assert!(pieces.concat() == all);
    }

    #[tokio::test]
    async fn a_writer_that_gives_up_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreOptions { id_map: "test".into(), durable: false }).unwrap();
        let (listener, heard) = listener();
        let mut grower = Grower::into_store(&store, &store.lease().unwrap(), None, Some(listener)).unwrap();
        grower.write_all(&vec![1; READ_ALONG_BYTES_MIN as usize]).unwrap();
        let growing = heard.await.unwrap();
        drop(grower);
        assert!(growing.along().open(0).try_collect::<Vec<_>>().await.is_err());
        assert!(growing.along().name().await.is_err());
    }
}
