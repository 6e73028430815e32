//! `rbuild version`.

use rbuild_cache::layer::DEFAULT_GZIP;

use crate::error::BuildError;

/// Prints the version and what decides the bytes of compressed layers.
pub(super) fn run() -> Result<(), BuildError> {
    super::print(&format!(
        "rbuild {}\nlayer compression: {}\n",
        env!("CARGO_PKG_VERSION"),
        DEFAULT_GZIP.params(),
    ))?;
    Ok(())
}
