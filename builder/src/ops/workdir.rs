//! Executes WORKDIR: makes the directory and whatever is missing above it.

use std::os::fd::AsFd;
use std::sync::Arc;

use rbuild_cache::copy::{self, Sources};
use rbuild_cache::store::Draft;
use rbuild_frontend::graph::WorkdirOp;

use crate::error::StepFailure;
use crate::ops::{ExecEnv, NewLayer, blocking, owner, without_same_root};
use crate::progress::VertexId;
use crate::solve::Solved;

/// Makes a layer with the directory; an empty layer when it is there already.
pub async fn execute(
    env: &Arc<ExecEnv>,
    op: &WorkdirOp,
    root: &Arc<Solved>,
    vertex: VertexId,
) -> Result<NewLayer, StepFailure> {
    env.events.started(vertex);
    let (env, op, root) = (Arc::clone(env), op.clone(), Arc::clone(root));
    blocking(move || {
        let owner = owner::workdir(&env, &root, &op.user)?;
        let parents = env.stack_source(&root)?;
        let scratch = env.store.scratch();
        let path = op.path.as_bytes();
        let plan = copy::plan_workdir(&env.store, &root.tree, &parents, path, owner, env.now(), &scratch)?;
        let draft = env.store.draft(&env.lease)?;
        copy::materialise(
            &plan,
            draft.diff_fd().as_fd(),
            &Sources::default(),
            env.overlay.owners(),
            env.overlay,
        )?;
        let diff = without_same_root(plan.diff, &root.tree.root)?;
        let tree = root.tree.apply(&env.store, &diff, &scratch)?;
        Ok(NewLayer { draft: Draft::Dir(draft), diff, tree, size_bytes: 0, tar: None, recent: None })
    })
    .await
}
