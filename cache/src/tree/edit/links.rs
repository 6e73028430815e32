//! What a layer's diff makes of a tree's links.

use std::iter::{Peekable, successors};

use super::super::{Batch, Gone, Link, Links, LinksWriter, NodeStore, TreeError, strip};
use crate::layer::{Change, DiffEntry, Entries, LayerDiff, ListingError};
use crate::path::RelPath;
use crate::scratch::Scratch;

/// The links that `diff` leaves of `before`, with those that it makes.
pub(super) fn after(
    before: &Links,
    nodes: &dyn NodeStore,
    diff: &LayerDiff,
    scratch: &Scratch,
    made: &mut Batch<'_>,
) -> Result<Links, TreeError> {
    let mut new = diff.iter().filter_map(linked).peekable();
    if before.is_empty() && new.peek().is_none() {
        return Ok(Links::default());
    }
    // First names come in an order of their own.
    let (mut names, mut firsts) = (Touched::new(diff), Touched::new(diff));
    let left = before.left(nodes, &RelPath::root(), scratch, |link| {
        Ok(Gone { name: names.has(&link.name)?, first: firsts.has(&link.first)? })
    })?;
    if !left.has_lost() && new.peek().is_none() {
        return Ok(before.clone());
    }
    let mut left = left.peekable();
    let mut out = LinksWriter::new(made);
    loop {
        // A name that the layer links is not left.
        let is_left = match (left.peek(), new.peek()) {
            (Some(Ok(left)), Some(Ok(new))) => left.name < new.name,
            (left, _) => left.is_some(),
        };
        let Some(link) = (if is_left { left.next() } else { new.next() }) else { break };
        out.push(&link?)?;
    }
    Ok(out.finish()?)
}

fn linked(entry: Result<DiffEntry, ListingError>) -> Option<Result<Link, TreeError>> {
    match entry {
        Ok(DiffEntry { path: name, change: Change::Hardlink { target: first }, .. }) => {
            Some(Ok(Link { name, first }))
        }
        Ok(_) => None,
        Err(error) => Some(Err(error.into())),
    }
}

/// Tells what a layer touches: every path in it, and everything below what it replaces. Paths that are asked for in their
/// order cost a step each, others a search.
struct Touched<'a> {
    diff: &'a LayerDiff,
    entries: Peekable<Entries<'a>>,
    /// What was last replaced, before the path that comes next.
    replaced: Option<RelPath>,
    last: Option<(RelPath, bool)>,
}

impl<'a> Touched<'a> {
    fn new(diff: &'a LayerDiff) -> Self {
        Self { diff, entries: diff.iter().peekable(), replaced: None, last: None }
    }

    fn has(&mut self, path: &RelPath) -> Result<bool, ListingError> {
        match &self.last {
            Some((last, is_touched)) if last == path => return Ok(*is_touched),
            Some((last, _)) if last > path => return self.search(path),
            _ => {}
        }
        let is_before =
            |entry: &Result<DiffEntry, _>| entry.as_ref().map_or(true, |entry| entry.path <= *path);
        let mut is_touched = false;
        while let Some(entry) = self.entries.next_if(is_before) {
            let DiffEntry { path: at, change, .. } = entry?;
            is_touched = at == *path;
            if change.replaces() && !self.is_replaced(&at) {
                self.replaced = Some(at);
            }
        }
        is_touched |= self.is_replaced(path);
        self.last = Some((path.clone(), is_touched));
        Ok(is_touched)
    }

    fn is_replaced(&self, path: &RelPath) -> bool {
        self.replaced.as_ref().is_some_and(|dir| strip(path, dir).is_some())
    }

    fn search(&self, path: &RelPath) -> Result<bool, ListingError> {
        for at in successors(Some(path.clone()), RelPath::parent) {
            if self.diff.get(&at)?.is_some_and(|entry| at == *path || entry.change.replaces()) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
