//! Bytes of what is in a directory.
//!
//! ```text
//! record = entry…                                                         sorted by name, no directories
//! entry  = kind and flags u8 · name length u16 · name · 0 · stat · payload
//! payload: of a file its content's digest, of a symlink u16 · target, of anything else nothing
//! ```
//!
//! A record has no numbers of rows, so that one whose directory did not change is copied as it is.

use std::ffi::CStr;

use super::listed::SeenEntry;
use super::stat::{FileStat, STAT_BYTES};
use crate::tree::{ContentDigest, Entry, Kind, Meta};

const KIND_MASK: u8 = 0x07;
const FILE: u8 = 1;
const SYMLINK: u8 = 2;
const FIFO: u8 = 3;
const SOCKET: u8 = 4;
/// The file may have changed since without showing it.
const YOUNG: u8 = 0x10;
/// The file has other names.
const LINKED: u8 = 0x20;
/// The file looks like a secret.
const SUSPECT: u8 = 0x40;
/// While it is scanned only: the file's content is not known yet.
const UNREAD: u8 = 0x80;
/// Of a scan only: the file has xattrs, which lie elsewhere. No index has such a file.
const WITH_XATTRS: u8 = 0x08;

/// What one directory held, or a piece of that.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record<'a>(pub(super) &'a [u8]);

/// A record that is not written here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record of the stat index is damaged")]
pub struct RecordDamaged;

/// One thing in a directory, as it was.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// Its name.
    pub name: &'a CStr,
    /// Its stat: [`FileStat::to_bytes`].
    pub stat: &'a [u8; STAT_BYTES],
    /// True when it may have changed since without showing it: not to be trusted.
    pub is_young: bool,
    /// True for a file with other names.
    pub is_linked: bool,
    /// True for a file that looks like a secret.
    pub is_suspect: bool,
    /// True for a file whose content is still to be read.
    pub(super) is_unread: bool,
    /// True for a file that has xattrs.
    pub(super) has_xattrs: bool,
    /// What it is.
    pub kind: KnownKind<'a>,
}

/// What something in a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnownKind<'a> {
    /// A file with this content.
    File(&'a [u8; 32]),
    /// A symlink and its target.
    Symlink(&'a [u8]),
    /// A named pipe.
    Fifo,
    /// A socket, which an image has as an empty file.
    Socket,
}

impl<'a> Record<'a> {
    /// All entries by name.
    pub(super) fn entries(self) -> Entries<'a> {
        Entries(self.0)
    }

    /// The entry that begins there.
    pub(super) fn at(self, start: u32) -> Option<Known<'a>> {
        Known::take(&mut self.0.get(usize::try_from(start).ok()?..)?)
    }
}

/// What is left of a record. Nothing follows an error.
#[derive(Debug, Clone)]
pub struct Entries<'a>(&'a [u8]);

impl<'a> Entries<'a> {
    pub(super) fn bytes(&self) -> &'a [u8] {
        self.0
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Known<'a>, RecordDamaged>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let known = Known::take(&mut self.0).ok_or(RecordDamaged);
        if known.is_err() {
            self.0 = &[];
        }
        Some(known)
    }
}

impl<'a> Known<'a> {
    pub(super) fn take(rest: &mut &'a [u8]) -> Option<Self> {
        let [head] = take(rest)?;
        let length = usize::from(u16::from_le_bytes(take(rest)?));
        let name = CStr::from_bytes_with_nul(rest.split_off(..length + 1)?).ok()?;
        let stat = take_ref(rest)?;
        let kind = match head & KIND_MASK {
            FILE => KnownKind::File(take_ref(rest)?),
            SYMLINK => {
                let length = usize::from(u16::from_le_bytes(take(rest)?));
                KnownKind::Symlink(rest.split_off(..length)?)
            }
            FIFO => KnownKind::Fifo,
            SOCKET => KnownKind::Socket,
            _ => return None,
        };
        let has = |flag| head & flag != 0;
        Some(Self {
            name,
            stat,
            is_young: has(YOUNG),
            is_linked: has(LINKED),
            is_suspect: has(SUSPECT),
            is_unread: has(UNREAD),
            has_xattrs: has(WITH_XATTRS),
            kind,
        })
    }

    /// Its stat.
    pub fn stat(&self) -> FileStat {
        FileStat::from_bytes(self.stat)
    }

    /// As an entry of a tree; owners are 0:0.
    pub fn entry(&self) -> Entry {
        let stat = self.stat();
        let (mode, kind) = match self.kind {
            KnownKind::File(content) => {
                (stat.mode & 0o7777, Kind::File { size: stat.size, content: ContentDigest(*content) })
            }
            KnownKind::Symlink(target) => (0o777, Kind::Symlink(target.to_vec())),
            KnownKind::Fifo => (stat.mode & 0o7777, Kind::Fifo),
            KnownKind::Socket => {
                (stat.mode & 0o7777, Kind::File { size: 0, content: ContentDigest::of(b"") })
            }
        };
        Entry { meta: Meta { mode, ..Meta::default() }, kind }
    }
}

impl SeenEntry<'_> {
    /// Appends it to a record; `None`, and nothing is appended, for what has no place in one.
    pub(super) fn write(&self, is_young: bool, out: &mut Vec<u8>) -> Option<()> {
        let kind = match self.kind {
            KnownKind::File(_) => FILE,
            KnownKind::Symlink(_) => SYMLINK,
            KnownKind::Fifo => FIFO,
            KnownKind::Socket => SOCKET,
        };
        let flags = [(is_young, YOUNG), (self.is_linked, LINKED), (self.is_suspect, SUSPECT)];
        let flags = flags.into_iter().filter_map(|(is_set, flag)| is_set.then_some(flag));
        let length = u16::try_from(self.name.len()).ok()?;
        let target_bytes = match self.kind {
            KnownKind::Symlink(target) => u16::try_from(target.len()).ok()?,
            _ => 0,
        };
        if self.name.contains(&0) {
            return None;
        }
        out.push(flags.fold(kind, |all, flag| all | flag));
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(self.name);
        out.push(0);
        out.extend_from_slice(&self.stat.to_bytes());
        match self.kind {
            KnownKind::File(content) => out.extend_from_slice(content),
            KnownKind::Symlink(target) => {
                out.extend_from_slice(&target_bytes.to_le_bytes());
                out.extend_from_slice(target);
            }
            KnownKind::Fifo | KnownKind::Socket => {}
        }
        Some(())
    }
}

/// Says of the file whose entry this begins with that its content is still to be read.
pub(super) fn mark_unread(entry: &mut [u8]) {
    if let [head, ..] = entry {
        *head |= UNREAD;
    }
}

/// Replaces what a record says of the file whose entry this begins with.
pub(super) fn rewrite_file(
    entry: &mut [u8],
    stat: &[u8; STAT_BYTES],
    (is_young, has_xattrs): (bool, bool),
    content: &ContentDigest,
) -> Option<()> {
    let [head, low, high, rest @ ..] = entry else { return None };
    let name_bytes = usize::from(u16::from_le_bytes([*low, *high])) + 1;
    let (old_stat, rest) = rest.get_mut(name_bytes..)?.split_first_chunk_mut()?;
    *rest.first_chunk_mut()? = content.0;
    *old_stat = *stat;
    let flags = [(is_young, YOUNG), (has_xattrs, WITH_XATTRS)];
    *head &= !(YOUNG | UNREAD | WITH_XATTRS);
    flags.into_iter().filter(|(is_set, _)| *is_set).for_each(|(_, flag)| *head |= flag);
    Some(())
}

pub(super) fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    take_ref(rest).copied()
}

pub(super) fn take_ref<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (part, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(part)
}
