//! `rbuild push`.

use std::path::Path;
use std::sync::Arc;

use rbuild_cache::layer::DEFAULT_GZIP;
use rbuild_oci::ImageConfig;
use rbuild_registry::Client;

use crate::assemble::manifest::pack;
use crate::assemble::{BuiltImage, ImageLayer};
use crate::cancel::Cancel;
use crate::cli::{Env, PushRequest};
use crate::error::BuildError;
use crate::export;
use crate::host::Host;
use crate::progress::{Events, Outcome};
use crate::resolve::CONFIG_BYTES_MAX;
use crate::settings::Settings;

/// Pushes an image of the store to the registry its name says.
pub(super) fn run(
    request: &PushRequest,
    settings: Settings,
    root: Option<&Path>,
    env: &Env,
) -> Result<(), BuildError> {
    let host = Host::open(settings, root)?;
    super::announce_default_tag(request.default_tag, request.quiet)?;
    super::with_progress(request.quiet, env, async |events, cancel| {
        push(request, &host, events, cancel).await
    })
}

async fn push(
    request: &PushRequest,
    host: &Host,
    events: &Events,
    cancel: &Cancel,
) -> Result<String, BuildError> {
    let name = request.name.to_string();
    let record = host.store.image(&name)?.ok_or_else(|| BuildError::NoSuchImage(request.name.familiar()))?;
    let config_bytes = host
        .store
        .blob_bytes(&record.config, CONFIG_BYTES_MAX)?
        .ok_or_else(|| BuildError::NoSuchImage(request.name.familiar()))?;
    let config: ImageConfig = serde_json::from_slice(&config_bytes)
        .map_err(|source| crate::resolve::ResolveError::Config { reference: name.clone(), source })?;
    let client = Client::new(host.settings.registry.clone())?;
    let env = Arc::new(super::pull::plain_env(host, events, cancel, client.clone())?);
    let mut layers = Vec::with_capacity(record.layers.len());
    for (id, diff_id) in record.layers.iter().zip(&record.diff_ids) {
        let info = host.store.layer(*id)?.ok_or_else(|| BuildError::LayerVanished(id.to_string()))?;
        let size = info.tar.map_or(0, |(_, bytes)| bytes);
        // A pulled layer has a blob that some registry made: it is pushed as it is.
        layers.push(ImageLayer { id: *id, diff_id: *diff_id, size, is_base: true });
    }
    let image = BuiltImage { config, config_bytes, id: record.config, layers, base: None, clamp: None };
    let vertex = events.vertex(format!("pushing {}", request.name.familiar()));
    events.started(vertex);
    let packed = Arc::new(pack(&env, image, DEFAULT_GZIP).await?);
    let names = [request.name.clone()];
    super::unless_canceled(
        cancel,
        export::registry::push(&client, &host.store, &packed, &names, events, vertex),
    )
    .await?;
    events.finished(vertex, Outcome::Done);
    host.store
        .put_image(&name, &rbuild_cache::store::ImageRecord { manifest: Some(packed.digest), ..record })?;
    Ok(if request.quiet {
        format!("{name}\n")
    } else {
        format!(
            "{}: digest: {} size: {}\n",
            request.name.tag_or_latest(),
            packed.digest,
            packed.manifest.len()
        )
    })
}
