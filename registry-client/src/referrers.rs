//! What refers to an image: signatures, attestations (distribution specification, «Listing Referrers»).
//!
//! Registries without the API keep the same index under a tag made from the subject's digest; whoever pushes a
//! referrer there keeps that index up to date.

use rbuild_oci::{Descriptor, Digest, Document, Reference, media_type};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::endpoint::Endpoint;
use crate::error::{ErrorKind, RegistryError, Target};
use crate::manifests;
use crate::tags::pages;
use crate::transport::Transport;
use crate::transport::retry::Patience;

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

/// Descriptors of everything that names `subject`, of one artifact type or of all.
pub(crate) async fn list(
    transport: &Transport,
    endpoint: &Endpoint,
    subject: Digest,
    artifact_type: Option<&str>,
) -> Result<Vec<Descriptor>, RegistryError> {
    let target = Target {
        host: endpoint.host.clone(),
        repository: endpoint.repository.clone(),
        action: format!("list referrers of {}", subject.short()),
    };
    let mut found: Vec<Descriptor> = Vec::new();
    let path = format!("/v2/{}/referrers/{subject}", endpoint.repository);
    let answered = pages(transport, endpoint, path, &target, Patience::Full, |body| {
        let page: Page = serde_json::from_slice(body).ok()?;
        found.extend(page.manifests);
        Some(found.len())
    })
    .await;
    match answered {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            found = match index(transport, endpoint, subject).await? {
                Some((_, descriptors)) => descriptors,
                None => Vec::new(),
            };
        }
        Err(error) => return Err(error),
    }
    // Whatever filters a registry applies, ours decides.
    found.retain(|descriptor| {
        let own = descriptor.artifact_type().as_ref().map(ToString::to_string);
        artifact_type.is_none() || own.as_deref() == artifact_type
    });
    Ok(found)
}

/// Pushes a manifest with a `subject`; where the registry does not keep the list, the fallback index gets it too.
pub(crate) async fn push(
    transport: &Transport,
    endpoint: &Endpoint,
    to: &Reference,
    media_type: &str,
    bytes: Vec<u8>,
) -> Result<Digest, RegistryError> {
    let digest = Digest::of(&bytes);
    let (size, manifest) = (bytes.len(), serde_json::from_slice::<Value>(&bytes).unwrap_or_default());
    let to = to.at_digest(digest);
    let pushed = manifests::push(transport, endpoint, &to, media_type, bytes).await?;
    let subject = manifest["subject"]["digest"].as_str().and_then(|text| text.parse::<Digest>().ok());
    let Some(subject) = subject.filter(|_| !pushed.knows_subject) else { return Ok(digest) };
    let mut descriptor = json!({"mediaType": media_type, "digest": digest, "size": size});
    let artifact_type = match &manifest["artifactType"] {
        Value::Null => &manifest["config"]["mediaType"],
        own => own,
    };
    for (key, value) in [("artifactType", artifact_type), ("annotations", &manifest["annotations"])] {
        if !value.is_null() {
            descriptor[key] = value.clone();
        }
    }
    let mut entries = match index(transport, endpoint, subject).await? {
        Some((entries, _)) => entries,
        None => Vec::new(),
    };
    if entries.iter().all(|entry| entry["digest"] != descriptor["digest"]) {
        entries.push(descriptor);
        let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": entries});
        let tag = tag_of(&to, subject);
        manifests::push(transport, endpoint, &tag, media_type::OCI_INDEX, index.to_string().into_bytes())
            .await?;
    }
    Ok(digest)
}

/// The fallback index: its entries as written, and as descriptors.
async fn index(
    transport: &Transport,
    endpoint: &Endpoint,
    subject: Digest,
) -> Result<Option<(Vec<Value>, Vec<Descriptor>)>, RegistryError> {
    let name = format!("{}/{}", endpoint.host, endpoint.repository).parse::<Reference>();
    let Ok(name) = name else { return Ok(None) };
    match manifests::get(transport, endpoint, &tag_of(&name, subject), Patience::Full).await {
        Ok(stored) => Ok(match &stored.document {
            Document::Index(index) => {
                let raw: Value = serde_json::from_slice(&stored.bytes).unwrap_or_default();
                Some((raw["manifests"].as_array().cloned().unwrap_or_default(), index.manifests().clone()))
            }
            // Somebody uses the tag for something else.
            Document::Manifest(_) => None,
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// `sha256-<hex>`.
fn tag_of(repository: &Reference, subject: Digest) -> Reference {
    let text = format!("{}:sha256-{}", repository.name(), subject.hex());
    text.parse().expect("a digest in hex makes a tag")
}
