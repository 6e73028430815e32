//! A request and the redirects behind it.
//!
//! An origin is scheme, host and port. Credentials go to the origin they were made for and are dropped for good at
//! the first hop elsewhere; `https` never becomes `http`; addresses more internal than the registry's own are
//! refused, by literal before connecting and by resolved address while connecting.

use std::error::Error as _;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Method, Response, Url};

use super::address::AddressClass;
use super::clients::{ClientError, Trust, Via};
use super::resolver::InternalName;
use super::{Host, Transport};
use crate::endpoint::Security;
use crate::error::{Reason, RegistryError, Target, Violation, escape};
use crate::limits::REDIRECTS_MAX;

/// A request as it goes out.
#[derive(Clone)]
pub(crate) struct Exchange {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Option<Bytes>,
    /// For the origin of `url` only.
    pub(crate) authorization: Option<HeaderValue>,
}

/// Scheme, host and port.
pub(crate) fn origin(url: &Url) -> (String, String, Option<u16>) {
    let host = url.host_str().unwrap_or_default().to_owned();
    (url.scheme().to_owned(), host, url.port_or_known_default())
}

/// An address without what may be secret in it (signed queries, user data), for messages.
pub(crate) fn printable(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Both fail only for addresses that cannot hold user data.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    escape(url.as_str())
}

/// Resolves `text` against `base`, as `Location` headers want it.
pub(crate) fn join(base: &Url, text: &str, target: &Target) -> Result<Url, RegistryError> {
    base.join(text).map_err(|_| RegistryError::Protocol {
        target: Box::new(target.clone()),
        violation: Violation::Address(escape(text)),
    })
}

impl Transport {
    /// Sends the request, following redirects of requests that can be repeated. The last answer is returned.
    pub(crate) async fn exchange(
        &self,
        host: &Host,
        mut exchange: Exchange,
        target: &Target,
    ) -> Result<Response, RegistryError> {
        let base = self.base(host, target, &super::Patience::None).await?;
        let home = origin(&exchange.url);
        for _ in 0..=REDIRECTS_MAX {
            let answer = self.hop(host, &exchange, &base, target).await?;
            let status = answer.status().as_u16();
            let repeatable = match exchange.method {
                Method::GET | Method::HEAD => matches!(status, 301 | 302 | 303 | 307 | 308),
                // A token request carries its secret in the body: it stays where it is.
                _ => matches!(status, 307 | 308) && exchange.body.is_none(),
            };
            let Some(location) = answer.headers().get(LOCATION).filter(|_| repeatable) else {
                return Ok(answer);
            };
            let next = join(&exchange.url, &String::from_utf8_lossy(location.as_bytes()), target)?;
            if exchange.url.scheme() == "https" && next.scheme() == "http" {
                return Err(violation(target, Violation::Downgrade(printable(&next))));
            }
            if origin(&next) != home {
                exchange.authorization = None;
            }
            exchange.url = next;
        }
        Err(violation(target, Violation::Redirects))
    }

    /// One request, no redirect.
    pub(super) async fn hop(
        &self,
        host: &Host,
        exchange: &Exchange,
        base: &Url,
        target: &Target,
    ) -> Result<Response, RegistryError> {
        let client = self.client_for(host, &exchange.url, base, target).await?;
        let mut request = client.request(exchange.method.clone(), exchange.url.clone());
        let own = origin(&exchange.url) == origin(base);
        if own {
            request = request.headers(self.own_headers(host).await?);
        }
        request = request.headers(exchange.headers.clone());
        if let Some(value) = &exchange.authorization {
            request = request.header(AUTHORIZATION, value.clone());
        }
        if let Some(body) = &exchange.body {
            request = request.body(body.clone());
        }
        let answer = tokio::time::timeout(self.deadlines().first_byte, request.send())
            .await
            .map_err(|_| timed_out(target))?;
        let answer = match answer {
            Ok(answer) => answer,
            Err(source) => return Err(self.failed(Some(host.name()), &exchange.url, target, source).await),
        };
        if own
            && self.clients().await?.via(Some(host.name()), &exchange.url) == Via::Direct
            && let Some(peer) = answer.remote_addr()
        {
            host.found_at(AddressClass::of(peer.ip()));
        }
        Ok(answer)
    }

    /// The client with the trust and the guard that `url` needs, seen from `host`.
    pub(crate) async fn client_for(
        &self,
        host: &Host,
        url: &Url,
        base: &Url,
        target: &Target,
    ) -> Result<reqwest::Client, RegistryError> {
        let own = origin(url) == origin(base);
        let security = if own { host.security() } else { self.check(host, url, base, target).await? };
        let clients = self.clients().await?;
        let trust = match (url.scheme(), security) {
            ("http", _) => Trust::None,
            (_, Security::Insecure | Security::Loopback | Security::Unverified) => Trust::Unverified,
            _ => clients
                .registry_trust(if own { host.name().to_owned() } else { authority(url) }, own)
                .map_err(|error| client_error(target, error))?,
        };
        let guard = (!own && !self.is_internal_host(url)).then(|| host.class());
        let route = clients.route(Some(host.name()), url, trust, guard);
        clients.get(&route).map_err(|error| client_error(target, error))
    }

    /// A client for an address that no registry named: services of the user's own cloud.
    pub(crate) async fn plain_client(&self, url: &Url) -> Result<reqwest::Client, RegistryError> {
        let clients = self.clients().await?;
        let is_link_local =
            AddressClass::of_literal(url.host_str().unwrap_or_default()) == Some(AddressClass::Never);
        // Metadata services are this machine's, whatever proxies stand around it.
        let target = Target { host: authority(url), repository: String::new(), action: "connect".to_owned() };
        let trust = match url.scheme() {
            "http" => Trust::None,
            _ => clients.trust_for(authority(url)).map_err(|error| client_error(&target, error))?,
        };
        let mut route = clients.route(None, url, trust, None);
        if is_link_local {
            route.via = Via::Direct;
        }
        clients.get(&route).map_err(|error| client_error(&target, error))
    }

    /// [`unreachable()`] for a request to `url`, seen from the registry `host`, when it may be a proxy that is to blame.
    pub(crate) async fn failed(
        &self,
        host: Option<&str>,
        url: &Url,
        target: &Target,
        source: reqwest::Error,
    ) -> RegistryError {
        let mut error = unreachable(target, source);
        if let RegistryError::Unreachable { reason, proxy, source: Some(source), .. } = &mut error
            && source.is_connect()
            && let Ok(clients) = self.clients().await
            && let Some(found) = clients.proxy(host, url)
        {
            // Through a tunnel that is open, it is the host itself whose TLS fails. The type is none of the crate's
            // public ones.
            let is_before_tunnel = || {
                causes(source)
                    .any(|error| error.to_string() == "tunnel error: failed to create underlying connection")
            };
            if *reason == Reason::Tls && url.scheme() == "https" && !is_before_tunnel() {
                return error;
            }
            if *reason == Reason::Connect && !causes(source).any(|error| error.is::<std::io::Error>()) {
                *reason = Reason::Tunnel;
            }
            *proxy = Some(Box::new(found));
        }
        error
    }

    /// Judges an address the registry named.
    async fn check(
        &self,
        host: &Host,
        url: &Url,
        base: &Url,
        target: &Target,
    ) -> Result<Security, RegistryError> {
        let name = url.host_str().unwrap_or_default();
        let usable =
            matches!(url.scheme(), "http" | "https") && !name.is_empty() && url.username().is_empty();
        if !usable || url.password().is_some() {
            return Err(violation(target, Violation::Address(printable(url))));
        }
        let security = self.config().await?.security_of(&authority(url));
        if base.scheme() == "https" && url.scheme() == "http" && security != Security::Insecure {
            return Err(violation(target, Violation::Downgrade(printable(url))));
        }
        let refused = AddressClass::of_literal(name).is_some_and(|class| !host.class().may_name(class));
        if refused && !self.is_internal_host(url) {
            return Err(violation(target, Violation::InternalAddress(printable(url))));
        }
        Ok(security)
    }

    fn is_internal_host(&self, url: &Url) -> bool {
        let (authority, name) = (authority(url), url.host_str().unwrap_or_default());
        self.settings.internal_hosts.iter().any(|host| *host == authority || host == name)
    }
}

pub(super) fn client_error(target: &Target, error: ClientError) -> RegistryError {
    match error {
        ClientError::Build(source) => RegistryError::Unreachable {
            target: Box::new(target.clone()),
            reason: Reason::TrustStore,
            proxy: None,
            source: Some(Box::new(source)),
        },
        ClientError::Trust => RegistryError::Unreachable {
            target: Box::new(target.clone()),
            reason: Reason::TrustStore,
            proxy: None,
            source: None,
        },
        ClientError::Config(error) => RegistryError::Settings(error),
    }
}

/// `host[:port]` of an address.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn violation(target: &Target, violation: Violation) -> RegistryError {
    RegistryError::Protocol { target: Box::new(target.clone()), violation }
}

/// A deadline passed.
pub(crate) fn timed_out(target: &Target) -> RegistryError {
    RegistryError::Unreachable {
        target: Box::new(target.clone()),
        reason: Reason::Timeout,
        proxy: None,
        source: None,
    }
}

/// Classifies a failed request. The address is cut out: its query may be signed.
pub(crate) fn unreachable(target: &Target, source: reqwest::Error) -> RegistryError {
    let source = source.without_url();
    if let Some(internal) = causes(&source).find_map(|error| error.downcast_ref::<InternalName>()) {
        return violation(target, Violation::InternalAddress(escape(&internal.to_string())));
    }
    let reason = match () {
        () if causes(&source).any(|error| error.is::<rustls::Error>()) => Reason::Tls,
        () if source.is_dns() => Reason::Name,
        () if source.is_timeout() => Reason::Timeout,
        () if source.is_connect() => Reason::Connect,
        () => Reason::Broken,
    };
    RegistryError::Unreachable {
        target: Box::new(target.clone()),
        reason,
        proxy: None,
        source: Some(Box::new(source)),
    }
}

/// Everything beneath an error, the nearest first.
fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(error.source(), |error| beneath(*error))
}

/// The cause of an error. An I/O error that wraps another answers with the cause of that one and so hides it: TLS
/// errors come in two such layers.
fn beneath<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a (dyn std::error::Error + 'static)> {
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    wrapped.map(|inner| inner as &(dyn std::error::Error + 'static)).or_else(|| error.source())
}

#[cfg(test)]
mod tests;
