//! Debian's package database: paragraphs of `Field: value` (deb-status, dpkg(1)).

use std::io::{self, BufRead};
use std::mem::replace;

use super::lines::for_each_line;
use super::{Ecosystem, Package, text};

/// Gives the packages that are installed to `add`. A package that was removed and left its configuration is in the file,
/// too.
pub(super) fn packages(
    status: impl BufRead,
    mut add: impl FnMut(Package) -> io::Result<()>,
) -> io::Result<()> {
    let new = || Package::new(Ecosystem::Deb);
    let mut package = new();
    let mut is_installed = true;
    for_each_line(status, |line| {
        if line.is_empty() {
            let package = replace(&mut package, new());
            if replace(&mut is_installed, true) {
                add(package)?;
            }
        }
        // A blank at its beginning continues the field above, none of which is wanted.
        if line.starts_with([' ', '\t']) {
            return Ok(true);
        }
        let Some((field, value)) = line.split_once(':') else { return Ok(true) };
        match field {
            "Package" => package.name = text(value),
            "Version" => package.version = text(value),
            "Architecture" => package.architecture = text(value),
            "Maintainer" => package.maintainer = text(value),
            "Homepage" => package.homepage = text(value),
            // `name (version)`
            "Source" => package.upstream = text(value).split(' ').next().unwrap_or_default().to_owned(),
            "Status" => is_installed = text(value).split(' ').next_back() == Some("installed"),
            _ => {}
        }
        Ok(true)
    })?;
    if is_installed { add(package) } else { Ok(()) }
}
