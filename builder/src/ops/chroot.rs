//! RUN where nothing can be mounted: in a private copy of the state, from which the changes are then told.
//!
//! ```text
//! tree + layers ── copy ──▶ draft ── the step works in it ──▶ untouched taken out, deletions marked ──▶ scanned as ever
//! ```
//!
//! The copy is reflinked where the file system can, and never linked to files of the store, which a step could then write
//! to.

use std::os::fd::AsFd;

use rbuild_cache::copy::{self, Sources};
use rbuild_cache::layer::{self, Untouched};
use rbuild_cache::store::Draft;
use rbuild_frontend::graph::{Network, RunOp};

use crate::error::StepFailure;
use crate::mounts;
use crate::ops::emulation::Emulation;
use crate::ops::run::{self, Output, Parent};
use crate::ops::{ExecEnv, NewLayer, size_bytes};
use crate::progress::VertexId;
use crate::solve::Solved;

/// Runs the step and returns what it changed, as [`run::execute`] does.
pub(super) fn layer(
    env: &ExecEnv,
    op: &RunOp,
    root: &Solved,
    vertex: VertexId,
) -> Result<NewLayer, StepFailure> {
    // Before the copy, which takes time.
    let mut prepared = mounts::prepare_without_mounts(env, op)?;
    env.groups.not_in_chroot(&env.steps, &env.events);
    let draft = env.store.draft(&env.lease)?;
    let dir = draft.diff_fd().as_fd();
    let files = env.stack_source(root)?;
    let plan = copy::plan_whole(&env.store, &root.tree, &files, &env.store.scratch())?;
    let sources = Sources { main: Some(&files), ..Sources::default() };
    copy::materialise(&plan, dir, &sources, env.overlay.owners(), env.overlay)?;
    let scratch = env.store.scratch();
    let untouched = Untouched::of(dir, &env.store, &root.tree, &scratch)?;

    let network = match env.network.resolve(op.network) {
        Network::None => rbuild_sandbox::Network::None,
        Network::Default | Network::Host => rbuild_sandbox::Network::Host,
    };
    let mut output = Output::of(env, vertex, &prepared.secrets);
    let mut spec = run::spec(env, op, vertex, network);
    spec.mounts = std::mem::take(&mut prepared.mounts);
    run::set_variables(&mut spec, &prepared);
    let emulation = Emulation::recognise(dir, &spec, op);
    let exit = rbuild_sandbox::run_step_in_copy(
        &spec,
        dir,
        draft.work_fd().as_fd(),
        env.is_chroot_forced,
        env.cancel.fd(),
        &mut output.sink(),
    );
    let exit = output.check(op, &emulation, exit)?;
    output.succeeded(op, exit)?;

    untouched.keep_changes(dir, &env.store, &root.tree)?;
    let diff = layer::scan_upper(dir, env.overlay, &Parent::of(env, root), &scratch)?;
    let tree = root.tree.apply(&env.store, &diff, &env.store.scratch())?;
    let size_bytes = size_bytes(&diff)?;
    Ok(NewLayer { draft: Draft::Dir(draft), diff, tree, size_bytes, tar: None, recent: None })
}
