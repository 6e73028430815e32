//! A node that lists names of files that have several.
//!
//! ```text
//! links = "RBL" 01, { name, first }…     one at least, names ascending, each after its first
//! path  = shared, length, suffix         shared with that of the pair before: numbers in seven bits a byte, low ones first
//! ```
//!
//! The names of files in one directory often come one after the other, and so do the first ones: a pair takes some ten
//! bytes.

use std::sync::Arc;

use super::super::CodecError;
use super::super::codec::PATH_BYTES_MAX;
use super::Link;
use crate::layer::{FieldReader, put_path};
use crate::path::{RelPath, compare, is_clean};

pub(super) const MAGIC: &[u8; 4] = b"RBL\x01";

/// The list in one node, as its canonical bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkNode(Arc<[u8]>);

impl LinkNode {
    /// True for the first bytes of one.
    pub(in super::super) fn begins(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC)
    }

    /// Reads canonical bytes, and nothing else.
    pub(in super::super) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut again = Vec::with_capacity(bytes.len());
        again.extend_from_slice(MAGIC);
        let mut pairs = Self(bytes.into()).pairs();
        let mut last = (Vec::new(), Vec::new());
        while pairs.at < bytes.len() {
            pairs.step().map_err(|_| CodecError::Links)?;
            let Pairs { name, first, .. } = &pairs;
            let is_path = |path: &[u8]| !path.is_empty() && path.len() <= PATH_BYTES_MAX && is_clean(path);
            let is_sorted = compare(&last.0, name).is_lt() && compare(first, name).is_lt();
            if !(is_sorted && is_path(name) && is_path(first)) {
                return Err(CodecError::Links);
            }
            put_pair(&mut again, (&last.0, &last.1), (name, first));
            last = (name.clone(), first.clone());
        }
        // One list has one encoding.
        if again == bytes && bytes.len() > MAGIC.len() { Ok(pairs.node) } else { Err(CodecError::Links) }
    }

    /// Canonical bytes.
    pub(in super::super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The first of the names.
    pub(super) fn first_name(&self) -> &[u8] {
        // It shares nothing with one before.
        let mut reader = FieldReader::new(&self.0, MAGIC.len());
        reader.number().and_then(|_| reader.string()).unwrap_or_default()
    }

    /// What it lists.
    pub(in super::super) fn pairs(self) -> Pairs {
        Pairs { node: self, at: MAGIC.len(), name: Vec::new(), first: Vec::new() }
    }
}

/// Appends a name and the first one of its file, which come after those of `last`.
pub(super) fn put_pair(out: &mut Vec<u8>, last: (&[u8], &[u8]), (name, first): (&[u8], &[u8])) {
    put_path(out, last.0, name);
    put_path(out, last.1, first);
}

/// What is in a node, one after the other.
pub(in super::super) struct Pairs {
    node: LinkNode,
    at: usize,
    name: Vec<u8>,
    first: Vec<u8>,
}

impl Pairs {
    /// The name that came last.
    pub(super) fn last(&self) -> &[u8] {
        &self.name
    }

    fn step(&mut self) -> Result<(), &'static str> {
        let mut reader = FieldReader::new(&self.node.0, self.at);
        reader.path(&mut self.name)?;
        reader.path(&mut self.first)?;
        self.at = reader.at();
        Ok(())
    }
}

impl Iterator for Pairs {
    type Item = Link;

    fn next(&mut self) -> Option<Link> {
        if self.at == self.node.0.len() {
            return None;
        }
        // What was decoded reads again.
        self.step().ok()?;
        let [name, first] = [&self.name, &self.first].map(|path| RelPath::of_clean(path.clone()));
        Some(Link { name, first })
    }
}
