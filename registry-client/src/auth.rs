//! Who we are to a registry: challenges answered with credentials or tokens.
//!
//! The first request to a host goes out bare. Its `401` is remembered per host, so later requests carry their
//! authorization at once. Credentials are looked up at that moment and no earlier.

pub(crate) mod aws;
pub(crate) mod challenge;
mod helper;
pub(crate) mod keychain;
mod scoped;
pub(crate) mod server;
mod store;
pub(crate) mod token;

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};

pub use aws::AwsEnv;
use challenge::Challenge;
use keychain::Credentials;
pub use keychain::KeychainError;
pub use server::{Server, ServerError};
pub use store::{Kept, erase_credentials, store_credentials};
use token::Token;

use crate::error::{RegistryError, Target, Violation, escape};
use crate::transport::{Host, Transport};

/// Access to one repository, as token servers name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Scope {
    repository: String,
    actions: &'static str,
}

impl Scope {
    pub(crate) fn pull(repository: &str) -> Self {
        Self { repository: repository.to_owned(), actions: "pull" }
    }

    pub(crate) fn delete(repository: &str) -> Self {
        Self { repository: repository.to_owned(), actions: "pull,push,delete" }
    }

    pub(crate) fn push(repository: &str) -> Self {
        Self { repository: repository.to_owned(), actions: "pull,push" }
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "repository:{}:{}", self.repository, self.actions)
    }
}

/// What is known about authentication at one host.
#[derive(Default)]
pub(crate) struct HostAuth {
    challenge: Mutex<Option<Challenge>>,
    tokens: Mutex<HashMap<token::Key, Token>>,
    /// Names and passwords that were refused: where a cloud's own way exists, that is taken.
    refused: Mutex<Vec<HeaderValue>>,
    /// What the cloud gave.
    cloud: tokio::sync::Mutex<Option<Credentials>>,
    /// Held while a token is fetched: parallel requests wait for one token instead of asking for many.
    fetching: tokio::sync::Mutex<()>,
}

/// A ready header and the texts in it that must not be printed.
#[derive(Clone, Default)]
pub(crate) struct Authorization {
    /// The `Authorization` value; marked sensitive.
    pub(crate) header: Option<HeaderValue>,
    /// Secrets a registry might reflect in an error.
    pub(crate) secrets: Vec<String>,
    /// Whether the user has credentials for this host.
    pub(crate) has_credentials: bool,
    /// The cached token in use, to be dropped when it is refused.
    token: Option<token::Key>,
}

impl HostAuth {
    /// Remembers the challenge of a `401` from the registry's own origin.
    ///
    /// Drops the token that was refused. False when the challenge is one we cannot answer.
    pub(crate) fn challenged(&self, headers: &HeaderMap, used: &Authorization) -> bool {
        let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        match &used.token {
            Some(key) => {
                // Another request may have got a new one meanwhile.
                let mut tokens = lock(&self.tokens);
                if tokens.get(key).is_some_and(|token| bearer(&token.value) == used.header) {
                    tokens.remove(key);
                }
            }
            None => lock(&self.refused).extend(used.header.clone()),
        }
        match challenge::choose(values) {
            Some(found) => {
                *lock(&self.challenge) = Some(found);
                true
            }
            None => false,
        }
    }

    /// The challenge's own words about the scope, when it concerns a repository we asked for anyway.
    fn suggested_scope(challenge: &Challenge, scopes: &[Scope]) -> Option<String> {
        let Challenge::Bearer { scope: Some(scope), .. } = challenge else { return None };
        let ours = |part: &str| {
            scopes.iter().any(|scope| {
                part.strip_prefix("repository:")
                    .and_then(|rest| rest.strip_prefix(scope.repository.as_str()))
                    .is_some_and(|rest| rest.starts_with(':'))
            })
        };
        scope.split(' ').all(ours).then(|| scope.clone())
    }

    fn was_refused(&self, credentials: &Credentials) -> bool {
        let Credentials::Basic { user, password } = credentials else { return false };
        basic(user, password).is_some_and(|header| lock(&self.refused).contains(&header))
    }

    fn cached(&self, key: &token::Key) -> Option<String> {
        lock(&self.tokens).get(key).filter(|token| token.expires > Instant::now()).map(|t| t.value.clone())
    }
}

impl Transport {
    /// The authorization a request to `host` needs, as far as its challenge is known. `insist` asks for the scope the
    /// registry suggested after ours was not enough.
    pub(crate) async fn authorize(
        &self,
        host: &Host,
        scopes: &[Scope],
        target: &Target,
        insist: bool,
    ) -> Result<Authorization, RegistryError> {
        let Some(challenge) = lock(&host.auth.challenge).clone() else { return Ok(Authorization::default()) };
        let credentials = self.credentials(host, scopes).await;
        let credentials = credentials
            .map_err(|source| RegistryError::Credentials { target: Box::new(target.clone()), source })?;
        let has_credentials = credentials.is_some();
        // A registry may reflect what was sent as it was sent.
        let secrets = credentials.as_ref().map(Credentials::printed_forms).unwrap_or_default();
        let mut authorization = Authorization { secrets, has_credentials, ..Authorization::default() };
        match (&challenge, credentials) {
            (Challenge::Basic, Some(Credentials::Basic { user, password })) => {
                authorization.header = basic(&user, &password);
            }
            (_, Some(Credentials::RegistryToken(token))) => authorization.header = bearer(&token),
            // A refresh token means nothing to a registry that wants a password.
            (Challenge::Basic, _) => {}
            (Challenge::Bearer { realm, service, .. }, credentials) => {
                let suggested = insist.then(|| HostAuth::suggested_scope(&challenge, scopes)).flatten();
                let scopes = suggested
                    .map(|scope| scope.split(' ').map(str::to_owned).collect())
                    .unwrap_or_else(|| scopes.iter().map(ToString::to_string).collect());
                let key = token::Key { realm: realm.clone(), service: service.clone(), scopes };
                let _one_at_a_time = host.auth.fetching.lock().await;
                let value = match host.auth.cached(&key) {
                    Some(value) => value,
                    None => {
                        let token = self.fetch_token(host, &key, credentials.as_ref(), target).await?;
                        let value = token.value.clone();
                        lock(&host.auth.tokens).insert(key.clone(), token);
                        value
                    }
                };
                authorization.header = bearer(&value);
                authorization.token = Some(key);
                authorization.secrets.push(value);
            }
        }
        Ok(authorization)
    }

    /// What the user has for a host: in files and helpers, else what its cloud gives.
    async fn credentials(&self, host: &Host, scopes: &[Scope]) -> Result<Option<Credentials>, KeychainError> {
        let scope = scopes.first();
        let repository = scope.map_or("", |scope| scope.repository.as_str());
        let actions = scope.map_or("", |scope| scope.actions);
        let Some(ecr) = aws::Registry::of(host.name()) else {
            return self.keychain().find(self.settings(), host.name(), repository, actions).await;
        };
        let found = self.keychain().find(self.settings(), host.name(), repository, actions).await?;
        if let Some(found) = found.filter(|found| !host.auth.was_refused(found)) {
            return Ok(Some(found));
        }
        let mut known = host.auth.cloud.lock().await;
        let renew = known.as_ref().is_some_and(|known| host.auth.was_refused(known));
        if known.is_none() || renew {
            *known = self.ecr_credentials(&ecr, renew).await?;
            // A token kept from an earlier run.
            if !renew && known.as_ref().is_some_and(|known| host.auth.was_refused(known)) {
                *known = self.ecr_credentials(&ecr, true).await?;
            }
        }
        Ok(known.clone())
    }
}

/// The error for a `401` that offers nothing we can answer.
pub(crate) fn unsupported(headers: &HeaderMap, target: &Target) -> Option<RegistryError> {
    let value = headers.get(WWW_AUTHENTICATE)?;
    let words = escape(&String::from_utf8_lossy(value.as_bytes()).chars().take(200).collect::<String>());
    Some(RegistryError::Protocol { target: Box::new(target.clone()), violation: Violation::Challenge(words) })
}

/// True for the hosts of Amazon's registries.
pub(crate) fn is_ecr(host: &str) -> bool {
    aws::Registry::of(host).is_some()
}

pub(crate) fn basic(user: &str, password: &str) -> Option<HeaderValue> {
    sensitive(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
}

fn bearer(token: &str) -> Option<HeaderValue> {
    sensitive(&format!("Bearer {token}"))
}

/// `None` for bytes that no header may hold: then the request goes out bare and is refused by the registry.
fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Locks a mutex whose holders never panic midway: every critical section is a plain map or option access.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
