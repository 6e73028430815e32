//! The body of an upload, checked on its way out.
//!
//! The last piece is let go only after the digest over all of it was found right, so a file that changed under us can
//! never become a blob under the wrong name, whatever the registry checks.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use rbuild_oci::{Digest, Sha256};

use super::push::Progress;
use super::source::BlobBody;
use crate::auth::lock;

/// What the sender of a body leaves for the one who waits for the answer.
#[derive(Default)]
pub(super) struct Watch {
    pub(super) pieces: AtomicU64,
    /// Bytes given out of a body whose length was not known.
    pub(super) sent: AtomicU64,
    pub(super) done: AtomicBool,
    /// The source is being read: silence is its fault, not the registry's.
    pub(super) reading: AtomicBool,
    pub(super) failure: Mutex<Option<SourceFailure>>,
}

/// Why a body ended itself.
pub(super) enum SourceFailure {
    Read(io::Error),
    Digest { expected: Digest, actual: Digest },
    Size { expected: u64, actual: u64 },
}

/// The body from `offset` on, with all of it hashed and the last piece held back until the hash was compared.
pub(super) fn checked(
    body: BlobBody,
    digest: Digest,
    size: u64,
    offset: u64,
    progress: Progress,
    watch: Arc<Watch>,
) -> impl futures_util::Stream<Item = io::Result<Bytes>> + Send + 'static {
    let state = (body, Some(Sha256::new()), 0u64);
    let pieces = futures_util::stream::try_unfold(state, move |(mut body, mut hash, mut position)| {
        let (progress, watch) = (progress.clone(), watch.clone());
        async move {
            let fail = |failure| {
                *lock(&watch.failure) = Some(failure);
                io::Error::other("the blob to upload is not what it should be")
            };
            watch.pieces.fetch_add(1, Ordering::Relaxed);
            loop {
                watch.reading.store(true, Ordering::Relaxed);
                let next = body.next().await;
                watch.reading.store(false, Ordering::Relaxed);
                let Some(piece) = next else {
                    return if position == size {
                        watch.done.store(true, Ordering::Relaxed);
                        Ok(None)
                    } else {
                        Err(fail(SourceFailure::Size { expected: size, actual: position }))
                    };
                };
                let mut piece: Bytes = piece.map_err(|source| fail(SourceFailure::Read(source)))?;
                let begin = position;
                position += piece.len() as u64;
                if position > size {
                    return Err(fail(SourceFailure::Size { expected: size, actual: position }));
                }
                if let Some(hash) = &mut hash {
                    hash.update(&piece);
                }
                if position == size {
                    match hash.take().map(Sha256::finish) {
                        Some(actual) if actual != digest => {
                            return Err(fail(SourceFailure::Digest { expected: digest, actual }));
                        }
                        _ => watch.done.store(true, Ordering::Relaxed),
                    }
                }
                // Bytes the registry has already are hashed and not sent.
                let known = offset.saturating_sub(begin).min(piece.len() as u64);
                let piece = piece.split_off(known as usize);
                if !piece.is_empty() {
                    progress(position);
                    return Ok(Some((piece, (body, hash, position))));
                }
            }
        }
    });
    pieces.into_stream()
}
