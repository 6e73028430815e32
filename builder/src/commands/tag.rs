//! `rbuild tag`.

use super::stored::Images;
use crate::cli::TagRequest;
use crate::error::BuildError;
use crate::host::Host;

/// Names the image once more. Says nothing, as docker does not.
pub(super) fn run(request: &TagRequest, host: &Host) -> Result<(), BuildError> {
    let images = Images::load(&host.store)?;
    let found = images.find(&request.source)?.named();
    host.store.put_image(&request.target.to_string(), &found.record)?;
    // The stand-in for a name has done its duty.
    host.store.remove_image(&found.record.config.to_string())?;
    Ok(())
}
