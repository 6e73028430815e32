//! `rbuild doctor`: what this machine offers for building, and the remedy for each gap.

use std::fmt::Write;
use std::path::Path;

use crate::error::BuildError;
use crate::host::Host;
use crate::settings::Settings;

/// Tries the real steps and prints one line each. Succeeds whatever it finds; the text says what is missing.
pub(super) fn run(settings: &Settings, root: Option<&Path>) -> Result<(), BuildError> {
    let mut text = String::new();
    let store = root.unwrap_or(&settings.default_root);
    let results = rbuild_sandbox::probe(store);
    let width = results.iter().map(|result| result.name.len()).max().unwrap_or(0);
    for result in &results {
        let mark = if result.ok { "ok     " } else { "missing" };
        let _ = writeln!(text, "{mark}  {:width$}  {}", result.name, result.detail);
        if let Some(remedy) = result.remedy.as_ref().filter(|_| !result.ok) {
            let _ = writeln!(text, "         {:width$}  remedy: {remedy}", "");
        }
    }
    super::print(&text)?;
    let host = Host::open(settings.clone(), root)?;
    super::print(&format!("\nisolation: {}\nstore: {}\n", host.privilege.describe(), store.display()))?;
    Ok(())
}
