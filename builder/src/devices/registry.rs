//! All devices that the CDI documents of this machine describe.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::document::{Document, Edits};

/// Where documents are, the later ones before the earlier, as BuildKit looks for them.
pub const SPEC_DIRS: [&str; 3] = ["/etc/cdi", "/var/run/cdi", "/etc/buildkit/cdi"];
/// The largest document. Those that drivers generate have some tens of KiB.
const SIZE_BYTES_MAX: u64 = 4 << 20;
/// Most documents read from one directory.
const FILES_MAX: usize = 1000;

/// The devices, by qualified name.
#[derive(Debug, Default)]
pub struct Registry {
    devices: BTreeMap<String, Vec<Device>>,
    /// Files that could not be read, and why.
    broken: Vec<(PathBuf, String)>,
}

/// One device.
#[derive(Debug, Clone)]
pub(super) struct Device {
    pub(super) file: Arc<Path>,
    document: Arc<Document>,
    index: usize,
    /// A later directory's device hides those of earlier ones.
    priority: usize,
}

impl Device {
    /// What a step gets with it, what it shares with others of its document first.
    pub(super) fn edits(&self) -> [&Edits; 2] {
        [&self.document.container_edits, &self.document.devices[self.index].container_edits]
    }

    pub(super) fn class(&self) -> Option<&str> {
        self.document.class_of(&self.document.devices[self.index])
    }

    pub(super) fn is_auto_allowed(&self) -> bool {
        self.document.is_auto_allowed(&self.document.devices[self.index])
    }
}

impl Registry {
    /// Reads all documents. A directory that is not there has none; a broken file hides no other.
    pub fn read(dirs: &[PathBuf]) -> Self {
        let mut registry = Self::default();
        for (priority, dir) in dirs.iter().enumerate() {
            let Ok(entries) = std::fs::read_dir(dir) else { continue };
            let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            files.sort();
            let is_document = |path: &PathBuf| {
                path.extension().is_some_and(|extension| extension == "json" || is_yaml(extension))
            };
            for path in files.into_iter().filter(is_document).take(FILES_MAX) {
                match read(&path) {
                    Ok(document) => registry.add(&path, document, priority),
                    Err(why) => registry.broken.push((path, why)),
                }
            }
        }
        registry
    }

    fn add(&mut self, path: &Path, document: Document, priority: usize) {
        let (file, document): (Arc<Path>, _) = (path.into(), Arc::new(document));
        for (index, entry) in document.devices.iter().enumerate() {
            let name = format!("{}={}", document.kind, entry.name());
            let same = self.devices.entry(name).or_default();
            same.retain(|other| other.priority == priority);
            let (file, document) = (Arc::clone(&file), Arc::clone(&document));
            same.push(Device { file, document, index, priority });
        }
    }

    /// Every device's name, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.devices.keys().map(String::as_str)
    }

    /// Files that say nothing because they cannot be read, and why.
    pub fn broken(&self) -> &[(PathBuf, String)] {
        &self.broken
    }

    /// The descriptions of a device: more than one when files contradict each other.
    pub(super) fn get(&self, name: &str) -> &[Device] {
        self.devices.get(name).map_or(&[], Vec::as_slice)
    }

    /// Names of the devices that a request means: `vendor/class=name`, one of them for `vendor/class`, all for
    /// `vendor/class=*`; a name that no device has may be a class that some were put into.
    pub(super) fn find(&self, kind: &str, name: &str) -> Vec<&str> {
        let of_kind = || {
            self.devices
                .iter()
                .filter(|(device, _)| device.strip_prefix(kind).is_some_and(|rest| rest.starts_with('=')))
        };
        match name {
            "" => of_kind().map(|(name, _)| name.as_str()).take(1).collect(),
            "*" => of_kind().map(|(name, _)| name.as_str()).collect(),
            _ => match self.devices.get_key_value(&format!("{kind}={name}")) {
                Some((name, _)) => vec![name],
                None => {
                    let in_class = |(_, devices): &(&String, &Vec<Device>)| {
                        devices.iter().any(|device| device.class() == Some(name))
                    };
                    of_kind().filter(in_class).map(|(name, _)| name.as_str()).collect()
                }
            },
        }
    }
}

fn is_yaml(extension: &std::ffi::OsStr) -> bool {
    extension == "yaml" || extension == "yml"
}

fn read(path: &Path) -> Result<Document, String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| errno.to_string())?);
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return Err("no regular file".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(SIZE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > SIZE_BYTES_MAX {
        return Err(format!("larger than {} MiB", SIZE_BYTES_MAX >> 20));
    }
    Document::read(&bytes, path.extension().is_some_and(|extension| extension == "json"))
}
