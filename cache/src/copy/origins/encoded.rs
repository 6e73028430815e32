//! An origin as bytes: for one process, so there is no version in them.
//!
//! ```text
//! origin = 0 moved | 1 moved | 2 content | 3
//! moved  = shared-prefix suffix  shared-prefix suffix
//! ```
//!
//! The path in the layer is over one that the reader knows, that in the source over it.

use super::{Moved, Origin};
use crate::layer::{FieldReader, put_bytes, put_number, put_path};
use crate::path::RelPath;

const SOURCE: u64 = 0;
const ARCHIVE: u64 = 1;
const INLINE: u64 = 2;
const PACKED: u64 = 3;

/// Appends an origin; `near` is a path that its own may begin like.
pub(in super::super) fn put_origin(out: &mut Vec<u8>, near: &[u8], origin: &Origin) {
    match origin {
        Origin::Source(moved) => {
            put_number(out, SOURCE);
            put_moved(out, near, moved);
        }
        Origin::Archive(moved) => {
            put_number(out, ARCHIVE);
            put_moved(out, near, moved);
        }
        Origin::Inline(content) => {
            put_number(out, INLINE);
            put_bytes(out, content);
        }
        Origin::Packed => put_number(out, PACKED),
    }
}

fn put_moved(out: &mut Vec<u8>, near: &[u8], Moved { to, from }: &Moved) {
    put_path(out, near, to.as_bytes());
    put_path(out, to.as_bytes(), from.as_bytes());
}

/// Reads what [`put_origin`] appended with the same path near.
pub(in super::super) fn read_origin(
    input: &mut FieldReader<'_>,
    near: &[u8],
) -> Result<Origin, &'static str> {
    Ok(match input.number()? {
        SOURCE => Origin::Source(read_moved(input, near)?),
        ARCHIVE => Origin::Archive(read_moved(input, near)?),
        INLINE => Origin::Inline(input.string()?.to_vec()),
        PACKED => Origin::Packed,
        _ => return Err("an unknown origin"),
    })
}

fn read_moved(input: &mut FieldReader<'_>, near: &[u8]) -> Result<Moved, &'static str> {
    let mut to = near.to_vec();
    input.path(&mut to)?;
    let mut from = to.clone();
    input.path(&mut from)?;
    let path = |bytes| RelPath::new(bytes).map_err(|_| "a path is not clean");
    Ok(Moved { to: path(to)?, from: path(from)? })
}
