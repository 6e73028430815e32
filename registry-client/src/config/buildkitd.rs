//! BuildKit's `buildkitd.toml`: the `[registry."HOST"]` tables.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::ConfigError;
use super::hosts::Found;
use super::papers::{Pair, Papers};
use super::registries::{Mirror, PullFrom, Rule, is_location, split_location, toml_error};
use crate::endpoint::Security;

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    registry: BTreeMap<String, Registry>,
}

#[derive(Deserialize)]
struct Registry {
    #[serde(default)]
    mirrors: Vec<String>,
    http: Option<bool>,
    insecure: Option<bool>,
    #[serde(default)]
    ca: Vec<PathBuf>,
    #[serde(default)]
    keypair: Vec<KeyPair>,
}

#[derive(Deserialize)]
struct KeyPair {
    key: PathBuf,
    cert: PathBuf,
}

pub(super) fn parse(path: &Path, text: &str) -> Result<Found, ConfigError> {
    let file: File = toml::from_str(text).map_err(|source| toml_error(path, "buildkitd.toml", source))?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut found = Found::default();
    for (host, registry) in file.registry {
        let mut mirrors = Vec::new();
        for text in &registry.mirrors {
            let bare = text.trim().trim_end_matches('/');
            let (plain, location) = match bare.strip_prefix("http://") {
                Some(rest) => (true, rest),
                None => (false, bare.strip_prefix("https://").unwrap_or(bare)),
            };
            if !is_location(location) {
                return Err(ConfigError::Location { path: path.to_owned(), location: text.clone() });
            }
            if plain {
                found.stated.insert(split_location(location).0.to_owned(), Security::Plain);
            }
            mirrors.push(Mirror {
                location: location.to_owned(),
                insecure: false,
                pull_from: PullFrom::All,
                root: None,
            });
        }
        // With both, BuildKit tries https without verification and then clear text.
        let stated = match (registry.http, registry.insecure) {
            (Some(true), Some(true)) => Some(Security::Insecure),
            (Some(true), _) => Some(Security::Plain),
            (_, Some(true)) => Some(Security::Unverified),
            _ => None,
        };
        found.stated.extend(stated.map(|stated| (host.clone(), stated)));
        let papers = Papers {
            authorities: registry.ca.iter().map(|path| folder.join(path)).collect(),
            pairs: registry
                .keypair
                .iter()
                .map(|pair| Pair { certificate: folder.join(&pair.cert), key: Some(folder.join(&pair.key)) })
                .collect(),
        };
        if !papers.is_empty() {
            found.papers.insert(host.clone(), papers);
        }
        found.rules.push(Rule::of_host(&host, None, mirrors));
    }
    Ok(found)
}
