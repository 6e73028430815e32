//! A CDI document: one kind of device, its devices, and what a step gets with them.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Says which class a device belongs to, as BuildKit reads it.
const CLASS: &str = "org.mobyproject.buildkit.device.class";
/// Says that every step may have the device, as BuildKit reads it.
const AUTO_ALLOW: &str = "org.mobyproject.buildkit.device.autoallow";
/// Versions of the interface whose fields are those below.
const VERSIONS: [(u32, std::ops::RangeInclusive<u32>); 2] = [(0, 1..=8), (1, 0..=1)];

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Document {
    cdi_version: Text,
    /// `vendor/class`.
    pub(super) kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, Text>,
    pub(super) devices: Vec<Entry>,
    /// What a step gets once with any of the devices.
    #[serde(default)]
    pub(super) container_edits: Edits,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Entry {
    name: Text,
    #[serde(default)]
    annotations: BTreeMap<String, Text>,
    #[serde(default)]
    pub(super) container_edits: Edits,
}

/// What a step gets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Edits {
    #[serde(deserialize_with = "or_empty")]
    pub(super) env: Vec<String>,
    #[serde(deserialize_with = "or_empty")]
    pub(super) device_nodes: Vec<Node>,
    #[serde(deserialize_with = "or_empty")]
    pub(super) mounts: Vec<HostMount>,
    #[serde(deserialize_with = "or_empty")]
    pub(super) additional_gids: Vec<u32>,
    #[serde(deserialize_with = "or_empty")]
    hooks: Vec<Value>,
    #[serde(deserialize_with = "or_empty")]
    net_devices: Vec<Value>,
    intel_rdt: Option<Value>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Node {
    pub(super) path: String,
    #[serde(default)]
    pub(super) host_path: String,
    #[serde(default, rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) major: u32,
    #[serde(default)]
    pub(super) minor: u32,
    pub(super) file_mode: Option<u32>,
    #[serde(default)]
    pub(super) permissions: String,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct HostMount {
    pub(super) host_path: String,
    pub(super) container_path: String,
    #[serde(default, deserialize_with = "or_empty")]
    pub(super) options: Vec<String>,
    #[serde(default, rename = "type")]
    kind: String,
}

/// Text, also where YAML reads a number or a truth value: `name: 0`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match Value::deserialize(from)? {
            Value::String(text) => Ok(Self(text)),
            scalar @ (Value::Number(_) | Value::Bool(_)) => Ok(Self(scalar.to_string())),
            _ => Err(serde::de::Error::custom("expected text")),
        }
    }
}

/// `null` is what generators write for an empty list.
fn or_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Option::<Vec<T>>::deserialize(from).map(Option::unwrap_or_default)
}

impl Document {
    /// Reads the bytes of a `.json` file, or else of YAML.
    pub(super) fn read(bytes: &[u8], is_json: bool) -> Result<Self, String> {
        let value = if is_json {
            serde_json::from_slice(bytes).map_err(|error| error.to_string())?
        } else {
            let text = str::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned())?;
            super::yaml::to_json(text)?
        };
        let document: Self = serde_json::from_value(value).map_err(|error| error.to_string())?;
        document.check()?;
        Ok(document)
    }

    fn check(&self) -> Result<(), String> {
        let version = &self.cdi_version.0;
        if !is_known(version) {
            return Err(format!("CDI version `{version}` is not known here: 0.1.0 to 1.1.0 are"));
        }
        if !is_kind(&self.kind) {
            return Err(format!("kind `{}` is not of the form vendor/class", self.kind));
        }
        if self.devices.is_empty() {
            return Err("no devices".to_owned());
        }
        self.container_edits.check()?;
        for (index, entry) in self.devices.iter().enumerate() {
            let name = entry.name();
            if !is_name(name) {
                return Err(format!("`{name}` cannot name a device"));
            }
            if self.devices[..index].iter().any(|other| other.name() == name) {
                return Err(format!("device `{name}` twice"));
            }
            entry.container_edits.check().map_err(|error| format!("device `{name}`: {error}"))?;
        }
        Ok(())
    }

    /// The class a device was put into.
    pub(super) fn class_of<'a>(&'a self, entry: &'a Entry) -> Option<&'a str> {
        self.annotation(entry, CLASS)
    }

    /// Whether steps may have a device without being allowed to on the command line.
    pub(super) fn is_auto_allowed(&self, entry: &Entry) -> bool {
        let value = self.annotation(entry, AUTO_ALLOW);
        value.is_some_and(|value| matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True"))
    }

    /// A device's own annotation, else its document's.
    fn annotation<'a>(&'a self, entry: &'a Entry, key: &str) -> Option<&'a str> {
        entry.annotations.get(key).or_else(|| self.annotations.get(key)).map(|text| text.0.as_str())
    }
}

impl Entry {
    pub(super) fn name(&self) -> &str {
        &self.name.0
    }
}

impl Edits {
    fn check(&self) -> Result<(), String> {
        if let Some(variable) = self.env.iter().find(|text| text.find('=').unwrap_or(0) == 0) {
            return Err(format!("invalid environment variable `{variable}`"));
        }
        for node in &self.device_nodes {
            let path = &node.path;
            if !is_target(path) {
                return Err(format!("device node `{path}`: not a path that a step can have one at"));
            }
            if !matches!(node.kind.as_str(), "" | "c" | "u" | "b") {
                return Err(format!("device node `{path}`: type `{}` is not c, u or b", node.kind));
            }
            let permissions = node.permissions.as_str();
            if permissions != "none" && !permissions.chars().all(|c| matches!(c, 'r' | 'w' | 'm')) {
                return Err(format!("device node `{path}`: invalid permissions `{permissions}`"));
            }
        }
        for mount in &self.mounts {
            let target = &mount.container_path;
            if !is_target(target) {
                return Err(format!("mount `{target}`: not a path that a step can have one at"));
            }
            if !mount.host_path.starts_with('/') {
                return Err(format!("mount `{target}`: its hostPath is not absolute"));
            }
            if !matches!(mount.kind.as_str(), "" | "none" | "bind") {
                return Err(format!("mount `{target}`: type `{}` is not supported, bind is", mount.kind));
            }
            if let Some(option) = mount.options.iter().find(|option| !OPTIONS.contains(&option.as_str())) {
                let known = OPTIONS.join(", ");
                return Err(format!("mount `{target}`: option `{option}` is not supported: {known} are"));
            }
        }
        Ok(())
    }

    /// What of it no step can be given: that would take programs run on the host, or the host's interfaces.
    pub(super) fn refused(&self) -> Option<&'static str> {
        match self {
            _ if !self.hooks.is_empty() => Some("hooks"),
            _ if !self.net_devices.is_empty() => Some("network devices"),
            _ if self.intel_rdt.is_some() => Some("Intel RDT classes"),
            _ => None,
        }
    }
}

/// Options of mounts. Propagation is private whatever they say: nothing outlives the step.
const OPTIONS: [&str; 12] = [
    "ro", "rw", "bind", "rbind", "nosuid", "nodev", "noexec", "private", "rprivate", "slave", "rslave",
    "exec",
];

impl HostMount {
    pub(super) fn has(&self, option: &str) -> bool {
        self.options.iter().any(|other| other == option)
    }
}

fn is_known(version: &str) -> bool {
    let mut parts = version.strip_prefix('v').unwrap_or(version).split('.').map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor)), Some(Ok(_)), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    VERSIONS.iter().any(|(known, minors)| *known == major && minors.contains(&minor))
}

/// `vendor/class`.
pub(super) fn is_kind(text: &str) -> bool {
    let is_word = |text: &str, others: &[u8]| {
        let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        text.starts_with(|c: char| c.is_ascii_alphabetic())
            && ends(text.as_bytes().last())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || others.contains(&byte))
    };
    text.split_once('/').is_some_and(|(vendor, class)| is_word(vendor, b"_-.") && is_word(class, b"_-"))
}

fn is_name(text: &str) -> bool {
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    ends(text.as_bytes().first())
        && ends(text.as_bytes().last())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte))
}

/// An absolute path without surprises, outside of the kernel's directories.
fn is_target(path: &str) -> bool {
    let is_kernels = ["/proc", "/sys"]
        .iter()
        .any(|dir| path.strip_prefix(dir).is_some_and(|below| below.is_empty() || below.starts_with('/')));
    path.len() > 1
        && path.starts_with('/')
        && path[1..].split('/').all(|name| !matches!(name, "" | "." | ".."))
        && path != "/dev"
        && !is_kernels
        && !path.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPU: &str = "cdiVersion: \"0.6.0\"\nkind: vendor.com/gpu\n\
        annotations:\n  org.mobyproject.buildkit.device.autoallow: true\n\
        containerEdits:\n  env: [A=1]\ndevices:\n- name: 0\n  annotations:\n    org.mobyproject.buildkit.device.class: big\n  \
        containerEdits:\n    deviceNodes:\n    - {path: /dev/gpu0, type: c, major: 1, minor: 5, fileMode: 0660}\n    \
        mounts:\n    - {hostPath: /usr/lib/x, containerPath: /usr/lib/x, options: [ro, rbind]}\n    hooks: null\n";

    #[test]
    fn yaml_and_json_say_the_same() {
        let document = Document::read(GPU.as_bytes(), false).unwrap();
        let json = super::super::yaml::to_json(GPU).unwrap().to_string();
        assert_eq!(Document::read(json.as_bytes(), true), Ok(document.clone()));
        let entry = &document.devices[0];
        assert_eq!((entry.name(), document.class_of(entry)), ("0", Some("big")));
        assert!(document.is_auto_allowed(entry));
        assert_eq!(entry.container_edits.device_nodes[0].file_mode, Some(0o660));
        assert!(entry.container_edits.mounts[0].has("ro"));
        assert_eq!(entry.container_edits.refused(), None);
    }

    /// The shape of what `nvidia-ctk cdi generate --disable-hook=all` writes.
    #[test]
    fn a_description_of_nvidia_devices_without_hooks_is_taken() {
        let text = "---\ncdiVersion: 0.5.0\ncontainerEdits:\n  deviceNodes:\n  - path: /dev/nvidia-modeset\n  \
            - hostPath: /dev/nvidiactl\n    path: /dev/nvidiactl\n  env:\n  - NVIDIA_VISIBLE_DEVICES=void\n  mounts:\n  \
            - containerPath: /usr/lib/x86_64-linux-gnu/libcuda.so.575.57.08\n    \
              hostPath: /usr/lib/x86_64-linux-gnu/libcuda.so.575.57.08\n    options:\n    - ro\n    - nosuid\n    \
              - nodev\n    - rbind\n    - rprivate\ndevices:\n- containerEdits:\n    deviceNodes:\n    \
              - fileMode: 438\n      path: /dev/nvidia0\n      permissions: rw\n    \
              - gid: 105\n      path: /dev/dri/renderD128\n    additionalGids:\n    - 105\n  name: \"0\"\n\
            - containerEdits:\n    deviceNodes:\n    - path: /dev/nvidia0\n  name: all\nkind: nvidia.com/gpu\n";
        let document = Document::read(text.as_bytes(), false).unwrap();
        assert_eq!(document.devices.iter().map(Entry::name).collect::<Vec<_>>(), ["0", "all"]);
        let edits = document.devices.iter().map(|entry| &entry.container_edits);
        for edits in edits.chain([&document.container_edits]) {
            assert_eq!(edits.refused(), None);
        }
    }

    #[test]
    fn what_a_document_must_not_say_is_named() {
        for (from, to, says) in [
            ("0.6.0", "2.0.0", "CDI version `2.0.0` is not known here"),
            ("0.6.0", "new", "CDI version `new` is not known here"),
            ("vendor.com/gpu", "gpu", "kind `gpu` is not of the form vendor/class"),
            ("name: 0", "name: a b", "`a b` cannot name a device"),
            ("env: [A=1]", "env: [A]", "invalid environment variable `A`"),
            ("env:", "enw:", "unknown field `enw`"),
            ("path: /dev/gpu0", "path: /dev/../etc", "not a path that a step can have one at"),
            ("path: /dev/gpu0", "path: /proc/x", "not a path that a step can have one at"),
            ("type: c", "type: x", "type `x` is not c, u or b"),
            ("hostPath: /usr/lib/x", "hostPath: x", "its hostPath is not absolute"),
            ("rbind]", "shared]", "option `shared` is not supported"),
            ("kind: vendor.com/gpu\n", "", "missing field `kind`"),
        ] {
            let text = GPU.replace(from, to);
            assert_ne!(text, GPU, "{from}");
            let error = Document::read(text.as_bytes(), false).unwrap_err();
            assert!(error.contains(says), "{says}: {error}");
        }
        let hooks = GPU.replace("hooks: null", "hooks: [{hookName: createContainer, path: /bin/x}]");
        let document = Document::read(hooks.as_bytes(), false).unwrap();
        assert_eq!(document.devices[0].container_edits.refused(), Some("hooks"));
    }
}
