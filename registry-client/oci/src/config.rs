//! The image config: OCI's fields, Docker's extensions, and everything unknown kept as it came.
//!
//! Our own type instead of `oci-spec`'s: that one drops `Healthcheck`, `OnBuild` and `Shell` and orders maps at
//! random. Unknown fields survive a read-modify-write at both levels (`extra`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{DiffId, Digest, Platform, canonical_json};

/// An image config document (image-spec, config.md).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// RFC 3339 time of the last history entry.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub created: Option<String>,
    /// Set by MAINTAINER.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub author: Option<String>,
    /// CPU architecture, os and variant, flattened into the document.
    #[serde(flatten)]
    pub platform: Platform,
    /// How to run a container of the image. `null` in imported images.
    #[serde(default, deserialize_with = "null_default")]
    pub config: ContainerConfig,
    /// Layers, base first.
    pub rootfs: RootFs,
    /// One entry per instruction, base first.
    #[serde(default, deserialize_with = "null_default")]
    pub history: Vec<History>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The `config` object: execution parameters. Absent and empty are kept apart where Docker does (`Cmd`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerConfig {
    /// User and optional group, as written.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub user: String,
    /// `80/tcp` style keys.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default, deserialize_with = "null_default")]
    pub exposed_ports: BTreeMap<String, Value>,
    /// `NAME=value`, in order.
    #[serde(skip_serializing_if = "Vec::is_empty", default, deserialize_with = "null_default")]
    pub env: Vec<String>,
    /// Entry point argv.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub entrypoint: Option<Vec<String>>,
    /// Default arguments.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cmd: Option<Vec<String>>,
    /// Volume paths as written.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default, deserialize_with = "null_default")]
    pub volumes: BTreeMap<String, Value>,
    /// Working directory.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub working_dir: String,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default, deserialize_with = "null_default")]
    pub labels: BTreeMap<String, String>,
    /// Signal that stops the container.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub stop_signal: String,
    /// Docker extension: set with CMD.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub args_escaped: bool,
    /// Docker extension.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub healthcheck: Option<Healthcheck>,
    /// Docker extension: raw trigger texts.
    #[serde(skip_serializing_if = "Vec::is_empty", default, deserialize_with = "null_default")]
    pub on_build: Vec<String>,
    /// Docker extension: shell of shell-form instructions.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub shell: Option<Vec<String>>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Docker's health check; durations in nanoseconds, zero means «not set» and is omitted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", text]`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_default")]
    pub test: Vec<String>,
    /// Time between checks.
    #[serde(skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// Time before a check counts as hung.
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// Initialisation time.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Time between checks during the start period.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// Consecutive failures until unhealthy.
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: i64,
}

/// One history entry.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// RFC 3339 time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub created: Option<String>,
    /// The instruction, in the form Docker prints.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub created_by: Option<String>,
    /// Author of the step.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub author: Option<String>,
    /// `buildkit.dockerfile.v0` for Dockerfile steps.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub comment: Option<String>,
    /// True when the step made no layer.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub empty_layer: bool,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The layer list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Base layer first; never `null`.
    #[serde(default, deserialize_with = "null_default")]
    pub diff_ids: Vec<DiffId>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self { kind: "layers".to_owned(), diff_ids: Vec::new() }
    }
}

impl ImageConfig {
    /// An image with nothing in it.
    pub fn empty(platform: Platform) -> Self {
        Self {
            created: None,
            author: None,
            platform,
            config: ContainerConfig::default(),
            rootfs: RootFs::default(),
            history: Vec::new(),
            extra: Map::new(),
        }
    }

    /// Largest document that is read or made, in bytes.
    pub const BYTES_MAX: u64 = 4 << 20;
    /// Most values in it, about: some hundred bytes each while a build holds the document.
    pub const VALUES_MAX: usize = 80_000;

    /// Reads untrusted bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        use serde::de::Error as _;
        if !Self::is_readable(bytes) {
            let message = format!("more than {} values or {} bytes", Self::VALUES_MAX, Self::BYTES_MAX);
            return Err(serde_json::Error::custom(message));
        }
        serde_json::from_slice(bytes)
    }

    /// Whether a document is in the limits of [`Self::parse`].
    pub fn is_readable(bytes: &[u8]) -> bool {
        bytes.len() as u64 <= Self::BYTES_MAX && values(bytes) <= Self::VALUES_MAX
    }

    /// The document's bytes: sorted keys, no whitespace.
    pub fn to_json(&self) -> Vec<u8> {
        canonical_json(self)
    }

    /// Digest of [`Self::to_json`]: the image id.
    pub fn id(&self) -> Digest {
        Digest::of(&self.to_json())
    }
}

/// How many values a document has, about: its commas outside texts.
fn values(json: &[u8]) -> usize {
    let (mut count, mut in_text, mut is_escaped) = (0, false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_text => is_escaped = true,
            b'"' => in_text = !in_text,
            b',' if !in_text => count += 1,
            _ => {}
        }
    }
    count
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

fn null_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: Value) -> Result<ImageConfig, serde_json::Error> {
        serde_json::from_slice(&serde_json::to_vec(&value).unwrap())
    }

    #[test]
    fn a_document_has_so_many_values() {
        let of = |count: usize| {
            let words = vec!["a,\\\","; count];
            let value = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
                "config": {"Cmd": words}});
            ImageConfig::parse(&serde_json::to_vec(&value).unwrap())
        };
        assert!(of(ImageConfig::VALUES_MAX - 10).is_ok());
        let error = of(ImageConfig::VALUES_MAX + 10).unwrap_err().to_string();
        assert!(error.contains("more than 80000 values"), "{error}");
    }

    #[test]
    fn docker_extensions_and_unknown_fields_survive_a_round_trip() {
        let value = json!({
            "architecture": "amd64", "os": "linux", "created": "2024-01-01T00:00:00Z", "docker_version": "20",
            "config": {"Env": ["A=b"], "Cmd": ["sh"], "OnBuild": ["RUN x"], "Shell": ["/bin/sh", "-c"],
                "Healthcheck": {"Test": ["CMD", "x"], "Interval": 5}, "Hostname": "h", "Labels": {"a": "b"}},
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"")]},
            "history": [{"created_by": "x", "empty_layer": true, "own": 1}],
        });
        let config = parse(value.clone()).unwrap();
        assert_eq!(config.extra.get("docker_version"), Some(&json!("20")));
        assert_eq!(config.config.extra.get("Hostname"), Some(&json!("h")));
        assert!(!config.extra.contains_key("architecture"), "flattened fields are not kept twice");
        assert_eq!(serde_json::from_slice::<Value>(&config.to_json()).unwrap(), value);
        assert_eq!(parse(serde_json::from_slice(&config.to_json()).unwrap()).unwrap(), config);
    }

    #[test]
    fn nulls_are_read_as_absent() {
        let config = parse(json!({
            "architecture": "x86_64", "os": "linux", "config": null, "history": null,
            "rootfs": {"type": "layers", "diff_ids": null},
        }))
        .unwrap();
        assert_eq!(config, ImageConfig::empty("linux/amd64".parse().unwrap()));
        let inner = json!({"Env": null, "Cmd": null, "Labels": null, "Volumes": null, "ExposedPorts": null,
            "OnBuild": null, "Entrypoint": null, "Healthcheck": {"Test": null}});
        let config: ContainerConfig = serde_json::from_value(inner).unwrap();
        assert_eq!(config.healthcheck, Some(Healthcheck::default()));
    }

    #[test]
    fn an_empty_command_is_not_an_absent_one() {
        let config = ContainerConfig { cmd: Some(Vec::new()), ..ContainerConfig::default() };
        assert_eq!(serde_json::to_value(&config).unwrap(), json!({"Cmd": []}));
        assert_eq!(serde_json::from_value::<ContainerConfig>(json!({"Cmd": []})).unwrap(), config);
    }

    #[test]
    fn wrong_types_are_errors() {
        for value in [
            json!({"os": "linux", "rootfs": {"type": "layers"}}),
            json!({"os": "linux", "architecture": "amd64"}),
            json!({"os": "linux", "architecture": 64, "rootfs": {"type": "layers"}}),
            json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": ["x"]}}),
            json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers"}, "config": {"Env": "A=b"}}),
        ] {
            assert!(parse(value.clone()).is_err(), "{value}");
        }
    }

    #[test]
    fn equal_configs_have_equal_bytes_whatever_the_order_of_their_fields() {
        let a: ImageConfig = serde_json::from_str(
            r#"{"os":"linux","architecture":"amd64","b":1,"a":2,"rootfs":{"type":"layers","diff_ids":[]}}"#,
        )
        .unwrap();
        let b: ImageConfig = serde_json::from_str(
            r#"{"a":2,"rootfs":{"diff_ids":[],"type":"layers"},"b":1,"architecture":"amd64","os":"linux"}"#,
        )
        .unwrap();
        assert_eq!(a.id(), b.id());
        assert!(a.to_json().starts_with(br#"{"a":2,"architecture":"#));
    }
}
