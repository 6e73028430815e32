//! Credentials from Docker's `config.json`, `DOCKER_AUTH_CONFIG`, `auth.json` files and credential helpers.
//!
//! Looked at only when a registry asks for authentication: public pulls start no helper and read no file.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use tokio::sync::{Mutex, OnceCell};

use super::aws::Registry;
use super::{helper, scoped};
use crate::Settings;
use crate::config::{ConfigError, read_file};
use crate::endpoint::is_hub;
use crate::limits::HELPER_ANSWER_AGE_MAX;

/// The key Docker stores its Hub account under.
pub(super) const HUB_KEY: &str = "https://index.docker.io/v1/";

/// What proves who we are.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// User and password.
    Basic {
        /// User name; not empty.
        user: String,
        /// Password or access token.
        password: String,
    },
    /// OAuth2 refresh token for the token server.
    IdentityToken(String),
    /// A ready bearer token.
    RegistryToken(String),
}

impl Credentials {
    /// The texts that must never be printed.
    pub(crate) fn secret(&self) -> &str {
        match self {
            Self::Basic { password: secret, .. }
            | Self::IdentityToken(secret)
            | Self::RegistryToken(secret) => secret,
        }
    }
}

impl Credentials {
    /// Every form in which the secret is sent, and may come back in a message.
    pub(crate) fn printed_forms(&self) -> Vec<String> {
        let mut forms = vec![self.secret().to_owned()];
        if let Self::Basic { user, password } = self {
            forms.push(STANDARD.encode(format!("{user}:{password}")));
        }
        forms
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// Why credentials could not be got.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeychainError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] ConfigError),
    /// A credentials file is not the JSON it should be.
    #[error("{origin} is not a valid credentials file")]
    Syntax {
        /// Path or variable.
        origin: String,
        /// Line of the problem. The parser's own message is left out: it can quote secrets.
        line: usize,
    },
    /// An `auth` value that is not base64 of `user:password`.
    #[error("the `auth` value for `{key}` in {origin} is not base64 of user:password")]
    Auth {
        /// Path or variable.
        origin: String,
        /// Which entry.
        key: String,
    },
    /// A credentials file cannot be replaced.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is no place for a credentials file.
    #[error("there is no place to keep credentials: neither HOME nor DOCKER_CONFIG is set")]
    NoFile,
    /// A helper name that is not a plain name.
    #[error("`{helper}` is not the name of a credential helper")]
    HelperName {
        /// As configured, escaped.
        helper: String,
    },
    /// The helper is not installed or cannot be started.
    #[error("cannot run the credential helper `{program}`")]
    HelperStart {
        /// Its program name.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The helper did not answer in time.
    #[error("the credential helper `{program}` did not answer")]
    HelperTimeout {
        /// Its program name.
        program: String,
    },
    /// The helper failed.
    #[error("the credential helper `{program}` failed: {words}")]
    HelperRefused {
        /// Its program name.
        program: String,
        /// What it printed, escaped.
        words: String,
    },
    /// AWS did not give a token.
    #[error("{what} at AWS failed: {words}")]
    Aws {
        /// What was asked of it.
        what: String,
        /// Its words, escaped.
        words: String,
    },
    /// The helper printed something else than credentials.
    #[error("the credential helper `{program}` gave an answer that is not credentials")]
    HelperAnswer {
        /// Its program name.
        program: String,
    },
}

impl KeychainError {
    /// The fix, when we know one.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::HelperStart { program, .. } => format!(
                "install `{program}`, or remove it from `credsStore` or `credHelpers` in Docker's config.json"
            ),
            Self::Aws { .. } => {
                "check the AWS credentials in use (environment, AWS_PROFILE, role) and that they allow ecr:GetAuthorizationToken"
                    .to_owned()
            }
            Self::Syntax { origin, line } => format!("correct line {line} of {origin}"),
            Self::Auth { key, .. } => format!("run `rbuild login {key}` again"),
            _ => return None,
        })
    }
}

#[derive(Deserialize, Default)]
struct RawFile {
    #[serde(default)]
    auths: Option<BTreeMap<String, RawEntry>>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
    #[serde(default, rename = "credHelpers")]
    helpers: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize, Default, Clone)]
struct RawEntry {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default, rename = "identitytoken")]
    identity_token: Option<String>,
    #[serde(default, rename = "registrytoken")]
    registry_token: Option<String>,
}

/// One source of credentials.
pub(super) struct Source {
    origin: String,
    /// Keys may be `host/namespace` (containers-auth.json(5)); Docker's file has no such matching.
    namespaced: bool,
    file: RawFile,
}

/// What a helper said, and when.
type Answer = (Instant, Option<Credentials>);

/// All sources, read once, at the first challenge.
pub(crate) struct Keychain {
    sources: OnceCell<Vec<Source>>,
    helper_path: Option<OsString>,
    /// Answers of helpers by (helper, server). The lock is held while a helper runs: one at a time.
    answers: Mutex<HashMap<(String, String), Answer>>,
}

impl Keychain {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            sources: OnceCell::new(),
            helper_path: settings.helper_path.clone(),
            answers: Mutex::new(HashMap::new()),
        }
    }

    /// The credentials for a repository of a host, or `None` for anonymous.
    pub(crate) async fn find(
        &self,
        settings: &Settings,
        host: &str,
        repository: &str,
        actions: &str,
    ) -> Result<Option<Credentials>, KeychainError> {
        for source in scoped::load(settings, host, repository, actions)? {
            if let Some(found) = self.find_in(&source, host, repository).await? {
                return Ok(Some(found));
            }
        }
        let sources = self.sources.get_or_try_init(|| async { load(settings) }).await?;
        for source in sources {
            if let Some(found) = self.find_in(source, host, repository).await? {
                return Ok(Some(found));
            }
        }
        // Docker's hardened images take Docker Hub accounts.
        if host == "dhi.io" {
            return Box::pin(self.find(settings, "docker.io", repository, actions)).await;
        }
        Ok(None)
    }

    async fn find_in(
        &self,
        source: &Source,
        host: &str,
        repository: &str,
    ) -> Result<Option<Credentials>, KeychainError> {
        let helpers = source.file.helpers.as_ref();
        let own = server_keys(host).find_map(|key| helpers.and_then(|map| map.get(key)));
        if let Some(helper) = own.or(source.file.store.as_ref()).filter(|name| !name.is_empty()) {
            let server = if is_hub(host) { HUB_KEY } else { host };
            match self.ask(helper, server).await {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                // What this one does is built in.
                Err(KeychainError::HelperStart { .. })
                    if helper == "ecr-login" && Registry::of(host).is_some() => {}
                Err(error) => return Err(error),
            }
        }
        match source.entry(host, repository) {
            Some((key, entry)) => entry.credentials(&source.origin, key),
            None => Ok(None),
        }
    }

    async fn ask(&self, helper: &str, server: &str) -> Result<Option<Credentials>, KeychainError> {
        let mut answers = self.answers.lock().await;
        let key = (helper.to_owned(), server.to_owned());
        if let Some((_, known)) = answers.get(&key).filter(|(at, _)| at.elapsed() < HELPER_ANSWER_AGE_MAX) {
            return Ok(known.clone());
        }
        let found = helper::get(helper, server, self.helper_path.as_deref()).await?;
        answers.insert(key, (Instant::now(), found.clone()));
        Ok(found)
    }
}

/// The names a host may be stored under.
fn server_keys(host: &str) -> impl Iterator<Item = &str> {
    let hub = [HUB_KEY, "docker.io", "index.docker.io", "registry-1.docker.io"];
    let own = (!is_hub(host)).then_some(host);
    hub.into_iter().filter(move |_| is_hub(host)).chain(own)
}

fn load(settings: &Settings) -> Result<Vec<Source>, KeychainError> {
    let mut sources = Vec::new();
    if let Some(text) = settings.docker_auth_config.as_deref().filter(|text| !text.trim().is_empty()) {
        let mut source = parse("DOCKER_AUTH_CONFIG".to_owned(), text, false)?;
        // Only `auth` values are allowed here: a CI variable must not start programs.
        (source.file.store, source.file.helpers) = (None, None);
        sources.push(source);
    }
    let mut add = |path: Option<&PathBuf>, namespaced: bool| -> Result<(), KeychainError> {
        if let Some(path) = path
            && let Some(text) = read_file(path)?
        {
            sources.push(parse(display(path), &text, namespaced)?);
        }
        Ok(())
    };
    add(settings.registry_auth_file.as_ref(), true)?;
    add(settings.docker_config.as_ref(), false)?;
    settings.containers_auth_files.iter().try_for_each(|path| add(Some(path), true))?;
    Ok(sources)
}

pub(super) fn display(path: &Path) -> String {
    format!("`{}`", path.display())
}

pub(super) fn parse(origin: String, text: &str, namespaced: bool) -> Result<Source, KeychainError> {
    let file = match text.trim() {
        "" => RawFile::default(),
        text => serde_json::from_str(text)
            .map_err(|e| KeychainError::Syntax { origin: origin.clone(), line: e.line() })?,
    };
    Ok(Source { origin, namespaced, file })
}

impl Source {
    /// The entry for a host: namespaces longest first, then exact keys, then keys that are URLs of the host.
    fn entry(&self, host: &str, repository: &str) -> Option<(&str, &RawEntry)> {
        let auths = self.file.auths.as_ref()?;
        let get = |key: &str| auths.get_key_value(key).map(|(key, entry)| (key.as_str(), entry));
        if self.namespaced {
            let full = format!("{host}/{repository}");
            let borders = full.rmatch_indices('/').map(|(at, _)| at);
            for end in std::iter::once(full.len()).chain(borders).filter(|end| *end > host.len()) {
                if let Some(found) = get(&full[..end]) {
                    return Some(found);
                }
            }
        }
        server_keys(host).find_map(get).or_else(|| {
            auths
                .iter()
                .find(|(key, _)| server_keys(host).any(|server| host_of(key) == host_of(server)))
                .map(|(key, entry)| (key.as_str(), entry))
        })
    }
}

/// A key without scheme and path: old Docker versions stored `https://host/v2/`.
fn host_of(key: &str) -> &str {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    // A namespaced key (`host/team`) must not serve the whole host; only API paths are dropped.
    match bare.split_once('/') {
        Some((host, "" | "v1" | "v1/" | "v2" | "v2/")) => host,
        _ => bare,
    }
}

impl RawEntry {
    /// `None` for an empty entry, which Docker writes when a helper holds the secret.
    fn credentials(&self, origin: &str, key: &str) -> Result<Option<Credentials>, KeychainError> {
        let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = filled(&self.registry_token) {
            return Ok(Some(Credentials::RegistryToken(token)));
        }
        if let Some(token) = filled(&self.identity_token) {
            return Ok(Some(Credentials::IdentityToken(token)));
        }
        let Some(auth) = filled(&self.auth) else {
            return Ok(match (filled(&self.username), filled(&self.password)) {
                (Some(user), Some(password)) => Some(Credentials::Basic { user, password }),
                _ => None,
            });
        };
        let bad = || KeychainError::Auth { origin: origin.to_owned(), key: key.to_owned() };
        let bytes = STANDARD.decode(auth.trim()).map_err(|_| bad())?;
        let text = String::from_utf8(bytes).map_err(|_| bad())?;
        let (user, password) = text.split_once(':').filter(|(user, _)| !user.is_empty()).ok_or_else(bad)?;
        let password = password.trim_end_matches('\0');
        Ok(Some(Credentials::Basic { user: user.to_owned(), password: password.to_owned() }))
    }
}

#[cfg(test)]
mod tests;
