//! `rbuild rmi`: names go here; layers and blobs are the collector's.

use std::path::Path;
use std::process::ExitCode;

use rbuild_cache::store::Store;
use rbuild_oci::Reference;

use super::stored::{Found, Images, Named};
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
        match remove(&host.store, name, request.force) {
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

fn remove(store: &Store, text: &str, force: bool) -> Result<(), BuildError> {
    let images = Images::load(store)?;
    let found = images.find(text)?;
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
        if store.remove_image(&named.raw)? && named.reference.is_some() {
            text.push_str(&format!("Untagged: {}\n", named.familiar()));
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
