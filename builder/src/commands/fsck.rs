//! `rbuild cache fsck`.

use std::path::Path;
use std::process::ExitCode;

use rbuild_cache::store::Finding;

use crate::cli::Env;
use crate::commands::space::Place;
use crate::error::BuildError;
use crate::failure;
use crate::host::Host;
use crate::report::counted;
use crate::settings::Settings;

/// Checks the store, prints one line for each finding, and a last one that says how it stands. Status 1 when something
/// is damaged and was left so.
pub(super) fn run(
    repair: bool,
    rebuild: bool,
    settings: Settings,
    root: Option<&Path>,
    env: &Env,
) -> ExitCode {
    match check(repair, rebuild, settings, root) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => failure::print(&error, None, env),
    }
}

fn check(repair: bool, rebuild: bool, settings: Settings, root: Option<&Path>) -> Result<bool, BuildError> {
    let host = Host::open(settings, root)?;
    let (place, form) = (Place::of(&host), host.overlay);
    drop(host);
    if rebuild {
        let rebuilt = place.rebuild(form)?;
        let mut text = format!(
            "The index is made anew: {}, {}, {}.\n",
            counted(rebuilt.layers, "layer", "layers"),
            counted(rebuilt.blobs, "blob", "blobs"),
            counted(rebuilt.images.len(), "image", "images")
        );
        for name in &rebuilt.lost_images {
            text += &format!("image {} is lost: a layer or its config is gone\n", printable(name));
        }
        if rebuilt.lost_names > 0 {
            let lost = counted(rebuilt.lost_names, "image is", "images are");
            text += &format!("{lost} lost: what the name stood for is damaged in images/\n");
        }
        if rebuilt.set_aside > 0 {
            let damaged = counted(rebuilt.set_aside, "damaged thing is", "damaged things are");
            text += &format!("{damaged} in quarantine/ of the store\n");
        }
        super::print(&text)?;
    }
    let findings = place.collector()?.fsck(form, repair)?;
    let mut text: String = findings.iter().map(|finding| format!("{}\n", printable(finding))).collect();
    let damaged = findings.iter().filter(|finding| finding.is_damage()).count();
    let is_repaired = repair && findings.iter().all(Finding::is_repairable);
    let left_over = findings.len() - damaged;
    if left_over > 0 {
        let left_over = counted(left_over, "left-over", "left-overs");
        text += &format!("{left_over}; rbuild prune removes such\n");
    }
    text += &match (damaged, repair) {
        (0, _) => "The store is sound.\n".to_owned(),
        (_, true) if !is_repaired => {
            "What --repair could mend is mended; run rbuild cache fsck --rebuild.\n".to_owned()
        }
        (1, true) => "1 problem repaired; what was damaged is in quarantine/ of the store.\n".to_owned(),
        (count, true) => {
            format!("{count} problems repaired; what was damaged is in quarantine/ of the store.\n")
        }
        (_, false) if !findings.iter().all(Finding::is_repairable) => {
            let problems = counted(damaged, "problem", "problems");
            format!("{problems}; run rbuild cache fsck --rebuild.\n")
        }
        (1, false) => "1 problem; rbuild cache fsck --repair sets it aside.\n".to_owned(),
        (count, false) => format!("{count} problems; rbuild cache fsck --repair sets them aside.\n"),
    };
    super::print(&text)?;
    Ok(damaged == 0 || is_repaired)
}

/// Paths and steps in a finding come from images and Dockerfiles.
fn printable(finding: &impl ToString) -> String {
    finding.to_string().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
