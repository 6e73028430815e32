//! Addresses of files and repositories that are fetched: what ADD, build contexts and `-f` may name besides paths.
//!
//! Text in, parts out; nothing is contacted. The rules are BuildKit's (dockerfile reference 3.10 and 5): `git://`,
//! `ssh://`, `user@host:path`, and `http(s)://` with a path that ends in `.git` are repositories, any other `http(s)://`
//! is a file. What comes after `#` is `ref:subdir`; the query form says the same by name.

use std::fmt;

use crate::dockerignore::clean;

/// Name of a file whose address has none.
const UNNAMED: &str = "__unnamed__";

/// What an address stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remote {
    /// A file.
    Http(HttpSource),
    /// A repository.
    Git(GitSource),
}

/// A file on a web server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSource {
    /// The whole address as written.
    pub url: String,
    /// The name it has in a directory: last segment of the path, one component, never empty.
    pub name: String,
}

/// A state of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GitSource {
    /// Where the repository is: the address without query and fragment.
    pub remote: String,
    /// Branch, tag, `refs/…` or commit; empty for the default branch.
    pub reference: String,
    /// Directory in it, cleaned, without leading `/`; empty for all of it.
    pub subdir: String,
    /// Commit that the reference must lead to, or its first digits.
    pub checksum: String,
    /// Keep `.git`; `None` when the address does not say.
    pub keep_git_dir: Option<bool>,
    /// Bring submodules too.
    pub submodules: bool,
}

impl GitSource {
    /// Whether it is reached over ssh, with the keys of who builds.
    pub fn is_ssh(&self) -> bool {
        self.remote.starts_with("ssh://") || is_scp(&self.remote)
    }
}

/// An address that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    /// Nothing to connect to.
    #[error("`{0}` names no host")]
    NoHost(String),
    /// Blanks, control characters.
    #[error("`{0}` is not an address: it has a blank or a control character")]
    Character(String),
    /// A key that the query form does not have.
    #[error("unexpected query \"{0}\"")]
    Query(String),
    /// Two ways of naming one thing that do not agree.
    #[error("conflicting values for {0}")]
    Conflict(&'static str),
    /// A switch that is neither on nor off.
    #[error("invalid value \"{value}\" for {key}: expected true or false")]
    Bool {
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
    /// A reference that git would take for something else.
    #[error("invalid git reference \"{0}\"")]
    Reference(String),
    /// Not the digits of a commit.
    #[error("invalid checksum \"{0}\": expected a git commit, or its first digits")]
    Checksum(String),
}

impl Remote {
    /// Sorts an address; `None` for what is a path. `github.com/…` without a scheme is one: only contexts take it for
    /// a repository ([`GitSource::context`]).
    pub fn parse(text: &str) -> Result<Option<Self>, RemoteError> {
        let Some(kind) = kind(text) else { return Ok(None) };
        if text.chars().any(|c| c.is_control() || c == ' ') {
            return Err(RemoteError::Character(text.escape_default().to_string()));
        }
        match kind {
            Form::Http => Ok(Some(Self::Http(HttpSource::new(text)?))),
            Form::Git => Ok(Some(Self::Git(GitSource::new(text)?))),
        }
    }
}

/// What form an address has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Http,
    Git,
}

fn kind(text: &str) -> Option<Form> {
    if text.starts_with("git://") || text.starts_with("ssh://") || is_scp(text) {
        return Some(Form::Git);
    }
    let is_http = text.starts_with("http://") || text.starts_with("https://");
    let path = text.split(['#', '?']).next().unwrap_or_default();
    let is_git = path.trim_end_matches('/').ends_with(".git");
    is_http.then_some(if is_git { Form::Git } else { Form::Http })
}

/// `user@host:path`, as scp and git have it.
fn is_scp(text: &str) -> bool {
    let Some((user, rest)) = text.split_once('@') else { return false };
    let Some((host, path)) = rest.split_once(':') else { return false };
    let is_word = |text: &str, more: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    is_word(user, "-_") && is_word(host, "-.") && !path.is_empty() && !path.starts_with("//")
}

impl HttpSource {
    fn new(text: &str) -> Result<Self, RemoteError> {
        if authority(text).is_empty() {
            return Err(RemoteError::NoHost(text.to_owned()));
        }
        let path = text.split(['#', '?']).next().unwrap_or_default();
        let path = path.split_once("://").map_or("", |(_, rest)| rest.split_once('/').map_or("", |(_, p)| p));
        let last = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let decoded = percent_decoded(last);
        // An encoded slash makes a segment of its own, and no name leads anywhere.
        let name = decoded.rsplit('/').next().unwrap_or_default();
        let is_name = !matches!(name, "" | "." | "..") && name.len() <= 255 && !name.contains('\0');
        Ok(Self { url: text.to_owned(), name: if is_name { name } else { UNNAMED }.to_owned() })
    }
}

impl GitSource {
    /// A context's address: also `github.com/…` without a scheme.
    pub fn context(text: &str) -> Result<Option<Self>, RemoteError> {
        if text.starts_with("github.com/") {
            return Self::new(&format!("https://{text}")).map(Some);
        }
        match Remote::parse(text)? {
            Some(Remote::Git(source)) => Ok(Some(source)),
            Some(Remote::Http(_)) | None => Ok(None),
        }
    }

    fn new(text: &str) -> Result<Self, RemoteError> {
        let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (remote, query) = rest.split_once('?').unwrap_or((rest, ""));
        if !is_scp(remote) && authority(remote).is_empty() {
            return Err(RemoteError::NoHost(text.to_owned()));
        }
        let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
        let mut source = Self {
            remote: remote.to_owned(),
            reference: reference.to_owned(),
            subdir: subdir.to_owned(),
            submodules: true,
            ..Self::default()
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            source.set(key, percent_decoded(value))?;
        }
        source.subdir = clean(&format!("/{}", source.subdir)).trim_start_matches('/').to_owned();
        // Git takes a leading dash for an option, and gives other characters a meaning of their own.
        let odd = |c: char| c.is_control() || " ~^:?*[\\".contains(c);
        let reference = &source.reference;
        if reference.starts_with('-') || reference.contains("..") || reference.contains(odd) {
            return Err(RemoteError::Reference(reference.escape_default().to_string()));
        }
        if !source.checksum.is_empty() && !is_commit_prefix(&source.checksum) {
            return Err(RemoteError::Checksum(source.checksum.escape_default().to_string()));
        }
        Ok(source)
    }

    /// One part of the query form.
    fn set(&mut self, key: &str, value: String) -> Result<(), RemoteError> {
        let full = match key {
            "ref" => value,
            "branch" => format!("refs/heads/{value}"),
            "tag" => format!("refs/tags/{value}"),
            "subdir" => return put(&mut self.subdir, value, "subdir"),
            "commit" | "checksum" => return put(&mut self.checksum, value.to_ascii_lowercase(), "checksum"),
            "submodules" => {
                self.submodules = switch(key, &value)?;
                return Ok(());
            }
            "keep-git-dir" => {
                self.keep_git_dir = Some(switch(key, &value)?);
                return Ok(());
            }
            // How BuildKit is to fetch, and which times files get: here a commit is always fetched by itself when the
            // server allows it, and files always have the commit's time.
            "fetch-by-commit" => return switch(key, &value).map(|_| ()),
            "mtime" if matches!(value.as_str(), "checkout" | "commit") => return Ok(()),
            _ => return Err(RemoteError::Query(key.escape_default().to_string())),
        };
        put(&mut self.reference, full, "ref")
    }
}

/// The address with all that was said about it in fragment form, for messages.
impl fmt::Display for GitSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_user(&self.remote))?;
        match (self.reference.as_str(), self.subdir.as_str()) {
            ("", "") => Ok(()),
            (reference, "") => write!(f, "#{reference}"),
            (reference, subdir) => write!(f, "#{reference}:{subdir}"),
        }
    }
}

/// An address without user name, password, query and fragment, for messages and names: any of them may be secret.
pub fn without_user(address: &str) -> String {
    let address = address.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = address.split_once("://") else { return address.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

/// A web address without user name and password; anything else as it is.
pub fn without_credentials(address: &str) -> String {
    let is_web = address.starts_with("http://") || address.starts_with("https://");
    let Some((scheme, rest)) = address.split_once("://").filter(|_| is_web) else {
        return address.to_owned();
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

/// True for a whole commit id, SHA-1 or SHA-256.
pub fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// True for a commit id or its first digits.
pub fn is_commit_prefix(text: &str) -> bool {
    (4..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}

fn put(at: &mut String, value: String, what: &'static str) -> Result<(), RemoteError> {
    if !at.is_empty() && *at != value {
        return Err(RemoteError::Conflict(what));
    }
    *at = value;
    Ok(())
}

fn switch(key: &str, value: &str) -> Result<bool, RemoteError> {
    match value.to_ascii_lowercase().as_str() {
        "" | "1" | "t" | "true" => Ok(true),
        "0" | "f" | "false" => Ok(false),
        _ => Err(RemoteError::Bool { key: key.to_owned(), value: value.escape_default().to_string() }),
    }
}

/// `%41` is `A`; what is no escape stays, what is no UTF-8 is replaced.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = (first == b'%').then(|| after.get(..2)).flatten();
        let escaped = escaped.filter(|hex| hex.iter().all(u8::is_ascii_hexdigit));
        let value = escaped.and_then(|hex| std::str::from_utf8(hex).ok());
        match value.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests;
