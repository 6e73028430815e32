//! Credential helpers: `docker-credential-<name> get|store|erase` (docker-credential-helpers protocol).
//!
//! The helper's standard error is discarded: some print secrets there.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Stdio;

use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::keychain::{Credentials, KeychainError};
use crate::error::escape;
use crate::limits::{HELPER_BYTES_MAX, HELPER_TIMEOUT};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// Asks a helper for a server. `None` when it knows none. `path` replaces `PATH` for the look-up.
pub(super) async fn get(
    helper: &str,
    server: &str,
    path: Option<&OsStr>,
) -> Result<Option<Credentials>, KeychainError> {
    let Some(output) = call(helper, "get", server.as_bytes(), path, None).await? else { return Ok(None) };
    // The parse error is dropped on purpose: it can quote the secret.
    let answer: Answer = serde_json::from_slice(&output)
        .map_err(|_| KeychainError::HelperAnswer { program: program(helper) })?;
    Ok(match (answer.username.as_str(), answer.secret.is_empty()) {
        (_, true) | ("", _) => None,
        ("<token>", _) => Some(Credentials::IdentityToken(answer.secret)),
        _ => Some(Credentials::Basic { user: answer.username, password: answer.secret }),
    })
}

/// Gives a helper a name and secret to keep.
pub(super) async fn store(
    helper: &str,
    server: &str,
    user: &str,
    secret: &str,
    path: Option<&OsStr>,
) -> Result<(), KeychainError> {
    let input = json!({"ServerURL": server, "Username": user, "Secret": secret}).to_string();
    match call(helper, "store", input.as_bytes(), path, Some(secret)).await? {
        Some(_) => Ok(()),
        None => Err(KeychainError::HelperAnswer { program: program(helper) }),
    }
}

/// Has a helper forget a server. One it does not know is no error.
pub(super) async fn erase(helper: &str, server: &str, path: Option<&OsStr>) -> Result<(), KeychainError> {
    call(helper, "erase", server.as_bytes(), path, None).await.map(drop)
}

fn program(helper: &str) -> String {
    format!("docker-credential-{helper}")
}

/// One call of the protocol: what the helper printed, or `None` when it knows nothing of the server. `secret` is kept
/// out of messages.
///
/// The child is killed when the future is dropped or the deadline passes.
async fn call(
    helper: &str,
    verb: &str,
    input: &[u8],
    path: Option<&OsStr>,
    secret: Option<&str>,
) -> Result<Option<Vec<u8>>, KeychainError> {
    if helper.is_empty() || helper.contains(['/', '\0']) {
        return Err(KeychainError::HelperName { helper: escape(helper) });
    }
    let program = program(helper);
    let failed = |source| KeychainError::HelperStart { program: program.clone(), source };
    let executable = find(&program, path).ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
    let mut child = Command::new(executable)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let (mut stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let conversation = async {
        if let Some(stdin) = stdin.as_mut() {
            // A helper that answers without reading its input closes the pipe: that is its right.
            let _ = stdin.write_all(input).await;
        }
        drop(stdin);
        let mut output = Vec::new();
        if let Some(stdout) = stdout {
            stdout.take(HELPER_BYTES_MAX).read_to_end(&mut output).await?;
        }
        Ok::<_, std::io::Error>((output, child.wait().await?))
    };
    let (output, status) = tokio::time::timeout(HELPER_TIMEOUT, conversation)
        .await
        .map_err(|_| KeychainError::HelperTimeout { program: program.clone() })?
        .map_err(failed)?;
    if status.success() {
        return Ok(Some(output));
    }
    let words = String::from_utf8_lossy(&output);
    let words = words.trim();
    if words.contains("credentials not found") || words.contains("no credentials server URL") {
        return Ok(None);
    }
    // Standard output of a failing helper is its message by protocol; it may repeat what it was given.
    let words = match secret.filter(|secret| !secret.is_empty()) {
        Some(secret) => words.replace(secret, "[secret]"),
        None => words.to_owned(),
    };
    Err(KeychainError::HelperRefused { program, words: escape(&words) })
}

/// The first file of that name in the given search path; without one the system looks in the process's own.
///
/// Relative entries are skipped: the current directory is a build context someone may have got from elsewhere.
fn find(program: &str, path: Option<&OsStr>) -> Option<PathBuf> {
    let Some(path) = path else { return Some(PathBuf::from(program)) };
    std::env::split_paths(path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}
