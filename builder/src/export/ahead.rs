//! Sends layers to the registries while later steps run.
//!
//! A layer of a target is final when its step has ended: from then on it is emitted and uploaded to every destination.
//! A large one begins to go up while it is being compressed, or copied. What is left for the end is the last layer, the configs,
//! the manifests and the tags. What goes wrong here is tried
//! again then, and reported then. A build that fails leaves at most blobs behind that no manifest names, which the
//! registry's own collection removes.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use petgraph::graph::NodeIndex;
use rbuild_cache::store::LayerId;
use rbuild_frontend::graph::{BuildGraph, Op};
use rbuild_registry::Client;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::assemble::emit::{emit_ahead, left_ahead};
use crate::assemble::growing::{Growing, listener};
use crate::assemble::left_layers;
use crate::assemble::manifest::{LayerBlob, Packing};
use crate::cancel::Reason;
use crate::cli::{ImageOutput, OutputArg, Results};
use crate::export::outputs::{layer_compression, rewrites};
use crate::export::registry::Push;
use crate::ops::ExecEnv;
use crate::progress::Outcome;
use crate::solve::run::Solver;

/// The pushes of a build that have begun.
pub struct Ahead {
    env: Arc<ExecEnv>,
    tasks: JoinSet<()>,
    /// By the number of the output.
    pushes: BTreeMap<usize, Arc<Push>>,
    /// Closed when all layers are emitted.
    emitting: watch::Receiver<()>,
}

/// Held by who has layers to emit, and dropped when they are.
pub type Emitting = watch::Sender<()>;

impl Ahead {
    /// Begins with every output that pushes. `begins` is false for a build in which nothing is executed: there the push
    /// itself asks less.
    pub fn start(
        results: &Results,
        env: &Arc<ExecEnv>,
        registry: &Client,
        graph: &Arc<BuildGraph>,
        solver: &Arc<Solver>,
        begins: bool,
    ) -> Self {
        let (emits, emitting) = watch::channel(());
        let env = Arc::clone(env);
        let mut ahead = Self { env, tasks: JoinSet::new(), pushes: BTreeMap::new(), emitting };
        for (number, output) in results.outputs.iter().enumerate() {
            let OutputArg::Image(image) = output else { continue };
            if !image.push || !begins {
                continue;
            }
            let env = &ahead.env;
            let push = Arc::new(Push::new(registry, env, image.names.clone()));
            ahead.pushes.insert(number, Arc::clone(&push));
            if env.wanted_compression == Some(packing(image).compression) {
                let (heard, env) = (env.passing.listen(), Arc::clone(env));
                let push = Arc::clone(&push);
                ahead.tasks.spawn(async move { send_made_by_steps(&env, heard, &push).await });
            }
            for target in 0..graph.targets.len() {
                let follower = Follower {
                    env: Arc::clone(env),
                    graph: Arc::clone(graph),
                    solver: Arc::clone(solver),
                    push: Arc::clone(&push),
                    packing: packing(image),
                    rewrites: rewrites(results, &image.packing),
                };
                let emits = emits.clone();
                ahead.tasks.spawn(async move { follower.follow(target, emits).await });
            }
        }
        ahead
    }

    /// The push of an output, when it has begun.
    pub fn push(&self, output: usize) -> Option<Arc<Push>> {
        self.pushes.get(&output).cloned()
    }

    /// Waits until the layers of steps that have ended are emitted, though perhaps not sent. Who asks for one of them sooner
    /// has it hashed for itself, once more than needed, and nobody can read along.
    pub async fn emitted(&self) {
        let mut emitting = self.emitting.clone();
        while emitting.changed().await.is_ok() {}
    }

    /// Gives up, and returns when nothing of it runs any more.
    pub async fn stop(mut self) {
        self.env.cancel.cancel(Reason::Failure);
        while self.tasks.join_next().await.is_some() {}
        for push in self.pushes.values() {
            push.ended(Outcome::Canceled);
        }
    }
}

/// How new layers are emitted; what else the packing says is for the end.
fn packing(image: &ImageOutput) -> Packing {
    let packing = &image.packing;
    Packing { force: packing.force, ..layer_compression(packing.compression).into() }
}

/// Follows the steps of one target for one output.
struct Follower {
    env: Arc<ExecEnv>,
    graph: Arc<BuildGraph>,
    solver: Arc<Solver>,
    push: Arc<Push>,
    packing: Packing,
    rewrites: bool,
}

impl Follower {
    async fn follow(self, target: usize, emits: Emitting) {
        let follower = Arc::new(self);
        let target = &follower.graph.targets[target];
        let mut sending = JoinSet::new();
        let mut seen = HashSet::new();
        // The base image, and then each step with the number of layers that this build has made so far.
        let base = target.base.map(|node| (0, node));
        let steps = target.layers.iter().enumerate().map(|(at, node)| (at + 1, *node));
        for (made, node) in base.into_iter().chain(steps) {
            // Below what is cached nothing is looked at: its layers come with the first step that is.
            let Some(solved) = follower.solver.result(node).await else { continue };
            if let Some(below) = solved.below.as_deref().filter(|_| made == 0) {
                for layer in left_layers(below) {
                    let (follower, emits) = (Arc::clone(&follower), emits.clone());
                    sending.spawn(async move {
                        let blob = left_ahead(&follower.env, layer, &follower.packing).await;
                        drop(emits);
                        if let Ok(blob) = blob {
                            send(&follower.env, &follower.push, &blob).await;
                        }
                    });
                }
            }
            let base_count = solved.stack.len().saturating_sub(made);
            for (at, id) in solved.stack.iter().copied().enumerate().filter(|(_, id)| seen.insert(*id)) {
                let own = at.checked_sub(base_count).map(|at| target.layers[at]);
                let clamp = follower.clamp(own);
                let (follower, emits) = (Arc::clone(&follower), emits.clone());
                sending.spawn(async move {
                    let (env, push, packing) = (&follower.env, &follower.push, &follower.packing);
                    send_layer(env, push, (id, own.is_none(), clamp), packing, Some(emits)).await;
                });
            }
        }
        drop(emits);
        while sending.join_next().await.is_some() {}
    }

    /// As the image will have it.
    fn clamp(&self, own: Option<NodeIndex>) -> Option<i64> {
        let node = own?;
        let is_workdir = matches!(self.graph.dag[node].op, Op::Workdir(_));
        self.env.source_date_epoch().filter(|_| self.rewrites || is_workdir)
    }
}

/// Emits a layer (its id, whether it is the base's, its newest time) and brings it to all destinations, a large one while
/// it is being emitted. `emits` is dropped when it is. What goes wrong is tried again by who finishes the push, and reported
/// then.
pub async fn send_layer(
    env: &Arc<ExecEnv>,
    push: &Push,
    (id, is_base, clamp): (LayerId, bool, Option<i64>),
    packing: &Packing,
    emits: Option<Emitting>,
) {
    let (listener, heard) = listener();
    let whole = async {
        let blob = emit_ahead(env, id, is_base, clamp, packing, listener).await;
        drop(emits);
        if let Ok(blob) = blob {
            send(env, push, &blob).await;
        }
    };
    let growing = async {
        if let Ok(growing) = heard.await {
            until_stopped(env, push.stream(&growing)).await;
        }
    };
    tokio::join!(whole, growing);
}

/// To all destinations at once.
async fn send(env: &ExecEnv, push: &Push, blob: &LayerBlob) {
    let names = push.names().iter().map(|name| push.layer(name, blob));
    until_stopped(env, futures_util::future::join_all(names)).await;
}

/// Sends layers that steps compress as they make them; ends when the build is stopped.
async fn send_made_by_steps(env: &ExecEnv, mut heard: UnboundedReceiver<Growing>, push: &Arc<Push>) {
    let mut sending = JoinSet::new();
    let listening = async {
        while let Some(growing) = heard.recv().await {
            let push = Arc::clone(push);
            sending.spawn(async move { push.stream(&growing).await });
        }
    };
    until_stopped(env, listening).await;
}

async fn until_stopped(env: &ExecEnv, work: impl Future) {
    tokio::select! {
        _ = work => {}
        () = env.cancel.cancelled() => {}
    }
}
