//! Finished images leave the build here: local store, OCI layout, registry. `outputs` says which.

pub mod archive;
mod blobs;
pub mod oci_layout;
pub mod outputs;
pub mod preflight;
pub mod registry;
pub mod store;
