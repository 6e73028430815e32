//! `registries.conf` version 2 (containers-registries.conf(5)): which prefix is served from where.
//!
//! Differences from containers/image: short-name settings are ignored (names here are normalised Docker's way), and a
//! prefix that is a bare host never matches the same host with a port, which that library calls unintended itself.

use std::path::{Path, PathBuf};

use rbuild_oci::Reference;
use serde::Deserialize;

use super::{Config, ConfigError, read_file};
use crate::endpoint::{Api, Endpoint, security};

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    registry: Vec<Registry>,
    registries: Option<toml::Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Registry {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<MirrorEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct MirrorEntry {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: PullFrom,
}

#[derive(Debug, Clone, Copy, Deserialize, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(super) enum PullFrom {
    #[default]
    #[serde(alias = "")]
    All,
    DigestOnly,
    TagOnly,
}

/// One `[[registry]]` table.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(super) prefix: String,
    location: String,
    pub(super) insecure: bool,
    pub(super) blocked: bool,
    mirrors: Vec<Mirror>,
}

#[derive(Debug, Clone)]
pub(super) struct Mirror {
    pub(super) location: String,
    pub(super) insecure: bool,
    pub(super) pull_from: PullFrom,
    /// Path of its API, of containerd's mirrors; these are told whose image is wanted.
    pub(super) root: Option<String>,
}

/// Parses a file and its drop-ins; a later file's table replaces an earlier one of the same prefix.
pub(super) fn load(path: &Path, text: &str) -> Result<Vec<Rule>, ConfigError> {
    let mut rules: Vec<Rule> = Vec::new();
    let mut merge = |path: &Path, text: &str| -> Result<(), ConfigError> {
        for rule in parse(path, text)? {
            rules.retain(|old| old.prefix != rule.prefix);
            rules.push(rule);
        }
        Ok(())
    };
    merge(path, text)?;
    for path in drop_ins(path)? {
        if let Some(text) = read_file(&path)? {
            merge(&path, &text)?;
        }
    }
    Ok(rules)
}

/// `registries.conf.d/*.conf` beside the file, in name order.
fn drop_ins(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".d");
    let dir = PathBuf::from(name);
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(ConfigError::Read { path: dir, source }),
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|file| file.extension().is_some_and(|extension| extension == "conf"))
        .collect();
    files.sort();
    Ok(files)
}

fn parse(path: &Path, text: &str) -> Result<Vec<Rule>, ConfigError> {
    let file: File = toml::from_str(text).map_err(|source| toml_error(path, "registries.conf", source))?;
    if file.registries.is_some() {
        return Err(ConfigError::OldFormat { path: path.to_owned() });
    }
    file.registry.into_iter().map(|registry| rule(path, registry)).collect()
}

pub(super) fn toml_error(path: &Path, kind: &'static str, source: toml::de::Error) -> ConfigError {
    ConfigError::Toml { path: path.to_owned(), kind, source }
}

fn rule(path: &Path, registry: Registry) -> Result<Rule, ConfigError> {
    let bad = |location: &str| ConfigError::Location { path: path.to_owned(), location: location.to_owned() };
    let location = registry.location.trim_end_matches('/').to_owned();
    let prefix = match registry.prefix.trim_end_matches('/') {
        "" => location.clone(),
        prefix => prefix.to_owned(),
    };
    let wildcard = prefix.strip_prefix("*.");
    // A location is required unless the prefix is a wildcard, which then keeps each name as it is.
    let location_ok = if location.is_empty() { wildcard.is_some() } else { is_location(&location) };
    if !location_ok {
        return Err(bad(&location));
    }
    if prefix.is_empty() || wildcard.unwrap_or(&prefix).contains('*') {
        return Err(bad(&prefix));
    }
    let mirrors = registry
        .mirror
        .into_iter()
        .map(|entry| {
            let location = entry.location.trim_end_matches('/').to_owned();
            if !is_location(&location) {
                return Err(bad(&entry.location));
            }
            let pull_from =
                if registry.mirror_by_digest_only { PullFrom::DigestOnly } else { entry.pull_from_mirror };
            Ok(Mirror { location, insecure: entry.insecure, pull_from, root: None })
        })
        .collect::<Result<_, _>>()?;
    Ok(Rule { prefix, location, insecure: registry.insecure, blocked: registry.blocked, mirrors })
}

/// The rule with the longest matching prefix.
pub(super) fn rule_for<'a>(rules: &'a [Rule], reference: &Reference) -> Option<&'a Rule> {
    let full = reference.to_string();
    rules.iter().filter(|rule| rule.matched_len(&full).is_some()).max_by_key(|rule| rule.prefix.len())
}

impl Rule {
    /// What another file says of one host (`*`: of every host): its mirrors, and where it is itself when that is
    /// elsewhere.
    pub(super) fn of_host(host: &str, location: Option<String>, mirrors: Vec<Mirror>) -> Self {
        let location = location.unwrap_or_default();
        Self { prefix: host.to_owned(), location, insecure: false, blocked: false, mirrors }
    }

    /// How many bytes of `domain/path[:tag][@digest]` the prefix covers.
    fn matched_len(&self, full: &str) -> Option<usize> {
        if let Some(suffix) = self.prefix.strip_prefix('*') {
            let host = full.split('/').next().unwrap_or(full);
            return (host.len() > suffix.len() && host.ends_with(suffix)).then_some(host.len());
        }
        let rest = full.strip_prefix(&self.prefix)?;
        let boundary = match rest.bytes().next() {
            None | Some(b'/') => true,
            Some(b':' | b'@') => self.prefix.contains('/'),
            Some(_) => false,
        };
        boundary.then_some(self.prefix.len())
    }

    /// True when this rule is about all of a host, for judging hosts that no reference names (token servers).
    pub(super) fn is_host(&self, host: &str) -> bool {
        self.matched_len(&format!("{host}/")) == Some(host.len())
            || split_location(&self.location).0 == host && self.prefix == self.location
    }

    /// The places of the mirrors that may serve `reference`.
    pub(super) fn mirrors_for(&self, reference: &Reference, config: &Config) -> Vec<Endpoint> {
        let by_digest = reference.digest().is_some();
        self.mirrors
            .iter()
            .filter(|mirror| match mirror.pull_from {
                PullFrom::All => true,
                PullFrom::DigestOnly => by_digest,
                PullFrom::TagOnly => !by_digest,
            })
            .filter_map(|mirror| {
                let endpoint = self.rewrite(reference, &mirror.location, mirror.insecure, config)?;
                let Some(root) = &mirror.root else { return Some(endpoint) };
                let is_another = endpoint.host != reference.domain();
                let namespace = is_another.then(|| reference.domain().to_owned());
                Some(Endpoint { api: Api { root: root.clone(), namespace }, ..endpoint })
            })
            .collect()
    }

    /// The registry itself, at its configured location.
    pub(super) fn location_for(&self, reference: &Reference, config: &Config) -> Option<Endpoint> {
        let location = if self.location.is_empty() { reference.domain() } else { &self.location };
        self.rewrite(reference, location, self.insecure, config)
    }

    /// Replaces the matched part of the name by `location`.
    fn rewrite(
        &self,
        reference: &Reference,
        location: &str,
        insecure: bool,
        config: &Config,
    ) -> Option<Endpoint> {
        let matched = self.matched_len(&reference.to_string())?;
        let name = reference.name();
        // A prefix may cover the tag too; nothing of the name is left then.
        let rest = name.get(matched..).unwrap_or("").trim_start_matches('/');
        let (host, path) = split_location(location);
        let repository =
            [path, rest].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
        (!repository.is_empty()).then(|| Endpoint {
            host: host.to_owned(),
            repository,
            security: if insecure { security(host, true) } else { config.security_of(host) },
            api: Api::default(),
        })
    }
}

/// `host[:port]` and the path behind it.
pub(super) fn split_location(location: &str) -> (&str, &str) {
    location.split_once('/').unwrap_or((location, ""))
}

/// `host[:port][/path]`: what may stand in front of a repository in a URL.
pub(super) fn is_location(text: &str) -> bool {
    let (host, path) = split_location(text);
    // The reference grammar is the judge for both halves; a dummy name completes them.
    let path = if path.is_empty() { "name".to_owned() } else { path.to_owned() };
    let probe = format!("{host}/{path}");
    // A one-word host would read as a path component of Docker Hub: a port makes it a domain.
    let with_port = if host.contains([':', '.']) { probe } else { format!("{host}:1/{path}") };
    with_port
        .parse::<Reference>()
        .is_ok_and(|reference| reference.tag().is_none() && reference.digest().is_none())
}
