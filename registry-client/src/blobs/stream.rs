//! Uploads of blobs that are still being made: one `PATCH` that ends when the blob does, digest and size in the `PUT`.
//!
//! ```text
//! POST uploads/ ──202 Location──▶ PATCH Location (no length) ──202──▶ PUT Location?digest= ──201──▶ HEAD blob ──200──▶ done
//!                                   │ breaks      │ meanwhile the blob got its name: HEAD blob ──200──▶ DELETE Location
//!                                   ▼
//!             GET Location ──204 Range: 0-n──▶ PATCH Location (from n+1)
//!                                   │ session gone
//!                                   └──▶ POST uploads/ again
//! ```
//!
//! A `PATCH` without a length is what Docker sends, so whoever takes Docker's pushes takes ours. What was made stays
//! where it is made ([`GrowingBlob::open`]), so nothing is kept here, and a slow registry slows nobody who makes blobs.
//! Nothing is hashed here either: who makes the blob does, and the registry must before it answers the `PUT`
//! (distribution-spec, «Pushing blobs»).

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, Stream, StreamExt};
use rbuild_oci::Digest;
use tokio::sync::OwnedSemaphorePermit;

use super::body::{SourceFailure, Watch};
use super::push::{Progress, PushOutcome};
use super::session::{Outgoing, Recovery, Sender, Session, refuses_chunks};
use super::source::BlobBody;
use crate::auth::{Scope, lock};
use crate::endpoint::{Endpoint, wants_whole_blobs};
use crate::error::{RegistryError, Target};
use crate::limits::UPLOAD_ATTEMPTS_MAX;
use crate::transport::Transport;

/// A blob that is still being made. What was made of it can be read again and again.
pub trait GrowingBlob: Send + Sync {
    /// The bytes from `offset` on, as they come. Ends where the blob does; fails when it will never be whole.
    fn open(&self, offset: u64) -> BlobBody;
    /// Waits for the last byte, and tells digest and length.
    fn name(&self) -> BoxFuture<'_, io::Result<(Digest, u64)>>;
}

/// One upload's fixed circumstances, and what was read.
struct Upload<'a> {
    sender: Sender,
    blob: &'a dyn GrowingBlob,
    progress: Progress,
    /// How far the blob was read by any attempt.
    read: Arc<AtomicU64>,
}

/// Sends a blob while it is being made. Dropping the future leaves at most an abandoned session behind.
///
/// [`RegistryError::NotStreamed`]: this host wants it whole.
pub(crate) async fn push(
    transport: &Arc<Transport>,
    endpoint: &Endpoint,
    blob: &dyn GrowingBlob,
    progress: Progress,
) -> Result<PushOutcome, RegistryError> {
    let target = Target {
        host: endpoint.host.clone(),
        repository: endpoint.repository.clone(),
        action: "push blob".to_owned(),
    };
    let sender = Sender::new(transport, endpoint, target);
    if wants_whole_blobs(&endpoint.host) || sender.host.wants_whole.load(Ordering::Relaxed) {
        return Err(RegistryError::NotStreamed { target: Box::new(sender.target), source: None });
    }
    Upload { sender, blob, progress, read: Arc::default() }.run().await
}

impl Upload<'_> {
    async fn run(&self) -> Result<PushOutcome, RegistryError> {
        let mut permit = Some(self.permit().await);
        let mut session = self.sender.open().await?;
        let mut recovery = Recovery::new(&self.sender);
        let mut there = pin!(self.there());
        for attempt in 1.. {
            let begin = session.offset;
            let sent = tokio::select! {
                sent = self.rest(&mut session, &mut permit) => sent,
                () = &mut there => {
                    self.sender.cancel(session).await;
                    return Ok(PushOutcome::AlreadyThere);
                }
            };
            let Err(error) = sent else { return Ok(PushOutcome::Uploaded) };
            if begin == 0 && (refuses_chunks(&error) || error.status() == Some(413)) {
                self.sender.host.wants_whole.store(true, Ordering::Relaxed);
                let target = Box::new(self.sender.target.clone());
                return Err(RegistryError::NotStreamed { target, source: Some(Box::new(error)) });
            }
            if attempt >= UPLOAD_ATTEMPTS_MAX {
                return Err(error);
            }
            recovery.wait(error).await?;
            if permit.is_none() {
                permit = Some(self.permit().await);
            }
            let read = self.read.load(Ordering::Relaxed);
            session = match self.sender.status(&session).await.filter(|now| now.offset <= read) {
                Some(session) => session,
                None => self.sender.open().await?,
            };
        }
        unreachable!("the loop returns at the last attempt")
    }

    /// To be one of those who send to the host.
    async fn permit(&self) -> OwnedSemaphorePermit {
        self.sender.host.pushes.clone().acquire_owned().await.expect("the semaphore is never closed")
    }

    /// All that the registry has not, and the name.
    async fn rest(
        &self,
        session: &mut Session,
        permit: &mut Option<OwnedSemaphorePermit>,
    ) -> Result<(), RegistryError> {
        let begin = session.offset;
        let length = match self.blob.name().now_or_never() {
            Some(name) => Some(name.map_err(|source| self.unreadable(source))?.1.saturating_sub(begin)),
            None => None,
        };
        if length != Some(0) {
            let watch = Arc::new(Watch::default());
            let body = self.body(begin, watch.clone());
            let piece = match length {
                Some(length) => Outgoing { at: Some(begin), ..Outgoing::stream(body, Some(length), watch) },
                None => Outgoing::stream(body, None, watch),
            };
            self.sender.patch(session, piece).await?;
        }
        let (digest, size) = self.blob.name().await.map_err(|source| self.unreadable(source))?;
        if session.offset < size {
            return Err(self.sender.no_progress());
        }
        // Who has the blob's place may be waiting for a permit.
        drop(permit.take());
        // Who pushes the same to another repository here waits, and mounts.
        let place = self.sender.host.place_of(digest);
        let mut place = place.lock().await;
        self.sender.commit(session, digest, Outgoing::empty()).await?;
        self.sender.arrived(digest).await?;
        *place = Some(self.sender.endpoint.repository.clone());
        Ok(())
    }

    /// Ends when the blob has got its name and the repository turns out to have it, and never otherwise.
    async fn there(&self) {
        if let Ok((digest, _)) = self.blob.name().await {
            let (transport, endpoint) = (&self.sender.transport, &self.sender.endpoint);
            let scope = Scope::push(&endpoint.repository);
            if super::exists(transport, endpoint, digest, scope).await.unwrap_or(false) {
                return;
            }
        }
        std::future::pending().await
    }

    /// The blob from `offset` on.
    fn body(&self, offset: u64, watch: Arc<Watch>) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        let (read, progress) = (self.read.clone(), self.progress.clone());
        futures_util::stream::try_unfold((self.blob.open(offset), offset), move |(mut body, begin)| {
            let (read, progress, watch) = (read.clone(), progress.clone(), watch.clone());
            async move {
                watch.pieces.fetch_add(1, Ordering::Relaxed);
                // As long as nothing is made, silence is nobody's fault.
                watch.reading.store(true, Ordering::Relaxed);
                let next = body.next().await;
                watch.reading.store(false, Ordering::Relaxed);
                let Some(piece) = next else {
                    watch.done.store(true, Ordering::Relaxed);
                    return Ok(None);
                };
                let piece: Bytes = piece.map_err(|source| {
                    *lock(&watch.failure) = Some(SourceFailure::Read(source));
                    io::Error::other("the blob to upload ended early")
                })?;
                let end = begin + piece.len() as u64;
                read.fetch_max(end, Ordering::Relaxed);
                watch.sent.store(end - offset, Ordering::Relaxed);
                progress(end);
                Ok(Some((piece, (body, end))))
            }
        })
    }

    fn unreadable(&self, source: io::Error) -> RegistryError {
        self.sender.source_failure(SourceFailure::Read(source))
    }
}
