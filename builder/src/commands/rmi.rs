//! `rbuild rmi`: names go here; layers and blobs are the collector's.

use std::path::Path;
use std::process::ExitCode;

use rbuild_cache::store::{ImageRecord, Store};
use rbuild_oci::Reference;

use super::stored::{self, Found, Images, Named};
use super::{ImageError, image};
use crate::cli::{Env, RmiRequest};
use crate::error::BuildError;
use crate::failure;
use crate::host::Host;
use crate::settings::Settings;

/// Removes what can be removed, and prints one line per name and image that is gone.
pub(super) fn run(request: &RmiRequest, settings: Settings, root: Option<&Path>, env: &Env) -> ExitCode {
    let host = match Host::open(settings, root) {
        Ok(host) => host,
        Err(error) => return failure::print(&error, None, env),
    };
    let mut errors = Vec::new();
    for name in &request.names {
        match remove(&host.store, name, request) {
            Ok(()) => {}
            // Forced, what is not there is as it should be; docker says so and succeeds.
            Err(error @ BuildError::Image(ImageError::NoSuchImage { .. })) if request.force => {
                failure::print(&error, None, env);
            }
            Err(error) => errors.push(error),
        }
    }
    image::report(&errors, env)
}

fn remove(store: &Store, text: &str, request: &RmiRequest) -> Result<(), BuildError> {
    let images = Images::load(store)?;
    let found = images.find(text)?;
    if let Some(platform) = &request.platform {
        let gone = stored::for_platform(found.named(), Some(platform))?;
        if !found.named().record.others.is_empty() {
            return remove_platform(store, &images, found, gone);
        }
    }
    let force = request.force;
    let record = &found.named().record;
    let all: Vec<&Named> = images.names_of(record.config).collect();
    let mut going: Vec<&Named> = match found {
        Found::Name(named) => vec![named],
        Found::Digest(_) => images.at_digest(text).collect(),
        Found::Id(_) => {
            let mut repositories: Vec<String> =
                all.iter().filter_map(|named| Some(named.reference.as_ref()?.name())).collect();
            repositories.dedup();
            if repositories.len() > 1 && !force {
                let names: Vec<String> = all.iter().map(|named| named.familiar()).collect();
                let id = record.config.short();
                return Err(ImageError::SeveralRepositories { id, names: names.join(", ") }.into());
            }
            all.clone()
        }
    };
    // `name@digest` of a pull belongs to the repository's tags: it goes with the last of them.
    let stays = |going: &[&Named], named: &Named| going.iter().all(|gone| gone.raw != named.raw);
    let rest: Vec<&Named> = all.iter().copied().filter(|named| stays(&going, named)).collect();
    let only_digests = rest.iter().all(|named| {
        let same = |reference: &Reference| {
            reference.tag().is_none()
                && going
                    .iter()
                    .any(|gone| gone.reference.as_ref().is_some_and(|g| g.name() == reference.name()))
        };
        named.reference.as_ref().is_some_and(same)
    });
    if only_digests {
        going.extend(rest);
    }
    let mut text = String::new();
    for named in &going {
        // Somebody else may have removed it meanwhile.
        match store.remove_image(&named.raw) {
            Ok(true) if named.reference.is_some() => {
                text.push_str(&format!("Untagged: {}\n", named.familiar()));
            }
            Ok(_) => {}
            Err(error) => {
                // What is gone is told all the same.
                super::print(&text)?;
                return Err(error.into());
            }
        }
    }
    for line in repositories_gone(&all, &going) {
        text.push_str(&line);
    }
    if going.len() == all.len() {
        // A stand-in from before the image had a name must not bring it back.
        store.remove_image(&record.config.to_string())?;
        text.push_str(&format!("Deleted: {}\n", record.config));
    }
    super::print(&text)
}

/// Takes one image out of the several that a name (by id: every name of them) stands for.
///
/// The index named that image too, so it is not kept: a later push makes one of the images that are left.
fn remove_platform(
    store: &Store,
    images: &Images,
    found: Found<'_>,
    gone: &ImageRecord,
) -> Result<(), BuildError> {
    let main = found.named().record.config;
    let names: Vec<&Named> = match found {
        Found::Name(named) => vec![named],
        Found::Digest(_) | Found::Id(_) => images.names_of(main).collect(),
    };
    for named in names {
        let mut left: Vec<ImageRecord> =
            named.record.each().filter(|image| *image != gone).cloned().collect();
        for image in &mut left {
            (image.index, image.others) = (None, Vec::new());
        }
        if left.is_empty() {
            continue;
        }
        let mut record = left.remove(0);
        record.others = left;
        store.put_image(&named.raw, &record)?;
    }
    super::print(&format!("Deleted: {}\n", gone.config))
}

/// The `name@digest` lines of repositories that lost their last name of the image.
fn repositories_gone(all: &[&Named], going: &[&Named]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for gone in going {
        let (Some(reference), Some(digest)) = (&gone.reference, gone.record.digest()) else { continue };
        let is_left = all.iter().any(|named| {
            named.reference.as_ref().is_some_and(|r| r.name() == reference.name())
                && going.iter().all(|gone| gone.raw != named.raw)
        });
        let line = format!("Untagged: {}@{digest}\n", reference.familiar_name());
        // Pulled by digest, the name itself was that line.
        if !is_left && reference.digest().is_none() && !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines
        .retain(|line| !going.iter().any(|gone| line.trim_end().ends_with(&format!(" {}", gone.familiar()))));
    lines
}
