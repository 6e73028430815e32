//! What is there in the end, from all that happened.

use std::io;
use std::mem::take;

use super::super::diff::{Change, DiffEntry, Mtime, Placed};
use super::super::dirs::is_below;
use super::super::slots::Slots;
use super::events::{DAMAGED, Event, Record, SortedEvents};
use crate::path::RelPath;
use crate::scratch::Scratch;
use crate::tree::Meta;

/// Goes through what was unpacked, in order of paths. In memory is a path.
pub(super) struct Listing {
    events: SortedEvents,
    ahead: Option<Record>,
    gone: Gone,
    links: Links,
}

/// An entry of the listing.
pub(super) struct Listed {
    pub(super) entry: DiffEntry,
    /// A directory that is not in the archive itself.
    pub(super) is_implied: bool,
}

impl Listing {
    pub(super) fn new(mut events: SortedEvents, scratch: &Scratch) -> io::Result<Self> {
        let links = Links::of(&mut events, scratch)?;
        let ahead = events.next()?;
        Ok(Self { events, ahead, gone: Gone::default(), links })
    }

    /// The next entry.
    pub(super) fn next(&mut self) -> io::Result<Option<Listed>> {
        while let Some(Record { path, mut entry, mut event }) = self.ahead.take() {
            let (mut here, mut replaced_by) = (Here::Nothing, None);
            let gone = self.gone.at(path.as_bytes());
            loop {
                if is_no_dir(&event) {
                    replaced_by = Some(entry);
                }
                if entry > gone {
                    here.take(event);
                }
                match self.events.next()? {
                    Some(next) if next.path == path => (entry, event) = (next.entry, next.event),
                    next => {
                        self.ahead = next;
                        break;
                    }
                }
            }
            if let Some(entry) = replaced_by {
                self.gone.push(path.as_bytes(), entry.max(gone));
            }
            if let Some(listed) = here.listed(path, &mut self.links)? {
                return Ok(Some(listed));
            }
        }
        Ok(None)
    }
}

/// True when nothing can have been below it.
fn is_no_dir(event: &Event) -> bool {
    match event {
        Event::Entry { change, .. } => !matches!(change, Change::Dir { .. }),
        Event::Link(_) => true,
        Event::Implied | Event::Opaque | Event::Linked(_) => false,
    }
}

/// What is at a path after some of its events.
#[derive(Default)]
enum Here {
    #[default]
    Nothing,
    Dir(DirNode),
    /// A name of the file of this link.
    Linked(u32),
    /// All else, a regular file with a single name included.
    Other {
        change: Change,
        mtime: Mtime,
    },
}

struct DirNode {
    meta: Meta,
    mtime: Mtime,
    opaque: bool,
    is_implied: bool,
}

impl Here {
    fn take(&mut self, event: Event) {
        *self = match event {
            Event::Entry { change: Change::Dir { meta, .. }, mtime, .. } => {
                Self::Dir(DirNode { meta, mtime, is_implied: false, ..take(self).into_dir() })
            }
            Event::Entry { change, mtime } => Self::Other { change, mtime },
            Event::Implied => Self::Dir(take(self).into_dir()),
            Event::Opaque => Self::Dir(DirNode { opaque: true, ..take(self).into_dir() }),
            Event::Linked(number) | Event::Link(number) => Self::Linked(number),
        };
    }

    /// The directory, or a new one. What that replaces hid the lower directory of this name, and so must it.
    fn into_dir(self) -> DirNode {
        match self {
            Self::Dir(dir) => dir,
            was => DirNode {
                meta: Meta { mode: 0o755, ..Meta::default() },
                mtime: Mtime::default(),
                opaque: !matches!(was, Self::Nothing),
                is_implied: true,
            },
        }
    }

    fn listed(self, path: RelPath, links: &mut Links) -> io::Result<Option<Listed>> {
        let (change, mtime, is_implied) = match self {
            Self::Nothing => return Ok(None),
            Self::Dir(DirNode { meta, mtime, opaque, is_implied }) => {
                (Change::Dir { meta, opaque }, mtime, is_implied)
            }
            Self::Linked(number) => {
                let (change, mtime) = links.name(number, &path)?;
                (change, mtime, false)
            }
            Self::Other { change, mtime } => (change, mtime, false),
        };
        Ok(Some(Listed { entry: DiffEntry { path, change, mtime }, is_implied }))
    }
}

/// What went with the directory it was in, or with one above: all from before an entry that put something else there.
#[derive(Default)]
struct Gone {
    /// The last path that was no directory at some time.
    path: Vec<u8>,
    /// Where it, and those above it of which the same is true, end, and the last such entry there or above.
    ends: Vec<(usize, u64)>,
}

impl Gone {
    /// What this entry and those before it made at `path` is gone, which comes after all asked for earlier.
    fn at(&mut self, path: &[u8]) -> u64 {
        while let Some((len, entry)) = self.ends.last() {
            if is_below(path, &self.path[..*len]) {
                return *entry;
            }
            self.ends.pop();
        }
        0
    }

    /// Notes an entry at the path asked for last.
    fn push(&mut self, path: &[u8], entry: u64) {
        self.path.clear();
        self.path.extend_from_slice(path);
        self.ends.push((path.len(), entry));
    }
}

/// Files with several names: all names of one inode are equal until the end. There may be as many as there are files:
/// nothing of them stays in memory when it is much.
struct Links {
    links: Slots<LINK_BYTES>,
    /// At the first name in order of paths, once that is known; until then at the root, which is no file.
    entries: Placed,
}

/// What is known of a link.
#[derive(Clone, Copy)]
struct Link {
    /// The first link of the same file.
    first: u32,
    /// Of that one, where the file is among the entries.
    file: Option<u64>,
}

const LINK_BYTES: usize = 12;

impl Link {
    /// Never zeros.
    fn encode(self) -> [u8; LINK_BYTES] {
        let mut record = [0; LINK_BYTES];
        record[..4].copy_from_slice(&(self.first + 1).to_le_bytes());
        record[4..].copy_from_slice(&self.file.map_or(0, |at| at + 1).to_le_bytes());
        record
    }

    fn decode(record: &[u8; LINK_BYTES]) -> Option<Self> {
        let first = u32::from_le_bytes(record[..4].try_into().expect("four bytes")).checked_sub(1)?;
        let file = u64::from_le_bytes(record[4..].try_into().expect("eight bytes"));
        Some(Self { first, file: file.checked_sub(1) })
    }
}

impl Links {
    /// Looks for the files of all links: a file may come after its other names in the order of paths, and the entry that
    /// made it may have been replaced, which leaves the others as they are.
    fn of(events: &mut SortedEvents, scratch: &Scratch) -> io::Result<Self> {
        let links = Slots::new(scratch, events.links() as usize)?;
        let mut links = Self { links, entries: Placed::new(scratch) };
        if events.links() == 0 {
            return Ok(links);
        }
        let (mut path, mut here) = (RelPath::root(), Here::Nothing);
        while let Some(record) = events.next()? {
            if record.path != path {
                (path, here) = (record.path, Here::Nothing);
            }
            if let Event::Linked(number) = record.event {
                let link = match take(&mut here) {
                    Here::Linked(earlier) => Link { first: earlier, file: None },
                    Here::Other { change, mtime } => {
                        let file = DiffEntry { path: RelPath::root(), change, mtime };
                        Link { first: number, file: Some(links.entries.put(&file)?) }
                    }
                    Here::Nothing | Here::Dir(_) => return Err(DAMAGED.into()),
                };
                links.set(number, link)?;
            }
            here.take(record.event);
        }
        // The earlier ones know theirs.
        for number in 0..events.links() {
            let link = links.get(number)?;
            let first = links.get(link.first)?.first;
            if first != link.first {
                links.set(number, Link { first, ..link })?;
            }
        }
        events.rewind()?;
        Ok(links)
    }

    /// What is at `path`, a name of the file of this link, which comes after all asked for earlier. The first is the file,
    /// the others are links to it.
    fn name(&mut self, number: u32, path: &RelPath) -> io::Result<(Change, Mtime)> {
        let first = self.get(number)?.first;
        let file = self.entries.get(self.get(first)?.file.ok_or(DAMAGED)?)?;
        if !file.path.is_root() {
            return Ok((Change::Hardlink { target: file.path }, file.mtime));
        }
        // Its name and time are all that the others want: with its xattrs, each would pay for them.
        let known = DiffEntry { path: path.clone(), change: Change::Whiteout, mtime: file.mtime };
        let file_now = Some(self.entries.put(&known)?);
        self.set(first, Link { first, file: file_now })?;
        Ok((file.change, file.mtime))
    }

    fn get(&self, number: u32) -> io::Result<Link> {
        Ok(Link::decode(&self.links.get(number as usize)?).ok_or(DAMAGED)?)
    }

    fn set(&mut self, number: u32, link: Link) -> io::Result<()> {
        self.links.set(number as usize, link.encode())
    }
}
