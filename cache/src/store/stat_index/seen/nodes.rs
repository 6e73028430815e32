//! The nodes of a scanned context, made from its records when somebody asks.

use std::collections::HashMap;
use std::convert::Infallible;
use std::ops::Range;
use std::sync::{Arc, MutexGuard, PoisonError};

use super::super::format::Known;
use super::super::listed::SeenDir;
use super::{SeenContext, damaged, name_of};
use crate::tree::{
    DirEntries, DirNode, EMPTY_NODE, EncodedNode, Entry, Kind, NodeDigest, NodeStore, NodeStoreError,
    NodeWriter, PART_ENTRIES_MIN, Part,
};

/// What a node is of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// A directory, by its place.
    Dir(usize),
    /// A part of one, by its index.
    Part(usize, usize),
}

/// Fewest bytes that something takes in a record.
const RECORDED_BYTES_MIN: usize = 3 + 2 + 60;

/// Names from one on, up to another if there is one.
#[derive(Clone, Copy)]
struct Names<'a> {
    from: &'a [u8],
    end: Option<&'a [u8]>,
}

impl Names<'_> {
    const ALL: Self = Names { from: b"", end: None };

    /// Those of a list that is in the order of names.
    fn range<'n, T: Copy>(&self, all: &[T], name: impl Fn(T) -> &'n [u8]) -> Range<usize> {
        let from = all.partition_point(|item| name(*item) < self.from);
        let end = self.end.map_or(all.len(), |end| all.partition_point(|item| name(*item) < end));
        from..end.max(from)
    }
}

impl SeenContext {
    /// Settles the node of a directory, once those in it are settled.
    pub(super) fn close(&mut self, at: usize) -> Result<(), NodeStoreError> {
        let is_kept = self.dirs[at].place_kept().is_some();
        if is_kept {
            let mut has_moved = false;
            for inner in self.inner(at) {
                has_moved = has_moved || self.has_moved(*inner as usize)?;
            }
            if !has_moved {
                return Ok(());
            }
        }
        let parts = self.written(at).ok_or_else(damaged)?;
        let node = NodeWriter::node_of(&parts).0;
        self.dirs[at].has_new_node = self.dirs[at].node != node;
        self.dirs[at].node = node;
        if parts.len() > 1 {
            self.known_parts_of().insert(at, parts.into());
        }
        Ok(())
    }

    fn known_parts_of(&self) -> MutexGuard<'_, HashMap<usize, Arc<[Part]>>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The parts of a directory's node. `None` when its record is damaged.
    fn written(&self, at: usize) -> Option<Vec<Part>> {
        let mut out = NodeWriter::new();
        let no_one = &mut |_: EncodedNode| Ok::<(), Infallible>(());
        self.each_entry(at, Names::ALL, |name, entry| {
            let Ok(()) = out.entry(name, &entry, no_one);
        })?;
        let Ok(parts) = out.into_parts(no_one);
        Some(parts)
    }

    /// The parts of a directory, if there are more than one.
    fn parts(&self, at: usize) -> Arc<[Part]> {
        if let Some(parts) = self.known_parts_of().get(&at) {
            return Arc::clone(parts);
        }
        let recorded = self.record_bytes(at).map_or(0, |bytes| bytes / RECORDED_BYTES_MIN);
        if recorded + self.inner(at).len() < PART_ENTRIES_MIN {
            return Arc::default();
        }
        let parts = parts_if_many(self.written(at).unwrap_or_default());
        self.known_parts_of().insert(at, Arc::clone(&parts));
        parts
    }

    /// Shows entries of a directory's node by name, the directories in it being settled. `None` when its record is
    /// damaged.
    fn each_entry(&self, at: usize, names: Names<'_>, mut each: impl FnMut(&[u8], Entry)) -> Option<()> {
        let dir = &self.dirs[at];
        let name_of_dir = |inner: u32| name_of(self.dirs[inner as usize].path()).1;
        // Entered for what would be brought back in it, and nothing was.
        let is_there = |inner: &SeenDir| !inner.is_excluded() || inner.node != *EMPTY_NODE;
        let inner = self.inner(at);
        let inner = inner[names.range(inner, name_of_dir)].iter().copied();
        let mut dirs = inner.filter(|inner| is_there(&self.dirs[*inner as usize])).peekable();
        let dir_entry = |inner: u32| {
            let meta = self.meta(inner as usize)?;
            Some(Entry { meta, kind: Kind::Dir(self.dirs[inner as usize].node) })
        };
        let mut held = self.held(at, names.from)?;
        'record: loop {
            let record = held.record(dir);
            let mut start = held.seek(dir, names.from) as usize;
            while start < record.0.len() {
                let mut rest = &record.0[start..];
                let known = Known::take(&mut rest)?;
                let name = known.name.to_bytes();
                if names.end.is_some_and(|end| name >= end) {
                    break 'record;
                }
                while let Some(inner) = dirs.next_if(|inner| name_of_dir(*inner) < name) {
                    each(name_of_dir(inner), dir_entry(inner)?);
                }
                let mut entry = known.entry();
                if known.has_xattrs {
                    entry.meta.xattrs = self.xattrs.get(dir.file_xattrs(start as u32)?).ok()?;
                }
                each(name, entry);
                start = record.0.len() - rest.len();
            }
            let is_over = names.end.is_some_and(|end| held.end().is_some_and(|next| next >= end));
            match self.held_behind(&held)? {
                Some(next) if !is_over => held = next,
                _ => break,
            }
        }
        for inner in dirs {
            each(name_of_dir(inner), dir_entry(inner)?);
        }
        Some(())
    }

    /// Where a node is found. A part is asked for by whoever has got the node that names it, so those of a directory are
    /// known from then on: to know them all, all large directories would have to be written.
    fn place(&self, digest: &NodeDigest) -> Option<Place> {
        let node = |at: &u32| self.dirs[*at as usize].node;
        let by_node = self.by_node.get_or_init(|| {
            let mut all: Vec<u32> = (0..self.dirs.len() as u32).collect();
            all.sort_unstable_by_key(node);
            all
        });
        let parts = || self.known_parts.lock().unwrap_or_else(PoisonError::into_inner).get(digest).copied();
        let found = by_node.binary_search_by_key(digest, node).ok();
        found.map(|found| Place::Dir(by_node[found] as usize)).or_else(parts)
    }

    /// Makes the node at a place.
    fn make(&self, place: Place) -> Option<DirNode> {
        let parts;
        let (at, names) = match place {
            Place::Dir(at) => match self.parts(at) {
                none if none.is_empty() => (at, Names::ALL),
                parts => {
                    let places = (0..).map(|index| Place::Part(at, index));
                    let known = parts.iter().map(|part| part.node).zip(places);
                    self.known_parts.lock().unwrap_or_else(PoisonError::into_inner).extend(known);
                    return Some(DirNode::Parts(parts));
                }
            },
            Place::Part(at, index) => {
                parts = self.parts(at);
                let part = |index: usize| parts.get(index).map(|part| &*part.first);
                (at, Names { from: part(index)?, end: part(index + 1) })
            }
        };
        let mut entries = DirEntries::default();
        self.each_entry(at, names, |name, entry| entries.insert(name, entry))?;
        Some(DirNode::from(entries))
    }
}

impl NodeStore for SeenContext {
    fn node(&self, digest: &NodeDigest) -> Result<DirNode, NodeStoreError> {
        if let Some(node) = self.nodes.get(digest) {
            return Ok(node);
        }
        let Some(place) = self.place(digest) else { return self.others.node(digest) };
        let node = self.make(place).ok_or(NodeStoreError::Damaged(*digest))?;
        self.nodes.put(*digest, node.clone());
        Ok(node)
    }

    fn put_nodes(&self, nodes: &[EncodedNode]) -> Result<(), NodeStoreError> {
        self.others.put_nodes(nodes)
    }
}

fn parts_if_many(parts: Vec<Part>) -> Arc<[Part]> {
    if parts.len() > 1 { parts.into() } else { Arc::default() }
}
