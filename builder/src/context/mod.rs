//! Build contexts: finding the Dockerfile and ignore files, scanning directories.

pub mod files;
pub mod scan;
pub mod wanted;

use std::sync::Arc;

use rbuild_cache::tree::{DirNode, NodeDigest, NodeStore, NodeStoreError};

use crate::ops::ExecEnv;
use crate::ops::copy::Origin;

pub use scan::ScannedContext;

/// Directory nodes for planning a copy: a context's own nodes live in memory, everything else in the store.
pub fn nodes_of<'a>(env: &'a ExecEnv, origin: &'a Origin) -> Box<dyn NodeStore + 'a> {
    match origin {
        Origin::Context(context) => Box::new(Layered { context, env }),
        Origin::Stage(_) | Origin::Inline => Box::new(env.store.clone()),
    }
}

struct Layered<'a> {
    context: &'a Arc<ScannedContext>,
    env: &'a ExecEnv,
}

impl NodeStore for Layered<'_> {
    fn node(&self, digest: &NodeDigest) -> Result<Arc<DirNode>, NodeStoreError> {
        match self.context.nodes.node(digest) {
            Err(NodeStoreError::Missing(_)) => self.env.store.node(digest),
            found => found,
        }
    }

    fn put_nodes(&self, nodes: &[(NodeDigest, Arc<DirNode>)]) -> Result<(), NodeStoreError> {
        self.env.store.put_nodes(nodes)
    }
}
