//! `rbuild doctor`: what this machine offers for building, and the remedy for each gap.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use rbuild_cache::store::Store;
use rbuild_sandbox::ladder::{self, Isolation, Rung};
use rbuild_sandbox::{ProbeResult, probe_rung};
use serde_json::json;

use crate::devices::{Registry, SPEC_DIRS};
use crate::error::{BuildError, one_line};
use crate::host;
use crate::settings::Settings;

/// One isolation, tried.
struct Tried {
    rung: Rung,
    results: Vec<ProbeResult>,
}

impl Tried {
    fn works(&self) -> bool {
        self.rung == Rung::NoRun || ladder::first_obstacle(&self.results).is_none()
    }
}

/// The store, and why every command refuses it.
struct Place<'a> {
    store: &'a Path,
    refusal: Option<&'a str>,
}

/// Tries the real steps of every isolation and prints what it finds. Succeeds whatever that is; the text says what is
/// missing.
pub(super) fn run(settings: &Settings, root: Option<&Path>, as_json: bool) -> Result<(), BuildError> {
    let store = host::place(settings, root);
    // Before anything is tried in it.
    let refusal = Store::refusal(&store).map(|error| one_line(&error));
    let tried: Vec<Tried> = Rung::ALL
        .into_iter()
        .map(|rung| Tried { rung, results: probe_rung(Isolation::Named(rung), &store, true) })
        .collect();
    let auto = Rung::AUTO.into_iter().find(|rung| tried.iter().any(|one| one.rung == *rung && one.works()));
    let auto = auto.unwrap_or(Rung::NoRun);
    let devices = Registry::read(&SPEC_DIRS.map(PathBuf::from));
    let place = Place { store: &store, refusal: refusal.as_deref() };
    let shown =
        if as_json { document(&tried, auto, &place, &devices) } else { text(&tried, auto, &place, &devices) };
    super::print(&shown)
}

/// A line for each isolation; below it what fails, or, for the one in use, every part.
fn text(tried: &[Tried], auto: Rung, place: &Place<'_>, devices: &Registry) -> String {
    let mut text = String::new();
    let names = tried.iter().flat_map(|one| &one.results).map(|result| result.name.len());
    let width = names.max().unwrap_or(0);
    for one in tried {
        let mark = if one.works() { "ok     " } else { "missing" };
        let chosen = if one.rung == auto { "  <- auto" } else { "" };
        let _ = writeln!(text, "{mark}  {}{chosen}", one.rung);
        let shown = one.results.iter().filter(|result| !result.ok || one.rung == auto);
        for result in shown {
            let mark = if result.ok { "ok     " } else { "missing" };
            let _ = writeln!(text, "           {mark}  {:width$}  {}", result.name, result.detail);
        }
        // One for each gap, and once: what comes after the first obstacle follows from it.
        let remedy = one.results.iter().find(|result| !result.ok).and_then(|result| result.remedy.as_ref());
        if let Some(remedy) = remedy {
            let _ = writeln!(text, "           remedy: {remedy}");
        }
        if one.works() && !one.rung.losses().is_empty() {
            let _ = writeln!(text, "           note: {}", one.rung.losses());
        }
    }
    let _ = writeln!(text, "\nisolation: {auto}\nstore: {}", place.store.display());
    if let Some(refusal) = place.refusal {
        let _ = writeln!(text, "no build can use it: {refusal}");
    }
    for name in devices.names() {
        let _ = writeln!(text, "device: {name}");
    }
    for (file, why) in devices.broken() {
        let _ = writeln!(text, "no devices: {} is broken: {why}", file.display());
    }
    text
}

fn document(tried: &[Tried], auto: Rung, place: &Place<'_>, devices: &Registry) -> String {
    let part = |result: &ProbeResult| {
        json!({
            "name": result.name,
            "ok": result.ok,
            "detail": result.detail,
            "remedy": result.remedy,
        })
    };
    let rung = |one: &Tried| {
        json!({
            "name": one.rung.name(),
            "works": one.works(),
            "losses": one.rung.losses(),
            "parts": one.results.iter().map(part).collect::<Vec<_>>(),
        })
    };
    let document = json!({
        "isolation": auto.name(),
        "store": place.store,
        "store_refused": place.refusal,
        "devices": devices.names().collect::<Vec<_>>(),
        "rungs": tried.iter().map(rung).collect::<Vec<_>>(),
    });
    let text = serde_json::to_string_pretty(&document).unwrap_or_default();
    format!("{text}\n")
}
