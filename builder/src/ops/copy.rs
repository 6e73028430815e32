//! Executes COPY and ADD: a plan on trees, then files into a fresh layer directory. No mount, no sandbox.
//!
//! Archives that ADD meets are unpacked first: what is in them is part of the plan.

use std::os::fd::AsFd;
use std::sync::Arc;

use rbuild_cache::copy::{self, CopyItem, CopyOptions, FileSource, Sources};
use rbuild_cache::tree::Tree;
use rbuild_frontend::graph::{CopyOp, CopySource, RemoteForm};

use crate::context::ScannedContext;
use crate::error::StepFailure;
use crate::ops::added::AddedFiles;
use crate::ops::archive::{self, Unarchived};
use crate::ops::select::Selection;
use crate::ops::{ExecEnv, NewLayer, blocking, owner, size_bytes, without_same_root};
use crate::progress::VertexId;
use crate::solve::Solved;

/// Where the files come from.
#[derive(Clone)]
pub enum Origin {
    /// A build context.
    Context(Arc<ScannedContext>),
    /// Another stage or image.
    Stage(Arc<Solved>),
    /// What ADD fetched, by slot, and perhaps the build context.
    Added {
        /// The context, when there are paths among the sources.
        context: Option<Arc<ScannedContext>>,
        /// What was fetched.
        remotes: Vec<(u16, Arc<Solved>)>,
    },
    /// Only here-documents.
    Inline,
}

/// Copies into a new layer on top of `root`.
pub async fn execute(
    env: &Arc<ExecEnv>,
    copy: &CopyOp,
    root: &Arc<Solved>,
    origin: Origin,
    selection: Option<Arc<Selection>>,
    vertex: VertexId,
) -> Result<NewLayer, StepFailure> {
    let _slot = env.disk_slots.acquire().await.expect("the semaphore is never closed");
    env.events.started(vertex);
    let (env, copy, root) = (Arc::clone(env), copy.clone(), Arc::clone(root));
    blocking(move || layer(&env, &copy, &root, &origin, selection.as_deref())).await
}

fn layer(
    env: &ExecEnv,
    op: &CopyOp,
    root: &Solved,
    origin: &Origin,
    selection: Option<&Selection>,
) -> Result<NewLayer, StepFailure> {
    // The layer of `--link` is made on nothing: neither files nor accounts of the root matter.
    let below = if op.link { &Solved { tree: Tree::empty(), stack: Vec::new() } } else { root };
    let owner = op.chown.as_ref().map(|chown| owner::chown(env, below, &chown.text)).transpose()?;
    let parents = env.stack_source(below)?;
    let options = CopyOptions {
        dest: op.dest.clone(),
        owner,
        chmod: op.chmod.clone(),
        from_context: op.from_context,
        now: env.now(),
    };
    let files: Option<Box<dyn FileSource>> = match origin {
        Origin::Context(context) => Some(Box::new(context.files()?)),
        Origin::Stage(solved) => Some(Box::new(env.stack_source(solved)?)),
        Origin::Added { context, remotes } => {
            Some(Box::new(AddedFiles::new(env, context.as_deref(), remotes)?))
        }
        Origin::Inline => None,
    };
    let unarchived = match &files {
        Some(files) => unarchive(env, op, selection, files.as_ref())?,
        None => Vec::new(),
    };
    let items = items(op, selection, &unarchived);
    let nodes = crate::context::nodes_of(env, origin, selection);
    let source = files.as_deref();
    let plan = copy::plan(&nodes, &below.tree, &parents, source, &items, &options)?;
    let draft = env.store.draft(&env.lease)?;
    let archives: Vec<&dyn FileSource> = unarchived.iter().flatten().map(Unarchived::files).collect();
    let sources = Sources { main: source, archives: &archives };
    copy::materialise(&plan, draft.diff_fd().as_fd(), &sources, env.overlay.owners(), env.overlay)?;
    let diff = without_same_root(plan.diff, &below.tree.root);
    let tree = root.tree.apply(&env.store, &diff)?;
    let size_bytes = size_bytes(&diff);
    Ok(NewLayer { draft, diff, tree, size_bytes })
}

/// Unpacks what is an archive among all selected entries, in their order; `None` for what is not, or is to stay one.
fn unarchive(
    env: &ExecEnv,
    op: &CopyOp,
    selection: Option<&Selection>,
    files: &dyn FileSource,
) -> Result<Vec<Option<Unarchived>>, StepFailure> {
    let mut unarchived = Vec::new();
    for (at, source) in op.sources.iter().enumerate() {
        let unpack = match source {
            CopySource::Remote { form, .. } => *form == RemoteForm::Archive,
            CopySource::Path(_) | CopySource::Below { .. } | CopySource::Inline { .. } => op.unpack,
        };
        for selected in selection.map(|s| s.sources[at].as_slice()).unwrap_or_default() {
            unarchived.push(if unpack { archive::unpack(env, selected, files)? } else { None });
        }
    }
    Ok(unarchived)
}

/// What to copy, in the arguments' order. `unarchived` has a place for each selected entry.
fn items<'a>(
    op: &CopyOp,
    selection: Option<&Selection>,
    unarchived: &'a [Option<Unarchived>],
) -> Vec<CopyItem<'a>> {
    let mut items = Vec::new();
    let mut unarchived = unarchived.iter();
    for (at, source) in op.sources.iter().enumerate() {
        match source {
            CopySource::Path(_) | CopySource::Below { .. } | CopySource::Remote { .. } => {
                for selected in selection.map(|s| s.sources[at].as_slice()).unwrap_or_default() {
                    items.push(match unarchived.next() {
                        Some(Some(archive)) => CopyItem::Archive(archive.archive()),
                        _ => CopyItem::Selected(selected.clone()),
                    });
                }
            }
            CopySource::Inline { name, content } => {
                items.push(CopyItem::Inline {
                    name: name.clone().into_bytes(),
                    content: content.clone().into_bytes(),
                });
            }
        }
    }
    items
}
