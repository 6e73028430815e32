//! Packages of Python: the core metadata that installers keep (`METADATA`, `PKG-INFO`).

use super::{Ecosystem, Package, text};

pub(super) fn package(metadata: &str) -> Option<Package> {
    let mut package = Package::new(Ecosystem::PyPi);
    // Headers end at the first empty line; the description comes after it.
    for line in metadata.lines().take_while(|line| !line.is_empty()) {
        if line.starts_with([' ', '\t']) {
            continue;
        }
        let Some((field, value)) = line.split_once(':') else { continue };
        match field {
            "Name" => package.name = text(value),
            "Version" => package.version = text(value),
            "License" if package.license.is_empty() => package.license = text(value),
            "License-Expression" => package.license = text(value),
            "Author-email" | "Author" if package.maintainer.is_empty() => package.maintainer = text(value),
            "Home-page" => package.homepage = text(value),
            _ => {}
        }
    }
    Some(package)
}
