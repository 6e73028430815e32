//! What a scan found: its nodes, and the next index.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::sync::{Arc, OnceLock};

use super::format::{HEAD_BYTES, Known, KnownKind, MAGIC, RULES_BYTES, Record, RecordDamaged, Row};
use super::index::StatIndex;
use super::stat::{FileStat, ScanMoment};
use crate::layer::Mtime;
use crate::path::{RelPath, compare};
use crate::tree::{
    ContentDigest, DirNode, EMPTY_NODE, EncodedNode, Entry, Kind, Meta, NodeDigest, NodeStore, NodeStoreError,
};

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

/// A directory that was listed.
#[derive(Debug)]
pub struct ListedDir {
    /// Its stat, taken before it was listed.
    pub stat: FileStat,
    /// Kept xattrs; the root has none that count.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What the rules leave of it, in any order.
    pub entries: Vec<SeenEntry>,
    /// True when its times tell of every change of what is in it, and nothing in it must be told of each time.
    pub may_be_trusted: bool,
}

/// Something in a listed directory.
#[derive(Debug)]
pub struct SeenEntry {
    /// Its name.
    pub name: Vec<u8>,
    /// Its stat, of a file that was read when it was opened.
    pub stat: FileStat,
    /// Kept xattrs. Who has some is read each time: they are in no index.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// True for a file with other names.
    pub is_linked: bool,
    /// True for a file that looks like a secret.
    pub is_suspect: bool,
    /// What it is.
    pub kind: SeenKind,
}

impl From<&Known<'_>> for SeenEntry {
    fn from(known: &Known<'_>) -> Self {
        let kind = match known.kind {
            KnownKind::File(content) => SeenKind::File(ContentDigest(*content)),
            KnownKind::Symlink(target) => SeenKind::Symlink(target.to_vec()),
            KnownKind::Fifo => SeenKind::Fifo,
            KnownKind::Socket => SeenKind::Socket,
        };
        Self {
            name: known.name.to_bytes().to_vec(),
            stat: known.stat(),
            xattrs: BTreeMap::new(),
            is_linked: known.is_linked,
            is_suspect: known.is_suspect,
            kind,
        }
    }
}

/// What something in a directory is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeenKind {
    /// A file with this content.
    File(ContentDigest),
    /// A symlink and its target.
    Symlink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A socket, which an image has as an empty file.
    Socket,
}

impl SeenKind {
    fn known(&self) -> KnownKind<'_> {
        match self {
            Self::File(content) => KnownKind::File(&content.0),
            Self::Symlink(target) => KnownKind::Symlink(target),
            Self::Fifo => KnownKind::Fifo,
            Self::Socket => KnownKind::Socket,
        }
    }
}

/// A scanned context: its directories' nodes, made when somebody asks where the last scan knew them, and its files' times.
#[derive(Debug, Default)]
pub struct SeenContext {
    last: Arc<StatIndex>,
    rules: [u8; RULES_BYTES],
    /// Sorted by path, the root first.
    dirs: Vec<Dir>,
    by_digest: OnceLock<HashMap<NodeDigest, usize>>,
}

/// What is in a directory but for other directories, as a node has it.
type Entries = BTreeMap<Vec<u8>, Entry>;

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
    node: OnceLock<Arc<DirNode>>,
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

    fn find(&self, name: &[u8]) -> Option<Known<'_>> {
        let name_at = |start: &u32| Record(&self.bytes).at(*start).map(|known| known.name.to_bytes());
        let at = self.starts.binary_search_by(|start| name_at(start).cmp(&Some(name))).ok()?;
        Record(&self.bytes).at(self.starts[at])
    }
}

impl SeenContext {
    /// What a scan that began at `scanned` found, having chosen by `rules`. `dirs` are in any order, with the root and
    /// the directory of each one among them; a directory that was kept comes with all those that it had.
    pub fn new(
        last: Arc<StatIndex>,
        rules: [u8; RULES_BYTES],
        scanned: ScanMoment,
        mut dirs: Vec<SeenDir>,
    ) -> Result<Self, NodeStoreError> {
        dirs.sort_unstable_by(|a, b| compare(&a.path, &b.path));
        let mut entries = Vec::with_capacity(dirs.len());
        let mut seen = Self { last, rules, dirs: Vec::with_capacity(dirs.len()), by_digest: OnceLock::new() };
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
            let (dir, listed) = Dir::new(dir, &seen.last, scanned).ok_or_else(damaged)?;
            seen.dirs.push(dir);
            entries.push(listed);
        }
        for at in (0..seen.dirs.len()).rev() {
            seen.close(at, std::mem::take(&mut entries[at]))?;
        }
        Ok(seen)
    }

    /// Settles the node of a directory, once those in it are settled.
    fn close(&mut self, at: usize, entries: Option<Entries>) -> Result<(), NodeStoreError> {
        let dir = &self.dirs[at];
        if entries.is_none() && !dir.dirs.iter().any(|inner| self.has_moved(*inner)) {
            return Ok(());
        }
        let own = match entries {
            Some(entries) => entries,
            None => self.own_entries(at).ok_or_else(damaged)?,
        };
        let node = self.with_dirs(at, own);
        let dir = &mut self.dirs[at];
        dir.row.node = node.digest();
        dir.node = OnceLock::from(Arc::new(node));
        Ok(())
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

    /// What is in a directory but for other directories.
    fn own_entries(&self, at: usize) -> Option<Entries> {
        let entries = Record(&self.held(at)?.bytes).entries();
        entries.map(|known| known.ok().map(|known| (known.name.to_bytes().to_vec(), known.entry()))).collect()
    }

    fn with_dirs(&self, at: usize, mut entries: Entries) -> DirNode {
        for inner in self.dirs[at].dirs.iter().map(|inner| &self.dirs[*inner]) {
            // Entered for what would be brought back in it, and nothing was.
            if inner.row.is_excluded && inner.row.node == *EMPTY_NODE {
                continue;
            }
            let entry = Entry { meta: inner.meta.clone(), kind: Kind::Dir(inner.row.node) };
            entries.insert(name_of(&inner.path).1.to_vec(), entry);
        }
        DirNode { entries }
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
    /// ascending ones cheap: start with 0 and pass the same variable each time.
    pub fn mtime(&self, path: &RelPath, hint: &mut usize) -> Option<Mtime> {
        let (holder, name) = name_of(path.as_bytes());
        if self.dirs.get(*hint).is_none_or(|dir| dir.path != holder) {
            *hint = self.find(holder)?;
        }
        match self.held(*hint).and_then(|held| held.find(name)) {
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

    /// The next index; `None` when what was kept cannot be read from the last one.
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        let table = self.table()?;
        let records: usize = self.dirs.iter().map(|dir| dir.row.record_bytes as usize).sum();
        let mut bytes = Vec::with_capacity(HEAD_BYTES + table.len() + 4 + records);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&u32::try_from(table.len()).ok()?.to_le_bytes());
        bytes.extend_from_slice(&table);
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        let mut buffer = Vec::new();
        for dir in &self.dirs {
            match (dir.held.get(), dir.kept) {
                (Some(held), _) => bytes.extend_from_slice(&held.as_ref()?.bytes),
                (None, kept) => bytes.extend_from_slice(self.last.record(kept?, &mut buffer)?.0),
            }
        }
        Some(bytes)
    }
}

impl NodeStore for SeenContext {
    fn node(&self, digest: &NodeDigest) -> Result<Arc<DirNode>, NodeStoreError> {
        let all = || self.dirs.iter().enumerate().map(|(at, dir)| (dir.row.node, at)).collect();
        let at = *self.by_digest.get_or_init(all).get(digest).ok_or(NodeStoreError::Missing(*digest))?;
        if let Some(node) = self.dirs[at].node.get() {
            return Ok(Arc::clone(node));
        }
        let own = self.own_entries(at).ok_or(NodeStoreError::Damaged(*digest))?;
        let node = self.dirs[at].node.get_or_init(|| Arc::new(self.with_dirs(at, own)));
        Ok(Arc::clone(node))
    }

    fn put_nodes(&self, _: &[EncodedNode]) -> Result<(), NodeStoreError> {
        Err(NodeStoreError::Storage("a scanned context has the nodes that it has".into()))
    }
}

impl Dir {
    /// A directory, and its own entries unless it was kept. `None` when the last index has nothing at the place.
    fn new(seen: SeenDir, last: &StatIndex, scanned: ScanMoment) -> Option<(Self, Option<Entries>)> {
        let SeenDir { path, is_excluded, contained } = seen;
        // The root's own are the host's affair.
        let mode_of = |mode: u32| if path.is_empty() { 0o755 } else { mode & 0o7777 };
        let (meta, kept, row, held, entries) = match contained {
            Contained::Kept(at) => {
                let known = last.dir(at)?;
                let meta = Meta { mode: mode_of(known.mode()), ..Meta::default() };
                (meta, Some(at), known.row().clone(), OnceLock::new(), None)
            }
            Contained::Listed(mut listed) => {
                listed.entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
                let (row, record) = record_of(&listed, is_excluded, scanned)?;
                let mode = mode_of(listed.stat.mode);
                let meta = Meta { mode, xattrs: listed.xattrs, ..Meta::default() };
                let entries = listed.entries.into_iter().map(tree_entry).collect();
                (meta, None, row, OnceLock::from(Held::new(record)), Some(entries))
            }
        };
        let dir = Self { path, meta, kept, row, dirs: Vec::new(), held, node: OnceLock::new() };
        Some((dir, entries))
    }
}

/// A listed directory's record, and its row as far as it is known before the node is.
fn record_of(listed: &ListedDir, is_excluded: bool, scanned: ScanMoment) -> Option<(Row, Vec<u8>)> {
    let mut is_trusted = listed.may_be_trusted && listed.xattrs.is_empty() && listed.stat.is_settled(scanned);
    let (mut record, mut files, mut bytes) = (Vec::new(), 0, 0_u64);
    for entry in &listed.entries {
        if let SeenKind::File(_) = entry.kind {
            files += 1;
            bytes = bytes.saturating_add(entry.stat.size);
        }
        let name = CString::new(entry.name.clone()).ok()?;
        let known = Known {
            name: &name,
            stat: &entry.stat.to_bytes(),
            is_young: !entry.stat.is_settled(scanned),
            is_linked: entry.is_linked,
            is_suspect: entry.is_suspect,
            kind: entry.kind.known(),
        };
        let is_recorded = entry.xattrs.is_empty() && known.write(&mut record).is_some();
        is_trusted &= is_recorded;
    }
    let row = Row {
        path: 0..0,
        stat: listed.stat.to_bytes(),
        is_trusted,
        is_excluded,
        node: *EMPTY_NODE,
        files,
        bytes,
        record_bytes: u32::try_from(record.len()).ok()?,
        crc: crc32fast::hash(&record),
        record_at: 0,
        parent: 0,
    };
    Some((row, record))
}

fn tree_entry(seen: SeenEntry) -> (Vec<u8>, Entry) {
    let SeenEntry { name, stat, xattrs, kind, .. } = seen;
    let stat = stat.to_bytes();
    let known = Known {
        name: c"",
        stat: &stat,
        is_young: false,
        is_linked: false,
        is_suspect: false,
        kind: kind.known(),
    };
    let mut entry = known.entry();
    entry.meta.xattrs = xattrs;
    (name, entry)
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
