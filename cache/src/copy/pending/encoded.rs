//! What is said of a path, as bytes: for one process, so there is no version in them.
//!
//! ```text
//! said  = flags  { secs nanos }  { rule }  { item }  { rule path }  { entry }
//! ```
//!
//! Numbers, byte strings and paths are as in the listing of a layer; the entry is as in a directory's node.

use std::num::NonZeroU32;

use super::super::rules::Rule;
use super::super::view::{FirstName, Planned};
use super::Said;
use crate::layer::{FieldReader, Mtime, put_bytes, put_number};
use crate::path::RelPath;
use crate::tree::Entry;

/// What of it there is; nothing of what is gone.
const IS_PLANNED: u64 = 1;
const HAS_MTIME: u64 = 2;
const HAS_ORIGIN: u64 = 4;
const HAS_ITEM: u64 = 8;
const HAS_FIRST: u64 = 16;

/// Appends what is said.
pub(super) fn put_said(out: &mut Vec<u8>, said: &Said) {
    let Said::Planned(planned) = said else { return put_number(out, 0) };
    let Planned { entry, mtime, origin, item, first } = &**planned;
    let flag = |is_there, flag| if is_there { flag } else { 0 };
    let flags = IS_PLANNED
        | flag(mtime.is_some(), HAS_MTIME)
        | flag(origin.is_some(), HAS_ORIGIN)
        | flag(item.is_some(), HAS_ITEM)
        | flag(first.is_some(), HAS_FIRST);
    put_number(out, flags);
    if let Some(Mtime { secs, nanos }) = mtime {
        put_number(out, secs.cast_unsigned());
        put_number(out, u64::from(*nanos));
    }
    if let Some(rule) = origin {
        put_number(out, rule.number().into());
    }
    if let Some(item) = item {
        put_number(out, item.get().into());
    }
    if let Some(first) = first {
        put_number(out, first.rule.number().into());
        put_bytes(out, first.path.as_bytes());
    }
    put_bytes(out, &entry.encode());
}

/// Reads what [`put_said`] appended.
pub(super) fn read_said(input: &mut FieldReader<'_>) -> Result<Said, &'static str> {
    let flags = input.number()?;
    if flags & IS_PLANNED == 0 {
        return Ok(Said::Gone);
    }
    let has = |flag| flags & flag != 0;
    let mtime = match has(HAS_MTIME) {
        true => Some(Mtime { secs: input.number()?.cast_signed(), nanos: small(input)? }),
        false => None,
    };
    let origin = if has(HAS_ORIGIN) { Some(rule(input)?) } else { None };
    let item = if has(HAS_ITEM) { NonZeroU32::new(small(input)?) } else { None };
    let first = match has(HAS_FIRST) {
        true => {
            let rule = rule(input)?;
            let path = RelPath::new(input.string()?).map_err(|_| "a first name is not clean")?;
            Some(Box::new(FirstName { path, rule }))
        }
        false => None,
    };
    let entry = Entry::decode(input.string()?).map_err(|_| "an entry does not decode")?;
    Ok(Said::Planned(Box::new(Planned { entry, mtime, origin, item, first })))
}

fn small(input: &mut FieldReader<'_>) -> Result<u32, &'static str> {
    input.number()?.try_into().map_err(|_| "a number does not fit in 32 bits")
}

fn rule(input: &mut FieldReader<'_>) -> Result<Rule, &'static str> {
    Rule::of_number(input.number()?).ok_or("a rule has no such number")
}
