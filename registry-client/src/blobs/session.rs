//! Upload sessions: opened with `POST`, moved on by answers with a new `Location`, asked with `GET` how far they got.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use rbuild_oci::Digest;
use reqwest::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE,
};
use reqwest::{Body, Method, Response, StatusCode, Url};

use super::body::{SourceFailure, Watch};
use crate::auth::{Authorization, Scope, lock};
use crate::endpoint::Endpoint;
use crate::error::{Reason, RegistryError, Target, Violation, escape};
use crate::limits::{CHUNK_BYTES, REAUTHENTICATIONS_MAX};
use crate::transport::retry::{self, Patience, Waits};
use crate::transport::{Address, Call, Host, Transport, exchange};

/// Where a registry says how small a chunk may be (distribution specification, «Pushing a blob in chunks»).
const CHUNK_MIN_LENGTH: &str = "oci-chunk-min-length";

/// What all requests of an upload share.
#[derive(Clone)]
pub(super) struct Sender {
    pub(super) transport: Arc<Transport>,
    pub(super) host: Arc<Host>,
    pub(super) endpoint: Endpoint,
    pub(super) target: Target,
}

/// Where an upload stands.
#[derive(Debug, Clone)]
pub(super) struct Session {
    pub(super) location: Url,
    /// Bytes the registry has.
    pub(super) offset: u64,
    /// Smallest chunk it takes, the last one excepted.
    pub(super) chunk_min: u64,
}

/// A body that can be sent once.
pub(super) struct Outgoing {
    pub(super) body: Body,
    /// `None` for one that is still being made; `watch` counts it.
    pub(super) length: Option<u64>,
    /// Position of its first byte in the blob; with it goes a `Content-Range`.
    pub(super) at: Option<u64>,
    pub(super) watch: Arc<Watch>,
}

impl Outgoing {
    pub(super) fn stream(
        stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        length: impl Into<Option<u64>>,
        watch: Arc<Watch>,
    ) -> Self {
        let length = length.into();
        Self { body: Body::wrap_stream(stream), length, at: None, watch }
    }

    pub(super) fn empty() -> Self {
        let watch = Watch::default();
        watch.done.store(true, Ordering::Relaxed);
        Self { body: Body::from(Bytes::new()), length: Some(0), at: None, watch: Arc::new(watch) }
    }
}

impl Session {
    /// How much goes into one chunk here.
    pub(super) fn chunk_bytes(&self) -> u64 {
        self.chunk_min.max(CHUNK_BYTES)
    }

    /// `location` with our digest added to whatever query the registry put there.
    pub(super) fn commit_address(&self, digest: Digest) -> Url {
        let mut address = self.location.clone();
        address.query_pairs_mut().append_pair("digest", &digest.to_string());
        address
    }
}

impl Sender {
    pub(super) fn new(transport: &Arc<Transport>, endpoint: &Endpoint, target: Target) -> Self {
        let host = transport.host(endpoint);
        Self { transport: transport.clone(), host, endpoint: endpoint.clone(), target }
    }

    /// `POST uploads/`.
    pub(super) async fn open(&self) -> Result<Session, RegistryError> {
        let base = self.transport.base(&self.host, &self.target, &Patience::Full).await?;
        let path = format!("/v2/{}/blobs/uploads/", self.endpoint.repository);
        let address = exchange::join(&base, &path, &self.target)?;
        let mut post = self.call(Method::POST, address.clone());
        post.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        let (answer, authorization) = self.transport.send(&self.host, &post).await?;
        let accepted = [StatusCode::ACCEPTED];
        let answer = self.transport.expect(answer, &accepted, &self.target, &authorization).await?;
        let location = self.location(&answer, &address).await?;
        Ok(Session { location, offset: 0, chunk_min: chunk_min(answer.headers()) })
    }

    /// Asks a session how far it got. `None` when it is better to start anew.
    pub(super) async fn status(&self, session: &Session) -> Option<Session> {
        let mut ask = self.call(Method::GET, session.location.clone());
        ask.patience = Patience::None;
        let (answer, _) = self.transport.send(&self.host, &ask).await.ok()?;
        if answer.status() != StatusCode::NO_CONTENT {
            return None;
        }
        let offset = received(answer.headers().get(RANGE)?.to_str().ok()?).filter(|offset| *offset > 0)?;
        let location = match answer.headers().contains_key(LOCATION) {
            true => self.location(&answer, &session.location).await.ok()?,
            false => session.location.clone(),
        };
        Some(Session { location, offset, chunk_min: session.chunk_min.max(chunk_min(answer.headers())) })
    }

    /// Sends the next piece. The session says afterwards how much of it the registry took.
    pub(super) async fn patch(&self, session: &mut Session, piece: Outgoing) -> Result<(), RegistryError> {
        let (length, watch) = (piece.length, piece.watch.clone());
        let answer = self.transmit(Method::PATCH, &session.location, piece).await?;
        let answer = self.judge(answer, &[StatusCode::ACCEPTED, StatusCode::NO_CONTENT]).await?;
        session.location = self.location(&answer, &session.location).await?;
        session.chunk_min = session.chunk_min.max(chunk_min(answer.headers()));
        let end = session.offset + length.unwrap_or_else(|| watch.sent.load(Ordering::Relaxed));
        let range = answer.headers().get(RANGE).and_then(|value| received(value.to_str().ok()?));
        // Without a word about it the piece arrived; «more than we sent» is nothing to build on.
        session.offset = range.filter(|taken| *taken > 0).unwrap_or(end).min(end);
        Ok(())
    }

    /// `PUT ?digest=`, with the rest of the blob or without.
    pub(super) async fn commit(
        &self,
        session: &Session,
        digest: Digest,
        rest: Outgoing,
    ) -> Result<(), RegistryError> {
        let answer = self.transmit(Method::PUT, &session.commit_address(digest), rest).await?;
        let answer = self.judge(answer, &[StatusCode::CREATED, StatusCode::NO_CONTENT]).await?;
        match answer.headers().get("docker-content-digest").and_then(|value| value.to_str().ok()) {
            Some(reported) if reported != digest.to_string() => Err(RegistryError::Protocol {
                target: Box::new(self.target.clone()),
                violation: Violation::StoredDigest { sent: digest, reported: escape(reported) },
            }),
            _ => Ok(()),
        }
    }

    /// Gives a session up. Not every registry can cancel; all of them purge what was abandoned.
    pub(super) async fn cancel(&self, session: Session) {
        let mut cancel = self.call(Method::DELETE, session.location);
        cancel.patience = Patience::None;
        let _ = self.transport.send(&self.host, &cancel).await;
    }

    /// One streaming request. Neither retried nor redirected: its body can be sent once.
    async fn transmit(
        &self,
        method: Method,
        address: &Url,
        outgoing: Outgoing,
    ) -> Result<(Response, Authorization), RegistryError> {
        let base = self.transport.base(&self.host, &self.target, &Patience::None).await?;
        let scopes = [Scope::push(&self.endpoint.repository)];
        let authorization = self.transport.authorize(&self.host, &scopes, &self.target, false).await?;
        let client = self.transport.client_for(&self.host, address, &base, &self.target).await?;
        let at_home = exchange::origin(address) == exchange::origin(&base);
        let watch = outgoing.watch;
        let mut request = client
            .request(method, address.clone())
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(outgoing.body);
        if let Some(length) = outgoing.length {
            request = request.header(CONTENT_LENGTH, length);
        }
        if let (Some(at), Some(length)) = (outgoing.at, outgoing.length) {
            let end = (at + length).saturating_sub(1).max(at);
            request = request.header(CONTENT_RANGE, format!("{at}-{end}"));
        }
        // The address may be elsewhere (object storage): what is the host's own stays at home.
        if at_home {
            request = request.headers(self.transport.own_headers(&self.host).await?);
            if let Some(value) = &authorization.header {
                request = request.header(AUTHORIZATION, value.clone());
            }
        }
        let answer = tokio::select! {
            answer = request.send() => answer,
            () = self.stall(&watch) => return Err(exchange::timed_out(&self.target)),
        };
        let failure = lock(&watch.failure).take();
        match (answer, failure) {
            (Ok(answer), _) => Ok((answer, authorization)),
            (Err(_), Some(failure)) => Err(self.source_failure(failure)),
            (Err(source), None) => {
                Err(self.transport.failed(Some(self.host.name()), address, &self.target, source).await)
            }
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

    /// A session that keeps less than it was given: worth another try.
    pub(super) fn no_progress(&self) -> RegistryError {
        let target = Box::new(self.target.clone());
        RegistryError::Unreachable { target, reason: Reason::Broken, proxy: None, source: None }
    }

    pub(super) fn source_failure(&self, failure: SourceFailure) -> RegistryError {
        let target = Box::new(self.target.clone());
        match failure {
            SourceFailure::Read(source) => RegistryError::Source { target, source },
            SourceFailure::Digest { expected, actual } => {
                RegistryError::DigestMismatch { target, expected, actual }
            }
            SourceFailure::Size { expected, actual } => {
                RegistryError::SizeMismatch { target, expected, actual }
            }
        }
    }

    async fn judge(
        &self,
        (answer, authorization): (Response, Authorization),
        expected: &[StatusCode],
    ) -> Result<Response, RegistryError> {
        if answer.status() == StatusCode::UNAUTHORIZED {
            self.host.auth.challenged(answer.headers(), &authorization);
        }
        self.transport.expect(answer, expected, &self.target, &authorization).await
    }

    /// The session address of an answer, resolved against the request's.
    ///
    /// Registries behind a TLS-terminating proxy often name their own host with `http`: the same host is spoken to
    /// the way we already do. Any other downgrade is refused when the address is used.
    async fn location(&self, answer: &Response, asked: &Url) -> Result<Url, RegistryError> {
        let value = answer.headers().get(LOCATION).ok_or_else(|| RegistryError::Protocol {
            target: Box::new(self.target.clone()),
            violation: Violation::HeaderMissing("Location"),
        })?;
        let mut next = exchange::join(asked, &String::from_utf8_lossy(value.as_bytes()), &self.target)?;
        let base = self.transport.base(&self.host, &self.target, &Patience::None).await?;
        if base.scheme() == "https" && next.scheme() == "http" && next.host_str() == base.host_str() {
            let port = if next.port().is_none() { base.port() } else { next.port() };
            if next.set_scheme("https").is_err() || next.set_port(port).is_err() {
                next = base;
            }
        }
        Ok(next)
    }

    fn call(&self, method: Method, address: Url) -> Call {
        Call {
            method,
            address: Address::Url(address),
            scopes: vec![Scope::push(&self.endpoint.repository)],
            headers: HeaderMap::new(),
            body: None,
            target: self.target.clone(),
            patience: Patience::Full,
        }
    }
}

/// Bounds what an upload does about failures.
pub(super) struct Recovery {
    waits: Waits,
    reauthentications: usize,
}

impl Recovery {
    pub(super) fn new(sender: &Sender) -> Self {
        let deadlines = sender.transport.deadlines();
        let waits = Waits::new(Patience::Full, deadlines.backoff, deadlines.retry_budget);
        Self { waits, reauthentications: 0 }
    }

    /// Waits before another try, or says why there is none.
    pub(super) async fn wait(&mut self, error: RegistryError) -> Result<(), RegistryError> {
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

/// Whether an upload that failed so may go on: asked how far it got, or started anew.
fn may_go_on(error: &RegistryError) -> bool {
    match error {
        // A token that ran out in the middle: its challenge was remembered.
        RegistryError::Unauthorized { .. } | RegistryError::RateLimited { .. } => true,
        RegistryError::Refused { reply, .. } => {
            // 416: our idea of the offset was wrong; ask or start anew.
            let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::BAD_REQUEST);
            retry::is_temporary(status) || status == StatusCode::RANGE_NOT_SATISFIABLE
        }
        // Sessions can vanish.
        RegistryError::NotFound { reply, .. } => reply.has_code("BLOB_UPLOAD_UNKNOWN"),
        error => retry::may_pass(error, 0),
    }
}

/// Whether a registry said that it takes no chunks (or not of this size): it takes the blob in one piece, or by
/// another way.
pub(super) fn refuses_chunks(error: &RegistryError) -> bool {
    let is_refusal = |status: u16| matches!(status, 400 | 404 | 405 | 411 | 415 | 501);
    match error {
        RegistryError::Refused { reply, .. } => is_refusal(reply.status),
        RegistryError::NotFound { reply, .. } => !reply.has_code("BLOB_UPLOAD_UNKNOWN"),
        _ => false,
    }
}

fn chunk_min(headers: &HeaderMap) -> u64 {
    headers.get(CHUNK_MIN_LENGTH).and_then(|value| value.to_str().ok()?.trim().parse().ok()).unwrap_or(0)
}

/// The number of bytes in `0-n`. `0-0` is ambiguous (one byte or none) and counts as none.
fn received(range: &str) -> Option<u64> {
    let last: u64 = range.trim().trim_start_matches("bytes=").strip_prefix("0-")?.parse().ok()?;
    if last == 0 { Some(0) } else { last.checked_add(1) }
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
