//! Alpine's package database: paragraphs of `X:value` lines (apk's installed database).

use std::io::{self, BufRead};
use std::mem::replace;

use super::lines::for_each_line;
use super::{Ecosystem, Package, text};

/// Gives the packages that are installed to `add`.
pub(super) fn packages(
    installed: impl BufRead,
    mut add: impl FnMut(Package) -> io::Result<()>,
) -> io::Result<()> {
    let new = || Package::new(Ecosystem::Apk);
    let mut package = new();
    for_each_line(installed, |line| {
        if line.is_empty() {
            add(replace(&mut package, new()))?;
        }
        let Some((field, value)) = line.split_once(':') else { return Ok(true) };
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
        Ok(true)
    })?;
    add(package)
}
