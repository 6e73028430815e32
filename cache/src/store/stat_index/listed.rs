//! A directory that was looked at. Its record is written as what is in it comes, and holds it from then on.
//!
//! There may be as many directories as files, so one takes little beside its record: that is in one piece with the path.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU32;

use super::format::{Entries, Known, KnownKind, Record, mark_unread, rewrite_file};
use super::index::KnownDir;
use super::stat::{FileStat, STAT_BYTES, ScanMoment};
use super::xattrs::{SeenXattrs, XattrsPlace};
use crate::tree::{ContentDigest, EMPTY_NODE, NodeDigest};

/// A directory while it is listed, and what is in it but for other directories.
#[derive(Debug)]
pub struct ListedDir {
    /// True when its times tell of every change of what is in it, and nothing in it must be told of each time.
    pub may_be_trusted: bool,
    stat: FileStat,
    scanned: ScanMoment,
    /// Its path, then the record.
    bytes: Vec<u8>,
    path_bytes: usize,
    is_noted: bool,
    xattrs: Option<XattrsPlace>,
}

/// A directory that a scan went through.
#[derive(Debug)]
pub struct SeenDir {
    /// Its path below the context's root, then the record if it was listed.
    bytes: Box<[u8]>,
    path_bytes: u16,
    /// The number behind its place in the last index, where it is as it was there.
    kept: Option<NonZeroU32>,
    /// Bytes of its files, where it was kept.
    kept_bytes: u64,
    stat: [u8; STAT_BYTES],
    is_excluded: bool,
    may_be_trusted: bool,
    is_noted: bool,
    /// Its node, once that is settled.
    pub(super) node: NodeDigest,
    /// Where it was kept, true when that is not the one which the last index has.
    pub(super) has_new_node: bool,
    /// `None` for most.
    xattrs: Option<Box<Xattrs>>,
}

/// Where the xattrs are of a directory and of what is in it.
#[derive(Debug, Default)]
struct Xattrs {
    own: Option<XattrsPlace>,
    /// Of files, by where their entries begin in the record.
    files: Vec<(u32, XattrsPlace)>,
}

/// Something in a listed directory.
#[derive(Debug, Clone, Copy)]
pub struct SeenEntry<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// Its stat.
    pub stat: FileStat,
    /// True for a file with other names.
    pub is_linked: bool,
    /// True for a file that looks like a secret.
    pub is_suspect: bool,
    /// What it is.
    pub kind: KnownKind<'a>,
}

impl<'a> From<&Known<'a>> for SeenEntry<'a> {
    fn from(known: &Known<'a>) -> Self {
        Self {
            name: known.name.to_bytes(),
            stat: known.stat(),
            is_linked: known.is_linked,
            is_suspect: known.is_suspect,
            kind: known.kind,
        }
    }
}

/// What reading a file gave.
#[derive(Debug)]
pub struct ReadFile {
    /// Its stat when it was opened.
    pub stat: FileStat,
    /// Its content.
    pub content: ContentDigest,
    /// Its kept xattrs. A file that has some is read each time, and is in no index.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Where something is in the record of a directory.
#[derive(Debug, Clone, Copy)]
pub struct Place(u32);

impl ListedDir {
    /// The directory at `path`, with nothing in it so far. `stat` is from before it was listed, in a scan that began at
    /// `scanned`.
    pub fn new(path: &[u8], stat: FileStat, scanned: ScanMoment) -> Self {
        let (bytes, path_bytes) = (path.to_vec(), path.len());
        Self { may_be_trusted: false, stat, scanned, bytes, path_bytes, is_noted: false, xattrs: None }
    }

    /// Its stat from before it was listed.
    pub fn stat(&self) -> &FileStat {
        &self.stat
    }

    /// Adds what the rules leave of it, by name. `None` when no record holds it: one has 4 GiB at most.
    pub fn push(&mut self, entry: &SeenEntry<'_>) -> Option<Place> {
        let at = u32::try_from(self.bytes.len() - self.path_bytes).ok()?;
        entry.write(!entry.stat.is_settled(self.scanned), &mut self.bytes)?;
        self.is_noted |= entry.is_linked || entry.is_suspect;
        Some(Place(at))
    }

    /// Says of a file that its content is still to be read.
    pub fn mark_unread(&mut self, at: Place) {
        mark_unread(&mut self.bytes[self.path_bytes + at.0 as usize..]);
    }

    /// Says which xattrs the directory itself has; the root has none that count.
    pub fn set_xattrs(&mut self, xattrs: &BTreeMap<Vec<u8>, Vec<u8>>, seen: &SeenXattrs) -> io::Result<()> {
        self.xattrs = if xattrs.is_empty() { None } else { Some(seen.add(xattrs)?) };
        Ok(())
    }

    /// Once all is pushed. `is_excluded` when the directory itself is left out, and there for what is brought back in it.
    pub fn done(self, is_excluded: bool) -> SeenDir {
        let xattrs = self.xattrs.map(|own| Box::new(Xattrs { own: Some(own), files: Vec::new() }));
        SeenDir {
            may_be_trusted: self.may_be_trusted && self.stat.is_settled(self.scanned),
            is_noted: self.is_noted,
            xattrs,
            ..SeenDir::new(self.bytes, self.path_bytes, self.stat.to_bytes(), is_excluded)
        }
    }
}

impl SeenDir {
    fn new(bytes: Vec<u8>, path_bytes: usize, stat: [u8; STAT_BYTES], is_excluded: bool) -> Self {
        Self {
            bytes: bytes.into_boxed_slice(),
            // No path that is looked at is near so long.
            path_bytes: path_bytes as u16,
            kept: None,
            kept_bytes: 0,
            stat,
            is_excluded,
            may_be_trusted: false,
            is_noted: false,
            node: *EMPTY_NODE,
            has_new_node: false,
            xattrs: None,
        }
    }

    /// One in which all is as the last index has it: its own stat was found unmoved, and those of all files in it.
    /// `is_noted` when there is something among these that must be told of each time.
    pub fn kept(known: &KnownDir, is_noted: bool) -> Self {
        let row = known.row();
        Self {
            // An index numbers its directories with as many bits.
            kept: NonZeroU32::new(known.place() as u32 + 1),
            kept_bytes: row.bytes,
            may_be_trusted: row.is_trusted,
            is_noted,
            node: row.node,
            ..Self::new(row.path.to_vec(), row.path.len(), *row.stat, row.is_excluded)
        }
    }

    /// Below the context's root.
    pub fn path(&self) -> &[u8] {
        &self.bytes[..self.path_bytes as usize]
    }

    /// Its place in the last index, where it is as it was there.
    pub fn place_kept(&self) -> Option<usize> {
        self.kept.map(|behind| behind.get() as usize - 1)
    }

    /// Bytes of the files in it.
    pub(super) fn files_bytes(&self) -> u64 {
        match self.kept {
            Some(_) => self.kept_bytes,
            None => self.files().1,
        }
    }

    /// Files in it and their bytes, if it was listed.
    pub(super) fn files(&self) -> (u32, u64) {
        let files = self.entries().flatten().filter(|known| matches!(known.kind, KnownKind::File(_)));
        files.fold((0, 0), |(count, bytes), file| (count + 1, file.stat().size.saturating_add(bytes)))
    }

    /// True when something in it must be told of each time: a file with other names, or one that looks like a secret.
    pub fn is_noted(&self) -> bool {
        self.is_noted
    }

    /// True when the directory itself is left out, and there for what is brought back in it.
    pub(super) fn is_excluded(&self) -> bool {
        self.is_excluded
    }

    /// True when its record will be all that is in it for as long as its stat does not move.
    pub(super) fn is_trusted(&self) -> bool {
        self.may_be_trusted && self.xattrs.is_none()
    }

    pub(super) fn stat(&self) -> &[u8; STAT_BYTES] {
        &self.stat
    }

    /// What is in it, if it was listed.
    pub(super) fn record(&self) -> Record<'_> {
        Record(&self.bytes[self.path_bytes as usize..])
    }

    /// What is in it but for other directories, if it was listed.
    pub fn entries(&self) -> Entries<'_> {
        self.record().entries()
    }

    /// Files whose contents are still to be read.
    pub fn unread(&self) -> impl Iterator<Item = Place> {
        let (mut entries, bytes) = (self.entries(), self.record().0.len());
        std::iter::from_fn(move || {
            loop {
                let at = bytes - entries.bytes().len();
                if entries.next()?.ok()?.is_unread {
                    return Some(Place(at as u32));
                }
            }
        })
    }

    /// The name of what is at a place.
    pub fn name(&self, at: Place) -> &[u8] {
        self.known(at).name.to_bytes()
    }

    /// Its length in bytes.
    pub fn size(&self, at: Place) -> u64 {
        self.known(at).stat().size
    }

    /// Fills in what reading a file gave, in the scan that began at `scanned`.
    pub fn fill(
        &mut self,
        at: Place,
        read: &ReadFile,
        scanned: ScanMoment,
        seen: &SeenXattrs,
    ) -> io::Result<()> {
        let has_xattrs = !read.xattrs.is_empty();
        if has_xattrs {
            let place = seen.add(&read.xattrs)?;
            self.xattrs.get_or_insert_default().files.push((at.0, place));
        }
        let entry = self.bytes.get_mut(self.path_bytes as usize + at.0 as usize..);
        let flags = (!read.stat.is_settled(scanned), has_xattrs);
        entry
            .and_then(|entry| rewrite_file(entry, &read.stat.to_bytes(), flags, &read.content))
            .expect("a file was pushed there");
        Ok(())
    }

    /// Once all files are read.
    pub(super) fn sort_xattrs(&mut self) {
        if let Some(xattrs) = &mut self.xattrs {
            xattrs.files.sort_unstable_by_key(|(start, _)| *start);
            xattrs.files.shrink_to_fit();
        }
    }

    pub(super) fn own_xattrs(&self) -> Option<XattrsPlace> {
        self.xattrs.as_ref()?.own
    }

    /// Those of the file whose entry begins there.
    pub(super) fn file_xattrs(&self, start: u32) -> Option<XattrsPlace> {
        let files = &self.xattrs.as_ref()?.files;
        let at = files.binary_search_by_key(&start, |(start, _)| *start).ok()?;
        Some(files[at].1)
    }

    /// Shows names and bytes of the entries that an index has.
    pub(super) fn each_indexed(
        &self,
        mut each: impl FnMut(&[u8], &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut entries = self.entries();
        loop {
            let from_here = entries.bytes();
            let Some(Ok(known)) = entries.next() else { return Ok(()) };
            if !known.has_xattrs {
                each(known.name.to_bytes(), &from_here[..from_here.len() - entries.bytes().len()])?;
            }
        }
    }

    fn known(&self, at: Place) -> Known<'_> {
        self.record().at(at.0).expect("something was pushed there")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_takes_little_beside_its_path_and_record() {
        assert!(size_of::<SeenDir>() <= 136, "{}", size_of::<SeenDir>());
    }
}
