//! What an entry's name means.

use super::super::limits::{Limits, NAME_BYTES_MAX};
use crate::path::RelPath;

const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// Names only aufs itself used, in archives made long ago.
const AUFS_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name {
    Entry(RelPath),
    /// Removes the entry of lower layers at this path.
    Whiteout(RelPath),
    /// Hides what lower layers have in this directory.
    Opaque(RelPath),
    /// Skipped, as by every tool.
    AufsMetadata,
}

/// Cleans a name: leading slashes, `.` and empty components go, `..` takes one component back. The error says why it
/// is refused.
pub(super) fn resolve(name: &[u8], limits: &Limits) -> Result<Name, &'static str> {
    let parts = components(name, limits, Climb::Refused)?;
    let Some((last, above)) = parts.split_last() else { return Ok(Name::Entry(RelPath::root())) };
    if *last != OPAQUE && parts.iter().any(|part| part.starts_with(AUFS_PREFIX)) {
        return Ok(Name::AufsMetadata);
    }
    if above.iter().any(|part| part.starts_with(WHITEOUT_PREFIX)) {
        return Err("it is below a whiteout");
    }
    if *last == OPAQUE {
        return clean(above).map(Name::Opaque);
    }
    let Some(hidden) = last.strip_prefix(WHITEOUT_PREFIX) else { return clean(&parts).map(Name::Entry) };
    if matches!(hidden, b"" | b"." | b"..") {
        return Err("the whiteout names nothing in its directory");
    }
    let parts = [above, &[hidden]].concat();
    clean(&parts).map(Name::Whiteout)
}

/// The same for an archive that ADD unpacks: what climbs out stays at the top, as below a root directory, and nothing
/// is a whiteout. A name that would become one once the file is part of a layer is refused.
pub(super) fn resolve_added(name: &[u8], limits: &Limits) -> Result<RelPath, &'static str> {
    let parts = components(name, limits, Climb::StaysAtTop)?;
    if parts.iter().any(|part| part.starts_with(WHITEOUT_PREFIX)) {
        return Err("names that begin with `.wh.` mean deletions in image layers, no file can have one");
    }
    clean(&parts)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Climb {
    Refused,
    StaysAtTop,
}

fn components<'a>(name: &'a [u8], limits: &Limits, climb: Climb) -> Result<Vec<&'a [u8]>, &'static str> {
    if name.is_empty() {
        return Err("the name is empty");
    }
    if name.len() > limits.path_bytes_max {
        return Err("the path is too long");
    }
    if name.contains(&0) {
        return Err("the name contains NUL");
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                if parts.pop().is_none() && climb == Climb::Refused {
                    return Err("it leads out of the layer");
                }
            }
            part => parts.push(part),
        }
    }
    if parts.len() > limits.depth_max {
        return Err("the path is too deep");
    }
    Ok(parts)
}

fn clean(parts: &[&[u8]]) -> Result<RelPath, &'static str> {
    if parts.iter().any(|part| part.len() > NAME_BYTES_MAX) {
        return Err("a component is longer than 255 bytes");
    }
    RelPath::new(parts.join(&b'/')).map_err(|_| "the path is not clean")
}
