//! Connections: one HTTP client per way of trusting, made when first needed.
//!
//! The system's roots are loaded when the first `https` host is contacted and not before: that takes milliseconds,
//! which a build served by a registry on loopback never pays.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, NoProxy, Proxy, Url};

use super::address::AddressClass;
use super::resolver::Resolver;
use super::trust;
use crate::auth::lock;
use crate::config::{Config, ConfigError, Papers};
use crate::settings::{ProxySettings, Settings};

/// Whom a connection trusts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Trust {
    /// No TLS.
    None,
    /// The system's roots.
    System,
    /// Any certificate.
    Unverified,
    /// The system's roots and what files hold for the host.
    Papers(Arc<Papers>),
}

/// What distinguishes one client from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Route {
    pub(super) trust: Trust,
    /// Refuse names that resolve to addresses a registry of this class may not name.
    pub(super) guard: Option<AddressClass>,
    pub(super) proxied: bool,
}

/// Why a client cannot be made.
pub(super) enum ClientError {
    Build(reqwest::Error),
    /// The system's trust store.
    Trust,
    Config(ConfigError),
}

/// The clients made so far.
pub(super) struct Clients {
    made: Mutex<HashMap<Route, Client>>,
    proxies: ProxySettings,
    /// By host, what configuration files name for it.
    papers: BTreeMap<String, Arc<Papers>>,
    certs_dirs: Vec<PathBuf>,
    connect: std::time::Duration,
    user_agent: String,
}

impl Clients {
    pub(super) fn new(settings: &Settings, config: &Config) -> Self {
        Self {
            made: Mutex::new(HashMap::new()),
            proxies: config.proxies.clone(),
            papers: config
                .papers
                .iter()
                .map(|(host, papers)| (host.clone(), papers.clone().into()))
                .collect(),
            certs_dirs: settings.certs_dirs.clone(),
            connect: settings.deadlines.connect,
            user_agent: settings.user_agent.clone(),
        }
    }

    /// The trust for a verified host (`host[:port]`).
    pub(super) fn trust_for(&self, host: String) -> Result<Trust, ClientError> {
        if let Some(papers) = self.papers.get(&host) {
            return Ok(Trust::Papers(Arc::clone(papers)));
        }
        // Hosts come from parsed references and addresses, so they hold no separators; dots could still climb.
        let dirs = self.certs_dirs.iter().filter(|_| !host.starts_with('.') && !host.contains('/'));
        let folder = dirs.map(|dir| dir.join(&host)).find(|folder| folder.is_dir());
        let papers =
            folder.map(|folder| Papers::of_folder(&folder)).transpose().map_err(ClientError::Config)?;
        Ok(match papers.filter(|papers| !papers.is_empty()) {
            Some(papers) => Trust::Papers(Arc::new(papers)),
            None => Trust::System,
        })
    }

    /// Whether a proxy is set for the scheme of `url`. `NO_PROXY` may still keep the proxy out of it.
    pub(super) fn is_proxied(&self, url: &Url) -> bool {
        let proxy = if url.scheme() == "https" { &self.proxies.https } else { &self.proxies.http };
        let loopback =
            AddressClass::of_literal(url.host_str().unwrap_or_default()) == Some(AddressClass::Loopback);
        proxy.as_deref().is_some_and(|proxy| !proxy.is_empty()) && !loopback
    }

    pub(super) fn get(&self, route: &Route) -> Result<Client, ClientError> {
        // Held while building: parallel first requests would load the roots once each.
        let mut made = lock(&self.made);
        if let Some(client) = made.get(route) {
            return Ok(client.clone());
        }
        let client = self.build(route)?;
        made.insert(route.clone(), client.clone());
        Ok(client)
    }

    fn build(&self, route: &Route) -> Result<Client, ClientError> {
        // Fails when a provider is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // With a proxy it is the proxy that resolves names: a guard here would judge the proxy's own address.
        let guard = route.guard.filter(|_| !route.proxied);
        let builder = Client::builder()
            .user_agent(&self.user_agent)
            .redirect(Policy::none())
            .referer(false)
            .connect_timeout(self.connect)
            .dns_resolver(Arc::new(Resolver::new(guard)))
            .no_proxy();
        let builder = match &route.trust {
            // An empty root store: nothing is loaded, and an https address cannot be verified by mistake.
            Trust::None => builder.tls_certs_only([]),
            Trust::System => builder,
            Trust::Unverified => builder.tls_certs_only([]).tls_danger_accept_invalid_certs(true),
            Trust::Papers(papers) => {
                let tls = trust::client_config(papers).map_err(ClientError::Config)?;
                builder.tls_backend_preconfigured(tls.map_err(|_| ClientError::Trust)?)
            }
        };
        let builder =
            if route.proxied { self.with_proxies(builder).map_err(ClientError::Config)? } else { builder };
        builder.build().map_err(ClientError::Build)
    }

    fn with_proxies(&self, mut builder: ClientBuilder) -> Result<ClientBuilder, ConfigError> {
        let bad = |setting, value: &str| ConfigError::Setting { setting, value: without_user(value) };
        let except = self.proxies.no_proxy.as_deref().and_then(NoProxy::from_string);
        if let Some(address) = self.proxies.http.as_deref().filter(|address| !address.is_empty()) {
            let proxy = Proxy::http(with_scheme(address)).map_err(|_| bad("http proxy", address))?;
            builder = builder.proxy(proxy.no_proxy(except.clone()));
        }
        if let Some(address) = self.proxies.https.as_deref().filter(|address| !address.is_empty()) {
            let proxy = Proxy::https(with_scheme(address)).map_err(|_| bad("https proxy", address))?;
            builder = builder.proxy(proxy.no_proxy(except));
        }
        Ok(builder)
    }
}

/// Proxies are often written `host:port`.
fn with_scheme(address: &str) -> String {
    if address.contains("://") { address.to_owned() } else { format!("http://{address}") }
}

fn without_user(address: &str) -> String {
    address.rsplit_once('@').map_or_else(|| address.to_owned(), |(_, host)| host.to_owned())
}
