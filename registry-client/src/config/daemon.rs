//! Docker's `daemon.json`: `registry-mirrors` (Docker Hub only) and `insecure-registries`.

use std::path::Path;

use serde::Deserialize;

use super::ConfigError;
use super::registries::{is_location, split_location};
use crate::endpoint::{Api, Endpoint, Security, security};

#[derive(Deserialize, Default)]
struct File {
    #[serde(default, rename = "registry-mirrors")]
    mirrors: Vec<String>,
    #[serde(default, rename = "insecure-registries")]
    insecure: Vec<String>,
}

pub(super) struct Daemon {
    /// `repository` holds the path prefix, usually empty.
    pub(super) mirrors: Vec<Endpoint>,
    pub(super) insecure: Vec<String>,
}

pub(super) fn parse(path: &Path, text: &str) -> Result<Daemon, ConfigError> {
    // dockerd accepts an empty file.
    let file = match text.trim() {
        "" => File::default(),
        text => serde_json::from_str(text)
            .map_err(|source| ConfigError::Daemon { path: path.to_owned(), source })?,
    };
    let mirrors = file.mirrors.iter().map(|url| mirror(path, url)).collect::<Result<_, _>>()?;
    Ok(Daemon { mirrors, insecure: file.insecure })
}

fn mirror(path: &Path, url: &str) -> Result<Endpoint, ConfigError> {
    let bare = url.trim().trim_end_matches('/');
    let (plain, location) = match (bare.strip_prefix("http://"), bare.strip_prefix("https://")) {
        (Some(rest), _) => (true, rest),
        (_, Some(rest)) => (false, rest),
        _ => (false, bare),
    };
    if !is_location(location) {
        return Err(ConfigError::Location { path: path.to_owned(), location: url.to_owned() });
    }
    let (host, repository) = split_location(location);
    let security = if plain { Security::Plain } else { security(host, false) };
    let (host, repository, api) = (host.to_owned(), repository.to_owned(), Api::default());
    Ok(Endpoint { host, repository, security, api })
}
