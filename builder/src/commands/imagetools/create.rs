//! `rbuild imagetools create`: several images become one index, at the registry.
//!
//! Matrix builds push each platform by digest and join them here. A source that is an index gives its entries; a
//! single image gives itself, with the platform its config says.

use rbuild_oci::{Digest, Document, Reference, media_type};
use rbuild_registry::{Client, StoredManifest};
use serde_json::{Value, json};

use super::{config_of, copy, descriptor, entries, failed, identity, platform_of, platform_text};
use crate::assemble::attestation::REFERENCE_DIGEST;
use crate::cli::{ImagetoolsCreate, ImagetoolsSource};
use crate::commands::{ImageError, print, unless_canceled, with_signals};
use crate::error::BuildError;
use crate::export::place;

/// What is to be pushed.
struct Joined {
    media_type: String,
    bytes: Vec<u8>,
}

/// A source, found.
struct Source {
    reference: Reference,
    stored: StoredManifest,
    /// Overrides from a descriptor that the user wrote.
    written: Option<Value>,
}

/// Joins the sources and pushes the result under every name; with `--dry-run`, prints it.
pub(super) fn run(request: &ImagetoolsCreate, client: &Client) -> Result<(), BuildError> {
    let text = with_signals(async |cancel| unless_canceled(&cancel, create(request, client)).await)?;
    print(&text)
}

async fn create(request: &ImagetoolsCreate, client: &Client) -> Result<String, BuildError> {
    let mut sources = Vec::new();
    if request.append {
        for name in &request.tags {
            sources.push(find(client, name, None).await?);
        }
    }
    for source in &request.sources {
        let (name, written) = (place(request, source)?, source.descriptor.clone());
        sources.push(find(client, &name, written).await?);
    }
    let result = match sources.as_slice() {
        // One that is whole already stays what it is.
        [one] if is_index(one) && request.annotations.is_empty() && request.platforms.is_empty() => {
            Joined { media_type: one.stored.media_type.clone(), bytes: one.stored.bytes.clone() }
        }
        [one] if !request.prefer_index && request.annotations.is_empty() => {
            Joined { media_type: one.stored.media_type.clone(), bytes: one.stored.bytes.clone() }
        }
        _ => join(request, client, &sources).await?,
    };
    if request.dry_run {
        let json: Value = serde_json::from_slice(&result.bytes).unwrap_or_default();
        return Ok(format!("{}\n", serde_json::to_string_pretty(&json).unwrap_or_default()));
    }
    let mut text = String::new();
    let digest = Digest::of(&result.bytes);
    for name in &request.tags {
        for source in &sources {
            let copied = copy::copy(client, &source.reference, name, &source.stored).await;
            copied.map_err(|e| failed(name, e))?;
        }
    }
    // Tags last, when everything is everywhere.
    for name in &request.tags {
        let pushed = client.push_manifest(name, &result.media_type, result.bytes.clone()).await;
        pushed.map_err(|e| failed(name, e))?;
        text.push_str(&format!("{}@{digest}\n", name.name()));
    }
    if let Some(path) = &request.metadata_file {
        let names: Vec<String> = request.tags.iter().map(ToString::to_string).collect();
        let metadata = json!({
            "containerimage.descriptor": {
                "mediaType": result.media_type,
                "digest": digest,
                "size": result.bytes.len(),
            },
            "containerimage.digest": digest,
            "image.name": names.join(","),
        });
        let text = serde_json::to_string_pretty(&metadata).unwrap_or_default();
        place::write_bytes(path, text.as_bytes())?;
    }
    Ok(text)
}

/// Where a source is: as written, or in the repository of the first name when only a digest was given.
fn place(request: &ImagetoolsCreate, source: &ImagetoolsSource) -> Result<Reference, BuildError> {
    if let Some(reference) = &source.reference {
        return Ok(reference.clone());
    }
    let digest = source.descriptor.as_ref().and_then(identity).map(|(digest, _)| digest).or(source.digest);
    match (request.tags.first(), digest) {
        (Some(name), Some(digest)) => Ok(name.at_digest(digest)),
        _ => Err(ImageError::NoRepository.into()),
    }
}

async fn find(client: &Client, reference: &Reference, written: Option<Value>) -> Result<Source, BuildError> {
    let stored = client.manifest(reference).await.map_err(|e| failed(reference, e))?;
    Ok(Source { reference: reference.clone(), stored, written })
}

fn is_index(source: &Source) -> bool {
    matches!(source.stored.document, Document::Index(_))
}

async fn join(request: &ImagetoolsCreate, client: &Client, sources: &[Source]) -> Result<Joined, BuildError> {
    let mut all: Vec<Value> = Vec::new();
    for source in sources {
        match is_index(source) {
            true => all.extend(entries(&source.stored)),
            false => {
                let config = config_of(client, &source.reference, &source.stored).await;
                let config = config.map_err(|e| failed(&source.reference, e))?;
                let platform = config.as_ref().and_then(platform_of);
                let mut entry = descriptor(&source.stored, platform.as_ref());
                for key in ["annotations", "platform", "artifactType"] {
                    if let Some(value) = source.written.as_ref().and_then(|written| written.get(key)) {
                        entry[key] = value.clone();
                    }
                }
                all.push(entry);
            }
        }
    }
    let mut joined: Vec<Value> = Vec::new();
    for entry in all {
        let platform = platform_text(&entry);
        let wanted = |platform: &str| request.platforms.iter().any(|wanted| wanted.to_string() == platform);
        // What is said about an image goes where that goes.
        let is_about = !entry["annotations"][REFERENCE_DIGEST].is_null();
        if !request.platforms.is_empty() && !is_about && !platform.as_deref().is_some_and(wanted) {
            continue;
        }
        // A later source of a platform takes the place of an earlier one, as does one of the same digest.
        joined.retain(|other| {
            let same_platform = platform.is_some()
                && platform_text(other) == platform
                && platform.as_deref() != Some("unknown/unknown");
            other["digest"] != entry["digest"] && !same_platform
        });
        joined.push(entry);
    }
    // Attestations of images that are not here any more would point nowhere.
    let digests: Vec<Value> = joined.iter().map(|entry| entry["digest"].clone()).collect();
    joined.retain(|entry| {
        let subject = &entry["annotations"][REFERENCE_DIGEST];
        subject.is_null() || digests.contains(subject)
    });
    if joined.is_empty() {
        return Err(ImageError::NothingToJoin.into());
    }
    let is_docker = joined.iter().all(|entry| entry["mediaType"] == media_type::DOCKER_MANIFEST);
    let kind = match is_docker && request.annotations.is_empty() {
        true => media_type::DOCKER_LIST,
        false => media_type::OCI_INDEX,
    };
    let mut index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": joined});
    for (key, value) in &request.annotations {
        index["annotations"][key.as_str()] = json!(value);
    }
    let bytes = serde_json::to_vec_pretty(&index).unwrap_or_default();
    Ok(Joined { media_type: kind.to_owned(), bytes })
}
