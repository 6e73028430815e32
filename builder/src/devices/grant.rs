//! Which devices a step gets: what it asks for, as far as the command line allows.

use std::path::PathBuf;
use std::sync::OnceLock;

use rbuild_frontend::graph::DeviceRequest;

use super::DeviceError;
use super::document::is_kind;
use super::registry::{Device, Registry, SPEC_DIRS};
use crate::cli::{DeviceGrants, StepOptions};

/// Devices of a build. Descriptions are read when the first step asks.
#[derive(Debug, Default)]
pub struct Devices {
    grants: DeviceGrants,
    dirs: Vec<PathBuf>,
    registry: OnceLock<Registry>,
}

/// What a step gets, and what it asked for in vain.
#[derive(Debug, Default)]
pub(super) struct Granted {
    /// By qualified name, each once.
    pub(super) devices: Vec<(String, Device)>,
    pub(super) missing: Vec<String>,
}

impl Devices {
    /// As the command line says.
    pub fn new(options: &StepOptions) -> Self {
        let dirs = match options.cdi_dirs.as_slice() {
            [] => SPEC_DIRS.map(PathBuf::from).to_vec(),
            dirs => dirs.to_vec(),
        };
        Self { grants: options.devices.clone(), dirs, registry: OnceLock::new() }
    }

    /// What a step that asks for `requests` gets.
    pub(super) fn of(&self, requests: &[DeviceRequest]) -> Result<Granted, DeviceError> {
        let registry = self.registry.get_or_init(|| Registry::read(&self.dirs));
        let allowed = self.allowed(registry);
        let mut granted = Granted::default();
        for request in requests {
            let alias = self.grants.named.iter().find(|grant| grant.alias.as_ref() == Some(&request.name));
            let name = alias.map_or(&request.name, |grant| &grant.name);
            let found = find(registry, name)?;
            if found.is_empty() {
                if request.required {
                    return Err(self.unknown(registry, name));
                }
                granted.missing.push(name.clone());
            }
            for name in found {
                let device = only(registry, name)?;
                if alias.is_none()
                    && !allowed.contains(&name)
                    && !self.grants.all
                    && !device.is_auto_allowed()
                {
                    return Err(DeviceError::NotAllowed { name: name.to_owned() });
                }
                if granted.devices.iter().all(|(other, _)| other != name) {
                    granted.devices.push((name.to_owned(), device.clone()));
                }
            }
        }
        Ok(granted)
    }

    fn allowed<'a>(&self, registry: &'a Registry) -> Vec<&'a str> {
        let plain = self.grants.named.iter().filter(|grant| grant.alias.is_none());
        plain.flat_map(|grant| find(registry, &grant.name).unwrap_or_default()).collect()
    }

    fn unknown(&self, registry: &Registry, name: &str) -> DeviceError {
        DeviceError::Unknown {
            name: name.to_owned(),
            known: registry.names().map(str::to_owned).collect(),
            broken: registry.broken().to_vec(),
            dirs: self.dirs.clone(),
        }
    }
}

fn find<'a>(registry: &'a Registry, name: &str) -> Result<Vec<&'a str>, DeviceError> {
    let (kind, device) = name.split_once('=').unwrap_or((name, ""));
    match is_kind(kind) {
        true => Ok(registry.find(kind, device)),
        false => Err(DeviceError::Name { name: name.to_owned() }),
    }
}

fn only<'a>(registry: &'a Registry, name: &str) -> Result<&'a Device, DeviceError> {
    match registry.get(name) {
        [device] => Ok(device),
        several => {
            let files = several.iter().map(|device| device.file.to_path_buf()).collect();
            Err(DeviceError::Ambiguous { name: name.to_owned(), files })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::DeviceGrant;

    /// Two directories; the later one has device `b` of its own.
    fn devices(dir: &std::path::Path, grants: DeviceGrants) -> Devices {
        let class = "annotations: {org.mobyproject.buildkit.device.class: big}";
        let free = "annotations: {org.mobyproject.buildkit.device.autoallow: \"true\"}";
        let edits = "containerEdits: {env: [A=1]}";
        let head = "cdiVersion: 0.6.0\nkind: v.com/gpu\ndevices:\n";
        let (low, high) = (dir.join("low"), dir.join("high"));
        std::fs::create_dir_all(&low).unwrap();
        std::fs::create_dir_all(&high).unwrap();
        let text = format!(
            "{head}- {{name: a, {edits}}}\n- {{name: b, {class}, {edits}}}\n- {{name: c, {class}, {edits}}}\n"
        );
        std::fs::write(low.join("gpu.yaml"), text).unwrap();
        std::fs::write(high.join("gpu.yml"), format!("{head}- {{name: b, {free}, {edits}}}\n")).unwrap();
        std::fs::write(high.join("bad.json"), "{").unwrap();
        std::fs::write(high.join("note.txt"), "not one").unwrap();
        Devices { grants, dirs: vec![low, high], registry: OnceLock::new() }
    }

    fn grants(named: &[(&str, Option<&str>)]) -> DeviceGrants {
        let grant = |(name, alias): &(&str, Option<&str>)| DeviceGrant {
            name: (*name).to_owned(),
            alias: alias.map(str::to_owned),
        };
        DeviceGrants { all: false, named: named.iter().map(grant).collect() }
    }

    fn granted(devices: &Devices, name: &str, required: bool) -> Result<Vec<String>, String> {
        let request = DeviceRequest { name: name.to_owned(), required };
        let granted = devices.of(&[request]).map_err(|error| error.to_string())?;
        Ok(granted.devices.into_iter().map(|(name, _)| name).collect())
    }

    #[test]
    fn names_mean_one_device_the_first_all_or_a_class() {
        let dir = tempfile::tempdir().unwrap();
        let devices = devices(dir.path(), DeviceGrants { all: true, named: Vec::new() });
        let names =
            |list: &[&str]| Ok(list.iter().map(|name| format!("v.com/gpu={name}")).collect::<Vec<_>>());
        assert_eq!(granted(&devices, "v.com/gpu=a", true), names(&["a"]));
        assert_eq!(granted(&devices, "v.com/gpu", true), names(&["a"]));
        assert_eq!(granted(&devices, "v.com/gpu=*", true), names(&["a", "b", "c"]));
        assert_eq!(
            granted(&devices, "v.com/gpu=big", true),
            names(&["c"]),
            "b is hidden by the later directory's"
        );
        assert_eq!(granted(&devices, "v.com/gpu=none", false), names(&[]));
        let error = "required device \"v.com/gpu=none\" is not registered";
        assert_eq!(granted(&devices, "v.com/gpu=none", true), Err(error.to_owned()));
        assert_eq!(granted(&devices, "gpu", false), Err("invalid device \"gpu\"".to_owned()));
        let unknown =
            devices.of(&[DeviceRequest { name: "v.com/x".to_owned(), required: true }]).unwrap_err();
        let hints = unknown.hints().join("\n");
        assert!(
            hints.contains("v.com/gpu=a, v.com/gpu=b, v.com/gpu=c") && hints.contains("bad.json is broken"),
            "{hints}"
        );
    }

    #[test]
    fn a_device_takes_a_permission_of_the_command_line_or_of_its_description() {
        let dir = tempfile::tempdir().unwrap();
        let refused =
            |name: &str| Err(format!("device v.com/gpu={name} is requested by the build but not allowed"));
        let none = devices(dir.path(), DeviceGrants::default());
        assert_eq!(granted(&none, "v.com/gpu=a", false), refused("a"));
        assert!(granted(&none, "v.com/gpu=b", false).is_ok(), "autoallow");
        let one = devices(dir.path(), grants(&[("v.com/gpu=a", None)]));
        assert!(granted(&one, "v.com/gpu=a", false).is_ok());
        assert_eq!(granted(&one, "v.com/gpu=*", false), refused("c"));
        let kind = devices(dir.path(), grants(&[("v.com/gpu=*", None)]));
        assert!(granted(&kind, "v.com/gpu=*", false).is_ok());
        let alias = devices(dir.path(), grants(&[("v.com/gpu=c", Some("mine"))]));
        assert_eq!(granted(&alias, "mine", true), Ok(vec!["v.com/gpu=c".to_owned()]));
        assert_eq!(granted(&alias, "v.com/gpu=c", true), refused("c"), "only under its alias");
    }

    #[test]
    fn two_descriptions_of_one_priority_are_an_error_for_who_asks() {
        let dir = tempfile::tempdir().unwrap();
        let devices = devices(dir.path(), DeviceGrants { all: true, named: Vec::new() });
        std::fs::copy(dir.path().join("low/gpu.yaml"), dir.path().join("low/other.yaml")).unwrap();
        let error = granted(&devices, "v.com/gpu=a", true).unwrap_err();
        assert!(error.contains("is described by several files") && error.contains("other.yaml"), "{error}");
        assert!(granted(&devices, "v.com/gpu=b", true).is_ok());
    }
}
