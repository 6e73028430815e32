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
    /// How to run a container of the image.
    #[serde(default)]
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
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

    /// The document's bytes: sorted keys, no whitespace.
    pub fn to_json(&self) -> Vec<u8> {
        canonical_json(self)
    }

    /// Digest of [`Self::to_json`]: the image id.
    pub fn id(&self) -> Digest {
        Digest::of(&self.to_json())
    }
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
