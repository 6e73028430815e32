//! Debian's package database: paragraphs of `Field: value` (deb-status, dpkg(1)).

use super::{Ecosystem, Package, text};

/// The packages that are installed. A package that was removed and left its configuration is in the file, too.
pub(super) fn packages(status: &str) -> impl Iterator<Item = Package> + '_ {
    paragraphs(status).filter_map(|lines| {
        let mut package = Package::new(Ecosystem::Deb);
        let mut is_installed = true;
        for line in lines {
            // A blank at its beginning continues the field above, none of which is wanted.
            if line.starts_with([' ', '\t']) {
                continue;
            }
            let Some((field, value)) = line.split_once(':') else { continue };
            let value = text(value);
            match field {
                "Package" => package.name = value,
                "Version" => package.version = value,
                "Architecture" => package.architecture = value,
                "Maintainer" => package.maintainer = value,
                "Homepage" => package.homepage = value,
                // `name (version)`
                "Source" => package.upstream = value.split(' ').next().unwrap_or_default().to_owned(),
                "Status" => is_installed = value.split(' ').next_back() == Some("installed"),
                _ => {}
            }
        }
        is_installed.then_some(package)
    })
}

fn paragraphs(text: &str) -> impl Iterator<Item = impl Iterator<Item = &str>> {
    text.split("\n\n").map(|paragraph| paragraph.lines())
}
