//! ECR tokens between runs: they are good for twelve hours, and asking for one takes longer than a cached build.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use rbuild_oci::Digest;
use serde_json::{Value, json};

use super::Token;
use super::profile::AwsEnv;
use crate::config::read_file;

/// The file for one identity and service.
pub(super) struct File {
    path: PathBuf,
}

impl File {
    /// Below `AWS_ECR_CACHE_DIR` or `~/.ecr`; `None` when caching is switched off or there is no place.
    pub(super) fn of(env: &AwsEnv, key: &str) -> Option<Self> {
        if env.get("AWS_ECR_DISABLE_CACHE").is_some() {
            return None;
        }
        let dir = match env.get("AWS_ECR_CACHE_DIR") {
            Some(dir) => env.path(dir),
            None => env.home.as_ref()?.join(".ecr"),
        };
        // A name that tells nothing; the amazon-ecr-credential-helper keeps its own file beside it.
        let name = format!("rbuild-{}.json", &Digest::of(key.as_bytes()).hex()[..32]);
        Some(Self { path: dir.join(name) })
    }

    /// Whatever is wrong with the file, asking again is the remedy. A file of somebody else's, or that others can
    /// read, is as good as none.
    pub(super) fn read(&self) -> Option<Token> {
        let meta = fs::symlink_metadata(&self.path).ok()?;
        if !meta.is_file() || meta.mode() & 0o077 != 0 || meta.uid() != fs::metadata("/proc/self").ok()?.uid()
        {
            return None;
        }
        let json: Value = serde_json::from_str(&read_file(&self.path).ok()??).ok()?;
        let authorization = json["authorizationToken"].as_str()?.to_owned();
        Some(Token { authorization, expires: json["expiresAt"].as_u64()? })
    }

    /// Writes for the next run; not being able to costs that run a second.
    pub(super) fn write(&self, token: &Token) {
        let Some(dir) = self.path.parent() else { return };
        let json = json!({"authorizationToken": token.authorization, "expiresAt": token.expires});
        let temporary = dir.join(format!(".rbuild-{}.partial", std::process::id()));
        let write = || {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(json.to_string().as_bytes())?;
            fs::rename(&temporary, &self.path)
        };
        if write().is_err() {
            let _ = fs::remove_file(&temporary);
        }
    }
}
