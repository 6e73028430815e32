//! The newest time in a state: what `SOURCE_DATE_EPOCH=NAME` stands for.

use rbuild_cache::copy::FileSource;
use rbuild_cache::path::RelPath;
use rbuild_cache::tree::{Kind, NodeStore, Tree, TreeError};

use crate::error::StepFailure;

/// Seconds since the epoch of the newest file; `None` when none has a time. Those of a commit are the commit's, that of a
/// file from a web server is what the server says, those of an archive are its members'. Directories do not count: who
/// unpacks makes some of them.
pub fn newest(
    tree: &Tree,
    nodes: &dyn NodeStore,
    files: &dyn FileSource,
) -> Result<Option<i64>, StepFailure> {
    let mut newest = 0;
    for entry in tree.walk(nodes, &RelPath::root()).map_err(TreeError::from)? {
        let (path, entry) = entry?;
        if !matches!(entry.kind, Kind::Dir(_)) {
            newest = newest.max(files.mtime(&path)?.secs);
        }
    }
    Ok((newest > 0).then_some(newest))
}
