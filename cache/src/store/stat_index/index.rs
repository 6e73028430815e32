//! The last scan's index, as it lies on the disk.

use std::fs::File;

use super::format::{HEAD_BYTES, MAGIC, RULES_BYTES, Record, Row, Rows, parse_table, path_at};
use super::stat::{FileStat, STAT_BYTES};
use crate::path::compare;
use crate::tree::NodeDigest;

/// First read: the table of some hundred directories.
const FIRST_READ_BYTES: usize = 48 << 10;
/// A million directories.
const TABLE_BYTES_MAX: usize = 256 << 20;

/// The index of one context. Its file is replaced, never changed, so what is read late belongs to what was read early.
#[derive(Debug, Default)]
pub struct StatIndex {
    file: Option<File>,
    table: Vec<u8>,
    /// Where each is in it: they are read when they are asked for.
    rows: Rows,
    /// Where the first record is in the file.
    records_at: u64,
}

/// A directory of the index.
#[derive(Debug, Clone, Copy)]
pub struct KnownDir<'a>(Row<'a>);

impl<'a> KnownDir<'a> {
    /// Below the context's root.
    pub fn path(self) -> &'a [u8] {
        self.0.path
    }

    /// Its stat before it was listed.
    pub fn stat(self) -> &'a [u8; STAT_BYTES] {
        self.0.stat
    }

    /// True when the record is all that is in it for as long as its stat does not move. Then it has no xattrs.
    pub fn is_trusted(self) -> bool {
        self.0.is_trusted
    }

    /// True when the directory itself is left out, and there for what is brought back in it.
    pub fn is_excluded(self) -> bool {
        self.0.is_excluded
    }

    /// Its node, with all below it.
    pub fn node(self) -> NodeDigest {
        self.0.node
    }

    /// Permissions.
    pub(super) fn mode(self) -> u32 {
        FileStat::from_bytes(self.0.stat).mode & 0o7777
    }

    pub(super) fn row(self) -> Row<'a> {
        self.0
    }
}

impl StatIndex {
    /// An index that knows nothing.
    pub fn empty() -> Self {
        Self::default()
    }

    /// `None` for anything that is not written here.
    pub(super) fn read(file: File) -> Option<Self> {
        let file_bytes = file.metadata().ok()?.len();
        let available = usize::try_from(file_bytes).ok()?;
        let mut bytes = vec![0; FIRST_READ_BYTES.min(available)];
        read_at(&file, &mut bytes, 0)?;
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (length, _) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let end = HEAD_BYTES.checked_add(length)?.checked_add(4)?;
        if magic != MAGIC || length > TABLE_BYTES_MAX || end > available {
            return None;
        }
        let have = bytes.len();
        bytes.resize(end, 0);
        if have < end {
            read_at(&file, &mut bytes[have..], have as u64)?;
        }
        let (sealed, crc) = bytes.split_last_chunk::<4>()?;
        if crc32fast::hash(sealed) != u32::from_le_bytes(*crc) {
            return None;
        }
        bytes.truncate(end - 4);
        let table = bytes.split_off(HEAD_BYTES);
        let rows = parse_table(&table)?;
        let records_at = end as u64;
        (records_at + rows.record_bytes == file_bytes).then_some(Self {
            file: Some(file),
            table,
            rows,
            records_at,
        })
    }

    /// True when these rules chose what is in it.
    pub fn is_by(&self, rules: &[u8; RULES_BYTES]) -> bool {
        self.table.starts_with(rules)
    }

    /// Number of directories.
    pub fn len(&self) -> usize {
        self.rows.places.len()
    }

    /// True when it knows nothing.
    pub fn is_empty(&self) -> bool {
        self.rows.places.is_empty()
    }

    /// Number of files.
    pub fn files(&self) -> u64 {
        self.rows.files
    }

    /// The directory at this place; they are sorted by path.
    pub fn dir(&self, at: usize) -> Option<KnownDir<'_>> {
        Row::at(&self.table, self.rows.places.get(at)?.start as usize).map(KnownDir)
    }

    /// Place of the directory at `path`.
    pub fn find(&self, path: &[u8]) -> Option<usize> {
        let path_of = |start: u32| path_at(&self.table, start as usize);
        self.rows.places.binary_search_by(|place| compare(path_of(place.start), path)).ok()
    }

    /// Places of the directories in the one at `at`.
    pub fn dirs_in(&self, at: usize) -> impl Iterator<Item = usize> {
        let path = self.dir(at).map_or(&[][..], KnownDir::path);
        let below = move |inner: &usize| {
            let inner = path_at(&self.table, self.rows.places[*inner].start as usize);
            path.is_empty() || inner.strip_prefix(path).is_some_and(|rest| rest.first() == Some(&b'/'))
        };
        let is_in = move |inner: &usize| self.rows.places[*inner].parent as usize == at;
        (at + 1..self.len()).take_while(below).filter(is_in)
    }

    /// Reads what the directory at this place held into `buffer`; `None` when it is damaged.
    pub fn record<'b>(&self, at: usize, buffer: &'b mut Vec<u8>) -> Option<Record<'b>> {
        let (place, KnownDir(row)) = (self.rows.places.get(at)?, self.dir(at)?);
        let length = usize::try_from(row.record_bytes).ok()?;
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        let bytes = &mut buffer[..length];
        read_at(self.file.as_ref()?, bytes, self.records_at + place.record_at)?;
        (crc32fast::hash(bytes) == row.crc).then_some(Record(bytes))
    }

    pub(super) fn table(&self) -> &[u8] {
        &self.table
    }
}

/// Fills `bytes` from this place on.
fn read_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> Option<()> {
    while !bytes.is_empty() {
        match rustix::io::pread(file, &mut *bytes, at) {
            Ok(0) => return None,
            Ok(count) => {
                bytes = &mut bytes[count..];
                at += count as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
    Some(())
}
