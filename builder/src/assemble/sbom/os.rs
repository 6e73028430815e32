//! Which distribution an image is of (os-release(5)).

use std::io::{self, BufRead};

use super::lines::for_each_line;
use super::text;

/// A distribution.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct System {
    /// `debian`; empty when nothing says.
    pub(super) id: String,
    /// `12`; may be empty.
    pub(super) version: String,
}

impl System {
    pub(super) fn read(file: impl BufRead) -> io::Result<Self> {
        let mut system = Self::default();
        for_each_line(file, |line| {
            let Some((key, value)) = line.trim().split_once('=') else { return Ok(true) };
            let value = text(value.trim_matches(['"', '\'']));
            match key {
                "ID" => system.id = value.to_ascii_lowercase(),
                "VERSION_ID" => system.version = value,
                _ => {}
            }
            Ok(true)
        })?;
        Ok(system)
    }

    /// `debian-12`, as package URLs have it.
    pub(super) fn distro(&self) -> String {
        match (self.id.as_str(), self.version.as_str()) {
            ("", _) => String::new(),
            (id, "") => id.to_owned(),
            (id, version) => format!("{id}-{version}"),
        }
    }
}
