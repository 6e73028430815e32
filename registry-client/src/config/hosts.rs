//! containerd's `certs.d/HOST/hosts.toml`: mirrors of a host; certificates, headers and the path of the API for each.
//!
//! Differences from containerd: mirrors serve pulls only, whatever their capabilities; a path behind `/v2` (as in
//! `https://mirror/v2/path` with `override_path`) counts as the repository's, for tokens too; `dial_timeout` is the time
//! for TLS as well, and wrong values are errors.
//!
//! `_default/hosts.toml` is for hosts that no other file names; without a `server` its `ca`, `client`, `header`, `proxy` and
//! `dial_timeout` are theirs, under the name `*`. Its `skip_verify` is not: containerd's documentation does not say that
//! this key of a default takes the verification from every registry there is, and here a host is insecure only where a
//! file names it. A `client` certificate of the default is shown to registries themselves, not to what they name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use reqwest::header::HeaderMap;
use serde::Deserialize;

use super::dial::{Dial, DialKeys};
use super::papers::{Pair, Papers};
use super::registries::{Mirror, PullFrom, Rule, is_location, split_location, toml_error};
use super::{ConfigError, own_header, read_file};
use crate::endpoint::{Security, is_hub, security};

const KIND: &str = "hosts.toml";

/// What a file says of hosts.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// One per host; their mirrors.
    pub(super) rules: Vec<Rule>,
    pub(super) stated: BTreeMap<String, Security>,
    pub(super) papers: BTreeMap<String, Papers>,
    pub(super) headers: BTreeMap<String, HeaderMap>,
    /// Of every host that a file names, so that it is known not to be left to `*`.
    pub(super) dials: BTreeMap<String, Dial>,
}

#[derive(Deserialize)]
struct File {
    server: Option<String>,
    #[serde(flatten)]
    own: Trusted,
    /// By address, in the order of the file.
    #[serde(default)]
    host: toml::Table,
}

#[derive(Deserialize)]
struct Host {
    capabilities: Option<Vec<String>>,
    #[serde(default)]
    override_path: bool,
    #[serde(flatten)]
    own: Trusted,
}

/// The keys that a server and its mirrors have in common.
#[derive(Deserialize)]
struct Trusted {
    #[serde(default)]
    skip_verify: bool,
    ca: Option<OneOrMany<PathBuf>>,
    client: Option<Client>,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany<String>>,
    #[serde(flatten)]
    dial: DialKeys,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Client {
    /// Certificate and key in one file.
    One(PathBuf),
    Many(Vec<ClientFiles>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ClientFiles {
    Both(PathBuf),
    Pair(Vec<PathBuf>),
}

/// An address such as `https://mirror:5000/v2/path`.
struct Address {
    is_plain: bool,
    /// `mirror:5000`.
    host: String,
    /// Without slashes at its ends.
    path: String,
}

/// Reads `*/hosts.toml` of every directory. Of two that name one host, the first counts.
pub(super) fn load(dirs: &[PathBuf]) -> Result<Found, ConfigError> {
    let mut found = Found::default();
    for dir in dirs {
        let Ok(entries) = std::fs::read_dir(dir) else { continue };
        let mut folders: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|e| e.path())).collect();
        folders.sort();
        for folder in folders {
            let Some(name) = folder.file_name().and_then(|name| name.to_str()) else { continue };
            // `host_port_` is how file systems without colons write `host:port`.
            let host = match name.strip_suffix('_').and_then(|name| name.rsplit_once('_')) {
                Some((host, port)) if port.parse::<u16>().is_ok() => format!("{host}:{port}"),
                _ if name == "_default" => "*".to_owned(),
                _ => name.to_owned(),
            };
            let path = folder.join(KIND);
            if let Some(text) = read_file(&path)?
                && found.rules.iter().all(|rule| rule.prefix != host)
            {
                found.add(&host, &path, &text)?;
            }
        }
    }
    Ok(found)
}

impl Found {
    fn add(&mut self, name: &str, path: &Path, text: &str) -> Result<(), ConfigError> {
        let file: File = toml::from_str(text).map_err(|mut source| {
            source.set_input(Some(&without_values(text)));
            toml_error(path, KIND, source)
        })?;
        let server = file.server.as_deref().map(|text| address(path, text)).transpose()?;
        let server_host = server.as_ref().map_or(name, |server| &server.host).to_owned();
        if name != "*" || server.is_some() {
            self.note(&server_host, server.as_ref().is_some_and(|server| server.is_plain), &file.own, path)?;
        } else {
            self.note_ways(name, &file.own, path)?;
        }
        let mut mirrors = Vec::new();
        for (text, value) in file.host {
            let host: Host = value.try_into().map_err(|source| toml_error(path, KIND, source))?;
            let address = address(path, &text)?;
            let can = |what: &str| {
                host.capabilities.as_ref().is_none_or(|list| list.iter().any(|capability| capability == what))
            };
            // The registry itself is asked last anyway.
            if !can("pull") || address.host == server_host && address.path.is_empty() {
                self.note(&address.host, address.is_plain, &host.own, path)?;
                continue;
            }
            let (prefix, root) = match (host.override_path, address.path.as_str()) {
                (true, "") => ("", String::new()),
                (false, "") | (_, "v2") => ("", "/v2".to_owned()),
                (true, path) if path.starts_with("v2/") => (&path["v2/".len()..], "/v2".to_owned()),
                (is_whole, path) if is_whole || path.ends_with("/v2") => ("", format!("/{path}")),
                (_, path) => ("", format!("/{path}/v2")),
            };
            let location = match prefix {
                "" => address.host.clone(),
                prefix => format!("{}/{prefix}", address.host),
            };
            self.note(&address.host, address.is_plain, &host.own, path)?;
            // What cannot resolve a tag can serve what is named by digest.
            let pull_from = if can("resolve") { PullFrom::All } else { PullFrom::DigestOnly };
            mirrors.push(Mirror { location, insecure: false, pull_from, root: Some(root) });
        }
        let moved = server.filter(|server| server.host != name && !(is_hub(&server.host) && is_hub(name)));
        let location = moved.map(|server| match server.path.as_str() {
            "" | "v2" => server.host,
            path => format!("{}/{}", server.host, path.strip_prefix("v2/").unwrap_or(path)),
        });
        self.rules.push(Rule::of_host(name, location, mirrors));
        Ok(())
    }

    fn note(&mut self, host: &str, is_plain: bool, own: &Trusted, file: &Path) -> Result<(), ConfigError> {
        if is_plain || own.skip_verify {
            let stated = if is_plain { Security::Plain } else { Security::Unverified };
            self.stated.entry(host.to_owned()).or_insert(match security(host, false) {
                // Loopback is spoken to in any way that works.
                Security::Loopback => Security::Loopback,
                _ => stated,
            });
        }
        self.note_ways(host, own, file)
    }

    /// All but how far the host is trusted.
    fn note_ways(&mut self, host: &str, own: &Trusted, file: &Path) -> Result<(), ConfigError> {
        let headers = own.headers();
        if !headers.is_empty() {
            self.headers.entry(host.to_owned()).or_insert(headers);
        }
        let papers = own.papers(file.parent().unwrap_or(Path::new("/")));
        if !papers.is_empty() {
            self.papers.entry(host.to_owned()).or_insert(papers);
        }
        let (dial, known) = (own.dial.dial(file)?, self.dials.entry(host.to_owned()).or_default());
        if known.is_empty() {
            *known = dial;
        }
        Ok(())
    }
}

impl Trusted {
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, values) in &self.header {
            let values = match values {
                OneOrMany::One(value) => std::slice::from_ref(value),
                OneOrMany::Many(values) => values,
            };
            for (name, value) in values.iter().filter_map(|value| own_header(name, value)) {
                headers.append(name, value);
            }
        }
        headers
    }

    /// Paths are meant from the file's own folder on.
    fn papers(&self, folder: &Path) -> Papers {
        let list = |many: &Vec<PathBuf>| many.iter().map(|path| folder.join(path)).collect();
        let both = |path: &PathBuf| Pair { certificate: folder.join(path), key: None };
        Papers {
            authorities: match &self.ca {
                None => Vec::new(),
                Some(OneOrMany::One(path)) => vec![folder.join(path)],
                Some(OneOrMany::Many(paths)) => list(paths),
            },
            pairs: match &self.client {
                None => Vec::new(),
                Some(Client::One(path)) => vec![both(path)],
                Some(Client::Many(many)) => many
                    .iter()
                    .filter_map(|files| match files {
                        ClientFiles::Both(path) => Some(both(path)),
                        ClientFiles::Pair(pair) => Some(Pair {
                            certificate: folder.join(pair.first()?),
                            key: pair.get(1).map(|key| folder.join(key)),
                        }),
                    })
                    .collect(),
            },
        }
    }
}

/// The text with stars for all values, for messages that show lines of it: proxies and headers have secrets in theirs.
fn without_values(text: &str) -> String {
    let hidden = |line: &str| {
        let is_bare_key = |key: &str| key.chars().all(|c| c.is_ascii_alphanumeric() || "_-. \t".contains(c));
        let shown = match line.split_once('=') {
            Some((key, _)) if is_bare_key(key) => key.len() + 1,
            _ if line.trim_start().starts_with("[h") => line.len(),
            _ => 0,
        };
        let (shown, value) = line.split_at(shown);
        // As many bytes as before: the error knows its place by their number.
        let star = |c: char| if c.is_whitespace() { c.to_string() } else { "*".repeat(c.len_utf8()) };
        format!("{shown}{}", value.chars().map(star).collect::<String>())
    };
    text.split_inclusive('\n').map(hidden).collect()
}

fn address(file: &Path, text: &str) -> Result<Address, ConfigError> {
    let bare = text.trim().trim_end_matches('/');
    let (is_plain, location) = match (bare.strip_prefix("http://"), bare.strip_prefix("https://")) {
        (Some(rest), _) => (true, rest),
        (_, Some(rest)) => (false, rest),
        _ => (false, bare),
    };
    if !is_location(location) {
        return Err(ConfigError::Location { path: file.to_owned(), location: text.to_owned() });
    }
    let (host, path) = split_location(location);
    Ok(Address { is_plain, host: host.to_owned(), path: path.to_owned() })
}
