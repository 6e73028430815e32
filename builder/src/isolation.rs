//! What a build says about the isolation of its steps, and RUN where there is none.

use rbuild_sandbox::ladder::{self, Isolation, Rung};

use crate::error::{BuildError, StepFailure};
use crate::host::Host;
use crate::progress::Events;
use crate::solve::plan::Plan;

/// Says once how steps are isolated, if the build executes anything.
pub fn announce(plan: &Plan, host: &Host, events: &Events) {
    if plan.needed.is_empty() {
        return;
    }
    let rung = host.rung();
    let mut text = format!("isolation: {rung}");
    if !rung.losses().is_empty() {
        text = format!("{text} ({})", rung.losses());
    }
    for over in &host.passed_over {
        text = format!("{text}; not {}: {}", over.rung, over.why);
    }
    events.remark(text);
}

/// Tells a step that was refused for want of isolation what would help.
pub fn explained(error: BuildError, host: &Host) -> BuildError {
    match error {
        BuildError::Step(mut step) if matches!(step.failure, StepFailure::RunRefused { .. }) => {
            step.failure = StepFailure::RunRefused { remedies: remedies(host) };
            BuildError::Step(step)
        }
        other => other,
    }
}

/// What would let this user run steps.
fn remedies(host: &Host) -> Vec<String> {
    if host.settings.isolation == Isolation::Named(Rung::NoRun) {
        return vec!["leave out --isolation norun (or RBUILD_ISOLATION)".to_owned()];
    }
    let mut passed_over = host.passed_over.clone();
    if passed_over.is_empty() {
        // The store is of earlier; what it was made without may be here by now.
        let choice = ladder::choose(&host.root);
        if choice.rung != Rung::NoRun {
            return vec![format!(
                "steps can be run here by now, as `{rung}`, but the store `{root}` was made without: use another one \
                 (--root DIR), or remove it",
                rung = choice.rung,
                root = host.root.display()
            )];
        }
        passed_over = choice.passed_over;
    }
    // Root is what an ordinary user should rather not become.
    let is_root = rustix::process::geteuid().is_root();
    let mut remedies: Vec<String> = Vec::new();
    for over in passed_over.iter().filter(|over| is_root || over.rung != Rung::Root) {
        let Some(remedy) = &over.remedy else { continue };
        let text = format!("for isolation `{}`: {remedy}", over.rung);
        if !remedies.iter().any(|known| known.ends_with(remedy.as_str())) {
            remedies.push(text);
        }
    }
    if is_root {
        remedies.push("or name --isolation chroot, which needs no namespaces and isolates less".to_owned());
    }
    remedies.push("rbuild doctor says what each isolation lacks here".to_owned());
    remedies
}
