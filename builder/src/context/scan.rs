//! Walks a local build context into a tree.
//!
//! The walk goes by directory fd and never follows a symlink, so a context cannot make it read anything outside. Ignored
//! directories are not entered. Owners become 0:0 whatever the host says (dockerfile reference 3.4); mtimes stay out
//! of the tree. File contents are hashed only where the stat index does not already know them. Xattrs are kept as layers
//! keep them; files that have some are rare, stay out of the index, and are read each time.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rbuild_cache::copy::DirSource;
use rbuild_cache::layer::{Mtime, kept_xattrs};
use rbuild_cache::path::RelPath;
use rbuild_cache::store::{FileStat, FingerprintEntry, FingerprintIndex, LayerId, ScanMoment};
use rbuild_cache::tree::PATH_BYTES_MAX;
use rbuild_cache::tree::{
    ContentDigest, DirNode, Entry, Kind, LinkGroups, MemoryNodeStore, Meta, NodeStore, Tree,
};
use rbuild_frontend::dockerignore::{Ignore, Verdict};

use crate::context::secrets::{self, Suspicion};
use crate::context::wanted::{Standing, Wanted};
use crate::error::StepFailure;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};

/// Looks at a file that shrinks while it is being read before that is an error.
const READS_MAX: usize = 3;
/// Files below this many are hashed on the walking thread: starting helpers would cost more.
const PARALLEL_HASH_MIN: usize = 64;

/// A scanned context.
pub struct ScannedContext {
    /// Its tree, owners 0:0, ignored entries absent.
    pub tree: Tree,
    /// The tree's directory nodes.
    pub nodes: Arc<dyn NodeStore>,
    /// The context directory.
    pub dir: OwnedFd,
    /// Identifies the directory from build to build; `None` for one that is thrown away.
    pub identity: Option<[u8; 32]>,
    /// The layer of the store that it is; nobody changes the files of one.
    pub layer: Option<LayerId>,
    /// When the newest thing in an archive on standard input was made, in seconds.
    pub newest_unix: Option<i64>,
    /// Entries that were left out, with the reason.
    pub skipped: Vec<String>,
    /// Bytes of the files that some step takes.
    pub size_bytes: u64,
    /// Files among them that look like secrets.
    pub suspects: Vec<String>,
    /// The next stat index, when it differs from the last one.
    pub fingerprints: Option<(ScanMoment, Vec<FingerprintEntry>)>,
}

impl ScannedContext {
    /// Its files.
    pub fn files(&self) -> Result<DirSource, StepFailure> {
        let dir = self.dir.try_clone().map_err(|source| StepFailure::Io {
            what: "hold",
            path: "the build context".to_owned(),
            source,
        })?;
        Ok(if self.layer.is_some() { DirSource::immutable(dir) } else { DirSource::new(dir) })
    }
}

/// Why a context cannot be scanned.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// A directory or file cannot be opened, listed or read.
    #[error("cannot {what} `{path}` in the build context")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Path relative to the context.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A path is longer than an image can hold.
    #[error(
        "the build context has a path of more than {PATH_BYTES_MAX} bytes, which no image can hold: `{0}…`"
    )]
    TooDeep(String),
    /// A file shrank again and again while it was hashed.
    #[error("`{0}` in the build context changed while it was being read")]
    Changed(String),
    /// The trees could not be kept.
    #[error(transparent)]
    Tree(#[from] rbuild_cache::tree::NodeStoreError),
}

pub(super) fn io(what: &'static str, path: &[u8]) -> impl FnOnce(rustix::io::Errno) -> ScanError {
    let path = String::from_utf8_lossy(path).into_owned();
    move |errno| ScanError::Io { what, path, source: errno.into() }
}

/// One directory on the walk: its node so far and where it hangs.
#[derive(Default)]
struct PendingDir {
    path: Vec<u8>,
    parent: Option<(usize, Vec<u8>)>,
    meta: Meta,
    node: DirNode,
    verdict: Verdict,
}

/// A file whose content is not known yet.
struct Unhashed {
    dir: usize,
    path: Vec<u8>,
}

/// Scans `root`.
///
/// `ignore` decides what is left out, `wanted` what is looked at; the Dockerfile and the ignore file themselves are read
/// by the builder elsewhere. A source that is, or leads through, a symlink may end anywhere in the context, so then all
/// of it is looked at. `index` is the stat index of the last scan, or empty.
pub fn scan(
    root: &Path,
    ignore: &Ignore,
    wanted: &Wanted,
    index: &FingerprintIndex,
) -> Result<ScannedContext, ScanError> {
    match walk(root, ignore, wanted, index)? {
        Some(scanned) => Ok(scanned),
        None => {
            let all = walk(root, ignore, &Wanted::everything(), index)?;
            Ok(all.expect("a walk of everything has no symlink to stop at"))
        }
    }
}

/// Walks the wanted part; `None` when a symlink leads out of it.
fn walk(
    root: &Path,
    ignore: &Ignore,
    wanted: &Wanted,
    index: &FingerprintIndex,
) -> Result<Option<ScannedContext>, ScanError> {
    // Before the first look at any file: what changes from here on is not trusted next time.
    let moment = ScanMoment::now();
    let dir = rustix::fs::open(root, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(io("open", root.as_os_str().as_bytes()))?;
    let mut walk = Walk {
        ignore,
        wanted,
        leads_out: false,
        index,
        dirs: Vec::new(),
        unhashed: Vec::new(),
        known: Vec::new(),
        hint: 0,
        hits: 0,
        skipped: Vec::new(),
        size_bytes: 0,
        suspects: Vec::new(),
        links: BTreeMap::new(),
    };
    let root_meta = Meta { mode: 0o755, ..Meta::default() };
    walk.dirs.push(PendingDir { meta: root_meta, ..PendingDir::default() });
    let mut next = 0;
    while next < walk.dirs.len() {
        walk.list(dir.as_fd(), next)?;
        if walk.leads_out {
            return Ok(None);
        }
        next += 1;
    }
    walk.hash(dir.as_fd())?;
    let changed = walk.known.len() > walk.hits || walk.hits != index.len();
    let skipped = std::mem::take(&mut walk.skipped);
    let known = std::mem::take(&mut walk.known);
    let (size_bytes, mut suspects) = (walk.size_bytes, std::mem::take(&mut walk.suspects));
    suspects.sort();
    let (tree, nodes) = walk.finish()?;
    let fingerprints = changed.then_some((moment, known));
    Ok(Some(ScannedContext {
        tree,
        nodes,
        dir,
        identity: None,
        layer: None,
        newest_unix: None,
        skipped,
        size_bytes,
        suspects,
        fingerprints,
    }))
}

struct Walk<'a> {
    ignore: &'a Ignore,
    wanted: &'a Wanted,
    /// A symlink was met that a source names or goes through.
    leads_out: bool,
    index: &'a FingerprintIndex,
    dirs: Vec<PendingDir>,
    unhashed: Vec<Unhashed>,
    known: Vec<FingerprintEntry>,
    hint: usize,
    hits: usize,
    skipped: Vec<String>,
    size_bytes: u64,
    suspects: Vec<String>,
    /// Paths of files with several names, by device and inode.
    links: BTreeMap<(u64, u64), Vec<RelPath>>,
}

impl Walk<'_> {
    /// Lists one directory: files and links into its node, directories onto the work list.
    fn list(&mut self, root: BorrowedFd<'_>, at: usize) -> Result<(), ScanError> {
        let path = self.dirs[at].path.clone();
        if path.len() > PATH_BYTES_MAX {
            return Err(ScanError::TooDeep(String::from_utf8_lossy(&path[..80]).into_owned()));
        }
        let dir = open_beneath(root, &path, OFlags::DIRECTORY).map_err(io("open", &path))?;
        if at > 0 {
            self.dirs[at].meta.xattrs = kept_xattrs(&dir);
        }
        for name in names_in(dir.as_fd(), &path)? {
            let mut child = path.clone();
            if !child.is_empty() {
                child.push(b'/');
            }
            child.extend_from_slice(&name);
            self.visit(dir.as_fd(), at, name, child)?;
        }
        Ok(())
    }

    fn visit(
        &mut self,
        dir: BorrowedFd<'_>,
        at: usize,
        name: Vec<u8>,
        path: Vec<u8>,
    ) -> Result<(), ScanError> {
        let standing = self.wanted.standing(&path);
        if standing == Standing::Outside {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&path);
        let verdict = self.ignore.below(self.dirs[at].verdict, &text);
        let ignored = self.ignore.excludes(verdict);
        let stat = match rustix::fs::statat(dir, OsStr::from_bytes(&name), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // It vanished between listing and looking: as if it had never been there.
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(io("look at", &path)(errno)),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if ignored && (kind != FileType::Directory || self.ignore.may_skip(verdict, &text)) {
            return Ok(());
        }
        if kind == FileType::Symlink && standing != Standing::Inside {
            self.leads_out = true;
            return Ok(());
        }
        if kind != FileType::Directory && standing == Standing::Above {
            return Ok(());
        }
        let meta = Meta { mode: stat.st_mode & 0o7777, ..Meta::default() };
        let entry = match kind {
            FileType::Directory => {
                let (parent, node) = (Some((at, name)), DirNode::default());
                self.dirs.push(PendingDir { path, parent, meta, node, verdict });
                return Ok(());
            }
            FileType::RegularFile => {
                if stat.st_nlink > 1 {
                    self.links.entry((stat.st_dev, stat.st_ino)).or_default().push(RelPath::clamp(&path));
                }
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                self.size_bytes = self.size_bytes.saturating_add(size);
                let is_secret = match secrets::suspicion(&path) {
                    None => false,
                    Some(Suspicion::ByName) => true,
                    Some(Suspicion::With(needle)) => holds(dir, &name, needle),
                };
                if is_secret {
                    self.suspects.push(text.escape_debug().to_string());
                }
                let (rel, seen) = (RelPath::clamp(&path), file_stat(&stat));
                match self.index.lookup(&rel, &seen, &mut self.hint) {
                    Some(content) => {
                        self.hits += 1;
                        self.known.push(FingerprintEntry { path: rel, stat: seen, content });
                        Entry { meta, kind: Kind::File { size, content } }
                    }
                    None => {
                        self.unhashed.push(Unhashed { dir: at, path });
                        return Ok(());
                    }
                }
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, OsStr::from_bytes(&name), Vec::new())
                    .map_err(io("read the link", &path))?;
                Entry {
                    meta: Meta { mode: 0o777, ..Meta::default() },
                    kind: Kind::Symlink(target.into_bytes()),
                }
            }
            FileType::Fifo => Entry { meta, kind: Kind::Fifo },
            // As BuildKit: a socket has no meaning in an image and becomes an empty file.
            FileType::Socket => {
                let content = ContentDigest(*blake3::hash(b"").as_bytes());
                Entry { meta, kind: Kind::File { size: 0, content } }
            }
            _ => {
                self.skipped.push(format!("`{text}` is a device and was left out of the build context"));
                return Ok(());
            }
        };
        self.dirs[at].node.entries.insert(name, entry);
        Ok(())
    }

    /// Hashes what the stat index did not know, on both cores when there is much.
    fn hash(&mut self, root: BorrowedFd<'_>) -> Result<(), ScanError> {
        let todo = &self.unhashed;
        let next = AtomicUsize::new(0);
        let work = || -> Result<Vec<(usize, Hashed)>, ScanError> {
            let mut done = Vec::new();
            let mut buffer = vec![0; 256 << 10];
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(file) = todo.get(at) else { return Ok(done) };
                done.push((at, hash_file(root, &file.path, &mut buffer)?));
            }
        };
        let threads = if todo.len() < PARALLEL_HASH_MIN {
            1
        } else {
            std::thread::available_parallelism().map_or(1, usize::from).min(8)
        };
        let results = std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut results = vec![work()];
            results.extend(helpers.into_iter().map(|h| h.join().expect("hashing does not panic")));
            results
        });
        for result in results {
            for (at, Hashed { content, stat, xattrs }) in result? {
                let Unhashed { dir, path } = &self.unhashed[at];
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                let name = path.rsplit(|b| *b == b'/').next().unwrap_or(path).to_vec();
                if xattrs.is_empty() {
                    self.known.push(FingerprintEntry {
                        path: RelPath::clamp(path),
                        stat: file_stat(&stat),
                        content,
                    });
                }
                let meta = Meta { mode: stat.st_mode & 0o7777, xattrs, ..Meta::default() };
                self.dirs[*dir].node.entries.insert(name, Entry { meta, kind: Kind::File { size, content } });
            }
        }
        Ok(())
    }

    /// Closes directories from the leaves up. A directory that was only entered for a re-included file is dropped again
    /// when nothing was found.
    fn finish(mut self) -> Result<(Tree, Arc<MemoryNodeStore>), ScanError> {
        let nodes = Arc::new(MemoryNodeStore::default());
        let mut batch = Vec::with_capacity(self.dirs.len());
        for at in (1..self.dirs.len()).rev() {
            let dir = &mut self.dirs[at];
            let node = std::mem::take(&mut dir.node);
            let (parent, name) = dir.parent.take().expect("every directory but the root has a parent");
            let meta = std::mem::take(&mut dir.meta);
            if node.entries.is_empty() && self.ignore.excludes(dir.verdict) {
                continue;
            }
            let digest = node.digest();
            batch.push((digest, Arc::new(node)));
            self.dirs[parent].node.entries.insert(name, Entry { meta, kind: Kind::Dir(digest) });
        }
        let root = std::mem::take(&mut self.dirs[0]);
        let digest = root.node.digest();
        batch.push((digest, Arc::new(root.node)));
        nodes.put_nodes(&batch)?;
        Ok((Tree { root: root.meta, node: digest, links: LinkGroups::new(self.links.into_values()) }, nodes))
    }
}

/// The names in a directory, sorted.
pub(super) fn names_in(dir: BorrowedFd<'_>, path: &[u8]) -> Result<Vec<Vec<u8>>, ScanError> {
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut names: Vec<Vec<u8>> = Vec::new();
    let mut reader = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = reader.next() {
        let entry = entry.map_err(io("list", path))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// True when a file that its name makes suspect is a secret by what is in it. One that cannot be read is none.
fn holds(dir: BorrowedFd<'_>, name: &[u8], needle: &str) -> bool {
    open_beneath(dir, name, OFlags::empty()).is_ok_and(|file| secrets::holds(&file, needle))
}

fn file_stat(stat: &Stat) -> FileStat {
    let time = |secs: i64, nanos: i64| Mtime { secs, nanos: u32::try_from(nanos).unwrap_or(0) };
    FileStat {
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec as i64),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec as i64),
        ino: stat.st_ino,
        dev: stat.st_dev,
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
    }
}

pub(super) fn open_beneath(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    use rustix::fs::ResolveFlags;
    let path = if path.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(path) };
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
}

/// What reading a file gave.
struct Hashed {
    content: ContentDigest,
    stat: Stat,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Hashes a file's first `st_size` bytes, as it is when opened. One that grows meanwhile (a log that this very build
/// writes, say) is taken as it was; the copy checks its bytes against the digest.
fn hash_file(root: BorrowedFd<'_>, path: &[u8], buffer: &mut [u8]) -> Result<Hashed, ScanError> {
    for _ in 0..READS_MAX {
        let fd = open_beneath(root, path, OFlags::empty()).map_err(io("open", path))?;
        let stat = rustix::fs::fstat(&fd).map_err(io("look at", path))?;
        let mut left = u64::try_from(stat.st_size).unwrap_or(0);
        let mut hasher = blake3::Hasher::new();
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let count = rustix::io::read(&fd, &mut buffer[..wanted]).map_err(io("read", path))?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            left -= count as u64;
        }
        if left == 0 {
            let content = ContentDigest(*hasher.finalize().as_bytes());
            return Ok(Hashed { content, stat, xattrs: kept_xattrs(&fd) });
        }
    }
    Err(ScanError::Changed(String::from_utf8_lossy(path).into_owned()))
}
