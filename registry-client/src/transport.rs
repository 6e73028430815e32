//! One request to one host: authorization, retries, redirects, limits.
//!
//! [`Transport::send`] answers challenges and waits out overload; [`exchange`] below it walks redirects and guards
//! addresses; [`clients`] below that owns connections. Statuses are the caller's business until it calls
//! [`Transport::expect`].

pub(crate) mod address;
mod clients;
pub(crate) mod exchange;
mod get;
pub(crate) mod host;
pub(crate) mod reach;
mod resolver;
pub(crate) mod retry;
mod trust;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::sync::OnceCell;

use crate::auth::keychain::Keychain;
use crate::auth::{Authorization, Scope, lock, unsupported};
use crate::config::{Config, ConfigError};
use crate::endpoint::{Api, Endpoint, Security};
use crate::error::{Reason, RegistryError, Reply, Target};
use crate::limits::{ERROR_BODY_BYTES_MAX, REAUTHENTICATIONS_MAX};
use crate::settings::{Deadlines, Settings};

use clients::Clients;
use exchange::Exchange;
pub(crate) use host::Host;
use retry::Patience;

/// Everything requests share.
pub(crate) struct Transport {
    settings: Settings,
    config: OnceCell<Config>,
    clients: OnceCell<Clients>,
    keychain: Keychain,
    hosts: Mutex<HashMap<(Security, String, Api), Arc<Host>>>,
}

/// A request that can be sent again.
pub(crate) struct Call {
    pub(crate) method: Method,
    /// Where: an absolute path at the host, or a full address it gave us.
    pub(crate) address: Address,
    pub(crate) scopes: Vec<Scope>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Option<Bytes>,
    pub(crate) target: Target,
    pub(crate) patience: Patience,
}

/// Where a call goes.
#[derive(Clone)]
pub(crate) enum Address {
    Path(String),
    Url(Url),
}

impl Transport {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            clients: OnceCell::new(),
            keychain: Keychain::new(&settings),
            settings,
            config: OnceCell::new(),
            hosts: Mutex::new(HashMap::new()),
        }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn deadlines(&self) -> &Deadlines {
        &self.settings.deadlines
    }

    pub(crate) fn keychain(&self) -> &Keychain {
        &self.keychain
    }

    /// The configuration files, read at the first use.
    pub(crate) async fn config(&self) -> Result<&Config, ConfigError> {
        self.config.get_or_try_init(|| async { Config::load(&self.settings) }).await
    }

    /// The connections, made ready at the first use.
    async fn clients(&self) -> Result<&Clients, ConfigError> {
        let make = || async { Ok(Clients::new(&self.settings, self.config().await?)) };
        self.clients.get_or_try_init(make).await
    }

    /// Headers that go to registries themselves, and to nobody they name.
    pub(crate) async fn own_headers(&self, host: &Host) -> Result<HeaderMap, ConfigError> {
        Ok(self.config().await?.headers_for(host.name()))
    }

    /// The shared state of an endpoint's host.
    pub(crate) fn host(&self, endpoint: &Endpoint) -> Arc<Host> {
        let key = (endpoint.security, endpoint.host.clone(), endpoint.api.clone());
        let transfers = self.settings.transfers_per_host.max(1);
        lock(&self.hosts).entry(key).or_insert_with(|| Arc::new(Host::new(endpoint, transfers))).clone()
    }

    /// What the hosts asked so far say of their quotas.
    pub(crate) fn quotas(&self) -> Vec<(String, host::Quota)> {
        let hosts = lock(&self.hosts);
        let mut found: Vec<_> =
            hosts.values().filter_map(|host| Some((host.name().to_owned(), host.quota()?))).collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    }

    /// Sends a request, answering challenges and retrying what may succeed later. Any other status is returned.
    pub(crate) async fn send(
        &self,
        host: &Host,
        call: &Call,
    ) -> Result<(Response, Authorization), RegistryError> {
        let base = self.base(host, &call.target, &call.patience).await?;
        let url = match &call.address {
            Address::Url(url) => url.clone(),
            Address::Path(path) => exchange::join(&base, &host.api().path(path), &call.target)?,
        };
        let home = exchange::origin(&base);
        let (mut reauthentications, mut waits) = (0, self.waits(call.patience));
        loop {
            let authorization =
                self.authorize(host, &call.scopes, &call.target, reauthentications > 1).await?;
            let exchange = Exchange {
                method: call.method.clone(),
                url: url.clone(),
                headers: call.headers.clone(),
                body: call.body.clone(),
                // Credentials are the host's own: an address elsewhere goes without.
                authorization: authorization.header.clone().filter(|_| exchange::origin(&url) == home),
            };
            match self.exchange(host, exchange, &call.target).await {
                Ok(answer) if answer.status() == StatusCode::UNAUTHORIZED => {
                    let from_home = exchange::origin(answer.url()) == home;
                    if !from_home || reauthentications == REAUTHENTICATIONS_MAX {
                        return Ok((answer, authorization));
                    }
                    reauthentications += 1;
                    let answerable = host.auth.challenged(answer.headers(), &authorization);
                    if !answerable {
                        return match unsupported(answer.headers(), &call.target) {
                            Some(error) => Err(error),
                            None => Ok((answer, authorization)),
                        };
                    }
                    // Basic credentials that were just refused will not be right the second time.
                    let again =
                        self.authorize(host, &call.scopes, &call.target, reauthentications > 1).await?;
                    if again.header.is_none() || again.header == authorization.header {
                        return Ok((answer, again));
                    }
                }
                Ok(answer) if retry::means_later(&answer) => {
                    let asked = answer
                        .headers()
                        .get(RETRY_AFTER)
                        .and_then(|value| retry::after(value.to_str().ok()?));
                    if !waits.wait(asked).await {
                        return Ok((answer, authorization));
                    }
                }
                Ok(answer) => return Ok((answer, authorization)),
                Err(error) => {
                    if !retry::may_pass(&error, waits.count()) || !waits.wait(None).await {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn waits(&self, patience: Patience) -> retry::Waits {
        retry::Waits::new(patience, self.deadlines().backoff, self.deadlines().retry_budget)
    }

    /// [`Self::exchange`] with the retries of [`Self::send`], for token servers.
    pub(crate) async fn exchange_with_retries(
        &self,
        host: &Host,
        exchange: Exchange,
        target: &Target,
    ) -> Result<Response, RegistryError> {
        let mut waits = self.waits(Patience::Full);
        loop {
            match self.exchange(host, exchange.clone(), target).await {
                Ok(answer) if retry::means_later(&answer) => {
                    let asked = answer
                        .headers()
                        .get(RETRY_AFTER)
                        .and_then(|value| retry::after(value.to_str().ok()?));
                    if !waits.wait(asked).await {
                        return Ok(answer);
                    }
                }
                Err(error) if retry::may_pass(&error, waits.count()) => {
                    if !waits.wait(None).await {
                        return Err(error);
                    }
                }
                done => return done,
            }
        }
    }

    /// Turns every status but the expected ones into an error with the registry's words.
    pub(crate) async fn expect(
        &self,
        answer: Response,
        expected: &[StatusCode],
        target: &Target,
        authorization: &Authorization,
    ) -> Result<Response, RegistryError> {
        let status = answer.status();
        if expected.contains(&status) {
            return Ok(answer);
        }
        let retry_after =
            answer.headers().get(RETRY_AFTER).and_then(|value| retry::after(value.to_str().ok()?));
        let body = self.beginning(answer, ERROR_BODY_BYTES_MAX).await;
        let secrets: Vec<&str> = authorization.secrets.iter().map(String::as_str).collect();
        let reply = Box::new(Reply::parse(status.as_u16(), &body, &secrets));
        let target = Box::new(target.clone());
        Err(match status {
            StatusCode::NOT_FOUND => RegistryError::NotFound { target, existing: Vec::new(), reply },
            StatusCode::UNAUTHORIZED => {
                RegistryError::Unauthorized { target, had_credentials: authorization.has_credentials, reply }
            }
            // Who says when to come again has not refused for good (GitHub's secondary limits).
            StatusCode::FORBIDDEN if retry_after.is_some() => {
                RegistryError::RateLimited { target, retry_after, reply }
            }
            StatusCode::FORBIDDEN => RegistryError::Denied { target, reply },
            StatusCode::TOO_MANY_REQUESTS => RegistryError::RateLimited { target, retry_after, reply },
            _ => RegistryError::Refused { target, reply },
        })
    }

    /// A whole body of at most `limit` bytes.
    pub(crate) async fn body(
        &self,
        mut answer: Response,
        limit: u64,
        target: &Target,
    ) -> Result<Vec<u8>, RegistryError> {
        let too_large = || RegistryError::TooLarge { target: Box::new(target.clone()), limit };
        if answer.content_length().is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk(&mut answer, target).await? {
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// The next piece of a body, under the idle deadline.
    pub(crate) async fn chunk(
        &self,
        answer: &mut Response,
        target: &Target,
    ) -> Result<Option<Bytes>, RegistryError> {
        match tokio::time::timeout(self.deadlines().idle, answer.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(source)) => Err(exchange::unreachable(target, source)),
            Err(_) => Err(RegistryError::Unreachable {
                target: Box::new(target.clone()),
                reason: Reason::Timeout,
                proxy: None,
                source: None,
            }),
        }
    }

    /// As much of an error body as comes quickly: it only decorates a message.
    async fn beginning(&self, mut answer: Response, limit: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let patience = self.deadlines().idle.min(Duration::from_secs(5));
        let started = Instant::now();
        while bytes.len() < limit && started.elapsed() < patience {
            match tokio::time::timeout(patience, answer.chunk()).await {
                Ok(Ok(Some(chunk))) => {
                    bytes.extend_from_slice(&chunk[..chunk.len().min(limit - bytes.len())])
                }
                _ => break,
            }
        }
        bytes
    }
}
