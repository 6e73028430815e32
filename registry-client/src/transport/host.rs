//! What is known about one host, and finding out whether it speaks TLS.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use rbuild_oci::Digest;
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode, Url};
use tokio::sync::{OnceCell, Semaphore};

use super::Transport;
use super::address::AddressClass;
use super::exchange::{self, Exchange};
use super::retry::{self, Patience};
use crate::auth::{Authorization, HostAuth, lock};
use crate::endpoint::{Api, Endpoint, Security, api_host, split_port};
use crate::error::{Reason, RegistryError, Target, Violation, escape};

/// The shared state of one host.
pub(crate) struct Host {
    name: String,
    security: Security,
    api: Api,
    base: OnceCell<Url>,
    class: Mutex<AddressClass>,
    pub(crate) auth: HostAuth,
    /// Bounds parallel downloads. Apart from uploads: a stream that feeds an upload to the same host must not wait
    /// for the permit its consumer waits to release.
    pub(crate) pulls: Arc<Semaphore>,
    /// Bounds parallel uploads.
    pub(crate) pushes: Arc<Semaphore>,
    /// What is known of blobs in repositories, so that nothing is asked twice.
    blobs: Mutex<HashMap<(String, Digest), Presence>>,
    places: Mutex<HashMap<Digest, Place>>,
    /// It refused a blob that was still being made.
    pub(crate) wants_whole: AtomicBool,
    quota: Mutex<Option<Quota>>,
}

/// A repository here that has a blob; locked while one is being made to.
pub(crate) type Place = Arc<tokio::sync::Mutex<Option<String>>>;

/// Whether a repository has a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    There,
    Absent,
}

/// What a registry lets an account pull, by its own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Pulls per window.
    pub limit: u64,
    /// Pulls left in it.
    pub remaining: u64,
    /// Length of the window in seconds.
    pub window: u64,
}

impl Quota {
    /// True when a handful of builds would use it up: a tenth is left, or less.
    pub fn is_low(&self) -> bool {
        self.remaining.saturating_mul(10) <= self.limit
    }

    /// From `ratelimit-limit: 100;w=21600` and `ratelimit-remaining: 76;w=21600`.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let header = |name: &str| headers.get(name)?.to_str().ok();
        let number = |text: &str| text.split(';').next()?.trim().parse().ok();
        let (limit, remaining) = (header("ratelimit-limit")?, header("ratelimit-remaining")?);
        let window = limit.split(';').find_map(|part| part.trim().strip_prefix("w=")?.parse().ok());
        Some(Self { limit: number(limit)?, remaining: number(remaining)?, window: window.unwrap_or(0) })
    }
}

impl Host {
    pub(super) fn new(endpoint: &Endpoint, transfers: usize) -> Self {
        let literal = AddressClass::of_literal(split_port(&endpoint.host).0);
        Self {
            name: endpoint.host.clone(),
            security: endpoint.security,
            api: endpoint.api.clone(),
            base: OnceCell::new(),
            class: Mutex::new(literal.unwrap_or(AddressClass::Public)),
            auth: HostAuth::default(),
            pulls: Arc::new(Semaphore::new(transfers)),
            pushes: Arc::new(Semaphore::new(transfers)),
            blobs: Mutex::default(),
            places: Mutex::default(),
            wants_whole: AtomicBool::new(false),
            quota: Mutex::default(),
        }
    }

    /// What is known of a blob in a repository.
    pub(crate) fn presence(&self, repository: &str, digest: Digest) -> Option<Presence> {
        lock(&self.blobs).get(&(repository.to_owned(), digest)).copied()
    }

    pub(crate) fn note(&self, repository: &str, digest: Digest, presence: Presence) {
        lock(&self.blobs).insert((repository.to_owned(), digest), presence);
    }

    /// Where at this host a blob that we pushed is.
    pub(crate) fn place_of(&self, digest: Digest) -> Place {
        lock(&self.places).entry(digest).or_default().clone()
    }

    /// The last quota the host told.
    pub(crate) fn quota(&self) -> Option<Quota> {
        *lock(&self.quota)
    }

    pub(crate) fn told(&self, headers: &HeaderMap) {
        if let Some(quota) = Quota::of(headers) {
            *lock(&self.quota) = Some(quota);
        }
    }

    /// The host as named in references.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn api(&self) -> &Api {
        &self.api
    }

    pub(super) fn security(&self) -> Security {
        self.security
    }

    /// The network the host was found in; public until proven otherwise.
    pub(super) fn class(&self) -> AddressClass {
        *lock(&self.class)
    }

    pub(super) fn found_at(&self, class: AddressClass) {
        *lock(&self.class) = class;
    }
}

impl Transport {
    /// The address requests to `host` start with. Hosts that may speak either scheme are asked once; everything
    /// else is `https` without asking.
    pub(crate) async fn base(
        &self,
        host: &Host,
        target: &Target,
        patience: &Patience,
    ) -> Result<Url, RegistryError> {
        let find = || async {
            let [http, https] = ["http", "https"].map(|scheme| base_url(scheme, host.name(), target));
            match host.security() {
                Security::Verified | Security::Unverified => https,
                Security::Plain => http,
                // Loopback registries speak plain http nearly always: that order costs them no failed handshake.
                Security::Loopback => self.choose(host, http?, https?, target, *patience).await,
                Security::Insecure => self.choose(host, https?, http?, target, *patience).await,
            }
        };
        host.base.get_or_try_init(find).await.cloned()
    }

    /// The first scheme that works, asking `/v2/` without credentials.
    async fn choose(
        &self,
        host: &Host,
        first: Url,
        second: Url,
        target: &Target,
        patience: Patience,
    ) -> Result<Url, RegistryError> {
        let mut waits = retry::Waits::new(patience, self.deadlines().backoff, self.deadlines().retry_budget);
        loop {
            let error = match self.probe(host, &first, target).await {
                Ok(true) => return Ok(first),
                Ok(false) => None,
                Err(error) => Some(error),
            };
            // With a port given, a refused connection is refused for both schemes.
            let refused = matches!(&error, Some(RegistryError::Unreachable { reason: Reason::Connect, .. }));
            let same_port = first.port_or_known_default() == second.port_or_known_default();
            if !(refused && same_port) && self.probe(host, &second, target).await.is_ok_and(|speaks| speaks) {
                return Ok(second);
            }
            match error {
                // On this machine «refused» means that nothing runs there; waiting does not start it.
                Some(error) if refused && host.security() == Security::Loopback => return Err(error),
                // It answered, if strangely, and the other scheme does not work: let real requests tell.
                None => return Ok(first),
                Some(error) if !retry::may_pass(&error, waits.count()) => return Err(error),
                Some(error) => {
                    if !waits.wait(None).await {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Whether the scheme of `base` is spoken there. A challenge in the answer is remembered.
    async fn probe(&self, host: &Host, base: &Url, target: &Target) -> Result<bool, RegistryError> {
        let url = exchange::join(base, &host.api.path("/v2/"), target)?;
        let exchange =
            Exchange { method: Method::GET, url, headers: HeaderMap::new(), body: None, authorization: None };
        let answer = self.hop(host, &exchange, base, target).await?;
        // TLS servers answer clear text with 400; registries never answer `/v2/` so.
        if answer.status() == StatusCode::BAD_REQUEST {
            return Ok(false);
        }
        if answer.status() == StatusCode::UNAUTHORIZED {
            host.auth.challenged(answer.headers(), &Authorization::default());
        }
        Ok(true)
    }
}

fn base_url(scheme: &str, host: &str, target: &Target) -> Result<Url, RegistryError> {
    Url::parse(&format!("{scheme}://{}/", api_host(host))).map_err(|_| RegistryError::Protocol {
        target: Box::new(target.clone()),
        violation: Violation::Address(escape(host)),
    })
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn quotas_are_read_from_docker_hub_s_headers() {
        let quota = |limit: &'static str, remaining: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("ratelimit-limit", HeaderValue::from_static(limit));
            headers.insert("ratelimit-remaining", HeaderValue::from_static(remaining));
            Quota::of(&headers)
        };
        let found = quota("100;w=21600", "7;w=21600").unwrap();
        assert_eq!(found, Quota { limit: 100, remaining: 7, window: 21600 });
        assert!(found.is_low());
        assert!(!quota("100;w=21600", "76;w=21600").unwrap().is_low());
        assert_eq!(quota("100", "x"), None);
        assert_eq!(Quota::of(&HeaderMap::new()), None);
    }
}
