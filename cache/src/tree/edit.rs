//! A tree and a layer's diff give the next tree.

mod links;

use super::{
    Batch, DEPTH_MAX, DirReader, EMPTY_NODE, EncodedNode, Entry, Kind, Meta, NodeDigest, NodeStore,
    NodeStoreError, NodeWriter, Tree, TreeError, check_name, strip,
};
use crate::layer::{Change, DiffEntry, LayerDiff, ListingError};
use crate::path::RelPath;
use crate::scratch::Scratch;

impl Tree {
    /// Applies a layer's changes. Loads only directories that something changes in, and of large ones the parts; gives the
    /// store the new nodes as soon as there are some; on an error there may be some in it that no tree names.
    ///
    /// A changed or removed path leaves its hardlink group. A whiteout of what is not there changes nothing. A path
    /// whose directories are not listed in `diff` must have them in this tree.
    pub fn apply(
        &self,
        nodes: &dyn NodeStore,
        diff: &LayerDiff,
        scratch: &Scratch,
    ) -> Result<Self, TreeError> {
        let mut edit = Edit { nodes, open: vec![OpenDir::root(self)], made: Batch::new(nodes) };
        let mut last: Option<RelPath> = None;
        for entry in diff {
            let DiffEntry { path, change, .. } = entry?;
            if last.is_some_and(|last| last >= path) {
                return Err(TreeError::Unsorted { path });
            }
            edit.change(&path, change, diff)?;
            last = Some(path);
        }
        while edit.open.len() > 1 {
            edit.close()?;
        }
        let root = edit.open.pop().expect("the root is opened first and never closed");
        let meta = root.meta.clone();
        let node = edit.keep(root)?;
        let links = links::after(&self.links, nodes, diff, scratch, &mut edit.made)?;
        edit.made.put()?;
        Ok(Self { root: meta, node, links })
    }
}

/// A directory being edited.
struct OpenDir<'a> {
    path: RelPath,
    meta: Meta,
    base: NodeDigest,
    /// What it becomes; begun when the first change in it comes.
    next: Option<Next<'a>>,
}

/// The nodes that a directory becomes: changes come in the order of names, so they are written as these come.
struct Next<'a> {
    /// What was there before and has not been dealt with.
    before: DirReader<'a>,
    /// The entry that is next to be written: a directory changes yet when something in it does.
    last: Option<(Vec<u8>, Entry)>,
    out: NodeWriter,
}

impl<'a> OpenDir<'a> {
    fn root(tree: &Tree) -> Self {
        Self { path: RelPath::root(), meta: tree.root.clone(), base: tree.node, next: None }
    }

    fn next(&mut self, nodes: &'a dyn NodeStore) -> Result<&mut Next<'a>, TreeError> {
        if self.next.is_none() {
            let before = DirReader::open(nodes, &self.base)?;
            self.next = Some(Next { before, last: None, out: NodeWriter::new() });
        }
        Ok(self.next.as_mut().expect("filled just above"))
    }
}

impl Next<'_> {
    /// Goes on to a name, and gives what was there before; nothing once that has been dealt with.
    fn go_to(&mut self, name: &[u8], made: &mut Batch<'_>) -> Result<Option<Entry>, TreeError> {
        self.write_before(Some(name), made)?;
        let found = self.before.peek().filter(|(at, _)| *at == name).map(|(_, entry)| entry.clone());
        if found.is_some() {
            self.before.pass();
        }
        Ok(found)
    }

    /// Writes what is waiting, and what was there before up to a name or all of it. Parts that nothing changed in are
    /// taken over unread.
    fn write_before(&mut self, end: Option<&[u8]>, made: &mut Batch<'_>) -> Result<(), NodeStoreError> {
        let made = &mut |node| made.add(node);
        if let Some((name, entry)) = self.last.take() {
            self.out.entry(&name, &entry, made)?;
        }
        loop {
            while let Some((name, entry)) = self.before.peek()
                && end.is_none_or(|end| name < end)
            {
                self.out.entry(name, entry, made)?;
                self.before.pass();
            }
            let Some(part) = self.before.next_part() else { return Ok(()) };
            let is_whole = match end {
                Some(end) if *part.first > *end => return Ok(()),
                Some(end) => self.before.behind_next_part().is_some_and(|behind| behind <= end),
                None => true,
            };
            if is_whole && self.out.is_between_parts() {
                self.out.part(part.clone());
                self.before.skip();
            } else {
                self.before.fill()?;
            }
        }
    }
}

struct Edit<'a> {
    nodes: &'a dyn NodeStore,
    /// From the root to the directory of the last change.
    open: Vec<OpenDir<'a>>,
    made: Batch<'a>,
}

impl Edit<'_> {
    fn change(&mut self, path: &RelPath, change: Change, diff: &LayerDiff) -> Result<(), TreeError> {
        let unfit = |source| TreeError::Unfit { path: path.clone(), source };
        let Some(parent) = path.parent() else {
            let Change::Dir { meta, opaque } = change else { return Err(TreeError::RootReplaced) };
            super::codec::check_meta(&meta).map_err(unfit)?;
            let root = &mut self.open[0];
            root.meta = meta;
            if opaque {
                (root.base, root.next) = (*EMPTY_NODE, None);
            }
            return Ok(());
        };
        check_name(path.name()).map_err(unfit)?;
        self.enter(&parent, path)?;
        let nodes = self.nodes;
        let dir = self.open.last_mut().expect("the root is never closed by `enter`");
        let next = dir.next(nodes)?;
        let before = next.go_to(path.name(), &mut self.made)?;
        let (meta, kind) = match change {
            Change::Whiteout => return Ok(()),
            Change::Dir { meta, opaque } => {
                let node = match before {
                    Some(Entry { kind: Kind::Dir(node), .. }) if !opaque => node,
                    _ => *EMPTY_NODE,
                };
                (meta, Kind::Dir(node))
            }
            Change::Hardlink { target } => link_target(diff, path, &target)?
                .ok_or_else(|| TreeError::LinkTarget { path: path.clone(), target })?,
            Change::File { meta, size, content } => (meta, Kind::File { size, content }),
            Change::Symlink { meta, target } => (meta, Kind::Symlink(target)),
            Change::CharDevice { meta, major, minor } => (meta, Kind::CharDevice { major, minor }),
            Change::BlockDevice { meta, major, minor } => (meta, Kind::BlockDevice { major, minor }),
            Change::Fifo { meta } => (meta, Kind::Fifo),
        };
        let entry = Entry { meta, kind };
        entry.check().map_err(unfit)?;
        next.last = Some((path.name().to_vec(), entry));
        Ok(())
    }

    /// Makes `parent` the innermost open directory.
    fn enter(&mut self, parent: &RelPath, path: &RelPath) -> Result<(), TreeError> {
        while strip(parent, &self.open.last().expect("the root stays open").path).is_none() {
            self.close()?;
        }
        let open_depth = self.open.len() - 1;
        for name in parent.components().skip(open_depth) {
            let nodes = self.nodes;
            let dir = self.open.last_mut().expect("the root stays open");
            let at = dir.path.join(name);
            let next = dir.next(nodes)?;
            if next.last.as_ref().is_none_or(|(last, _)| last != name) {
                // It is not listed itself.
                next.last = next.go_to(name, &mut self.made)?.map(|entry| (name.to_vec(), entry));
            }
            let Some((_, Entry { meta, kind: Kind::Dir(base) })) = &next.last else {
                return Err(TreeError::ParentNotDirectory { path: path.clone(), parent: at });
            };
            let inner = OpenDir { path: at, meta: meta.clone(), base: *base, next: None };
            if self.open.len() > DEPTH_MAX {
                return Err(TreeError::TooDeep { path: path.clone() });
            }
            self.open.push(inner);
        }
        Ok(())
    }

    /// Finishes the innermost directory and puts its new digest into the one around it.
    fn close(&mut self) -> Result<(), TreeError> {
        let dir = self.open.pop().expect("only called with a directory below the root open");
        let node = self.keep(dir)?;
        let around = self.open.last_mut().and_then(|around| around.next.as_mut());
        if let Some((_, entry)) = around.and_then(|next| next.last.as_mut()) {
            entry.kind = Kind::Dir(node);
        }
        Ok(())
    }

    /// What a directory has become.
    fn keep(&mut self, dir: OpenDir<'_>) -> Result<NodeDigest, TreeError> {
        let Some(mut next) = dir.next else { return Ok(dir.base) };
        next.write_before(None, &mut self.made)?;
        // Often nothing came of the changes.
        let is_new = |node: &EncodedNode| node.digest() != dir.base;
        Ok(next.out.finish(&mut |node| if is_new(&node) { self.made.add(node) } else { Ok(()) })?)
    }
}

fn link_target(
    diff: &LayerDiff,
    path: &RelPath,
    target: &RelPath,
) -> Result<Option<(Meta, Kind)>, ListingError> {
    if target >= path {
        return Ok(None);
    }
    Ok(match diff.get(target)?.map(|entry| entry.change) {
        Some(Change::File { meta, size, content }) => Some((meta, Kind::File { size, content })),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
