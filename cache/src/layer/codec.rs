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
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use super::diff::{Change, DiffEntry, LayerDiff, ListingCheck, ListingError, Mtime};
use crate::encoded::{ALL_AHEAD, Encoded, ONE_AHEAD, ReadError};
use crate::path::{RelPath, compare, is_clean};
use crate::tree::{ContentDigest, Meta};

const MAGIC: &[u8; 4] = b"rbld";
const VERSION: u8 = 1;
const CHECK_BYTES: usize = 16;

/// Why bytes that stop too early are no entry.
pub(crate) const CUT_OFF: &str = "it is cut off";

impl From<ListingError> for CodecError {
    fn from(error: ListingError) -> Self {
        Self::Read(error.source)
    }
}

/// Why bytes are not a diff.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The file cannot be read.
    #[error("read a layer listing")]
    Read(#[from] io::Error),
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
        at: u64,
        /// The rule.
        what: &'static str,
    },
}

/// Bytes of an encoded diff.
pub(crate) fn encoded_len(diff: &LayerDiff) -> u64 {
    head(diff).len() as u64 + diff.encoded.len() + CHECK_BYTES as u64
}

/// Writes a diff; gives its last bytes.
pub fn write_diff(diff: &LayerDiff, out: &mut dyn Write) -> io::Result<ListingCheck> {
    let mut hash = blake3::Hasher::new();
    let head = head(diff);
    hash.update(&head);
    out.write_all(&head)?;
    diff.encoded.for_each_piece(|piece| {
        hash.update(piece);
        out.write_all(piece)
    })?;
    let check = check_of(&hash);
    out.write_all(&check.0)?;
    Ok(check)
}

fn head(diff: &LayerDiff) -> Vec<u8> {
    let mut head = [MAGIC, &[VERSION][..]].concat();
    put_number(&mut head, diff.len() as u64);
    head
}

fn check_of(hash: &blake3::Hasher) -> ListingCheck {
    ListingCheck(*hash.finalize().as_bytes().first_chunk().expect("a hash is longer"))
}

/// Appends an entry that comes after the one at `previous`.
pub(super) fn put_entry(out: &mut Vec<u8>, previous: &[u8], entry: &DiffEntry) {
    put_path(out, previous, entry.path.as_bytes());
    put_rest(out, &entry.change, entry.mtime);
}

/// Appends what a path does not share with the one before.
pub(crate) fn put_path(out: &mut Vec<u8>, previous: &[u8], path: &[u8]) {
    let shared = path.iter().zip(previous).take_while(|(a, b)| a == b).count();
    put_number(out, shared as u64);
    put_bytes(out, &path[shared..]);
}

/// Appends what comes after an entry's path.
pub(super) fn put_rest(out: &mut Vec<u8>, change: &Change, mtime: Mtime) {
    out.push(kind(change));
    let secs = mtime.secs;
    put_number(out, ((secs << 1) ^ (secs >> 63)).cast_unsigned());
    put_number(out, mtime.nanos.into());
    match change {
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

/// Appends a number, seven bits to a byte.
pub(crate) fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends bytes after their length.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Decodes what [`write_diff`] wrote between `from` and `end` of a file, and nothing else. It stays there if it is large.
pub fn decode_diff(file: File, from: u64, end: u64) -> Result<LayerDiff, CodecError> {
    let len = end.saturating_sub(from);
    let head_len = (MAGIC.len() + 1) as u64;
    let mut head = [0; MAGIC.len() + 1];
    if len >= head_len {
        file.read_exact_at(&mut head, from)?;
    }
    if !head.starts_with(MAGIC) || head[MAGIC.len()] != VERSION {
        return Err(CodecError::Version);
    }
    let body = len.checked_sub(CHECK_BYTES as u64).filter(|body| *body >= head_len);
    let body = body.ok_or(CodecError::Damaged)?;
    let mut check = ListingCheck([0; CHECK_BYTES]);
    file.read_exact_at(&mut check.0, from + body)?;

    let mut encoded = Encoded::read(file, from, body)?;
    let mut hash = blake3::Hasher::new();
    encoded.for_each_piece(|piece| {
        hash.update(piece);
        Ok(())
    })?;
    if check_of(&hash) != check {
        return Err(CodecError::Damaged);
    }
    let mut input = encoded.read_from(head_len, ONE_AHEAD);
    let count = input.read(|reader| reader.number()).map_err(at(head_len))?;
    encoded.start = input.at();

    let mut diff = LayerDiff::of_start(encoded.start);
    let has_links = read_all(&encoded, count, &mut diff)?;
    (diff.encoded, diff.check) = (encoded, Some(check));
    for entry in has_links.then(|| diff.iter()).into_iter().flatten() {
        let DiffEntry { path, change, .. } = entry?;
        let Change::Hardlink { target } = change else { continue };
        let is_file = |entry: DiffEntry| matches!(entry.change, Change::File { .. });
        if target >= path || !diff.get(&target)?.is_some_and(is_file) {
            return Err(CodecError::Malformed { at: 0, what: "a hard link without its file before it" });
        }
    }
    Ok(diff)
}

/// What cannot be read at a place.
fn at(at: u64) -> impl Fn(ReadError) -> CodecError {
    move |error| match error {
        ReadError::Io(source) => CodecError::Read(source),
        ReadError::Malformed(what) => CodecError::Malformed { at, what },
    }
}

/// Checks every entry, tells `diff` where it is, and gives whether there are hard links, which can be checked then.
fn read_all(encoded: &Encoded, count: u64, diff: &mut LayerDiff) -> Result<bool, CodecError> {
    let mut input = encoded.read_from(encoded.start, ALL_AHEAD);
    let mut has_links = false;
    let (mut before, mut path) = (Vec::new(), Vec::new());
    for index in 0..count {
        let begin = input.at();
        let failed = at(begin);
        let shared = input.read(|reader| reader.path(&mut path)).map_err(&failed)?;
        let (change, mtime) = input.read(|reader| reader.rest()).map_err(&failed)?;
        let broken = if shared < before.len() && path.get(shared) == before.get(shared) {
            Some("a prefix is shorter than it could be")
        } else if !is_clean(&path) {
            Some("a path is not clean")
        } else if index > 0 && compare(&before, &path).is_ge() {
            Some("paths are not in order")
        } else if path.is_empty() && !matches!(change, Change::Dir { .. }) {
            Some("the root is not a directory")
        } else if mtime.nanos >= 1_000_000_000 {
            Some("nanoseconds out of range")
        } else if change.meta().is_some_and(|meta| meta.mode > 0o7777) {
            Some("a mode is out of range")
        } else {
            None
        };
        if let Some(what) = broken {
            return Err(failed(ReadError::Malformed(what)));
        }
        has_links |= matches!(change, Change::Hardlink { .. });
        diff.note(begin, &path);
        before.clone_from(&path);
    }
    match input.at() {
        end if end == encoded.end() => Ok(has_links),
        end => Err(at(end)(ReadError::Malformed("bytes after the last entry"))),
    }
}

/// Reads numbers and entries; whether they keep the rules of a diff is for whoever does not know it.
#[derive(Clone)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    /// The next byte's place.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Turns the path of the entry before into that of the next, and says how many bytes stayed. On an error it is as it was.
    pub(crate) fn path(&mut self, path: &mut Vec<u8>) -> Result<usize, &'static str> {
        let shared = usize::try_from(self.number()?).map_err(|_| "a prefix is too long")?;
        if shared > path.len() {
            return Err("a prefix is longer than the path before");
        }
        let suffix = self.string()?;
        path.truncate(shared);
        path.extend_from_slice(suffix);
        Ok(shared)
    }

    /// What comes after an entry's path.
    pub(super) fn rest(&mut self) -> Result<(Change, Mtime), &'static str> {
        let kind = self.take(1)?[0];
        let secs = self.number()?;
        let secs = (secs >> 1).cast_signed() ^ -(secs & 1).cast_signed();
        let nanos = self.small()?;
        Ok((self.change(kind)?, Mtime { secs, nanos }))
    }

    fn change(&mut self, kind: u8) -> Result<Change, &'static str> {
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

    /// Passes over what comes after an entry's path.
    pub(super) fn skip_rest(&mut self) -> Result<(), &'static str> {
        let kind = self.take(1)?[0];
        // The time.
        self.skip_numbers(2)?;
        match kind {
            0 => {}
            4 => drop(self.string()?),
            _ => self.skip_meta()?,
        }
        match kind {
            3 => {
                self.number()?;
                self.take(32)?;
            }
            5 => drop(self.string()?),
            6 | 7 => self.skip_numbers(2)?,
            _ => {}
        }
        Ok(())
    }

    fn skip_meta(&mut self) -> Result<(), &'static str> {
        self.skip_numbers(3)?;
        for _ in 0..self.number()? {
            self.string()?;
            self.string()?;
        }
        Ok(())
    }

    fn skip_numbers(&mut self, count: usize) -> Result<(), &'static str> {
        (0..count).try_for_each(|_| self.number().map(drop))
    }

    fn meta(&mut self) -> Result<Meta, &'static str> {
        let (mode, uid, gid) = (self.small()?, self.small()?, self.small()?);
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

    pub(crate) fn number(&mut self) -> Result<u64, &'static str> {
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

    pub(crate) fn string(&mut self) -> Result<&'a [u8], &'static str> {
        let len = usize::try_from(self.number()?).map_err(|_| "a length is too large")?;
        self.take(len)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], &'static str> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len()).ok_or(CUT_OFF)?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }
}

#[cfg(test)]
pub(super) mod tests;
