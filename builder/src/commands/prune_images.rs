//! `rbuild image prune`: names go, and with them what nothing else uses.

use std::path::Path;

use rbuild_cache::gc::Policy;
use rbuild_cache::store::Store;

use super::space::{self, Place};
use super::stored::{self, Images, Named};
use crate::cli::ImagePruneRequest;
use crate::error::BuildError;
use crate::host::Host;
use crate::report::human;
use crate::settings::Settings;
use crate::timestamp;

/// Asks, removes, and says what is gone and how much that gave.
pub(super) fn run(
    request: &ImagePruneRequest,
    settings: Settings,
    root: Option<&Path>,
) -> Result<(), BuildError> {
    let what = match request.all {
        true => "all images: rbuild runs no containers that could use them",
        false => "all dangling images",
    };
    if !request.force && !space::confirm(what) {
        return Ok(());
    }
    let host = Host::open(settings, root)?;
    let is_any = !going(&host.store, &Images::load(&host.store)?, request)?.is_empty();
    let place = Place::of(&host);
    drop(host);
    let mut freed = 0;
    if is_any {
        let collector = place.collector()?;
        remove(&place.open()?, request)?;
        // Build cache stays: `rbuild prune` is for that.
        let policy = Policy { unreferenced_only: true, ..Policy::default() };
        freed = collector.run(&policy)?.freed_bytes;
    }
    super::print(&format!("Total reclaimed space: {}\n", human::size_precise(freed)))
}

/// Takes names and says so, also when it cannot take all of them; false when there was none to take. Only under the
/// collector's lock: who cannot get that must not have taken any.
pub(super) fn remove(store: &Store, request: &ImagePruneRequest) -> Result<bool, BuildError> {
    let mut lines = Vec::new();
    let removed = remove_each(store, request, &mut lines);
    if !lines.is_empty() {
        super::print(&format!("Deleted Images:\n{}\n", lines.concat()))?;
    }
    removed.map(|()| !lines.is_empty())
}

fn remove_each(
    store: &Store,
    request: &ImagePruneRequest,
    lines: &mut Vec<String>,
) -> Result<(), BuildError> {
    let images = Images::load(store)?;
    let mut going = going(store, &images, request)?;
    // All names of an image above the line that says it is gone.
    going.sort_by_key(|named| images.names_of(named.record.config).next().map(|first| &first.raw));
    for (at, named) in going.iter().enumerate() {
        // Somebody else may have removed it meanwhile.
        if store.remove_image(&named.raw)? && named.reference.is_some() {
            lines.push(format!("untagged: {}\n", named.familiar()));
        }
        let is_last = images
            .names_of(named.record.config)
            .all(|other| going[..=at].iter().any(|gone| gone.raw == other.raw));
        if is_last {
            // A stand-in from before the image had a name must not bring it back.
            store.remove_image(&named.record.config.to_string())?;
            lines.push(format!("deleted: {}\n", named.record.config));
        }
    }
    Ok(())
}

/// Names that may go.
fn going<'a>(
    store: &Store,
    images: &'a Images,
    request: &ImagePruneRequest,
) -> Result<Vec<&'a Named>, BuildError> {
    let mut going = Vec::new();
    for named in &images.all {
        let is_candidate = request.all || named.reference.is_none();
        if is_candidate && meets(store, named, request)? {
            going.push(named);
        }
    }
    Ok(going)
}

fn meets(store: &Store, named: &Named, request: &ImagePruneRequest) -> Result<bool, BuildError> {
    let limit = request.until.map(|until| until.unix_ns(timestamp::unix_ns()));
    if limit.is_some_and(|limit| named.record.created_unix_ns >= limit) {
        return Ok(false);
    }
    if request.labels.is_empty() {
        return Ok(true);
    }
    let labels = stored::config(store, &named.record)?.config.labels;
    Ok(request.labels.iter().all(|filter| {
        let found = labels.get(&filter.key);
        let has = found.is_some_and(|found| filter.value.as_ref().is_none_or(|value| value == found));
        has != filter.is_negated
    }))
}
