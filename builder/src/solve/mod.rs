//! Solves a build graph: what is cached is taken, what is not is executed, independent steps at the same time.
//!
//! 0. [`pin`] asks web servers and repositories what they have: those leaves are keyed by their content.
//! 1. [`plan`] computes every node's [`DefKey`](keys) in topological order and walks down from the targets; a hit ends
//!    the walk there, so nothing below it is looked at, pulled or read.
//! 2. [`run`] starts one task for each node that is left. A task waits for its inputs' results, asks the cache by
//!    content, and only then takes the key's lock, looks again and executes.
//!
//! The first failure throws the build's [`Cancel`](crate::cancel::Cancel): running steps are killed, waiting ones end
//! as canceled, and the call returns when nothing of the build runs any more.

pub mod keys;
pub mod mounted;
pub mod pin;
pub mod plan;
pub mod reuse;
pub mod run;
pub mod whole;

use std::sync::Arc;

use rbuild_cache::store::LayerId;
use rbuild_cache::tree::Tree;

use crate::resolve::BaseImage;

/// The result of one node.
#[derive(Debug, Clone)]
pub struct Solved {
    /// Its filesystem state; with `below`, what `stack` alone makes of nothing.
    pub tree: Tree,
    /// Layers that make the state, base first. May be shorter than an image's layer list only for scratch.
    pub stack: Vec<LayerId>,
    /// The image whose layers are below `stack` and were left where they are: nothing in this build reads its files (see
    /// [`whole`]).
    pub below: Option<Arc<BaseImage>>,
}

impl Solved {
    /// A state all of whose layers are here.
    pub fn whole(tree: Tree, stack: Vec<LayerId>) -> Self {
        Self { tree, stack, below: None }
    }
}
