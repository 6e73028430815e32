//! What Docker's `config.json` says besides credentials: `HttpHeaders` and `proxies`.

use std::collections::BTreeMap;
use std::path::Path;

use reqwest::header::HeaderMap;
use serde::Deserialize;

use super::own_header;
use crate::settings::{ProxySetting, ProxySettings, SetBy};

#[derive(Deserialize, Default)]
struct File {
    #[serde(default, rename = "HttpHeaders")]
    headers: Option<BTreeMap<String, String>>,
    #[serde(default)]
    proxies: Option<BTreeMap<String, Proxies>>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(rename_all = "camelCase")]
struct Proxies {
    http_proxy: Option<String>,
    https_proxy: Option<String>,
    no_proxy: Option<String>,
}

/// Headers for registries, and proxies for what the environment names none for.
#[derive(Debug, Default)]
pub(super) struct DockerConfig {
    pub(super) headers: HeaderMap,
    pub(super) proxies: ProxySettings,
}

/// Reads what it can: a file that does not parse is reported by who needs its credentials, and public images do not
/// need any.
pub(super) fn parse(path: &Path, text: &str) -> DockerConfig {
    let file: File = serde_json::from_str(text).unwrap_or_default();
    let proxies = file.proxies.and_then(|map| map.get("default").cloned()).unwrap_or_default();
    let mut headers = HeaderMap::new();
    for (name, value) in file.headers.unwrap_or_default() {
        headers.extend(own_header(&name, &value));
    }
    let set = |address: Option<String>, key| {
        let set_by = SetBy::File { path: path.to_owned(), key };
        address.map(|address| ProxySetting { address, set_by })
    };
    let proxies = ProxySettings {
        http: set(proxies.http_proxy, "proxies.default.httpProxy"),
        https: set(proxies.https_proxy, "proxies.default.httpsProxy"),
        no_proxy: proxies.no_proxy,
    };
    DockerConfig { headers, proxies }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_and_proxies_are_read_and_dangerous_headers_are_not() {
        let path = Path::new("/c/config.json");
        let found = parse(
            path,
            r#"{"HttpHeaders": {"X-Meta-Team": "a", "Authorization": "Basic x", "bad name": "y"},
                "proxies": {"default": {"httpProxy": "http://p:1", "noProxy": "*.local"}}}"#,
        );
        assert_eq!(found.headers.len(), 1);
        assert_eq!(found.headers["x-meta-team"], "a");
        let http = found.proxies.http.unwrap();
        assert_eq!(http.address, "http://p:1");
        assert_eq!(http.set_by.to_string(), "`proxies.default.httpProxy` in /c/config.json");
        assert!(found.proxies.https.is_none());
        assert!(parse(path, "{ broken").headers.is_empty());
    }
}
