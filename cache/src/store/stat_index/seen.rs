//! What a scan found: its nodes, and the next index.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, OnceLock};

use self::nodes::Place;
use super::super::nodes::NodeCache;
use super::format::{Known, KnownKind, MAGIC, RULES_BYTES, Record, RecordDamaged, Row};
use super::index::StatIndex;
use super::listed::{ListedDir, NodeEntries};
use super::stat::FileStat;
use crate::layer::Mtime;
use crate::path::{RelPath, compare};
use crate::tree::{EMPTY_NODE, Kind, MemoryNodeStore, Meta, NodeDigest, NodeStoreError, Part};

mod nodes;

/// A directory that a scan went through.
#[derive(Debug)]
pub struct SeenDir {
    /// Below the context's root.
    pub path: Vec<u8>,
    /// True when the directory itself is left out, and there for what is brought back in it.
    pub is_excluded: bool,
    /// What is in it.
    pub contained: Contained,
}

/// What is in a directory, but for other directories.
#[derive(Debug)]
pub enum Contained {
    /// All that the last index has at this place, whose stat was found unmoved, as were those of all files in it.
    Kept(usize),
    /// This.
    Listed(ListedDir),
}

/// Bytes in memory of the last nodes that are kept, for paths that begin alike.
const KEPT_BYTES: usize = 1 << 20;

/// A scanned context: its directories' nodes, made from their records when somebody asks, and its files' times.
#[derive(Debug)]
pub struct SeenContext {
    last: Arc<StatIndex>,
    rules: [u8; RULES_BYTES],
    /// Sorted by path, the root first.
    dirs: Vec<Dir>,
    by_digest: OnceLock<HashMap<NodeDigest, usize>>,
    known_parts: Mutex<HashMap<NodeDigest, Place>>,
    nodes: NodeCache<KEPT_BYTES>,
    /// Nodes of no directory: those of its links.
    others: MemoryNodeStore,
}

/// Where a look-up in a [`SeenContext`] ended, and so where the next one is likely to.
#[derive(Debug, Clone, Copy, Default)]
pub struct SeenHint {
    dir: usize,
    next: usize,
}

#[derive(Debug)]
struct Dir {
    path: Vec<u8>,
    meta: Meta,
    /// Its place in the last index, when it is as it was there.
    kept: Option<usize>,
    row: Row,
    /// Places of the directories in it.
    dirs: Vec<usize>,
    held: OnceLock<Option<Held>>,
    /// Its parts, if there are more than one.
    parts: OnceLock<Arc<[Part]>>,
    /// What no record has.
    beside: NodeEntries,
}

/// A record in memory.
#[derive(Debug)]
struct Held {
    bytes: Vec<u8>,
    starts: Vec<u32>,
}

impl Held {
    fn new(bytes: Vec<u8>) -> Option<Self> {
        let starts = Record(&bytes).starts()?;
        Some(Self { bytes, starts })
    }

    /// What has this name. It is looked for at `next` first, which goes on behind it.
    fn find(&self, name: &[u8], next: &mut usize) -> Option<Known<'_>> {
        let is_next = self.starts.get(*next).is_some_and(|start| self.name_at(*start) == name);
        let at = match is_next {
            true => *next,
            false => self.starts.binary_search_by(|start| self.name_at(*start).cmp(name)).ok()?,
        };
        *next = at + 1;
        Record(&self.bytes).at(self.starts[at])
    }

    fn name_at(&self, start: u32) -> &[u8] {
        Record(&self.bytes).at(start).map_or(&[], |known| known.name.to_bytes())
    }
}

impl SeenContext {
    /// What a scan found, having chosen by `rules`. `dirs` are in any order, with the root and the directory of each
    /// one among them; a directory that was kept comes with all those that it had.
    pub fn new(
        last: Arc<StatIndex>,
        rules: [u8; RULES_BYTES],
        mut dirs: Vec<SeenDir>,
    ) -> Result<Self, NodeStoreError> {
        dirs.sort_unstable_by(|a, b| compare(&a.path, &b.path));
        let all = Vec::with_capacity(dirs.len());
        let (by_digest, known_parts, nodes) = (OnceLock::new(), Mutex::default(), NodeCache::default());
        let others = MemoryNodeStore::default();
        let mut seen = Self { last, rules, dirs: all, by_digest, known_parts, nodes, others };
        // From the root to the last one.
        let mut above: Vec<usize> = Vec::new();
        for dir in dirs {
            let at = seen.dirs.len();
            while above.last().is_some_and(|holder| !is_below(&dir.path, &seen.dirs[*holder].path)) {
                above.pop();
            }
            if let Some(holder) = above.last() {
                seen.dirs[*holder].dirs.push(at);
            }
            above.push(at);
            let dir = Dir::new(dir, &seen.last).ok_or_else(damaged)?;
            seen.dirs.push(dir);
        }
        for at in (0..seen.dirs.len()).rev() {
            seen.close(at)?;
        }
        Ok(seen)
    }

    /// True when the directory's entry in its own directory is not what the last index knew.
    fn has_moved(&self, at: usize) -> bool {
        let dir = &self.dirs[at];
        let before = dir.kept.or_else(|| self.last.find(&dir.path)).and_then(|row| self.last.dir(row));
        before.is_none_or(|before| {
            before.node() != dir.row.node
                || before.mode() != dir.meta.mode
                || before.is_excluded() != dir.row.is_excluded
                || !dir.meta.xattrs.is_empty()
        })
    }

    fn held(&self, at: usize) -> Option<&Held> {
        let dir = &self.dirs[at];
        let load = || {
            let mut bytes = Vec::new();
            self.last.record(dir.kept?, &mut bytes)?;
            Held::new(bytes)
        };
        dir.held.get_or_init(load).as_ref()
    }

    /// Node of the root.
    pub fn node(&self) -> NodeDigest {
        self.dirs.first().map_or(*EMPTY_NODE, |root| root.row.node)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.dirs.iter().fold(0, |sum, dir| sum.saturating_add(dir.row.bytes))
    }

    /// Modification time of something that was seen, a symlink's own. Any order of look-ups is fine; `hint` makes
    /// ascending ones cheap: pass the same variable each time.
    pub fn mtime(&self, path: &RelPath, hint: &mut SeenHint) -> Option<Mtime> {
        let (holder, name) = name_of(path.as_bytes());
        if self.dirs.get(hint.dir).is_none_or(|dir| dir.path != holder) {
            *hint = SeenHint { dir: self.find(holder)?, next: 0 };
        }
        match self.held(hint.dir).and_then(|held| held.find(name, &mut hint.next)) {
            Some(known) => Some(known.stat().mtime),
            None => self.find(path.as_bytes()).map(|at| FileStat::from_bytes(&self.dirs[at].row.stat).mtime),
        }
    }

    fn find(&self, path: &[u8]) -> Option<usize> {
        self.dirs.binary_search_by(|dir| compare(&dir.path, path)).ok()
    }

    /// True when the next index differs from the last one.
    pub fn differs(&self) -> bool {
        let is_kept = |dir: &Dir| dir.kept.is_some();
        let is_same = self.last.is_by(&self.rules)
            && self.last.len() == self.dirs.len()
            && (self.dirs.iter().all(is_kept) || self.table().is_none_or(|table| table == self.last.table()));
        !is_same
    }

    /// Paths of the directories that are not as the last index had them.
    pub fn listed(&self) -> impl Iterator<Item = &[u8]> {
        self.dirs.iter().filter(|dir| dir.kept.is_none()).map(|dir| dir.path.as_slice())
    }

    fn table(&self) -> Option<Vec<u8>> {
        let mut table = Vec::with_capacity(RULES_BYTES + 160 * self.dirs.len());
        table.extend_from_slice(&self.rules);
        self.dirs.iter().try_for_each(|dir| dir.row.write(&dir.path, &mut table))?;
        Some(table)
    }

    /// Writes the next index; false when what was kept cannot be read from the last one, and then `out` has a part.
    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<bool> {
        let Some(table) = self.table() else { return Ok(false) };
        let Ok(length) = u32::try_from(table.len()) else { return Ok(false) };
        let mut crc = crc32fast::Hasher::new();
        for part in [&MAGIC[..], &length.to_le_bytes(), &table] {
            crc.update(part);
            out.write_all(part)?;
        }
        out.write_all(&crc.finalize().to_le_bytes())?;
        let mut buffer = Vec::new();
        for dir in &self.dirs {
            let record = match (dir.held.get(), dir.kept) {
                (Some(held), _) => held.as_ref().map(|held| Record(&held.bytes)),
                (None, kept) => kept.and_then(|kept| self.last.record(kept, &mut buffer)),
            };
            let Some(record) = record else { return Ok(false) };
            out.write_all(record.0)?;
        }
        Ok(true)
    }
}

impl Dir {
    /// A directory. `None` when the last index has nothing at the place.
    fn new(seen: SeenDir, last: &StatIndex) -> Option<Self> {
        let SeenDir { path, is_excluded, contained } = seen;
        // The root's own are the host's affair.
        let mode_of = |mode: u32| if path.is_empty() { 0o755 } else { mode & 0o7777 };
        let (dirs, parts) = (Vec::new(), OnceLock::new());
        Some(match contained {
            Contained::Kept(at) => {
                let known = last.dir(at)?;
                let meta = Meta { mode: mode_of(known.mode()), ..Meta::default() };
                let (row, held, beside) = (known.row().clone(), OnceLock::new(), NodeEntries::new());
                Self { path, meta, kept: Some(at), row, dirs, held, parts, beside }
            }
            Contained::Listed(mut listed) => {
                let (stat, is_trusted) = (*listed.stat(), listed.is_trusted());
                let xattrs = std::mem::take(&mut listed.xattrs);
                let meta = Meta { mode: mode_of(stat.mode), xattrs, ..Meta::default() };
                let (record, beside) = listed.into_record();
                let row = Row { is_trusted, is_excluded, ..Row::of(&stat, &record, &beside)? };
                let held = OnceLock::from(Held::new(record));
                Self { path, meta, kept: None, row, dirs, held, parts, beside }
            }
        })
    }
}

impl Row {
    /// The row of a listed directory, as far as it is known before its node is.
    fn of(stat: &FileStat, record: &[u8], beside: &NodeEntries) -> Option<Self> {
        let recorded = Record(record).entries().flatten().filter_map(|known| match known.kind {
            KnownKind::File(_) => Some(known.stat().size),
            KnownKind::Symlink(_) | KnownKind::Fifo | KnownKind::Socket => None,
        });
        let others = beside.values().filter_map(|entry| match entry.kind {
            Kind::File { size, .. } => Some(size),
            _ => None,
        });
        let (mut files, mut bytes) = (0, 0_u64);
        for size in recorded.chain(others) {
            files += 1;
            bytes = bytes.saturating_add(size);
        }
        Some(Self {
            path: 0..0,
            stat: stat.to_bytes(),
            is_trusted: false,
            is_excluded: false,
            node: *EMPTY_NODE,
            files,
            bytes,
            record_bytes: u32::try_from(record.len()).ok()?,
            crc: crc32fast::hash(record),
            record_at: 0,
            parent: 0,
        })
    }
}

fn is_below(path: &[u8], dir: &[u8]) -> bool {
    dir.is_empty() || path.strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&b'/'))
}

/// A path's directory and name.
fn name_of(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

fn damaged() -> NodeStoreError {
    NodeStoreError::Storage(Box::new(RecordDamaged))
}

#[cfg(test)]
mod tests {
    use super::super::{ScanMoment, SeenEntry};
    use super::*;

    #[test]
    fn a_file_takes_its_record_and_where_that_begins_and_no_more() {
        const FILES: usize = 1000;
        let time = Mtime { secs: 1, nanos: 0 };
        let stat = FileStat { size: 1, mtime: time, ctime: time, ino: 1, dev: 1, mode: 0, uid: 0, gid: 0 };
        let mut listed = ListedDir::new(stat, ScanMoment::at(2, 0));
        for at in 0..FILES {
            let (name, kind) = (format!("{at:04}"), KnownKind::File(&[1; 32]));
            let entry = SeenEntry { name: name.as_bytes(), stat, is_linked: false, is_suspect: false, kind };
            listed.push(&entry).unwrap();
        }
        let root = SeenDir { path: Vec::new(), is_excluded: false, contained: Contained::Listed(listed) };
        let seen = SeenContext::new(Arc::default(), [0; RULES_BYTES], vec![root]).unwrap();
        let held = seen.held(0).unwrap();
        assert_eq!((held.starts.len(), held.bytes.len()), (FILES, FILES * (3 + 5 + 60 + 32)));
        assert_eq!((held.starts.capacity(), held.bytes.capacity()), (held.starts.len(), held.bytes.len()));
    }
}
