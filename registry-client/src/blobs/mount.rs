//! Cross-repository mounts: a blob the registry has elsewhere, without sending it.

use rbuild_oci::{Digest, Reference};
use reqwest::header::{CONTENT_LENGTH, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};

use crate::auth::Scope;
use crate::endpoint::Endpoint;
use crate::error::{ErrorKind, RegistryError};
use crate::transport::host::Presence;
use crate::transport::retry::Patience;
use crate::transport::{Address, Call, Transport};

/// Mounts a blob from another repository of the same registry. False when the registry wants it uploaded instead,
/// for whatever reason: mounting is only ever a saving.
pub(crate) async fn mount(
    transport: &Transport,
    endpoint: &Endpoint,
    digest: Digest,
    from: &str,
) -> Result<bool, RegistryError> {
    // The grammar keeps what goes into a query and a scope free of surprises.
    if format!("localhost/{from}").parse::<Reference>().is_err() || from == endpoint.repository {
        return Ok(false);
    }
    let target = super::target(endpoint, "mount", digest);
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    let address = format!("/v2/{}/blobs/uploads/?mount={digest}&from={from}", endpoint.repository);
    let call = Call {
        method: Method::POST,
        address: Address::Path(address),
        scopes: vec![Scope::push(&endpoint.repository), Scope::pull(from)],
        headers,
        body: None,
        target,
        patience: Patience::Full,
    };
    let host = transport.host(endpoint);
    let answer = match transport.send(&host, &call).await {
        Ok((answer, _)) => answer,
        // Token servers that refuse two scopes at once, or the source repository: the upload decides.
        Err(error)
            if matches!(error.kind(), ErrorKind::Unauthorized | ErrorKind::Denied | ErrorKind::Protocol) =>
        {
            return Ok(false);
        }
        Err(error) => return Err(error),
    };
    // A 202 opened an upload session that nobody will use: registries purge those.
    let is_mounted = answer.status() == StatusCode::CREATED;
    host.note(&endpoint.repository, digest, if is_mounted { Presence::There } else { Presence::Absent });
    Ok(is_mounted)
}
