//! Selections without some of what is in them.

use super::Selected;
use crate::path::RelPath;
use crate::scratch::Scratch;
use crate::tree::{
    DEPTH_MAX, DirReader, EncodedNode, Entry, Kind, NodeDigest, NodeStore, NodeStoreError, NodeWriter,
    TreeError,
};

/// What becomes of one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// It stays. What is in a directory is asked about one by one.
    Yes,
    /// A directory stays if something in it does.
    ForItsContents,
    /// It goes, with all below it.
    No,
}

/// Why a selection cannot be pruned.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// Nodes could not be read or kept.
    #[error(transparent)]
    Nodes(#[from] NodeStoreError),
    /// Links could not be read or kept.
    #[error(transparent)]
    Links(#[from] TreeError),
    /// Directories nest deeper than [`DEPTH_MAX`].
    #[error("`{0}` is nested deeper than {DEPTH_MAX} directories")]
    TooDeep(RelPath),
}

/// One directory on the way.
struct Open<'a> {
    path: RelPath,
    /// Name and entry that the parent gets, and whether it does so for an empty one too.
    entry: Entry,
    keep_empty: bool,
    /// Entries still to look at.
    left: DirReader<'a>,
    out: NodeWriter,
}

/// Takes out of a selected directory what `keep` refuses; it is asked with paths relative to the directory and whether
/// they are directories. Anything else that is selected stays as it is.
///
/// New nodes are put into `made`. `keep` is asked again about the names of files that have several, and must say the same.
pub fn prune(
    selected: &mut Selected,
    nodes: &dyn NodeStore,
    made: &dyn NodeStore,
    keep: &dyn Fn(&RelPath, bool) -> Keep,
    scratch: &Scratch,
) -> Result<(), PruneError> {
    let Kind::Dir(digest) = selected.entry.kind else { return Ok(()) };
    let open = |path: RelPath, entry: Entry, keep_empty: bool, digest: &NodeDigest| {
        let left = DirReader::open(nodes, digest)?;
        Ok::<_, NodeStoreError>(Open { path, entry, keep_empty, left, out: NodeWriter::new() })
    };
    let mut put = |node: EncodedNode| made.put_nodes(&[node]);
    let mut stack = vec![open(RelPath::root(), selected.entry.clone(), true, &digest)?];
    while let Some(dir) = stack.last_mut() {
        let Some((name, entry)) = dir.left.next()? else {
            let done = stack.pop().expect("just looked at");
            let is_empty = done.out.is_empty();
            let digest = done.out.finish(&mut put)?;
            match stack.last_mut() {
                None => selected.entry.kind = Kind::Dir(digest),
                Some(parent) if done.keep_empty || !is_empty => {
                    let entry = Entry { kind: Kind::Dir(digest), ..done.entry };
                    parent.out.entry(done.path.name(), &entry, &mut put)?;
                }
                Some(_) => {}
            }
            continue;
        };
        let path = dir.path.join(name);
        match (&entry.kind, keep(&path, matches!(entry.kind, Kind::Dir(_)))) {
            (_, Keep::No) => {}
            (Kind::Dir(digest), verdict) => {
                let (digest, entry) = (*digest, entry.clone());
                if stack.len() >= DEPTH_MAX {
                    return Err(PruneError::TooDeep(path));
                }
                stack.push(open(path, entry, verdict == Keep::Yes, &digest)?);
            }
            (_, Keep::ForItsContents) => {}
            (_, Keep::Yes) => dir.out.entry(name, entry, &mut put)?,
        }
    }
    let (mut names, mut firsts) = (KeptDirs::new(keep), KeptDirs::new(keep));
    selected.links.remove(
        nodes,
        made,
        scratch,
        |path| !names.has_kept(path),
        |path| !firsts.has_kept(path),
    )?;
    Ok(())
}

/// What `keep` said of the directories that lead to the last path: those that lead to the next are mostly the same.
struct KeptDirs<'a> {
    keep: &'a dyn Fn(&RelPath, bool) -> Keep,
    /// Lengths of the paths of the directories that stay, outermost first.
    dirs: Vec<usize>,
    /// That of the first one that goes.
    gone: Option<usize>,
    last: RelPath,
}

impl<'a> KeptDirs<'a> {
    fn new(keep: &'a dyn Fn(&RelPath, bool) -> Keep) -> Self {
        Self { keep, dirs: Vec::new(), gone: None, last: RelPath::root() }
    }

    /// True for a file that stays, and so do the directories that lead to it.
    fn has_kept(&mut self, file: &RelPath) -> bool {
        self.go_to(file);
        self.gone.is_none() && (self.keep)(file, false) == Keep::Yes
    }

    fn go_to(&mut self, file: &RelPath) {
        let (path, last) = (file.as_bytes(), self.last.as_bytes());
        let shared = path.iter().zip(last).take_while(|(a, b)| a == b).count();
        // A directory leads to both when the `/` after it is shared, too.
        let leads = |len: usize| len < shared;
        let still = self.dirs.partition_point(|len| leads(*len));
        self.dirs.truncate(still);
        self.gone = self.gone.filter(|len| leads(*len));
        let known = self.dirs.last().map_or(0, |len| len + 1);
        if self.gone.is_none() {
            let ends = path[known..].iter().enumerate().filter(|(_, byte)| **byte == b'/');
            for end in ends.map(|(at, _)| known + at) {
                let dir = RelPath::of_clean(path[..end].to_vec());
                if (self.keep)(&dir, true) == Keep::No {
                    self.gone = Some(end);
                    break;
                }
                self.dirs.push(end);
            }
        }
        self.last.clone_from(file);
    }
}
