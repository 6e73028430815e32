//! The registry that credentials are for.

use std::fmt;
use std::str::FromStr;

use rbuild_oci::Reference;

use super::keychain::HUB_KEY;
use crate::endpoint::is_hub;
use crate::error::escape;

/// A registry by its host, as people name it to `login`: `ghcr.io`, `127.0.0.1:5000`, `https://host/v2/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `host[:port]`; Docker Hub is `docker.io` under each of its names.
    host: String,
}

/// A text that names no registry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a registry: expected a host with a dot or a port, such as ghcr.io or localhost:5000")]
pub struct ServerError(String);

impl Server {
    /// Docker Hub.
    pub fn hub() -> Self {
        Self { host: "docker.io".to_owned() }
    }

    /// Its host, as references name it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// What Docker stores its credentials under.
    pub fn key(&self) -> &str {
        if is_hub(&self.host) { HUB_KEY } else { &self.host }
    }

    /// Everything its credentials may have been stored under.
    pub(super) fn keys(&self) -> Vec<String> {
        let mut keys = vec![self.key().to_owned()];
        let hosts: &[&str] = if is_hub(&self.host) {
            &["docker.io", "index.docker.io", "registry-1.docker.io"]
        } else {
            &[&self.host]
        };
        for host in hosts {
            for form in ["", "http://", "https://"] {
                let key = format!("{form}{host}");
                if !keys.contains(&key) {
                    keys.push(key);
                }
            }
        }
        keys
    }
}

impl FromStr for Server {
    type Err = ServerError;

    fn from_str(text: &str) -> Result<Self, ServerError> {
        let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
        let host = bare.split('/').next().unwrap_or_default();
        // What no image name can name needs no credentials.
        match format!("{host}/image").parse::<Reference>() {
            Ok(reference) if is_hub(host) || reference.domain() == host => {
                Ok(Self { host: reference.domain().to_owned() })
            }
            _ => Err(ServerError(escape(text))),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_hosts_however_written() {
        for (text, host, key) in [
            ("ghcr.io", "ghcr.io", "ghcr.io"),
            ("https://ghcr.io/v2/", "ghcr.io", "ghcr.io"),
            ("http://127.0.0.1:5000", "127.0.0.1:5000", "127.0.0.1:5000"),
            ("localhost", "localhost", "localhost"),
            ("docker.io", "docker.io", HUB_KEY),
            ("https://index.docker.io/v1/", "docker.io", HUB_KEY),
        ] {
            let server: Server = text.parse().unwrap();
            assert_eq!((server.host(), server.key()), (host, key), "{text}");
        }
        for text in ["", "registry", "a b.c", "https://", "-x.y", "user:secret@host.io", "\u{1b}[31m.io"] {
            assert!(text.parse::<Server>().is_err(), "{text}");
        }
    }
}
