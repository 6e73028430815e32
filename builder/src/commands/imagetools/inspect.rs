//! `rbuild imagetools inspect`.

use std::fmt::Write as _;
use std::io::Write as _;

use rbuild_oci::{Document, Reference};
use rbuild_registry::{Client, StoredManifest};
use serde_json::{Map, Value, json};

use super::{config_of, entries, failed, identity, platform_text};
use crate::assemble::attestation::{
    ATTESTATION, PREDICATE_TYPE, REFERENCE_DIGEST, REFERENCE_TYPE, STATEMENT_BYTES_MAX,
};
use crate::cli::ImagetoolsInspect;
use crate::commands::{ImageError, print, unless_canceled, with_signals};
use crate::error::BuildError;
use crate::template::{Shape, Template};

const VIEW: Shape = Shape::Struct(&[
    ("Name", Shape::Text),
    ("Manifest", Shape::Any),
    ("Image", Shape::Any),
    ("Provenance", Shape::Any),
    ("SBOM", Shape::Any),
]);

/// Prints the document's bytes, a summary, or what the template says.
pub(super) fn run(request: &ImagetoolsInspect, client: &Client) -> Result<(), BuildError> {
    let format = request.format.as_deref().filter(|format| !format.is_empty());
    let template = format.map(Template::parse).transpose().map_err(ImageError::from)?;
    let text = with_signals(async |cancel| {
        unless_canceled(&cancel, async {
            let stored = client.manifest(&request.name).await.map_err(|e| failed(&request.name, e))?;
            if request.raw {
                return Ok(stored.bytes);
            }
            let Some(template) = &template else { return Ok(summary(&request.name, &stored).into_bytes()) };
            let view = view(client, request, &stored, format.unwrap_or_default()).await?;
            let text = template.render(&view, &VIEW).map_err(ImageError::from)?;
            Ok(format!("{text}\n").into_bytes())
        })
        .await
    })?;
    if !request.raw {
        return print(&String::from_utf8_lossy(&text));
    }
    // The exact bytes: their digest is the image's.
    let mut out = std::io::stdout().lock();
    let written = out.write_all(&text).and_then(|()| out.flush());
    written.map_err(|source| BuildError::Export { path: "standard output".into(), source })
}

/// As `docker buildx imagetools inspect` prints it.
fn summary(name: &Reference, stored: &StoredManifest) -> String {
    let mut text = String::new();
    let line = |text: &mut String, indent: &str, key: &str, value: &str| {
        let _ = writeln!(text, "{indent}{:<width$} {value}", format!("{key}:"), width = 10);
    };
    line(&mut text, "", "Name", &name.to_string());
    line(&mut text, "", "MediaType", &stored.media_type);
    line(&mut text, "", "Digest", &stored.digest.to_string());
    if !matches!(stored.document, Document::Index(_)) {
        return text;
    }
    text.push_str("           \nManifests: \n");
    let printable = |text: &str| text.chars().filter(|c| !c.is_control()).collect::<String>();
    let entries = entries(stored);
    for (index, entry) in entries.iter().enumerate() {
        if index > 0 {
            text.push_str("               \n");
        }
        let of = |key: &str| printable(entry[key].as_str().unwrap_or_default());
        let mut row = |key: &str, value: &str| {
            let _ = writeln!(text, "  {:<12} {value}", format!("{key}:"));
        };
        row("Name", &format!("{}@{}", name.name(), of("digest")));
        row("MediaType", &of("mediaType"));
        if let Some(platform) = platform_text(entry) {
            row("Platform", &printable(&platform));
        }
        if let Some(annotations) = entry["annotations"].as_object().filter(|map| !map.is_empty()) {
            row("Annotations", "");
            let mut pairs: Vec<_> = annotations.iter().collect();
            pairs.sort_by(|a, b| a.0.cmp(b.0));
            for (key, value) in pairs {
                let value = printable(value.as_str().unwrap_or_default());
                let _ = writeln!(text, "    {}: {value}", printable(key));
            }
        }
    }
    text
}

/// What templates see. Configs and attestations are fetched only when the template names them.
async fn view(
    client: &Client,
    request: &ImagetoolsInspect,
    stored: &StoredManifest,
    format: &str,
) -> Result<Value, BuildError> {
    let name = &request.name;
    let wants = |field: &str| format.contains(&format!(".{field}")) || format.contains("json .}");
    let mut manifest: Value = serde_json::from_slice(&stored.bytes).unwrap_or_default();
    if let Some(map) = manifest.as_object_mut() {
        map.insert("mediaType".to_owned(), json!(stored.media_type));
        map.insert("digest".to_owned(), json!(stored.digest));
        map.insert("size".to_owned(), json!(stored.bytes.len()));
    }
    let mut view = json!({"Name": name.to_string(), "Manifest": manifest});
    let entries = entries(stored);
    if wants("Image") {
        view["Image"] = match &stored.document {
            Document::Manifest(_) => {
                config_of(client, name, stored).await.map_err(|e| failed(name, e))?.unwrap_or_default()
            }
            Document::Index(_) => Value::Object(images(client, name, &entries).await?),
        };
    }
    if wants("Provenance") || wants("SBOM") {
        let (provenance, sbom) = attestations(client, name, &entries).await?;
        // One platform is shown bare, several by their names.
        let shown = |mut map: Map<String, Value>| match map.len() {
            1 => map.iter_mut().next().map(|(_, value)| value.take()).unwrap_or_default(),
            _ => Value::Object(map),
        };
        view["Provenance"] = shown(provenance);
        view["SBOM"] = shown(sbom);
    }
    Ok(view)
}

/// Configs by platform.
async fn images(
    client: &Client,
    name: &Reference,
    entries: &[Value],
) -> Result<Map<String, Value>, BuildError> {
    let mut images = Map::new();
    for entry in entries {
        let (Some((digest, _)), Some(platform)) = (identity(entry), platform_text(entry)) else { continue };
        if platform.starts_with("unknown/") {
            continue;
        }
        let at = name.at_digest(digest);
        let stored = client.manifest(&at).await.map_err(|e| failed(&at, e))?;
        if let Some(config) = config_of(client, &at, &stored).await.map_err(|e| failed(&at, e))? {
            images.insert(platform, config);
        }
    }
    Ok(images)
}

/// Provenance and SBOM of each platform, from the attestation manifests that BuildKit puts into an index.
async fn attestations(
    client: &Client,
    name: &Reference,
    entries: &[Value],
) -> Result<(Map<String, Value>, Map<String, Value>), BuildError> {
    let (mut provenance, mut sbom) = (Map::new(), Map::new());
    for entry in entries {
        let annotation = |key: &str| entry["annotations"][key].as_str();
        if annotation(REFERENCE_TYPE) != Some(ATTESTATION) {
            continue;
        }
        let subject = annotation(REFERENCE_DIGEST).unwrap_or_default();
        let of = entries.iter().find(|other| other["digest"].as_str() == Some(subject));
        let platform = of.and_then(platform_text).unwrap_or_else(|| subject.to_owned());
        let Some((digest, _)) = identity(entry) else { continue };
        let at = name.at_digest(digest);
        let stored = client.manifest(&at).await.map_err(|e| failed(&at, e))?;
        let manifest: Value = serde_json::from_slice(&stored.bytes).unwrap_or_default();
        for layer in manifest["layers"].as_array().into_iter().flatten() {
            let kind = layer["annotations"][PREDICATE_TYPE].as_str().unwrap_or_default();
            let (map, field) = match kind {
                kind if kind.starts_with("https://slsa.dev/provenance/") => (&mut provenance, "SLSA"),
                "https://spdx.dev/Document" => (&mut sbom, "SPDX"),
                _ => continue,
            };
            let Some((digest, size)) = identity(layer).filter(|(_, size)| *size <= STATEMENT_BYTES_MAX)
            else {
                continue;
            };
            let bytes = client.small_blob(&at, digest, size).await.map_err(|e| failed(&at, e))?;
            let statement: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let entry = map.entry(platform.clone()).or_insert_with(|| json!({}));
            // The first is of the image; others are of stages and contexts.
            match entry.get(field) {
                None => entry[field] = statement["predicate"].clone(),
                Some(_) => {
                    let more = format!("Additional{field}s");
                    let list = entry.as_object_mut().map(|map| map.entry(more).or_insert_with(|| json!([])));
                    list.and_then(Value::as_array_mut).into_iter().for_each(|list| {
                        list.push(statement["predicate"].clone());
                    });
                }
            }
        }
    }
    Ok((provenance, sbom))
}
