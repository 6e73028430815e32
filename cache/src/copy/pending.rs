//! What is planned so far, by paths.
//!
//! A few MiB of it are held. When it is more, what is held goes into a file without a name, as a run in the order of paths:
//!
//! ```text
//! held ──shadows──▶ last run ──shadows──▶ … ──shadows──▶ first run
//! ```
//!
//! What comes in the order of paths, as what is in a directory or an archive does, goes on in the run before: there are about
//! two runs for each item of an instruction, however much is in it.

mod encoded;
mod merged;
mod run;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use self::merged::Merged;
use self::run::Run;
use super::view::Planned;
use crate::held::Held;
use crate::layer::ListingError;
use crate::path::{RelPath, compare};
use crate::scratch::Scratch;
use crate::sorter::RunWriter;
use crate::tree::{Kind, strip};

/// What may be held at most, in bytes; less when much is at work.
#[cfg(not(test))]
fn held_bytes_max() -> usize {
    4 << 20
}
#[cfg(test)]
use self::tests::held_bytes_max;
#[cfg(test)]
pub(super) use self::tests::with_held_bytes_max;

/// Paths that are dropped at once.
const DROPPED_PATHS: usize = 64;

/// A map of paths to what is planned there.
pub(super) struct Pending {
    held: Map,
    held_bytes: usize,
    room: Held,
    file: Option<File>,
    /// In the order in which they were written.
    runs: Vec<Run>,
    scratch: Scratch,
}

type Map = BTreeMap<RelPath, Said>;

/// What is said of a path. What runs behind say of it does not count.
#[derive(Clone)]
enum Said {
    /// Boxed: a map has room for more than is in it.
    Planned(Box<Planned>),
    /// Nothing is planned there any more.
    Gone,
}

impl Said {
    /// About how many bytes it takes in memory with its path, of `path_len` bytes.
    fn held_bytes(&self, path_len: usize) -> usize {
        // The allocator's own, and the room that a map leaves free.
        let of_path = size_of::<(RelPath, Self)>() + size_of::<(RelPath, Self)>() / 2 + 16 + path_len;
        let Self::Planned(planned) = self else { return of_path };
        let Planned { entry, first, .. } = &**planned;
        let of_target = if let Kind::Symlink(target) = &entry.kind { 16 + target.len() } else { 0 };
        let of_first = first.as_ref().map_or(0, |first| 64 + first.path.as_bytes().len());
        of_path + size_of::<Planned>() + 16 + of_target + of_first + entry.meta.held_xattr_bytes()
    }
}

impl Pending {
    /// Nothing; much of it will go to a file of `scratch`.
    pub(super) fn new(scratch: Scratch) -> Self {
        let room = Held::new(held_bytes_max());
        Self { held: Map::new(), held_bytes: 0, room, file: None, runs: Vec::new(), scratch }
    }

    /// What is planned at a path. Who asks in the order of paths is answered fastest.
    pub(super) fn get(&self, path: &RelPath) -> Result<Option<Cow<'_, Planned>>, ListingError> {
        match self.held.get(path) {
            Some(Said::Planned(planned)) => return Ok(Some(Cow::Borrowed(planned))),
            Some(Said::Gone) => return Ok(None),
            None => {}
        }
        for (file, run) in self.newest_first() {
            match run.get(file, path.as_bytes()).map_err(unread)? {
                Some(Said::Planned(planned)) => return Ok(Some(Cow::Owned(*planned))),
                Some(Said::Gone) => return Ok(None),
                None => {}
            }
        }
        Ok(None)
    }

    /// The first path after this one where anything is planned.
    pub(super) fn next_after(&self, path: &RelPath) -> Result<Option<RelPath>, ListingError> {
        Ok(Merged::after(self, path)?.next()?.map(|(path, _)| path))
    }

    /// All of it, in order.
    pub(super) fn all(&self) -> Result<Merged<'_>, ListingError> {
        Merged::all(self)
    }

    /// Plans something at a path, instead of what was planned there.
    pub(super) fn insert(&mut self, path: RelPath, planned: Planned) -> Result<(), ListingError> {
        self.say(path, Said::Planned(Box::new(planned)))
    }

    /// Nothing is planned below a path any more.
    pub(super) fn drop_below(&mut self, path: &RelPath) -> Result<(), ListingError> {
        let mut last = path.clone();
        loop {
            let mut below = Merged::after(self, &last)?;
            let mut dropped = Vec::new();
            while dropped.len() < DROPPED_PATHS
                && let Some((at, _)) = below.next()?
                && strip(&at, path).is_some()
            {
                dropped.push(at);
            }
            match dropped.last() {
                Some(at) => last = at.clone(),
                None => return Ok(()),
            }
            dropped.into_iter().try_for_each(|at| self.remove(at))?;
        }
    }

    fn remove(&mut self, path: RelPath) -> Result<(), ListingError> {
        if !self.runs.is_empty() {
            return self.say(path, Said::Gone);
        }
        if let Some(before) = self.held.remove(&path) {
            self.held_bytes -= before.held_bytes(path.as_bytes().len());
        }
        Ok(())
    }

    fn say(&mut self, path: RelPath, said: Said) -> Result<(), ListingError> {
        let path_len = path.as_bytes().len();
        self.held_bytes += said.held_bytes(path_len);
        if let Some(before) = self.held.insert(path, said) {
            self.held_bytes -= before.held_bytes(path_len);
        }
        if self.room.grow(self.held_bytes) {
            return Ok(());
        }
        let file = match self.file.take() {
            Some(file) => Ok(file),
            None => self.scratch.file(),
        };
        let written = file.and_then(|file| {
            self.write_run(&file)?;
            self.file = Some(file);
            Ok(())
        });
        written.map_err(|source| ListingError { doing: "write", source })
    }

    /// Writes what is held.
    fn write_run(&mut self, file: &File) -> io::Result<()> {
        let held = std::mem::take(&mut self.held);
        self.held_bytes = 0;
        self.room.give_back();
        let Some((first, _)) = held.first_key_value() else { return Ok(()) };
        let end = self.runs.last().map_or(0, Run::end);
        let mut run = match self.runs.pop() {
            // What comes after all of it goes on there.
            Some(run) if compare(run.last(), first.as_bytes()).is_lt() => run,
            earlier => {
                self.runs.extend(earlier);
                Run::new(first, end)
            }
        };
        let mut out = RunWriter::new(file, end);
        for (path, said) in held {
            run.push(&mut out, &path, &said)?;
        }
        run.finish(out)?;
        self.runs.push(run);
        Ok(())
    }

    fn newest_first(&self) -> impl Iterator<Item = (&File, &Run)> {
        self.file.iter().flat_map(|file| self.runs.iter().rev().map(move |run| (file, run)))
    }
}

fn unread(source: io::Error) -> ListingError {
    ListingError { doing: "read", source }
}
