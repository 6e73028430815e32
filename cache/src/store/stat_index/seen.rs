//! What a scan found: its nodes, and the next index.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use self::held::{Held, Recent};
use self::nodes::Place;
use super::super::nodes::NodeCache;
use super::format::RecordDamaged;
use super::index::{IndexDamaged, StatIndex, is_below};
use super::listed::SeenDir;
use super::pieces::{RecordWriter, Records};
use super::rows::{RULES_BYTES, RecordPlace, Row};
use super::stat::FileStat;
use super::writer::{IndexWriter, moved};
use super::xattrs::SeenXattrs;
use crate::layer::Mtime;
use crate::path::{RelPath, compare};
use crate::tree::{EMPTY_NODE, MemoryNodeStore, Meta, NodeDigest, NodeStoreError, Part};

mod held;
mod nodes;
#[cfg(test)]
mod tests;

/// Bytes in memory of the last nodes that are kept, for paths that begin alike.
const KEPT_BYTES: usize = 1 << 20;

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
    recent: Mutex<Recent>,
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
    next: u32,
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
            recent: Mutex::default(),
            nodes: NodeCache::default(),
            xattrs,
            others: MemoryNodeStore::default(),
        };
        for at in (0..seen.dirs.len()).rev() {
            seen.close(at)?;
            seen.bytes = seen.bytes.saturating_add(seen.dirs[at].files_bytes());
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
    fn has_moved(&self, at: usize) -> Result<bool, IndexDamaged> {
        let dir = &self.dirs[at];
        if dir.place_kept().is_some() {
            // One that is not trusted may have had xattrs of its own, which are in its entry and are not kept here.
            return Ok(dir.has_new_node || !dir.is_trusted());
        }
        let before = self.last.find(dir.path())?;
        Ok(before.is_none_or(|before| {
            before.node() != dir.node
                || before.mode() != mode(dir)
                || before.is_excluded() != dir.is_excluded()
                || dir.own_xattrs().is_some()
                || !before.is_trusted()
        }))
    }

    fn record_bytes(&self, at: usize) -> Result<usize, IndexDamaged> {
        let dir = &self.dirs[at];
        match dir.place_kept() {
            None => Ok(dir.record().0.len()),
            Some(kept) => Ok(self.last.dir(kept)?.row().record.bytes as usize),
        }
    }

    /// That of a directory's record in which the name is, if it is there. `None` when it is damaged.
    fn held(&self, at: usize, name: &[u8]) -> Option<Arc<Held>> {
        let recent = || self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = recent().find(at, name) {
            return Some(held);
        }
        let dir = &self.dirs[at];
        let held = match dir.place_kept() {
            None => Held::listed(at, dir),
            Some(kept) => Held::kept(at, &self.last, &self.last.dir(kept).ok()?, name).ok(),
        };
        let held = Arc::new(held?);
        recent().add(&held, dir);
        Some(held)
    }

    /// What follows in the same record. `None` when it is damaged.
    fn held_behind(&self, held: &Held) -> Option<Option<Arc<Held>>> {
        let Some(name) = held.end() else { return Some(None) };
        let recent = || self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(next) = recent().find(held.dir, name) {
            return Some(Some(next));
        }
        let next = held.next(&self.last).ok()?.map(Arc::new);
        if let Some(next) = &next {
            recent().add(next, &self.dirs[next.dir]);
        }
        Some(next)
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
        let is_hinted = hint.dir.is_some_and(|at| self.dirs.get(at).is_some_and(|dir| dir.path() == holder));
        let hinted = hint.held.take().filter(|_| is_hinted);
        hint.held = match hinted {
            Some(held) if held.has(name) => Some(held),
            hinted => {
                let at = if is_hinted { hint.dir? } else { self.find(holder)? };
                let next = hinted.and_then(|held| self.held_behind(&held)?).filter(|held| held.has(name));
                (hint.dir, hint.next) = (Some(at), 0);
                next.or_else(|| self.held(at, name))
            }
        };
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

    /// True when the next index differs from the last one, or that one is damaged.
    pub fn differs(&self) -> bool {
        let is_same = self.last.is_by(&self.rules)
            && !self.last.is_damaged()
            && self.last.len() == self.dirs.len()
            && (self.dirs.iter().all(|dir| dir.place_kept().is_some()) || self.has_rows_of_last());
        !is_same
    }

    /// True when the next index would have the rows of the last one: then it has its records, too.
    fn has_rows_of_last(&self) -> bool {
        for (at, dir) in self.dirs.iter().enumerate() {
            let is_same = match dir.place_kept() {
                Some(kept) => kept == at && !dir.has_new_node,
                None => {
                    let Ok(Some(record)) = record(dir, 0, &mut |_| Ok(())) else {
                        // What cannot be told of is not written, either.
                        return true;
                    };
                    let Ok(last) = self.last.dir(at) else { return false };
                    let (row, last) = (row(dir, record), last.row());
                    row == Row { record: moved(last.record, 0), ..last }
                }
            };
            if !is_same {
                return false;
            }
        }
        true
    }

    /// Paths of the directories that are not as the last index had them.
    pub fn listed(&self) -> impl Iterator<Item = &[u8]> {
        self.dirs.iter().filter(|dir| dir.place_kept().is_none()).map(SeenDir::path)
    }

    /// Writes the next index; false when what was kept cannot be read from the last one, or there is more of something than an
    /// index has room for, and then `out` has a part.
    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<bool> {
        let (mut out, mut records) = (IndexWriter::new(out), Records::new(&self.last));
        for dir in &self.dirs {
            let at = out.at();
            let is_written = match dir.place_kept() {
                None => match record(dir, at, &mut |piece| out.write(piece))? {
                    Some(record) => out.row(&row(dir, record))?,
                    None => false,
                },
                Some(kept) => {
                    let Ok(kept) = self.last.dir(kept) else { return Ok(false) };
                    let Ok(record) = records.of(&kept) else { return Ok(false) };
                    let is_copied = record.copy(&mut |piece| out.write(piece))?.is_ok();
                    let row = kept.row();
                    let row = Row { node: dir.node, record: moved(row.record, at), ..row };
                    is_copied && out.row(&row)?
                }
            };
            if !is_written {
                return Ok(false);
            }
        }
        out.end(self.rules)?;
        Ok(true)
    }
}

/// The row of a directory that was listed, with its record.
fn row(dir: &SeenDir, record: RecordPlace) -> Row<'_> {
    let (files, bytes) = dir.files();
    let (is_trusted, is_excluded) = (dir.is_trusted(), dir.is_excluded());
    Row { path: dir.path(), stat: dir.stat(), is_trusted, is_excluded, node: dir.node, files, bytes, record }
}

/// Shows the bytes of the record of a directory that was listed. Where it is when it begins at `at`; `None` when it is too large.
fn record(
    dir: &SeenDir,
    at: u64,
    out: &mut impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<Option<RecordPlace>> {
    let mut record = RecordWriter::default();
    dir.each_indexed(|name, entry| record.entry(name, entry, out))?;
    record.end(at, out)
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

impl From<IndexDamaged> for NodeStoreError {
    fn from(damaged: IndexDamaged) -> Self {
        Self::Storage(Box::new(damaged))
    }
}
