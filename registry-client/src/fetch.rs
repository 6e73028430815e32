//! Files from the web, as ADD and build contexts name them.
//!
//! One GET with the trust, the proxies, the deadlines and the address guard that registries get, and none of their
//! protocol. What was fetched before is asked for again by its validators; a download that breaks is picked up where
//! it broke, if the server can promise that the file is still the same.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_RANGE, DATE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, RANGE, RETRY_AFTER,
};
use reqwest::{Response, StatusCode, Url};

use crate::blobs::pull::{Rate, range_start};
use crate::error::{Reason, RegistryError, Target, Violation, escape};
use crate::limits::{RESUMES_MAX, RESUMES_WITHOUT_PROGRESS_MAX};
use crate::transport::Transport;
use crate::transport::exchange::printable;
use crate::transport::retry::{self, Patience, Waits};

/// Longest validator kept.
const VALIDATOR_BYTES_MAX: usize = 4 << 10;

/// How long before the answer a file must have been changed for its `Last-Modified` to tell it from a later one: a second
/// has room for many changes (RFC 9110, section 8.8.2.2), and a server may have more than one clock. The figure is that of
/// RFC 7232, section 2.2.2.
const SETTLED: Duration = Duration::from_secs(60);

/// What to get.
#[derive(Clone, Default)]
pub struct FetchRequest {
    /// An `http` or `https` address.
    pub url: String,
    /// `ETag` of what is there already.
    pub etag: Option<String>,
    /// `Last-Modified` of what is there already.
    pub modified: Option<String>,
    /// An `Authorization` header, for the address's own server only.
    pub authorization: Option<String>,
}

/// Without the secret.
impl std::fmt::Debug for FetchRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FetchRequest").field("etag", &self.etag).field("modified", &self.modified).finish()
    }
}

/// The answer.
#[derive(Debug)]
pub enum Fetched {
    /// What is there already is what the server has.
    NotModified,
    /// The file.
    Body(Box<FetchStream>),
}

/// Why a file cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The server says no. The text is Docker's.
    #[error("invalid response status {status} from {url}")]
    Status {
        /// Address without what may be secret.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// Not an address of the web.
    #[error("`{0}` is not an http or https address")]
    Address(String),
    /// A header that cannot be sent.
    #[error("the credentials for {0} cannot be sent: they have a line break or another control character")]
    Credentials(String),
    /// A redirect to something other than a web address.
    #[error("refusing the redirect to `{0}`")]
    Redirect(String),
    /// From `https` to `http`.
    #[error("refusing the redirect from https to `{0}`")]
    Downgrade(String),
    /// From outside to an internal address, or to one that no server has.
    #[error("refusing to go to the internal address `{0}`")]
    InternalAddress(String),
    /// Too many hops.
    #[error("too many redirects from {0}")]
    Redirects(String),
    /// The file is another one than before the connection broke.
    #[error("{0} changed while it was being fetched")]
    Changed(String),
    /// No answer was got at all, or it broke off.
    #[error(transparent)]
    Transport(RegistryError),
}

impl From<RegistryError> for FetchError {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Protocol { violation: Violation::InternalAddress(address), .. } => {
                Self::InternalAddress(address)
            }
            other => Self::Transport(other),
        }
    }
}

impl FetchError {
    /// True when there is no way to the server at all, so that what was fetched earlier is the best there is.
    pub fn is_offline(&self) -> bool {
        let Self::Transport(RegistryError::Unreachable { reason, .. }) = self else { return false };
        matches!(reason, Reason::Name | Reason::Connect | Reason::Timeout | Reason::Tunnel)
    }

    /// The fix, when we know one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Status { status: 401 | 403, .. } => Some(
                "give credentials with --secret id=HTTP_AUTH_TOKEN_<host>,… (or HTTP_AUTH_HEADER_<host>)"
                    .to_owned(),
            ),
            Self::Status { status: 404, .. } => Some("check the address".to_owned()),
            Self::InternalAddress(_) => Some(
                "a server may only send rbuild to addresses of its own network: name the address itself"
                    .to_owned(),
            ),
            Self::Downgrade(_) => Some("if clear text is meant, name that address itself".to_owned()),
            Self::Transport(error) => error.hint(),
            _ => None,
        }
    }
}

/// A file on its way. Dropping it closes the connection.
pub struct FetchStream {
    transport: Arc<Transport>,
    url: Url,
    authorization: Option<HeaderValue>,
    target: Target,
    answer: Option<Response>,
    etag: Option<String>,
    modified: Option<String>,
    /// When the server sent its answer.
    answered: SystemTime,
    length: Option<u64>,
    received: u64,
    rate: Rate,
    resumes: usize,
    resumes_without_progress: usize,
}

impl std::fmt::Debug for FetchStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FetchStream").field("target", &self.target).field("received", &self.received).finish()
    }
}

/// Asks for a file. Temporary failures are tried again, other statuses than 200 and 304 are errors.
pub(crate) async fn fetch(transport: &Arc<Transport>, request: &FetchRequest) -> Result<Fetched, FetchError> {
    let url = Url::parse(&request.url).map_err(|_| FetchError::Address(escape(&request.url)))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(FetchError::Address(printable(&url)));
    }
    let mut authorization = None;
    if let Some(text) = &request.authorization {
        let value = HeaderValue::from_str(text);
        let mut value = value.map_err(|_| FetchError::Credentials(printable(&url)))?;
        value.set_sensitive(true);
        authorization = Some(value);
    }
    let mut headers = HeaderMap::new();
    // The bytes are to be those of the file: nothing in between may encode them.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let mut is_conditional = false;
    for (name, value) in [(IF_NONE_MATCH, &request.etag), (IF_MODIFIED_SINCE, &request.modified)] {
        if let Some(value) = value.as_deref().and_then(|value| HeaderValue::from_str(value).ok()) {
            headers.insert(name, value);
            is_conditional = true;
        }
    }
    let target = Target {
        host: url.host_str().unwrap_or_default().to_owned(),
        repository: String::new(),
        action: format!("fetch {}", printable(&url)),
    };
    let answer = send(transport, &url, &headers, authorization.as_ref(), &target).await?;
    match answer.status() {
        StatusCode::NOT_MODIFIED if is_conditional => return Ok(Fetched::NotModified),
        StatusCode::OK | StatusCode::NON_AUTHORITATIVE_INFORMATION => {}
        status => return Err(FetchError::Status { url: printable(&url), status: status.as_u16() }),
    }
    Ok(Fetched::Body(Box::new(FetchStream {
        transport: Arc::clone(transport),
        url,
        authorization,
        target,
        etag: text_of(&answer, &ETAG),
        modified: text_of(&answer, &LAST_MODIFIED),
        // To an answer without a date belongs the time at which it came (RFC 9110, section 6.6.1).
        answered: text_of(&answer, &DATE).and_then(|text| time(&text)).unwrap_or_else(SystemTime::now),
        length: answer.content_length(),
        answer: Some(answer),
        received: 0,
        rate: Rate::default(),
        resumes: 0,
        resumes_without_progress: 0,
    })))
}

async fn send(
    transport: &Transport,
    url: &Url,
    headers: &HeaderMap,
    authorization: Option<&HeaderValue>,
    target: &Target,
) -> Result<Response, FetchError> {
    let deadlines = transport.deadlines();
    let mut waits = Waits::new(Patience::Full, deadlines.backoff, deadlines.retry_budget);
    loop {
        match transport.get_file(url, headers, authorization, target).await {
            Ok(answer) if retry::is_temporary(answer.status()) => {
                let asked =
                    answer.headers().get(RETRY_AFTER).and_then(|value| retry::after(value.to_str().ok()?));
                if !waits.wait(asked).await {
                    return Ok(answer);
                }
            }
            Err(FetchError::Transport(error)) if retry::may_pass(&error, waits.count()) => {
                if !waits.wait(None).await {
                    return Err(error.into());
                }
            }
            done => return done,
        }
    }
}

fn text_of(answer: &Response, name: &HeaderName) -> Option<String> {
    let text = answer.headers().get(name)?.to_str().ok()?;
    (text.len() <= VALIDATOR_BYTES_MAX).then(|| text.to_owned())
}

fn time(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text).ok()
}

impl FetchStream {
    /// `ETag` of the file.
    pub fn etag(&self) -> Option<&str> {
        self.etag.as_deref()
    }

    /// `Last-Modified` of the file, as sent, if it tells this file from those to come: beside an `ETag`, which does so
    /// itself, or when the file had not been changed for a minute.
    pub fn modified(&self) -> Option<&str> {
        let text = self.modified.as_deref()?;
        let is_settled = || self.answered.duration_since(time(text)?).ok().filter(|age| *age >= SETTLED);
        (self.etag.is_some() || is_settled().is_some()).then_some(text)
    }

    /// `Last-Modified` of the file in seconds since the epoch.
    pub fn modified_unix(&self) -> Option<i64> {
        let since = time(self.modified.as_deref()?)?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        i64::try_from(since.as_secs()).ok()
    }

    /// Bytes promised, when the server says.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// The next piece; `None` at the end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        loop {
            match self.step().await {
                Ok(piece) => return Ok(piece),
                Err(error @ RegistryError::Unreachable { .. }) => self.resume(error).await?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn step(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let Some(answer) = &mut self.answer else { return Ok(None) };
        let started = Instant::now();
        let piece = self.transport.chunk(answer, &self.target).await?;
        let len = piece.as_ref().map_or(0, |bytes| bytes.len() as u64);
        let window = self.transport.deadlines().rate_window;
        if piece.is_some() && !self.rate.add(started.elapsed(), len, window) {
            let target = Box::new(self.target.clone());
            return Err(RegistryError::Unreachable {
                target,
                reason: Reason::TooSlow,
                proxy: None,
                source: None,
            });
        }
        self.received += len;
        if len > 0 {
            self.resumes_without_progress = 0;
        }
        Ok(piece)
    }

    /// Connects again behind the last byte, or gives up with `error`. Only a strong entity tag promises that what
    /// follows belongs to what came.
    async fn resume(&mut self, error: RegistryError) -> Result<(), FetchError> {
        self.answer = None;
        self.resumes += 1;
        self.resumes_without_progress += 1;
        let strong = self.etag.as_deref().filter(|etag| etag.starts_with('"'));
        let (Some(etag), true, true) = (
            strong.and_then(|etag| HeaderValue::from_str(etag).ok()),
            self.resumes <= RESUMES_MAX,
            self.resumes_without_progress <= RESUMES_WITHOUT_PROGRESS_MAX,
        ) else {
            return Err(error.into());
        };
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.insert(IF_RANGE, etag);
        let range = HeaderValue::from_str(&format!("bytes={}-", self.received));
        headers.insert(RANGE, range.expect("digits make a header value"));
        let deadlines = self.transport.deadlines();
        let backoff = deadlines.backoff * u32::try_from(self.resumes_without_progress).unwrap_or(1);
        Waits::new(Patience::Full, backoff, deadlines.retry_budget).wait(None).await;
        let answer =
            send(&self.transport, &self.url, &headers, self.authorization.as_ref(), &self.target).await?;
        let range = answer.headers().get(CONTENT_RANGE).and_then(|value| range_start(value.to_str().ok()?));
        let is_same = text_of(&answer, &ETAG).is_none_or(|etag| Some(etag) == self.etag);
        if answer.status() != StatusCode::PARTIAL_CONTENT || range != Some(self.received) || !is_same {
            return match answer.status().as_u16() {
                200 | 206 => Err(FetchError::Changed(printable(&self.url))),
                // What was wrong in the first place says more.
                _ => Err(error.into()),
            };
        }
        self.answer = Some(answer);
        Ok(())
    }
}
