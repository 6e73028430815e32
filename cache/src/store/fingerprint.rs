//! Stat indexes: which content a context's files had when they were last read.
//!
//! One flat file per context, sorted by path, read whole. An entry is trusted only when nothing about the file's
//! stat moved *and* the file had been left alone before the scan that read it began ([`ScanMoment`]). The second
//! half is the racy-git rule, one notch stricter: a file may change after it was read but within the same clock tick
//! as its recorded change time, and an index written a tick later would not show it. A change after the scan began
//! always gives a time at or after the scan's moment, which is later than every trusted recorded time.
//!
//! ```text
//! magic · scan secs i64 · scan nanos u32 · count u32
//! count × { path length u16 · path · stat 60 bytes · content 32 bytes }
//! crc32 of all before it
//! ```

use std::cmp::Ordering;

use rustix::time::ClockId;

use super::Store;
use super::error::StoreError;
use super::lease::Lease;
use crate::layer::Mtime;
use crate::path::{RelPath, compare};
use crate::tree::ContentDigest;

/// Starts every index; the digit is its version.
const MAGIC: &[u8; 8] = b"rbstats2";
const HEAD_BYTES: usize = 8 + 8 + 4 + 4;
const STAT_BYTES: usize = 60;
const CONTENT_BYTES: usize = 32;
/// Place of the modification time in a stat.
const MTIME_AT: usize = 8;
/// Some file systems keep times in coarser steps than the clock: margin in nanoseconds for a step of this many.
const MARGIN_NS: i128 = 10_000_000;
/// Margin for times without a fraction: the file system may keep whole or even seconds only.
const WHOLE_SECONDS_MARGIN_NS: i128 = 2_000_000_000;
/// Ten million files.
const INDEX_BYTES_MAX: u64 = 2 << 30;

/// What `stat` says of a regular file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStat {
    /// Length in bytes.
    pub size: u64,
    /// Time of the last change of the bytes.
    pub mtime: Mtime,
    /// Time of the last change of bytes or inode: cannot be set by anybody.
    pub ctime: Mtime,
    /// Inode number.
    pub ino: u64,
    /// Device number.
    pub dev: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl From<&rustix::fs::Stat> for FileStat {
    fn from(stat: &rustix::fs::Stat) -> Self {
        // The kernel gives no negative size, and no fraction of a second above a thousand million.
        let nanos = |nanos| u32::try_from(nanos).unwrap_or(0);
        Self {
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: Mtime { secs: stat.st_mtime, nanos: nanos(stat.st_mtime_nsec) },
            ctime: Mtime { secs: stat.st_ctime, nanos: nanos(stat.st_ctime_nsec) },
            ino: stat.st_ino,
            dev: stat.st_dev,
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
        }
    }
}

/// A file and its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FingerprintEntry {
    /// Below the context's root.
    pub path: RelPath,
    /// Its stat when it was opened to be read, or as it was trusted again. Xattrs are not recorded: a file that has some
    /// which matter does not belong here.
    pub stat: FileStat,
    /// Digest of its bytes.
    pub content: ContentDigest,
}

/// The moment a scan began, by the clock that also stamps files. Take it before the first `stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ScanMoment(Mtime);

impl ScanMoment {
    /// Now.
    pub fn now() -> Self {
        // File times are stamped with the coarse clock: the fine one runs up to a tick ahead of it.
        let now = rustix::time::clock_gettime(ClockId::RealtimeCoarse);
        Self::at(now.tv_sec, u32::try_from(now.tv_nsec).unwrap_or(0))
    }

    /// A moment given in whole seconds since the epoch and nanoseconds above them.
    pub const fn at(secs: i64, nanos: u32) -> Self {
        Self(Mtime { secs, nanos })
    }
}

/// The index of one context, read-only and in memory.
#[derive(Debug, Clone)]
pub struct FingerprintIndex {
    bytes: Vec<u8>,
    /// Start of each entry.
    starts: Vec<u32>,
    scanned: ScanMoment,
}

impl FingerprintIndex {
    /// An index that knows nothing.
    pub fn empty() -> Self {
        Self { bytes: Vec::new(), starts: Vec::new(), scanned: ScanMoment::at(0, 0) }
    }

    /// Number of files.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// True when it knows nothing.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// The content of a file with exactly this stat, if that can be trusted, and the place of its entry. Any order of
    /// look-ups is fine; `hint` makes ascending ones cheap: start with 0 and pass the same variable each time.
    pub fn lookup(&self, path: &[u8], stat: &FileStat, hint: &mut usize) -> Option<(usize, ContentDigest)> {
        let at = self.find(path, *hint).ok()?;
        *hint = at + 1;
        let (_, rest) = self.entry(at)?;
        let (recorded, content) = rest.split_at_checked(STAT_BYTES)?;
        let is_settled = settled(stat.ctime, self.scanned) && settled(stat.mtime, self.scanned);
        (is_settled && recorded == stat_bytes(stat)).then_some(())?;
        Some((at, ContentDigest(content.get(..CONTENT_BYTES)?.try_into().ok()?)))
    }

    /// Files that the index knows, in order; for a caller that writes the next one.
    pub fn paths(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.starts.len()).filter_map(|at| self.entry(at).map(|(path, _)| path))
    }

    fn find(&self, path: &[u8], hint: usize) -> Result<usize, usize> {
        match self.entry(hint) {
            Some((at_hint, _)) if at_hint == path => return Ok(hint),
            Some((at_hint, _)) => match compare(at_hint, path) {
                Ordering::Equal => return Ok(hint),
                // A few files came or went: the place is near.
                Ordering::Less => {
                    let near = self.starts.len().min(hint + 8);
                    for at in hint + 1..near {
                        match self.entry(at).map(|(candidate, _)| compare(candidate, path)) {
                            Some(Ordering::Less) => {}
                            Some(Ordering::Equal) => return Ok(at),
                            _ => return Err(at),
                        }
                    }
                }
                Ordering::Greater => {}
            },
            None if self.starts.is_empty() => return Err(0),
            None => {}
        }
        let (mut low, mut high) = (0, self.starts.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.entry(middle).map_or(Ordering::Less, |(candidate, _)| compare(candidate, path)) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Ok(middle),
                Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// All bytes of an entry.
    fn raw(&self, at: usize) -> Option<&[u8]> {
        let start = *self.starts.get(at)? as usize;
        let end = self.starts.get(at + 1).map_or(self.bytes.len(), |end| *end as usize);
        self.bytes.get(start..end)
    }

    /// Path of an entry, and the bytes from its stat on.
    fn entry(&self, at: usize) -> Option<(&[u8], &[u8])> {
        let start = *self.starts.get(at)? as usize;
        let (length, rest) = self.bytes.get(start..)?.split_first_chunk::<2>()?;
        rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))
    }
}

/// What a scan knows of its files: entries of the last index that are still true, and files that it read.
#[derive(Debug)]
pub struct SeenFiles {
    last: FingerprintIndex,
    kept: Vec<bool>,
    /// Sorted by path.
    fresh: Vec<FingerprintEntry>,
}

impl SeenFiles {
    /// Nothing seen yet.
    pub fn new(last: FingerprintIndex) -> Self {
        Self { kept: vec![false; last.len()], last, fresh: Vec::new() }
    }

    /// The last index.
    pub fn last(&self) -> &FingerprintIndex {
        &self.last
    }

    /// The entry at this place of the last index is still true.
    pub fn keep(&mut self, at: usize) {
        self.kept[at] = true;
    }

    /// Files that were read, in any order, none of them kept.
    pub fn add(&mut self, entries: impl IntoIterator<Item = FingerprintEntry>) {
        self.fresh.extend(entries);
        self.fresh.sort_by(|a, b| compare(a.path.as_bytes(), b.path.as_bytes()));
    }

    /// True when the next index differs from the last one.
    pub fn differ(&self) -> bool {
        !self.fresh.is_empty() || self.kept.contains(&false)
    }

    /// Modification time of a file that was seen. `hint` as for [`FingerprintIndex::lookup`].
    pub fn mtime(&self, path: &RelPath, hint: &mut usize) -> Option<Mtime> {
        let path = path.as_bytes();
        if let Ok(at) = self.fresh.binary_search_by(|entry| compare(entry.path.as_bytes(), path)) {
            return Some(self.fresh[at].stat.mtime);
        }
        let at = self.last.find(path, *hint).ok().filter(|at| self.kept[*at])?;
        *hint = at + 1;
        let (secs, rest) = self.last.entry(at)?.1.get(MTIME_AT..)?.split_first_chunk::<8>()?;
        let (nanos, _) = rest.split_first_chunk::<4>()?;
        Some(Mtime { secs: i64::from_le_bytes(*secs), nanos: u32::from_le_bytes(*nanos) })
    }
}

impl Default for SeenFiles {
    fn default() -> Self {
        Self::new(FingerprintIndex::empty())
    }
}

impl From<Vec<FingerprintEntry>> for SeenFiles {
    fn from(entries: Vec<FingerprintEntry>) -> Self {
        let mut seen = Self::default();
        seen.add(entries);
        seen
    }
}

impl Store {
    /// The stat index of a context; empty when there is none or it is damaged.
    pub fn fingerprints(&self, context: &[u8; 32]) -> Result<FingerprintIndex, StoreError> {
        let bytes = match self.inner.layout.read(&file_name(context), INDEX_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(StoreError::Damaged { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(bytes.and_then(parse).unwrap_or_else(FingerprintIndex::empty))
    }

    /// Replaces the stat index of a context. `scanned` is the moment *before* the first of these files was looked
    /// at. Paths longer than 64 KiB are left out. Not synced: losing it costs reading files again.
    pub fn put_fingerprints(
        &self,
        lease: &Lease,
        context: &[u8; 32],
        scanned: ScanMoment,
        seen: &SeenFiles,
    ) -> Result<(), StoreError> {
        let temp = lease.next_path();
        self.inner.layout.write_new(&temp, &encode(scanned, seen))?;
        self.inner.layout.replace(&temp, &file_name(context))
    }
}

fn file_name(context: &[u8; 32]) -> String {
    format!("contexts/{}", hex::encode(context))
}

fn encode(scanned: ScanMoment, seen: &SeenFiles) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + seen.last.bytes.len() + seen.fresh.len() * 160);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&scanned.0.secs.to_le_bytes());
    bytes.extend_from_slice(&scanned.0.nanos.to_le_bytes());
    let count_at = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    let mut count = 0_u32;
    let mut put = |entry: &[u8]| {
        bytes.extend_from_slice(entry);
        count += 1;
    };
    let mut fresh = seen.fresh.iter().filter_map(|entry| Some((entry, raw(entry)?))).peekable();
    for at in (0..seen.last.len()).filter(|at| seen.kept[*at]) {
        let (Some((path, _)), Some(kept)) = (seen.last.entry(at), seen.last.raw(at)) else { continue };
        while let Some((_, entry)) =
            fresh.next_if(|(entry, _)| compare(entry.path.as_bytes(), path) == Ordering::Less)
        {
            put(&entry);
        }
        put(kept);
    }
    fresh.for_each(|(_, entry)| put(&entry));
    bytes[count_at..count_at + 4].copy_from_slice(&count.to_le_bytes());
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// `None` for a path that is too long.
fn raw(entry: &FingerprintEntry) -> Option<Vec<u8>> {
    let path = entry.path.as_bytes();
    let length = u16::try_from(path.len()).ok()?.to_le_bytes();
    Some([&length, path, &stat_bytes(&entry.stat), &entry.content.0].concat())
}

/// `None` for anything `encode` does not produce.
fn parse(mut bytes: Vec<u8>) -> Option<FingerprintIndex> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
        return None;
    }
    let length = body.len();
    bytes.truncate(length);
    let (magic, rest) = bytes.split_first_chunk::<8>()?;
    let (secs, rest) = rest.split_first_chunk::<8>()?;
    let (nanos, rest) = rest.split_first_chunk::<4>()?;
    let (count, _) = rest.split_first_chunk::<4>()?;
    if magic != MAGIC {
        return None;
    }
    let scanned = ScanMoment::at(i64::from_le_bytes(*secs), u32::from_le_bytes(*nanos));
    let count = u32::from_le_bytes(*count) as usize;
    let mut starts = Vec::with_capacity(count.min(length / (2 + STAT_BYTES + CONTENT_BYTES)));
    let mut at = HEAD_BYTES;
    for _ in 0..count {
        starts.push(u32::try_from(at).ok()?);
        let path_bytes = u16::from_le_bytes(*bytes.get(at..)?.first_chunk::<2>()?);
        at += 2 + usize::from(path_bytes) + STAT_BYTES + CONTENT_BYTES;
    }
    (at == length).then_some(FingerprintIndex { bytes, starts, scanned })
}

fn stat_bytes(stat: &FileStat) -> [u8; STAT_BYTES] {
    let mut bytes = [0; STAT_BYTES];
    let mut at = 0;
    let mut put = |part: &[u8]| {
        bytes[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    };
    put(&stat.size.to_le_bytes());
    for time in [stat.mtime, stat.ctime] {
        put(&time.secs.to_le_bytes());
        put(&time.nanos.to_le_bytes());
    }
    put(&stat.ino.to_le_bytes());
    put(&stat.dev.to_le_bytes());
    for number in [stat.mode, stat.uid, stat.gid] {
        put(&number.to_le_bytes());
    }
    debug_assert_eq!(at, STAT_BYTES, "every field has its place");
    bytes
}

/// True when a change after the scan began would show as another time.
pub(super) fn settled(time: Mtime, scanned: ScanMoment) -> bool {
    let ns = |time: Mtime| i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos);
    let margin = if time.nanos == 0 { WHOLE_SECONDS_MARGIN_NS } else { MARGIN_NS };
    ns(time) + margin < ns(scanned.0)
}
