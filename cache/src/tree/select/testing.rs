//! What tests want of a selection: all of it.

use super::{SelectError, Selected, Selections, SelectionsError};
use crate::scratch::Scratch;
use crate::tree::{NodeStore, Tree};

/// Everything that a source selects.
pub(crate) fn select(
    tree: &Tree,
    nodes: &dyn NodeStore,
    source: &[u8],
) -> Result<Vec<Selected>, SelectError> {
    let mut list = Selections::new(&Scratch::for_test());
    super::select(tree, nodes, source, &mut list)?;
    Ok(list.iter().collect::<Result<_, SelectionsError>>()?)
}

/// A list of these.
pub(crate) fn list(items: &[Selected]) -> Selections {
    let mut list = Selections::new(&Scratch::for_test());
    items.iter().try_for_each(|item| list.push(item)).unwrap();
    list
}
