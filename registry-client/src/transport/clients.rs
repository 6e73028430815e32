//! Connections: one HTTP client per way of trusting, made when first needed.
//!
//! The system's roots are loaded when the first `https` host is contacted and not before: that takes milliseconds,
//! which a build served by a registry on loopback never pays.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, Proxy, Url};

use super::address::AddressClass;
use super::resolver::Resolver;
use super::trust;
use crate::auth::lock;
use crate::config::{Config, ConfigError, Dial, Papers, ProxyAddress, without_user};
use crate::endpoint::api_host;
use crate::error::FailedProxy;
use crate::limits::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use crate::settings::{ProxySetting, ProxySettings, Settings};

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
    pub(super) via: Via,
    /// Opening a connection.
    pub(super) connect: Duration,
}

/// Whether a proxy stands in between.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Via {
    /// None.
    Direct,
    /// The environment's.
    Settings,
    /// The registry's own.
    Own(ProxyAddress),
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
    /// Those for every host that no file names, and of these the authorities.
    default_papers: Option<Arc<Papers>>,
    default_authorities: Option<Arc<Papers>>,
    dials: BTreeMap<String, Dial>,
    certs_dirs: Vec<PathBuf>,
    connect: Duration,
    user_agent: String,
}

impl Clients {
    pub(super) fn new(settings: &Settings, config: &Config) -> Self {
        let default_papers = config.papers.get("*").map(|papers| Arc::new(papers.clone()));
        let authorities = default_papers.iter().map(|papers| papers.authorities.clone());
        Self {
            default_authorities: authorities
                .map(|authorities| Arc::new(Papers { authorities, pairs: Vec::new() }))
                .find(|papers| !papers.is_empty()),
            default_papers,
            made: Mutex::new(HashMap::new()),
            proxies: config.proxies.clone(),
            papers: config
                .papers
                .iter()
                .map(|(host, papers)| (host.clone(), papers.clone().into()))
                .collect(),
            dials: config.dials.clone(),
            certs_dirs: settings.certs_dirs.clone(),
            connect: settings.deadlines.connect,
            user_agent: settings.user_agent.clone(),
        }
    }

    /// The trust for a verified host (`host[:port]`).
    pub(super) fn trust_for(&self, host: String) -> Result<Trust, ClientError> {
        if let Some(papers) = self.papers.get(api_host(&host)) {
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

    /// [`Self::trust_for`] a registry, or for a host that one names: where nothing is said of it, the default counts. Our
    /// certificate in that is for registries alone.
    pub(super) fn registry_trust(&self, host: String, is_own: bool) -> Result<Trust, ClientError> {
        let is_named = self.dials.contains_key(api_host(&host));
        let found = self.trust_for(host)?;
        let default = if is_own { &self.default_papers } else { &self.default_authorities };
        Ok(match (found, default) {
            (Trust::System, Some(papers)) if !is_named => Trust::Papers(Arc::clone(papers)),
            (found, _) => found,
        })
    }

    /// The route to `url`, seen from the registry `host`: an address that it names is reached the way it is reached
    /// itself, as with containerd.
    pub(super) fn route(
        &self,
        host: Option<&str>,
        url: &Url,
        trust: Trust,
        guard: Option<AddressClass>,
    ) -> Route {
        let connect = host.and_then(|host| self.dial(host)?.timeout).unwrap_or(self.connect);
        Route { trust, guard, via: self.via(host, url), connect }
    }

    /// The proxy on that route. A registry's own counts for every address, loopback ones, too.
    pub(super) fn via(&self, host: Option<&str>, url: &Url) -> Via {
        if let Some(proxy) = host.and_then(|host| self.dial(host)?.proxy.clone()) {
            return Via::Own(proxy);
        }
        let loopback =
            AddressClass::of_literal(url.host_str().unwrap_or_default()) == Some(AddressClass::Loopback);
        match self.proxies.for_scheme(url.scheme()) {
            Some(_) if !loopback && !self.is_exempt(url) => Via::Settings,
            _ => Via::Direct,
        }
    }

    /// That proxy, for messages.
    pub(super) fn proxy(&self, host: Option<&str>, url: &Url) -> Option<FailedProxy> {
        let (address, set_by) = match self.via(host, url) {
            Via::Direct => return None,
            Via::Own(proxy) => (proxy.url().as_str().trim_end_matches('/').to_owned(), proxy.set_by()),
            Via::Settings => {
                self.proxies.for_scheme(url.scheme()).map(|p| (p.address.clone(), p.set_by.clone()))?
            }
        };
        Some(FailedProxy { address: without_user(&address), set_by })
    }

    /// What `NO_PROXY` lists.
    fn is_exempt(&self, url: &Url) -> bool {
        let Ok(uri) = url.as_str().parse::<Uri>() else { return false };
        // The matcher has exceptions only together with a proxy; which one is all the same to them.
        let matcher = Matcher::builder().all("http://proxy.invalid");
        matcher.no(self.proxies.no_proxy.as_deref().unwrap_or_default()).build().intercept(&uri).is_none()
    }

    fn dial(&self, host: &str) -> Option<&Dial> {
        self.dials.get(api_host(host)).or_else(|| self.dials.get("*"))
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
        let guard = route.guard.filter(|_| route.via == Via::Direct);
        let builder = Client::builder()
            .user_agent(&self.user_agent)
            .redirect(Policy::none())
            .referer(false)
            .connect_timeout(route.connect)
            .dns_resolver(Arc::new(Resolver::new(guard)))
            .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
            .http2_initial_connection_window_size(CONNECTION_WINDOW_BYTES)
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
        let builder = match &route.via {
            Via::Direct => builder,
            Via::Settings => self.with_proxies(builder).map_err(ClientError::Config)?,
            Via::Own(proxy) => builder.proxy(Proxy::all(proxy.url().clone()).map_err(ClientError::Build)?),
        };
        builder.build().map_err(ClientError::Build)
    }

    fn with_proxies(&self, mut builder: ClientBuilder) -> Result<ClientBuilder, ConfigError> {
        let bad = |setting, value: &str| ConfigError::Setting { setting, value: without_user(value) };
        if let Some(ProxySetting { address, .. }) = self.proxies.for_scheme("http") {
            builder =
                builder.proxy(Proxy::http(with_scheme(address)).map_err(|_| bad("http proxy", address))?);
        }
        if let Some(ProxySetting { address, .. }) = self.proxies.for_scheme("https") {
            builder =
                builder.proxy(Proxy::https(with_scheme(address)).map_err(|_| bad("https proxy", address))?);
        }
        Ok(builder)
    }
}

/// Proxies are often written `host:port`. To Go `socks5` means that names are the proxy's to look up.
fn with_scheme(address: &str) -> String {
    match address.split_once("://") {
        Some(("socks5", place)) => format!("socks5h://{place}"),
        Some(_) => address.to_owned(),
        None => format!("http://{address}"),
    }
}
