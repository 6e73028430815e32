//! `rbuild imagetools`: images at registries, looked at and joined there. No store is opened and no layer is unpacked.

mod copy;
mod create;
mod inspect;

use rbuild_oci::{Digest, Document, Platform, Reference};
use rbuild_registry::{Client, RegistryError, StoredManifest};
use serde_json::{Value, json};

use super::ImageError;
use crate::cli::ImagetoolsRequest;
use crate::error::BuildError;
use crate::settings::Settings;

/// Runs the command.
pub(super) fn run(request: &ImagetoolsRequest, settings: &Settings) -> Result<(), BuildError> {
    let client = Client::new(settings.registry.clone())?;
    match request {
        ImagetoolsRequest::Inspect(request) => inspect::run(request, &client),
        ImagetoolsRequest::Create(request) => create::run(request, &client),
    }
}

/// A failed question to a registry.
fn failed(reference: &Reference, source: RegistryError) -> BuildError {
    ImageError::Remote { reference: reference.familiar(), source: Box::new(source) }.into()
}

/// The descriptor of a stored document. `platform` is that of a single image.
fn descriptor(stored: &StoredManifest, platform: Option<&Platform>) -> Value {
    let mut descriptor = json!({
        "mediaType": stored.media_type,
        "digest": stored.digest,
        "size": stored.bytes.len(),
    });
    if let Some(platform) = platform {
        descriptor["platform"] = platform_json(platform);
    }
    descriptor
}

fn platform_json(platform: &Platform) -> Value {
    let mut json = json!({"architecture": platform.architecture, "os": platform.os});
    if let Some(variant) = &platform.variant {
        json["variant"] = json!(variant);
    }
    json
}

/// The platform of an index entry, as people write it.
fn platform_text(entry: &Value) -> Option<String> {
    let platform = entry.get("platform")?;
    let text = |key: &str| platform.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let base = format!("{}/{}", text("os")?, text("architecture")?);
    Some(match text("variant") {
        Some(variant) => format!("{base}/{variant}"),
        None => base,
    })
}

/// The entries of an index as written, with fields this program does not know.
fn entries(stored: &StoredManifest) -> Vec<Value> {
    let document: Value = serde_json::from_slice(&stored.bytes).unwrap_or_default();
    document["manifests"].as_array().cloned().unwrap_or_default()
}

/// The digest and size of an entry that can be fetched.
fn identity(entry: &Value) -> Option<(Digest, u64)> {
    Some((entry["digest"].as_str()?.parse().ok()?, entry["size"].as_u64()?))
}

/// The config of a single image, as its bytes say.
async fn config_of(
    client: &Client,
    reference: &Reference,
    stored: &StoredManifest,
) -> Result<Option<Value>, RegistryError> {
    let Document::Manifest(manifest) = &stored.document else { return Ok(None) };
    let config = manifest.config();
    let Ok(digest) = config.digest().to_string().parse::<Digest>() else { return Ok(None) };
    let bytes = client.small_blob(reference, digest, config.size()).await?;
    Ok(serde_json::from_slice(&bytes).ok())
}

fn platform_of(config: &Value) -> Option<Platform> {
    let text = |key: &str| config.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    Some(Platform::new(text("os")?, text("architecture")?, text("variant")))
}
