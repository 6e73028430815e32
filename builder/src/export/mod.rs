//! Finished images leave the build here: local store, OCI layout, registry, Docker
//! engine, plain files. `outputs` says which.

pub mod ahead;
pub mod archive;
mod blobs;
pub mod engine;
pub mod files;
pub mod oci_layout;
pub mod outputs;
pub(crate) mod place;
pub mod preflight;
pub mod registry;
mod statements;
pub mod store;

use std::sync::Arc;

use crate::assemble::manifest::{LayerBlob, PackedImage};
use crate::assemble::passing;
use crate::build::ended;
use crate::error::BuildError;
use crate::ops::ExecEnv;
use crate::ops::download::{self, RemoteLayer};
use crate::progress::Outcome;

/// Brings in what of these images was left at registries, and makes what is not here: what holds whole images needs their
/// blobs.
pub(crate) async fn bring_in(env: &Arc<ExecEnv>, images: &[PackedImage]) -> Result<(), BuildError> {
    let layers = || images.iter().flat_map(|image| &image.layers);
    fetch(env, layers().filter_map(LayerBlob::remote).collect()).await?;
    for layer in layers() {
        passing::make(env, layer, false).await?;
    }
    Ok(())
}

/// The same for these layers.
pub(crate) async fn fetch(env: &Arc<ExecEnv>, layers: Vec<RemoteLayer>) -> Result<(), BuildError> {
    let mut missing: Vec<RemoteLayer> = Vec::new();
    for layer in layers {
        let is_new = missing.iter().all(|other| other.blob.digest != layer.blob.digest);
        if is_new && env.store.blob(&layer.blob.digest)?.is_none() {
            missing.push(layer);
        }
    }
    let Some(first) = missing.first() else { return Ok(()) };
    let vertex = env.events.vertex(format!("fetching layers of {}", first.from.familiar()));
    env.events.started(vertex);
    let kept = download::keep(env, &missing, vertex).await.map_err(BuildError::from);
    ended(&env.events, vertex, kept)?;
    env.events.finished(vertex, Outcome::Done);
    Ok(())
}
