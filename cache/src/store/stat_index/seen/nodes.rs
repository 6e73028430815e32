//! The nodes of a scanned context, made from its records when somebody asks.

use std::collections::HashMap;
use std::convert::Infallible;
use std::ops::{Bound, Range};
use std::sync::{Arc, PoisonError};

use super::super::format::Record;
use super::{Dir, SeenContext, damaged, name_of};
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
        let dir = &self.dirs[at];
        if dir.kept.is_some() && !dir.dirs.iter().any(|inner| self.has_moved(*inner)) {
            return Ok(());
        }
        let parts = self.written(at).ok_or_else(damaged)?;
        let dir = &mut self.dirs[at];
        (dir.row.node, dir.parts) = (NodeWriter::node_of(&parts).0, parts_if_many(parts).into());
        Ok(())
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
    fn parts(&self, at: usize) -> &Arc<[Part]> {
        let dir = &self.dirs[at];
        dir.parts.get_or_init(|| {
            let recorded = dir.row.record_bytes as usize / RECORDED_BYTES_MIN;
            let is_small = recorded + dir.dirs.len() < PART_ENTRIES_MIN && dir.beside.is_empty();
            if is_small { Arc::default() } else { parts_if_many(self.written(at).unwrap_or_default()) }
        })
    }

    /// Shows entries of a directory's node by name, the directories in it being settled. `None` when its record is
    /// damaged.
    fn each_entry(&self, at: usize, names: Names<'_>, mut each: impl FnMut(&[u8], Entry)) -> Option<()> {
        let (dir, held) = (&self.dirs[at], self.held(at)?);
        // Entered for what would be brought back in it, and nothing was.
        let is_there = |inner: &&Dir| !inner.row.is_excluded || inner.row.node != *EMPTY_NODE;
        let dirs = &dir.dirs[names.range(&dir.dirs, |inner| name_of(&self.dirs[inner].path).1)];
        let dirs = dirs.iter().map(|inner| &self.dirs[*inner]).filter(is_there).map(|inner| {
            let entry = Entry { meta: inner.meta.clone(), kind: Kind::Dir(inner.row.node) };
            (name_of(&inner.path).1, entry)
        });
        let bounds = (Bound::Included(names.from), names.end.map_or(Bound::Unbounded, Bound::Excluded));
        let beside = dir.beside.range::<[u8], _>(bounds);
        let beside = beside.map(|(name, entry)| (name.as_slice(), entry.clone()));
        let mut others: Vec<(&[u8], Entry)> = dirs.chain(beside).collect();
        others.sort_unstable_by_key(|(name, _)| *name);
        let mut others = others.into_iter().peekable();
        let starts = &held.starts[names.range(&held.starts, |start| held.name_at(start))];
        for start in starts {
            let known = Record(&held.bytes).at(*start)?;
            let name = known.name.to_bytes();
            while let Some((other, entry)) = others.next_if(|(other, _)| *other < name) {
                each(other, entry);
            }
            each(name, known.entry());
        }
        others.for_each(|(name, entry)| each(name, entry));
        Some(())
    }

    /// Where a node is found. A part is asked for by whoever has got the node that names it, so those of a directory are
    /// known from then on: to know them all, all large directories would have to be written.
    fn place(&self, digest: &NodeDigest) -> Option<Place> {
        let all = || self.dirs.iter().enumerate().map(|(at, dir)| (dir.row.node, at)).collect();
        let dirs: &HashMap<NodeDigest, usize> = self.by_digest.get_or_init(all);
        let parts = || self.known_parts.lock().unwrap_or_else(PoisonError::into_inner).get(digest).copied();
        dirs.get(digest).map(|at| Place::Dir(*at)).or_else(parts)
    }

    /// Makes the node at a place.
    fn make(&self, place: Place) -> Option<DirNode> {
        let (at, names) = match place {
            Place::Dir(at) => match self.parts(at) {
                parts if parts.is_empty() => (at, Names::ALL),
                parts => {
                    let places = (0..).map(|index| Place::Part(at, index));
                    let known = parts.iter().map(|part| part.node).zip(places);
                    self.known_parts.lock().unwrap_or_else(PoisonError::into_inner).extend(known);
                    return Some(DirNode::Parts(Arc::clone(parts)));
                }
            },
            Place::Part(at, index) => {
                let part = |index: usize| self.parts(at).get(index).map(|part| &*part.first);
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
