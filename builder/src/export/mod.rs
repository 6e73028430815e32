//! Finished images leave the build here: local store, OCI layout, registry.

pub mod archive;
mod blobs;
pub mod oci_layout;
pub mod registry;
pub mod store;
