//! `rbuild push`.

use std::path::Path;
use std::sync::Arc;

use rbuild_cache::store::ImageRecord;
use rbuild_registry::Client;

use super::packed;
use crate::cancel::Cancel;
use crate::cli::{Env, PushRequest};
use crate::error::BuildError;
use crate::export;
use crate::host::Host;
use crate::progress::{Events, Outcome};
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
    let client = Client::new(host.settings.registry.clone())?;
    let env = Arc::new(super::pull::plain_env(host, events, cancel, client.clone())?);
    let vertex = events.vertex(format!("pushing {}", request.name.familiar()));
    events.started(vertex);
    let set = packed::set(&env, &record).await?;
    let names = [request.name.clone()];
    super::unless_canceled(
        cancel,
        export::registry::push(&client, &host.store, &set, &names, events, vertex),
    )
    .await?;
    events.finished(vertex, Outcome::Done);
    let root = set.root();
    if record.digest() != Some(root.digest) && set.index.is_none() {
        host.store.put_image(&name, &ImageRecord { manifest: Some(root.digest), ..record })?;
    }
    Ok(if request.quiet {
        format!("{name}\n")
    } else {
        format!("{}: digest: {} size: {}\n", request.name.tag_or_latest(), root.digest, root.bytes.len())
    })
}
