//! `rbuild push`.

use std::path::Path;
use std::sync::Arc;

use rbuild_cache::store::ImageRecord;
use rbuild_oci::Reference;
use rbuild_registry::Client;

use super::stored::{self, Images, Named};
use super::{ImageError, packed};
use crate::assemble::index::ImageSet;
use crate::cancel::Cancel;
use crate::cli::{Env, PushRequest};
use crate::error::BuildError;
use crate::export::registry::Push;
use crate::host::Host;
use crate::ops::ExecEnv;
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
    if !request.quiet {
        super::print(&format!("The push refers to repository [{}]\n", request.name.name()))?;
    }
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
    let client = Client::new(host.settings.registry.clone())?;
    let env = Arc::new(super::pull::plain_env(host, events, cancel, client.clone())?);
    let mut text = String::new();
    for name in names(request, host)? {
        text.push_str(&push_one(request, &name, host, &env, cancel).await?);
    }
    Ok(text)
}

/// The name, or every name of the repository that is here.
fn names(request: &PushRequest, host: &Host) -> Result<Vec<Reference>, BuildError> {
    if !request.all_tags {
        return Ok(vec![request.name.clone()]);
    }
    let names = tags_of(&request.name, host)?;
    match names.is_empty() {
        true => Err(ImageError::NoTags(request.name.familiar_name()).into()),
        false => Ok(names),
    }
}

/// Why an image that is not here cannot be pushed.
fn missing(name: &Reference, host: &Host) -> Result<BuildError, BuildError> {
    let similar = tags_of(name, host)?;
    let name = name.familiar();
    Ok(match similar.is_empty() {
        true => BuildError::NoSuchImage(name),
        false => {
            ImageError::NoSuchTag { name, similar: similar.iter().map(Reference::familiar).collect() }.into()
        }
    })
}

/// Every name of its repository that is here.
fn tags_of(name: &Reference, host: &Host) -> Result<Vec<Reference>, BuildError> {
    let is_meant = |other: &Reference| other.name() == name.name() && other.tag().is_some();
    let images = Images::load(&host.store)?.all.into_iter();
    Ok(images.filter_map(|named| named.reference).filter(is_meant).collect())
}

async fn push_one(
    request: &PushRequest,
    name: &Reference,
    host: &Host,
    env: &Arc<ExecEnv>,
    cancel: &Cancel,
) -> Result<String, BuildError> {
    let (client, events) = (&env.registry, &env.events);
    let stored = name.to_string();
    let Some(record) = host.store.image(&stored)? else { return Err(missing(name, host)?) };
    let vertex = events.vertex(format!("pushing {}", name.familiar()));
    events.started(vertex);
    let set = match &request.platform {
        None => packed::set(env, &record).await?,
        Some(wanted) => {
            let named = Named { raw: stored.clone(), reference: Some(name.clone()), record: record.clone() };
            let image = stored::for_platform(&named, Some(wanted))?;
            ImageSet::over(vec![packed::image(env, image).await?])
        }
    };
    let names = [name.clone()];
    let push = Push::new(client, env, names.to_vec()).under(vertex);
    super::unless_canceled(cancel, push.finish(&set, &names)).await?;
    events.finished(vertex, Outcome::Done);
    let root = set.root();
    if request.platform.is_none() && record.digest() != Some(root.digest) && set.index.is_none() {
        host.store.put_image(&stored, &ImageRecord { manifest: Some(root.digest), ..record })?;
    }
    Ok(if request.quiet {
        format!("{name}\n")
    } else {
        format!("{}: digest: {} size: {}\n", name.tag_or_latest(), root.digest, root.bytes.len())
    })
}
