//! What differs between two trees.

use super::{
    DEPTH_MAX, DirReader, Entry, Kind, NodeDigest, NodeStore, NodeStoreError, Tree, TreeError, Walk,
};
use crate::path::RelPath;

/// One path at which two trees differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeChange {
    /// Where.
    pub path: RelPath,
    /// What the first tree has.
    pub old: Option<Entry>,
    /// What the second tree has.
    pub new: Option<Entry>,
}

/// Lists what differs from `old` to `new`, sorted by path; subtrees with equal digests are not loaded.
///
/// A directory in both trees is listed only when its metadata differs, never for what is in it. A removed directory
/// is one change; an added one is listed with everything below. Hardlink groups are compared by the caller
/// ([`Tree::links`]): they belong to no single path.
pub fn difference<'a>(nodes: &'a dyn NodeStore, old: &Tree, new: &Tree) -> Difference<'a> {
    let roots =
        TreeChange { path: RelPath::root(), old: Some(old.root_entry()), new: Some(new.root_entry()) };
    Difference { nodes, roots: Some(roots), open: Vec::new(), added: None }
}

/// Changes one after the other, see [`difference`]: only the directories on the way to the next one are held. None comes
/// after an error.
pub struct Difference<'a> {
    nodes: &'a dyn NodeStore,
    /// The roots, until they were compared.
    roots: Option<TreeChange>,
    /// The directories on the way to what comes next.
    open: Vec<BothDirs<'a>>,
    /// The directory that is being added, before all else.
    added: Option<Added<'a>>,
}

/// A directory of both trees.
struct BothDirs<'a> {
    path: RelPath,
    old: DirReader<'a>,
    new: DirReader<'a>,
}

/// A directory of the second tree alone.
struct Added<'a> {
    path: RelPath,
    /// What the first tree has in its place, until it was listed.
    old: Option<Entry>,
    left: Walk<'a>,
}

impl Difference<'_> {
    fn step(&mut self) -> Result<Option<TreeChange>, TreeError> {
        loop {
            if let Some(added) = &mut self.added {
                if let Some(change) = added.next()? {
                    return Ok(Some(change));
                }
                self.added = None;
            }
            let Some(pair) = self.next_pair()? else { return Ok(None) };
            match (&pair.old, &pair.new) {
                (
                    Some(Entry { meta: old_meta, kind: Kind::Dir(old) }),
                    Some(Entry { meta: new_meta, kind: Kind::Dir(new) }),
                ) => {
                    if self.open.len() >= DEPTH_MAX {
                        return Err(TreeError::TooDeep { path: pair.path });
                    }
                    if old != new {
                        self.open.push(BothDirs::open(self.nodes, pair.path.clone(), old, new)?);
                    }
                    if old_meta != new_meta {
                        return Ok(Some(pair));
                    }
                }
                (_, Some(entry @ Entry { kind: Kind::Dir(_), .. })) => {
                    let left = Walk::of(self.nodes, entry.clone());
                    self.added = Some(Added { path: pair.path, old: pair.old, left });
                }
                _ => return Ok(Some(pair)),
            }
        }
    }

    /// The next path at which the open directories differ.
    fn next_pair(&mut self) -> Result<Option<TreeChange>, NodeStoreError> {
        if let Some(roots) = self.roots.take() {
            return Ok((roots.old != roots.new).then_some(roots));
        }
        while let Some(dirs) = self.open.last_mut() {
            if let Some(pair) = dirs.next()? {
                return Ok(Some(pair));
            }
            self.open.pop();
        }
        Ok(None)
    }
}

impl Iterator for Difference<'_> {
    type Item = Result<TreeChange, TreeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            self.added = None;
            self.open.clear();
        }
        step.transpose()
    }
}

impl<'a> BothDirs<'a> {
    fn open(
        nodes: &'a dyn NodeStore,
        path: RelPath,
        old: &NodeDigest,
        new: &NodeDigest,
    ) -> Result<Self, NodeStoreError> {
        Ok(Self { path, old: DirReader::open(nodes, old)?, new: DirReader::open(nodes, new)? })
    }

    /// The next name that they do not have alike. Parts that both have are not loaded.
    fn next(&mut self) -> Result<Option<TreeChange>, NodeStoreError> {
        let Self { path, old: a, new: b } = self;
        loop {
            while a.next_part().is_some() && a.next_part() == b.next_part() {
                a.skip();
                b.skip();
            }
            a.fill()?;
            b.fill()?;
            let (one, other) = (a.peek(), b.peek());
            let Some(name) = one.into_iter().chain(other).map(|(name, _)| name).min() else {
                return Ok(None);
            };
            let [old, new] = [one, other].map(|next| next.filter(|(at, _)| *at == name).map(|(_, it)| it));
            let (is_old, is_new) = (old.is_some(), new.is_some());
            let pair = (old != new).then(|| TreeChange {
                path: path.join(name),
                old: old.cloned(),
                new: new.cloned(),
            });
            if is_old {
                a.pass();
            }
            if is_new {
                b.pass();
            }
            if pair.is_some() {
                return Ok(pair);
            }
        }
    }
}

impl Added<'_> {
    fn next(&mut self) -> Result<Option<TreeChange>, TreeError> {
        let Some((below, entry)) = self.left.next().transpose()? else { return Ok(None) };
        // The first one is the directory itself.
        Ok(Some(TreeChange {
            path: super::below(&self.path, &below),
            old: self.old.take(),
            new: Some(entry),
        }))
    }
}

#[cfg(test)]
mod tests;
