//! `Authorization` headers for the servers that ADD and contexts fetch from, out of the build's secrets.
//!
//! | secret | goes to |
//! |---|---|
//! | `HTTP_AUTH_HEADER_<host>`, `HTTP_AUTH_TOKEN_<host>` | that host, over https (plain http on loopback only) |
//! | `GIT_AUTH_HEADER.<host>`, `GIT_AUTH_TOKEN.<host>` | the same, for repositories |
//! | `GIT_AUTH_HEADER`, `GIT_AUTH_TOKEN` | the repository that was named, never a submodule of another host |
//!
//! A header wins over a token. The names are BuildKit's, which gives the last pair to any host a submodule names.

use crate::error::StepFailure;
use crate::git::basic;
use crate::mounts::secret::{SecretError, Secrets};

/// The header for a file at `url`.
pub(super) fn for_file(secrets: &Secrets, url: &str) -> Result<Option<String>, StepFailure> {
    let Some(host) = confidential_host(url) else { return Ok(None) };
    if let Some(header) = text(secrets, &format!("HTTP_AUTH_HEADER_{host}"))? {
        return Ok(Some(header));
    }
    let token = text(secrets, &format!("HTTP_AUTH_TOKEN_{host}"))?;
    Ok(token.map(|token| format!("Bearer {token}")))
}

/// The header for the repository at `remote`, which was named itself or is a submodule of `top`.
pub(super) fn for_repository(
    secrets: &Secrets,
    remote: &str,
    top: &str,
) -> Result<Option<String>, StepFailure> {
    let Some(host) = confidential_host(remote) else { return Ok(None) };
    let mut suffixes = vec![format!(".{host}")];
    if confidential_host(top) == Some(host) {
        suffixes.push(String::new());
    }
    for suffix in suffixes {
        if let Some(header) = text(secrets, &format!("GIT_AUTH_HEADER{suffix}"))? {
            return Ok(Some(header));
        }
        if let Some(token) = text(secrets, &format!("GIT_AUTH_TOKEN{suffix}"))? {
            return Ok(Some(basic(&format!("x-access-token:{token}"))));
        }
    }
    Ok(None)
}

/// Host, and port where one is written, of a server that may be told a secret.
fn confidential_host(url: &str) -> Option<&str> {
    let (is_encrypted, rest) = match url.strip_prefix("https://") {
        Some(rest) => (true, rest),
        None => (false, url.strip_prefix("http://")?),
    };
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let is_loopback = matches!(name, "localhost" | "[::1]") || name.starts_with("127.");
    (is_encrypted || is_loopback).then_some(host)
}

/// A secret as one header's text: without the line end that files have.
fn text(secrets: &Secrets, id: &str) -> Result<Option<String>, StepFailure> {
    let Some(bytes) = secrets.get(id)? else { return Ok(None) };
    let text = std::str::from_utf8(bytes.expose()).map(|text| text.trim_end_matches(['\r', '\n']));
    match text {
        Ok(text) if !text.chars().any(char::is_control) => Ok(Some(text.to_owned())),
        _ => Err(SecretError::NotAHeader { id: id.to_owned() }.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{SecretArg, SecretSource};

    fn secrets(given: &[(&str, &str)]) -> Secrets {
        let args = given.iter().map(|(id, value)| SecretArg {
            id: (*id).to_owned(),
            source: SecretSource::Env(Some(crate::cli::SecretBytes::new(value.as_bytes().to_vec()))),
        });
        Secrets::new(&args.collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn a_header_goes_to_its_host_only() {
        let given = secrets(&[
            ("HTTP_AUTH_TOKEN_files.example:8443", "t0k\n"),
            ("HTTP_AUTH_HEADER_b.example", "Basic x"),
        ]);
        let header = |url| for_file(&given, url).unwrap();
        assert_eq!(header("https://files.example:8443/a?b").as_deref(), Some("Bearer t0k"));
        assert_eq!(header("https://b.example/a").as_deref(), Some("Basic x"));
        for other in [
            "https://files.example/a",
            "http://files.example:8443/a",
            "https://b.example.evil/a",
            "http://b.example/",
        ] {
            assert_eq!(header(other), None, "{other}");
        }
    }

    #[test]
    fn a_general_token_is_not_for_submodules_elsewhere() {
        let given = secrets(&[("GIT_AUTH_TOKEN", "t"), ("GIT_AUTH_TOKEN.c.example", "c")]);
        let header = |remote, top| for_repository(&given, remote, top).unwrap();
        let general = Some(basic("x-access-token:t"));
        assert_eq!(header("https://a.example/r.git", "https://a.example/r.git"), general);
        assert_eq!(header("https://a.example/sub.git", "https://a.example/r.git"), general);
        assert_eq!(header("https://b.example/sub.git", "https://a.example/r.git"), None);
        assert_eq!(
            header("https://c.example/sub.git", "https://a.example/r.git"),
            Some(basic("x-access-token:c"))
        );
        assert_eq!(header("ssh://git@a.example/r.git", "ssh://git@a.example/r.git"), None);
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let given = secrets(&[("HTTP_AUTH_HEADER_a", "x\r\nEvil: 1")]);
        assert!(for_file(&given, "https://a/").is_err());
    }
}
