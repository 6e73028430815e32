//! A private copy of a whole state, for where it cannot be mounted.

use super::{CopyError, CopyPlan, FileSource, Moved, Origin, Origins};
use crate::layer::{Change, DiffEntry, LayerDiff};
use crate::path::RelPath;
use crate::scratch::Scratch;
use crate::tree::{Kind, NodeStore, Tree};

/// Plans a copy of everything in `tree`, whose files are in `files` at their paths.
///
/// Names of one file become files of their own: written to under one name the others stay as they are, which is what
/// overlayfs does with them. Devices are left out: a copy is not mounted `nodev`.
pub fn plan_whole(
    nodes: &dyn NodeStore,
    tree: &Tree,
    files: &dyn FileSource,
    scratch: &Scratch,
) -> Result<CopyPlan, CopyError> {
    let in_place = Moved::new(RelPath::root(), RelPath::root());
    let mut plan =
        CopyPlan { diff: LayerDiff::new(scratch), origins: Origins::all(&Origin::Source(in_place)) };
    for item in tree.walk(nodes, &RelPath::root())? {
        let (path, entry) = item?;
        let meta = entry.meta;
        let change = match entry.kind {
            Kind::Dir(_) => Change::Dir { meta, opaque: false },
            Kind::File { size, content } => Change::File { meta, size, content },
            Kind::Symlink(target) => Change::Symlink { meta, target },
            Kind::Fifo => Change::Fifo { meta },
            Kind::CharDevice { .. } | Kind::BlockDevice { .. } => continue,
        };
        // The root's layer is not known, and nothing looks at its time.
        let mtime = if path.is_root() { Ok(Default::default()) } else { files.mtime(&path) };
        let mtime = mtime.map_err(|source| CopyError::Time { path: path.clone(), source })?;
        plan.diff.push(&DiffEntry { path, change, mtime })?;
    }
    Ok(plan)
}
