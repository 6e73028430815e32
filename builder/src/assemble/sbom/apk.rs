//! Alpine's package database: paragraphs of `X:value` lines (apk's installed database).

use super::{Ecosystem, Package, text};

/// The packages that are installed.
pub(super) fn packages(installed: &str) -> impl Iterator<Item = Package> + '_ {
    installed.split("\n\n").map(|paragraph| {
        let mut package = Package::new(Ecosystem::Apk);
        for line in paragraph.lines() {
            let Some((field, value)) = line.split_once(':') else { continue };
            match field {
                "P" => package.name = text(value),
                "V" => package.version = text(value),
                "A" => package.architecture = text(value),
                "L" => package.license = text(value),
                "m" => package.maintainer = text(value),
                "U" => package.homepage = text(value),
                "o" => package.upstream = text(value),
                _ => {}
            }
        }
        package
    })
}
