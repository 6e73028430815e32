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
    let collector = place.collector()?;
    let (findings, left) = match repair {
        true => collector.repair(form)?,
        false => (collector.fsck(form)?, Vec::new()),
    };
    super::print(&text_of(&findings, repair, &left))?;
    let is_damaged = findings.iter().any(Finding::is_damage);
    Ok(if repair { left.is_empty() && !findings.iter().any(Finding::is_kept) } else { !is_damaged })
}

/// One line for each finding, and how the store stands; `left` was found again after a repair.
fn text_of(findings: &[Finding], repair: bool, left: &[Finding]) -> String {
    let mut text = lines(findings);
    let damaged = findings.iter().filter(|finding| finding.is_damage()).count();
    let left_over = findings.len() - damaged;
    if left_over > 0 {
        let left_over = counted(left_over, "left-over", "left-overs");
        text += &format!("{left_over}; rbuild prune removes such\n");
    }
    if damaged == 0 {
        return text + "The store is sound.\n";
    }
    if !repair {
        let (problems, such) =
            (counted(damaged, "problem", "problems"), if damaged == 1 { "it" } else { "them" });
        return text
            + &match findings.iter().all(Finding::is_repairable) {
                true => format!("{problems}; rbuild cache fsck --repair sets {such} aside.\n"),
                false => format!("{problems}; run rbuild cache fsck --rebuild.\n"),
            };
    }
    let kept = findings.iter().filter(|finding| finding.is_kept()).count();
    let repaired = damaged.saturating_sub(left.len() + kept);
    if repaired > 0 {
        let repaired = counted(repaired, "problem", "problems");
        text += &format!("{repaired} repaired; what was damaged is in quarantine/ of the store.\n");
    }
    if kept > 0 {
        let kept = counted(kept, "image", "images");
        text += &format!("{kept} kept that may be wrong: build again what is named above.\n");
    }
    if !left.is_empty() {
        let count = counted(left.len(), "problem", "problems");
        text += &format!("{count} found again after the repair:\n{}", lines(left));
        text += "The index itself is damaged: rbuild cache fsck --rebuild makes it anew; layers, blobs and images stay.\n";
    }
    text
}

fn lines(findings: &[Finding]) -> String {
    findings.iter().map(|finding| format!("{}\n", printable(finding))).collect()
}

/// Paths and steps in a finding come from images and Dockerfiles.
fn printable(finding: &impl ToString) -> String {
    finding.to_string().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_again_is_not_told_as_repaired() {
        let findings = ["a", "b", "c"].map(|what| Finding::Index(what.to_owned()));
        let text = text_of(&findings, true, &findings[1..]);
        assert!(text.contains("\n1 problem repaired; "), "{text}");
        let left = "\n2 problems found again after the repair:\nindex: b\nindex: c\nThe index itself is damaged: \
                    rbuild cache fsck --rebuild makes";
        assert!(text.contains(left), "{text}");
        let text = text_of(&findings[..1], true, &findings[..1]);
        assert!(!text.contains("repaired"), "{text}");
        assert!(
            text_of(&findings[..1], true, &[])
                .ends_with("1 problem repaired; what was damaged is in quarantine/ of the store.\n")
        );
        assert!(
            text_of(&findings[..1], false, &[])
                .ends_with("1 problem; rbuild cache fsck --repair sets it aside.\n")
        );
        assert!(text_of(&[], true, &[]).ends_with("The store is sound.\n"));
    }
}
