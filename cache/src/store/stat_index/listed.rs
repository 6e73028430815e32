//! A directory that is being looked at. Its record is written as what is in it comes, and holds it from then on.

use std::collections::BTreeMap;

use super::format::{Known, KnownKind, Record, rewrite_file};
use super::stat::{FileStat, ScanMoment};
use crate::tree::{ContentDigest, Entry};

/// Entries of a directory, as a node has them.
pub(super) type NodeEntries = BTreeMap<Vec<u8>, Entry>;

/// A directory that was listed, and what is in it but for other directories.
#[derive(Debug)]
pub struct ListedDir {
    /// Kept xattrs; the root has none that count.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// True when its times tell of every change of what is in it, and nothing in it must be told of each time.
    pub may_be_trusted: bool,
    stat: FileStat,
    scanned: ScanMoment,
    record: Vec<u8>,
    /// Files with xattrs, which leave the record when it is whole.
    beside: NodeEntries,
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

/// Where something is in a [`ListedDir`].
#[derive(Debug, Clone, Copy)]
pub struct Place(u32);

impl ListedDir {
    /// A directory with nothing in it so far. `stat` is from before it was listed, in a scan that began at `scanned`.
    pub fn new(stat: FileStat, scanned: ScanMoment) -> Self {
        Self {
            xattrs: BTreeMap::new(),
            may_be_trusted: false,
            stat,
            scanned,
            record: Vec::new(),
            beside: BTreeMap::new(),
        }
    }

    /// Its stat from before it was listed.
    pub fn stat(&self) -> &FileStat {
        &self.stat
    }

    /// Adds what the rules leave of it, by name. `None` when no record holds it: one has 4 GiB at most.
    pub fn push(&mut self, entry: &SeenEntry<'_>) -> Option<Place> {
        let at = u32::try_from(self.record.len()).ok()?;
        entry.write(!entry.stat.is_settled(self.scanned), &mut self.record)?;
        Some(Place(at))
    }

    /// Nothing is pushed any more: gives back what memory is left over.
    pub fn trim(&mut self) {
        self.record.shrink_to_fit();
    }

    /// The name of what is at a place that [`Self::push`] gave.
    pub fn name(&self, at: Place) -> &[u8] {
        self.known(at).name.to_bytes()
    }

    /// Its length in bytes.
    pub fn size(&self, at: Place) -> u64 {
        self.known(at).stat().size
    }

    /// Fills in what reading a file gave: its stat when it was opened, its content, and its kept xattrs. Who has some is
    /// read each time, and is in no index.
    pub fn fill(
        &mut self,
        at: Place,
        stat: &FileStat,
        content: &ContentDigest,
        xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    ) {
        let entry = self.record.get_mut(at.0 as usize..);
        let is_young = !stat.is_settled(self.scanned);
        entry
            .and_then(|entry| rewrite_file(entry, &stat.to_bytes(), is_young, content))
            .expect("a file was pushed there");
        if !xattrs.is_empty() {
            let known = self.known(at);
            let (name, mut entry) = (known.name.to_bytes().to_vec(), known.entry());
            entry.meta.xattrs = xattrs;
            self.beside.insert(name, entry);
        }
    }

    fn known(&self, at: Place) -> Known<'_> {
        Record(&self.record).at(at.0).expect("something was pushed there")
    }

    /// True when its record will be all that is in it for as long as its stat does not move.
    pub(super) fn is_trusted(&self) -> bool {
        self.may_be_trusted
            && self.xattrs.is_empty()
            && self.beside.is_empty()
            && self.stat.is_settled(self.scanned)
    }

    /// The record, and what no record has.
    pub(super) fn into_record(self) -> (Vec<u8>, NodeEntries) {
        let Self { mut record, beside, .. } = self;
        if !beside.is_empty() {
            record = without(&record, &beside);
        }
        record.shrink_to_fit();
        (record, beside)
    }
}

fn without(record: &[u8], beside: &NodeEntries) -> Vec<u8> {
    let mut left = Vec::with_capacity(record.len());
    let mut entries = Record(record).entries();
    loop {
        let from_here = entries.bytes();
        let Some(Ok(known)) = entries.next() else { return left };
        if !beside.contains_key(known.name.to_bytes()) {
            left.extend_from_slice(&from_here[..from_here.len() - entries.bytes().len()]);
        }
    }
}
