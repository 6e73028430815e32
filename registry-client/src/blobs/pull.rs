//! Downloads: hashed while they pass, picked up where they broke.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::Stream;
use rbuild_oci::{Digest, Sha256};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode};
use tokio::sync::OwnedSemaphorePermit;

use crate::auth::Scope;
use crate::endpoint::Endpoint;
use crate::error::{Reason, RegistryError, Target, Violation, escape};
use crate::limits::{RATE_BYTES_PER_SECOND_MIN, RESUMES_MAX, RESUMES_WITHOUT_PROGRESS_MAX};
use crate::transport::retry::{Patience, Waits};
use crate::transport::{Address, Call, Transport};

use super::push::Progress;

/// A blob on its way.
///
/// The end of the stream is reported only after digest and size were found right; an error before that means the
/// bytes so far must be thrown away. Connections that break are picked up with a range request behind the scenes.
/// Dropping the stream closes the connection.
pub struct BlobStream {
    transport: Arc<Transport>,
    endpoint: Endpoint,
    digest: Digest,
    size: u64,
    target: Target,
    progress: Progress,
    /// Gone once the stream ended, well or not.
    hash: Option<Sha256>,
    verified: bool,
    received: u64,
    answer: Option<Response>,
    /// Bytes of the current answer that were delivered before: the server ignored our range.
    skip: u64,
    rate: Rate,
    resumes: usize,
    resumes_without_progress: usize,
    _permit: OwnedSemaphorePermit,
}

/// Watches that a transfer does not trickle. Only time spent waiting for the network counts.
#[derive(Default)]
pub(crate) struct Rate {
    waited: Duration,
    bytes: u64,
}

impl Rate {
    /// False when a whole window passed with too few bytes.
    pub(crate) fn add(&mut self, waited: Duration, bytes: u64, window: Duration) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        if self.waited < window {
            return true;
        }
        let enough = self.bytes >= RATE_BYTES_PER_SECOND_MIN * window.as_secs();
        *self = Self::default();
        enough
    }
}

impl std::fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobStream").field("digest", &self.digest).field("received", &self.received).finish()
    }
}

/// Opens a blob at one endpoint. Waits for a permit when the host is busy with other downloads.
pub(crate) async fn open(
    transport: &Arc<Transport>,
    endpoint: &Endpoint,
    digest: Digest,
    size: u64,
    progress: Progress,
    patience: Patience,
) -> Result<BlobStream, RegistryError> {
    let target = super::target(endpoint, "pull", digest);
    let permits = transport.host(endpoint).pulls.clone();
    let permit = permits.acquire_owned().await.expect("the semaphore is never closed");
    let answer = request(transport, endpoint, digest, 0, &target, patience).await?;
    Ok(BlobStream {
        transport: transport.clone(),
        endpoint: endpoint.clone(),
        digest,
        size,
        target,
        progress,
        hash: Some(Sha256::new()),
        verified: false,
        received: 0,
        answer: Some(answer.0),
        skip: 0,
        rate: Rate::default(),
        resumes: 0,
        resumes_without_progress: 0,
        _permit: permit,
    })
}

/// A small blob in memory, verified: configs. Takes no permit, so it never waits behind layers.
pub(crate) async fn whole(
    transport: &Transport,
    endpoint: &Endpoint,
    digest: Digest,
    size: u64,
    patience: Patience,
) -> Result<Vec<u8>, RegistryError> {
    let target = super::target(endpoint, "pull", digest);
    let mut waits = Waits::new(patience, transport.deadlines().backoff, transport.deadlines().retry_budget);
    loop {
        let (answer, _) = request(transport, endpoint, digest, 0, &target, patience).await?;
        let attempt = transport.body(answer, size, &target).await;
        let error = match attempt {
            Ok(bytes) if bytes.len() as u64 == size => {
                let actual = Digest::of(&bytes);
                return if actual == digest {
                    Ok(bytes)
                } else {
                    Err(RegistryError::DigestMismatch { target: Box::new(target), expected: digest, actual })
                };
            }
            Ok(bytes) => RegistryError::SizeMismatch {
                target: Box::new(target.clone()),
                expected: size,
                actual: bytes.len() as u64,
            },
            // More than the descriptor promised, not more than we could take.
            Err(RegistryError::TooLarge { target, .. }) => {
                return Err(RegistryError::SizeMismatch { target, expected: size, actual: size + 1 });
            }
            Err(error) => error,
        };
        if !waits.wait(None).await {
            return Err(error);
        }
    }
}

/// Asks for the blob from `offset` on. Returns the answer and the offset its body starts at.
async fn request(
    transport: &Transport,
    endpoint: &Endpoint,
    digest: Digest,
    offset: u64,
    target: &Target,
    patience: Patience,
) -> Result<(Response, u64), RegistryError> {
    let mut headers = HeaderMap::new();
    // The digest is of the bytes as stored: nothing in between may encode them.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if offset > 0 {
        let range = HeaderValue::from_str(&format!("bytes={offset}-")).expect("digits make a header value");
        headers.insert(RANGE, range);
    }
    let call = Call {
        method: Method::GET,
        address: Address::Path(super::path(endpoint, digest)),
        scopes: vec![Scope::pull(&endpoint.repository)],
        headers,
        body: None,
        target: target.clone(),
        patience,
    };
    let (answer, authorization) = transport.send(&transport.host(endpoint), &call).await?;
    let expected: &[StatusCode] =
        if offset > 0 { &[StatusCode::OK, StatusCode::PARTIAL_CONTENT] } else { &[StatusCode::OK] };
    let answer = transport.expect(answer, expected, target, &authorization).await?;
    if answer.status() == StatusCode::OK {
        return Ok((answer, 0));
    }
    let range = answer.headers().get(CONTENT_RANGE).map(|value| String::from_utf8_lossy(value.as_bytes()));
    match range.as_deref().and_then(range_start) {
        Some(start) if start <= offset => Ok((answer, start)),
        _ => Err(RegistryError::Protocol {
            target: Box::new(target.clone()),
            violation: Violation::Range(escape(range.as_deref().unwrap_or("none"))),
        }),
    }
}

/// The first byte position of `bytes 5-9/10`.
pub(crate) fn range_start(text: &str) -> Option<u64> {
    text.trim().strip_prefix("bytes")?.trim_start().split('-').next()?.parse().ok()
}

impl BlobStream {
    /// The next piece; `None` once everything came and was verified. After an error there are only errors.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        if self.verified {
            return Ok(None);
        }
        if self.hash.is_none() {
            let target = Box::new(self.target.clone());
            return Err(RegistryError::Unreachable {
                target,
                reason: Reason::Broken,
                proxy: None,
                source: None,
            });
        }
        let next = self.next().await;
        if next.is_err() {
            self.hash = None;
            self.answer = None;
        }
        next
    }

    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            match self.step().await {
                Ok(Some(bytes)) if bytes.is_empty() => {}
                Ok(Some(bytes)) => return Ok(Some(bytes)),
                Ok(None) if self.received == self.size => return self.verify().map(|()| None),
                Ok(None) => {
                    let (expected, actual) = (self.size, self.received);
                    let target = Box::new(self.target.clone());
                    self.resume(RegistryError::SizeMismatch { target, expected, actual }).await?;
                }
                // All bytes are here; how the connection ended does not matter to them.
                Err(RegistryError::Unreachable { .. }) if self.received == self.size => {
                    return self.verify().map(|()| None);
                }
                Err(error) if matches!(error, RegistryError::Unreachable { .. }) => {
                    self.resume(error).await?
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The same as a [`Stream`].
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, RegistryError>> + Send {
        futures_util::stream::unfold(Some(self), |state| async {
            let mut stream = state?;
            match stream.chunk().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(stream))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// Host the bytes come from.
    pub fn served_by(&self) -> &str {
        &self.endpoint.host
    }

    /// One piece of the current answer. Empty when all of it was delivered before.
    async fn step(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let Some(answer) = &mut self.answer else { return Ok(None) };
        let started = Instant::now();
        let Some(mut bytes) = self.transport.chunk(answer, &self.target).await? else { return Ok(None) };
        let window = self.transport.deadlines().rate_window;
        if !self.rate.add(started.elapsed(), bytes.len() as u64, window) {
            let target = Box::new(self.target.clone());
            return Err(RegistryError::Unreachable {
                target,
                reason: Reason::TooSlow,
                proxy: None,
                source: None,
            });
        }
        let again = self.skip.min(bytes.len() as u64);
        self.skip -= again;
        let fresh = bytes.split_off(again as usize);
        let total = self.received + fresh.len() as u64;
        if total > self.size {
            let target = Box::new(self.target.clone());
            return Err(RegistryError::SizeMismatch { target, expected: self.size, actual: self.size + 1 });
        }
        if let Some(hash) = &mut self.hash {
            hash.update(&fresh);
        }
        self.received = total;
        if !fresh.is_empty() {
            self.resumes_without_progress = 0;
            (self.progress)(self.received);
        }
        Ok(Some(fresh))
    }

    fn verify(&mut self) -> Result<(), RegistryError> {
        let actual = self.hash.take().map(Sha256::finish);
        self.answer = None;
        match actual {
            Some(actual) if actual != self.digest => {
                let target = Box::new(self.target.clone());
                Err(RegistryError::DigestMismatch { target, expected: self.digest, actual })
            }
            _ => {
                self.verified = true;
                Ok(())
            }
        }
    }

    /// Connects again behind the last byte received, or gives up with `error`.
    async fn resume(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.answer = None;
        self.resumes += 1;
        self.resumes_without_progress += 1;
        if self.resumes > RESUMES_MAX || self.resumes_without_progress > RESUMES_WITHOUT_PROGRESS_MAX {
            return Err(error);
        }
        let backoff = self.transport.deadlines().backoff * (self.resumes_without_progress as u32);
        Waits::new(Patience::Full, backoff, self.transport.deadlines().retry_budget).wait(None).await;
        let (answer, start) = request(
            &self.transport,
            &self.endpoint,
            self.digest,
            self.received,
            &self.target,
            Patience::Full,
        )
        .await
        // A range refused outright: what was wrong in the first place says more.
        .map_err(|next| if next.status() == Some(416) { error } else { next })?;
        self.skip = self.received - start;
        self.answer = Some(answer);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_give_their_start() {
        assert_eq!(range_start("bytes 5-9/10"), Some(5));
        assert_eq!(range_start("bytes 0-"), Some(0));
        for bad in ["", "bytes */10", "items 1-2", "bytes -5", "bytes x-1"] {
            assert_eq!(range_start(bad), None, "{bad}");
        }
    }

    /// R11: a trickle.
    #[test]
    fn a_trickle_is_noticed_after_a_window() {
        let (mut rate, window) = (Rate::default(), Duration::from_secs(60));
        assert!(rate.add(window - Duration::from_secs(1), 10, window));
        assert!(!rate.add(Duration::from_secs(2), 10, window));
        assert!(rate.add(window, 1 << 20, window));
    }
}
