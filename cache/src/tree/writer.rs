//! A directory's nodes, written entry by entry.

use super::codec::Writer;
use super::{DirNode, EMPTY_NODE, EncodedNode, Entry, NodeDigest, Part};

// This crate's tests have tiny parts, so that all there is about trees is tried with them. A change of what follows changes
// digests: see `codec` for what has to be done then.

/// Fewest entries of a part that another one follows, unless it has [`PART_BYTES`].
pub(crate) const PART_ENTRIES_MIN: usize = if cfg!(test) { 2 } else { 256 };
/// Most entries of a part. Who looks one name up reads a part, so they are no larger than saves rows.
pub(crate) const PART_ENTRIES_MAX: usize = if cfg!(test) { 3 } else { 1024 };
/// A part ends with the entry that takes it to so many bytes.
const PART_BYTES: usize = 1 << 20;
/// One name in so many is one that a part ends with.
const NAMES_PER_END: u16 = if cfg!(test) { 2 } else { 256 };

/// Writes the nodes of a directory as its entries come, in the order of their names.
///
/// A large directory comes in parts. Where one ends depends on nothing but what is in it: after the first name that ends
/// parts (by its digest) once there are [`PART_ENTRIES_MIN`] entries, or when it is as large as a part can be. So there is
/// one way to write a directory, and where a change moves the end of its part, the ends of those after it are soon, and
/// most often at once, where they were. A directory of one part is that part.
pub(crate) struct NodeWriter {
    /// The part that is being written, how many entries it has, and the first one's name.
    out: Writer,
    count: usize,
    first: Box<[u8]>,
    /// Those before it.
    parts: Vec<Part>,
}

impl NodeWriter {
    /// A directory with nothing in it.
    pub(crate) fn new() -> Self {
        Self { out: Writer::entries(), count: 0, first: Box::default(), parts: Vec::new() }
    }

    /// Adds the entry whose name comes after all others, and gives `made` a part that ends with it.
    pub(crate) fn entry<E>(
        &mut self,
        name: &[u8],
        entry: &Entry,
        made: &mut dyn FnMut(EncodedNode) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.count == 0 {
            self.first = name.into();
        }
        self.out.named(name, entry);
        self.count += 1;
        let is_full = self.count >= PART_ENTRIES_MAX || self.out.len() >= PART_BYTES;
        if is_full || (self.count >= PART_ENTRIES_MIN && ends_part(name)) {
            self.parts = std::mem::replace(self, Self::new()).into_parts(made)?;
        }
        Ok(())
    }

    /// True where a part of another directory can be taken over.
    pub(crate) fn is_between_parts(&self) -> bool {
        self.count == 0
    }

    /// Takes a part over as another directory has it, between two parts. It must be one that others follow there, or
    /// nothing may be added after it.
    pub(crate) fn part(&mut self, part: Part) {
        debug_assert!(self.is_between_parts(), "entries would change their order");
        self.parts.push(part);
    }

    /// True while nothing was added.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0 && self.parts.is_empty()
    }

    /// Ends the directory: gives `made` what is left of it, and returns its node's digest. Nobody needs to keep that of an
    /// empty one.
    pub(crate) fn finish<E>(
        self,
        made: &mut dyn FnMut(EncodedNode) -> Result<(), E>,
    ) -> Result<NodeDigest, E> {
        let (digest, node) = Self::node_of(&self.into_parts(made)?);
        node.map_or(Ok(()), made)?;
        Ok(digest)
    }

    /// The digest of a directory with these parts, and its node where that is one of its own.
    pub(crate) fn node_of(parts: &[Part]) -> (NodeDigest, Option<EncodedNode>) {
        match parts {
            [] => (*EMPTY_NODE, None),
            [only] => (only.node, None),
            _ => {
                let node = EncodedNode::of(&DirNode::Parts(parts.into()));
                (node.digest(), Some(node))
            }
        }
    }

    /// Likewise, but returns its parts and makes no node of them.
    pub(crate) fn into_parts<E>(
        self,
        made: &mut dyn FnMut(EncodedNode) -> Result<(), E>,
    ) -> Result<Vec<Part>, E> {
        let Self { out, count, first, mut parts } = self;
        if count > 0 {
            let node = EncodedNode::new(out.counted(count));
            parts.push(Part { first, node: node.digest() });
            made(node)?;
        }
        Ok(parts)
    }
}

fn ends_part(name: &[u8]) -> bool {
    let digest = blake3::hash(name);
    let [first, second, ..] = digest.as_bytes();
    u16::from_le_bytes([*first, *second]).is_multiple_of(NAMES_PER_END)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::testing::{meta, put_dir};
    use crate::tree::{DirEntries, DirReader, Kind, MemoryNodeStore, NodeStore, load_node};

    const FILES: usize = 500;

    fn entries() -> DirEntries {
        let entry = Entry { meta: meta(0o644), kind: Kind::Fifo };
        (0..FILES).map(|at| (format!("{at:03}").into_bytes(), entry.clone())).collect()
    }

    fn parts(nodes: &dyn NodeStore, dir: &NodeDigest) -> Vec<Part> {
        let DirNode::Parts(parts) = load_node(nodes, dir).unwrap() else { panic!("too small") };
        parts.to_vec()
    }

    #[test]
    fn parts_have_as_many_entries_as_they_may() {
        let nodes = MemoryNodeStore::default();
        let parts = parts(&nodes, &put_dir(&nodes, &entries()));
        let sizes: Vec<usize> = parts.iter().map(|part| nodes.node(&part.node).unwrap().len()).collect();
        let (last, others) = sizes.split_last().unwrap();
        let may_be = PART_ENTRIES_MIN..=PART_ENTRIES_MAX;
        assert!(others.iter().all(|len| may_be.contains(len)) && *last <= PART_ENTRIES_MAX, "{sizes:?}");
        assert_eq!(sizes.iter().sum::<usize>(), FILES);
    }

    #[test]
    fn a_change_makes_its_own_part_anew_and_few_others() {
        let nodes = MemoryNodeStore::default();
        let all = entries();
        let before = parts(&nodes, &put_dir(&nodes, &all));
        let mut most = 0;
        for at in 0..FILES {
            let left = all.iter().map(|(name, entry)| (name.to_vec(), entry.clone()));
            let left: DirEntries =
                left.enumerate().filter(|(place, _)| *place != at).map(|(_, e)| e).collect();
            let after = parts(&nodes, &put_dir(&nodes, &left));
            most = most.max(after.iter().filter(|part| !before.contains(part)).count());
        }
        assert!(most < 30, "{most} of {}", before.len());
    }

    #[test]
    fn large_xattrs_end_a_part() {
        let nodes = MemoryNodeStore::default();
        let mut large = meta(0o644);
        large.xattrs.insert(b"user.x".to_vec(), vec![7; crate::tree::XATTR_BYTES_MAX]);
        large.xattrs.extend((0..20_u8).map(|at| (vec![b'y', at], vec![7; crate::tree::XATTR_BYTES_MAX])));
        let dir = ["a", "b"].map(|name| (name.as_bytes(), Entry { meta: large.clone(), kind: Kind::Fifo }));
        let dir = put_dir(&nodes, &dir.into_iter().collect());
        assert_eq!(parts(&nodes, &dir).len(), 2);
    }

    #[test]
    fn what_a_part_is_not_said_to_be_is_damage() {
        let nodes = MemoryNodeStore::default();
        let mut parts = parts(&nodes, &put_dir(&nodes, &entries()));
        parts[1].node = parts[2].node;
        let wrong = EncodedNode::of(&DirNode::Parts(parts.into()));
        nodes.put_nodes(std::slice::from_ref(&wrong)).unwrap();
        let mut reader = DirReader::open(&nodes, &wrong.digest()).unwrap();
        let failed =
            std::iter::from_fn(|| reader.next().map(|next| next.map(drop)).transpose()).find(Result::is_err);
        assert!(failed.is_some());
    }
}
