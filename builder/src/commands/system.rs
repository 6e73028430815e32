//! `rbuild system`: Docker's summary of what the store holds, and everything given back at once.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rbuild_cache::gc::{self, Collected, DiskUsage, Policy};
use rbuild_cache::store::{LayerId, Store};
use rbuild_oci::Digest;
use serde_json::{Value, json};

use super::images::newest_first;
use super::space::Place;
use super::stored::{Images, Named};
use super::{ImageError, images, prune_images, space};
use crate::cli::{SystemDfRequest, SystemPruneRequest};
use crate::error::BuildError;
use crate::host::Host;
use crate::report::human;
use crate::settings::Settings;
use crate::template::{Column, Format, Shape, Template};
use crate::timestamp;

const TABLE: &str = "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}";

const COLUMNS: [Column; 5] = [
    Column { field: "Type", heading: "TYPE" },
    Column { field: "TotalCount", heading: "TOTAL" },
    Column { field: "Active", heading: "ACTIVE" },
    Column { field: "Size", heading: "SIZE" },
    Column { field: "Reclaimable", heading: "RECLAIMABLE" },
];

const ROW: Shape = Shape::Struct(&[
    ("Type", Shape::Text),
    ("TotalCount", Shape::Text),
    ("Active", Shape::Text),
    ("Size", Shape::Text),
    ("Reclaimable", Shape::Text),
]);

/// Asks, removes images and build cache, and says what is gone and how much that gave.
///
/// Build cache is judged by `until` alone: with a filter on labels, which it has none of, it stays.
pub(super) fn prune(
    request: &SystemPruneRequest,
    settings: Settings,
    root: Option<&Path>,
) -> Result<(), BuildError> {
    let images = &request.images;
    let what = match images.all {
        true => "all images and all build cache",
        false => "all dangling images and all build cache that no image uses",
    };
    if !images.force && !space::confirm(what) {
        return Ok(());
    }
    let place = Place::of(&Host::open(settings, root)?);
    let collector = place.collector()?;
    let has_removed = prune_images::remove(&place.open()?, images)?;
    let now = timestamp::unix_ns();
    let age_ns = images.until.map_or(0, |until| now.saturating_sub(until.unix_ns(now)));
    let policy = Policy {
        keep: Duration::from_nanos(u64::try_from(age_ns).unwrap_or(0)),
        all: images.all,
        unreferenced_only: !images.labels.is_empty(),
        ..Policy::default()
    };
    let collected = match policy.unreferenced_only && !has_removed {
        true => Collected::default(),
        false => collector.run(&policy)?,
    };
    super::print(&space::pruned(&collected))
}

const IMAGES: &str = "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.SharedSize}}\t{{.UniqueSize}}\t{{.Containers}}";

/// Prints the summary, or every image and object.
pub(super) fn df(
    request: &SystemDfRequest,
    settings: Settings,
    root: Option<&Path>,
) -> Result<(), BuildError> {
    let format = Format::parse(&request.format, TABLE).map_err(ImageError::from)?;
    // What -v shows is one value, not rows.
    let whole = match (request.verbose, &*request.format) {
        (false, _) | (true, "" | "table") => None,
        (true, "json") => Some(Template::parse("{{json .}}").map_err(ImageError::from)?),
        (true, text) => Some(Template::parse(text).map_err(ImageError::from)?),
    };
    let host = Host::open(settings, root)?;
    let usage = gc::usage(&host.store)?;
    let images = Images::load(&host.store)?;
    let text = match request.verbose {
        true => verbose(&host.store, &images, &usage, whole.as_ref())?,
        false => {
            let rows = rows(&host.store, &images, &usage)?;
            format.render(&COLUMNS, &rows, &ROW).map_err(ImageError::from)?
        }
    };
    super::print(&text)
}

/// All that -v shows, for templates.
const WHOLE: Shape = Shape::Struct(&[
    ("Images", Shape::List(&images::ROW)),
    ("Containers", Shape::List(&Shape::Any)),
    ("Volumes", Shape::List(&Shape::Any)),
    ("BuildCache", Shape::List(&Shape::Any)),
]);

/// Docker's four lines. Containers and volumes are not rbuild's business, and scripts look for their lines.
fn rows(store: &Store, images: &Images, usage: &DiskUsage) -> Result<Vec<Value>, BuildError> {
    let held = layers_of(store, images)?;
    let image_bytes: u64 = held.values().map(|layer| layer.bytes).sum();
    let count = distinct(images).len();
    let cache = usage.entries.iter().filter(|entry| entry.is_reclaimable).count();
    let row = |kind: &str, total: usize, active: usize, size: u64, free: u64| {
        let share = (free * 100).checked_div(size).map(|percent| format!(" ({percent}%)"));
        let share = share.unwrap_or_default();
        json!({
            "Active": active.to_string(),
            "Reclaimable": format!("{}{share}", human::size_precise(free)),
            "Size": human::size_precise(size),
            "TotalCount": total.to_string(),
            "Type": kind,
        })
    };
    let reclaimable = usage.reclaimable_bytes();
    Ok(vec![
        // Nothing runs here, so every image could go.
        row("Images", count, 0, image_bytes, image_bytes),
        row("Containers", 0, 0, 0, 0),
        row("Local Volumes", 0, 0, 0, 0),
        row("Build Cache", cache, 0, reclaimable, reclaimable),
    ])
}

/// A layer and how many images hold it.
struct Held {
    bytes: u64,
    images: usize,
}

fn distinct(images: &Images) -> BTreeMap<Digest, &Named> {
    // The first name of several.
    images.all.iter().rev().map(|named| (named.record.config, named)).collect()
}

fn layers_of(store: &Store, images: &Images) -> Result<BTreeMap<LayerId, Held>, BuildError> {
    let mut held: BTreeMap<LayerId, Held> = BTreeMap::new();
    for named in distinct(images).values() {
        for id in named.record.all_layers() {
            if let Some(known) = held.get_mut(&id) {
                known.images += 1;
                continue;
            }
            let bytes = store.layer(id)?.map_or(0, |info| info.size_bytes);
            held.insert(id, Held { bytes, images: 1 });
        }
    }
    Ok(held)
}

fn verbose(
    store: &Store,
    images: &Images,
    usage: &DiskUsage,
    whole: Option<&Template>,
) -> Result<String, BuildError> {
    let now = SystemTime::now();
    let held = layers_of(store, images)?;
    // As in docker, an image has one line, with its first name; newest first.
    let mut shown: Vec<&Named> = distinct(images).into_values().collect();
    shown.sort_by(|a, b| newest_first(a, b));
    let rows: Vec<Value> = shown
        .into_iter()
        .map(|named| {
            let of = |shared: bool| {
                let layers = named.record.all_layers().filter_map(|id| held.get(&id));
                layers.filter(|layer| (layer.images > 1) == shared).map(|layer| layer.bytes).sum::<u64>()
            };
            let mut row = images::row(named, whole.is_some(), now);
            row["SharedSize"] = json!(human::size_precise(of(true)));
            row["UniqueSize"] = json!(human::size_precise(of(false)));
            if whole.is_none() {
                row["Size"] = json!(human::size_precise(named.record.size_bytes));
            }
            row["Containers"] = json!("0");
            row
        })
        .collect();
    if let Some(whole) = whole {
        let cache: Vec<Value> = usage.entries.iter().map(space::json_value).collect();
        let value = json!({"Images": rows, "Containers": [], "Volumes": [], "BuildCache": cache});
        return Ok(whole.render(&value, &WHOLE).map_err(ImageError::from)? + "\n");
    }
    let format = Format::parse("", IMAGES).map_err(ImageError::from)?;
    let mut text = String::from("Images space usage:\n\n");
    text.push_str(&format.render(&images::COLUMNS, &rows, &images::ROW).map_err(ImageError::from)?);
    text.push_str("\nContainers space usage:\n\nCONTAINER ID   IMAGE     COMMAND   LOCAL VOLUMES   SIZE      CREATED   STATUS    NAMES\n");
    text.push_str("\nLocal Volumes space usage:\n\nVOLUME NAME   LINKS     SIZE\n");
    let reclaimable = human::size_precise(usage.reclaimable_bytes());
    text.push_str(&format!("\nBuild cache usage: {reclaimable}\n\n"));
    text.push_str(&space::table(&usage.entries, now));
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_no_part_of_the_count() {
        // Two names of one image are one image.
        let record = |content: &str| rbuild_cache::store::ImageRecord {
            config: Digest::of(content.as_bytes()),
            layers: Vec::new(),
            diff_ids: Vec::new(),
            manifest: None,
            index: None,
            others: Vec::new(),
            absent: None,
            platform: "linux/amd64".into(),
            size_bytes: 0,
            created_unix_ns: 0,
        };
        let named = |name: &str, content: &str| Named {
            raw: name.to_owned(),
            reference: name.parse().ok(),
            record: record(content),
        };
        let images = Images { all: vec![named("a:1", "x"), named("b:1", "x"), named("c:1", "y")] };
        assert_eq!(distinct(&images).len(), 2);
    }
}
