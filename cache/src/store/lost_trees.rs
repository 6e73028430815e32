//! A store whose file of directory nodes is gone while the index is there.
//!
//! Results would name nodes that nothing has. They are forgotten, so that steps run again; images need no nodes.

use super::db::{Db, INDEX, TREES};
use super::error::StoreError;
use super::history::{self, GoneWhy};
use super::layout::Layout;

/// Forgets what names nodes when the file of nodes is gone; true when something was. Processes that find it gone at the same
/// time may forget what one of them has recorded since: that is made once more.
pub(super) fn forget(layout: &Layout, index: &Db, trees: &Db) -> Result<bool, StoreError> {
    if layout.exists(TREES.file) || !layout.exists(INDEX.file) {
        return Ok(false);
    }
    let forgotten = index.write_durably("forget what named lost trees", |transaction| {
        history::note_all_gone(transaction, GoneWhy::Damaged)?;
        let mut rows = 0;
        for table in ["results", "transitions", "chain_trees"] {
            rows += transaction.execute(&format!("DELETE FROM {table}"), [])?;
        }
        Ok(rows)
    })?;
    // The file is there from now on: an index without any results would be cleared at every start.
    trees.write("make the file of directory nodes", |_| Ok(()))?;
    Ok(forgotten > 0)
}
