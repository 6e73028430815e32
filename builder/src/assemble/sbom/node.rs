//! Packages of Node: `package.json` where npm, yarn and pnpm install.

use serde_json::Value;

use super::{Ecosystem, Package, text};

/// True for `…/node_modules/name` and `…/node_modules/@scope/name`: other `package.json`s are of projects, not of what is
/// installed.
pub(super) fn is_installed(dir: &[u8]) -> bool {
    let mut parts = dir.rsplit(|byte| *byte == b'/');
    let (Some(_name), Some(above)) = (parts.next(), parts.next()) else { return false };
    above == b"node_modules" || above.starts_with(b"@") && parts.next() == Some(b"node_modules".as_slice())
}

pub(super) fn package(json: &[u8]) -> Option<Package> {
    let document: Value = serde_json::from_slice(json).ok()?;
    let field = |name: &str| document.get(name).and_then(Value::as_str).map(text).unwrap_or_default();
    let license = document.pointer("/license/type").and_then(Value::as_str).map(text);
    let author = document.pointer("/author/name").and_then(Value::as_str).map(text);
    Some(Package {
        name: field("name"),
        version: field("version"),
        license: license.unwrap_or_else(|| field("license")),
        maintainer: author.unwrap_or_else(|| field("author")),
        homepage: field("homepage"),
        ..Package::new(Ecosystem::Npm)
    })
}
