//! Looks at the entries of directories, on several threads where there are many.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use rbuild_cache::layer::kept_xattrs;
use rbuild_cache::path::RelPath;
use rbuild_cache::store::FingerprintIndex;
use rbuild_cache::tree::{ContentDigest, DirNode, Entry, Kind, Meta, NodeDigest, PATH_BYTES_MAX};
use rbuild_frontend::dockerignore::Ignore;
use rustix::fs::{AtFlags, FileType, OFlags, RawDir, Stat};

use super::{PendingDir, ScanError, file_stat, io, open_beneath};
use crate::context::secrets::{self, Suspicion};
use crate::context::wanted::{Standing, Wanted};

/// Below this many directories helpers would cost more than they bring.
const PARALLEL_DIRS_MIN: usize = 32;
/// The kernel's directory locks make more useless.
const THREADS_MAX: usize = 4;

/// What decides about entries.
pub(super) struct Lister<'a> {
    pub(super) root: BorrowedFd<'a>,
    pub(super) ignore: &'a Ignore,
    pub(super) wanted: &'a Wanted,
    pub(super) index: &'a FingerprintIndex,
}

/// What is in one directory.
#[derive(Default)]
pub(super) struct Listed {
    /// All but directories and files of unknown content.
    pub(super) entries: DirNode,
    /// The node's digest, when there are none of those.
    pub(super) digest: Option<NodeDigest>,
    /// Directories by name; they do not know their parent yet.
    pub(super) dirs: Vec<(Vec<u8>, PendingDir)>,
    /// Paths of files of unknown content.
    pub(super) unhashed: Vec<Vec<u8>>,
    /// Places of the others in the index.
    pub(super) kept: Vec<usize>,
    /// The directory's own.
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) skipped: Vec<String>,
    pub(super) size_bytes: u64,
    pub(super) suspects: Vec<String>,
    /// Files with several names, by device and inode.
    pub(super) links: Vec<((u64, u64), RelPath)>,
    /// A symlink was met that a source names or goes through.
    pub(super) leads_out: bool,
}

/// What an entry turned out to be.
enum Found {
    /// Nothing that counts.
    Nothing,
    Dir(PendingDir),
    Unhashed,
    Entry(Entry),
}

impl Lister<'_> {
    /// Lists directories, in their order.
    pub(super) fn list_all(&self, dirs: &[PendingDir]) -> Result<Vec<Listed>, ScanError> {
        if dirs.len() < PARALLEL_DIRS_MIN {
            return dirs.iter().map(|dir| self.list(dir)).collect();
        }
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(dir) = dirs.get(at) else { return done };
                done.push((at, self.list(dir)));
            }
        };
        let mut done = std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut done = work();
            done.extend(
                helpers.into_iter().flat_map(|helper| helper.join().expect("listing does not panic")),
            );
            done
        });
        done.sort_unstable_by_key(|(at, _)| *at);
        done.into_iter().map(|(_, listed)| listed).collect()
    }

    fn list(&self, pending: &PendingDir) -> Result<Listed, ScanError> {
        let path = &pending.path;
        if path.len() > PATH_BYTES_MAX {
            return Err(ScanError::TooDeep(String::from_utf8_lossy(&path[..80]).into_owned()));
        }
        let dir = open_beneath(self.root, path, OFlags::DIRECTORY).map_err(io("open", path))?;
        let mut listed = Listed::default();
        // The root's are the host's affair.
        if !path.is_empty() {
            listed.xattrs = kept_xattrs(&dir);
        }
        let mut child = path.clone();
        if !child.is_empty() {
            child.push(b'/');
        }
        let (prefix, mut hint) = (child.len(), 0);
        let mut entries = Vec::new();
        for (name, kind) in names_in(dir.as_fd(), path)? {
            child.truncate(prefix);
            child.extend_from_slice(&name);
            match self.look_at(dir.as_fd(), pending, &name, kind, &child, &mut hint, &mut listed)? {
                Found::Nothing => {}
                Found::Dir(dir) => listed.dirs.push((name, dir)),
                Found::Unhashed => listed.unhashed.push(child.clone()),
                Found::Entry(entry) => entries.push((name, entry)),
            }
        }
        listed.entries = DirNode { entries: entries.into_iter().collect() };
        if listed.dirs.is_empty() && listed.unhashed.is_empty() {
            listed.digest = Some(listed.entries.digest());
        }
        Ok(listed)
    }

    #[expect(clippy::too_many_arguments, reason = "the state of one loop")]
    fn look_at(
        &self,
        dir: BorrowedFd<'_>,
        pending: &PendingDir,
        name: &[u8],
        kind: FileType,
        path: &[u8],
        hint: &mut usize,
        listed: &mut Listed,
    ) -> Result<Found, ScanError> {
        let standing = self.wanted.standing(path);
        if standing == Standing::Outside {
            return Ok(Found::Nothing);
        }
        let text = String::from_utf8_lossy(path);
        let verdict = self.ignore.below(pending.verdict, &text);
        let is_ignored = self.ignore.excludes(verdict);
        let is_left_out =
            |kind| is_ignored && (kind != FileType::Directory || self.ignore.may_skip(verdict, &text));
        // Most file systems tell the type with the name, which saves looking at what is left out.
        if kind != FileType::Unknown && is_left_out(kind) {
            return Ok(Found::Nothing);
        }
        let stat = match rustix::fs::statat(dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // It vanished between listing and looking: as if it had never been there.
            Err(rustix::io::Errno::NOENT) => return Ok(Found::Nothing),
            Err(errno) => return Err(io("look at", path)(errno)),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if is_left_out(kind) {
            return Ok(Found::Nothing);
        }
        if kind == FileType::Symlink && standing != Standing::Inside {
            listed.leads_out = true;
            return Ok(Found::Nothing);
        }
        if kind != FileType::Directory && standing == Standing::Above {
            return Ok(Found::Nothing);
        }
        let meta = Meta { mode: stat.st_mode & 0o7777, ..Meta::default() };
        Ok(match kind {
            FileType::Directory => {
                Found::Dir(PendingDir { path: path.to_vec(), meta, verdict, ..PendingDir::default() })
            }
            FileType::RegularFile => self.file(dir, name, path, &stat, meta, hint, listed),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, OsStr::from_bytes(name), Vec::new())
                    .map_err(io("read the link", path))?;
                let meta = Meta { mode: 0o777, ..Meta::default() };
                Found::Entry(Entry { meta, kind: Kind::Symlink(target.into_bytes()) })
            }
            FileType::Fifo => Found::Entry(Entry { meta, kind: Kind::Fifo }),
            // As BuildKit: a socket has no meaning in an image and becomes an empty file.
            FileType::Socket => {
                let content = ContentDigest(*blake3::hash(b"").as_bytes());
                Found::Entry(Entry { meta, kind: Kind::File { size: 0, content } })
            }
            _ => {
                let skipped = format!("`{text}` is a device and was left out of the build context");
                listed.skipped.push(skipped);
                Found::Nothing
            }
        })
    }

    #[expect(clippy::too_many_arguments, reason = "the state of one loop")]
    fn file(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        stat: &Stat,
        meta: Meta,
        hint: &mut usize,
        listed: &mut Listed,
    ) -> Found {
        if stat.st_nlink > 1 {
            listed.links.push(((stat.st_dev, stat.st_ino), RelPath::clamp(path)));
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        listed.size_bytes = listed.size_bytes.saturating_add(size);
        let is_secret = match secrets::suspicion(path) {
            None => false,
            Some(Suspicion::ByName) => true,
            Some(Suspicion::With(needle)) => holds(dir, name, needle),
        };
        if is_secret {
            listed.suspects.push(String::from_utf8_lossy(path).escape_debug().to_string());
        }
        match self.index.lookup(path, &file_stat(stat), hint) {
            Some((at, content)) => {
                listed.kept.push(at);
                Found::Entry(Entry { meta, kind: Kind::File { size, content } })
            }
            None => Found::Unhashed,
        }
    }
}

/// The names in a directory, sorted, with the types that the file system tells.
pub(in crate::context) fn names_in(
    dir: BorrowedFd<'_>,
    path: &[u8],
) -> Result<Vec<(Vec<u8>, FileType)>, ScanError> {
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut names = Vec::new();
    let mut reader = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = reader.next() {
        let entry = entry.map_err(io("list", path))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push((name.to_vec(), entry.file_type()));
        }
    }
    names.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    Ok(names)
}

/// True when a file that its name makes suspect is a secret by what is in it. One that cannot be read is none.
fn holds(dir: BorrowedFd<'_>, name: &[u8], needle: &str) -> bool {
    open_beneath(dir, name, OFlags::empty()).is_ok_and(|file| secrets::holds(&file, needle))
}
