//! Packages of Node: `package.json` where npm, yarn and pnpm install.

use std::fmt;
use std::io::{self, BufRead};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Ecosystem, Package, text};

/// True for `…/node_modules/name` and `…/node_modules/@scope/name`: other `package.json`s are of projects, not of what is
/// installed.
pub(super) fn is_installed(dir: &[u8]) -> bool {
    let mut parts = dir.rsplit(|byte| *byte == b'/');
    let (Some(_name), Some(above)) = (parts.next(), parts.next()) else { return false };
    above == b"node_modules" || above.starts_with(b"@") && parts.next() == Some(b"node_modules".as_slice())
}

/// The package, unless it is malformed. Nothing is held of what is not wanted.
pub(super) fn package(json: impl BufRead) -> io::Result<Option<Package>> {
    match serde_json::from_reader(json) {
        Ok(Described(package)) => Ok(Some(package)),
        Err(error) if error.is_io() => Err(error.into()),
        Err(_) => Ok(None),
    }
}

struct Described(Package);

impl<'de> Deserialize<'de> for Described {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Description).map(Self)
    }
}

struct Description;

impl<'de> Visitor<'de> for Description {
    type Value = Package;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    // Of a key that is there more than once the last counts.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Package, A::Error> {
        let mut package = Package::new(Ecosystem::Npm);
        while let Some(key) = map.next_key::<String>()? {
            let (field, within) = match key.as_str() {
                "name" => (&mut package.name, None),
                "version" => (&mut package.version, None),
                "license" => (&mut package.license, Some("type")),
                "author" => (&mut package.maintainer, Some("name")),
                "homepage" => (&mut package.homepage, None),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            *field = map.next_value_seed(Text { within })?;
        }
        Ok(package)
    }
}

/// A text, or that of a field of an object; nothing of anything else.
struct Text {
    within: Option<&'static str>,
}

impl<'de> DeserializeSeed<'de> for Text {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<String, E> {
        Ok(text(value))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<String, A::Error> {
        let mut found = String::new();
        while let Some(key) = map.next_key::<String>()? {
            if self.within == Some(&key) {
                found = map.next_value_seed(Self { within: None })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<String, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(String::new())
    }

    fn visit_unit<E: Error>(self) -> Result<String, E> {
        Ok(String::new())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<String, E> {
        Ok(String::new())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<String, E> {
        Ok(String::new())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<String, E> {
        Ok(String::new())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<String, E> {
        Ok(String::new())
    }
}
