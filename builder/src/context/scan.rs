//! Walks a local build context into a tree.
//!
//! The walk goes by directory fd and never follows a symlink, so a context cannot make it read anything outside. Ignored
//! directories are not entered. Owners become 0:0 whatever the host says (dockerfile reference 3.4); mtimes stay out
//! of the tree. File contents are hashed only where the stat index does not already know them. Xattrs are kept as layers
//! keep them; files that have some are rare, stay out of the index, and are read each time.

mod lister;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rbuild_cache::copy::{DirSource, FileSource, SourceError};
use rbuild_cache::layer::{Mtime, kept_xattrs};
use rbuild_cache::path::RelPath;
use rbuild_cache::store::{FileStat, FingerprintEntry, FingerprintIndex, LayerId, ScanMoment, SeenFiles};
use rbuild_cache::tree::{
    ContentDigest, DirNode, Entry, Kind, LinkGroups, MemoryNodeStore, Meta, NodeDigest, NodeStore,
    PATH_BYTES_MAX, Tree,
};
use rbuild_frontend::dockerignore::{Ignore, Verdict};
use rustix::fs::{Mode, OFlags, Stat};

use crate::context::files::FoundIgnore;
use crate::context::wanted::Wanted;
use crate::error::StepFailure;
pub(super) use lister::names_in;
use lister::{Listed, Lister};

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
    /// What is known of its files, and what the last stat index knew.
    pub seen: Arc<SeenFiles>,
    /// When the scan began; `None` when no stat index is kept.
    pub scanned: Option<ScanMoment>,
    /// The ignore file that left entries out, for those who miss one.
    pub ignore: Option<FoundIgnore>,
}

impl ScannedContext {
    /// Its files.
    pub fn files(&self) -> Result<ContextFiles, StepFailure> {
        let dir = self.dir.try_clone().map_err(|source| StepFailure::Io {
            what: "hold",
            path: "the build context".to_owned(),
            source,
        })?;
        let dir = if self.layer.is_some() { DirSource::immutable(dir) } else { DirSource::new(dir) };
        Ok(ContextFiles { dir, seen: Arc::clone(&self.seen), hint: AtomicUsize::new(0) })
    }
}

/// The files of a context. Those that the scan has looked at have the time that it saw.
#[derive(Debug)]
pub struct ContextFiles {
    dir: DirSource,
    seen: Arc<SeenFiles>,
    hint: AtomicUsize,
}

impl FileSource for ContextFiles {
    fn open(&self, path: &RelPath) -> Result<OwnedFd, SourceError> {
        self.dir.open(path)
    }

    fn mtime(&self, path: &RelPath) -> Result<Mtime, SourceError> {
        let mut hint = self.hint.load(Ordering::Relaxed);
        let seen = self.seen.mtime(path, &mut hint);
        self.hint.store(hint, Ordering::Relaxed);
        seen.map_or_else(|| self.dir.mtime(path), Ok)
    }

    fn is_immutable(&self) -> bool {
        self.dir.is_immutable()
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
    /// The node's digest, where nothing more comes into it.
    digest: Option<NodeDigest>,
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
    index: FingerprintIndex,
) -> Result<ScannedContext, ScanError> {
    match walk(root, ignore, wanted, index)? {
        Ok(scanned) => Ok(scanned),
        Err(index) => {
            let all = walk(root, ignore, &Wanted::everything(), index)?;
            Ok(all.unwrap_or_else(|_| unreachable!("a walk of everything has no symlink to stop at")))
        }
    }
}

/// Walks the wanted part; gives the index back when a symlink leads out of it.
fn walk(
    root: &Path,
    ignore: &Ignore,
    wanted: &Wanted,
    index: FingerprintIndex,
) -> Result<Result<ScannedContext, FingerprintIndex>, ScanError> {
    // Before the first look at any file: what changes from here on is not trusted next time.
    let moment = ScanMoment::now();
    let dir = rustix::fs::open(root, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(io("open", root.as_os_str().as_bytes()))?;
    let lister = Lister { root: dir.as_fd(), ignore, wanted, index: &index };
    let mut walk = Walk::default();
    let mut kept = Vec::new();
    let root_meta = Meta { mode: 0o755, ..Meta::default() };
    walk.dirs.push(PendingDir { meta: root_meta, ..PendingDir::default() });
    let mut next = 0;
    while next < walk.dirs.len() {
        // All directories of one depth, whose parents were all listed.
        let level = next..walk.dirs.len();
        for (at, listed) in level.clone().zip(lister.list_all(&walk.dirs[level.clone()])?) {
            if listed.leads_out {
                return Ok(Err(index));
            }
            kept.extend_from_slice(&listed.kept);
            walk.take(at, listed);
        }
        next = level.end;
    }
    let mut files = SeenFiles::new(index);
    kept.into_iter().for_each(|at| files.keep(at));
    files.add(walk.hash(dir.as_fd())?);
    let skipped = std::mem::take(&mut walk.skipped);
    let (size_bytes, mut suspects) = (walk.size_bytes, std::mem::take(&mut walk.suspects));
    suspects.sort();
    let (tree, nodes) = walk.finish(ignore)?;
    let (seen, scanned) = (Arc::new(files), Some(moment));
    Ok(Ok(ScannedContext {
        tree,
        nodes,
        dir,
        identity: None,
        layer: None,
        newest_unix: None,
        skipped,
        size_bytes,
        suspects,
        seen,
        scanned,
        ignore: None,
    }))
}

/// Everything found so far.
#[derive(Default)]
struct Walk {
    dirs: Vec<PendingDir>,
    unhashed: Vec<Unhashed>,
    skipped: Vec<String>,
    size_bytes: u64,
    suspects: Vec<String>,
    /// Paths of files with several names, by device and inode.
    links: BTreeMap<(u64, u64), Vec<RelPath>>,
}

impl Walk {
    /// Adds what is in the directory `at`.
    fn take(&mut self, at: usize, listed: Listed) {
        let Listed { entries, dirs, unhashed, skipped, size_bytes, suspects, links, .. } = listed;
        let dir = &mut self.dirs[at];
        (dir.node, dir.digest) = (entries, listed.digest);
        dir.meta.xattrs = listed.xattrs;
        let subdirs = dirs.into_iter();
        self.dirs.extend(subdirs.map(|(name, dir)| PendingDir { parent: Some((at, name)), ..dir }));
        self.unhashed.extend(unhashed.into_iter().map(|path| Unhashed { dir: at, path }));
        self.skipped.extend(skipped);
        self.size_bytes = self.size_bytes.saturating_add(size_bytes);
        self.suspects.extend(suspects);
        for (inode, path) in links {
            self.links.entry(inode).or_default().push(path);
        }
    }

    /// Hashes what the stat index did not know, on both cores when there is much.
    fn hash(&mut self, root: BorrowedFd<'_>) -> Result<Vec<FingerprintEntry>, ScanError> {
        let mut read = Vec::with_capacity(self.unhashed.len());
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
                    let (path, stat) = (RelPath::clamp(path), file_stat(&stat));
                    read.push(FingerprintEntry { path, stat, content });
                }
                let meta = Meta { mode: stat.st_mode & 0o7777, xattrs, ..Meta::default() };
                self.dirs[*dir].node.entries.insert(name, Entry { meta, kind: Kind::File { size, content } });
            }
        }
        Ok(read)
    }

    /// Closes directories from the leaves up. A directory that was only entered for a re-included file is dropped again
    /// when nothing was found.
    fn finish(mut self, ignore: &Ignore) -> Result<(Tree, Arc<MemoryNodeStore>), ScanError> {
        let nodes = Arc::new(MemoryNodeStore::default());
        let mut batch = Vec::with_capacity(self.dirs.len());
        for at in (1..self.dirs.len()).rev() {
            let dir = &mut self.dirs[at];
            let (node, digest) = (std::mem::take(&mut dir.node), dir.digest);
            let (parent, name) = dir.parent.take().expect("every directory but the root has a parent");
            let meta = std::mem::take(&mut dir.meta);
            if node.entries.is_empty() && ignore.excludes(dir.verdict) {
                continue;
            }
            let digest = digest.unwrap_or_else(|| node.digest());
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

pub(super) fn file_stat(stat: &Stat) -> FileStat {
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
