//! Uploads of blobs whose digest is known: one streaming `PUT`; after a break the session is asked how far it got.
//!
//! ```text
//! POST uploads/ ──202 Location──▶ PUT Location?digest=  ──201──▶ HEAD blob ──200──▶ done
//!                                   │ breaks      │ 413 (a proxy wants smaller bodies)
//!                                   ▼             ▼
//!             GET Location ──204 Range: 0-n──▶ PATCH Location (from n+1, in chunks) ──202──▶ PUT ?digest= ──201
//!                                   │ session gone or no progress kept
//!                                   └──▶ POST uploads/ again
//! ```
//!
//! What is sent is checked on the way out, see [`super::body`].

use std::sync::Arc;

use bytes::Bytes;
use rbuild_oci::Digest;

use super::body::{Watch, checked};
use super::chunk::Reading;
use super::session::{Outgoing, Recovery, Sender, Session};
use super::source::BlobSource;
use crate::auth::Scope;
use crate::endpoint::Endpoint;
use crate::error::{RegistryError, Target, Violation};
use crate::limits::{CHUNK_BYTES_MAX, UPLOAD_ATTEMPTS_MAX, UPLOAD_CHECKS_MAX};
use crate::transport::Transport;
use crate::transport::host::Presence;
use crate::transport::retry::{Patience, Waits};

/// Told the bytes transferred so far, from the first; goes back after a restart.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// How a blob got to be at the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushOutcome {
    /// Its bytes were sent.
    Uploaded,
    /// The repository had it.
    AlreadyThere,
    /// The registry had it in this repository.
    Mounted(String),
}

/// One upload's fixed circumstances.
struct Upload<'a> {
    sender: Sender,
    digest: Digest,
    size: u64,
    source: &'a dyn BlobSource,
    progress: Progress,
}

/// Opens an upload session and cancels it: proves that credentials are good for pushing before anything is built.
pub(crate) async fn check_permission(
    transport: &Arc<Transport>,
    endpoint: &Endpoint,
) -> Result<(), RegistryError> {
    let target = Target {
        host: endpoint.host.clone(),
        repository: endpoint.repository.clone(),
        action: "check push permission".to_owned(),
    };
    let sender = Sender::new(transport, endpoint, target);
    let session = sender.open().await?;
    sender.cancel(session).await;
    Ok(())
}

/// Sends a blob unless the repository has it, or another one of the registry that we pushed it to. Dropping the
/// future leaves at most an abandoned session behind.
pub(crate) async fn push(
    transport: &Arc<Transport>,
    endpoint: &Endpoint,
    digest: Digest,
    size: u64,
    source: &dyn BlobSource,
    progress: Progress,
) -> Result<PushOutcome, RegistryError> {
    let sender = Sender::new(transport, endpoint, super::target(endpoint, "push", digest));
    // One upload of a blob at a time and host: who waited finds it there, in this repository or in one to mount from.
    let place = sender.host.place_of(digest);
    let mut place = place.lock().await;
    let scope = Scope::push(&endpoint.repository);
    let known = sender.host.presence(&endpoint.repository, digest);
    let is_there = match known {
        Some(Presence::There) => true,
        Some(Presence::Absent) => false,
        None => super::exists(transport, endpoint, digest, scope).await?,
    };
    if is_there {
        place.get_or_insert_with(|| endpoint.repository.clone());
        return Ok(PushOutcome::AlreadyThere);
    }
    if let Some(from) = place.clone()
        && super::mount::mount(transport, endpoint, digest, &from).await?
    {
        return Ok(PushOutcome::Mounted(from));
    }
    let _permit = sender.host.pushes.clone().acquire_owned().await.expect("the semaphore is never closed");
    let upload = Upload { sender, digest, size, source, progress };
    upload.run().await?;
    upload.sender.arrived(digest).await?;
    *place = Some(endpoint.repository.clone());
    Ok(PushOutcome::Uploaded)
}

impl Upload<'_> {
    async fn run(&self) -> Result<(), RegistryError> {
        let mut recovery = Recovery::new(&self.sender);
        let (mut session, mut in_chunks) = (None, false);
        for attempt in 1.. {
            let mut current = match session.take() {
                Some(current) => current,
                None => self.sender.open().await?,
            };
            let result = match in_chunks || current.offset > 0 {
                true => self.chunks(&mut current, in_chunks).await,
                false => self.whole(&current).await,
            };
            let Err(error) = result else { return Ok(()) };
            if attempt >= UPLOAD_ATTEMPTS_MAX {
                return Err(error);
            }
            // Something in between refuses large bodies: smaller ones may pass, if the registry takes such.
            let is_small = current.chunk_bytes() <= CHUNK_BYTES_MAX.min(self.size);
            if error.status() == Some(413) && !in_chunks && is_small {
                in_chunks = true;
            } else {
                recovery.wait(error).await?;
            }
            session = self.sender.status(&current).await.filter(|session| session.offset <= self.size);
        }
        unreachable!("the loop returns at the last attempt")
    }

    /// All of it in one request.
    async fn whole(&self, session: &Session) -> Result<(), RegistryError> {
        let watch = Arc::new(Watch::default());
        let stream = self.open(0, &watch).await?;
        self.sender.commit(session, self.digest, Outgoing::stream(stream, self.size, watch)).await
    }

    /// What the registry has not yet: in chunks, or in one when nothing speaks against it.
    async fn chunks(&self, session: &mut Session, is_limited: bool) -> Result<(), RegistryError> {
        if is_limited {
            let mut reading = None;
            while session.offset < self.size {
                let before = session.offset;
                let current = match reading.take() {
                    Some(current) => current,
                    None => {
                        let watch = Arc::new(Watch::default());
                        Reading::new(self.open(before, &watch).await?, before, watch)
                    }
                };
                let (chunk, lent) = current.chunk(session.chunk_bytes().min(self.size - before));
                self.sender.patch(session, chunk).await?;
                if session.offset <= before {
                    return Err(self.sender.no_progress());
                }
                // Where it took less than was sent, or did not wait for all of it, the blob is read again from there.
                reading = lent.take_back().filter(|reading| reading.position == session.offset);
            }
        } else if session.offset < self.size {
            let (watch, before) = (Arc::new(Watch::default()), session.offset);
            let stream = self.open(before, &watch).await?;
            let rest = Outgoing { at: Some(before), ..Outgoing::stream(stream, self.size - before, watch) };
            self.sender.patch(session, rest).await?;
            if session.offset < self.size {
                return Err(self.sender.no_progress());
            }
        }
        self.sender.commit(session, self.digest, Outgoing::empty()).await
    }

    async fn open(
        &self,
        offset: u64,
        watch: &Arc<Watch>,
    ) -> Result<impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send + 'static, RegistryError>
    {
        let failed = |source| RegistryError::Source { target: Box::new(self.sender.target.clone()), source };
        let body = self.source.open().await.map_err(failed)?;
        Ok(checked(body, self.digest, self.size, offset, self.progress.clone(), watch.clone()))
    }
}

impl Sender {
    /// Asks for what was just stored: an answer of `201` alone proves nothing. Registries in the cloud may need a
    /// moment to see it themselves.
    pub(super) async fn arrived(&self, digest: Digest) -> Result<(), RegistryError> {
        let deadlines = self.transport.deadlines();
        let mut waits = Waits::new(Patience::Full, deadlines.backoff, deadlines.retry_budget);
        for _ in 0..UPLOAD_CHECKS_MAX {
            let scope = Scope::push(&self.endpoint.repository);
            if super::exists(&self.transport, &self.endpoint, digest, scope).await? {
                return Ok(());
            }
            if !waits.wait(None).await {
                break;
            }
        }
        let target = Box::new(self.target.clone());
        Err(RegistryError::Protocol { target, violation: Violation::Lost(digest) })
    }
}
