//! Looks at what is in one directory.
//!
//! A directory whose stat the last index has is not listed: its record says what is in it, and each of those is
//! compared with its stat there. From the first that differs on, and everywhere else, names are matched one by one
//! against the rules, and the record only tells contents.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rbuild_cache::layer::kept_xattrs;
use rbuild_cache::store::{
    Entries, FileStat, Known, KnownDir, KnownKind, ListedDir, Place, Record, ScanMoment, SeenEntry, StatIndex,
};
use rbuild_cache::tree::PATH_BYTES_MAX;
use rbuild_frontend::dockerignore::{Ignore, Verdict};
use rustix::fs::{AtFlags, FileType, OFlags, RawDir};

use super::{ScanError, io, open_beneath};
use crate::context::secrets::{self, Suspicion};
use crate::context::wanted::{Standing, Wanted};

/// What decides about entries.
pub(super) struct Lister<'a> {
    pub(super) root: BorrowedFd<'a>,
    pub(super) ignore: &'a Ignore,
    pub(super) wanted: &'a Wanted,
    pub(super) index: &'a StatIndex,
    /// True when the index was made by these rules.
    pub(super) is_current: bool,
    /// The file system on which times of directories tell of changes.
    pub(super) trusted_dev: Option<u64>,
    /// When the scan began.
    pub(super) moment: ScanMoment,
}

/// A directory to look at.
#[derive(Debug)]
pub(super) enum Task {
    /// One that the last scan went through by the same rules.
    Known(usize),
    /// One that was found.
    Found { path: Vec<u8>, verdict: Verdict },
}

/// A directory that was looked at.
pub(super) struct Looked {
    pub(super) path: Vec<u8>,
    /// It is itself left out.
    pub(super) is_excluded: bool,
    pub(super) found: Found,
    pub(super) notes: Notes,
}

/// What was found in a directory.
pub(super) enum Found {
    /// All as it is at this place of the index.
    Kept(usize),
    Listed(Box<Listed>),
}

/// What is in one directory.
pub(super) struct Listed {
    /// All but directories.
    pub(super) dir: ListedDir,
    /// Names of directories, sorted.
    pub(super) dirs: Vec<(Vec<u8>, Verdict)>,
    /// Files whose content is not known yet, by name.
    pub(super) unread: Vec<Place>,
    /// A symlink was met that a source names or goes through.
    pub(super) leads_out: bool,
}

/// What else is to say about a directory.
#[derive(Default)]
pub(super) struct Notes {
    pub(super) skipped: Vec<String>,
    pub(super) suspects: Vec<String>,
    pub(super) links: LinkedFiles,
}

/// The files of a directory that have several names, perhaps elsewhere. In one piece: there may be as many as files.
#[derive(Default)]
pub(super) struct LinkedFiles(Vec<u8>);

impl LinkedFiles {
    fn add(&mut self, (device, inode): (u64, u64), name: &[u8]) {
        self.0.extend_from_slice(&device.to_ne_bytes());
        self.0.extend_from_slice(&inode.to_ne_bytes());
        self.0.extend_from_slice(name);
        // No name has one.
        self.0.push(0);
    }

    /// Device, inode and name of each.
    pub(super) fn iter(&self) -> impl Iterator<Item = ((u64, u64), &[u8])> {
        let mut rest = self.0.as_slice();
        std::iter::from_fn(move || {
            let (device, after) = rest.split_first_chunk()?;
            let (inode, after) = after.split_first_chunk()?;
            let end = after.iter().position(|byte| *byte == 0)?;
            rest = &after[end + 1..];
            Some(((u64::from_ne_bytes(*device), u64::from_ne_bytes(*inode)), &after[..end]))
        })
    }
}

impl Lister<'_> {
    /// Where a task is.
    pub(super) fn path<'t>(&'t self, task: &'t Task) -> &'t [u8] {
        match task {
            Task::Known(at) => self.index.dir(*at).map_or(&[], KnownDir::path),
            Task::Found { path, .. } => path,
        }
    }

    /// Looks at a directory. `buffer` is for records.
    pub(super) fn look(&self, task: &Task, buffer: &mut Vec<u8>) -> Result<Looked, ScanError> {
        let path = self.path(task);
        if path.len() > PATH_BYTES_MAX {
            return Err(ScanError::TooDeep(String::from_utf8_lossy(&path[..80]).into_owned()));
        }
        let dir = open_beneath(self.root, path, OFlags::DIRECTORY).map_err(io("open", path))?;
        let stat = FileStat::from(&rustix::fs::fstat(&dir).map_err(io("look at", path))?);
        let at = match task {
            Task::Known(at) => Some(*at),
            Task::Found { .. } => self.index.find(path),
        };
        let known = at.and_then(|at| Some((at, self.index.dir(at)?, self.index.record(at, buffer)?)));
        let visit = Visit::new(self, dir.as_fd(), path, stat);
        if let Some((at, known, record)) = known
            && self.is_current
            && known.is_trusted()
            && *known.stat() == stat.to_bytes()
        {
            return visit.again(at, known, record);
        }
        let verdict = match task {
            Task::Known(_) => self.ignore.verdict(&String::from_utf8_lossy(path)),
            Task::Found { verdict, .. } => *verdict,
        };
        visit.anew(verdict, known.map(|(_, _, record)| record))
    }
}

/// A look at one directory.
struct Visit<'a> {
    lister: &'a Lister<'a>,
    dir: BorrowedFd<'a>,
    path: &'a [u8],
    verdict: Verdict,
    /// What is known of the names that come.
    known: Option<Entries<'a>>,
    listed: Listed,
    notes: Notes,
}

impl<'a> Visit<'a> {
    fn new(lister: &'a Lister<'a>, dir: BorrowedFd<'a>, path: &'a [u8], stat: FileStat) -> Self {
        let mut dir_listed = ListedDir::new(stat, lister.moment);
        dir_listed.may_be_trusted = lister.trusted_dev == Some(stat.dev)
            // As some file systems say it that keep none.
            && (stat.mtime.secs, stat.ctime.secs) != (0, 0);
        let listed = Listed { dir: dir_listed, dirs: Vec::new(), unread: Vec::new(), leads_out: false };
        Self { lister, dir, path, verdict: Verdict::default(), known: None, listed, notes: Notes::default() }
    }

    /// A directory in which nothing came or went.
    fn again(mut self, at: usize, known: KnownDir<'_>, record: Record<'a>) -> Result<Looked, ScanError> {
        let mut entries = record.entries();
        let mut same = 0;
        loop {
            let from_here = entries.clone();
            match entries.next() {
                None => break,
                Some(Ok(entry)) if self.is_unmoved(&entry) => {
                    self.note(&entry);
                    same += 1;
                }
                Some(_) => {
                    self.known = Some(from_here);
                    break;
                }
            }
        }
        let is_excluded = known.is_excluded();
        let Some(rest) = self.known.clone() else {
            let path = self.path.to_vec();
            return Ok(Looked { path, is_excluded, found: Found::Kept(at), notes: self.notes });
        };
        self.verdict = self.lister.ignore.verdict(&String::from_utf8_lossy(self.path));
        for entry in record.entries().take(same).flatten() {
            self.add(&SeenEntry::from(&entry))?;
        }
        for entry in rest {
            let Ok(entry) = entry else {
                // Not even what was the same can be believed.
                let again = Self::new(self.lister, self.dir, self.path, *self.listed.dir.stat());
                return again.anew(self.verdict, None);
            };
            self.look_at(entry.name.to_bytes(), FileType::Unknown)?;
        }
        let index = self.lister.index;
        let dirs = index.dirs_in(at).filter_map(|dir| Some(name_of(index.dir(dir)?.path()).to_vec()));
        // They are looked at already, and have no need for a verdict.
        self.listed.dirs = dirs.map(|name| (name, Verdict::default())).collect();
        Ok(self.done(is_excluded))
    }

    /// A directory that has to be listed.
    fn anew(mut self, verdict: Verdict, record: Option<Record<'a>>) -> Result<Looked, ScanError> {
        // The root's are the host's affair.
        if !self.path.is_empty() {
            self.listed.dir.xattrs = kept_xattrs(self.dir);
        }
        self.verdict = verdict;
        self.known = record.map(Record::entries);
        for (name, kind) in names_in(self.dir, self.path)? {
            self.look_at(&name, kind)?;
        }
        let is_excluded = self.lister.ignore.excludes(verdict);
        Ok(self.done(is_excluded))
    }

    fn done(mut self, is_excluded: bool) -> Looked {
        self.listed.dir.trim();
        let path = self.path.to_vec();
        Looked { path, is_excluded, found: Found::Listed(Box::new(self.listed)), notes: self.notes }
    }

    fn is_unmoved(&self, entry: &Known<'_>) -> bool {
        let stat = || rustix::fs::statat(self.dir, entry.name, AtFlags::SYMLINK_NOFOLLOW);
        !entry.is_young && stat().is_ok_and(|stat| FileStat::from(&stat).to_bytes() == *entry.stat)
    }

    /// What is to say about an entry that is as it was.
    fn note(&mut self, entry: &Known<'_>) {
        if !entry.is_linked && !entry.is_suspect {
            return;
        }
        let path = join(self.path, entry.name.to_bytes());
        if entry.is_linked {
            let stat = entry.stat();
            self.notes.links.add((stat.dev, stat.ino), entry.name.to_bytes());
        }
        if entry.is_suspect {
            self.notes.suspects.push(String::from_utf8_lossy(&path).escape_debug().to_string());
        }
    }

    fn look_at(&mut self, name: &[u8], kind: FileType) -> Result<(), ScanError> {
        let Lister { ignore, wanted, .. } = self.lister;
        let path = join(self.path, name);
        let standing = wanted.standing(&path);
        if standing == Standing::Outside {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&path);
        let verdict = ignore.below(self.verdict, &text);
        let is_ignored = ignore.excludes(verdict);
        let is_left_out =
            |kind| is_ignored && (kind != FileType::Directory || ignore.may_skip(verdict, &text));
        // Most file systems tell the type with the name, which saves looking at what is left out.
        if kind != FileType::Unknown && is_left_out(kind) {
            return Ok(());
        }
        let stat = match rustix::fs::statat(self.dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // It vanished between listing and looking: as if it had never been there.
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(io("look at", &path)(errno)),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if is_left_out(kind) {
            return Ok(());
        }
        if kind == FileType::Symlink && standing != Standing::Inside {
            self.listed.leads_out = true;
            return Ok(());
        }
        if kind != FileType::Directory && standing == Standing::Above {
            return Ok(());
        }
        let is_linked = kind == FileType::RegularFile && stat.st_nlink > 1;
        let stat = FileStat::from(&stat);
        let entry = |kind| SeenEntry { name, stat, is_linked, is_suspect: false, kind };
        match kind {
            FileType::Directory => self.listed.dirs.push((name.to_vec(), verdict)),
            FileType::RegularFile => {
                let is_suspect = self.is_secret(name, &path);
                let content = self.content(name, &stat);
                let kind = KnownKind::File(content.unwrap_or(&[0; 32]));
                let place = self.add(&SeenEntry { is_suspect, ..entry(kind) })?;
                if content.is_none() {
                    self.listed.unread.push(place);
                }
                if is_suspect {
                    self.notes.suspects.push(text.escape_debug().to_string());
                }
                if is_linked {
                    self.notes.links.add((stat.dev, stat.ino), name);
                }
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(self.dir, OsStr::from_bytes(name), Vec::new())
                    .map_err(io("read the link", &path))?;
                self.add(&entry(KnownKind::Symlink(target.as_bytes())))?;
            }
            FileType::Fifo => drop(self.add(&entry(KnownKind::Fifo))?),
            FileType::Socket => drop(self.add(&entry(KnownKind::Socket))?),
            _ => {
                let skipped = format!("`{text}` is a device and was left out of the build context");
                self.notes.skipped.push(skipped);
                // Which is to be said each time.
                self.listed.dir.may_be_trusted = false;
            }
        }
        Ok(())
    }

    fn add(&mut self, entry: &SeenEntry<'_>) -> Result<Place, ScanError> {
        let too_large = || io("record", &join(self.path, entry.name))(rustix::io::Errno::FBIG);
        self.listed.dir.push(entry).ok_or_else(too_large)
    }

    fn is_secret(&self, name: &[u8], path: &[u8]) -> bool {
        match secrets::suspicion(path) {
            None => false,
            Some(Suspicion::ByName) => true,
            // One that cannot be read is none.
            Some(Suspicion::With(needle)) => {
                open_beneath(self.dir, name, OFlags::empty()).is_ok_and(|file| secrets::holds(&file, needle))
            }
        }
    }

    /// The content that a file with this stat is known to have. Names come in order.
    fn content(&mut self, name: &[u8], stat: &FileStat) -> Option<&'a [u8; 32]> {
        let known = self.known.as_mut()?;
        loop {
            let mut after = known.clone();
            let entry = after.next()?.ok()?;
            match entry.name.to_bytes().cmp(name) {
                std::cmp::Ordering::Less => *known = after,
                std::cmp::Ordering::Greater => return None,
                std::cmp::Ordering::Equal => {
                    *known = after;
                    let KnownKind::File(content) = entry.kind else { return None };
                    let is_same = !entry.is_young && *entry.stat == stat.to_bytes();
                    return is_same.then_some(content);
                }
            }
        }
    }
}

pub(super) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(dir.len() + 1 + name.len());
    path.extend_from_slice(dir);
    if !dir.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

pub(super) fn name_of(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
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
    // What was replaced meanwhile may be listed at both places.
    names.dedup_by(|(a, _), (b, _)| a == b);
    Ok(names)
}
