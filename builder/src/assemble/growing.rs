//! A layer's exported form while it is being written: a file of the store that grows, and those who read along.
//!
//! The file is the buffer between compressing and sending. Each reader has its own place in it and can go back, so none
//! slows another or the writer, and nothing is kept in memory.

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
    file: Arc<File>,
    growth: watch::Receiver<Growth>,
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
    blob: UnhashedBlob,
    passes: bool,
    listener: Option<Listener>,
    growth: Option<watch::Sender<Growth>>,
    told: u64,
}

impl Grower {
    /// For a blob of this form, which passes through where that is allowed.
    pub(crate) fn new(
        env: &ExecEnv,
        compression: Compression,
        clamp: Option<i64>,
        listener: Option<Listener>,
    ) -> Result<Self, StoreError> {
        Self::into_store(&env.store, &env.lease, env.passing.takes(compression, clamp), listener)
    }

    /// For a blob that was made before.
    pub(super) fn made_again(env: &ExecEnv, passes: bool) -> Result<Self, StoreError> {
        Self::into_store(&env.store, &env.lease, passes, None)
    }

    fn into_store(
        store: &Store,
        lease: &Lease,
        passes: bool,
        listener: Option<Listener>,
    ) -> Result<Self, StoreError> {
        let blob = if passes { store.ingest_passing(lease)? } else { store.ingest_unhashed(lease)? };
        Ok(Self { blob, passes, listener, growth: None, told: READ_ALONG_BYTES_MIN - TOLD_BYTES })
    }

    /// See [`UnhashedBlob::commit_as`]; a blob that passes goes there. Readers know the digest before anybody can ask for
    /// the blob.
    pub(crate) fn commit_as(self, passing: &Passing, digest: Digest) -> Result<(), StoreError> {
        let bytes = self.blob.size();
        if self.passes && bytes >= PASSING_BYTES_MIN {
            passing.put(digest, self.blob.into_passing()?);
        } else {
            self.blob.commit_as(digest)?;
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
        } else if let Some(listener) = self.listener.take()
            && let Ok(file) = self.blob.reader()
        {
            // Whoever cannot read along reads the blob when it is whole.
            let (sender, growth) = watch::channel(now);
            listener(Growing { file: Arc::new(file), growth });
            self.growth = Some(sender);
        }
    }
}

impl Write for Grower {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.blob.write(bytes)?;
        let in_file = self.blob.bytes_in_file();
        if in_file >= self.told + TOLD_BYTES {
            self.tell(in_file);
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.blob.flush()
    }
}

impl Growing {
    /// Its digest, when it is whole.
    pub fn digest(&self) -> Option<Digest> {
        self.growth.borrow().digest
    }
}

impl GrowingBlob for Growing {
    fn open(&self, offset: u64) -> BlobBody {
        stream::try_unfold((self.clone(), offset), |(mut growing, at)| async move {
            let grown = growing.growth.wait_for(|now| now.bytes > at || now.digest.is_some());
            let bytes = grown.await.map_err(|_| unfinished())?.bytes;
            let length = bytes.saturating_sub(at).min(READ_BYTES);
            if length == 0 {
                return Ok(None);
            }
            let piece = read_at(&growing.file, at, length).await?;
            Ok(Some((piece, (growing, at + length))))
        })
        .boxed()
    }

    fn name(&self) -> BoxFuture<'_, io::Result<(Digest, u64)>> {
        let mut growth = self.growth.clone();
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
        let mut grower = Grower::into_store(&store, &store.lease().unwrap(), passes, Some(listener)).unwrap();
        let mut all = Vec::new();
        while (all.len() as u64) < READ_ALONG_BYTES_MIN {
            assert!(heard.try_recv().is_err(), "small blobs are nobody's business");
            let piece = piece(all.len() as u64);
            grower.write_all(&piece).unwrap();
            all.extend(piece);
        }
        let growing = heard.try_recv().unwrap();
        let mut body = growing.open(7);
        let mut read = Vec::new();
        while read.len() + 7 < all.len() {
            read.extend(body.try_next().await.unwrap().unwrap());
        }
        assert!(read == all[7..]);
        assert!(body.next().now_or_never().is_none(), "more may come");
        assert_eq!((growing.digest(), growing.name().now_or_never().is_none()), (None, true));

        let rest = piece(all.len() as u64);
        grower.write_all(&rest).unwrap();
        all.extend(rest);
        let digest = Digest::of(&all);
        let passing = Passing::default();
        grower.commit_as(&passing, digest).unwrap();
        assert_eq!(growing.digest(), Some(digest));
        assert_eq!(store.blob(&digest).unwrap().is_some(), !passes);
        assert_eq!(passing.file(&digest).is_some(), passes);
        assert_eq!(growing.name().await.unwrap(), (digest, all.len() as u64));
        let pieces: Vec<Bytes> = growing.open(0).try_collect().await.unwrap();
        assert!(pieces.concat() == all);
    }

    #[tokio::test]
    async fn a_writer_that_gives_up_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreOptions { id_map: "test".into(), durable: false }).unwrap();
        let (listener, heard) = listener();
        let mut grower = Grower::into_store(&store, &store.lease().unwrap(), false, Some(listener)).unwrap();
        grower.write_all(&vec![1; READ_ALONG_BYTES_MIN as usize]).unwrap();
        let growing = heard.await.unwrap();
        drop(grower);
        assert!(growing.open(0).try_collect::<Vec<_>>().await.is_err());
        assert!(growing.name().await.is_err());
    }
}
