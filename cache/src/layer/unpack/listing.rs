//! What was unpacked so far.

use super::super::diff::{Change, DiffEntry, LayerDiff, ListingError, Mtime};
use super::paths::{Paths, Place};
use crate::path::RelPath;
use crate::tree::{ContentDigest, Meta};

/// What is at a path. Most are files: the rest is in boxes, so that they stay small.
#[derive(Debug)]
pub(super) enum Node {
    Whiteout,
    Dir(Box<DirNode>),
    /// A name of the regular file `group` of the listing: all names of one inode are equal until the end.
    File {
        group: u32,
    },
    Special(Box<Special>),
}

/// A symbolic link, device or pipe.
#[derive(Debug)]
pub(super) struct Special {
    pub(super) meta: Meta,
    pub(super) mtime: Mtime,
    pub(super) kind: SpecialKind,
}

#[derive(Debug)]
pub(super) enum SpecialKind {
    Symlink { target: Vec<u8> },
    Device { major: u32, minor: u32, is_block: bool, is_absent: bool },
    Fifo,
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

/// A regular file, small: there may be millions.
#[derive(Debug, Clone, Copy)]
struct FileNode {
    content: ContentDigest,
    size: u64,
    secs: i64,
    nanos: u32,
    /// Place of its metadata in the listing.
    meta: u32,
}

/// Metadata of files, which most share with one shortly before them.
#[derive(Debug, Default)]
struct Metas(Vec<Meta>);

impl Metas {
    /// How far back an equal one is looked for.
    const NEAR: usize = 8;

    fn place_of(&mut self, meta: Meta) -> u32 {
        let from = self.0.len().saturating_sub(Self::NEAR);
        let place = self.0[from..].iter().position(|known| *known == meta).map(|near| from + near);
        let place = place.unwrap_or_else(|| {
            self.0.push(meta);
            self.0.len() - 1
        });
        place.try_into().expect("there are no more than files")
    }
}

/// Nodes by path.
#[derive(Default)]
pub(super) struct Listing {
    nodes: Paths<Node>,
    files: Vec<FileNode>,
    metas: Metas,
}

impl Listing {
    pub(super) fn get(&self, path: &RelPath) -> Option<&Node> {
        self.nodes.get(path)
    }

    pub(super) fn insert(&mut self, path: &RelPath, node: Node) {
        match node {
            Node::Dir(_) => self.nodes.insert_dir(path, node),
            _ => self.nodes.insert(path, node),
        }
    }

    /// The directory at `path`, which `ensure_dir` made.
    pub(super) fn dir_mut(&mut self, path: &RelPath) -> &mut DirNode {
        match self.nodes.get_mut(path) {
            Some(Node::Dir(dir)) => dir,
            _ => unreachable!("callers make the directory first"),
        }
    }

    pub(super) fn insert_file(
        &mut self,
        path: &RelPath,
        meta: Meta,
        mtime: Mtime,
        size: u64,
        content: ContentDigest,
    ) {
        let group = self.files.len().try_into().expect("the limits of an archive are far lower");
        let (Mtime { secs, nanos }, meta) = (mtime, self.metas.place_of(meta));
        self.files.push(FileNode { content, size, secs, nanos, meta });
        self.insert(path, Node::File { group });
    }

    /// Takes out `path` and all below it, in order.
    pub(super) fn remove_all(&mut self, path: &RelPath) -> Vec<(RelPath, Node)> {
        self.nodes.remove_all(path)
    }

    pub(super) fn dirs_deepest_first(&self) -> impl Iterator<Item = (RelPath, &DirNode)> {
        self.nodes.in_order().into_iter().rev().filter_map(|place| match self.nodes.at(place) {
            Some(Node::Dir(dir)) => Some((self.nodes.path(place), &**dir)),
            _ => None,
        })
    }

    /// The diff, implied directories that may show a lower one, and devices that are not in the directory.
    pub(super) fn into_diff(mut self) -> Result<(LayerDiff, Vec<RelPath>, Vec<RelPath>), ListingError> {
        let (mut implied, mut absent) = (Vec::new(), Vec::new());
        let mut diff = LayerDiff::default();
        self.nodes.forget_index();
        let mut first_of: Vec<Option<Place>> = vec![None; self.files.len()];
        for place in self.nodes.in_order() {
            let Some(node) = self.nodes.take(place) else { continue };
            let path = self.nodes.path(place);
            let (change, mtime) = match node {
                Node::Whiteout => (Change::Whiteout, Mtime::default()),
                Node::Dir(dir) => {
                    let DirNode { meta, mtime, opaque, is_implied } = *dir;
                    if is_implied && !opaque && path.is_root() {
                        continue;
                    }
                    if is_implied {
                        implied.push(path.clone());
                    }
                    (Change::Dir { meta, opaque }, mtime)
                }
                Node::File { group } => {
                    let FileNode { content, size, secs, nanos, meta } = self.files[group as usize];
                    // The first name of a group, in order of paths, is the file; the others are links to it.
                    let change = match first_of[group as usize] {
                        Some(first) => Change::Hardlink { target: self.nodes.path(first) },
                        None => {
                            first_of[group as usize] = Some(place);
                            Change::File { meta: self.metas.0[meta as usize].clone(), size, content }
                        }
                    };
                    (change, Mtime { secs, nanos })
                }
                Node::Special(special) => {
                    let Special { meta, mtime, kind } = *special;
                    let change = match kind {
                        SpecialKind::Symlink { target } => Change::Symlink { meta, target },
                        SpecialKind::Device { major, minor, is_block, is_absent } => {
                            if is_absent {
                                absent.push(path.clone());
                            }
                            if is_block {
                                Change::BlockDevice { meta, major, minor }
                            } else {
                                Change::CharDevice { meta, major, minor }
                            }
                        }
                        SpecialKind::Fifo => Change::Fifo { meta },
                    };
                    (change, mtime)
                }
            };
            diff.push(&DiffEntry { path, change, mtime })?;
        }
        Ok((diff, implied, absent))
    }
}
