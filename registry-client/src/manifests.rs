//! Manifests: from a tag or digest to one image, verified; and back.

use bytes::Bytes;
use rbuild_oci::{Descriptor, Digest, Document, ImageConfig, Manifest, Platform, Reference, media_type};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};

use crate::auth::Scope;
use crate::blobs::pull;
use crate::endpoint::Endpoint;
use crate::error::{RegistryError, Target, Violation, escape};
use crate::limits::{CONFIG_BYTES_MAX, INDEX_DEPTH_MAX, MANIFEST_BYTES_MAX};
use crate::transport::retry::Patience;
use crate::transport::{Address, Call, Transport};

/// An image found at a registry: its manifest and config, verified. Layers are not fetched.
#[derive(Debug, Clone)]
pub struct ResolvedImage {
    /// The reference asked for.
    pub reference: Reference,
    /// Digest of what the reference itself names: the index for a multi-platform image, else the manifest.
    pub index_digest: Digest,
    /// Digest of the image manifest.
    pub manifest_digest: Digest,
    /// Its exact bytes.
    pub manifest_bytes: Vec<u8>,
    /// Its media type.
    pub media_type: String,
    /// Its parsed form.
    pub manifest: Manifest,
    /// Digest of the image config: Docker's image id.
    pub config_digest: Digest,
    /// The config's exact bytes.
    pub config_bytes: Vec<u8>,
    /// The config, parsed. Its platform may differ from the one asked for when the image is not multi-platform.
    pub config: ImageConfig,
    /// Host that served all of it: the registry or a mirror.
    pub served_by: String,
}

/// What manifest requests accept. Docker's schema 1 is left out on purpose.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// A manifest or index as a registry has it, verified.
#[derive(Debug, Clone)]
pub struct StoredManifest {
    /// Digest of its bytes.
    pub digest: Digest,
    /// Its exact bytes.
    pub bytes: Vec<u8>,
    /// Its media type.
    pub media_type: String,
    /// What it says.
    pub document: Document,
}

/// Resolves a reference at one endpoint. The digest found first is used throughout, whatever the tag does meanwhile.
pub(crate) async fn resolve(
    transport: &Transport,
    endpoint: &Endpoint,
    reference: &Reference,
    platform: &Platform,
    patience: Patience,
) -> Result<ResolvedImage, RegistryError> {
    let named = named(reference);
    let mut fetched = fetch(transport, endpoint, &named, reference.digest(), None, patience).await?;
    let index_digest = fetched.digest;
    let (mut depth, mut stated) = (0, None);
    let manifest = loop {
        match fetched.document {
            Document::Manifest(manifest) => break *manifest,
            Document::Index(index) => {
                let target = manifest_target(endpoint, &named);
                depth += 1;
                if depth > INDEX_DEPTH_MAX {
                    return Err(protocol(target, Violation::IndexDepth));
                }
                let Some(chosen) = Document::choose(&index, platform) else {
                    let available = index.manifests().iter().filter_map(platform_of).collect();
                    let wanted = platform.clone();
                    return Err(RegistryError::NoPlatform { target: Box::new(target), wanted, available });
                };
                let digest = digest_of(chosen, &target)?;
                let (size, kind) = (Some(chosen.size()), chosen.media_type().to_string());
                stated = platform_of(chosen);
                fetched =
                    fetch(transport, endpoint, &digest.to_string(), Some(digest), size, patience).await?;
                if fetched.media_type != kind {
                    let (stated, found) = (escape(&kind), escape(&fetched.media_type));
                    return Err(protocol(target, Violation::EntryType { stated, found }));
                }
            }
        }
    };
    let target = Target { action: format!("pull config of `{named}`"), ..manifest_target(endpoint, &named) };
    let config_type = manifest.config().media_type().to_string();
    if !matches!(config_type.as_str(), media_type::OCI_CONFIG | media_type::DOCKER_CONFIG) {
        return Err(protocol(target, Violation::NotAnImage(escape(&config_type))));
    }
    let config_digest = digest_of(manifest.config(), &target)?;
    let size = manifest.config().size();
    if size > CONFIG_BYTES_MAX {
        return Err(RegistryError::TooLarge { target: Box::new(target), limit: CONFIG_BYTES_MAX });
    }
    let config_bytes = pull::whole(transport, endpoint, config_digest, size, patience).await?;
    let config = ImageConfig::parse(&config_bytes)
        .map_err(|source| RegistryError::Config { target: Box::new(target.clone()), source })?;
    if config.rootfs.kind != "layers" {
        return Err(protocol(target, Violation::RootFs(escape(&config.rootfs.kind))));
    }
    // Variants are left out: configs often lack them.
    let own = &config.platform;
    if let Some(stated) = stated
        && (&stated.os, &stated.architecture) != (&own.os, &own.architecture)
    {
        let found = Platform::new(&escape(&own.os), &escape(&own.architecture), None);
        return Err(protocol(target, Violation::EntryPlatform { stated, found }));
    }
    let (layers, diff_ids) = (manifest.layers().len(), config.rootfs.diff_ids.len());
    if layers != diff_ids {
        return Err(protocol(target, Violation::LayerCount { layers, diff_ids }));
    }
    Ok(ResolvedImage {
        reference: reference.clone(),
        index_digest,
        manifest_digest: fetched.digest,
        manifest_bytes: fetched.bytes,
        media_type: fetched.media_type,
        manifest,
        config_digest,
        config_bytes,
        config,
        served_by: endpoint.host.clone(),
    })
}

/// The document a reference itself names, index or manifest.
pub(crate) async fn get(
    transport: &Transport,
    endpoint: &Endpoint,
    reference: &Reference,
    patience: Patience,
) -> Result<StoredManifest, RegistryError> {
    fetch(transport, endpoint, &named(reference), reference.digest(), None, patience).await
}

/// The digest a registry says a reference has; `None` when there is no such manifest, or the registry does not say.
pub(crate) async fn head(
    transport: &Transport,
    endpoint: &Endpoint,
    reference: &Reference,
    scope: Scope,
    patience: Patience,
) -> Result<Option<Digest>, RegistryError> {
    let named = named(reference);
    let target = Target { action: format!("look for `{named}`"), ..manifest_target(endpoint, &named) };
    let call = manifest_call(Method::HEAD, endpoint, &named, scope, &target);
    let (answer, authorization) =
        transport.send(&transport.host(endpoint), &Call { patience, ..call }).await?;
    if answer.status() == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    let answer = transport.expect(answer, &[StatusCode::OK], &target, &authorization).await?;
    let digest = answer.headers().get("docker-content-digest");
    Ok(digest.and_then(|value| value.to_str().ok()?.parse().ok()))
}

/// Removes a manifest (by digest) or a tag where the registry can. Nothing there is an error.
pub(crate) async fn delete(
    transport: &Transport,
    endpoint: &Endpoint,
    reference: &Reference,
) -> Result<(), RegistryError> {
    let named = named(reference);
    let target = Target { action: format!("delete `{named}`"), ..manifest_target(endpoint, &named) };
    let call = manifest_call(Method::DELETE, endpoint, &named, Scope::delete(&endpoint.repository), &target);
    let (answer, authorization) = transport.send(&transport.host(endpoint), &call).await?;
    let expected = [StatusCode::ACCEPTED, StatusCode::OK, StatusCode::NO_CONTENT];
    transport.expect(answer, &expected, &target, &authorization).await.map(drop)
}

/// What a reference names at its repository.
fn named(reference: &Reference) -> String {
    match reference.digest() {
        Some(digest) => digest.to_string(),
        None => reference.tag_or_latest().to_owned(),
    }
}

fn manifest_call(method: Method, endpoint: &Endpoint, named: &str, scope: Scope, target: &Target) -> Call {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static(ACCEPTED));
    Call {
        method,
        address: Address::Path(format!("/v2/{}/manifests/{named}", endpoint.repository)),
        scopes: vec![scope],
        headers,
        body: None,
        target: target.clone(),
        patience: Patience::Full,
    }
}

/// Fetches one manifest or index by tag or digest, checking whatever is known of it beforehand.
async fn fetch(
    transport: &Transport,
    endpoint: &Endpoint,
    named: &str,
    expected: Option<Digest>,
    size: Option<u64>,
    patience: Patience,
) -> Result<StoredManifest, RegistryError> {
    let target = manifest_target(endpoint, named);
    let call = manifest_call(Method::GET, endpoint, named, Scope::pull(&endpoint.repository), &target);
    let host = transport.host(endpoint);
    let (answer, authorization) = transport.send(&host, &Call { patience, ..call }).await?;
    host.told(answer.headers());
    let answer = transport.expect(answer, &[StatusCode::OK], &target, &authorization).await?;
    let content_type = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    // Parameters such as a charset do not belong to the type.
    let content_type =
        content_type.and_then(|text| text.split(';').next()).map(|text| text.trim().to_owned());
    let bytes = transport.body(answer, MANIFEST_BYTES_MAX, &target).await?;
    let digest = Digest::of(&bytes);
    if let Some(expected) = size.filter(|size| *size != bytes.len() as u64) {
        let actual = bytes.len() as u64;
        return Err(RegistryError::SizeMismatch { target: Box::new(target), expected, actual });
    }
    if let Some(expected) = expected.filter(|expected| *expected != digest) {
        return Err(RegistryError::DigestMismatch { target: Box::new(target), expected, actual: digest });
    }
    let document = Document::parse(&bytes, content_type.as_deref())
        .map_err(|source| RegistryError::Manifest { target: Box::new(target), source })?;
    let media_type = media_type_of(&document, content_type);
    Ok(StoredManifest { digest, bytes, media_type, document })
}

/// The type the document states, else the transport's, else OCI's.
fn media_type_of(document: &Document, content_type: Option<String>) -> String {
    let (stated, default) = match document {
        Document::Manifest(manifest) => (manifest.media_type().as_ref(), media_type::OCI_MANIFEST),
        Document::Index(index) => (index.media_type().as_ref(), media_type::OCI_INDEX),
    };
    let known = |text: &String| {
        [
            media_type::OCI_MANIFEST,
            media_type::OCI_INDEX,
            media_type::DOCKER_MANIFEST,
            media_type::DOCKER_LIST,
        ]
        .contains(&text.as_str())
    };
    stated.map(ToString::to_string).or(content_type.filter(known)).unwrap_or_else(|| default.to_owned())
}

/// Stores a manifest under the reference's digest or tag and returns its digest.
///
/// Everything it names must be there already. Safe to repeat.
pub(crate) async fn push(
    transport: &Transport,
    endpoint: &Endpoint,
    reference: &Reference,
    media_type: &str,
    bytes: Vec<u8>,
) -> Result<Pushed, RegistryError> {
    let digest = Digest::of(&bytes);
    let named = match (reference.tag(), reference.digest()) {
        (Some(tag), _) => tag.to_owned(),
        (None, Some(named)) => named.to_string(),
        (None, None) => reference.tag_or_latest().to_owned(),
    };
    let target = Target { action: format!("push manifest `{named}`"), ..manifest_target(endpoint, &named) };
    if let Some(expected) = reference.digest().filter(|named| *named != digest) {
        return Err(RegistryError::DigestMismatch { target: Box::new(target), expected, actual: digest });
    }
    let mut headers = HeaderMap::new();
    let value = HeaderValue::from_str(media_type)
        .map_err(|_| protocol(target.clone(), Violation::MediaType(escape(media_type))))?;
    headers.insert(CONTENT_TYPE, value);
    let host = transport.host(endpoint);
    let call = Call {
        method: Method::PUT,
        address: Address::Path(format!("/v2/{}/manifests/{named}", endpoint.repository)),
        scopes: vec![Scope::push(&endpoint.repository)],
        headers,
        body: Some(Bytes::from(bytes)),
        target: target.clone(),
        patience: Patience::Full,
    };
    let (answer, authorization) = transport.send(&host, &call).await?;
    let expected = [StatusCode::CREATED, StatusCode::OK, StatusCode::ACCEPTED];
    let answer = transport.expect(answer, &expected, &target, &authorization).await?;
    match answer.headers().get("docker-content-digest").and_then(|value| value.to_str().ok()) {
        Some(reported) if reported != digest.to_string() => {
            Err(protocol(target, Violation::StoredDigest { sent: digest, reported: escape(reported) }))
        }
        _ => Ok(Pushed { digest, knows_subject: answer.headers().contains_key("oci-subject") }),
    }
}

/// A manifest as a registry took it.
pub(crate) struct Pushed {
    pub(crate) digest: Digest,
    /// The registry said that it keeps the list of referrers itself.
    pub(crate) knows_subject: bool,
}

fn manifest_target(endpoint: &Endpoint, named: &str) -> Target {
    Target {
        host: endpoint.host.clone(),
        repository: endpoint.repository.clone(),
        action: format!("pull manifest `{named}`"),
    }
}

fn platform_of(descriptor: &Descriptor) -> Option<Platform> {
    let platform = descriptor.platform().as_ref()?;
    let variant = platform.variant().as_deref();
    let found = Platform::new(&platform.os().to_string(), &platform.architecture().to_string(), variant);
    (found.os != "unknown").then_some(found)
}

/// The digest of a descriptor as one we can verify.
fn digest_of(descriptor: &Descriptor, target: &Target) -> Result<Digest, RegistryError> {
    let text = descriptor.digest().to_string();
    text.parse().map_err(|_| protocol(target.clone(), Violation::DescriptorDigest(escape(&text))))
}

fn protocol(target: Target, violation: Violation) -> RegistryError {
    RegistryError::Protocol { target: Box::new(target), violation }
}
