//! What the entries of an archive did, each at its path: too much for memory.

use std::cmp::Ordering;
use std::io;

use super::super::codec::{Reader, put_rest};
use super::super::diff::{Change, Mtime};
use crate::path::{RelPath, compare};
use crate::scratch::Scratch;
use crate::sorter::{Sorted, Sorter};

/// What happened at a path.
#[derive(Debug)]
pub(super) enum Event {
    /// This is there from now on. A directory keeps what is inside when there was one already, all else replaces.
    Entry { change: Change, mtime: Mtime },
    /// A directory was made for something below, in place of what was there.
    Implied,
    /// The directory hides what lower layers have in it.
    Opaque,
    /// The regular file there got another name in the link of this number.
    Linked(u32),
    /// That other name.
    Link(u32),
}

/// An event, and by which entry of the archive, counted from 1.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) path: RelPath,
    pub(super) entry: u64,
    pub(super) event: Event,
}

/// How paths come.
type Order = fn(&[u8], &[u8]) -> Ordering;

/// Takes events as they come.
///
/// ```text
/// record = path-length path entry tag  (change of the layer listing's encoding, or number of a link)?
/// ```
pub(super) struct Events {
    sorter: Sorter<Order>,
    links: u32,
    rest: Vec<u8>,
}

/// Events by their paths, those of one as they came.
pub(super) struct SortedEvents {
    sorted: Sorted<Order>,
    links: u32,
}

const ENTRY: u8 = 0;
const IMPLIED: u8 = 1;
const OPAQUE: u8 = 2;
const LINKED: u8 = 3;
const LINK: u8 = 4;

impl Events {
    /// For what comes in [`RelPath`]'s order.
    pub(super) fn new(scratch: &Scratch) -> Self {
        Self::ordered(scratch, |a, b| compare(path(a), path(b)))
    }

    /// For what comes in the opposite order: a directory after all below it.
    pub(super) fn reversed(scratch: &Scratch) -> Self {
        Self::ordered(scratch, |a, b| compare(path(b), path(a)))
    }

    fn ordered(scratch: &Scratch, order: Order) -> Self {
        Self { sorter: Sorter::new(scratch.clone(), order), links: 0, rest: Vec::new() }
    }

    pub(super) fn push(&mut self, path: &RelPath, entry: u64, event: &Event) -> io::Result<()> {
        self.rest.clear();
        match event {
            Event::Entry { change, mtime } => {
                self.rest.push(ENTRY);
                put_rest(&mut self.rest, change, *mtime);
            }
            Event::Implied => self.rest.push(IMPLIED),
            Event::Opaque => self.rest.push(OPAQUE),
            Event::Linked(number) => self.put_number(LINKED, *number),
            Event::Link(number) => self.put_number(LINK, *number),
        }
        let path = path.as_bytes();
        let Ok(len) = u32::try_from(path.len()) else { return Err(io::ErrorKind::InvalidFilename.into()) };
        self.sorter.push(&[&len.to_le_bytes(), path, &entry.to_le_bytes(), &self.rest])
    }

    /// Notes that the file at `target` has another name, `path`.
    pub(super) fn push_link(&mut self, path: &RelPath, target: &RelPath, entry: u64) -> io::Result<()> {
        let number = self.links;
        self.links = number.checked_add(1).ok_or(io::ErrorKind::FileTooLarge)?;
        self.push(target, entry, &Event::Linked(number))?;
        self.push(path, entry, &Event::Link(number))
    }

    fn put_number(&mut self, tag: u8, number: u32) {
        self.rest.push(tag);
        self.rest.extend_from_slice(&number.to_le_bytes());
    }

    pub(super) fn sorted(self) -> io::Result<SortedEvents> {
        Ok(SortedEvents { sorted: self.sorter.sorted()?, links: self.links })
    }
}

impl SortedEvents {
    /// Links have the numbers below this one.
    pub(super) fn links(&self) -> u32 {
        self.links
    }

    /// Begins with the first event again.
    pub(super) fn rewind(&mut self) -> io::Result<()> {
        self.sorted.rewind()
    }

    /// The next event.
    pub(super) fn next(&mut self) -> io::Result<Option<Record>> {
        let Some(record) = self.sorted.next()? else { return Ok(None) };
        Ok(Some(decode(record).ok_or(DAMAGED)?))
    }
}

/// What was read is not what was written.
pub(super) const DAMAGED: io::ErrorKind = io::ErrorKind::InvalidData;

fn split(record: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = record.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u32::from_le_bytes(*len)).ok()?)
}

fn path(record: &[u8]) -> &[u8] {
    split(record).map_or(&[], |(path, _)| path)
}

fn decode(record: &[u8]) -> Option<Record> {
    let (path, rest) = split(record)?;
    let (entry, rest) = rest.split_first_chunk()?;
    let (tag, rest) = rest.split_first()?;
    let number = || Some(u32::from_le_bytes(rest.try_into().ok()?));
    let event = match *tag {
        ENTRY => {
            let (change, mtime) = Reader::new(rest, 0).rest().ok()?;
            Event::Entry { change, mtime }
        }
        IMPLIED => Event::Implied,
        OPAQUE => Event::Opaque,
        LINKED => Event::Linked(number()?),
        LINK => Event::Link(number()?),
        _ => return None,
    };
    Some(Record { path: RelPath::new(path).ok()?, entry: u64::from_le_bytes(*entry), event })
}
