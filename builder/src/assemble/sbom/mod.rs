//! Packages of an image, found in the databases that package managers leave in its files, as an SPDX document.
//!
//! ```text
//! tree ──walk──▶ paths of databases ──read──▶ dpkg · apk · node · python ──sorted──▶ Found ──▶ spdx
//! ```
//!
//! Nothing is unpacked or executed: the tree says which paths there are, and only databases are read, from the layers.
//! All of it is hostile: sizes and counts have limits, what is malformed is left out, and what was left out is said in the
//! document. Packages pass one by one, from the databases into a scratch file and from there into each document. Not read: RPM databases, and packages that only a binary tells of (Go, Rust, jars).

mod apk;
mod dpkg;
mod lines;
mod node;
mod os;
mod packages;
mod python;
mod spdx;

use std::fs::File;
use std::io::{self, BufReader, Read as _};

use rbuild_cache::copy::FileSource;
use rbuild_cache::path::RelPath;
use rbuild_cache::scratch::Scratch;
use rbuild_cache::tree::{Kind, NodeStore, Tree, TreeError};

use crate::error::StepFailure;
use packages::{Collected, Packages};

pub use spdx::{Document, PREDICATE_TYPE, Subject};

/// Largest database read.
const DATABASE_BYTES_MAX: u64 = 64 << 20;
/// Largest description of a single package read.
const DESCRIPTION_BYTES_MAX: u64 = 4 << 20;
/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;
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
    Deb = 1,
    Apk,
    Npm,
    PyPi,
}

impl Ecosystem {
    const ALL: [Self; 4] = [Self::Deb, Self::Apk, Self::Npm, Self::PyPi];
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

    /// What it is sorted by, and kept as, after its ecosystem.
    fn fields(&self) -> [&str; 8] {
        [
            &self.name,
            &self.version,
            &self.architecture,
            &self.upstream,
            &self.license,
            &self.maintainer,
            &self.homepage,
            &self.found_in,
        ]
    }

    /// The same, to be filled in.
    fn fields_mut(&mut self) -> [&mut String; 8] {
        [
            &mut self.name,
            &mut self.version,
            &mut self.architecture,
            &mut self.upstream,
            &mut self.license,
            &mut self.maintainer,
            &mut self.homepage,
            &mut self.found_in,
        ]
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
#[derive(Debug)]
pub struct Found {
    packages: Packages,
    system: os::System,
    /// What was seen and not read.
    remarks: Vec<String>,
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
pub fn scan(
    tree: &Tree,
    nodes: &dyn NodeStore,
    files: &dyn FileSource,
    scratch: &Scratch,
) -> Result<Found, StepFailure> {
    let mut search =
        Search { packages: Collected::new(scratch), system: os::System::default(), remarks: Vec::new() };
    for entry in tree.walk(nodes, &RelPath::root()).map_err(TreeError::from)? {
        let (path, entry) = entry?;
        if let (Kind::File { size, .. }, Some(role)) = (&entry.kind, Role::of(path.as_bytes())) {
            search.file(&path, role, *size, files)?;
        }
    }
    search.found().map_err(|source| StepFailure::Io { what: "sort", path: "packages".to_owned(), source })
}

/// What has been seen so far.
struct Search {
    packages: Collected,
    system: os::System,
    remarks: Vec<String>,
}

impl Search {
    fn file(
        &mut self,
        path: &RelPath,
        role: Role,
        size: u64,
        files: &dyn FileSource,
    ) -> Result<(), StepFailure> {
        let shown = path.to_string();
        let bytes_max = match role {
            Role::Dpkg | Role::Apk => DATABASE_BYTES_MAX,
            Role::Node | Role::Python | Role::System => DESCRIPTION_BYTES_MAX,
            Role::Rpm => {
                self.remark(format!("the RPM database /{shown} was not read"));
                return Ok(());
            }
        };
        if size > bytes_max {
            self.remark(format!("/{shown} was not read: it has more than {bytes_max} bytes"));
            return Ok(());
        }
        let bytes = BufReader::with_capacity(READ_BYTES, File::from(files.open(path)?).take(bytes_max));
        self.read(role, bytes, &shown).map_err(|source| StepFailure::Io { what: "read", path: shown, source })
    }

    fn read(&mut self, role: Role, bytes: impl io::BufRead, shown: &str) -> io::Result<()> {
        let packages = &mut self.packages;
        let mut add = |package: Package| match package.is_named() && packages.count < PACKAGES_MAX {
            true => packages.add(&Package { found_in: shown.to_owned(), ..package }),
            false => Ok(()),
        };
        match role {
            Role::Dpkg => dpkg::packages(bytes, add),
            Role::Apk => apk::packages(bytes, add),
            Role::Node => node::package(bytes)?.map_or(Ok(()), add),
            Role::Python => add(python::package(bytes)?),
            // `/etc/os-release` comes first and counts.
            Role::System if self.system == os::System::default() => {
                self.system = os::System::read(bytes)?;
                Ok(())
            }
            Role::System | Role::Rpm => Ok(()),
        }
    }

    fn remark(&mut self, text: String) {
        match self.remarks.len() {
            0..REMARKS_MAX => self.remarks.push(text),
            REMARKS_MAX => self.remarks.push("more was left out".to_owned()),
            _ => {}
        }
    }

    fn found(mut self) -> io::Result<Found> {
        if self.packages.count == PACKAGES_MAX {
            self.remark(format!("only {PACKAGES_MAX} packages are listed"));
        }
        Ok(Found { packages: self.packages.sorted()?, system: self.system, remarks: self.remarks })
    }
}

/// A value for people: without control characters, and no longer than anyone writes it.
fn text(value: &str) -> String {
    value.trim().chars().filter(|c| !c.is_control()).take(TEXT_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests;
