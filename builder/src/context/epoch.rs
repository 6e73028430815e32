//! `SOURCE_DATE_EPOCH=NAME`: the time of a context, or of a stage that is made of sources alone, in place of a number.
//!
//! Of a repository that is the commit's, of a file on a web server its `Last-Modified`, of an archive its newest member's.
//! A directory has none: its times are those of a checkout. The files are fetched for it, once, as for the build itself.

use std::sync::Arc;

use rbuild_cache::layer::{LayerDiff, ListingError};
use rbuild_cache::store::LayerId;
use rbuild_frontend::graph::{BuildGraph, CopySource, Op};
use rbuild_frontend::lower::{EPOCH, EpochOf, LowerOptions, Lowering, Progress};
use rbuild_frontend::parse::Parsed;

use super::{ScannedContext, remote};
use crate::cli::{BuildRequest, NamedContextArg};
use crate::error::{BuildError, StepFailure};
use crate::ops::{ExecEnv, git, http};
use crate::solve::pin;

/// When the newest thing in a layer was made, in seconds.
pub(super) fn newest(diff: &LayerDiff) -> Result<Option<i64>, ListingError> {
    diff.iter().try_fold(None, |newest, entry| Ok(newest.max(Some(entry?.mtime.secs))))
}

/// The time in seconds. `main` is the main context unless that is a directory.
pub async fn time_of(
    of: &EpochOf,
    main: Option<&ScannedContext>,
    request: &BuildRequest,
    parsed: &Parsed,
    options: &LowerOptions,
    env: &Arc<ExecEnv>,
) -> Result<i64, BuildError> {
    let use_cache = !request.control.no_cache;
    match of {
        EpochOf::Context => match main {
            Some(context) => of_context("context", context, env),
            None => Err(without_time("context", DIRECTORY)),
        },
        EpochOf::Named(name) => {
            let known = request.named_contexts.iter().find(|(known, _)| known == name);
            match known.map(|(_, arg)| arg) {
                Some(NamedContextArg::Git(source)) => {
                    of_context(name, &remote::git(env, source, false, use_cache).await?.context, env)
                }
                Some(NamedContextArg::Http(source)) => {
                    of_context(name, &remote::archive(env, source, use_cache).await?.context, env)
                }
                Some(NamedContextArg::Dir(_)) => Err(without_time(name, DIRECTORY)),
                Some(NamedContextArg::Image(_) | NamedContextArg::OciLayout { .. }) | None => {
                    Err(without_time(name, "an image has no time of its sources"))
                }
            }
        }
        EpochOf::Stage(name) => {
            let mut options = LowerOptions { target: Some(name.clone()), ..options.clone() };
            // Not asked for again: the question is what it is.
            options.build_args.insert(EPOCH.to_owned(), String::new());
            let graph = match Lowering::new(parsed, options).step() {
                Progress::Done(graph) if is_of_sources(&graph) => *graph,
                Progress::Done(_) | Progress::Need(_) | Progress::NeedEpoch(_) | Progress::Failed => {
                    return Err(without_time(
                        name,
                        "it is not a stage of ADD with addresses on FROM scratch",
                    ));
                }
            };
            of_sources(name, graph, use_cache, env).await
        }
    }
}

const DIRECTORY: &str = "the files of a directory have the times of their checkout, not of their making";

fn without_time(name: &str, why: &'static str) -> BuildError {
    BuildError::Epoch { name: name.to_owned(), why }
}

fn of_context(name: &str, context: &ScannedContext, env: &ExecEnv) -> Result<i64, BuildError> {
    let found = match context.layer {
        Some(layer) => of_layer(layer, env)?,
        None => context.newest_unix,
    };
    found.ok_or_else(|| without_time(name, "it is empty"))
}

fn of_layer(layer: LayerId, env: &ExecEnv) -> Result<Option<i64>, BuildError> {
    Ok(newest(&env.store.layer_diff(layer)?).map_err(StepFailure::from)?)
}

/// Whether nothing but what ADD fetches is in the image of the only target.
fn is_of_sources(graph: &BuildGraph) -> bool {
    graph.dag.node_weights().all(|node| match &node.op {
        Op::Scratch | Op::Git(_) | Op::Http(_) => true,
        Op::Copy(copy) => copy.sources.iter().all(|source| matches!(source, CopySource::Remote { .. })),
        Op::Image(_) | Op::Context(_) | Op::Workdir(_) | Op::Run(_) => false,
    })
}

/// The newest of what a graph fetches.
async fn of_sources(
    name: &str,
    mut graph: BuildGraph,
    use_cache: bool,
    env: &Arc<ExecEnv>,
) -> Result<i64, BuildError> {
    let mut fetched = pin::pin(&mut graph, env, use_cache).await?;
    let mut times = Vec::new();
    for node in graph.dag.node_indices() {
        let vertex = || env.events.vertex(format!("[internal] load {}", graph.dag[node].step.name));
        let solved = match (fetched.remove(&node), &graph.dag[node].op) {
            (Some(solved), _) => solved,
            (None, Op::Git(op)) => git::files(env, op, use_cache, vertex()).await?,
            (None, Op::Http(op)) => http::file(env, op, use_cache, vertex()).await?.solved,
            (None, _) => continue,
        };
        for layer in &solved.stack {
            times.extend(of_layer(*layer, env)?);
        }
    }
    times.into_iter().max().ok_or_else(|| without_time(name, "it is empty"))
}
