//! `credential_process`: a program of the user's that prints keys.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::credentials::problem;
use super::sigv4::Keys;
use super::{now, time};
use crate::auth::KeychainError;
use crate::limits::{HELPER_BYTES_MAX, HELPER_TIMEOUT};

/// Runs the command line of a profile, as AWS's own tools do, and reads the keys it prints.
///
/// Its standard error and what it prints instead of keys are not repeated: they may hold secrets.
pub(super) async fn keys(command: &str) -> Result<Keys, KeychainError> {
    let failed = |why: &str| problem(format!("`credential_process` {why}"));
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(&format!("cannot be started: {error}")))?;
    let stdout = child.stdout.take();
    let run = async {
        let mut output = Vec::new();
        if let Some(stdout) = stdout {
            stdout.take(HELPER_BYTES_MAX).read_to_end(&mut output).await?;
        }
        Ok::<_, std::io::Error>((output, child.wait().await?))
    };
    let (output, status) = tokio::time::timeout(HELPER_TIMEOUT, run)
        .await
        .map_err(|_| failed("did not answer in time"))?
        .map_err(|error| failed(&format!("broke: {error}")))?;
    if !status.success() {
        return Err(failed(&format!("failed ({status}): run it by hand to see why")));
    }
    let json: Value = serde_json::from_slice(&output).map_err(|_| failed("did not print credentials"))?;
    if json["Version"] != 1 {
        return Err(failed("printed credentials of another version than 1"));
    }
    if json["Expiration"].as_str().and_then(time::parse).is_some_and(|expires| expires <= now()) {
        return Err(failed("printed credentials that have expired"));
    }
    let text = |key: &str| json[key].as_str().map(str::to_owned);
    match (text("AccessKeyId"), text("SecretAccessKey")) {
        (Some(id), Some(secret)) => Ok(Keys { id, secret, session: text("SessionToken") }),
        _ => Err(failed("did not print credentials")),
    }
}
