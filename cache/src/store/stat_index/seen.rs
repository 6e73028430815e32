//! What a scan found: its nodes, and the next index.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use self::nodes::Place;
use super::super::nodes::NodeCache;
use super::format::{Known, KnownKind, MAGIC, ROW_BYTES, RULES_BYTES, Record, RecordDamaged, Row};
use super::index::StatIndex;
use super::listed::SeenDir;
use super::stat::FileStat;
use super::xattrs::SeenXattrs;
use crate::layer::Mtime;
use crate::path::{RelPath, compare};
use crate::tree::{EMPTY_NODE, MemoryNodeStore, Meta, NodeDigest, NodeStoreError, Part};

mod nodes;
#[cfg(test)]
mod tests;

/// Bytes in memory of the last nodes that are kept, for paths that begin alike.
const KEPT_BYTES: usize = 1 << 20;

/// A record of so many bytes is made ready once, a smaller one each time that it is asked for: there may be as many as files.
const LARGE_RECORD_BYTES: usize = if cfg!(test) { 256 } else { 16 << 10 };

/// A scanned context: its directories' nodes, made from their records when somebody asks, and its files' times.
#[derive(Debug)]
pub struct SeenContext {
    last: Arc<StatIndex>,
    rules: [u8; RULES_BYTES],
    /// Sorted by path, the root first.
    dirs: Vec<SeenDir>,
    /// Places of the directories in each, by name: those of the one at a place are between two of these numbers.
    inner: Vec<u32>,
    inner_from: Vec<u32>,
    /// Bytes of all files.
    bytes: u64,
    /// Places of all directories, by their nodes.
    by_node: OnceLock<Vec<u32>>,
    /// Of the directories that are in parts.
    parts: Mutex<HashMap<usize, Arc<[Part]>>>,
    known_parts: Mutex<HashMap<NodeDigest, Place>>,
    large: Mutex<HashMap<usize, Arc<Held>>>,
    nodes: NodeCache<KEPT_BYTES>,
    xattrs: SeenXattrs,
    /// Nodes of no directory: those of its links.
    others: MemoryNodeStore,
}

/// Where a look-up in a [`SeenContext`] ended, and so where the next one is likely to.
#[derive(Debug, Clone, Default)]
pub struct SeenHint {
    dir: Option<usize>,
    held: Option<Arc<Held>>,
    next: usize,
}

/// A record in which things are looked for.
#[derive(Debug)]
struct Held {
    /// That of the last index, where it counts.
    kept: Option<Vec<u8>>,
    starts: Vec<u32>,
}

impl Held {
    fn record<'a>(&'a self, dir: &'a SeenDir) -> Record<'a> {
        self.kept.as_deref().map_or(dir.record(), Record)
    }

    /// What has this name. It is looked for at `next` first, which goes on behind it.
    fn find<'a>(&'a self, dir: &'a SeenDir, name: &[u8], next: &mut usize) -> Option<Known<'a>> {
        let record = self.record(dir);
        let is_next = self.starts.get(*next).is_some_and(|start| name_at(record, *start) == name);
        let at = match is_next {
            true => *next,
            false => self.starts.binary_search_by(|start| name_at(record, *start).cmp(name)).ok()?,
        };
        *next = at + 1;
        record.at(self.starts[at])
    }
}

fn name_at(record: Record<'_>, start: u32) -> &[u8] {
    record.at(start).map_or(&[], |known| known.name.to_bytes())
}

impl SeenContext {
    /// What a scan found, having chosen by `rules`. `dirs` are in any order, with the root and the directory of each
    /// one among them; a directory that was kept comes with all those that it had. `xattrs` are those that they were
    /// told of.
    pub fn new(
        last: Arc<StatIndex>,
        rules: [u8; RULES_BYTES],
        mut dirs: Vec<SeenDir>,
        xattrs: SeenXattrs,
    ) -> Result<Self, NodeStoreError> {
        dirs.sort_unstable_by(|a, b| compare(a.path(), b.path()));
        dirs.iter_mut().for_each(SeenDir::sort_xattrs);
        let (inner, inner_from) = inner(&dirs);
        let mut seen = Self {
            last,
            rules,
            dirs,
            inner,
            inner_from,
            bytes: 0,
            by_node: OnceLock::new(),
            parts: Mutex::default(),
            known_parts: Mutex::default(),
            large: Mutex::default(),
            nodes: NodeCache::default(),
            xattrs,
            others: MemoryNodeStore::default(),
        };
        for at in (0..seen.dirs.len()).rev() {
            seen.close(at)?;
            let (_, bytes) = seen.files(at).ok_or_else(damaged)?;
            seen.bytes = seen.bytes.saturating_add(bytes);
        }
        Ok(seen)
    }

    /// Places of the directories in the one at a place, by name.
    fn inner(&self, at: usize) -> &[u32] {
        &self.inner[self.inner_from[at] as usize..self.inner_from[at + 1] as usize]
    }

    fn meta(&self, at: usize) -> Option<Meta> {
        let dir = &self.dirs[at];
        let own = dir.own_xattrs().map(|place| self.xattrs.get(place)).transpose().ok()?;
        Some(Meta { mode: mode(dir), xattrs: own.unwrap_or_default(), ..Meta::default() })
    }

    /// True when the directory's entry in its own directory is not what the last index knew.
    fn has_moved(&self, at: usize) -> bool {
        let dir = &self.dirs[at];
        let before =
            dir.place_kept().or_else(|| self.last.find(dir.path())).and_then(|row| self.last.dir(row));
        before.is_none_or(|before| {
            before.node() != dir.node
                || before.mode() != mode(dir)
                || before.is_excluded() != dir.is_excluded()
                || dir.own_xattrs().is_some()
                // It may have had xattrs of its own, which are in its entry and are not kept here.
                || !before.is_trusted()
        })
    }

    /// Files in a directory, and their bytes.
    fn files(&self, at: usize) -> Option<(u32, u64)> {
        let dir = &self.dirs[at];
        if let Some(kept) = dir.place_kept() {
            let row = self.last.dir(kept)?.row();
            return Some((row.files, row.bytes));
        }
        let files = dir.entries().flatten().filter(|known| matches!(known.kind, KnownKind::File(_)));
        Some(files.fold((0, 0), |(count, bytes), file| (count + 1, file.stat().size.saturating_add(bytes))))
    }

    fn record_bytes(&self, at: usize) -> usize {
        let dir = &self.dirs[at];
        let kept = dir.place_kept().and_then(|kept| self.last.dir(kept));
        kept.map_or(dir.record().0.len(), |kept| kept.row().record_bytes as usize)
    }

    /// The record of a directory. `None` when it is damaged.
    fn held(&self, at: usize) -> Option<Arc<Held>> {
        let large = || self.large.lock().unwrap_or_else(PoisonError::into_inner);
        let is_large = self.record_bytes(at) >= LARGE_RECORD_BYTES;
        if is_large && let Some(held) = large().get(&at) {
            return Some(Arc::clone(held));
        }
        let dir = &self.dirs[at];
        let kept = match dir.place_kept() {
            None => None,
            Some(kept) => {
                let mut bytes = Vec::new();
                self.last.record(kept, &mut bytes)?;
                Some(bytes)
            }
        };
        let starts = kept.as_deref().map_or(dir.record(), Record).starts()?;
        let held = Arc::new(Held { kept, starts });
        if is_large {
            large().insert(at, Arc::clone(&held));
        }
        Some(held)
    }

    /// Node of the root.
    pub fn node(&self) -> NodeDigest {
        self.dirs.first().map_or(*EMPTY_NODE, |root| root.node)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Modification time of something that was seen, a symlink's own. Any order of look-ups is fine; `hint` makes
    /// ascending ones cheap: pass the same variable each time.
    pub fn mtime(&self, path: &RelPath, hint: &mut SeenHint) -> Option<Mtime> {
        let (holder, name) = name_of(path.as_bytes());
        let hinted = hint.dir.and_then(|at| self.dirs.get(at)).filter(|dir| dir.path() == holder);
        if hinted.is_none() {
            let at = self.find(holder)?;
            *hint = SeenHint { dir: Some(at), held: self.held(at), next: 0 };
        }
        let SeenHint { dir, held, next } = hint;
        let dir = dir.and_then(|at| self.dirs.get(at))?;
        match held.as_ref().and_then(|held| held.find(dir, name, next)) {
            Some(known) => Some(known.stat().mtime),
            None => self.find(path.as_bytes()).map(|at| FileStat::from_bytes(self.dirs[at].stat()).mtime),
        }
    }

    fn find(&self, path: &[u8]) -> Option<usize> {
        self.dirs.binary_search_by(|dir| compare(dir.path(), path)).ok()
    }

    /// True when the next index differs from the last one.
    pub fn differs(&self) -> bool {
        let is_same = self.last.is_by(&self.rules)
            && self.last.len() == self.dirs.len()
            && (self.dirs.iter().all(|dir| dir.place_kept().is_some()) || self.has_table_of_last());
        !is_same
    }

    fn has_table_of_last(&self) -> bool {
        let mut left = self.last.table();
        let is_next = |row: &[u8]| match left.strip_prefix(row) {
            Some(rest) => {
                left = rest;
                Ok(())
            }
            None => Err(io::ErrorKind::InvalidData.into()),
        };
        // What cannot be told of is not written, either.
        self.each_row(is_next).is_ok_and(|is_whole| !is_whole || left.is_empty())
    }

    /// Paths of the directories that are not as the last index had them.
    pub fn listed(&self) -> impl Iterator<Item = &[u8]> {
        self.dirs.iter().filter(|dir| dir.place_kept().is_none()).map(SeenDir::path)
    }

    /// Shows the bytes of the next index's table, piece by piece; false when what was kept has no place in one.
    fn each_row(&self, mut show: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<bool> {
        show(&self.rules)?;
        let (mut bytes, mut buffer) = (Vec::new(), Vec::new());
        for at in 0..self.dirs.len() {
            bytes.clear();
            if self.row(at, &mut buffer).and_then(|row| row.write(&mut bytes)).is_none() {
                return Ok(false);
            }
            show(&bytes)?;
        }
        Ok(true)
    }

    fn row<'s>(&'s self, at: usize, buffer: &mut Vec<u8>) -> Option<Row<'s>> {
        let dir = &self.dirs[at];
        if let Some(kept) = dir.place_kept() {
            return Some(Row { node: dir.node, ..self.last.dir(kept)?.row() });
        }
        let (files, bytes) = self.files(at)?;
        let record = dir.indexed(buffer).0;
        Some(Row {
            path: dir.path(),
            stat: dir.stat(),
            is_trusted: dir.is_trusted(),
            is_excluded: dir.is_excluded(),
            node: dir.node,
            files,
            bytes,
            record_bytes: u32::try_from(record.len()).ok()?,
            crc: crc32fast::hash(record),
        })
    }

    /// Writes the next index; false when what was kept cannot be read from the last one, and then `out` has a part.
    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<bool> {
        let rows = self.dirs.iter().map(|dir| ROW_BYTES + dir.path().len());
        let Ok(length) = u32::try_from(RULES_BYTES + rows.sum::<usize>()) else { return Ok(false) };
        let mut crc = crc32fast::Hasher::new();
        let mut sealed = |part: &[u8]| {
            crc.update(part);
            out.write_all(part)
        };
        sealed(MAGIC)?;
        sealed(&length.to_le_bytes())?;
        if !self.each_row(sealed)? {
            return Ok(false);
        }
        out.write_all(&crc.finalize().to_le_bytes())?;
        let mut buffer = Vec::new();
        for dir in &self.dirs {
            let record = match dir.place_kept() {
                None => Some(dir.indexed(&mut buffer)),
                Some(kept) => self.last.record(kept, &mut buffer),
            };
            let Some(record) = record else { return Ok(false) };
            out.write_all(record.0)?;
        }
        Ok(true)
    }
}

/// Places of the directories in each, by name, and where those of each begin. `dirs` are sorted.
fn inner(dirs: &[SeenDir]) -> (Vec<u32>, Vec<u32>) {
    // An index has a few million.
    let mut holders: Vec<u32> = Vec::with_capacity(dirs.len());
    let mut from = vec![0; dirs.len() + 1];
    // From the root to the last one.
    let mut above: Vec<usize> = Vec::new();
    for (at, dir) in dirs.iter().enumerate() {
        while above.last().is_some_and(|holder| !is_below(dir.path(), dirs[*holder].path())) {
            above.pop();
        }
        // What no one holds is after all that are.
        let holder = above.last().copied().unwrap_or(dirs.len());
        holders.push(holder as u32);
        if let Some(count) = from.get_mut(holder + 1) {
            *count += 1;
        }
        above.push(at);
    }
    for at in 1..from.len() {
        from[at] += from[at - 1];
    }
    let mut inner = vec![0; from.last().copied().unwrap_or(0) as usize];
    let mut next = from.clone();
    for (at, holder) in holders.into_iter().enumerate() {
        let Some(place) = next.get_mut(holder as usize).filter(|_| (holder as usize) < dirs.len()) else {
            continue;
        };
        inner[*place as usize] = at as u32;
        *place += 1;
    }
    (inner, from)
}

/// Permissions. The root's own are the host's affair.
fn mode(dir: &SeenDir) -> u32 {
    if dir.path().is_empty() { 0o755 } else { FileStat::from_bytes(dir.stat()).mode & 0o7777 }
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
