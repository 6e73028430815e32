//! Giving directories an archive left out the metadata they have in the merged view.

use std::collections::{HashMap, HashSet};
use std::os::fd::BorrowedFd;

use super::super::diff::{Change, LayerDiff, Mtime};
use super::super::overlay::OverlayForm;
use super::create::Creator;
use super::{UnpackError, Unpacked};
use crate::path::RelPath;
use crate::scratch::Scratch;
use crate::tree::Meta;

/// Brings the implied directories of a layer in line with the layers below it.
///
/// An archive may list `usr/bin/tool` without `usr/bin`. In the layer directory `usr/bin` must exist, and overlayfs
/// shows the upper directory's owner and mode, so it must repeat those of the layers below. `lookup` gives the
/// metadata of the *directory* at a path in the layers below, `None` if there is no directory; it is asked for
/// directories that a lower one shows through, in order. Changes the directory and `unpacked.diff`, and empties
/// `unpacked.implied_dirs`. Call it as soon as the layers below are known, in any order of layers.
pub fn fix_implied(
    dir: BorrowedFd<'_>,
    form: OverlayForm,
    unpacked: &mut Unpacked,
    scratch: &Scratch,
    mut lookup: impl FnMut(&RelPath) -> Result<Option<(Meta, Mtime)>, Box<dyn std::error::Error + Send + Sync>>,
) -> Result<(), UnpackError> {
    let mut creator = Creator::new(dir, form)?;
    let mut found_dirs = HashMap::new();
    let mut opaque: HashSet<RelPath> = HashSet::new();
    if !unpacked.implied_dirs.is_empty() {
        for entry in &unpacked.diff {
            let entry = entry?;
            if matches!(entry.change, Change::Dir { opaque: true, .. }) {
                opaque.insert(entry.path);
            }
        }
    }
    // Deepest first: setting a directory's own metadata does not touch its parent's times, but a mode may lock us out.
    for path in std::mem::take(&mut unpacked.implied_dirs).into_iter().rev() {
        // It, or a directory above it, is opaque in this layer.
        if std::iter::successors(Some(path.clone()), RelPath::parent).any(|dir| opaque.contains(&dir)) {
            continue;
        }
        let found = lookup(&path).map_err(|source| UnpackError::Lookup { path: path.clone(), source })?;
        let Some((meta, mtime)) = found else { continue };
        creator.finish_dir(&path, &meta, false, mtime)?;
        found_dirs.insert(path, (meta, mtime));
    }
    if !found_dirs.is_empty() {
        let mut diff = LayerDiff::new(scratch);
        for entry in &unpacked.diff {
            let mut entry = entry?;
            if let Some((meta, mtime)) = found_dirs.remove(&entry.path) {
                (entry.change, entry.mtime) = (Change::Dir { meta, opaque: false }, mtime);
            }
            diff.push(&entry)?;
        }
        unpacked.diff = diff;
    }
    Ok(())
}
