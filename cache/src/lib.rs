//! The content-addressed store and the values it keeps.
//!
//! | module | for |
//! |---|---|
//! | [`tree`] | Merkle trees: the identity of a whole filesystem state, edits, look-ups, selections |
//! | [`layer`] | layer directories: unpack a tar, scan an upper directory, emit a tar, compress |
//! | [`copy`] | COPY and ADD planned on trees, and reading their sources |
//! | [`gc`] | giving space back |
//! | [`store`] | the directory on disk: index, blobs, layers, leases, locks |
//! | [`names`] | the names in a directory, sorted |
//! | [`scratch`], [`sorter`], [`digest_table`] | room for what is too much for memory |
//!
//! Knows nothing of Dockerfiles, processes or terminals.
#![forbid(unsafe_code)]

pub mod copy;
pub mod digest_table;
mod encoded;
pub mod gc;
mod held;
pub mod layer;
pub mod names;
pub mod path;
pub mod scratch;
pub mod sorter;
pub mod store;
pub mod tree;
