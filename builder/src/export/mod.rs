//! Finished images leave the build here: local store, OCI layout, registry, Docker
//! engine, plain files. `outputs` says which.

pub mod archive;
mod blobs;
pub mod engine;
pub mod files;
pub mod oci_layout;
pub mod outputs;
pub mod preflight;
pub mod registry;
pub mod store;

use std::path::{Path, PathBuf};

/// A temporary name beside a file that is renamed to it when it is whole.
pub(crate) fn sibling(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.partial", std::process::id()))
}
