//! Image references and Docker's normalisation of them.

use std::fmt;
use std::str::FromStr;

use crate::Digest;

/// A normalised image reference: where an image lives and which one it is.
///
/// `domain` and `repository` follow distribution's reference grammar after Docker's rules: a first component that
/// contains `.` or `:`, is `localhost` or has an upper-case letter is a domain; otherwise the domain is `docker.io`,
/// and a one-component repository there gets `library/`. A missing tag stays missing here ([`Self::tag_or_latest`]).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image reference. The texts are those Docker's users know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing given.
    #[error("invalid reference format: the image name is empty")]
    Empty,
    /// Upper-case letters in the repository.
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    /// Anything else the grammar refuses.
    #[error("invalid reference format: `{0}`")]
    Syntax(String),
    /// 64 hex digits, ambiguous with an image id.
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    LooksLikeId(String),
    /// Longer than 255 bytes.
    #[error("invalid reference format: repository name must not be more than 255 characters")]
    TooLong,
}

impl ReferenceError {
    /// The fix for what was `typed`, when we know one.
    pub fn hint(&self, typed: &str) -> Option<String> {
        let Self::Uppercase(repository) = self else { return None };
        // The host may hold the same letters, and the tag may have upper case.
        let start = match typed.find(&format!("/{repository}")) {
            Some(slash) => slash + 1,
            None => typed.find(repository)?,
        };
        let (host, rest) = typed.split_at(start);
        let tag = rest.get(repository.len()..).unwrap_or_default();
        Some(format!("write it in lower case: {host}{}{tag}", repository.to_ascii_lowercase()))
    }
}

impl Reference {
    /// Registry host as named, e.g. `docker.io` or `127.0.0.1:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Repository path within the registry, e.g. `library/node`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Tag, when one was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Digest, when one was given. It wins over the tag.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Tag, or `latest`.
    pub fn tag_or_latest(&self) -> &str {
        self.tag.as_deref().unwrap_or("latest")
    }

    /// `domain/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.repository)
    }

    /// What people write for [`Self::name`]: without `docker.io/` and `library/`, unless the rest would then be read
    /// as another registry (`docker.io/a.b/c`).
    pub fn familiar_name(&self) -> String {
        match (self.domain.as_str(), self.repository.strip_prefix("library/")) {
            ("docker.io", Some(short)) if !short.contains('/') => short.to_owned(),
            ("docker.io", _)
                if !self.repository.split_once('/').is_some_and(|(first, _)| names_domain(first)) =>
            {
                self.repository.clone()
            }
            _ => self.name(),
        }
    }

    /// What people write for the whole: familiar name, tag (`latest` when nothing else says which), digest.
    pub fn familiar(&self) -> String {
        let mut text = self.familiar_name();
        if let Some(tag) = &self.tag {
            text = format!("{text}:{tag}");
        } else if self.digest.is_none() {
            text.push_str(":latest");
        }
        if let Some(digest) = self.digest {
            text = format!("{text}@{digest}");
        }
        text
    }

    /// The same image with `latest` filled in when neither tag nor digest is there.
    pub fn with_default_tag(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".to_owned());
        }
        self
    }

    /// The same repository at a digest.
    pub fn at_digest(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// The same repository at a digest, without a tag.
    pub fn only_digest(&self, digest: Digest) -> Self {
        Self { tag: None, ..self.at_digest(digest) }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let syntax = || ReferenceError::Syntax(text.chars().take(120).collect());
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(ReferenceError::LooksLikeId(text.to_owned()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>().map_err(|_| syntax())?)),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|t| !is_tag(t)) {
            return Err(syntax());
        }
        let (domain, path) = match name.split_once('/') {
            Some((first, path)) if names_domain(first) => (first, path.to_owned()),
            _ => ("docker.io", name.to_owned()),
        };
        let domain =
            if matches!(domain, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { domain };
        if !is_domain(domain) {
            return Err(syntax());
        }
        let path =
            if domain == "docker.io" && !path.contains('/') { format!("library/{path}") } else { path };
        if !path.split('/').all(is_component) {
            let lower = path.to_ascii_lowercase();
            return Err(if lower != path && lower.split('/').all(is_component) {
                // In Docker's words, without the registry; where only the upper case makes one of the first part, that
                // is what is wrong.
                let is_host = |first: &str| first.contains(['.', ':']) || first == "localhost";
                let typed = name.split_once('/').filter(|(first, _)| is_host(first));
                ReferenceError::Uppercase(typed.map_or(name, |(_, path)| path).to_owned())
            } else {
                syntax()
            });
        }
        if domain.len() + 1 + path.len() > 255 {
            return Err(ReferenceError::TooLong);
        }
        Ok(Self { domain: domain.to_owned(), repository: path, tag: tag.map(str::to_owned), digest })
    }
}

/// Whether a first component is a registry rather than a part of a repository.
fn names_domain(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase())
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    if bytes.is_empty() || !alnum(bytes[0]) || !alnum(bytes[bytes.len() - 1]) {
        return false;
    }
    bytes
        .split(|b| alnum(*b))
        .filter(|separator| !separator.is_empty())
        .all(|separator| matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-'))
}

/// `[\w][\w.-]{0,127}`
fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=128).contains(&text.len())
        && word(text.as_bytes()[0])
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// Host names, IPv4, bracketed IPv6, with an optional port.
fn is_domain(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let port_ok = port.is_none_or(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
    let host_ok = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        }),
    };
    port_ok && host_ok
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
