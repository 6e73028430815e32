//! Keeping and forgetting credentials: in a credential helper when Docker's `config.json` names one, else in the file.
//!
//! The file is the user's: fields rbuild does not know stay as they are, in their order; a file that is no JSON is an
//! error and is never written. It is replaced by one rename, behind symbolic links, with its mode and owner kept.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize as _;
use serde_json::{Map, Value, json};

use super::helper;
use super::keychain::KeychainError;
use super::server::Server;
use crate::Settings;
use crate::config::read_file;

/// Where credentials are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// In this credential helper (`docker-credential-<name>`).
    Helper(String),
    /// In this file, for everybody who can read it.
    File(PathBuf),
}

/// Keeps a name and password (or access token) for a registry.
///
/// Written is `REGISTRY_AUTH_FILE` when it is set, because it is read first; else Docker's `config.json`. On failure
/// the file is what it was.
pub async fn store_credentials(
    settings: &Settings,
    server: &Server,
    user: &str,
    secret: &str,
) -> Result<Kept, KeychainError> {
    let path = file(settings)?;
    let mut document = Document::read(path)?;
    let helper = document.helper(server);
    let entry = match &helper {
        Some(name) => {
            helper::store(name, server.key(), user, secret, settings.helper_path.as_deref()).await?;
            // An empty entry says that the helper has it.
            json!({})
        }
        None => json!({"auth": STANDARD.encode(format!("{user}:{secret}"))}),
    };
    document.set(server.key(), entry)?;
    document.write()?;
    Ok(helper.map_or_else(|| Kept::File(path.to_owned()), Kept::Helper))
}

/// Forgets what is kept for a registry, under every name it may have been kept. Nothing kept is no error.
pub async fn erase_credentials(settings: &Settings, server: &Server) -> Result<(), KeychainError> {
    let path = file(settings)?;
    let mut document = Document::read(path)?;
    let mut failed = None;
    if let Some(name) = document.helper(server) {
        for key in server.keys() {
            failed = failed.or(helper::erase(&name, &key, settings.helper_path.as_deref()).await.err());
        }
    }
    // The file's part is done whatever the helper said.
    if document.remove(&server.keys()) {
        document.write()?;
    }
    failed.map_or(Ok(()), Err)
}

fn file(settings: &Settings) -> Result<&Path, KeychainError> {
    let path = settings.registry_auth_file.as_deref().or(settings.docker_config.as_deref());
    path.ok_or(KeychainError::NoFile)
}

struct Document {
    path: PathBuf,
    fields: Map<String, Value>,
}

impl Document {
    fn read(path: &Path) -> Result<Self, KeychainError> {
        let origin = || format!("`{}`", path.display());
        let text = read_file(path)?.unwrap_or_default();
        let fields = match text.trim() {
            "" => Map::new(),
            text => match serde_json::from_str(text) {
                Ok(Value::Object(fields)) => fields,
                Ok(_) => return Err(KeychainError::Syntax { origin: origin(), line: 1 }),
                // The parser's message is left out: it can quote secrets.
                Err(error) => return Err(KeychainError::Syntax { origin: origin(), line: error.line() }),
            },
        };
        Ok(Self { path: path.to_owned(), fields })
    }

    /// The helper for a registry: its own, else the one for all.
    fn helper(&self, server: &Server) -> Option<String> {
        let helpers = self.fields.get("credHelpers").and_then(Value::as_object);
        let own = server.keys().iter().find_map(|key| helpers?.get(key)?.as_str());
        let all = || self.fields.get("credsStore")?.as_str();
        own.or_else(all).filter(|name| !name.is_empty()).map(str::to_owned)
    }

    fn set(&mut self, key: &str, entry: Value) -> Result<(), KeychainError> {
        let auths = self.fields.entry("auths").or_insert(Value::Null);
        if auths.is_null() {
            *auths = json!({});
        }
        let Some(auths) = auths.as_object_mut() else {
            return Err(KeychainError::Syntax { origin: format!("`{}`", self.path.display()), line: 1 });
        };
        auths.insert(key.to_owned(), entry);
        Ok(())
    }

    /// True when something was there.
    fn remove(&mut self, keys: &[String]) -> bool {
        let Some(auths) = self.fields.get_mut("auths").and_then(Value::as_object_mut) else { return false };
        let before = auths.len();
        auths.retain(|key, _| !keys.contains(key));
        auths.len() < before
    }

    fn write(&self) -> Result<(), KeychainError> {
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        let mut bytes = Vec::new();
        let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
        self.fields.serialize(&mut serializer).expect("a JSON value serialises into memory");
        bytes.push(b'\n');
        replace(&self.path, &bytes).map_err(|source| KeychainError::Write { path: self.path.clone(), source })
    }
}

/// Replaces a file, or what a symbolic link there points to, in one step. A new one is for its owner alone. What is there
/// and is no file, such as `/dev/null` behind a link, would keep nothing: an error, and it stays.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let target = match fs::canonicalize(path) {
        Ok(target) => target,
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
        Err(error) => return Err(error),
    };
    if fs::metadata(&target).is_ok_and(|found| !found.is_file()) {
        return Err(io::Error::other("it is no regular file"));
    }
    let dir = target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let temporary = dir.join(format!(".{name}.{}.partial", std::process::id()));
    let result = fill(&temporary, &target, bytes).and_then(|()| fs::rename(&temporary, &target));
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}

fn fill(temporary: &Path, target: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file: File = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
    if let Ok(old) = fs::metadata(target) {
        // Only root can give a file away; another user's file in our own directory becomes ours.
        let _ = std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()));
        file.set_permissions(fs::Permissions::from_mode(old.mode() & 0o777))?;
    }
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests;
