//! Build contexts: finding the Dockerfile and ignore files, scanning directories, fetching what is elsewhere.

pub mod absent;
pub mod epoch;
pub mod files;
pub mod list;
pub mod remarks;
pub mod remote;
pub mod scan;
mod secrets;
pub mod stdin;
pub mod wanted;

use rbuild_cache::tree::{DirNode, EncodedNode, NodeDigest, NodeStore, NodeStoreError};

use crate::ops::ExecEnv;
use crate::ops::copy::Origin;
use crate::ops::select::Selection;

pub use scan::ScannedContext;

/// Directory nodes for planning a copy: those of a context and of pruned selections are at hand, everything else is
/// in the store.
pub fn nodes_of<'a>(
    env: &'a ExecEnv,
    origin: &'a Origin,
    selection: Option<&'a Selection>,
) -> impl NodeStore + 'a {
    let context = match origin {
        Origin::Context(context) | Origin::Added { context: Some(context), .. } => Some(&*context.nodes),
        Origin::Added { context: None, .. } | Origin::Stage(_) | Origin::Inline => None,
    };
    let at_hand = [context, selection.map(|selection| &*selection.pruned as &dyn NodeStore)];
    Layered { at_hand, env }
}

struct Layered<'a> {
    at_hand: [Option<&'a dyn NodeStore>; 2],
    env: &'a ExecEnv,
}

impl NodeStore for Layered<'_> {
    fn node(&self, digest: &NodeDigest) -> Result<DirNode, NodeStoreError> {
        for nodes in self.at_hand.into_iter().flatten() {
            match nodes.node(digest) {
                Err(NodeStoreError::Missing(_)) => {}
                found => return found,
            }
        }
        self.env.store.node(digest)
    }

    fn put_nodes(&self, nodes: &[EncodedNode]) -> Result<(), NodeStoreError> {
        self.env.store.put_nodes(nodes)
    }
}
