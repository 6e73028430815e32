//! Build contexts: finding the Dockerfile and ignore files, scanning directories, fetching what is elsewhere.

pub mod absent;
pub mod counted;
pub mod epoch;
pub mod files;
pub mod list;
pub mod remarks;
pub mod remote;
pub mod scan;
mod secrets;
pub mod stdin;
pub mod wanted;

use rbuild_cache::store::Store;
use rbuild_cache::tree::{DirNode, EncodedNode, NodeDigest, NodeStore, NodeStoreError, SpilledNodeStore};

use crate::ops::copy::Origin;

pub use scan::ScannedContext;

/// Directory nodes for planning a copy: those of a context and of pruned selections are at hand, everything else is
/// in the store.
pub fn nodes_of<'a>(
    store: &'a Store,
    origin: &'a Origin,
    pruned: Option<&'a SpilledNodeStore>,
) -> impl NodeStore + 'a {
    let context = match origin {
        Origin::Context(context) | Origin::Added { context: Some(context), .. } => Some(&*context.nodes),
        Origin::Added { context: None, .. } | Origin::Stage(_) | Origin::Inline => None,
    };
    Layered { at_hand: [context, pruned.map(|pruned| pruned as &dyn NodeStore)], store }
}

struct Layered<'a> {
    at_hand: [Option<&'a dyn NodeStore>; 2],
    store: &'a Store,
}

impl NodeStore for Layered<'_> {
    fn node(&self, digest: &NodeDigest) -> Result<DirNode, NodeStoreError> {
        for nodes in self.at_hand.into_iter().flatten() {
            match nodes.node(digest) {
                Err(NodeStoreError::Missing(_)) => {}
                found => return found,
            }
        }
        self.store.node(digest)
    }

    fn put_nodes(&self, nodes: &[EncodedNode]) -> Result<(), NodeStoreError> {
        self.store.put_nodes(nodes)
    }
}
