//! Looks at what is in one directory.
//!
//! A directory whose stat the last index has is not listed: its record says what is in it, and each of those is
//! compared with its stat there. From the first that differs on, and everywhere else, names are matched one by one
//! against the rules, and the record only tells contents.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rbuild_cache::layer::kept_xattrs;
use rbuild_cache::names::{Aside, Listed};
use rbuild_cache::scratch::Scratch;
use rbuild_cache::store::{
    FileStat, IndexDamaged, Known, KnownDir, KnownKind, ListedDir, Place, RecordReader, Records, ScanMoment,
    SeenDir, SeenEntry, SeenXattrs, StatIndex,
};
use rbuild_cache::tree::PATH_BYTES_MAX;
use rbuild_frontend::dockerignore::{Ignore, Verdict};
use rustix::fs::{AtFlags, FileType, OFlags, RawDir};
use rustix::io::Errno;

use super::{ScanError, io, open_beneath};
use crate::context::counted::Counted;
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
    /// For those of what is seen.
    pub(super) xattrs: &'a SeenXattrs,
    /// For what is too much for memory.
    pub(super) scratch: &'a Scratch,
}

/// A directory to look at.
#[derive(Debug)]
pub(super) enum Task {
    /// One that the last scan went through by the same rules.
    Known(usize),
    /// One that was found.
    Found { path: Vec<u8>, verdict: Verdict },
}

/// What came of a task.
pub(super) enum Outcome {
    Looked(Box<Looked>),
    /// One of the last scan cannot be opened: it is gone, as a rule, with all before the place `after`.
    Unopened {
        known: KnownDir,
        after: usize,
        errno: Errno,
    },
}

/// A directory that was looked at.
pub(super) struct Looked {
    /// What is in it but for directories.
    pub(super) dir: SeenDir,
    /// Directories in it that are found for the first time.
    pub(super) dirs: FoundDirs,
    /// Those that the last scan went through by the same rules, by their places in the index, of a directory that is not as
    /// it was.
    pub(super) still: Vec<usize>,
    /// Devices in it.
    pub(super) skipped: Counted,
    /// A symlink was met that a source names or goes through.
    pub(super) leads_out: bool,
}

/// Directories found in another. In one piece: there may be as many as files.
#[derive(Default)]
pub(super) struct FoundDirs {
    names: Vec<u8>,
    /// Where each name ends.
    ends: Vec<(usize, Verdict)>,
}

impl FoundDirs {
    pub(super) fn push(&mut self, name: &[u8], verdict: Verdict) {
        self.names.extend_from_slice(name);
        self.ends.push((self.names.len(), verdict));
    }

    /// Takes the last one out: its name.
    pub(super) fn pop(&mut self) -> Option<(Vec<u8>, Verdict)> {
        let (_, verdict) = self.ends.pop()?;
        let start = self.ends.last().map_or(0, |(end, _)| *end);
        Some((self.names.split_off(start), verdict))
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }
}

impl Lister<'_> {
    /// True for a directory that the last scan went through by the same rules.
    pub(super) fn known(&self, path: &[u8]) -> Result<Option<KnownDir>, IndexDamaged> {
        if self.is_current { self.index.find(path) } else { Ok(None) }
    }

    /// Looks at a directory. `records` are those of the index.
    pub(super) fn look(&self, task: &Task, records: &mut Records<'_>) -> Result<Outcome, ScanError> {
        let known = match task {
            Task::Known(at) => Some(self.index.dir(*at)?),
            Task::Found { path, .. } => self.index.find(path)?,
        };
        let path = match (task, &known) {
            (Task::Found { path, .. }, _) => path,
            (Task::Known(_), known) => known.as_ref().map_or(&[][..], KnownDir::path),
        };
        if path.len() > PATH_BYTES_MAX {
            return Err(ScanError::TooDeep(String::from_utf8_lossy(&path[..80]).into_owned()));
        }
        let dir = match (open_beneath(self.root, path, OFlags::DIRECTORY), task, &known) {
            (Ok(dir), ..) => dir,
            (Err(errno), Task::Known(_), Some(known)) => {
                let (known, after) = (known.clone(), self.index.after(known)?);
                return Ok(Outcome::Unopened { known, after, errno });
            }
            (Err(errno), ..) => return Err(io("open", path)(errno)),
        };
        let stat = FileStat::from(&rustix::fs::fstat(&dir).map_err(io("look at", path))?);
        // Of a damaged one nothing is known.
        let record = known.as_ref().and_then(|known| Some((known, records.of(known).ok()?)));
        let visit = Visit::new(self, dir.as_fd(), path, stat);
        let looked = match record {
            Some((known, record))
                if self.is_current && known.is_trusted() && *known.stat() == stat.to_bytes() =>
            {
                visit.again(known, record)
            }
            record => {
                let verdict = match task {
                    Task::Known(_) => self.ignore.verdict(&String::from_utf8_lossy(path)),
                    Task::Found { verdict, .. } => *verdict,
                };
                visit.anew(verdict, record.map(|(_, record)| record))
            }
        };
        looked.map(|looked| Outcome::Looked(Box::new(looked)))
    }
}

/// A look at one directory.
struct Visit<'a> {
    lister: &'a Lister<'a>,
    dir: BorrowedFd<'a>,
    path: &'a [u8],
    verdict: Verdict,
    /// What is known of the names that come.
    known: Option<RecordReader<'a>>,
    listed: ListedDir,
    dirs: FoundDirs,
    still: Vec<usize>,
    skipped: Counted,
    leads_out: bool,
}

impl<'a> Visit<'a> {
    fn new(lister: &'a Lister<'a>, dir: BorrowedFd<'a>, path: &'a [u8], stat: FileStat) -> Self {
        let mut listed = ListedDir::new(path, stat, lister.moment);
        listed.may_be_trusted = lister.trusted_dev == Some(stat.dev)
            // As some file systems say it that keep none.
            && (stat.mtime.secs, stat.ctime.secs) != (0, 0);
        Self {
            lister,
            dir,
            path,
            verdict: Verdict::default(),
            known: None,
            listed,
            dirs: FoundDirs::default(),
            still: Vec::new(),
            skipped: Counted::default(),
            leads_out: false,
        }
    }

    /// A directory in which nothing came or went.
    fn again(mut self, known: &KnownDir, mut record: RecordReader<'a>) -> Result<Looked, ScanError> {
        let (mut same, mut is_noted) = (0, false);
        loop {
            match record.peek() {
                Ok(Some(entry)) if self.is_unmoved(&entry) => {
                    is_noted |= entry.is_linked || entry.is_suspect;
                    same += 1;
                }
                Ok(Some(_)) => break,
                Ok(None) => {
                    let dir = SeenDir::kept(known, is_noted);
                    let (dirs, still) = (FoundDirs::default(), Vec::new());
                    return Ok(Looked { dir, dirs, still, skipped: Counted::default(), leads_out: false });
                }
                Err(_) => return self.not_again(),
            }
            record.skip();
        }
        self.verdict = self.lister.ignore.verdict(&String::from_utf8_lossy(self.path));
        record.rewind();
        for _ in 0..same {
            let Ok(Some(entry)) = record.peek() else { return self.not_again() };
            self.add(&SeenEntry::from(&entry))?;
            record.skip();
        }
        let mut name = Vec::new();
        self.known = Some(record);
        while let Some(record) = &mut self.known {
            name.clear();
            match record.peek() {
                Ok(Some(entry)) => name.extend_from_slice(entry.name.to_bytes()),
                Ok(None) => break,
                Err(_) => return self.not_again(),
            }
            self.look_at(&name, FileType::Unknown)?;
            if let Some(record) = &mut self.known
                && record.peek().is_ok_and(|next| next.is_some_and(|next| next.name.to_bytes() == name))
            {
                record.skip();
            }
        }
        // They are looked at already.
        self.dirs = FoundDirs::default();
        self.still = self.lister.index.dirs_in(known).collect::<Result<_, _>>()?;
        Ok(self.done(known.is_excluded()))
    }

    /// The same when the record is damaged: not even what was the same can be believed.
    fn not_again(self) -> Result<Looked, ScanError> {
        let verdict = self.lister.ignore.verdict(&String::from_utf8_lossy(self.path));
        Self::new(self.lister, self.dir, self.path, *self.listed.stat()).anew(verdict, None)
    }

    /// A directory that has to be listed.
    fn anew(mut self, verdict: Verdict, record: Option<RecordReader<'a>>) -> Result<Looked, ScanError> {
        // The root's are the host's affair.
        if !self.path.is_empty() {
            kept_xattrs(self.dir)
                .and_then(|xattrs| self.listed.set_xattrs(&xattrs, self.lister.xattrs))
                .map_err(io("keep the xattrs of", self.path))?;
        }
        self.verdict = verdict;
        self.known = record;
        let mut names = Listed::new(self.lister.scratch);
        each_name(self.dir, self.path, |name, kind| {
            names.add(name, kind).map_err(io("hold the names in", self.path))
        })?;
        let mut names = names.sorted().map_err(io("hold the names in", self.path))?;
        let (aside, mut last) = (Aside::new(self.lister.scratch.clone()), Vec::new());
        while let Some((name, kind)) = names.next(&aside).map_err(io("go through", self.path))? {
            // What was replaced meanwhile may be listed at both places.
            if name != last {
                last.clear();
                last.extend_from_slice(name);
                self.look_at(&last, kind)?;
            }
        }
        let is_excluded = self.lister.ignore.excludes(verdict);
        Ok(self.done(is_excluded))
    }

    fn done(self, is_excluded: bool) -> Looked {
        let Self { listed, dirs, still, skipped, leads_out, .. } = self;
        Looked { dir: listed.done(is_excluded), dirs, still, skipped, leads_out }
    }

    fn is_unmoved(&self, entry: &Known<'_>) -> bool {
        let stat = || rustix::fs::statat(self.dir, entry.name, AtFlags::SYMLINK_NOFOLLOW);
        !entry.is_young && stat().is_ok_and(|stat| FileStat::from(&stat).to_bytes() == *entry.stat)
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
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(io("look at", &path)(errno)),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if is_left_out(kind) {
            return Ok(());
        }
        if kind == FileType::Symlink && standing != Standing::Inside {
            self.leads_out = true;
            return Ok(());
        }
        if kind != FileType::Directory && standing == Standing::Above {
            return Ok(());
        }
        let is_linked = kind == FileType::RegularFile && stat.st_nlink > 1;
        let stat = FileStat::from(&stat);
        let entry = |kind| SeenEntry { name, stat, is_linked, is_suspect: false, kind };
        match kind {
            FileType::Directory => match self.lister.known(&path)? {
                Some(known) => self.still.push(known.place()),
                None => self.dirs.push(name, verdict),
            },
            FileType::RegularFile => {
                let is_suspect = self.is_secret(name, &path);
                let content = self.content(name, &stat);
                let kind = KnownKind::File(content.as_ref().unwrap_or(&[0; 32]));
                let place = self.add(&SeenEntry { is_suspect, ..entry(kind) })?;
                if content.is_none() {
                    self.listed.mark_unread(place);
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
                self.skipped.add(|| format!("`{text}` is a device and was left out of the build context"));
                // Which is to be said each time.
                self.listed.may_be_trusted = false;
            }
        }
        Ok(())
    }

    fn add(&mut self, entry: &SeenEntry<'_>) -> Result<Place, ScanError> {
        let too_large = || io("record", &join(self.path, entry.name))(Errno::FBIG);
        self.listed.push(entry).ok_or_else(too_large)
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
    fn content(&mut self, name: &[u8], stat: &FileStat) -> Option<[u8; 32]> {
        let known = self.known.as_mut()?;
        loop {
            let entry = known.peek().ok()??;
            match entry.name.to_bytes().cmp(name) {
                std::cmp::Ordering::Less => known.skip(),
                std::cmp::Ordering::Greater => return None,
                std::cmp::Ordering::Equal => {
                    let KnownKind::File(content) = entry.kind else { return None };
                    let is_same = !entry.is_young && *entry.stat == stat.to_bytes();
                    return is_same.then_some(*content);
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

/// The names in a directory, sorted, with the types that the file system tells.
pub(in crate::context) fn names_in(
    dir: BorrowedFd<'_>,
    path: &[u8],
) -> Result<Vec<(Vec<u8>, FileType)>, ScanError> {
    let mut names = Vec::new();
    each_name(dir, path, |name, kind| {
        names.push((name.to_vec(), kind));
        Ok(())
    })?;
    names.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    // What was replaced meanwhile may be listed at both places.
    names.dedup_by(|(a, _), (b, _)| a == b);
    Ok(names)
}

/// Shows the names in a directory as they come, with the types that the file system tells.
fn each_name(
    dir: BorrowedFd<'_>,
    path: &[u8],
    mut each: impl FnMut(&[u8], FileType) -> Result<(), ScanError>,
) -> Result<(), ScanError> {
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut reader = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = reader.next() {
        let entry = entry.map_err(io("list", path))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            each(name, entry.file_type())?;
        }
    }
    Ok(())
}
