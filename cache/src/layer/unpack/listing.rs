//! What is there in the end, from all that happened.

use std::collections::HashMap;
use std::io;
use std::mem::take;

use super::super::diff::{Change, DiffEntry, Mtime, Placed};
use super::super::dirs::is_below;
use super::events::{DAMAGED, Event, Record, SortedEvents};
use crate::path::RelPath;
use crate::scratch::Scratch;
use crate::tree::Meta;

/// Goes through what was unpacked, in order of paths. In memory are a path, and where the files with several names are.
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
    /// A device that is not in the directory.
    pub(super) is_absent: bool,
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
        is_absent: bool,
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
            Event::Entry { change, mtime, is_absent } => Self::Other { change, mtime, is_absent },
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
        let (change, mtime, is_implied, is_absent) = match self {
            Self::Nothing => return Ok(None),
            Self::Dir(DirNode { meta, mtime, opaque, is_implied }) => {
                (Change::Dir { meta, opaque }, mtime, is_implied, false)
            }
            Self::Linked(number) => {
                let (change, mtime) = links.name(number, &path)?;
                (change, mtime, false, false)
            }
            Self::Other { change, mtime, is_absent } => (change, mtime, false, is_absent),
        };
        Ok(Some(Listed { entry: DiffEntry { path, change, mtime }, is_implied, is_absent }))
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

/// Files with several names: all names of one inode are equal until the end. There may be as many as there are files: in
/// memory is where.
struct Links {
    /// By the number of a link, that of the first link of the same file.
    firsts: Vec<u32>,
    /// By the latter.
    files: HashMap<u32, u64>,
    /// At the first name in order of paths, once that is known; until then at the root, which is no file.
    entries: Placed,
}

impl Links {
    /// Looks for the files of all links: a file may come after its other names in the order of paths, and the entry that
    /// made it may have been replaced, which leaves the others as they are.
    fn of(events: &mut SortedEvents, scratch: &Scratch) -> io::Result<Self> {
        let firsts = (0..events.links()).collect();
        let mut links = Self { firsts, files: HashMap::new(), entries: Placed::new(scratch) };
        if links.firsts.is_empty() {
            return Ok(links);
        }
        let (mut path, mut here) = (RelPath::root(), Here::Nothing);
        while let Some(record) = events.next()? {
            if record.path != path {
                (path, here) = (record.path, Here::Nothing);
            }
            if let Event::Linked(number) = record.event {
                match take(&mut here) {
                    Here::Linked(earlier) => {
                        *links.firsts.get_mut(number as usize).ok_or(DAMAGED)? = earlier;
                    }
                    Here::Other { change, mtime, .. } => {
                        let file = DiffEntry { path: RelPath::root(), change, mtime };
                        links.files.insert(number, links.entries.put(&file)?);
                    }
                    Here::Nothing | Here::Dir(_) => return Err(DAMAGED.into()),
                }
            }
            here.take(record.event);
        }
        // The earlier ones know theirs.
        for number in 0..links.firsts.len() {
            let earlier = links.firsts[number] as usize;
            links.firsts[number] = *links.firsts.get(earlier).ok_or(DAMAGED)?;
        }
        events.rewind()?;
        Ok(links)
    }

    /// What is at `path`, a name of the file of this link, which comes after all asked for earlier. The first is the file,
    /// the others are links to it.
    fn name(&mut self, number: u32, path: &RelPath) -> io::Result<(Change, Mtime)> {
        let first = self.firsts.get(number as usize).ok_or(DAMAGED)?;
        let at = self.files.get_mut(first).ok_or(DAMAGED)?;
        let file = self.entries.get(*at)?;
        if !file.path.is_root() {
            return Ok((Change::Hardlink { target: file.path }, file.mtime));
        }
        // Its name and time are all that the others want: with its xattrs, each would pay for them.
        let known = DiffEntry { path: path.clone(), change: Change::Whiteout, mtime: file.mtime };
        *at = self.entries.put(&known)?;
        Ok((file.change, file.mtime))
    }
}
