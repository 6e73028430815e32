//! `rbuild images`.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rbuild_cache::store::{ImageRecord, Store};
use rbuild_oci::Reference;

use crate::cli::ImagesRequest;
use crate::error::BuildError;
use crate::host::Host;
use crate::report::human;
use crate::settings::Settings;

/// Prints the table, or one id a line.
pub(super) fn run(
    request: &ImagesRequest,
    settings: Settings,
    root: Option<&Path>,
) -> Result<(), BuildError> {
    let host = Host::open(settings, root)?;
    super::print(&render(&host.store, request, SystemTime::now())?)
}

fn render(store: &Store, request: &ImagesRequest, now: SystemTime) -> Result<String, BuildError> {
    let mut rows: Vec<(Reference, ImageRecord)> = store
        .images()?
        .into_iter()
        .filter_map(|(name, record)| Some((name.parse::<Reference>().ok()?, record)))
        .filter(|(reference, _)| is_wanted(request, reference))
        .collect();
    // Newest first, as Docker lists them.
    rows.sort_by(|(a, x), (b, y)| y.created_unix_ns.cmp(&x.created_unix_ns).then_with(|| a.cmp(b)));
    let id = |record: &ImageRecord| match (request.no_trunc, record.config) {
        (true, id) => id.to_string(),
        (false, id) => id.short(),
    };
    if request.quiet {
        let mut ids: Vec<String> = Vec::new();
        for (_, record) in &rows {
            let id = id(record);
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        return Ok(ids.iter().map(|id| format!("{id}\n")).collect());
    }
    let mut table: Vec<Vec<String>> = vec![
        vec!["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"].into_iter().map(str::to_owned).collect(),
    ];
    if request.digests {
        table[0].insert(2, "DIGEST".to_owned());
    }
    for (reference, record) in &rows {
        let mut row = vec![
            reference.familiar_name(),
            reference.tag().unwrap_or("<none>").to_owned(),
            id(record),
            created(record, now),
            human::size(record.size_bytes),
        ];
        if request.digests {
            row.insert(2, record.manifest.map_or_else(|| "<none>".to_owned(), |digest| digest.to_string()));
        }
        table.push(row);
    }
    Ok(columns(&table))
}

fn is_wanted(request: &ImagesRequest, reference: &Reference) -> bool {
    request.name.as_ref().is_none_or(|name| {
        name.name() == reference.name() && (name.tag().is_none() || name.tag() == reference.tag())
    })
}

/// Age of the image, as Docker prints it.
fn created(record: &ImageRecord, now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let secs = u64::try_from(record.created_unix_ns / 1_000_000_000).unwrap_or(0);
    // Docker shows nothing useful before 2000 either: such times stand for «no time».
    if secs < 946_684_800 {
        return "N/A".to_owned();
    }
    format!("{} ago", human::duration(Duration::from_secs(now.as_secs().saturating_sub(secs))))
}

/// Columns as wide as their widest cell, three blanks between them, none at the end.
fn columns(table: &[Vec<String>]) -> String {
    let count = table.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|at| {
            table
                .iter()
                .filter_map(|row| row.get(at))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
                .max(7)
        })
        .collect();
    let mut text = String::new();
    for row in table {
        let line: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        text.push_str(line.join("   ").trim_end());
        text.push('\n');
    }
    text
}
