//! `rbuild explain`, and the document of `rbuild build --explain=json`.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rbuild_cache::store::PastExecution;
use serde_json::{Value, json};

use crate::cli::{ExplainFormat, ExplainRequest};
use crate::error::BuildError;
use crate::explain::cause::{details, sentence};
use crate::explain::record::{Record, split_name};
use crate::explain::{build_id, parse};
use crate::host::Host;
use crate::report::human;
use crate::settings::Settings;
use crate::timestamp;

/// Executions looked at; the store keeps no more.
const EXECUTIONS_MAX: u32 = 4096;
/// Executions shown of steps that a text names.
const SHOWN_MAX: usize = 10;
/// Shortest part of an id that names a build.
const ID_DIGITS_MIN: usize = 4;

/// A remembered execution that this version can read.
struct Known {
    past: PastExecution,
    record: Record,
}

/// Prints why steps were executed.
pub(super) fn run(
    request: &ExplainRequest,
    settings: Settings,
    root: Option<&Path>,
) -> Result<(), BuildError> {
    let host = Host::open(settings, root)?;
    let known: Vec<Known> = host
        .store
        .executions(EXECUTIONS_MAX)?
        .into_iter()
        // Number 0 are hits that are remembered where they stand: nothing was executed.
        .filter(|past| past.execution.build != 0)
        .filter_map(|past| Some(Known { record: parse(&past)?, past }))
        .collect();
    let mut chosen = choose(&known, request.which.as_deref());
    if let (Some(which), true) = (&request.which, chosen.is_empty()) {
        return Err(BuildError::NothingToExplain(which.clone()));
    }
    chosen.sort_by_key(|known| known.past.id);
    super::print(&match request.format {
        ExplainFormat::Json => {
            let steps: Vec<Value> = chosen.iter().map(|known| document(known)).collect();
            pretty(&json!({ "version": 1, "executions": steps }))
        }
        ExplainFormat::Text if chosen.is_empty() => {
            "no build that executed a step is remembered\n".to_owned()
        }
        ExplainFormat::Text => text(&chosen),
    })
}

/// The executions meant, latest first.
fn choose<'a>(known: &'a [Known], which: Option<&str>) -> Vec<&'a Known> {
    let build = match which {
        None => known.first().map(|known| known.past.execution.build),
        Some(which) if which.len() >= ID_DIGITS_MIN && which.bytes().all(|b| b.is_ascii_hexdigit()) => {
            let which = which.to_ascii_lowercase();
            known
                .iter()
                .map(|known| known.past.execution.build)
                .find(|build| build_id(*build).starts_with(&which))
        }
        Some(_) => None,
    };
    if let Some(build) = build {
        return known.iter().filter(|known| known.past.execution.build == build).collect();
    }
    let Some(which) = which else { return Vec::new() };
    let is_meant = |record: &Record| match which.split_once('/').map(|(a, b)| (a.parse(), b.parse::<u32>())) {
        Some((Ok(number), Ok(count))) => {
            let label = record.name.split("] ").next().unwrap_or_default();
            split_name(&record.name).0 == Some(number) && label.ends_with(&format!("/{count}"))
        }
        _ => record.name.contains(which),
    };
    known.iter().filter(|known| is_meant(&known.record)).take(SHOWN_MAX).collect()
}

fn text(chosen: &[&Known]) -> String {
    let mut text = String::new();
    let mut build = None;
    for Known { past, record } in chosen {
        if build.replace(past.execution.build) != Some(past.execution.build) {
            let _ = writeln!(
                text,
                "build {}, {}",
                build_id(past.execution.build),
                ago(past.execution.at_unix_ns)
            );
        }
        let took = human::seconds(Duration::from_millis(record.exec_ms));
        let failed = if record.is_failed { ", failed" } else { "" };
        let _ = writeln!(text, "  {} ({took}{failed})", printable(&record.name));
        let _ = writeln!(text, "    {}", printable(&sentence(&record.causes)));
        let lines = details(&record.causes);
        if lines != [sentence(&record.causes)] {
            for line in lines {
                let _ = writeln!(text, "      {}", printable(&line));
            }
        }
    }
    text
}

fn document(Known { past, record }: &Known) -> Value {
    let mut document = step(record, if record.is_failed { "failed" } else { "executed" });
    document["build"] = build_id(past.execution.build).into();
    document["key"] = past.execution.key.to_string().into();
    document["at"] = timestamp::rfc3339(past.execution.at_unix_ns / 1_000_000_000, 0).into();
    document["execMs"] = record.exec_ms.into();
    document
}

/// One executed step for machines.
pub(super) fn step(record: &Record, decision: &str) -> Value {
    json!({
        "step": record.name,
        "decision": decision,
        "sentence": sentence(&record.causes),
        "causes": record.causes,
    })
}

pub(super) fn pretty(document: &Value) -> String {
    serde_json::to_string_pretty(document).unwrap_or_default() + "\n"
}

fn ago(unix_ns: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let then = u64::try_from(unix_ns / 1_000_000_000).unwrap_or(0);
    format!("{} ago", human::duration(Duration::from_secs(now.saturating_sub(then))).to_lowercase())
}

/// Names of steps and files are not ours: nothing of theirs may steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
