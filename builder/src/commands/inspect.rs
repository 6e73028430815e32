//! `rbuild inspect`.

use std::path::Path;
use std::process::ExitCode;

use rbuild_cache::store::Store;
use rbuild_oci::{Platform, media_type};
use serde::Serialize as _;
use serde_json::{Map, Value, json};

use super::stored::{self, Images};
use super::{ImageError, image};
use crate::cli::{Env, InspectRequest};
use crate::error::BuildError;
use crate::failure;
use crate::host::Host;
use crate::settings::Settings;
use crate::template::{Shape, Template};

/// Largest manifest whose size is asked for.
const MANIFEST_BYTES_MAX: u64 = 4 << 20;

const TEXTS: Shape = Shape::List(&Shape::Text);

/// Keys alone, as of ports and volumes: each prints as `80/tcp:{}`.
const SET: Shape = Shape::Map(&Shape::Struct(&[]));

/// The fields of an image for templates; Docker's engine gave `Parent` and `DockerVersion` empty, too, before it dropped them.
const IMAGE: Shape = Shape::Struct(&[
    ("Id", Shape::Text),
    ("RepoTags", TEXTS),
    ("RepoDigests", TEXTS),
    ("Parent", Shape::Text),
    ("Comment", Shape::Text),
    ("Created", Shape::Text),
    ("DockerVersion", Shape::Text),
    ("Author", Shape::Text),
    ("Architecture", Shape::Text),
    ("Variant", Shape::Text),
    ("Os", Shape::Text),
    ("OsVersion", Shape::Text),
    ("Size", Shape::Number),
    (
        "Config",
        Shape::Struct(&[
            ("Hostname", Shape::Text),
            ("Domainname", Shape::Text),
            ("User", Shape::Text),
            ("ExposedPorts", SET),
            ("Env", TEXTS),
            ("Cmd", TEXTS),
            ("Entrypoint", TEXTS),
            ("Image", Shape::Text),
            ("Volumes", SET),
            ("WorkingDir", Shape::Text),
            ("Labels", Shape::Map(&Shape::Text)),
            ("StopSignal", Shape::Text),
            ("ArgsEscaped", Shape::Bool),
            (
                "Healthcheck",
                Shape::Struct(&[
                    ("Test", TEXTS),
                    ("Interval", Shape::Duration),
                    ("Timeout", Shape::Duration),
                    ("StartPeriod", Shape::Duration),
                    ("StartInterval", Shape::Duration),
                    ("Retries", Shape::Number),
                ]),
            ),
            ("OnBuild", TEXTS),
            ("Shell", TEXTS),
        ]),
    ),
    ("RootFS", Shape::Struct(&[("Type", Shape::Text), ("Layers", TEXTS)])),
    ("Metadata", Shape::Struct(&[("LastTagTime", Shape::Text)])),
    (
        "Descriptor",
        Shape::Struct(&[("mediaType", Shape::Text), ("digest", Shape::Text), ("size", Shape::Number)]),
    ),
]);

/// Prints the images that are there and reports the others.
pub(super) fn run(request: &InspectRequest, settings: Settings, root: Option<&Path>, env: &Env) -> ExitCode {
    // A wrong template is wrong whatever is in the store.
    let template = request.format.as_deref().filter(|format| !matches!(*format, "" | "json"));
    let template = match template.map(Template::parse).transpose() {
        Ok(template) => template,
        Err(error) => return failure::print(&ImageError::from(error).into(), None, env),
    };
    let found = Host::open(settings, root).and_then(|host| {
        let images = Images::load(&host.store)?;
        let show = |name: &String| show(&host.store, &images, name, request.platform.as_ref());
        Ok(request.names.iter().map(show).collect::<Vec<_>>())
    });
    let found = match found {
        Ok(found) => found,
        Err(error) => return failure::print(&error, None, env),
    };
    let (mut values, mut errors) = (Vec::new(), Vec::new());
    for result in found {
        match result {
            Ok(value) => values.push(value),
            Err(error) => errors.push(error),
        }
    }
    let text = text(&values, template.as_ref(), request.format.as_deref()).map_err(BuildError::from);
    errors.extend(text.and_then(|text| super::print(&text)).err());
    image::report(&errors, env)
}

fn text(values: &[Value], template: Option<&Template>, format: Option<&str>) -> Result<String, ImageError> {
    let Some(template) = template else {
        let list = Value::Array(values.to_vec());
        return Ok(if format == Some("json") { format!("{list}\n") } else { pretty(&list) });
    };
    let mut text = String::new();
    for value in values {
        text.push_str(&template.render(value, &IMAGE)?);
        text.push('\n');
    }
    // As docker does it: scripts read a line.
    Ok(if text.is_empty() { "\n".to_owned() } else { text })
}

/// JSON with four blanks per level.
fn pretty(value: &Value) -> String {
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    value.serialize(&mut serializer).expect("a JSON value serialises into memory");
    bytes.push(b'\n');
    String::from_utf8(bytes).expect("JSON is UTF-8")
}

fn show(
    store: &Store,
    images: &Images,
    name: &str,
    platform: Option<&Platform>,
) -> Result<Value, BuildError> {
    let named = images.find(name)?.named();
    let record = stored::for_platform(named, platform)?;
    let config = stored::config(store, record)?;
    let (mut tags, mut digests): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    for named in images.names_of(named.record.config) {
        let Some(reference) = &named.reference else { continue };
        if reference.tag().is_some() {
            tags.push(reference.familiar());
        }
        if let Some(digest) = named.record.digest() {
            let text = format!("{}@{digest}", reference.familiar_name());
            if !digests.contains(&text) {
                digests.push(text);
            }
        }
    }
    let mut image = Map::new();
    let mut put = |name: &str, value: Value| image.insert(name.to_owned(), value);
    put("Id", json!(record.config));
    put("RepoTags", json!(tags));
    put("RepoDigests", json!(digests));
    let comment = config.history.last().and_then(|entry| entry.comment.clone());
    put("Comment", json!(comment.unwrap_or_default()));
    put("Created", json!(config.created));
    put("Author", json!(config.author.clone().unwrap_or_default()));
    put("Config", json!(config.config));
    put("Architecture", json!(config.platform.architecture));
    if let Some(variant) = &config.platform.variant {
        put("Variant", json!(variant));
    }
    put("Os", json!(config.platform.os));
    put("Size", json!(record.size_bytes));
    put("RootFS", json!({"Type": "layers", "Layers": config.rootfs.diff_ids}));
    // The store keeps no time per name; Go's zero time is what docker shows then.
    put("Metadata", json!({"LastTagTime": "0001-01-01T00:00:00Z"}));
    if let Some(digest) = record.digest()
        && let Some(bytes) = store.blob_bytes(&digest, MANIFEST_BYTES_MAX)?
    {
        let stated = serde_json::from_slice::<Value>(&bytes).ok();
        let stated = stated.and_then(|manifest| Some(manifest.get("mediaType")?.as_str()?.to_owned()));
        let kind = stated.unwrap_or_else(|| media_type::OCI_MANIFEST.to_owned());
        put("Descriptor", json!({"mediaType": kind, "digest": digest, "size": bytes.len()}));
    }
    Ok(Value::Object(image))
}
