//! Blobs: one file per deed.

mod body;
mod chunk;
pub(crate) mod mount;
pub(crate) mod pull;
pub(crate) mod push;
mod session;
pub(crate) mod source;
pub(crate) mod stream;

use rbuild_oci::Digest;
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};

use crate::auth::Scope;
use crate::endpoint::Endpoint;
use crate::error::{RegistryError, Target};
use crate::transport::host::Presence;
use crate::transport::retry::Patience;
use crate::transport::{Address, Call, Transport};

/// Whether the repository has the blob.
pub(crate) async fn exists(
    transport: &Transport,
    endpoint: &Endpoint,
    digest: Digest,
    scope: Scope,
) -> Result<bool, RegistryError> {
    let target = target(endpoint, "look for", digest);
    let host = transport.host(endpoint);
    let call = Call {
        method: Method::HEAD,
        address: Address::Path(path(endpoint, digest)),
        scopes: vec![scope],
        headers: HeaderMap::new(),
        body: None,
        target: target.clone(),
        patience: Patience::Full,
    };
    let (answer, authorization) = transport.send(&host, &call).await?;
    if answer.status() == StatusCode::NOT_FOUND {
        host.note(&endpoint.repository, digest, Presence::Absent);
        return Ok(false);
    }
    transport.expect(answer, &[StatusCode::OK], &target, &authorization).await?;
    host.note(&endpoint.repository, digest, Presence::There);
    Ok(true)
}

fn path(endpoint: &Endpoint, digest: Digest) -> String {
    format!("/v2/{}/blobs/{digest}", endpoint.repository)
}

fn target(endpoint: &Endpoint, deed: &str, digest: Digest) -> Target {
    Target {
        host: endpoint.host.clone(),
        repository: endpoint.repository.clone(),
        action: format!("{deed} blob {}", digest.short()),
    }
}
