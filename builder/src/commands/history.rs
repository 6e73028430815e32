//! `rbuild history`.

use std::path::Path;
use std::time::SystemTime;

use rbuild_cache::store::{ImageRecord, Store};
use rbuild_oci::ImageConfig;
use serde_json::{Value, json};

use super::ImageError;
use super::images::age;
use super::stored::{self, Images};
use crate::cli::HistoryRequest;
use crate::error::BuildError;
use crate::host::Host;
use crate::report::human;
use crate::settings::Settings;
use crate::template::{Column, Format, Shape};
use crate::timestamp;

/// Characters of an instruction that a table shows.
const CREATED_BY_CHARS: usize = 45;

const TABLE: &str = "{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}";
const TABLE_FOR_PROGRAMS: &str = "{{.ID}}\t{{.CreatedAt}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}";

const COLUMNS: [Column; 6] = [
    Column { field: "ID", heading: "IMAGE" },
    Column { field: "CreatedSince", heading: "CREATED" },
    Column { field: "CreatedAt", heading: "CREATED AT" },
    Column { field: "CreatedBy", heading: "CREATED BY" },
    Column { field: "Size", heading: "SIZE" },
    Column { field: "Comment", heading: "COMMENT" },
];

const ROW: Shape = Shape::Struct(&[
    ("Comment", Shape::Text),
    ("CreatedAt", Shape::Text),
    ("CreatedBy", Shape::Text),
    ("CreatedSince", Shape::Text),
    ("ID", Shape::Text),
    ("Size", Shape::Text),
]);

/// Prints the newest step first.
pub(super) fn run(
    request: &HistoryRequest,
    settings: Settings,
    root: Option<&Path>,
) -> Result<(), BuildError> {
    let table = if request.human { TABLE } else { TABLE_FOR_PROGRAMS };
    let format = Format::parse(&request.format, table).map_err(ImageError::from)?;
    let host = Host::open(settings, root)?;
    let images = Images::load(&host.store)?;
    let named = images.find(&request.name)?.named();
    let record = stored::for_platform(named, request.platform.as_ref())?;
    let config = stored::config(&host.store, record)?;
    let sizes = sizes(&host.store, record)?;
    let rows = rows(&config, &record.config.to_string(), &sizes, request, SystemTime::now());
    // A template of one's own wins over -q, as in docker.
    let text = if request.quiet && matches!(&*request.format, "" | "table") {
        rows.iter().filter_map(|row| row["ID"].as_str()).map(|id| format!("{id}\n")).collect()
    } else {
        format.render(&COLUMNS, &rows, &ROW).map_err(ImageError::from)?
    };
    super::print(&text)
}

/// Bytes of the files of each layer, base first; of one that is not here, of its blob; 0 for one that was collected.
fn sizes(store: &Store, record: &ImageRecord) -> Result<Vec<u64>, BuildError> {
    let size = |layer| Ok(store.layer(layer)?.map_or(0, |info| info.size_bytes));
    let absent = record.absent_layers().iter().map(|layer| Ok(layer.size));
    absent.chain(record.layers.iter().map(|layer| size(*layer))).collect()
}

fn rows(
    config: &ImageConfig,
    id: &str,
    sizes: &[u64],
    request: &HistoryRequest,
    now: SystemTime,
) -> Vec<Value> {
    let mut sizes = sizes.iter();
    let mut rows: Vec<Value> = Vec::with_capacity(config.history.len());
    for entry in &config.history {
        let size = if entry.empty_layer { 0 } else { sizes.next().copied().unwrap_or(0) };
        // Whole seconds, and what docker shows when there is no time.
        let seconds = entry.created.as_deref().and_then(timestamp::parse_rfc3339);
        let created = seconds.map_or_else(|| "N/A".to_owned(), |seconds| timestamp::rfc3339(seconds, 0));
        let since = match seconds {
            Some(seconds) if request.human => age(seconds, now),
            _ => created.clone(),
        };
        let by = entry.created_by.as_deref().unwrap_or_default().replace(['\t', '\n'], " ");
        rows.push(json!({
            "Comment": entry.comment.as_deref().unwrap_or_default(),
            "CreatedAt": created,
            "CreatedBy": if request.no_trunc { by } else { ellipsis(&by) },
            "CreatedSince": since,
            "ID": "<missing>",
            "Size": if request.human { human::size(size) } else { size.to_string() },
        }));
    }
    rows.reverse();
    if let Some(newest) = rows.first_mut() {
        let short = id.strip_prefix("sha256:").unwrap_or(id).chars().take(12).collect();
        newest["ID"] = Value::String(if request.no_trunc { id.to_owned() } else { short });
    }
    rows
}

fn ellipsis(text: &str) -> String {
    if text.chars().count() <= CREATED_BY_CHARS {
        return text.to_owned();
    }
    text.chars().take(CREATED_BY_CHARS - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use rbuild_oci::{History, Platform};

    use super::*;

    fn show(request: &HistoryRequest) -> String {
        let mut config = ImageConfig::empty(Platform::new("linux", "amd64", None));
        let entry = |created: &str, by: &str, empty_layer| History {
            created: Some(created.into()),
            created_by: Some(by.into()),
            empty_layer,
            comment: Some("buildkit.dockerfile.v0".into()),
            ..History::default()
        };
        config.history = vec![
            entry("1970-01-01T00:00:00Z", "COPY rootfs / # buildkit", false),
            entry("2026-01-01T00:00:00Z", "ENV A=b", true),
            entry(
                "2026-01-01T10:00:00Z",
                "RUN /bin/sh -c apt-get update && apt-get install -y curl # buildkit",
                false,
            ),
        ];
        let now = UNIX_EPOCH + Duration::from_secs(1_767_225_600 + 12 * 3600);
        let id = rbuild_oci::Digest::of(b"id").to_string();
        let rows = rows(&config, &id, &[4_500_000, 12], request, now);
        Format::parse(&request.format, TABLE).unwrap().render(&COLUMNS, &rows, &ROW).unwrap()
    }

    #[test]
    fn history_looks_like_docker_s() {
        let request = HistoryRequest {
            name: String::new(),
            human: true,
            quiet: false,
            no_trunc: false,
            format: String::new(),
            platform: None,
        };
        insta::assert_snapshot!(show(&request));
        let raw = HistoryRequest { human: false, no_trunc: true, ..request.clone() };
        insta::assert_snapshot!(show(&raw));
        let format = HistoryRequest { format: "{{.ID}}: {{.CreatedBy}}".into(), ..request };
        insta::assert_snapshot!(show(&format));
    }
}
