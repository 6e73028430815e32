//! Packages of an image, found in the databases that package managers leave in its files, as an SPDX document.
//!
//! ```text
//! tree ──walk──▶ paths of databases ──read──▶ dpkg · apk · node · python ──▶ Found ──▶ spdx
//! ```
//!
//! Nothing is unpacked or executed: the tree says which paths there are, and only databases are read, from the layers.
//! All of it is hostile: sizes and counts have limits, what is malformed is left out, and what was left out is said in the
//! document. Not read: RPM databases, and packages that only a binary tells of (Go, Rust, jars).

mod apk;
mod dpkg;
mod node;
mod os;
mod python;
mod spdx;

use std::fs::File;
use std::io::Read as _;

use rbuild_cache::copy::FileSource;
use rbuild_cache::path::RelPath;
use rbuild_cache::tree::{Kind, NodeStore, Tree, TreeError};

use crate::error::StepFailure;

pub use spdx::{PREDICATE_TYPE, Subject, document};

/// Largest database read.
const DATABASE_BYTES_MAX: u64 = 64 << 20;
/// Largest description of a single package read.
const DESCRIPTION_BYTES_MAX: u64 = 4 << 20;
/// Most packages listed.
const PACKAGES_MAX: usize = 100_000;
/// Longest name or version; no package manager has longer ones.
const NAME_BYTES_MAX: usize = 512;
/// Longest text kept.
const TEXT_CHARS_MAX: usize = 1024;
/// Most sentences about what was left out.
const REMARKS_MAX: usize = 20;

/// Whose package it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ecosystem {
    Deb,
    Apk,
    Npm,
    PyPi,
}

/// An installed package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    ecosystem: Ecosystem,
    name: String,
    version: String,
    /// Empty for what runs anywhere.
    architecture: String,
    /// The package that it was built from, where that is another.
    upstream: String,
    license: String,
    /// `Name <mail>`.
    maintainer: String,
    homepage: String,
    /// Where it says so.
    found_in: String,
}

impl Package {
    fn new(ecosystem: Ecosystem) -> Self {
        let text = String::new;
        Self {
            ecosystem,
            name: text(),
            version: text(),
            architecture: text(),
            upstream: text(),
            license: text(),
            maintainer: text(),
            homepage: text(),
            found_in: text(),
        }
    }

    /// True when it can be listed.
    fn is_named(&self) -> bool {
        let is_sound = |text: &str| {
            !text.is_empty() && text.len() <= NAME_BYTES_MAX && !text.chars().any(char::is_control)
        };
        is_sound(&self.name) && is_sound(&self.version)
    }
}

/// What is in an image.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Sorted, each once.
    packages: Vec<Package>,
    system: os::System,
    /// What was seen and not read.
    remarks: Vec<String>,
}

impl Found {
    fn remark(&mut self, text: String) {
        match self.remarks.len() {
            0..REMARKS_MAX => self.remarks.push(text),
            REMARKS_MAX => self.remarks.push("more was left out".to_owned()),
            _ => {}
        }
    }
}

/// What a path says about its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Dpkg,
    Apk,
    Node,
    Python,
    System,
    Rpm,
}

impl Role {
    fn of(path: &[u8]) -> Option<Self> {
        let (dir, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b""[..], path),
        };
        match (dir, name) {
            (b"var/lib/dpkg", b"status") => Some(Self::Dpkg),
            // Images without dpkg itself keep a file for each package.
            (b"var/lib/dpkg/status.d", name) if !name.ends_with(b".md5sums") => Some(Self::Dpkg),
            (b"lib/apk/db" | b"usr/lib/apk/db", b"installed") => Some(Self::Apk),
            (b"etc" | b"usr/lib", b"os-release") => Some(Self::System),
            (_, b"package.json") if node::is_installed(dir) => Some(Self::Node),
            (_, b"METADATA") if dir.ends_with(b".dist-info") => Some(Self::Python),
            (_, b"PKG-INFO") if dir.ends_with(b".egg-info") => Some(Self::Python),
            (
                b"var/lib/rpm" | b"usr/lib/sysimage/rpm" | b"usr/share/rpm",
                b"rpmdb.sqlite" | b"Packages" | b"Packages.db",
            ) => Some(Self::Rpm),
            _ => None,
        }
    }
}

/// Finds the packages in a state.
pub fn scan(tree: &Tree, nodes: &dyn NodeStore, files: &dyn FileSource) -> Result<Found, StepFailure> {
    let mut found = Found::default();
    let mut wanted = Vec::new();
    for entry in tree.walk(nodes, &RelPath::root()).map_err(TreeError::from)? {
        let (path, entry) = entry?;
        if let (Kind::File { size, .. }, Some(role)) = (&entry.kind, Role::of(path.as_bytes())) {
            wanted.push((path, role, *size));
        }
    }
    for (path, role, size) in wanted {
        let shown = path.to_string();
        let bytes_max = match role {
            Role::Dpkg | Role::Apk => DATABASE_BYTES_MAX,
            Role::Node | Role::Python | Role::System => DESCRIPTION_BYTES_MAX,
            Role::Rpm => {
                found.remark(format!("the RPM database /{shown} was not read"));
                continue;
            }
        };
        if size > bytes_max {
            found.remark(format!("/{shown} was not read: it has more than {bytes_max} bytes"));
            continue;
        }
        let mut bytes = Vec::new();
        let failed = |source| StepFailure::Io { what: "read", path: shown.clone(), source };
        File::from(files.open(&path)?).take(bytes_max).read_to_end(&mut bytes).map_err(failed)?;
        let text = String::from_utf8_lossy(&bytes);
        let mut add = |package: Package| {
            if found.packages.len() < PACKAGES_MAX {
                found.packages.push(Package { found_in: shown.clone(), ..package });
            }
        };
        match role {
            Role::Dpkg => dpkg::packages(&text).for_each(&mut add),
            Role::Apk => apk::packages(&text).for_each(&mut add),
            Role::Node => node::package(&bytes).into_iter().for_each(&mut add),
            Role::Python => python::package(&text).into_iter().for_each(&mut add),
            // `/etc/os-release` comes first and counts.
            Role::System if found.system == os::System::default() => found.system = os::System::parse(&text),
            Role::System | Role::Rpm => {}
        }
    }
    if found.packages.len() == PACKAGES_MAX {
        found.remark(format!("only {PACKAGES_MAX} packages are listed"));
    }
    found.packages.retain(Package::is_named);
    found.packages.sort();
    found.packages.dedup();
    Ok(found)
}

/// A value for people: without control characters, and no longer than anyone writes it.
fn text(value: &str) -> String {
    value.trim().chars().filter(|c| !c.is_control()).take(TEXT_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests;
