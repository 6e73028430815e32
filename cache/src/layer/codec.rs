//! A [`LayerDiff`] as bytes, kept beside its layer directory.
//!
//! ```text
//! "rbld" version  count  entry*  first 16 bytes of BLAKE3 of all before
//! entry  = shared-prefix suffix  kind  seconds nanos  by-kind
//! meta   = mode uid gid  xattr-count (name value)*
//! ```
//!
//! Numbers are LEB128 in their shortest form, signed ones zigzag; byte strings have their length before them; a path
//! says how many bytes it shares with the one before. There is one encoding per diff, and the decoder takes no other.

use std::collections::BTreeMap;

use super::diff::{Change, DiffEntry, LayerDiff, Mtime};
use crate::path::RelPath;
use crate::tree::{ContentDigest, Meta};

const MAGIC: &[u8; 4] = b"rbld";
const VERSION: u8 = 1;
const CHECK_BYTES: usize = 16;

/// Why bytes are not a diff.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Other bytes, or a version that this release does not read.
    #[error("not a layer listing of version {VERSION}")]
    Version,
    /// The checksum does not match: the file is damaged.
    #[error("the layer listing is damaged")]
    Damaged,
    /// The checksum matches but the content breaks a rule: a defect of the writer.
    #[error("the layer listing is malformed at byte {at}: {what}")]
    Malformed {
        /// Offset.
        at: usize,
        /// The rule.
        what: &'static str,
    },
}

/// Encodes a diff, which must keep [`LayerDiff`]'s rules to be decodable.
pub fn encode_diff(diff: &LayerDiff) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + diff.entries.len() * 64);
    out.extend_from_slice(MAGIC);
    out.push(VERSION);
    put_number(&mut out, diff.entries.len() as u64);
    let mut previous: &[u8] = b"";
    for entry in &diff.entries {
        let path = entry.path.as_bytes();
        let shared = path.iter().zip(previous).take_while(|(a, b)| a == b).count();
        put_number(&mut out, shared as u64);
        put_bytes(&mut out, &path[shared..]);
        put_entry(&mut out, entry);
        previous = path;
    }
    let check = blake3::hash(&out);
    out.extend_from_slice(&check.as_bytes()[..CHECK_BYTES]);
    out
}

fn put_entry(out: &mut Vec<u8>, entry: &DiffEntry) {
    out.push(kind(&entry.change));
    let secs = entry.mtime.secs;
    put_number(out, ((secs << 1) ^ (secs >> 63)).cast_unsigned());
    put_number(out, entry.mtime.nanos.into());
    match &entry.change {
        Change::Whiteout => {}
        Change::Dir { meta, .. } | Change::Fifo { meta } => put_meta(out, meta),
        Change::File { meta, size, content } => {
            put_meta(out, meta);
            put_number(out, *size);
            out.extend_from_slice(&content.0);
        }
        Change::Hardlink { target } => put_bytes(out, target.as_bytes()),
        Change::Symlink { meta, target } => {
            put_meta(out, meta);
            put_bytes(out, target);
        }
        Change::CharDevice { meta, major, minor } | Change::BlockDevice { meta, major, minor } => {
            put_meta(out, meta);
            put_number(out, (*major).into());
            put_number(out, (*minor).into());
        }
    }
}

fn kind(change: &Change) -> u8 {
    match change {
        Change::Whiteout => 0,
        Change::Dir { opaque: false, .. } => 1,
        Change::Dir { opaque: true, .. } => 2,
        Change::File { .. } => 3,
        Change::Hardlink { .. } => 4,
        Change::Symlink { .. } => 5,
        Change::CharDevice { .. } => 6,
        Change::BlockDevice { .. } => 7,
        Change::Fifo { .. } => 8,
    }
}

fn put_meta(out: &mut Vec<u8>, meta: &Meta) {
    put_number(out, meta.mode.into());
    put_number(out, meta.uid.into());
    put_number(out, meta.gid.into());
    put_number(out, meta.xattrs.len() as u64);
    for (name, value) in &meta.xattrs {
        put_bytes(out, name);
        put_bytes(out, value);
    }
}

fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Decodes what [`encode_diff`] wrote, and nothing else. Memory is bounded by a small multiple of the input.
pub fn decode_diff(bytes: &[u8]) -> Result<LayerDiff, CodecError> {
    decoded(bytes, |decoder| decoder.diff())
}

/// How many entries the diff that was encoded as `bytes` and this one have in common from the first on, of `most`.
pub fn shared_entries(bytes: &[u8], diff: &LayerDiff, most: usize) -> Result<usize, CodecError> {
    let mut shared = 0;
    each_entry(bytes, &mut |entry| {
        let is_same = shared < most && diff.entries.get(shared) == Some(entry);
        shared += usize::from(is_same);
        is_same
    })?;
    Ok(shared)
}

/// Shows the entries of the diff that was encoded as `bytes`, in their order, until `next` wants no more.
pub fn each_entry(bytes: &[u8], next: &mut dyn FnMut(&DiffEntry) -> bool) -> Result<(), CodecError> {
    decoded(bytes, |decoder| {
        let mut last: Option<DiffEntry> = None;
        for _ in 0..decoder.number()? {
            let entry = decoder.entry(last.as_ref().map(|entry| &entry.path))?;
            if !next(&entry) {
                break;
            }
            last = Some(entry);
        }
        Ok(())
    })
}

fn decoded<T>(
    bytes: &[u8],
    decode: impl FnOnce(&mut Decoder<'_>) -> Result<T, &'static str>,
) -> Result<T, CodecError> {
    if bytes.len() < MAGIC.len() + 1 || !bytes.starts_with(MAGIC) || bytes[MAGIC.len()] != VERSION {
        return Err(CodecError::Version);
    }
    let (body, check) = bytes.split_last_chunk::<CHECK_BYTES>().ok_or(CodecError::Damaged)?;
    if check[..] != blake3::hash(body).as_bytes()[..CHECK_BYTES] {
        return Err(CodecError::Damaged);
    }
    let mut decoder = Decoder { bytes: body, at: MAGIC.len() + 1 };
    decode(&mut decoder).map_err(|what| CodecError::Malformed { at: decoder.at, what })
}

struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Decoder<'a> {
    fn diff(&mut self) -> Result<LayerDiff, &'static str> {
        let count = self.number()?;
        // Every entry takes at least five bytes: a made-up count reserves nothing.
        let most = (self.bytes.len() - self.at) / 5;
        let count =
            usize::try_from(count).ok().filter(|count| *count <= most).ok_or("more entries than bytes")?;
        let mut entries: Vec<DiffEntry> = Vec::with_capacity(count);
        for _ in 0..count {
            let previous = entries.last().map(|entry| &entry.path);
            let entry = self.entry(previous)?;
            if let Change::Hardlink { target } = &entry.change {
                let found = entries.binary_search_by(|entry| entry.path.cmp(target));
                if !found.is_ok_and(|at| matches!(entries[at].change, Change::File { .. })) {
                    return Err("a hard link without its file before it");
                }
            }
            entries.push(entry);
        }
        if self.at == self.bytes.len() {
            Ok(LayerDiff { entries })
        } else {
            Err("bytes after the last entry")
        }
    }

    fn entry(&mut self, previous: Option<&RelPath>) -> Result<DiffEntry, &'static str> {
        let before = previous.map_or(&b""[..], RelPath::as_bytes);
        let shared = usize::try_from(self.number()?).map_err(|_| "a prefix is too long")?;
        let suffix = self.string()?;
        let prefix = before.get(..shared).ok_or("a prefix is longer than the path before")?;
        if shared < before.len() && suffix.first() == before.get(shared) {
            return Err("a prefix is shorter than it could be");
        }
        let path = RelPath::new([prefix, suffix].concat()).map_err(|_| "a path is not clean")?;
        if previous.is_some_and(|previous| *previous >= path) {
            return Err("paths are not in order");
        }
        let kind = self.take(1)?[0];
        let secs = self.number()?;
        let secs = (secs >> 1).cast_signed() ^ -(secs & 1).cast_signed();
        let nanos = self.number()?;
        let nanos =
            u32::try_from(nanos).ok().filter(|n| *n < 1_000_000_000).ok_or("nanoseconds out of range")?;
        let change = self.change(kind, &path)?;
        Ok(DiffEntry { path, change, mtime: Mtime { secs, nanos } })
    }

    fn change(&mut self, kind: u8, path: &RelPath) -> Result<Change, &'static str> {
        if path.is_root() && !matches!(kind, 1 | 2) {
            return Err("the root is not a directory");
        }
        Ok(match kind {
            0 => Change::Whiteout,
            1 | 2 => Change::Dir { meta: self.meta()?, opaque: kind == 2 },
            3 => {
                let (meta, size) = (self.meta()?, self.number()?);
                let content = self.take(32)?.try_into().map_err(|_| "a digest is cut")?;
                Change::File { meta, size, content: ContentDigest(content) }
            }
            4 => Change::Hardlink {
                target: RelPath::new(self.string()?).map_err(|_| "a target is not clean")?,
            },
            5 => Change::Symlink { meta: self.meta()?, target: self.string()?.to_vec() },
            6 => Change::CharDevice { meta: self.meta()?, major: self.small()?, minor: self.small()? },
            7 => Change::BlockDevice { meta: self.meta()?, major: self.small()?, minor: self.small()? },
            8 => Change::Fifo { meta: self.meta()? },
            _ => return Err("an unknown kind"),
        })
    }

    fn meta(&mut self) -> Result<Meta, &'static str> {
        let mode = self.small()?;
        if mode > 0o7777 {
            return Err("a mode is out of range");
        }
        let (uid, gid) = (self.small()?, self.small()?);
        let mut xattrs = BTreeMap::new();
        for _ in 0..self.number()? {
            let (name, value) = (self.string()?, self.string()?);
            if xattrs.last_key_value().is_some_and(|(last, _): (&Vec<u8>, _)| last.as_slice() >= name) {
                return Err("xattrs are not in order");
            }
            xattrs.insert(name.to_vec(), value.to_vec());
        }
        Ok(Meta { mode, uid, gid, xattrs })
    }

    fn number(&mut self) -> Result<u64, &'static str> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits || (byte == 0 && shift > 0) {
                return Err("a number is not in its shortest form");
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a number is too large")
    }

    fn small(&mut self) -> Result<u32, &'static str> {
        self.number()?.try_into().map_err(|_| "a number does not fit in 32 bits")
    }

    fn string(&mut self) -> Result<&'a [u8], &'static str> {
        let len = usize::try_from(self.number()?).map_err(|_| "a length is too large")?;
        self.take(len)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], &'static str> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len()).ok_or("it is cut off")?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests;
