//! Uploads of blobs that are still being made: chunk after chunk, digest and size at the end.
//!
//! The chunk under way is kept, so that a connection that breaks costs no more than sending it again. Nothing is kept
//! of what the registry has confirmed: when a session is lost, so is the upload, and the caller, who has the finished
//! blob by then, pushes it whole ([`crate::Client::push_blob`]).

use bytes::{Bytes, BytesMut};
use rbuild_oci::{Digest, Sha256};
use tokio::sync::OwnedSemaphorePermit;

use super::push::Progress;
use super::session::{Outgoing, Sender, Session, may_go_on, refuses_chunks};
use crate::auth::Scope;
use crate::endpoint::{Endpoint, wants_whole_blobs};
use crate::error::{RegistryError, Target};
use crate::limits::{CHUNK_BYTES_MAX, REAUTHENTICATIONS_MAX, UPLOAD_ATTEMPTS_MAX};
use crate::transport::Transport;
use crate::transport::retry::{Patience, Waits};

/// A blob on its way to a registry while it is being made.
///
/// Dropping it leaves an abandoned session behind, which the registry purges; [`Self::cancel`] tells it.
/// [`RegistryError::NotStreamed`] from any method means: make the blob, then use [`crate::Client::push_blob`].
pub struct BlobUpload {
    sender: Sender,
    /// Opened when the first chunk is full: a small blob is sent in one piece.
    session: Option<Session>,
    /// What the registry has not confirmed.
    pending: BytesMut,
    total: u64,
    hash: Sha256,
    progress: Progress,
    _permit: OwnedSemaphorePermit,
}

impl std::fmt::Debug for BlobUpload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobUpload").field("target", &self.sender.target).field("total", &self.total).finish()
    }
}

/// Begins an upload. Waits while the host is busy with other uploads.
pub(crate) async fn start(
    transport: &std::sync::Arc<Transport>,
    endpoint: &Endpoint,
    progress: Progress,
) -> Result<BlobUpload, RegistryError> {
    let target = Target {
        host: endpoint.host.clone(),
        repository: endpoint.repository.clone(),
        action: "push blob".to_owned(),
    };
    if wants_whole_blobs(&endpoint.host) {
        return Err(RegistryError::NotStreamed { target: Box::new(target), source: None });
    }
    let sender = Sender::new(transport, endpoint, target);
    let permit = sender.host.pushes.clone().acquire_owned().await.expect("the semaphore is never closed");
    let (pending, hash) = (BytesMut::new(), Sha256::new());
    Ok(BlobUpload { sender, session: None, pending, total: 0, hash, progress, _permit: permit })
}

impl BlobUpload {
    /// Takes the next bytes; sends when a chunk is full, and then returns only when the registry has it. After an
    /// error the upload is of no more use.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), RegistryError> {
        self.hash.update(&bytes);
        self.total += bytes.len() as u64;
        self.pending.extend_from_slice(&bytes);
        loop {
            let size = match &self.session {
                Some(session) => session.chunk_bytes(),
                None => crate::limits::CHUNK_BYTES,
            };
            // Strictly more: the last bytes of a blob always go with its end.
            if self.pending.len() as u64 <= size {
                return Ok(());
            }
            match &self.session {
                Some(_) => self.send(size as usize).await?,
                // It may ask for larger chunks than ours.
                None => self.open().await?,
            }
        }
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.total
    }

    /// Sends what is left and names the blob: its digest and size.
    pub async fn finish(mut self) -> Result<(Digest, u64), RegistryError> {
        let digest = std::mem::take(&mut self.hash).finish();
        let (mut attempts, mut state) = (0, Recovery::new(&self.sender));
        loop {
            let result = match &mut self.session {
                // All of it in one request.
                None => {
                    let opened = self.sender.open().await?;
                    let whole = Outgoing { at: None, ..Outgoing::chunk(&self.pending.clone().freeze(), 0) };
                    self.sender.commit(&opened, digest, whole).await
                }
                Some(_) => {
                    if !self.pending.is_empty() {
                        self.send(self.pending.len()).await?;
                        continue;
                    }
                    let session = self.session.as_ref().expect("matched above");
                    self.sender.commit(session, digest, Outgoing::empty()).await
                }
            };
            attempts += 1;
            match result {
                Ok(()) => break,
                Err(error) if attempts >= UPLOAD_ATTEMPTS_MAX => return Err(error),
                Err(error) => {
                    state.wait(error).await?;
                    // The answer to a commit that arrived may be what was lost.
                    let scope = Scope::push(&self.sender.endpoint.repository);
                    let (transport, endpoint) = (&self.sender.transport, &self.sender.endpoint);
                    if super::exists(transport, endpoint, digest, scope).await? {
                        break;
                    }
                }
            }
        }
        (self.progress)(self.total);
        self.sender.arrived(digest).await?;
        Ok((digest, self.total))
    }

    /// Gives up.
    pub async fn cancel(self) {
        if let Some(session) = self.session {
            self.sender.cancel(session).await;
        }
    }

    async fn open(&mut self) -> Result<(), RegistryError> {
        let session = self.sender.open().await?;
        if session.chunk_min > CHUNK_BYTES_MAX {
            self.sender.cancel(session).await;
            return Err(self.not_streamed(None));
        }
        self.session = Some(session);
        Ok(())
    }

    /// Sends the first `size` bytes of what is pending, however often it takes. A session must be open.
    async fn send(&mut self, size: usize) -> Result<(), RegistryError> {
        let Some(mut session) = self.session.take() else { return Err(self.not_streamed(None)) };
        let chunk = self.pending.split_to(size.min(self.pending.len())).freeze();
        let (begin, end) = (session.offset, session.offset + chunk.len() as u64);
        let (mut attempts, mut state) = (0, Recovery::new(&self.sender));
        while session.offset < end {
            let before = session.offset;
            let rest = chunk.slice((before - begin) as usize..);
            let error = match self.sender.patch(&mut session, Outgoing::chunk(&rest, before)).await {
                Ok(()) if session.offset > before => {
                    attempts = 0;
                    (self.progress)(session.offset);
                    continue;
                }
                Ok(()) => RegistryError::Unreachable {
                    target: Box::new(self.sender.target.clone()),
                    reason: crate::error::Reason::Broken,
                    source: None,
                },
                Err(error) if begin == 0 && refuses_chunks(&error) => {
                    return Err(self.not_streamed(Some(error)));
                }
                Err(error) => error,
            };
            attempts += 1;
            if attempts >= UPLOAD_ATTEMPTS_MAX {
                return Err(error);
            }
            state.wait(error).await?;
            session = match self.sender.status(&session).await {
                Some(now) if (begin..=end).contains(&now.offset) => now,
                // Nothing was confirmed before this chunk: another session is as good.
                _ if begin == 0 => self.sender.open().await?,
                _ => return Err(self.not_streamed(None)),
            };
        }
        self.session = Some(session);
        Ok(())
    }

    fn not_streamed(&self, source: Option<RegistryError>) -> RegistryError {
        let target = Box::new(self.sender.target.clone());
        RegistryError::NotStreamed { target, source: source.map(Box::new) }
    }
}

/// Bounds what an upload does about failures.
struct Recovery {
    waits: Waits,
    reauthentications: usize,
}

impl Recovery {
    fn new(sender: &Sender) -> Self {
        let deadlines = sender.transport.deadlines();
        let waits = Waits::new(Patience::Full, deadlines.backoff, deadlines.retry_budget);
        Self { waits, reauthentications: 0 }
    }

    /// Waits before another try, or says why there is none.
    async fn wait(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        if matches!(error, RegistryError::Unauthorized { .. }) {
            self.reauthentications += 1;
            return if self.reauthentications <= REAUTHENTICATIONS_MAX { Ok(()) } else { Err(error) };
        }
        let asked = match &error {
            RegistryError::RateLimited { retry_after, .. } => *retry_after,
            _ => None,
        };
        if may_go_on(&error) && self.waits.wait(asked).await { Ok(()) } else { Err(error) }
    }
}
