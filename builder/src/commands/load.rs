//! `rbuild load`.

use std::fs::File;
use std::io::{IsTerminal as _, Read};
use std::path::Path;
use std::sync::Arc;

use rbuild_cache::store::ImageRecord;
use rbuild_oci::{Digest, Platform};
use rbuild_registry::Client;

use super::ImageError;
use crate::cancel::Cancel;
use crate::cli::{Env, LoadRequest};
use crate::error::BuildError;
use crate::export;
use crate::host::Host;
use crate::ops::{ExecEnv, image};
use crate::progress::{Events, Outcome};
use crate::resolve::BaseImage;
use crate::resolve::archive::{self, ArchivedImage};
use crate::settings::Settings;

/// Reads the archive; either all its images get their names, or none does.
pub(super) fn run(
    request: &LoadRequest,
    settings: Settings,
    root: Option<&Path>,
    env: &Env,
) -> Result<(), BuildError> {
    if request.input.is_none() && std::io::stdin().is_terminal() {
        return Err(ImageError::LoadFromTerminal.into());
    }
    // Before privileges change: the file is the user's to read.
    let input: Box<dyn Read + Send> = match &request.input {
        Some(path) => {
            Box::new(File::open(path).map_err(|source| ImageError::Open { path: path.clone(), source })?)
        }
        None => Box::new(std::io::stdin()),
    };
    let host = Host::open(settings, root)?;
    super::with_progress(request.quiet, env, async |events, cancel| {
        load(request, input, &host, events, cancel).await
    })
}

async fn load(
    request: &LoadRequest,
    input: Box<dyn Read + Send>,
    host: &Host,
    events: &Events,
    cancel: &Cancel,
) -> Result<String, BuildError> {
    let client = Client::new(host.settings.registry.clone())?;
    let wanted = request.platform.clone();
    let env = Arc::new(super::pull::plain_env(host, events, cancel, client)?);
    let vertex = events.vertex("reading the archive".to_owned());
    events.started(vertex);
    let (worker, switch) = (Arc::clone(&env), cancel.clone());
    let read = tokio::task::spawn_blocking(move || {
        archive::read(&worker.store, &worker.lease, input, wanted.as_ref(), &Platform::host(), &switch)
    });
    // Standard input may stay silent for ever: the switch must not wait for it.
    let images = tokio::select! {
        read = read => match read {
            Ok(images) => images.map_err(ImageError::from)?,
            Err(join) => std::panic::resume_unwind(join.into_panic()),
        },
        () = cancel.cancelled() => return Err(BuildError::Canceled),
    };
    events.finished(vertex, Outcome::Done);
    let mut records = Vec::new();
    let mut lines = String::new();
    for ArchivedImage { image, manifest, config, names, index, others } in images {
        let mut record = unpack(&env, image, manifest).await?;
        record.index = index;
        for other in others {
            record.others.push(unpack(&env, other.image, other.manifest).await?);
        }
        if names.is_empty() {
            lines.push_str(&format!("Loaded image ID: {config}\n"));
            // Named like no other image: by its id.
            records.push((config.to_string(), record));
            continue;
        }
        for name in names {
            lines.push_str(&format!("Loaded image: {}\n", name.familiar()));
            records.push((name.to_string(), record.clone()));
        }
    }
    let named: Vec<_> = records.iter().map(|(name, record)| (name.as_str(), record)).collect();
    host.store.put_images(&named)?;
    Ok(lines)
}

/// Unpacks one image; gives what its names will stand for.
async fn unpack(
    env: &Arc<ExecEnv>,
    image: BaseImage,
    manifest: Option<Digest>,
) -> Result<ImageRecord, BuildError> {
    let vertex = env.events.vertex(format!("unpacking {}", image.reference));
    env.events.started(vertex);
    let image = Arc::new(image);
    let solved = image::materialise(env, &image, vertex).await?;
    let record = export::store::record(&env.store, &env.lease, &image, &solved.stack)?;
    Ok(ImageRecord { manifest, ..record })
}
