//! States of git repositories: pinned to a commit, fetched once, kept as layers.

use std::io::Read;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use rbuild_cache::layer::{self, LayerDiff, Limits, ParentEntry, ParentView, ParentViewError};
use rbuild_cache::path::RelPath;
use rbuild_cache::store::{LayerDraft, ScratchDir};
use rbuild_frontend::graph::GitOp;
use rbuild_frontend::remote::GitSource;

use crate::error::StepFailure;
use crate::git::{Checkout, GitError, Route, Runner, resolve};
use crate::ops::{ExecEnv, authorization, blocking, fetched};
use crate::progress::{Outcome, VertexId};
use crate::solve::Solved;

/// The commit that the op's reference means now.
pub async fn pin(env: &Arc<ExecEnv>, source: &GitSource) -> Result<String, StepFailure> {
    let _turn = fetched::turn(env).await?;
    let scratch = env.lease.scratch_dir()?;
    let runner = runner(env, &scratch, source).await?;
    resolve(&runner, source).await.map_err(|error| failure(env, error))
}

/// The files of a pinned op.
pub async fn files(
    env: &Arc<ExecEnv>,
    op: &GitOp,
    use_cache: bool,
    vertex: VertexId,
) -> Result<Arc<Solved>, StepFailure> {
    env.events.started(vertex);
    let commit = op.commit.as_deref().expect("git ops are pinned before anything runs");
    // `.git` of a directory in a repository would be that of all of it.
    let keep = op.keep_git_dir && op.source.subdir.is_empty();
    let key = fetched::key("git/2", |out| {
        let source = &op.source;
        out.str(&source.remote).str(commit).str(&source.subdir).bool(source.submodules).bool(keep);
    });
    if use_cache && let Some(solved) = fetched::stored(env, &key)? {
        env.events.finished(vertex, Outcome::Cached);
        return Ok(solved);
    }
    let _turn = fetched::turn(env).await?;
    env.events.note(vertex, format!("fetching {commit}"));
    let started = Instant::now();
    let (draft, diff) = Box::pin(fetch(env, &op.source, commit, keep)).await?;
    let solved = fetched::store(env, &key, &op.source.to_string(), draft, diff, started)?;
    env.events.finished(vertex, Outcome::Done);
    Ok(solved)
}

async fn fetch(
    env: &Arc<ExecEnv>,
    source: &GitSource,
    commit: &str,
    keep: bool,
) -> Result<(LayerDraft, LayerDiff), StepFailure> {
    let failed = |error| failure(env, error);
    let scratch = env.lease.scratch_dir()?;
    let runner = runner(env, &scratch, source).await?;
    // A secret that cannot be read was noticed with the repository itself; a submodule's server then says what it wants.
    let find = |below: &GitSource| {
        authorization::for_repository(&env.secrets, &below.remote, &source.remote).ok().flatten()
    };
    let checkout =
        Checkout::fetch(&runner, source, commit, &env.git, &find, &env.cancel).await.map_err(failed)?;
    let mut archive = checkout.archive().await.map_err(failed)?;
    let (unpacking_env, remote) = (Arc::clone(env), source.to_string());
    let (draft, diff) = blocking(move || {
        let draft = unpacking_env.store.draft(&unpacking_env.lease)?;
        let tar = archive.stdout();
        let diff = unpack(tar, &draft, &unpacking_env, &remote);
        // What git says about its end explains an archive that ends too early.
        archive.finish().map_err(|error| failure(&unpacking_env, error))?;
        Ok((draft, diff?))
    })
    .await?;
    if !keep {
        return Ok((draft, diff));
    }
    let git_dir = checkout.git_dir().await.map_err(failed)?;
    let env = Arc::clone(env);
    blocking(move || {
        let path = draft.diff_path().join(".git");
        std::fs::rename(git_dir, &path).map_err(|source| StepFailure::Io {
            what: "keep",
            path: ".git".to_owned(),
            source,
        })?;
        let mut diff =
            layer::scan_upper(draft.diff_fd().as_fd(), env.overlay, &Nothing, &env.store.scratch())?;
        diff.remove_root()?;
        Ok((draft, diff))
    })
    .await
}

fn unpack(
    tar: impl Read + Send,
    draft: &LayerDraft,
    env: &ExecEnv,
    remote: &str,
) -> Result<LayerDiff, StepFailure> {
    let refused = |source| StepFailure::FetchedUnpack { what: remote.to_owned(), source };
    let (dir, limits, scratch) = (draft.diff_fd().as_fd(), Limits::default(), env.store.scratch());
    let (unpacked, _) =
        layer::unpack_blob(tar, None, dir, env.overlay, &limits, &scratch).map_err(refused)?;
    fetched::plain_files(unpacked.diff, remote)
}

/// Git for a repository, in a directory of its own.
async fn runner(env: &ExecEnv, scratch: &ScratchDir, source: &GitSource) -> Result<Runner, StepFailure> {
    let route = Route::to(&env.git, source, None).await?;
    Ok(Runner::new(&env.git, scratch.path(), source, header(env, source)?, route, &env.cancel)?)
}

fn header(env: &ExecEnv, source: &GitSource) -> Result<Option<String>, StepFailure> {
    authorization::for_repository(&env.secrets, &source.remote, &source.remote)
}

fn failure(env: &ExecEnv, error: GitError) -> StepFailure {
    if env.cancel.reason().is_some() { StepFailure::Canceled } else { error.into() }
}

/// What a checkout is on top of.
struct Nothing;

impl ParentView for Nothing {
    fn entry(&self, _path: &RelPath) -> Result<Option<ParentEntry>, ParentViewError> {
        Ok(None)
    }
}
