//! Where a repository is served: host, path there, and how far the host is trusted.

use crate::transport::address::AddressClass;

/// How a host may be spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Security {
    /// `https` with a verified certificate, nothing else.
    Verified,
    /// `https` with any certificate, and nothing else: `skip_verify` of containerd, `insecure` of BuildKit.
    Unverified,
    /// Listed as insecure: `https` without verification, else `http`.
    Insecure,
    /// This machine: `http`, else `https` without verification (as Docker treats 127.0.0.0/8).
    Loopback,
    /// Configured with an `http://` address.
    Plain,
}

/// One place that may serve (or take) a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Host as named in the reference or the mirror setting; the key for credentials and certificates.
    pub(crate) host: String,
    /// Repository there; differs from the reference's when a mirror has a path.
    pub(crate) repository: String,
    /// How to speak to it.
    pub(crate) security: Security,
    /// Where its API is.
    pub(crate) api: Api,
}

/// How addresses of the API are written for a host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Api {
    /// Path that stands for `/v2`; no slash at its end.
    pub(crate) root: String,
    /// The registry whose images are wanted, for mirrors of several (`ns=`).
    pub(crate) namespace: Option<String>,
}

impl Default for Api {
    fn default() -> Self {
        Self { root: "/v2".to_owned(), namespace: None }
    }
}

impl Api {
    /// Rewrites a path of the specification (`/v2/…`), which may have a query.
    pub(crate) fn path(&self, path: &str) -> String {
        let rooted = format!("{}{}", self.root, path.strip_prefix("/v2").unwrap_or(path));
        match &self.namespace {
            None => rooted,
            Some(namespace) => {
                let separator = if rooted.contains('?') { '&' } else { '?' };
                format!("{rooted}{separator}ns={namespace}")
            }
        }
    }
}

/// The security of a host by name and setting.
pub(crate) fn security(host: &str, insecure: bool) -> Security {
    match AddressClass::of_literal(split_port(host).0) {
        Some(AddressClass::Loopback) => Security::Loopback,
        _ if insecure => Security::Insecure,
        _ => Security::Verified,
    }
}

/// The host that answers API requests for a domain: Docker Hub's differs from its name.
pub(crate) fn api_host(host: &str) -> &str {
    if is_hub(host) { "registry-1.docker.io" } else { host }
}

/// True for the names of Docker Hub.
pub(crate) fn is_hub(host: &str) -> bool {
    matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io")
}

/// True for registries known to take a blob in one piece only: Google's.
pub(crate) fn wants_whole_blobs(host: &str) -> bool {
    host == "gcr.io" || host.ends_with(".gcr.io") || host.ends_with(".pkg.dev")
}

/// Splits `host[:port]`, brackets of IPv6 addresses kept.
pub(crate) fn split_port(host: &str) -> (&str, Option<u16>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') && (name.starts_with('[') || !name.contains(':')) => {
            (name, port.parse().ok())
        }
        _ => (host, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_an_api_begin_with_its_root() {
        assert_eq!(Api::default().path("/v2/a/blobs/x"), "/v2/a/blobs/x");
        let api = Api { root: "/mirror/v2".to_owned(), namespace: Some("ghcr.io".to_owned()) };
        assert_eq!(api.path("/v2/a/tags/list?n=1"), "/mirror/v2/a/tags/list?n=1&ns=ghcr.io");
        assert_eq!(Api { root: String::new(), namespace: None }.path("/v2/a/manifests/b"), "/a/manifests/b");
    }

    #[test]
    fn loopback_is_recognised_with_and_without_port() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.1.2.3", "[::1]:5000", "[::1]"] {
            assert_eq!(security(host, false), Security::Loopback, "{host}");
        }
        for host in ["example.com", "localhost.example.com", "10.0.0.1:5000", "[fd00::1]:5000"] {
            assert_eq!(security(host, false), Security::Verified, "{host}");
            assert_eq!(security(host, true), Security::Insecure, "{host}");
        }
    }

    #[test]
    fn ports_split_off_names_and_bracketed_addresses() {
        assert_eq!(split_port("a.b:5000"), ("a.b", Some(5000)));
        assert_eq!(split_port("[::1]:5000"), ("[::1]", Some(5000)));
        assert_eq!(split_port("[::1]"), ("[::1]", None));
        assert_eq!(split_port("::1"), ("::1", None));
        assert_eq!(split_port("a.b"), ("a.b", None));
    }
}
