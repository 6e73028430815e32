//! How a host is connected to, as `hosts.toml` has it: through which proxy, and how long that may take.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rbuild_oci::parse_duration;
use reqwest::Url;
use serde::Deserialize;
use toml::Value;

use super::ConfigError;
use crate::settings::SetBy;

/// The keys of a file.
#[derive(Debug, Default, Deserialize)]
pub(super) struct DialKeys {
    dial_timeout: Option<Value>,
    proxy: Option<Value>,
}

/// What they mean.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Dial {
    /// Opening a connection; `None` for the time that every host has.
    pub(crate) timeout: Option<Duration>,
    /// The way to the host and to every address that it names, whatever the environment says.
    pub(crate) proxy: Option<ProxyAddress>,
}

/// The address of a proxy, with the credentials for it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct ProxyAddress {
    url: Url,
    /// The file that names it.
    file: PathBuf,
}

impl DialKeys {
    /// `path` is the file that they are in.
    pub(super) fn dial(&self, path: &Path) -> Result<Dial, ConfigError> {
        let unusable = |key, value: &Value, expected| ConfigError::HostKey {
            path: path.to_owned(),
            key,
            value: value.to_string(),
            expected,
        };
        let timeout = self.dial_timeout.as_ref().filter(|value| !is_empty(value)).map(|value| {
            let nanos = value.as_str().and_then(|text| u64::try_from(parse_duration(text).ok()?).ok());
            let expected = "a duration such as \"3s\" or \"500ms\"";
            nanos.map(Duration::from_nanos).ok_or_else(|| unusable("dial_timeout", value, expected))
        });
        let proxy = self.proxy.as_ref().filter(|value| !is_empty(value)).map(|value| {
            let expected =
                "the address of a proxy: http://HOST:PORT (or https, socks5, socks5h) without a path";
            value.as_str().and_then(|text| ProxyAddress::parse(text, path)).ok_or_else(|| {
                let shown = match value {
                    Value::String(text) => Value::String(without_user(text)),
                    other => Value::String(other.type_str().to_owned()),
                };
                unusable("proxy", &shown, expected)
            })
        });
        Ok(Dial { timeout: timeout.transpose()?.filter(|time| !time.is_zero()), proxy: proxy.transpose()? })
    }
}

/// To containerd that is a key that is not there.
fn is_empty(value: &Value) -> bool {
    value.as_str() == Some("")
}

impl Dial {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl ProxyAddress {
    /// By containerd's rules: one of Go's four schemes and a host, and no path, query or fragment.
    fn parse(text: &str, file: &Path) -> Option<Self> {
        let mut url = Url::parse(text).ok()?;
        let is_bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
        let has_host = url.host_str().is_some_and(|host| !host.is_empty());
        if !is_bare || !has_host || !matches!(url.scheme(), "http" | "https" | "socks5" | "socks5h") {
            return None;
        }
        if url.scheme() == "socks5" {
            // To Go they are one: names are the proxy's to look up.
            url.set_scheme("socks5h").ok()?;
        }
        Some(Self { url, file: file.to_owned() })
    }

    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    /// For messages.
    pub(crate) fn set_by(&self) -> SetBy {
        SetBy::File { path: self.file.clone(), key: "proxy" }
    }
}

impl fmt::Debug for ProxyAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ProxyAddress").field(&without_user(self.url.as_str())).finish()
    }
}

/// An address for messages: without what stands in front of an `@`, well-formed or not, or behind a `?` or `#`.
pub(crate) fn without_user(address: &str) -> String {
    let (scheme, rest) = address.split_once("://").map_or(("", address), |(scheme, rest)| (scheme, rest));
    let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
    let place = place.split(['?', '#']).next().unwrap_or_default();
    if scheme.is_empty() { place.to_owned() } else { format!("{scheme}://{place}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dial(text: &str) -> Result<Dial, String> {
        let keys: DialKeys = toml::from_str(text).unwrap();
        keys.dial(Path::new("/c/hosts.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn durations_are_go_s_and_what_is_no_time_sets_none() {
        for (text, time) in [
            ("dial_timeout = '3s'", Some(Duration::from_secs(3))),
            ("dial_timeout = '1m0.5s'", Some(Duration::from_millis(60_500))),
            ("dial_timeout = '0s'", None),
            ("dial_timeout = ''", None),
            ("", None),
        ] {
            assert_eq!(dial(text).unwrap().timeout, time, "{text}");
        }
        for (text, shown) in [("'soon'", "\"soon\""), ("'-3s'", "\"-3s\""), ("'3'", "\"3\""), ("3", "3")] {
            let error = dial(&format!("dial_timeout = {text}")).unwrap_err();
            let whole = format!(
                "`/c/hosts.toml` has `dial_timeout = {shown}`, which should be a duration such as \"3s\" or \"500ms\""
            );
            assert_eq!(error, whole);
        }
    }

    #[test]
    fn proxies_are_bare_addresses_of_four_schemes() {
        for (text, url) in [
            ("http://proxy:8080", "http://proxy:8080/"),
            ("https://me:pass@proxy/", "https://me:pass@proxy/"),
            ("socks5://proxy:1080", "socks5h://proxy:1080"),
            ("socks5h://[::1]:1080", "socks5h://[::1]:1080"),
        ] {
            let proxy = dial(&format!("proxy = '{text}'")).unwrap().proxy.unwrap();
            assert_eq!(proxy.url().as_str(), url);
        }
        assert_eq!(dial("proxy = ''").unwrap(), Dial::default());
        for text in [
            "proxy:8080",
            "http://",
            "http://proxy/path",
            "http://proxy?a",
            "http://proxy/#a",
            "ftp://p",
            "p",
        ] {
            let error = dial(&format!("proxy = '{text}'")).unwrap_err();
            assert!(error.starts_with("`/c/hosts.toml` has `proxy = \""), "{error}");
            assert!(
                error.ends_with("http://HOST:PORT (or https, socks5, socks5h) without a path"),
                "{error}"
            );
        }
    }

    #[test]
    fn credentials_of_a_proxy_are_in_no_message() {
        for text in [
            "'http://me:hunter2@proxy:1/path'",
            "'me:hunter2@proxy:1'",
            "'http://me:hun@hunter2@proxy:x'",
            "'http://me:/hunter2@proxy:1'",
            "'http://me:?hunter2@proxy:1'",
            "'http://proxy:1/?key=hunter2'",
            "['http://me:hunter2@proxy:1']",
        ] {
            let error = dial(&format!("proxy = {text}")).unwrap_err();
            assert!(!error.contains("hun"), "{error}");
            assert!(error.contains("proxy:") || error.contains("array"), "{error}");
        }
        let good = dial("proxy = 'http://me:hunter2@proxy:1'").unwrap();
        assert!(format!("{good:?}").contains("http://proxy:1/"), "{good:?}");
    }
}
