//! Merkle trees of filesystem states.

mod node;

pub use node::{
    ContentDigest, DirNode, Entry, Kind, Meta, NodeDigest, NodeStore, NodeStoreError, TreeDigest,
};
