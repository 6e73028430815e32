//! Errors that mean that files of the store are not what was written there.

use std::io::ErrorKind;

use rbuild_cache::copy::{MaterialiseError, PackLayerError, SourceError};
use rbuild_cache::layer::{CheckoutError, EmitError, EncodeError, FlattenError};
use rbuild_cache::store::LayerDirError;
use rbuild_cache::tree::NodeStoreError;

use crate::error::{BuildError, StepFailure};
use crate::export::files::FilesError;

/// True when a repair of the store helps, after which what is missing is made again.
pub(super) fn is_of_store(error: &BuildError) -> bool {
    match error {
        BuildError::Store(source) => source.is_damage(),
        BuildError::Files(FilesError::Archive { source, .. }) => in_state(source),
        BuildError::Files(FilesError::Directory { source: CheckoutError::Source(source), .. }) => {
            in_source(source)
        }
        BuildError::Step(step) => in_step(&step.failure),
        BuildError::Work(failure) => in_step(failure),
        _ => false,
    }
}

fn in_step(failure: &StepFailure) -> bool {
    match failure {
        StepFailure::Store(source) => source.is_damage(),
        StepFailure::Flatten(source) => in_state(source),
        StepFailure::Source(source) => in_source(source),
        StepFailure::Materialise(source) => in_copy(source),
        StepFailure::LayerDir(LayerDirError::Write { source, .. }) => in_copy(source),
        StepFailure::Encode(EncodeError::Source(source))
        | StepFailure::Pack(EncodeError::Source(PackLayerError::Emit(source))) => in_layer(source),
        StepFailure::Node(NodeStoreError::Missing(_) | NodeStoreError::Damaged(_)) => true,
        _ => false,
    }
}

fn in_state(error: &FlattenError) -> bool {
    matches!(error, FlattenError::Source(source) if in_source(source))
}

fn in_source(error: &SourceError) -> bool {
    matches!(error, SourceError::Damaged { .. })
}

fn in_copy(error: &MaterialiseError) -> bool {
    match error {
        MaterialiseError::Source { source, .. } => in_source(source),
        MaterialiseError::Damaged { .. } => true,
        _ => false,
    }
}

fn in_layer(error: &EmitError) -> bool {
    match error {
        EmitError::Changed { .. } => true,
        EmitError::Read { source, .. } => {
            matches!(source.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
        }
        _ => false,
    }
}
