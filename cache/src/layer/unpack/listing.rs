//! What was unpacked so far.

use std::collections::BTreeMap;

use super::super::diff::{Change, DiffEntry, LayerDiff, Mtime};
use crate::path::RelPath;
use crate::tree::{ContentDigest, Meta};

#[derive(Debug)]
pub(super) enum Node {
    Whiteout,
    Dir(DirNode),
    /// A name of the regular file `group` of the listing: all names of one inode are equal until the end.
    File {
        group: usize,
    },
    Symlink {
        meta: Meta,
        mtime: Mtime,
        target: Vec<u8>,
    },
    Device {
        meta: Meta,
        mtime: Mtime,
        major: u32,
        minor: u32,
        is_block: bool,
        is_absent: bool,
    },
    Fifo {
        meta: Meta,
        mtime: Mtime,
    },
}

#[derive(Debug)]
pub(super) struct DirNode {
    pub(super) meta: Meta,
    pub(super) mtime: Mtime,
    pub(super) opaque: bool,
    /// Not in the archive itself.
    pub(super) is_implied: bool,
}

impl DirNode {
    pub(super) fn implied() -> Self {
        Self {
            meta: Meta { mode: 0o755, ..Meta::default() },
            mtime: Mtime::default(),
            opaque: false,
            is_implied: true,
        }
    }
}

#[derive(Debug)]
pub(super) struct FileNode {
    pub(super) meta: Meta,
    pub(super) mtime: Mtime,
    pub(super) size: u64,
    pub(super) content: ContentDigest,
}

/// Nodes by path. Keys have NUL for `/`: plain byte order is then the order of [`RelPath`], and what is below a
/// directory is one range.
#[derive(Debug, Default)]
pub(super) struct Listing {
    nodes: BTreeMap<Vec<u8>, Node>,
    files: Vec<FileNode>,
}

fn key(path: &RelPath) -> Vec<u8> {
    path.as_bytes().iter().map(|b| if *b == b'/' { 0 } else { *b }).collect()
}

fn path(key: &[u8]) -> RelPath {
    let bytes: Vec<u8> = key.iter().map(|b| if *b == 0 { b'/' } else { *b }).collect();
    RelPath::new(bytes).expect("keys are made from clean paths only")
}

impl Listing {
    pub(super) fn get(&self, path: &RelPath) -> Option<&Node> {
        self.nodes.get(&key(path))
    }

    pub(super) fn insert(&mut self, path: &RelPath, node: Node) {
        self.nodes.insert(key(path), node);
    }

    /// The directory at `path`, which `ensure_dir` made.
    pub(super) fn dir_mut(&mut self, path: &RelPath) -> &mut DirNode {
        match self.nodes.get_mut(&key(path)) {
            Some(Node::Dir(dir)) => dir,
            _ => unreachable!("callers make the directory first"),
        }
    }

    pub(super) fn add_file(&mut self, file: FileNode) -> usize {
        self.files.push(file);
        self.files.len() - 1
    }

    /// Takes out `path` and all below it, in order.
    pub(super) fn remove_all(&mut self, path_: &RelPath) -> Vec<(RelPath, Node)> {
        let key = key(path_);
        let Some(node) = self.nodes.remove(&key) else { return Vec::new() };
        let mut removed = vec![(path_.clone(), node)];
        let mut prefix = key;
        prefix.push(0);
        while let Some((below, _)) = self.nodes.range(prefix.clone()..).next() {
            if !below.starts_with(&prefix) {
                break;
            }
            let below = below.clone();
            removed.extend(self.nodes.remove(&below).map(|node| (path(&below), node)));
        }
        removed
    }

    pub(super) fn dirs_deepest_first(&self) -> impl Iterator<Item = (RelPath, &DirNode)> {
        self.nodes.iter().rev().filter_map(|(key, node)| match node {
            Node::Dir(dir) => Some((path(key), dir)),
            _ => None,
        })
    }

    /// The diff, implied directories that may show a lower one, and devices that are not in the directory.
    pub(super) fn into_diff(self) -> (LayerDiff, Vec<RelPath>, Vec<RelPath>) {
        let (mut implied, mut absent) = (Vec::new(), Vec::new());
        let mut diff = LayerDiff::default();
        let mut files: Vec<Result<FileNode, (RelPath, Mtime)>> = self.files.into_iter().map(Ok).collect();
        for (key, node) in self.nodes {
            let path = path(&key);
            let (change, mtime) = match node {
                Node::Whiteout => (Change::Whiteout, Mtime::default()),
                Node::Dir(DirNode { is_implied: true, opaque: false, .. }) if path.is_root() => continue,
                Node::Dir(dir) => {
                    if dir.is_implied {
                        implied.push(path.clone());
                    }
                    (Change::Dir { meta: dir.meta, opaque: dir.opaque }, dir.mtime)
                }
                Node::File { group } => first_or_link(&mut files[group], &path),
                Node::Symlink { meta, mtime, target } => (Change::Symlink { meta, target }, mtime),
                Node::Device { meta, mtime, major, minor, is_block, is_absent } => {
                    if is_absent {
                        absent.push(path.clone());
                    }
                    let change = if is_block {
                        Change::BlockDevice { meta, major, minor }
                    } else {
                        Change::CharDevice { meta, major, minor }
                    };
                    (change, mtime)
                }
                Node::Fifo { meta, mtime } => (Change::Fifo { meta }, mtime),
            };
            diff.push(DiffEntry { path, change, mtime });
        }
        (diff, implied, absent)
    }
}

/// The first name of a group, in order of paths, is the file; the others are links to it.
fn first_or_link(file: &mut Result<FileNode, (RelPath, Mtime)>, path: &RelPath) -> (Change, Mtime) {
    let mtime = match file {
        Ok(file) => file.mtime,
        Err((_, mtime)) => *mtime,
    };
    match std::mem::replace(file, Err((path.clone(), mtime))) {
        Ok(FileNode { meta, size, content, .. }) => (Change::File { meta, size, content }, mtime),
        Err((target, _)) => {
            *file = Err((target.clone(), mtime));
            (Change::Hardlink { target }, mtime)
        }
    }
}
