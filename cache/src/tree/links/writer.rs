//! Nodes of names of files that have several, written name by name.

use super::super::{Batch, EncodedNode, NodeDigest, NodeStoreError};
use super::node::{MAGIC, put_pair};
use super::{Link, Links};

/// A node ends with the name that takes it to so many bytes. It is part of the format, as in [`super::super::writer`].
const NODE_BYTES: usize = if cfg!(test) { 40 } else { 64 << 10 };

/// Writes the nodes of [`Links`] as these come, in the order of their names.
pub(crate) struct LinksWriter<'b, 'a> {
    made: &'b mut Batch<'a>,
    nodes: Vec<NodeDigest>,
    /// The node that is being written.
    bytes: Vec<u8>,
    last: (Vec<u8>, Vec<u8>),
}

impl<'b, 'a> LinksWriter<'b, 'a> {
    /// None so far.
    pub(crate) fn new(made: &'b mut Batch<'a>) -> Self {
        Self { made, nodes: Vec::new(), bytes: Vec::new(), last: Default::default() }
    }

    /// Adds the one whose name comes after all others.
    pub(crate) fn push(&mut self, link: &Link) -> Result<(), NodeStoreError> {
        if self.bytes.is_empty() {
            self.bytes.extend_from_slice(MAGIC);
        }
        let (name, first) = (link.name.as_bytes(), link.first.as_bytes());
        put_pair(&mut self.bytes, (&self.last.0, &self.last.1), (name, first));
        if self.bytes.len() >= NODE_BYTES {
            return self.end_node();
        }
        for (last, path) in [(&mut self.last.0, name), (&mut self.last.1, first)] {
            last.clear();
            last.extend_from_slice(path);
        }
        Ok(())
    }

    /// All of them. The store may not have the nodes before [`Batch::put`].
    pub(crate) fn finish(mut self) -> Result<Links, NodeStoreError> {
        if !self.bytes.is_empty() {
            self.end_node()?;
        }
        Ok(Links::of_nodes(self.nodes))
    }

    fn end_node(&mut self) -> Result<(), NodeStoreError> {
        let node = EncodedNode::new(std::mem::take(&mut self.bytes));
        self.last = Default::default();
        self.nodes.push(node.digest());
        self.made.add(node)
    }
}
