//! WORKDIR.

use super::view::{NewDirs, View};
use super::{CopyError, CopyPlan, FileSource};
use crate::layer::{LayerDiff, Mtime};
use crate::path::RelPath;
use crate::scratch::Scratch;
use crate::tree::{Kind, NodeStore, Tree};

/// Plans the directory of a WORKDIR: missing components are made 0755 with `owner`, existing ones stay as they are,
/// symlinks (dangling ones too) are followed inside the root. A layer with nothing but the root when it exists.
pub fn plan_workdir(
    nodes: &dyn NodeStore,
    parent: &Tree,
    parent_times: &dyn FileSource,
    path: &[u8],
    owner: (u32, u32),
    now: Mtime,
    scratch: &Scratch,
) -> Result<CopyPlan, CopyError> {
    let mut view = View::new(nodes, parent, scratch);
    let found = view.resolve(&RelPath::clamp(path))?;
    if !matches!(found.entry.kind, Kind::Dir(_)) {
        return Err(CopyError::NotDirectory { path: found.path });
    }
    view.make_dirs(&found, found.missing.len(), NewDirs { mode: 0o755, owner, now })?;
    view.finish(None, parent_times, now, LayerDiff::new(scratch))
}
