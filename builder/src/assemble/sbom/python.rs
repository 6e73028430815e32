//! Packages of Python: the core metadata that installers keep (`METADATA`, `PKG-INFO`).

use std::io::{self, BufRead};

use super::lines::for_each_line;
use super::{Ecosystem, Package, text};

pub(super) fn package(metadata: impl BufRead) -> io::Result<Package> {
    let mut package = Package::new(Ecosystem::PyPi);
    for_each_line(metadata, |line| {
        // Headers end at the first empty line; the description comes after it.
        if matches!(line, "" | "\r") {
            return Ok(false);
        }
        if line.starts_with([' ', '\t']) {
            return Ok(true);
        }
        let Some((field, value)) = line.split_once(':') else { return Ok(true) };
        match field {
            "Name" => package.name = text(value),
            "Version" => package.version = text(value),
            "License" if package.license.is_empty() => package.license = text(value),
            "License-Expression" => package.license = text(value),
            "Author-email" | "Author" if package.maintainer.is_empty() => package.maintainer = text(value),
            "Home-page" => package.homepage = text(value),
            _ => {}
        }
        Ok(true)
    })?;
    Ok(package)
}
