//! Names of files that have several.
//!
//! A tree has a sorted list of them: of each file all names but the first, with the first. There may be a million, so
//! the list is in nodes of the store, some thousand names each, and the tree names the nodes.

mod found;
mod left;
mod node;
#[cfg(test)]
mod tests;
mod writer;

use std::iter::Peekable;
use std::sync::Arc;

pub use self::found::FoundNames;
pub(crate) use self::left::Gone;
pub use self::left::{LinksBelow, RelativeLinks};
pub use self::node::LinkNode;
use self::node::Pairs;
pub(crate) use self::writer::LinksWriter;
use super::{DirNode, NodeDigest, NodeStore, NodeStoreError};
use crate::path::{RelPath, compare};

/// A name of a file that has several, and the first of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The name, which comes after the first.
    pub name: RelPath,
    /// The file's first name in [`RelPath`]'s order, which is no name of another file.
    pub first: RelPath,
}

/// Which paths of a tree are names of one file: the nodes that list them. Equal lists have equal nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Links(Arc<[NodeDigest]>);

impl Links {
    /// Those that these nodes list.
    pub(crate) fn of_nodes(nodes: Vec<NodeDigest>) -> Self {
        Self(nodes.into())
    }

    /// Those of these files, each given by all its names. No name may be in two.
    #[cfg(test)]
    pub(crate) fn new(
        files: impl IntoIterator<Item = Vec<RelPath>>,
        nodes: &dyn NodeStore,
    ) -> Result<Self, super::TreeError> {
        let mut found = FoundNames::new(&crate::scratch::Scratch::for_test());
        for (file, names) in (0..).zip(files) {
            names.iter().try_for_each(|name| found.add((7, file), name))?;
        }
        found.links(nodes)
    }

    /// True when no file has two names.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The nodes that list them.
    pub fn nodes(&self) -> &[NodeDigest] {
        &self.0
    }

    /// All of them, sorted by name.
    pub fn iter<'a>(&self, nodes: &'a dyn NodeStore) -> Names<'a> {
        Names { nodes, list: self.clone(), next: 0, pairs: None, has_failed: false }
    }

    /// Those whose names do not come before `path`.
    fn iter_from<'a>(
        &self,
        nodes: &'a dyn NodeStore,
        path: &RelPath,
    ) -> Result<Peekable<Names<'a>>, NodeStoreError> {
        let (mut low, mut high) = (0, self.0.len());
        while low < high {
            let middle = low.midpoint(high);
            let begins_before = compare(load(nodes, &self.0[middle])?.first_name(), path.as_bytes()).is_le();
            (low, high) = if begins_before { (middle + 1, high) } else { (low, middle) };
        }
        let mut names = Names { next: low.saturating_sub(1), ..self.iter(nodes) }.peekable();
        while names.next_if(|link| link.as_ref().is_ok_and(|link| link.name < *path)).is_some() {}
        Ok(names)
    }
}

fn load(nodes: &dyn NodeStore, digest: &NodeDigest) -> Result<LinkNode, NodeStoreError> {
    match nodes.node(digest)? {
        DirNode::Links(node) => Ok(node),
        DirNode::Entries(_) | DirNode::Parts(_) => Err(NodeStoreError::Damaged(*digest)),
    }
}

/// Names of [`Links`], one after the other. None comes after an error.
pub struct Names<'a> {
    nodes: &'a dyn NodeStore,
    list: Links,
    /// Which node comes next.
    next: usize,
    /// What is in the one before.
    pairs: Option<Pairs>,
    has_failed: bool,
}

impl Names<'_> {
    fn step(&mut self) -> Result<Option<Link>, NodeStoreError> {
        loop {
            if let Some(link) = self.pairs.as_mut().and_then(Pairs::next) {
                return Ok(Some(link));
            }
            let Some(digest) = self.list.0.get(self.next) else { return Ok(None) };
            let node = load(self.nodes, digest)?;
            if self.pairs.as_ref().is_some_and(|pairs| compare(pairs.last(), node.first_name()).is_ge()) {
                return Err(NodeStoreError::Damaged(*digest));
            }
            self.pairs = Some(node.pairs());
            self.next += 1;
        }
    }
}

impl Iterator for Names<'_> {
    type Item = Result<Link, NodeStoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_failed {
            return None;
        }
        let step = self.step();
        self.has_failed = step.is_err();
        step.transpose()
    }
}

/// The first names of files, for those who ask for paths in their order.
pub(crate) struct FirstNames<I: Iterator>(Peekable<I>);

impl<I: Iterator<Item = Result<Link, E>>, E> FirstNames<I> {
    /// `links` are sorted by name.
    pub(crate) fn new(links: I) -> Self {
        Self(links.peekable())
    }

    /// The first name of the file at `path`, unless this is it or the only one.
    pub(crate) fn first_of(&mut self, path: &RelPath) -> Result<Option<RelPath>, E> {
        while let Some(link) = self.0.next_if(|link| link.as_ref().map_or(true, |link| link.name <= *path)) {
            let link = link?;
            if link.name == *path {
                return Ok(Some(link.first));
            }
        }
        Ok(None)
    }
}
