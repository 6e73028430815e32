//! Bytes of a directory node in `trees.sqlite`.
//!
//! Strict: every list is in ascending order, nothing follows the last entry, every tag is known. Integers are
//! little-endian, byte strings have a `u32` length before them.

use std::collections::BTreeMap;

use crate::tree::{ContentDigest, DirNode, Entry, Kind, Meta, NodeDigest};

const DIR: u8 = 1;
const FILE: u8 = 2;
const SYMLINK: u8 = 3;
const CHAR_DEVICE: u8 = 4;
const BLOCK_DEVICE: u8 = 5;
const FIFO: u8 = 6;

/// Encodes a node.
pub(super) fn encode_node(node: &DirNode) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(node.entries.len() * 80);
    for (name, entry) in &node.entries {
        put(&mut bytes, name);
        for number in [entry.meta.mode, entry.meta.uid, entry.meta.gid] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&length(entry.meta.xattrs.len()));
        for (name, value) in &entry.meta.xattrs {
            put(&mut bytes, name);
            put(&mut bytes, value);
        }
        match &entry.kind {
            Kind::Dir(digest) => {
                bytes.push(DIR);
                bytes.extend_from_slice(&digest.0);
            }
            Kind::File { size, content } => {
                bytes.push(FILE);
                bytes.extend_from_slice(&size.to_le_bytes());
                bytes.extend_from_slice(&content.0);
            }
            Kind::Symlink(target) => {
                bytes.push(SYMLINK);
                put(&mut bytes, target);
            }
            Kind::CharDevice { major, minor } => put_device(&mut bytes, CHAR_DEVICE, *major, *minor),
            Kind::BlockDevice { major, minor } => put_device(&mut bytes, BLOCK_DEVICE, *major, *minor),
            Kind::Fifo => bytes.push(FIFO),
        }
    }
    bytes
}

/// Decodes a node; `None` for anything `encode_node` does not produce.
pub(super) fn decode_node(bytes: &[u8]) -> Option<DirNode> {
    let mut rest = bytes;
    let mut entries: BTreeMap<Vec<u8>, Entry> = BTreeMap::new();
    while !rest.is_empty() {
        let name = take_bytes(&mut rest)?;
        if entries.last_key_value().is_some_and(|(last, _)| *last >= name) {
            return None;
        }
        let (mode, uid, gid) = (take_u32(&mut rest)?, take_u32(&mut rest)?, take_u32(&mut rest)?);
        let mut xattrs: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for _ in 0..take_u32(&mut rest)? {
            let name = take_bytes(&mut rest)?;
            if xattrs.last_key_value().is_some_and(|(last, _)| *last >= name) {
                return None;
            }
            xattrs.insert(name, take_bytes(&mut rest)?);
        }
        let kind = match take::<1>(&mut rest)?[0] {
            DIR => Kind::Dir(NodeDigest(take(&mut rest)?)),
            FILE => Kind::File {
                size: u64::from_le_bytes(take(&mut rest)?),
                content: ContentDigest(take(&mut rest)?),
            },
            SYMLINK => Kind::Symlink(take_bytes(&mut rest)?),
            CHAR_DEVICE => Kind::CharDevice { major: take_u32(&mut rest)?, minor: take_u32(&mut rest)? },
            BLOCK_DEVICE => Kind::BlockDevice { major: take_u32(&mut rest)?, minor: take_u32(&mut rest)? },
            FIFO => Kind::Fifo,
            _ => return None,
        };
        entries.insert(name, Entry { meta: Meta { mode, uid, gid, xattrs }, kind });
    }
    Some(DirNode { entries })
}

/// Names, targets and xattrs are far below 4 GiB: the kernel limits the first two to 4 KiB, the layer reader the rest.
fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).expect("a name, link target or xattr is below 4 GiB").to_le_bytes()
}

fn put(bytes: &mut Vec<u8>, text: &[u8]) {
    bytes.extend_from_slice(&length(text.len()));
    bytes.extend_from_slice(text);
}

fn put_device(bytes: &mut Vec<u8>, tag: u8, major: u32, minor: u32) {
    bytes.push(tag);
    bytes.extend_from_slice(&major.to_le_bytes());
    bytes.extend_from_slice(&minor.to_le_bytes());
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    take(rest).map(u32::from_le_bytes)
}

fn take_bytes(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let length = usize::try_from(take_u32(rest)?).ok()?;
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(head.to_vec())
}
