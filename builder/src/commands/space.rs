//! `rbuild du` and `rbuild prune`, and the budget after a build.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rbuild_cache::gc::{self, Collected, Collector, DiskUsage, Policy, UsageEntry, UsageKind};
use rbuild_cache::layer::OverlayForm;
use rbuild_cache::store::{Rebuilt, Store, StoreError, StoreOptions};
use serde_json::{Value, json};

use super::shares::{self, kind};
use crate::cli::{DuRequest, PruneRequest};
use crate::error::BuildError;
use crate::host::Host;
use crate::report::human;
use crate::settings::{CacheBudget, Settings};
use crate::timestamp;

/// The default budget is this share of the disk, at most [`BUDGET_BYTES_MAX`].
const BUDGET_DISK_SHARE: u64 = 10;
const BUDGET_BYTES_MAX: u64 = 20 << 30;

/// `rbuild du`.
pub(super) fn du(request: &DuRequest, settings: Settings, root: Option<&Path>) -> Result<(), BuildError> {
    let host = Host::open(settings, root)?;
    let mut usage = gc::usage(&host.store)?;
    let is_idle = |entry: &UsageEntry| {
        let unused = timestamp::unix_ns().saturating_sub(entry.used_unix_ns);
        request.until.is_zero() || u128::try_from(unused).unwrap_or(0) >= request.until.as_nanos()
    };
    usage.entries.retain(|entry| is_idle(entry) && request.filters.iter().all(|f| f.matches(entry)));
    let now = SystemTime::now();
    if let Some(by) = request.by {
        return super::print(&if request.json {
            shares::json_lines(&usage.entries, by)
        } else {
            shares::table(&usage.entries, by, now) + &footer(&usage)
        });
    }
    super::print(&match (request.json, request.verbose) {
        (true, _) => usage.entries.iter().map(json_line).collect(),
        (false, true) => usage.entries.iter().map(paragraph).collect::<String>() + &footer(&usage),
        (false, false) => table(&usage.entries, now) + &footer(&usage),
    })
}

/// `rbuild prune`.
pub(super) fn prune(
    request: &PruneRequest,
    settings: Settings,
    root: Option<&Path>,
) -> Result<(), BuildError> {
    let place = Place::of(&Host::open(settings, root)?);
    let what = if request.all { "all build cache" } else { "all build cache that no image uses" };
    if !request.force && !confirm(what) {
        return Ok(());
    }
    let policy = Policy {
        max_used_bytes: request.max_used_bytes,
        reserved_bytes: request.reserved_bytes,
        min_free_bytes: request.min_free_bytes,
        keep: request.until,
        filters: request.filters.clone(),
        all: request.all,
        unreferenced_only: false,
    };
    let collector = place.collector()?;
    let known = if request.verbose { gc::usage(&place.open()?)?.entries } else { Vec::new() };
    let collected = collector.run(&policy)?;
    super::print(&if request.verbose { pruned_in_full(&collected, &known) } else { pruned(&collected) })?;
    if collected.deferred_bytes > 0 {
        let bytes = human::size_precise(collected.deferred_bytes);
        let _ = writeln!(
            io::stderr(),
            "{bytes} are held by running builds and are freed by the next prune or build after those end"
        );
    }
    Ok(())
}

/// Where a store is and how it is opened, kept when the store itself is closed: an open one holds back what is freed.
#[derive(Debug, Clone)]
pub(super) struct Place {
    root: PathBuf,
    options: StoreOptions,
}

impl Place {
    pub(super) fn of(host: &Host) -> Self {
        Self { root: host.store.root().to_owned(), options: host.store.options().clone() }
    }

    /// Makes the index anew.
    pub(super) fn rebuild(&self, form: OverlayForm) -> Result<Rebuilt, StoreError> {
        Store::rebuild(&self.root, self.options.clone(), form)
    }

    /// The store again, for a moment.
    pub(super) fn open(&self) -> Result<Store, StoreError> {
        Store::open(&self.root, self.options.clone())
    }

    /// The collector. While another process collects or checks the store, that one's end is waited for; a signal ends the
    /// wait with the process.
    pub(super) fn collector(&self) -> Result<Collector, StoreError> {
        Collector::open_after(&self.root, self.options.clone(), |holder| {
            let held = holder.held.map(|held| format!(" for {}s", held.as_secs())).unwrap_or_default();
            let _ = writeln!(
                io::stderr(),
                "waiting for pid {}, which has been collecting or checking the store{held}",
                holder.pid
            );
        })
    }
}

/// Bytes over the budget, by the cheapest look: what images hold counts too, so this is no more than a reason to look
/// closer. `None` when there is nothing to do.
pub(super) fn budget_to_enforce(host: &Host) -> Option<u64> {
    let (held, condemned) = host.store.held_bytes().ok()?;
    let budget = match host.settings.cache_budget {
        CacheBudget::Off => return None,
        CacheBudget::Bytes(bytes) => bytes,
        CacheBudget::Default => (host.store.disk().ok()?.1 / BUDGET_DISK_SHARE).min(BUDGET_BYTES_MAX),
    };
    (held > budget || condemned > 0).then_some(budget)
}

/// Brings the store below its budget, unless somebody else is collecting. The build has ended: nothing here can fail
/// it, and a signal ends the collection where it is.
pub(super) fn enforce(place: Place, budget: u64) {
    let _ = super::with_signals(async |cancel| {
        super::unless_canceled(&cancel, async {
            let run = tokio::task::spawn_blocking(move || {
                let Some(collector) = Collector::open(&place.root, place.options)? else { return Ok(()) };
                collector.run(&Policy::budget(budget)).map(drop)
            });
            match run.await {
                Ok(result) => Ok(result?),
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        })
        .await
    });
}

/// Asks whether to go on.
pub(super) fn confirm(what: &str) -> bool {
    let mut out = io::stdout().lock();
    let _ = write!(out, "WARNING! This will remove {what}.\nAre you sure you want to continue? [y/N] ");
    let _ = out.flush();
    let mut answer = String::new();
    let _ = io::stdin().lock().read_line(&mut answer);
    if !io::stdin().is_terminal() {
        let _ = writeln!(out);
    }
    matches!(answer.trim(), "y" | "Y" | "yes")
}

pub(super) fn pruned(collected: &Collected) -> String {
    let mut text = String::new();
    if !collected.given_up.is_empty() {
        text.push_str("Deleted build cache objects:\n");
        for (id, _) in &collected.given_up {
            let _ = writeln!(text, "{id}");
        }
        text.push('\n');
    }
    let _ = writeln!(text, "Total reclaimed space: {}", human::size_precise(collected.freed_bytes));
    text
}

/// A paragraph for each object that is gone, of what was known of it before.
fn pruned_in_full(collected: &Collected, known: &[UsageEntry]) -> String {
    let known: HashMap<&str, &UsageEntry> = known.iter().map(|entry| (entry.id.as_str(), entry)).collect();
    let gone = collected.given_up.iter().filter_map(|(id, _)| known.get(id.as_str()));
    let text: String = gone.map(|entry| paragraph(entry)).collect();
    format!("{text}Total reclaimed space: {}\n", human::size_precise(collected.freed_bytes))
}

/// As `docker buildx du` prints it; `*` after a size says that several images share the object.
pub(super) fn table(entries: &[UsageEntry], now: SystemTime) -> String {
    let mut rows = vec![["ID", "RECLAIMABLE", "SIZE", "LAST ACCESSED"].map(str::to_owned).to_vec()];
    for entry in entries {
        let size = human::size_precise(entry.size_bytes);
        rows.push(vec![
            entry.id.clone(),
            entry.is_reclaimable.to_string(),
            if entry.is_shared { format!("{size}*") } else { size },
            age(entry.used_unix_ns, now),
        ]);
    }
    aligned(&rows)
}

/// Rows as a table, the first its head; all have as many cells.
pub(super) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("   ").trim_end());
        text.push('\n');
    }
    text
}

fn footer(usage: &DiskUsage) -> String {
    let (total, shared) = (usage.total_bytes(), usage.shared_bytes());
    let line = |name: &str, bytes: u64| format!("{name:<13}{}\n", human::size_precise(bytes));
    let mut text = String::new();
    if shared > 0 {
        text += &line("Shared:", shared);
        text += &line("Private:", total - shared);
    }
    if usage.pending_bytes > 0 {
        text += &line("In use:", usage.pending_bytes);
    }
    text + &line("Reclaimable:", usage.reclaimable_bytes()) + &line("Total:", total)
}

fn paragraph(entry: &UsageEntry) -> String {
    let rows = [
        ("ID", entry.id.clone()),
        ("Created at", moment(entry.created_unix_ns)),
        ("Mutable", (entry.kind == UsageKind::Mount).to_string()),
        ("Reclaimable", entry.is_reclaimable.to_string()),
        ("Shared", entry.is_shared.to_string()),
        ("Size", human::size_precise(entry.size_bytes)),
        ("Description", printable(&entry.description)),
        ("Images", printable(&entry.images.join(", "))),
        ("Usage count", entry.usage_count.to_string()),
        ("Last used", moment(entry.used_unix_ns)),
        ("Type", kind(entry.kind).to_owned()),
    ];
    let lines = rows.iter().filter(|(_, value)| !value.is_empty());
    let mut text: String =
        lines.map(|(name, value)| format!("{:<14}{value}\n", format!("{name}:"))).collect();
    text.push('\n');
    text
}

pub(super) fn json_value(entry: &UsageEntry) -> Value {
    json!({
        "ID": entry.id,
        "Parents": null,
        "CreatedAt": moment(entry.created_unix_ns),
        "Mutable": entry.kind == UsageKind::Mount,
        "Reclaimable": entry.is_reclaimable,
        "Shared": entry.is_shared,
        "Size": entry.size_bytes,
        "Description": entry.description,
        "Images": entry.images,
        "UsageCount": entry.usage_count,
        "LastUsedAt": moment(entry.used_unix_ns),
        "Type": kind(entry.kind),
    })
}

fn json_line(entry: &UsageEntry) -> String {
    format!("{}\n", json_value(entry))
}

/// Descriptions come from Dockerfiles: nothing of theirs may steer the terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

pub(super) fn moment(unix_ns: i64) -> String {
    if unix_ns <= 0 { String::new() } else { timestamp::rfc3339(unix_ns / 1_000_000_000, 0) }
}

pub(super) fn age(unix_ns: i64, now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let then = u64::try_from(unix_ns / 1_000_000_000).unwrap_or(0);
    format!("{} ago", human::duration(Duration::from_secs(now.saturating_sub(then))))
}
