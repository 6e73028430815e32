//! Whether every destination of a build can be pushed to, asked before anything runs.
//!
//! Half an hour of building that ends in «access denied» is the worst way to learn of a missing login. One upload is
//! opened and cancelled per repository, all at once; nothing is left behind.

use rbuild_oci::Reference;
use rbuild_registry::{Client, RegistryError};

use crate::error::BuildError;

/// Asks all destinations. The error names each that refuses.
pub async fn preflight(client: &Client, names: &[Reference]) -> Result<(), BuildError> {
    let mut repositories: Vec<&Reference> = Vec::new();
    for name in names {
        if repositories.iter().all(|other| other.name() != name.name()) {
            repositories.push(name);
        }
    }
    let asked = repositories.iter().map(|name| client.push_permission(name));
    let answers = futures_util::future::join_all(asked).await;
    let mut refused: Vec<(String, RegistryError)> = repositories
        .iter()
        .zip(answers)
        .filter_map(|(name, answer)| Some((name.familiar_name(), answer.err()?)))
        .collect();
    if refused.is_empty() {
        return Ok(());
    }
    let (reference, source) = refused.remove(0);
    Err(BuildError::Preflight { reference, source: Box::new(source), others: refused })
}
