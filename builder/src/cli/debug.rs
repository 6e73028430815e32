//! `rbuild debug`: a shell in a step.

use std::ffi::OsString;

use clap::Args;

/// Open a shell in a step of a build
///
/// In the step that fails, with what it had written; or with --step in any RUN step, before it runs. Files, mounts,
/// environment, user and directory are the step's; what is changed there comes into no layer. Without arguments of a
/// build the last one is meant that executed a step or failed.
#[derive(Debug, Args)]
#[command(
    override_usage = "rbuild debug [--step STEP] [BUILD OPTIONS CONTEXT]",
    after_long_help = "\
Examples:
  rbuild debug
  rbuild debug --step 3
  rbuild debug --step 'npm install' -f Dockerfile.dev ."
)]
pub(crate) struct DebugArgs {
    /// Enter this step before it runs: its number (3), number and count (3/5), or part of its text
    #[arg(long, value_name = "STEP")]
    step: Option<String>,
    /// Arguments of the build, as for `rbuild build`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    build: Vec<OsString>,
}

/// What `rbuild debug` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebugRequest {
    /// The step; `None` for the one that fails.
    pub step: Option<String>,
    /// Arguments of the build; empty for the last build's.
    pub build: Vec<OsString>,
}

impl DebugArgs {
    pub(super) fn request(self) -> DebugRequest {
        DebugRequest { step: self.step.filter(|step| !step.is_empty()), build: self.build }
    }
}
