//! Which places serve a repository, and whom to trust there: `registries.conf`, Docker's `daemon.json`, containerd's
//! `hosts.toml`, BuildKit's `buildkitd.toml`, and the caller's insecure list.

mod buildkitd;
mod daemon;
mod dial;
mod docker;
mod hosts;
mod papers;
mod registries;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rbuild_oci::Reference;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue};

use crate::Settings;
use crate::endpoint::{Api, Endpoint, Security, api_host, is_hub, security, split_port};
use crate::limits::CONFIG_FILE_BYTES_MAX;
use crate::settings::ProxySettings;

pub(crate) use dial::{Dial, ProxyAddress, without_user};
pub(crate) use papers::{Pair, Papers};
pub(crate) use registries::Rule;

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// It exists but cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not the TOML it should be.
    #[error("`{}` is not a valid {kind}", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// `registries.conf`, `hosts.toml` or `buildkitd.toml`.
        kind: &'static str,
        /// Why.
        #[source]
        source: toml::de::Error,
    },
    /// Not the JSON of Docker's daemon.json.
    #[error("`{}` is not a valid daemon.json", path.display())]
    Daemon {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A mirror or registry location that is not `host[:port][/path]`.
    #[error("`{}` names `{location}`, which is not a registry location (host[:port][/path])", path.display())]
    Location {
        /// The file.
        path: PathBuf,
        /// What it says.
        location: String,
    },
    /// A key of a host in `hosts.toml` with a value that it cannot have.
    #[error("`{}` has `{key} = {value}`, which should be {expected}", path.display())]
    HostKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// Its value, without credentials.
        value: String,
        /// What it could be.
        expected: &'static str,
    },
    /// The version 1 format (`[registries.search]`), unsupported by current tools too.
    #[error("`{}` uses the old version 1 format: write `[[registry]]` tables instead", path.display())]
    OldFormat {
        /// The file.
        path: PathBuf,
    },
    /// A `host[:port]` or proxy setting that cannot be parsed.
    #[error("setting `{setting}` has the unusable value `{value}`")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// Its value.
        value: String,
    },
}

/// The parsed configuration.
#[derive(Debug, Default)]
pub(crate) struct Config {
    rules: Vec<Rule>,
    hub_mirrors: Vec<Endpoint>,
    insecure: Vec<String>,
    /// What containerd's and BuildKit's files say of hosts, in the order in which they are asked.
    by_host: Vec<Vec<Rule>>,
    /// Hosts whose scheme or verification such a file states, by the name that answers ([`api_host`]) as all maps here.
    stated: BTreeMap<String, Security>,
    /// Authorities and client certificates that such a file names; `*` is for hosts that no file of containerd's names.
    pub(crate) papers: BTreeMap<String, Papers>,
    /// Proxies and times that containerd's files name, and an entry for every host that they name; `*` as above.
    pub(crate) dials: BTreeMap<String, Dial>,
    /// Headers of Docker's `config.json`, for registries themselves.
    headers: HeaderMap,
    /// Headers that containerd's files name; `*` as above.
    host_headers: BTreeMap<String, HeaderMap>,
    /// The environment's proxies; where it has none, those of Docker's `config.json`.
    pub(crate) proxies: ProxySettings,
}

/// The places to ask for a reference, in order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Candidates {
    /// Mirrors first, the registry itself last; never empty.
    Endpoints(Vec<Endpoint>),
    /// The entry with this prefix forbids the registry.
    Blocked(String),
}

impl Config {
    /// Reads every configured file. Absent files are fine.
    pub(crate) fn load(settings: &Settings) -> Result<Self, ConfigError> {
        let mut config = Self { insecure: settings.insecure.clone(), ..Self::default() };
        let docker = match &settings.docker_config {
            Some(path) => read_file(path)?.map(|text| docker::parse(path, &text)).unwrap_or_default(),
            None => docker::DockerConfig::default(),
        };
        let own = settings.proxies.clone();
        config.proxies = ProxySettings {
            http: own.http.or(docker.proxies.http),
            https: own.https.or(docker.proxies.https),
            no_proxy: own.no_proxy.or(docker.proxies.no_proxy),
        };
        config.headers = docker.headers;
        for path in &settings.registries_conf {
            if let Some(text) = read_file(path)? {
                config.rules = registries::load(path, &text)?;
                break;
            }
        }
        if let Some(path) = &settings.daemon_json
            && let Some(text) = read_file(path)?
        {
            let daemon = daemon::parse(path, &text)?;
            config.hub_mirrors = daemon.mirrors;
            config.insecure.extend(daemon.insecure);
        }
        let hosts = hosts::load(&settings.certs_dirs)?;
        let buildkitd = settings.buildkitd_toml.iter().find_map(|path| match read_file(path) {
            Ok(None) => None,
            Ok(Some(text)) => Some(buildkitd::parse(path, &text)),
            Err(error) => Some(Err(error)),
        });
        for found in [hosts, buildkitd.transpose()?.unwrap_or_default()] {
            config.by_host.push(found.rules);
            keep_first(&mut config.stated, found.stated);
            keep_first(&mut config.host_headers, found.headers);
            keep_first(&mut config.papers, found.papers);
            keep_first(&mut config.dials, found.dials);
        }
        Ok(config)
    }

    /// Where to pull `reference` from.
    pub(crate) fn pull_candidates(&self, reference: &Reference) -> Candidates {
        let rule = registries::rule_for(&self.rules, reference);
        if let Some(rule) = rule.filter(|rule| rule.blocked) {
            return Candidates::Blocked(rule.prefix.clone());
        }
        let mut endpoints = rule.map(|rule| rule.mirrors_for(reference, self)).unwrap_or_default();
        if is_hub(reference.domain()) {
            endpoints.extend(self.hub_mirrors.iter().map(|mirror| {
                let repository = match mirror.repository.as_str() {
                    "" => reference.repository().to_owned(),
                    path => format!("{path}/{}", reference.repository()),
                };
                Endpoint { repository, ..mirror.clone() }
            }));
        }
        let by_host: Vec<&Rule> =
            self.by_host.iter().filter_map(|rules| registries::rule_for(rules, reference)).collect();
        endpoints.extend(by_host.iter().flat_map(|rule| rule.mirrors_for(reference, self)));
        let upstream = rule
            .and_then(|rule| rule.location_for(reference, self))
            .or_else(|| by_host.iter().find_map(|rule| rule.location_for(reference, self)))
            .unwrap_or_else(|| Endpoint {
                host: reference.domain().to_owned(),
                repository: reference.repository().to_owned(),
                security: self.security_of(reference.domain()),
                api: Api::default(),
            });
        let mut places: Vec<Endpoint> = Vec::with_capacity(endpoints.len() + 1);
        for mirror in endpoints {
            if mirror != upstream && !places.contains(&mirror) {
                places.push(mirror);
            }
        }
        places.push(upstream);
        let endpoints = places;
        Candidates::Endpoints(endpoints)
    }

    /// Where to push `reference`: mirrors take no part, a moved location does.
    pub(crate) fn push_endpoint(&self, reference: &Reference) -> Candidates {
        match self.pull_candidates(reference) {
            Candidates::Endpoints(mut all) => Candidates::Endpoints(all.split_off(all.len() - 1)),
            blocked => blocked,
        }
    }

    /// What is sent to a host with every request.
    pub(crate) fn headers_for(&self, host: &str) -> HeaderMap {
        let mut headers = self.headers.clone();
        let own = self.host_headers.get(api_host(host));
        let default = || self.host_headers.get("*").filter(|_| !self.is_named(host));
        headers.extend(own.or_else(default).cloned().unwrap_or_default());
        headers
    }

    /// Whether a file of containerd's names the host, so that it is not left to `*`.
    pub(crate) fn is_named(&self, host: &str) -> bool {
        self.dials.contains_key(api_host(host))
    }

    /// How a host may be spoken to.
    pub(crate) fn security_of(&self, host: &str) -> Security {
        match self.stated.get(api_host(host)) {
            Some(stated) => *stated,
            None => security(host, self.is_insecure(host)),
        }
    }

    fn is_insecure(&self, host: &str) -> bool {
        self.rules.iter().any(|rule| rule.insecure && rule.is_host(host))
            || self.insecure.iter().any(|entry| host_matches(entry, host))
    }
}

/// Adds what is said of hosts that are not in `all` yet.
fn keep_first<T>(all: &mut BTreeMap<String, T>, found: BTreeMap<String, T>) {
    for (host, value) in found {
        all.entry(api_host(&host).to_owned()).or_insert(value);
    }
}

/// `host`, `host:port` or CIDR, against `host[:port]`.
fn host_matches(entry: &str, host: &str) -> bool {
    let entry = entry.trim().trim_end_matches('/');
    let entry = entry.strip_prefix("http://").or_else(|| entry.strip_prefix("https://")).unwrap_or(entry);
    let (name, port) = split_port(host);
    if let Some((network, bits)) = entry.split_once('/') {
        let address = name.trim_start_matches('[').trim_end_matches(']').parse();
        return match (network.parse(), bits.parse(), address) {
            (Ok(network), Ok(bits), Ok(address)) => in_network(address, network, bits),
            _ => false,
        };
    }
    // An entry without a port means every port of the host only when the reference names none either, as in Docker.
    let (entry_name, entry_port) = split_port(entry);
    entry_name.eq_ignore_ascii_case(name) && entry_port == port
}

fn in_network(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    let masked = |value: u128, width: u32| value.checked_shr(width.saturating_sub(bits)).unwrap_or(0);
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(n)) if bits <= 32 => {
            masked(u128::from(a.to_bits()), 32) == masked(u128::from(n.to_bits()), 32)
        }
        (IpAddr::V6(a), IpAddr::V6(n)) if bits <= 128 => masked(a.to_bits(), 128) == masked(n.to_bits(), 128),
        _ => false,
    }
}

/// A header of the user's own. What frames or authorizes a request is not theirs to set, and what is no header is left out.
fn own_header(name: &str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, mut value) = (name.parse().ok()?, HeaderValue::from_str(value).ok()?);
    value.set_sensitive(true);
    (![AUTHORIZATION, HOST, CONTENT_LENGTH].contains(&name)).then_some((name, value))
}

/// Reads a text file; `None` when it does not exist.
pub(crate) fn read_file(path: &Path) -> Result<Option<String>, ConfigError> {
    let error = |source| ConfigError::Read { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(error(e)),
    };
    let mut text = String::new();
    file.take(CONFIG_FILE_BYTES_MAX).read_to_string(&mut text).map_err(error)?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests;
