//! `rbuild images`.

use std::cmp::Ordering;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rbuild_cache::store::{ImageRecord, Store};
use rbuild_cache::tree::select::Pattern;
use rbuild_oci::Reference;
use serde_json::{Value, json};

use super::stored::{self, Images, Named};
use super::{ImageError, image_tree};
use crate::cli::{ImageFilter, ImagesRequest};
use crate::error::BuildError;
use crate::host::Host;
use crate::report::human;
use crate::settings::Settings;
use crate::template::{Column, Format, Shape};
use crate::timestamp;

const TABLE: &str = "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}";
const TABLE_WITH_DIGESTS: &str =
    "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}";

pub(super) const COLUMNS: [Column; 10] = [
    Column { field: "Containers", heading: "CONTAINERS" },
    Column { field: "CreatedAt", heading: "CREATED AT" },
    Column { field: "CreatedSince", heading: "CREATED" },
    Column { field: "Digest", heading: "DIGEST" },
    Column { field: "ID", heading: "IMAGE ID" },
    Column { field: "Repository", heading: "REPOSITORY" },
    Column { field: "SharedSize", heading: "SHARED SIZE" },
    Column { field: "Size", heading: "SIZE" },
    Column { field: "Tag", heading: "TAG" },
    Column { field: "UniqueSize", heading: "UNIQUE SIZE" },
];

pub(super) const ROW: Shape = Shape::Struct(&[
    ("Containers", Shape::Text),
    ("CreatedAt", Shape::Text),
    ("CreatedSince", Shape::Text),
    ("Digest", Shape::Text),
    ("ID", Shape::Text),
    ("Repository", Shape::Text),
    ("SharedSize", Shape::Text),
    ("Size", Shape::Text),
    ("Tag", Shape::Text),
    ("UniqueSize", Shape::Text),
]);

/// Prints the table, or one id a line.
pub(super) fn run(
    request: &ImagesRequest,
    settings: Settings,
    root: Option<&Path>,
) -> Result<(), BuildError> {
    let table = if request.digests { TABLE_WITH_DIGESTS } else { TABLE };
    let format = Format::parse(&request.format, table).map_err(ImageError::from)?;
    let host = Host::open(settings, root)?;
    let images = Images::load(&host.store)?;
    let mut wanted = filtered(&host.store, &images, request)?;
    // Newest first, as Docker lists them.
    wanted.sort_by(|a, b| newest_first(a, b));
    if request.tree {
        return super::print(&image_tree::render(&host.store, &wanted)?);
    }
    super::print(&render(&wanted, request, &format, SystemTime::now())?)
}

fn render(
    images: &[&Named],
    request: &ImagesRequest,
    format: &Format,
    now: SystemTime,
) -> Result<String, BuildError> {
    // A template of one's own wins over -q, as in docker; and an image has a line for each of its names.
    if request.quiet && matches!(&*request.format, "" | "table") {
        return Ok(images.iter().map(|named| id(&named.record, request.no_trunc) + "\n").collect());
    }
    let rows: Vec<Value> = images.iter().map(|named| row(named, request.no_trunc, now)).collect();
    Ok(format.render(&COLUMNS, &rows, &ROW).map_err(ImageError::from)?)
}

fn id(record: &ImageRecord, whole: bool) -> String {
    if whole { record.config.to_string() } else { record.config.short() }
}

pub(super) fn row(named: &Named, no_trunc: bool, now: SystemTime) -> Value {
    let none = || "<none>".to_owned();
    let record = &named.record;
    let seconds = record.created_unix_ns.div_euclid(1_000_000_000);
    let at = timestamp::rfc3339(seconds, 0).replace('T', " ").replace('Z', " +0000 UTC");
    json!({
        "Containers": "N/A",
        "CreatedAt": at,
        "CreatedSince": age(seconds, now),
        "Digest": record.digest().map_or_else(none, |digest| digest.to_string()),
        "ID": id(record, no_trunc),
        "Repository": named.reference.as_ref().map_or_else(none, Reference::familiar_name),
        "SharedSize": "N/A",
        "Size": human::size(record.size_bytes),
        "Tag": named.reference.as_ref().and_then(Reference::tag).map_or_else(none, str::to_owned),
        "UniqueSize": "N/A",
    })
}

/// The images that meet the name and all filters; of several `reference` filters, one is enough.
fn filtered<'a>(
    store: &Store,
    images: &'a Images,
    request: &ImagesRequest,
) -> Result<Vec<&'a Named>, BuildError> {
    let created =
        |text: &str| -> Result<i64, ImageError> { Ok(images.find(text)?.named().record.created_unix_ns) };
    let (mut before, mut since) = (i64::MAX, i64::MIN);
    let mut patterns: Vec<&str> = Vec::new();
    for filter in &request.filters {
        match filter {
            ImageFilter::Before(image) => before = before.min(created(image)?),
            ImageFilter::Since(image) => since = since.max(created(image)?),
            ImageFilter::Until(moment) => before = before.min(moment.unix_ns(timestamp::unix_ns())),
            ImageFilter::Reference(pattern) => patterns.push(pattern),
            ImageFilter::Dangling(_) | ImageFilter::Label(..) => {}
        }
    }
    let mut wanted = Vec::new();
    for named in &images.all {
        let created = named.record.created_unix_ns;
        let is_named = request.name.as_deref().is_none_or(|name| matches(named, name));
        let is_matched = patterns.is_empty() || patterns.iter().any(|pattern| matches(named, pattern));
        if !is_named || !is_matched || created >= before || created <= since && since != i64::MIN {
            continue;
        }
        if meets(store, named, &request.filters)? {
            wanted.push(named);
        }
    }
    Ok(wanted)
}

/// The filters that look at one image alone.
fn meets(store: &Store, named: &Named, filters: &[ImageFilter]) -> Result<bool, BuildError> {
    let mut labels = None;
    for filter in filters {
        let is_met = match filter {
            ImageFilter::Dangling(wanted) => {
                named.reference.as_ref().and_then(Reference::tag).is_none() == *wanted
            }
            ImageFilter::Label(key, value) => {
                if labels.is_none() {
                    labels = Some(stored::config(store, &named.record)?.config.labels);
                }
                let found = labels.as_ref().and_then(|labels| labels.get(key));
                found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
            }
            _ => true,
        };
        if !is_met {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a name or pattern means this image: the whole name, or the repository alone.
fn matches(named: &Named, pattern: &str) -> bool {
    let Some(reference) = &named.reference else { return false };
    if let Ok(wanted) = pattern.parse::<Reference>() {
        return wanted.name() == reference.name()
            && (wanted.tag().is_none() || wanted.tag() == reference.tag())
            && (wanted.digest().is_none() || wanted.digest() == named.record.digest());
    }
    [reference.familiar(), reference.familiar_name()].iter().any(|name| is_like(pattern, name))
}

/// Go's `path.Match`: wildcards stay within a component.
fn is_like(pattern: &str, name: &str) -> bool {
    let (mut patterns, mut names) = (pattern.split('/'), name.split('/'));
    loop {
        match (patterns.next(), names.next()) {
            (None, None) => return true,
            (Some(pattern), Some(name)) => {
                if !Pattern::new(pattern.as_bytes()).is_ok_and(|pattern| pattern.matches(name.as_bytes())) {
                    return false;
                }
            }
            _ => return false,
        }
    }
}

/// Docker's order.
pub(super) fn newest_first(a: &Named, b: &Named) -> Ordering {
    let newest = b.record.created_unix_ns.cmp(&a.record.created_unix_ns);
    newest.then_with(|| a.reference.cmp(&b.reference))
}

/// Age at `now` of what was made at this Unix time, as Docker prints it.
pub(super) fn age(seconds: i64, now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = u64::try_from(seconds).unwrap_or(0);
    // Docker shows nothing useful before 2000 either: such times stand for «no time».
    if seconds < 946_684_800 {
        return "N/A".to_owned();
    }
    format!("{} ago", human::duration(Duration::from_secs(now.as_secs().saturating_sub(seconds))))
}

#[cfg(test)]
mod tests {
    use rbuild_oci::Digest;

    use super::*;

    fn named(name: &str, created: i64) -> Named {
        let config = Digest::of(name.as_bytes());
        let record = ImageRecord {
            config,
            layers: Vec::new(),
            diff_ids: Vec::new(),
            manifest: name.contains("me/").then(|| Digest::of(b"manifest")),
            index: None,
            others: Vec::new(),
            absent: None,
            platform: "linux/amd64".into(),
            size_bytes: 29_541_000,
            created_unix_ns: created * 1_000_000_000,
        };
        let reference: Option<Reference> = name.parse().ok();
        let raw = reference.as_ref().map_or_else(|| config.to_string(), ToString::to_string);
        Named { raw, reference, record }
    }

    fn request(format: &str) -> ImagesRequest {
        ImagesRequest {
            name: None,
            quiet: false,
            no_trunc: false,
            digests: false,
            filters: Vec::new(),
            format: format.to_owned(),
            tree: false,
        }
    }

    #[track_caller]
    fn show(request: &ImagesRequest, table: &str) -> String {
        let images =
            [named("me/app:1.0", 1_767_225_600), named("busybox:latest", 0), named("", 1_767_000_000)];
        let now = UNIX_EPOCH + Duration::from_secs(1_767_225_600 + 7200);
        let format = Format::parse(&request.format, table).unwrap();
        render(&images.iter().collect::<Vec<_>>(), request, &format, now).unwrap()
    }

    #[test]
    fn the_table_looks_like_docker_s() {
        insta::assert_snapshot!(show(&request(""), TABLE));
        insta::assert_snapshot!(show(&request(""), TABLE_WITH_DIGESTS));
    }

    #[test]
    fn formats_and_quiet_print_lines() {
        insta::assert_snapshot!(show(&request("{{.Repository}}:{{.Tag}}"), TABLE));
        insta::assert_snapshot!(show(&request(r"table {{.ID}}\t{{.CreatedAt}}"), TABLE));
        insta::assert_snapshot!(show(&request("json"), TABLE));
        insta::assert_snapshot!(show(&ImagesRequest { quiet: true, ..request("") }, TABLE));
    }

    #[test]
    fn names_and_patterns_match_repositories_and_tags() {
        let image = named("me/app:1.0", 0);
        for pattern in ["me/app", "me/app:1.0", "docker.io/me/app", "me/*", "*/app", "me/app:1.*", "m?/app*"]
        {
            assert!(matches(&image, pattern), "{pattern}");
        }
        for pattern in ["me", "app", "me/app:2", "*", "me/app:*2", "[", "me/app/x"] {
            assert!(!matches(&image, pattern), "{pattern}");
        }
        assert!(matches(&named("busybox:latest", 0), "busy*"));
    }
}
