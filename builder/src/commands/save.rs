//! `rbuild save`.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rbuild_cache::store::ImageRecord;
use rbuild_oci::{Platform, Reference};

use super::ImageError;
use super::packed;
use super::stored::{self, Found, Images};
use crate::cancel::Cancel;
use crate::cli::{Env, SaveRequest};
use crate::error::BuildError;
use crate::export;
use crate::export::archive::{self, SavedImage};
use crate::host::Host;
use crate::progress::{self, Display, Events, Mode};
use crate::settings::Settings;

/// Writes the archive; nothing of it is there when that fails.
pub(super) fn run(
    request: &SaveRequest,
    settings: Settings,
    root: Option<&Path>,
    env: &Env,
) -> Result<(), BuildError> {
    if request.output.is_none() && std::io::stdout().is_terminal() {
        return Err(ImageError::SaveToTerminal.into());
    }
    let host = Host::open(settings, root)?;
    let images = Images::load(&host.store)?;
    let wanted = wanted(&images, &request.names, request.platform.as_ref())?;
    let (events, consumer) = progress::start(Mode::Quiet, Display::stderr(env));
    let result = super::with_signals(async |cancel| save(&wanted, request, &host, &events, &cancel).await);
    drop(events);
    consumer.finish();
    result
}

/// Each image once, under the names that were asked for.
fn wanted(
    images: &Images,
    texts: &[String],
    platform: Option<&Platform>,
) -> Result<Vec<(ImageRecord, Vec<Reference>)>, ImageError> {
    let mut wanted: Vec<(ImageRecord, Vec<Reference>)> = Vec::new();
    let mut add = |record: &ImageRecord, name: Option<&Reference>| {
        let at = match wanted.iter().position(|(known, _)| known.config == record.config) {
            Some(at) => at,
            None => {
                wanted.push((record.clone(), Vec::new()));
                wanted.len() - 1
            }
        };
        // A name with a digest names no tag, which is all an archive can hold.
        if let Some(name) = name.filter(|name| name.tag().is_some())
            && !wanted[at].1.contains(name)
        {
            wanted[at].1.push(name.clone());
        }
    };
    for text in texts {
        let bare = text.parse::<Reference>().ok().filter(|r| r.tag().is_none() && r.digest().is_none());
        let mut is_repository = false;
        for named in &images.all {
            let is_in = |name: &&Reference| bare.as_ref().is_some_and(|bare| bare.name() == name.name());
            if let Some(name) = named.reference.as_ref().filter(is_in) {
                is_repository = true;
                add(stored::for_platform(named, platform)?, Some(name));
            }
        }
        if !is_repository {
            match images.find(text)? {
                Found::Name(named) => add(stored::for_platform(named, platform)?, named.reference.as_ref()),
                // Asked for by id, an image has no name in the archive.
                Found::Digest(named) | Found::Id(named) => add(stored::for_platform(named, platform)?, None),
            }
        }
    }
    Ok(wanted)
}

async fn save(
    wanted: &[(ImageRecord, Vec<Reference>)],
    request: &SaveRequest,
    host: &Host,
    events: &Events,
    cancel: &Cancel,
) -> Result<(), BuildError> {
    let client = rbuild_registry::Client::new(host.settings.registry.clone())?;
    let env = Arc::new(super::pull::plain_env(host, events, cancel, client)?);
    let mut saved = Vec::with_capacity(wanted.len());
    for (record, names) in wanted {
        let set = packed::set(&env, record).await?;
        super::unless_canceled(cancel, export::bring_in(&env, &set.images)).await?;
        saved.push(SavedImage::set(set, record.config, names.clone()));
    }
    let (output, worker, switch) = (request.output.clone(), Arc::clone(&env), cancel.clone());
    let written = tokio::task::spawn_blocking(move || match &output {
        Some(path) => archive::write_file(&worker.store, &saved, path, &switch),
        None => archive::write(&worker.store, &saved, std::io::stdout().lock(), &switch),
    });
    let result = match written.await {
        Ok(result) => result,
        Err(join) => std::panic::resume_unwind(join.into_panic()),
    };
    let path = request.output.clone().unwrap_or_else(|| PathBuf::from("-"));
    Ok(result.map_err(|source| ImageError::Save { path, source })?)
}
