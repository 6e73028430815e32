//! Where git may connect: it looks names up by itself, so it is told beforehand what they mean.
//!
//! Nothing link-local is reached (cloud metadata services live there), whoever names it; and a repository's submodules are
//! no more internal than the repository, or a stranger's `.gitmodules` could aim git at this machine's network. What was
//! looked up is what http and https connect to (`http.curloptResolve`; git before 2.37 does not know it, and looks names up
//! again). Behind a proxy it is the proxy that looks names up: only written addresses are judged then.

use std::net::IpAddr;

use rbuild_frontend::remote::GitSource;
use rbuild_registry::{Reach, ReachError};

use super::{GitError, GitSettings};

/// The way to one repository.
#[derive(Debug, Clone)]
pub struct Route {
    reach: Reach,
    /// `host:port:address,…` for git's configuration.
    pub(super) pin: Option<String>,
}

impl Route {
    /// Judges the host of a repository. `from` is the way to the repository whose submodule it is.
    pub async fn to(
        settings: &GitSettings,
        source: &GitSource,
        from: Option<&Self>,
    ) -> Result<Self, GitError> {
        let by = from.map(|from| from.reach);
        let Some(place) = Place::of(&source.remote) else {
            return Ok(Self { reach: Reach::PUBLIC, pin: None });
        };
        let failed = |cause| GitError::Address {
            remote: rbuild_frontend::remote::without_user(&source.remote),
            source: cause,
        };
        let literal = Reach::of_literal(place.host, by).map_err(failed)?;
        if literal.is_none() && settings.is_proxied(place.scheme) {
            return Ok(Self { reach: Reach::PUBLIC, pin: None });
        }
        match Reach::of(place.host, by).await {
            Ok((reach, addresses)) => Ok(Self { reach, pin: place.pin(&addresses) }),
            // Git finds nothing either, or knows it from elsewhere: it says so in its own words.
            Err(ReachError::Lookup { .. }) if from.is_none() => Ok(Self { reach: Reach::PUBLIC, pin: None }),
            Err(cause) => Err(failed(cause)),
        }
    }
}

/// The server in an address.
struct Place<'a> {
    scheme: &'a str,
    /// As written; an IPv6 address with its brackets.
    host: &'a str,
    port: Option<&'a str>,
}

impl<'a> Place<'a> {
    /// Of `scheme://[user@]host[:port]/…` and `[user@]host:path`.
    fn of(remote: &'a str) -> Option<Self> {
        let (scheme, authority) = match remote.split_once("://") {
            Some((scheme, rest)) => (scheme, rest.split(['/', '?', '#']).next()?),
            // The colon of a host and a path, not one within an IPv6 address.
            None => ("ssh", &remote[..remote.find("]:").map(|at| at + 1).or_else(|| remote.find(':'))?]),
        };
        let server = authority.rsplit_once('@').map_or(authority, |(_, server)| server);
        let (host, port) = match server.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (server, None),
        };
        (!host.is_empty()).then_some(Self { scheme, host, port })
    }

    fn pin(&self, addresses: &[IpAddr]) -> Option<String> {
        let port = match (self.scheme, self.port) {
            ("http" | "https", Some(port)) if !port.is_empty() => port,
            ("http", _) => "80",
            ("https", _) => "443",
            _ => return None,
        };
        let is_name = self.host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        if !is_name || !port.bytes().all(|b| b.is_ascii_digit()) || self.host.parse::<IpAddr>().is_ok() {
            return None;
        }
        let addresses: Vec<String> = addresses
            .iter()
            .map(|address| match address {
                IpAddr::V4(v4) => v4.to_string(),
                IpAddr::V6(v6) => format!("[{v6}]"),
            })
            .collect();
        Some(format!("{}:{port}:{}", self.host, addresses.join(",")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(remote: &str) -> GitSource {
        GitSource { remote: remote.into(), ..GitSource::default() }
    }

    #[test]
    fn servers_are_found_in_every_form_of_an_address() {
        for (remote, scheme, host, port) in [
            ("https://u:p@h.example:8443/a.git", "https", "h.example", Some("8443")),
            ("http://[::1]/a.git", "http", "[::1]", None),
            ("ssh://git@[fe80::1]:22/a", "ssh", "[fe80::1]", Some("22")),
            ("git@h.example:team/a.git", "ssh", "h.example", None),
            ("git://h/a", "git", "h", None),
        ] {
            let place = Place::of(remote).expect(remote);
            assert_eq!((place.scheme, place.host, place.port), (scheme, host, port), "{remote}");
        }
        let addresses = ["1.2.3.4".parse().expect("v4"), "2001:db8::1".parse().expect("v6")];
        let pin = |remote| Place::of(remote).and_then(|place| place.pin(&addresses));
        assert_eq!(pin("https://h/a.git").as_deref(), Some("h:443:1.2.3.4,[2001:db8::1]"));
        assert_eq!(pin("http://h:8080/a.git").as_deref(), Some("h:8080:1.2.3.4,[2001:db8::1]"));
        assert_eq!(pin("https://1.2.3.4/a.git"), None);
        assert_eq!(pin("git@h:a.git"), None);
    }

    #[tokio::test]
    async fn nobody_leads_git_to_link_local_addresses_or_inwards() {
        let direct = GitSettings::default();
        let proxied = GitSettings {
            passed_on: vec![("https_proxy".into(), "http://proxy:1".into())],
            ..GitSettings::default()
        };
        for settings in [&direct, &proxied] {
            for remote in ["https://169.254.169.254/x.git", "git@169.254.169.254:x", "ssh://git@[fe80::1]/x"]
            {
                let refused = Route::to(settings, &source(remote), None).await;
                assert!(matches!(refused, Err(GitError::Address { .. })), "{remote}: {refused:?}");
            }
            let outside = Route { reach: Reach::PUBLIC, pin: None };
            for remote in ["https://localhost/x.git", "http://10.0.0.1/x.git", "git://127.0.0.1/x"] {
                let refused = Route::to(settings, &source(remote), Some(&outside)).await;
                assert!(matches!(refused, Err(GitError::Address { .. })), "{remote}: {refused:?}");
                Route::to(settings, &source(remote), None).await.expect("the Dockerfile may say so");
            }
        }
        let elsewhere = Route::to(&proxied, &source("https://nowhere.invalid/x.git"), None).await;
        assert_eq!(elsewhere.expect("the proxy's business").pin, None);
    }
}
