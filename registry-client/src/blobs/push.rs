//! Uploads: `POST` for a session, one streaming `PUT`; after a break the session is asked how far it got.
//!
//! ```text
//! POST uploads/ ──202 Location──▶ PUT Location?digest=  ──201──▶ done
//!                                   │ breaks
//!                                   ▼
//!                       GET Location ──204 Range: 0-n──▶ PATCH Location (from n+1) ──202──▶ PUT ?digest= ──201
//!                                   │ session gone or no progress kept
//!                                   └──▶ POST uploads/ again
//! ```
//!
//! What is sent is checked on the way out, see [`super::body`].

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rbuild_oci::Digest;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::{Body, Method, Response, StatusCode, Url};

use super::body::{SourceFailure, Watch, checked};
use super::source::BlobSource;
use crate::auth::{Scope, lock};
use crate::endpoint::Endpoint;
use crate::error::{RegistryError, Target, Violation, escape};
use crate::limits::{REAUTHENTICATIONS_MAX, UPLOAD_ATTEMPTS_MAX};
use crate::transport::retry::{self, Patience, Waits};
use crate::transport::{Address, Call, Host, Transport, exchange};

/// Told the bytes transferred so far, from the first; goes back after a restart.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// How a blob got to be at the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushOutcome {
    /// Its bytes were sent.
    Uploaded,
    /// The repository had it.
    AlreadyThere,
}

/// Where an upload session stands.
struct Session {
    location: Url,
    /// Bytes the registry has.
    offset: u64,
}

/// One upload's fixed circumstances.
struct Upload<'a> {
    transport: &'a Transport,
    host: &'a Host,
    endpoint: &'a Endpoint,
    digest: Digest,
    size: u64,
    source: &'a dyn BlobSource,
    progress: Progress,
    target: Target,
}

/// Opens an upload session and cancels it: proves that credentials are good for pushing before anything is built.
pub(crate) async fn check_permission(
    transport: &Transport,
    endpoint: &Endpoint,
) -> Result<(), RegistryError> {
    let target = Target {
        host: endpoint.host.clone(),
        repository: endpoint.repository.clone(),
        action: "check push permission".to_owned(),
    };
    let host = transport.host(endpoint);
    let location = start(transport, &host, endpoint, &target).await?;
    let mut cancel = call(endpoint, Method::DELETE, location, &target);
    cancel.patience = Patience::None;
    // Not every registry can cancel; all of them purge abandoned sessions.
    let _ = transport.send(&host, &cancel).await;
    Ok(())
}

/// Sends a blob unless the repository has it. Dropping the future leaves at most an abandoned session behind.
pub(crate) async fn push(
    transport: &Transport,
    endpoint: &Endpoint,
    digest: Digest,
    size: u64,
    source: &dyn BlobSource,
    progress: Progress,
) -> Result<PushOutcome, RegistryError> {
    let scope = Scope::push(&endpoint.repository);
    if super::exists(transport, endpoint, digest, scope).await? {
        return Ok(PushOutcome::AlreadyThere);
    }
    let host = transport.host(endpoint);
    let _permit = host.pushes.clone().acquire_owned().await.expect("the semaphore is never closed");
    let target = super::target(endpoint, "push", digest);
    let upload = Upload { transport, host: &host, endpoint, digest, size, source, progress, target };
    upload.run().await.map(|()| PushOutcome::Uploaded)
}

impl Upload<'_> {
    async fn run(&self) -> Result<(), RegistryError> {
        let deadlines = self.transport.deadlines();
        let mut waits = Waits::new(Patience::Full, deadlines.backoff, deadlines.retry_budget);
        let (mut session, mut reauthentications) = (None, 0);
        for attempt in 1.. {
            let current = match session.take() {
                Some(current) => current,
                None => {
                    let location = start(self.transport, self.host, self.endpoint, &self.target).await?;
                    Session { location, offset: 0 }
                }
            };
            let location = current.location.clone();
            let error = match self.transfer(current).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            // A token that ran out in the middle: `transfer` remembered the challenge.
            let expired = matches!(error, RegistryError::Unauthorized { .. });
            let passing = match &error {
                RegistryError::Unauthorized { .. } => reauthentications < REAUTHENTICATIONS_MAX,
                RegistryError::RateLimited { .. } => true,
                RegistryError::Refused { reply, .. } => {
                    // 416: our idea of the offset was wrong; ask or start anew. Sessions can also vanish (404).
                    let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::BAD_REQUEST);
                    retry::is_temporary(status) || status == StatusCode::RANGE_NOT_SATISFIABLE
                }
                RegistryError::NotFound { reply, .. } => reply.has_code("BLOB_UPLOAD_UNKNOWN"),
                error => retry::may_pass(error, 0),
            };
            let asked = match &error {
                RegistryError::RateLimited { retry_after, .. } => *retry_after,
                _ => None,
            };
            if !passing || attempt >= UPLOAD_ATTEMPTS_MAX || (!expired && !waits.wait(asked).await) {
                return Err(error);
            }
            reauthentications += usize::from(expired);
            session = self.status(location).await;
        }
        unreachable!("the loop returns at the last attempt")
    }

    /// Sends everything from the session's offset on and commits it.
    async fn transfer(&self, session: Session) -> Result<(), RegistryError> {
        let answer = if session.offset == 0 {
            self.send(Method::PUT, &self.commit_address(&session.location), 0).await?
        } else {
            let answer = self.send(Method::PATCH, &session.location, session.offset).await?;
            let answer = self.judge(answer, &[StatusCode::ACCEPTED, StatusCode::NO_CONTENT]).await?;
            let location =
                location(self.host, self.transport, &answer, &session.location, &self.target).await?;
            let address = self.commit_address(&location);
            let mut commit = call(self.endpoint, Method::PUT, address, &self.target);
            commit.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
            self.transport.send(self.host, &commit).await?
        };
        let answer = self.judge(answer, &[StatusCode::CREATED, StatusCode::NO_CONTENT]).await?;
        match answer.headers().get("docker-content-digest").and_then(|value| value.to_str().ok()) {
            Some(reported) if reported != self.digest.to_string() => Err(RegistryError::Protocol {
                target: Box::new(self.target.clone()),
                violation: Violation::StoredDigest { sent: self.digest, reported: escape(reported) },
            }),
            _ => Ok(()),
        }
    }

    async fn judge(
        &self,
        (answer, authorization): (Response, crate::auth::Authorization),
        expected: &[StatusCode],
    ) -> Result<Response, RegistryError> {
        if answer.status() == StatusCode::UNAUTHORIZED {
            self.host.auth.challenged(answer.headers(), &authorization);
        }
        self.transport.expect(answer, expected, &self.target, &authorization).await
    }

    /// `location` with our digest added to whatever query the registry put there.
    fn commit_address(&self, location: &Url) -> Url {
        let mut address = location.clone();
        address.query_pairs_mut().append_pair("digest", &self.digest.to_string());
        address
    }

    /// Asks a session how far it got. `None` when it is better to start anew.
    async fn status(&self, session: Url) -> Option<Session> {
        let mut ask = call(self.endpoint, Method::GET, session.clone(), &self.target);
        ask.patience = Patience::None;
        let (answer, _) = self.transport.send(self.host, &ask).await.ok()?;
        if answer.status() != StatusCode::NO_CONTENT {
            return None;
        }
        let offset = received(answer.headers().get(RANGE)?.to_str().ok()?)?;
        if offset == 0 || offset > self.size {
            return None;
        }
        let location = match answer.headers().contains_key(LOCATION) {
            true => location(self.host, self.transport, &answer, &session, &self.target).await.ok()?,
            false => session,
        };
        Some(Session { location, offset })
    }

    /// One streaming request. Neither retried nor redirected: its body can be sent once.
    async fn send(
        &self,
        method: Method,
        address: &Url,
        offset: u64,
    ) -> Result<(Response, crate::auth::Authorization), RegistryError> {
        let base = self.transport.base(self.host, &self.target, &Patience::None).await?;
        let scopes = [Scope::push(&self.endpoint.repository)];
        let authorization = self.transport.authorize(self.host, &scopes, &self.target, false).await?;
        let client = self.transport.client_for(self.host, address, &base, &self.target).await?;
        let body = self.source.open().await.map_err(|source| self.source_error(source))?;
        let watch = Arc::new(Watch::default());
        let checked = checked(body, self.digest, self.size, offset, self.progress.clone(), watch.clone());
        let mut request = client
            .request(method.clone(), address.clone())
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, self.size - offset)
            .body(Body::wrap_stream(checked));
        if method == Method::PATCH {
            let end = (self.size - 1).max(offset);
            request = request.header(CONTENT_RANGE, format!("{offset}-{end}"));
        }
        if let Some(value) = &authorization.header {
            // The address may be elsewhere (object storage): credentials stay at home.
            if exchange::origin(address) == exchange::origin(&base) {
                request = request.header(reqwest::header::AUTHORIZATION, value.clone());
            }
        }
        let answer = tokio::select! {
            answer = request.send() => answer,
            () = self.stall(&watch) => return Err(exchange::timed_out(&self.target)),
        };
        match (answer, lock(&watch.failure).take()) {
            (Ok(answer), _) => Ok((answer, authorization)),
            (Err(_), Some(SourceFailure::Read(source))) => Err(self.source_error(source)),
            (Err(_), Some(SourceFailure::Digest(actual))) => Err(RegistryError::DigestMismatch {
                target: Box::new(self.target.clone()),
                expected: self.digest,
                actual,
            }),
            (Err(_), Some(SourceFailure::Size(actual))) => Err(RegistryError::SizeMismatch {
                target: Box::new(self.target.clone()),
                expected: self.size,
                actual,
            }),
            (Err(source), None) => Err(exchange::unreachable(&self.target, source)),
        }
    }

    /// Ends when the connection took no bytes for the idle deadline, or gave no answer for the commit deadline.
    async fn stall(&self, watch: &Watch) {
        let deadlines = self.transport.deadlines();
        let (mut last, mut quiet) = (0, Duration::ZERO);
        loop {
            let limit = if watch.done.load(Ordering::Relaxed) { deadlines.commit } else { deadlines.idle };
            let tick = (limit / 10).max(Duration::from_millis(10));
            tokio::time::sleep(tick).await;
            let now = watch.pieces.load(Ordering::Relaxed);
            quiet = if now == last { quiet + tick } else { Duration::ZERO };
            last = now;
            if quiet >= limit && !watch.reading.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    fn source_error(&self, source: io::Error) -> RegistryError {
        RegistryError::Source { target: Box::new(self.target.clone()), source }
    }
}

/// `POST uploads/`: the address of a new session.
async fn start(
    transport: &Transport,
    host: &Host,
    endpoint: &Endpoint,
    target: &Target,
) -> Result<Url, RegistryError> {
    let base = transport.base(host, target, &Patience::Full).await?;
    let address = exchange::join(&base, &format!("/v2/{}/blobs/uploads/", endpoint.repository), target)?;
    let mut post = call(endpoint, Method::POST, address.clone(), target);
    post.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    let (answer, authorization) = transport.send(host, &post).await?;
    let answer = transport.expect(answer, &[StatusCode::ACCEPTED], target, &authorization).await?;
    location(host, transport, &answer, &address, target).await
}

/// The session address of an answer, resolved against the request's.
///
/// Registries behind a TLS-terminating proxy often name their own host with `http`: the same host is spoken to the
/// way we already do. Any other downgrade is refused when the address is used.
async fn location(
    host: &Host,
    transport: &Transport,
    answer: &Response,
    asked: &Url,
    target: &Target,
) -> Result<Url, RegistryError> {
    let value = answer.headers().get(LOCATION).ok_or_else(|| RegistryError::Protocol {
        target: Box::new(target.clone()),
        violation: Violation::HeaderMissing("Location"),
    })?;
    let mut next = exchange::join(asked, &String::from_utf8_lossy(value.as_bytes()), target)?;
    let base = transport.base(host, target, &Patience::None).await?;
    if base.scheme() == "https" && next.scheme() == "http" && next.host_str() == base.host_str() {
        let port = if next.port().is_none() { base.port() } else { next.port() };
        if next.set_scheme("https").is_err() || next.set_port(port).is_err() {
            next = base;
        }
    }
    Ok(next)
}

/// The number of bytes in `0-n`. `0-0` is ambiguous (one byte or none) and counts as none.
fn received(range: &str) -> Option<u64> {
    let last: u64 = range.trim().trim_start_matches("bytes=").strip_prefix("0-")?.parse().ok()?;
    if last == 0 { Some(0) } else { last.checked_add(1) }
}

fn call(endpoint: &Endpoint, method: Method, address: Url, target: &Target) -> Call {
    Call {
        method,
        address: Address::Url(address),
        scopes: vec![Scope::push(&endpoint.repository)],
        headers: HeaderMap::new(),
        body: None,
        target: target.clone(),
        patience: Patience::Full,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn received_ranges_count_bytes() {
        assert_eq!(received("0-99"), Some(100));
        assert_eq!(received("bytes=0-99"), Some(100));
        assert_eq!(received("0-0"), Some(0));
        for bad in ["", "5-9", "0-x", "0-99999999999999999999", &format!("0-{}", u64::MAX)] {
            assert_eq!(received(bad), None, "{bad}");
        }
    }
}
