//! `rbuild save`.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rbuild_cache::layer::DEFAULT_GZIP;
use rbuild_cache::store::{ImageRecord, Store};
use rbuild_oci::{Document, ImageConfig, Reference, media_type};

use super::ImageError;
use super::stored::{Found, Images};
use crate::assemble::manifest::{LayerBlob, pack};
use crate::assemble::{BuiltImage, ImageLayer};
use crate::cancel::Cancel;
use crate::cli::{Env, SaveRequest};
use crate::error::BuildError;
use crate::export::archive::{self, SavedImage};
use crate::host::Host;
use crate::ops::ExecEnv;
use crate::progress::{self, Display, Events, Mode};
use crate::resolve::CONFIG_BYTES_MAX;
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
    let wanted = wanted(&images, &request.names)?;
    let (events, consumer) = progress::start(Mode::Quiet, Display::stderr(env));
    let result = super::with_signals(async |cancel| save(&wanted, request, &host, &events, &cancel).await);
    drop(events);
    consumer.finish();
    result
}

/// Each image once, under the names that were asked for.
fn wanted(images: &Images, texts: &[String]) -> Result<Vec<(ImageRecord, Vec<Reference>)>, ImageError> {
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
                add(&named.record, Some(name));
            }
        }
        if !is_repository {
            match images.find(text)? {
                Found::Name(named) => add(&named.record, named.reference.as_ref()),
                // Asked for by id, an image has no name in the archive.
                Found::Digest(named) | Found::Id(named) => add(&named.record, None),
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
        saved.push(packed(&env, record, names).await?);
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
    result.map_err(|source| BuildError::Export { path, source })
}

/// The image with its manifest as it was pulled when that is possible, so that its digest stays; else a new one.
async fn packed(
    env: &Arc<ExecEnv>,
    record: &ImageRecord,
    names: &[Reference],
) -> Result<SavedImage, BuildError> {
    let gone = || ImageError::Config(record.config.to_string());
    let config_bytes = env.store.blob_bytes(&record.config, CONFIG_BYTES_MAX)?.ok_or_else(gone)?;
    let config: ImageConfig = serde_json::from_slice(&config_bytes).map_err(|_| gone())?;
    let platform = config.platform.clone();
    let created = config.created.clone().unwrap_or_default();
    let names = names.to_vec();
    if let Some(Pulled { manifest, manifest_type, layers }) = as_pulled(&env.store, record)? {
        return Ok(SavedImage {
            manifest,
            manifest_type,
            config: config_bytes,
            layers,
            platform,
            created,
            names,
        });
    }
    let mut layers = Vec::with_capacity(record.layers.len());
    for (id, diff_id) in record.layers.iter().zip(&record.diff_ids) {
        let info = env.store.layer(*id)?.ok_or_else(|| BuildError::LayerVanished(id.to_string()))?;
        let size = info.tar.map_or(0, |(_, bytes)| bytes);
        layers.push(ImageLayer { id: *id, diff_id: *diff_id, size, is_base: true });
    }
    let image = BuiltImage { config, config_bytes, id: record.config, layers, base: None, clamp: None };
    let packed = pack(env, image, DEFAULT_GZIP).await?;
    Ok(SavedImage {
        manifest: packed.manifest,
        manifest_type: media_type::OCI_MANIFEST.to_owned(),
        config: packed.image.config_bytes,
        layers: packed.layers,
        platform,
        created,
        names,
    })
}

/// A manifest as somebody else wrote it, and the blobs it names.
struct Pulled {
    manifest: Vec<u8>,
    manifest_type: String,
    layers: Vec<LayerBlob>,
}

/// The recorded manifest, when the store has it and all its layers' blobs.
fn as_pulled(store: &Store, record: &ImageRecord) -> Result<Option<Pulled>, BuildError> {
    let Some(digest) = record.manifest else { return Ok(None) };
    let Some(bytes) = store.blob_bytes(&digest, Document::BYTES_MAX as u64)? else { return Ok(None) };
    let Ok(Document::Manifest(manifest)) = Document::parse(&bytes, None) else { return Ok(None) };
    let fits = manifest.config().digest().to_string() == record.config.to_string()
        && manifest.layers().len() == record.diff_ids.len();
    if !fits {
        return Ok(None);
    }
    let mut layers = Vec::with_capacity(record.diff_ids.len());
    for (descriptor, diff_id) in manifest.layers().iter().zip(&record.diff_ids) {
        let Ok(digest) = descriptor.digest().to_string().parse() else { return Ok(None) };
        if store.blob(&digest)?.is_none_or(|blob| blob.size != descriptor.size()) {
            return Ok(None);
        }
        layers.push(LayerBlob {
            diff_id: *diff_id,
            digest,
            size: descriptor.size(),
            media_type: descriptor.media_type().to_string(),
        });
    }
    let stated = manifest.media_type().as_ref().map(ToString::to_string);
    let manifest_type = stated.unwrap_or_else(|| media_type::OCI_MANIFEST.to_owned());
    Ok(Some(Pulled { manifest: bytes, manifest_type, layers }))
}
