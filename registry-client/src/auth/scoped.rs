//! Buildx's credentials of single repositories and actions: `config/<host>[/<repository>][@<action>,…]/config.json`
//! below its configuration directory (docs.docker.com, «Registry authentication»).

use std::fs;
use std::path::{Path, PathBuf};

use super::keychain::{KeychainError, Source, display, parse};
use crate::Settings;
use crate::config::read_file;
use crate::endpoint::api_host;

/// The files that apply, the most specific first: the repository's before the host's, more actions before fewer.
pub(super) fn load(
    settings: &Settings,
    host: &str,
    repository: &str,
    actions: &str,
) -> Result<Vec<Source>, KeychainError> {
    let Some(root) = settings.buildx_config.as_ref().map(|dir| dir.join("config")) else {
        return Ok(Vec::new());
    };
    // Both come from parsed references: no component is empty or climbs.
    let host = api_host(host);
    let own = (!repository.is_empty()).then(|| root.join(host).join(repository));
    let mut found = Vec::new();
    for place in own.into_iter().chain([root.join(host)]) {
        for dir in applying(&place, actions) {
            let path = dir.join("config.json");
            if let Some(text) = read_file(&path)? {
                found.push(parse(display(&path), &text, false)?);
            }
        }
    }
    Ok(found)
}

/// `place` and its variants `place@…` whose actions are all among those asked for.
fn applying(place: &Path, actions: &str) -> Vec<PathBuf> {
    let (Some(parent), Some(name)) = (place.parent(), place.file_name().and_then(|name| name.to_str()))
    else {
        return Vec::new();
    };
    let asked: Vec<&str> = actions.split(',').collect();
    let mut dirs: Vec<(usize, PathBuf)> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let own = entry.file_name();
            let scope = match own.to_str()?.strip_prefix(name)? {
                "" => return Some((0, entry.path())),
                rest => rest.strip_prefix('@')?,
            };
            let scope: Vec<&str> = scope.split(',').collect();
            scope.iter().all(|action| asked.contains(action)).then(|| (scope.len(), entry.path()))
        })
        .collect();
    dirs.sort_by(|a, b| b.cmp(a));
    dirs.into_iter().map(|(_, dir)| dir).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_folder_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("config/r.test");
        for name in ["app", "app@pull", "app@pull,push", "app@delete", "app2@pull", "app@"] {
            fs::create_dir_all(root.join("team").join(name)).unwrap();
        }
        let names = |actions: &str| -> Vec<String> {
            let dirs = applying(&root.join("team/app"), actions);
            dirs.iter().map(|dir| dir.file_name().unwrap().to_str().unwrap().to_owned()).collect()
        };
        assert_eq!(names("pull"), ["app@pull", "app"]);
        assert_eq!(names("pull,push"), ["app@pull,push", "app@pull", "app"]);
        assert!(applying(&dir.path().join("nowhere/x"), "pull").is_empty());
    }

    #[test]
    fn docker_hub_s_folder_is_that_of_its_api() {
        let dir = tempfile::tempdir().unwrap();
        let hub = dir.path().join("config/registry-1.docker.io/library/app@push");
        fs::create_dir_all(&hub).unwrap();
        fs::write(hub.join("config.json"), "{}").unwrap();
        let settings = Settings { buildx_config: Some(dir.path().to_owned()), ..Settings::default() };
        assert_eq!(load(&settings, "docker.io", "library/app", "pull,push").unwrap().len(), 1);
        assert!(load(&settings, "docker.io", "library/other", "pull,push").unwrap().is_empty());
        fs::write(hub.join("config.json"), "{").unwrap();
        assert!(load(&settings, "docker.io", "library/app", "pull,push").is_err());
    }
}
