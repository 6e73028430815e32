//! Walks a local build context into a tree.
//!
//! The walk goes by directory fd and never follows a symlink, so a context cannot make it read anything outside. Ignored
//! directories are not entered. Owners become 0:0 whatever the host says (dockerfile reference 3.4); mtimes stay out
//! of the tree. File contents are hashed only where the stat index does not already know them, and directories listed and
//! their nodes made only where it does not know those. Xattrs are kept as layers keep them; files that have some are
//! rare, stay out of the index, and are read each time.

mod lister;
mod read;
#[cfg(test)]
mod tests;
mod walk;

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_cache::copy::{DirSource, FileSource, SourceError};
use rbuild_cache::layer::Mtime;
use rbuild_cache::path::RelPath;
use rbuild_cache::scratch::Scratch;
use rbuild_cache::store::{
    IndexDamaged, Known, LayerId, LayerPacks, Records, ScanMoment, SeenContext, SeenDir, SeenHint,
    SeenXattrs, Spool, StatIndex,
};
use rbuild_cache::tree::{FoundNames, Meta, NodeStore, NodeStoreError, PATH_BYTES_MAX, Tree};
use rbuild_frontend::dockerignore::Ignore;
use rustix::fs::{Mode, OFlags};

use crate::context::counted::Counted;
use crate::context::files::FoundIgnore;
use crate::context::wanted::Wanted;
use crate::error::StepFailure;
use lister::Lister;
pub(super) use lister::names_in;
use walk::Walked;

/// Raised when the same patterns choose something else, or other files count as secrets.
const RULES_LABEL: &str = concat!("rbuild scan rules 1, ", env!("CARGO_PKG_VERSION"));
/// Types of the file systems on which whatever changes the names in a directory is known to move its times: ext2 to
/// ext4, xfs, btrfs, tmpfs, overlay, f2fs, bcachefs, zfs.
const TRUSTED_SYSTEMS: [i64; 8] =
    [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630, 0xf2f5_2010, 0xca45_1a4e, 0x2fc1_2fc1];

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
    pub skipped: Counted,
    /// Bytes of the files that some step takes.
    pub size_bytes: u64,
    /// Files among them that look like secrets.
    pub suspects: Counted,
    /// What the scan saw, for the next stat index; `None` when none is kept.
    pub seen: Option<Arc<SeenContext>>,
    /// The ignore file that left entries out, for those who miss one.
    pub ignore: Option<FoundIgnore>,
    /// A pack of contents, made while they were hashed, for the step that takes them first.
    pub(super) packs: Mutex<Option<LayerPacks>>,
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
        Ok(ContextFiles { dir, seen: self.seen.clone(), hint: Mutex::default() })
    }

    /// The pack that the scan made, for whoever asks first.
    pub fn take_packs(&self) -> Option<LayerPacks> {
        self.packs.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The files of a context. Those that the scan has looked at have the time that it saw.
#[derive(Debug)]
pub struct ContextFiles {
    dir: DirSource,
    seen: Option<Arc<SeenContext>>,
    hint: Mutex<SeenHint>,
}

impl FileSource for ContextFiles {
    fn open(&self, path: &RelPath) -> Result<OwnedFd, SourceError> {
        self.dir.open(path)
    }

    fn mtime(&self, path: &RelPath) -> Result<Mtime, SourceError> {
        let mut hint = self.hint.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = self.seen.as_ref().and_then(|seen| seen.mtime(path, &mut hint));
        drop(hint);
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
    /// What leads to something in the stat index cannot be believed. No [`scan`] ends with it.
    #[error(transparent)]
    Index(#[from] IndexDamaged),
    /// The trees could not be kept.
    #[error(transparent)]
    Tree(#[from] NodeStoreError),
    /// Names of files that have several.
    #[error(transparent)]
    Links(#[from] rbuild_cache::tree::TreeError),
}

pub(super) fn io<E: Into<std::io::Error>>(what: &'static str, path: &[u8]) -> impl FnOnce(E) -> ScanError {
    let path = String::from_utf8_lossy(path).into_owned();
    move |error| ScanError::Io { what, path, source: error.into() }
}

/// Scans `root`.
///
/// `ignore` decides what is left out, `wanted` what is looked at; the Dockerfile and the ignore file themselves are read
/// by the builder elsewhere. A source that is, or leads through, a symlink may end anywhere in the context, so then all
/// of it is looked at. `index` is the stat index of the last scan, or empty. With a `spool` small
/// files that are read are packed on the way. What is too much for memory goes to files of `scratch`.
pub fn scan(
    root: &Path,
    ignore: &Ignore,
    wanted: &Wanted,
    index: &Arc<StatIndex>,
    spool: Option<Spool>,
    scratch: &Scratch,
) -> Result<ScannedContext, ScanError> {
    let look = |wanted: &Wanted, spool| match look_through(root, ignore, wanted, index, spool, scratch) {
        // All is looked at as if there were none.
        Err(ScanError::Index(_)) => look_through(root, ignore, wanted, &Arc::default(), None, scratch),
        found => found,
    };
    if let Some(scanned) = look(wanted, spool)? {
        return Ok(scanned);
    }
    let all = look(&Wanted::everything(), None)?;
    Ok(all.unwrap_or_else(|| unreachable!("a walk of everything has no symlink to stop at")))
}

/// Scans the wanted part; `None` when a symlink leads out of it.
fn look_through(
    root: &Path,
    ignore: &Ignore,
    wanted: &Wanted,
    index: &Arc<StatIndex>,
    spool: Option<Spool>,
    scratch: &Scratch,
) -> Result<Option<ScannedContext>, ScanError> {
    // Before the first look at any file: what changes from here on is not trusted next time.
    let moment = ScanMoment::now();
    let dir = rustix::fs::open(root, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(io("open", root.as_os_str().as_bytes()))?;
    let (rules, xattrs) = (rules(ignore, wanted), SeenXattrs::new(scratch));
    let lister = Lister {
        root: dir.as_fd(),
        ignore,
        wanted,
        index,
        is_current: index.is_by(&rules),
        trusted_dev: trusted_dev(dir.as_fd()),
        moment,
        xattrs: &xattrs,
        scratch,
    };
    let Some(Walked { mut dirs, skipped }) = walk::walk(&lister)? else { return Ok(None) };
    let mut linked = FoundNames::new(scratch);
    let suspects = note(&dirs, index, &mut linked)?;
    let packs = read::read_all(&lister, &mut dirs, spool)?;
    let seen = Arc::new(SeenContext::new(Arc::clone(index), rules, dirs, xattrs)?);
    let root = Meta { mode: 0o755, ..Meta::default() };
    let links = linked.links(&*seen)?;
    Ok(Some(ScannedContext {
        tree: Tree { root, node: seen.node(), links },
        nodes: Arc::clone(&seen) as Arc<dyn NodeStore>,
        dir,
        identity: None,
        layer: None,
        newest_unix: None,
        skipped,
        size_bytes: seen.bytes(),
        suspects,
        seen: Some(seen),
        ignore: None,
        packs: Mutex::new(packs),
    }))
}

/// What must be told of each time: gives files that look like secrets, and adds the names of those that have several.
fn note(dirs: &[SeenDir], index: &StatIndex, linked: &mut FoundNames) -> Result<Counted, ScanError> {
    let (mut suspects, mut records) = (Counted::default(), Records::new(index));
    for dir in dirs.iter().filter(|dir| dir.is_noted()) {
        let path = RelPath::clamp(dir.path());
        let mut tell = |known: &Known<'_>| -> Result<(), ScanError> {
            if !known.is_linked && !known.is_suspect {
                return Ok(());
            }
            let path = path.join(known.name.to_bytes());
            if known.is_linked {
                let stat = known.stat();
                linked.add((stat.dev, stat.ino), &path)?;
            }
            if known.is_suspect {
                suspects.add(|| String::from_utf8_lossy(path.as_bytes()).escape_debug().to_string());
            }
            Ok(())
        };
        match dir.place_kept() {
            None => dir.entries().flatten().try_for_each(|known| tell(&known))?,
            Some(at) => {
                // It was there a moment ago.
                let gone = |damaged| NodeStoreError::Storage(Box::new(damaged));
                let mut record = records.of(&index.dir(at)?).map_err(gone)?;
                while let Some(known) = record.peek().map_err(gone)? {
                    tell(&known)?;
                    record.skip();
                }
            }
        }
    }
    Ok(suspects.sorted())
}

/// What decides about what is in a context, as a digest.
fn rules(ignore: &Ignore, wanted: &Wanted) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let mut put = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    put(RULES_LABEL);
    for rule in ignore.rules() {
        put(if rule.negated { "brings back" } else { "leaves out" });
        put(rule.text);
    }
    match wanted.texts() {
        None => put("of everything"),
        Some(texts) => {
            put("of");
            texts.for_each(&mut put);
        }
    }
    *hasher.finalize().as_bytes()
}

/// The device of a directory on a file system whose times of directories tell of changes.
fn trusted_dev(dir: BorrowedFd<'_>) -> Option<u64> {
    let system = rustix::fs::fstatfs(dir).ok()?;
    TRUSTED_SYSTEMS.contains(&system.f_type).then_some(())?;
    Some(rustix::fs::fstat(dir).ok()?.st_dev)
}

pub(super) fn open_beneath(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    use rustix::fs::ResolveFlags;
    let path = if path.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(path) };
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
}
