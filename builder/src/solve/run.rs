//! Executes what the plan left over.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use petgraph::graph::NodeIndex;
use rbuild_cache::layer::TimesDigest;
use rbuild_cache::store::{Key, KeyLock, LayerId, LockHolder, Made, ResultRecord, Transition};
use rbuild_cache::tree::Tree;
use rbuild_frontend::graph::{BuildGraph, Node, Op, Role};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::cancel::Reason;
use crate::context::{ScannedContext, absent};
use crate::error::{BuildError, StepError, StepFailure, one_line};
use crate::explain::{self, Explainer, Inputs};
use crate::mounts::{MountInput, Mounted};
use crate::ops::select::{Selection, select_sources};
use crate::ops::{self, ExecEnv, NewLayer};
use crate::progress::{Outcome, VertexId};
use crate::resolve::{BaseImage, BaseImages};
use crate::solve::Solved;
use crate::solve::keys::{self, InputDigest};
use crate::solve::mounted::mounted;
use crate::solve::plan::{Contexts, Plan, context_selection};
use crate::solve::reuse::Reuse;
use crate::solve::whole::whole;
use crate::timestamp;

/// Steps in hand at once, unless more may run.
const IN_HAND_MAX: usize = 64;

/// A node's result as its consumers wait for it; `Err` means «will never come».
type Cell = watch::Sender<Option<Result<Arc<Solved>, Stopped>>>;

/// An input failed or the build was stopped; the reason is kept once, by the solver.
#[derive(Debug, Clone, Copy)]
struct Stopped;

/// Everything the tasks of one build share.
pub struct Solver {
    graph: Arc<BuildGraph>,
    plan: Plan,
    contexts: Contexts,
    images: BaseImages,
    env: Arc<ExecEnv>,
    /// Nodes whose layers have to be directories.
    mounted: HashSet<NodeIndex>,
    /// Nodes whose files something looks at.
    whole: HashSet<NodeIndex>,
    explainer: Arc<Explainer>,
    vertices: HashMap<NodeIndex, VertexId>,
    cells: HashMap<NodeIndex, Cell>,
    first_error: Mutex<Option<StepError>>,
    /// Steps that hold a lock and are executed or wait for a slot. Each has open files: a wide graph must not take as many
    /// as it has steps.
    in_hand: Semaphore,
    executed: AtomicUsize,
    verified: AtomicUsize,
    differing: AtomicUsize,
}

impl Solver {
    /// Announces all nodes in order and prepares the cells. `reads_targets` says that somebody wants the files of the
    /// result.
    pub fn new(
        graph: Arc<BuildGraph>,
        plan: Plan,
        contexts: Contexts,
        images: BaseImages,
        env: Arc<ExecEnv>,
        explainer: Arc<Explainer>,
        reads_targets: bool,
    ) -> Self {
        let mut vertices = HashMap::new();
        let order = petgraph::algo::toposort(&graph.dag, None).expect("planned graphs have no cycles");
        for node in order {
            let was_shown = matches!(&graph.dag[node].op, Op::Http(http) if http.content.is_some());
            if was_shown || matches!(graph.dag[node].op, Op::Context(_) | Op::Scratch) {
                continue;
            }
            let id = env.events.vertex(&graph.dag[node].step.name);
            vertices.insert(node, id);
            let is_known = plan.hits.contains_key(&node) || plan.covered.contains(&node);
            if is_known {
                env.events.started(id);
                env.events.finished(id, Outcome::Cached);
            }
        }
        let mounted = mounted(&graph, &plan.needed);
        // As many as may run must be in hand, and others that copy meanwhile.
        let run_slots = env.run_slots.available_permits();
        let whole = whole(&graph, &plan.needed, reads_targets);
        let cells = plan.needed.iter().map(|node| (*node, watch::Sender::new(None))).collect();
        Self {
            graph,
            plan,
            contexts,
            images,
            env,
            mounted,
            whole,
            explainer,
            vertices,
            cells,
            first_error: Mutex::new(None),
            in_hand: Semaphore::new(IN_HAND_MAX.max(2 * run_slots)),
            executed: AtomicUsize::new(0),
            verified: AtomicUsize::new(0),
            differing: AtomicUsize::new(0),
        }
    }

    /// Steps that were executed so far.
    pub fn executed(&self) -> usize {
        self.executed.load(Ordering::Relaxed)
    }

    /// Cached results whose steps were executed again.
    pub fn verified(&self) -> usize {
        self.verified.load(Ordering::Relaxed)
    }

    /// The image that a node is, when it is one.
    pub fn image(&self, node: NodeIndex) -> Option<Arc<BaseImage>> {
        match &self.graph.dag[node].op {
            Op::Image(image) => self.images.get(&image.manifest).cloned(),
            _ => None,
        }
    }

    /// What a node gives, as soon as it has; `None` when it failed, or is below what is cached and not looked at.
    pub async fn result(&self, node: NodeIndex) -> Option<Arc<Solved>> {
        if let Some(solved) = self.plan.hits.get(&node) {
            return Some(Arc::clone(solved));
        }
        let mut cell = self.cells.get(&node)?.subscribe();
        let value = cell.wait_for(Option::is_some).await.ok()?;
        value.as_ref()?.as_ref().ok().cloned()
    }

    /// Solves all targets. Returns when no task of the build runs any more, whatever the outcome.
    pub async fn solve(self: Arc<Self>) -> Result<Vec<Arc<Solved>>, BuildError> {
        self.note_hits();
        let mut tasks = JoinSet::new();
        for &node in &self.plan.needed {
            let solver = Arc::clone(&self);
            tasks.spawn(async move { solver.node(node).await });
        }
        while let Some(joined) = tasks.join_next().await {
            if let Err(panic) = joined {
                self.env.cancel.cancel(Reason::Failure);
                std::panic::resume_unwind(panic.into_panic());
            }
        }
        if matches!(self.env.cancel.reason(), Some(Reason::Signal(_))) {
            return Err(BuildError::Canceled);
        }
        if let Some(error) = self.first_error.lock().expect("no holder panics").take() {
            return Err(BuildError::Step(Box::new(error)));
        }
        // All steps were compared, and nothing is exported yet: what is not reproduced is named nowhere.
        let differing = self.differing.load(Ordering::Relaxed);
        if differing > 0 {
            return Err(BuildError::NotReproduced { differing, verified: self.verified() });
        }
        self.graph.targets.iter().map(|target| self.known(target.node).ok_or(BuildError::Canceled)).collect()
    }

    /// What hit by definition is remembered where it stands. The plan has it in no order, the graph does.
    fn note_hits(&self) {
        let (plan, dag) = (&self.plan, &self.graph.dag);
        let is_hit = |node: &NodeIndex| plan.hits.contains_key(node) || plan.covered.contains(node);
        let hits: Vec<_> = dag
            .node_indices()
            .filter(|node| matches!(dag[*node].op, Op::Copy(_) | Op::Workdir(_) | Op::Run(_)) && is_hit(node))
            .map(|node| (node, plan.def_keys[&node], plan.def_keys[&node]))
            .collect();
        self.explainer.hit(&hits, plan.hits.len() == 1);
    }

    /// The result of a node that was solved.
    pub fn known(&self, node: NodeIndex) -> Option<Arc<Solved>> {
        match self.plan.hits.get(&node) {
            Some(solved) => Some(Arc::clone(solved)),
            None => self.cells.get(&node)?.borrow().as_ref()?.as_ref().ok().cloned(),
        }
    }

    async fn node(&self, node: NodeIndex) {
        let result = match self.inputs(node).await {
            Err(stopped) => Err(stopped),
            Ok(_) if self.env.cancel.reason().is_some() => Err(Stopped),
            // In a box: until its inputs are there a task is a few hundred bytes, with it some thousands.
            Ok(inputs) => {
                Box::pin(self.solve_node(node, &inputs)).await.map_err(|failure| self.failed(node, failure))
            }
        };
        self.cells[&node].send_replace(Some(result));
    }

    /// Notes the first failure, stops the build, ends the vertex.
    fn failed(&self, node: NodeIndex, failure: StepFailure) -> Stopped {
        let outcome = match (self.env.cancel.reason(), &failure) {
            (Some(_), StepFailure::Canceled) => Outcome::Canceled,
            _ => Outcome::Error(one_line(&failure)),
        };
        if !matches!(failure, StepFailure::Canceled) {
            let mut first = self.first_error.lock().expect("no holder panics");
            first.get_or_insert_with(|| StepError::new(&self.graph.dag[node].step, failure));
        }
        if let Some(id) = self.vertices.get(&node) {
            self.env.events.finished(*id, outcome);
        }
        self.env.cancel.cancel(Reason::Failure);
        Stopped
    }

    /// Waits for all inputs but contexts, by slot.
    async fn inputs(&self, node: NodeIndex) -> Result<Vec<(u16, Role, Arc<Solved>)>, Stopped> {
        let mut inputs = Vec::new();
        for (input, producer) in self.graph.inputs(node) {
            if matches!(self.graph.dag[producer].op, Op::Context(_)) {
                continue;
            }
            let solved = match self.plan.hits.get(&producer) {
                Some(solved) => Arc::clone(solved),
                None => {
                    let mut cell = self.cells[&producer].subscribe();
                    let value = cell.wait_for(Option::is_some).await.map_err(|_| Stopped)?;
                    value.as_ref().expect("waited for").clone()?
                }
            };
            inputs.push((input.slot, input.role, solved));
        }
        Ok(inputs)
    }

    async fn solve_node(
        &self,
        node: NodeIndex,
        inputs: &[(u16, Role, Arc<Solved>)],
    ) -> Result<Arc<Solved>, StepFailure> {
        let op = &self.graph.dag[node].op;
        match op {
            Op::Scratch => Ok(Arc::new(Solved::whole(Tree::empty(), Vec::new()))),
            Op::Context(_) => unreachable!("contexts are leaves, never solved"),
            Op::Image(image) => {
                let vertex = self.vertices[&node];
                let base =
                    self.images.get(&image.manifest).expect("lowering only names images that were resolved");
                if !self.whole.contains(&node)
                    && let Some(left) = ops::image::left_there(&self.env, base, vertex)?
                {
                    return Ok(Arc::new(left));
                }
                Ok(Arc::new(ops::image::materialise(&self.env, base, vertex).await?))
            }
            Op::Http(http) => {
                let vertex = self.vertices[&node];
                let use_cache = self.takes_fetched(node);
                Ok(ops::http::file(&self.env, http, use_cache, vertex).await?.solved)
            }
            Op::Git(git) => {
                ops::git::files(&self.env, git, self.takes_fetched(node), self.vertices[&node]).await
            }
            Op::Copy(_) | Op::Workdir(_) | Op::Run(_) => self.step(node, op, inputs).await,
        }
    }

    /// A step that makes a layer: content look-up, lock, second look-up, execution, record.
    async fn step(
        &self,
        node: NodeIndex,
        op: &Op,
        inputs: &[(u16, Role, Arc<Solved>)],
    ) -> Result<Arc<Solved>, StepFailure> {
        let vertex = self.vertices[&node];
        let root = inputs
            .iter()
            .find_map(|(_, role, solved)| (*role == Role::Root).then(|| Arc::clone(solved)))
            .expect("every step has a root input");
        let source =
            inputs.iter().find_map(|(_, role, solved)| (*role == Role::Source).then(|| Arc::clone(solved)));
        let remotes: Vec<_> = inputs
            .iter()
            .filter(|(_, role, _)| *role == Role::Added)
            .map(|(slot, _, solved)| (*slot, Arc::clone(solved)))
            .collect();
        let selection = self.selection(node, op, source.as_deref(), &remotes)?;
        let mounts = self.mount_inputs(node, op, inputs)?;
        if let (Some(entered), Op::Run(run)) = (self.plan.entered, op)
            && entered == node
        {
            let step = &self.graph.dag[node].step;
            return Err(ops::run::hold(&self.env, step, run, &root, mounts, vertex).await);
        }
        let is_linked = matches!(op, Op::Copy(copy) if copy.link);
        let mut digests = Vec::new();
        if !is_linked {
            digests.push(InputDigest { slot: 0, digest: root.tree.digest().0 });
        }
        if let Some(selection) = &selection {
            digests.push(InputDigest { slot: 1, digest: selection.digest });
        }
        digests.extend(
            mounts.iter().map(|mount| InputDigest { slot: mount.slot, digest: mount.mounted.digest }),
        );
        let key = keys::content_key(op, &digests);
        let def_key = &self.plan.def_keys[&node];
        let reuse = self.plan.reuse.of(&self.graph, node);
        let origin = self.origin(node, source, remotes);
        let read = beside(&root, inputs);
        let take = || match &reuse {
            Reuse::Never(_) => Ok(None),
            Reuse::Take | Reuse::Verify => self.by_content(&key, def_key, &root, &read, is_linked),
        };
        let mut found = take()?;
        let mut lock = None;
        let _in_hand = match found {
            Some(_) => None,
            None => Some(self.in_hand.acquire().await.expect("the semaphore is never closed")),
        };
        if found.is_none() {
            lock = Some(self.lock(&key, vertex).await?);
            // Another process may have finished it between the look-up and the lock.
            found = take()?;
        }
        if let Some(solved) = found {
            drop(lock);
            self.explainer.hit(&[(node, *def_key, key)], true);
            match reuse {
                Reuse::Verify => {
                    let made = self.execute(node, &root, &origin, &selection, &mounts, vertex).await?;
                    self.compare(vertex, &solved.tree, &made.tree);
                }
                Reuse::Take | Reuse::Never(_) => self.cached(vertex),
            }
            return Ok(solved);
        }
        let nodes =
            crate::context::nodes_of(&self.env.store, &origin, selection.as_ref().map(|it| &*it.pruned));
        let (use_cache, forced) = match reuse {
            Reuse::Never(cause) => (false, Some(cause)),
            Reuse::Take | Reuse::Verify => (true, None),
        };
        let inputs = Inputs {
            def: def_key,
            key: &key,
            digests: &digests,
            selection: selection.as_deref(),
            mounts: &mounts,
            nodes: &nodes,
            forced,
        };
        let miss = self.explainer.miss(node, &inputs);
        self.explainer.say(&miss, &self.env.events, vertex);
        let (started, began) = (Instant::now(), timestamp::unix_ns());
        let made = self.execute(node, &root, &origin, &selection, &mounts, vertex).await;
        let solved = made.and_then(|new| {
            let recent = new.recent;
            let solved =
                self.record(node, &key, def_key, (&root, &read), new, (started, began), use_cache)?;
            if let (Some(step), Some(layer)) = (recent, solved.stack.last()) {
                self.env.store.put_recent_layer(&step, *layer)?;
            }
            Ok(solved)
        });
        if !matches!(solved, Err(StepFailure::Canceled)) {
            self.explainer.executed(miss, started.elapsed(), solved.is_err(), &nodes);
        }
        let solved = solved?;
        drop(lock);
        self.executed.fetch_add(1, Ordering::Relaxed);
        self.env.events.finished(vertex, Outcome::Done);
        Ok(solved)
    }

    /// What the mounts of a RUN read.
    fn mount_inputs(
        &self,
        node: NodeIndex,
        op: &Op,
        inputs: &[(u16, Role, Arc<Solved>)],
    ) -> Result<Vec<MountInput>, StepFailure> {
        let Op::Run(run) = op else { return Ok(Vec::new()) };
        let mut mounts = Vec::new();
        for (input, producer) in self.graph.inputs(node) {
            let Role::Mount(index) = input.role else { continue };
            let (origin, mounted) = match &self.graph.dag[producer].op {
                Op::Context(context) => {
                    let mounted = Arc::clone(&self.plan.mounted[&(node, input.slot)]);
                    (ops::copy::Origin::Context(Arc::clone(&self.contexts[&context.name])), mounted)
                }
                _ => {
                    let solved = inputs.iter().find(|(slot, ..)| *slot == input.slot);
                    let (_, _, solved) = solved.expect("every input but contexts was waited for");
                    let mount = &run.mounts[usize::from(index)];
                    let mounted =
                        Mounted::of(mount, &solved.tree, &self.env.store, &self.env.store.scratch())
                            .map_err(|error| absent::in_stage(&solved.tree, &self.env.store, error))?;
                    (ops::copy::Origin::Stage(Arc::clone(solved)), Arc::new(mounted))
                }
            };
            mounts.push(MountInput { index: usize::from(index), slot: input.slot, origin, mounted });
        }
        Ok(mounts)
    }

    /// True when a leaf may be what was fetched earlier.
    fn takes_fetched(&self, node: NodeIndex) -> bool {
        !matches!(self.plan.reuse.of(&self.graph, node), Reuse::Never(_))
    }

    async fn execute(
        &self,
        node: NodeIndex,
        root: &Arc<Solved>,
        origin: &ops::copy::Origin,
        selection: &Option<Arc<Selection>>,
        mounts: &[MountInput],
        vertex: VertexId,
    ) -> Result<NewLayer, StepFailure> {
        let Node { op, step, .. } = &self.graph.dag[node];
        // In boxes, too: many more steps wait for their turn than are in hand.
        match op {
            Op::Run(run) => {
                Box::pin(ops::run::execute(&self.env, step, run, root, mounts.to_vec(), vertex)).await
            }
            Op::Copy(copy) => {
                let keep = self.keep(node, op, origin);
                let (origin, selection) = (origin.clone(), selection.clone());
                Box::pin(ops::copy::execute(&self.env, copy, root, origin, selection, keep, vertex)).await
            }
            Op::Workdir(workdir) => ops::workdir::execute(&self.env, workdir, root, vertex).await,
            Op::Scratch | Op::Image(_) | Op::Context(_) | Op::Http(_) | Op::Git(_) => {
                unreachable!("not steps")
            }
        }
    }

    /// Says how a step that was executed again compares with its cached result, and ends its vertex.
    fn compare(&self, vertex: VertexId, cached: &Tree, made: &Tree) {
        self.verified.fetch_add(1, Ordering::Relaxed);
        if cached.digest() == made.digest() {
            self.env.events.note(vertex, "verified: the same as the cached result");
        } else {
            self.differing.fetch_add(1, Ordering::Relaxed);
            let cause = explain::difference_of(cached, made, &self.env.store);
            self.env.events.note(vertex, format!("NOT the same as the cached result: {cause}"));
        }
        self.env.events.finished(vertex, Outcome::Done);
    }

    fn selection(
        &self,
        node: NodeIndex,
        op: &Op,
        source: Option<&Solved>,
        remotes: &[(u16, Arc<Solved>)],
    ) -> Result<Option<Arc<Selection>>, StepFailure> {
        if let (Op::Copy(copy), false) = (op, remotes.is_empty()) {
            let context = self.context_selection(node, op)?;
            let origin = self.origin(node, None, remotes.to_vec());
            let pruned = &self.plan.pruned;
            let selected = ops::added::select(copy, context.as_deref(), &origin, pruned, &self.env.store)?;
            return Ok(Some(Arc::new(selected)));
        }
        if let Some(selection) = self.context_selection(node, op)? {
            return Ok(Some(selection));
        }
        match (op, source) {
            (Op::Copy(copy), Some(source)) => {
                let (store, pruned) = (&self.env.store, &self.plan.pruned);
                let selection = select_sources(copy, &source.tree, store, pruned, &store.scratch())
                    .map_err(|error| absent::in_stage(&source.tree, store, error))?;
                Ok(Some(Arc::new(selection)))
            }
            _ => Ok(None),
        }
    }

    /// What a COPY selects from a context, if it reads one. A large selection was not kept when its digest was known.
    fn context_selection(&self, node: NodeIndex, op: &Op) -> Result<Option<Arc<Selection>>, StepFailure> {
        if let Some(selection) = self.plan.selections.get(&node) {
            return Ok(Some(Arc::clone(selection)));
        }
        let (Op::Copy(_), Some(context)) = (op, self.context(node)) else { return Ok(None) };
        let scratch = self.env.store.scratch();
        context_selection(op, &context, &self.plan.pruned, &scratch)
            .map(|selection| Some(Arc::new(selection)))
    }

    fn context(&self, node: NodeIndex) -> Option<Arc<ScannedContext>> {
        self.graph.inputs(node).into_iter().find_map(|(_, producer)| {
            let Op::Context(context) = &self.graph.dag[producer].op else { return None };
            self.contexts.get(&context.name).cloned()
        })
    }

    fn origin(
        &self,
        node: NodeIndex,
        source: Option<Arc<Solved>>,
        remotes: Vec<(u16, Arc<Solved>)>,
    ) -> ops::copy::Origin {
        if let Some(source) = source {
            return ops::copy::Origin::Stage(source);
        }
        let context = self.context(node);
        if !remotes.is_empty() {
            return ops::copy::Origin::Added { context, remotes };
        }
        context.map_or(ops::copy::Origin::Inline, ops::copy::Origin::Context)
    }

    /// How the layer of a copy is kept.
    fn keep(&self, node: NodeIndex, op: &Op, origin: &ops::copy::Origin) -> ops::copy::Keep {
        if self.mounted.contains(&node) {
            return ops::copy::Keep::Directory;
        }
        let context = match origin {
            ops::copy::Origin::Context(context) => context.identity,
            ops::copy::Origin::Added { context, .. } => context.as_ref().and_then(|context| context.identity),
            ops::copy::Origin::Stage(_) | ops::copy::Origin::Inline => None,
        };
        let is_of_image = self.graph.targets.iter().any(|target| target.layers.contains(&node));
        // `--no-cache` asks for new times, too.
        let keeps_times = self.takes_fetched(node);
        ops::copy::Keep::Packs { recent: keys::recent_key(op, context), is_of_image, keeps_times }
    }

    fn by_content(
        &self,
        key: &Key,
        def_key: &Key,
        root: &Solved,
        read: &[LayerId],
        is_linked: bool,
    ) -> Result<Option<Arc<Solved>>, StepFailure> {
        let Some(record) = self.env.store.result(key)? else { return Ok(None) };
        let Some(layer) = record.own_layer else { return Ok(None) };
        let mut tree = record.tree;
        if is_linked {
            // The record may be of another root: its layer is right for any, its tree is not.
            tree = root.tree.apply(
                &self.env.store,
                &self.env.store.layer_diff(layer)?,
                &self.env.store.scratch(),
            )?;
        }
        let mut stack = root.stack.clone();
        stack.push(layer);
        // A state is not known before what is below it is: nothing to remember under a definition.
        if root.below.is_none() {
            let record = ResultRecord {
                tree: tree.clone(),
                tree_digest: tree.digest(),
                stack: Some(stack.clone()),
                read: read.to_vec(),
                ..record
            };
            self.env.store.put_result(def_key, &record)?;
        }
        Ok(Some(Arc::new(Solved { tree, stack, below: root.below.clone() })))
    }

    /// Takes the lock of a step. Whoever must wait says for whom: others are told what this build is.
    async fn lock(&self, key: &Key, vertex: VertexId) -> Result<KeyLock, StepFailure> {
        let build = self.explainer.build_name();
        if let Some(lock) = self.env.store.try_key_lock(key, build)? {
            return Ok(lock);
        }
        let (store, key, build, events) =
            (self.env.store.clone(), *key, build.to_owned(), self.env.events.clone());
        let waiting = tokio::task::spawn_blocking(move || {
            store.key_lock(&key, &build, |holder| events.note(vertex, waiting_for(&holder)))
        });
        tokio::select! {
            lock = waiting => Ok(lock.expect("locking does not panic")?),
            () = self.env.cancel.cancelled() => Err(StepFailure::Canceled),
        }
    }

    fn cached(&self, vertex: VertexId) {
        self.env.events.started(vertex);
        self.env.events.finished(vertex, Outcome::Cached);
    }

    /// Commits a new layer and records it under both keys. A step that was executed again and did the same keeps
    /// the older layer, so everything after it stays cached and the image's digest does not move; with `use_cache`
    /// false the user asked for what this execution made. The step `began` so many nanoseconds after the epoch.
    #[expect(clippy::too_many_arguments, reason = "what one step is and what it gave")]
    fn record(
        &self,
        node: NodeIndex,
        key: &Key,
        def_key: &Key,
        (root, read): (&Solved, &[LayerId]),
        new: NewLayer,
        (started, began): (Instant, i64),
        use_cache: bool,
    ) -> Result<Arc<Solved>, StepFailure> {
        let store = &self.env.store;
        let child = new.tree.digest();
        let (parent, made) = match &self.graph.dag[node].op {
            // Made on nothing. A layer that leads from this root to the same state may lack what this root has.
            Op::Copy(copy) if copy.link => {
                (Tree::empty().digest(), Tree::empty().apply(store, &new.diff, &store.scratch())?.digest())
            }
            _ => (root.tree.digest(), child),
        };
        let times = TimesDigest::of(&new.diff, &timestamp::since(began))?;
        let does = Transition { from: parent, to: made, times };
        let older = if use_cache { store.layer_that_does(&does)? } else { None };
        let stack_of = |layer| root.stack.iter().copied().chain([layer]).collect::<Vec<_>>();
        let results = |layer| {
            let record = ResultRecord {
                tree: new.tree.clone(),
                tree_digest: child,
                own_layer: Some(layer),
                stack: None,
                read: root.stack.iter().chain(read).copied().collect(),
                created_unix_ns: timestamp::unix_ns(),
                exec_ns: u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX),
                description: self.graph.dag[node].step.name.clone(),
            };
            let of_def = ResultRecord { stack: Some(stack_of(layer)), read: read.to_vec(), ..record.clone() };
            let of_def = root.below.is_none().then_some((*def_key, of_def));
            [(*key, record)].into_iter().chain(of_def).collect::<Vec<_>>()
        };
        let layer = match older {
            Some(layer) => {
                let results = results(layer);
                store.put_results(&results.iter().map(|(key, record)| (*key, record)).collect::<Vec<_>>())?;
                layer
            }
            None => {
                let made = Made {
                    draft: new.draft,
                    diff: &new.diff,
                    size_bytes: new.size_bytes,
                    tar: new.tar,
                    does,
                };
                // `--no-cache` asks for what this execution made, new times included.
                store.commit_step(made, !use_cache, results)?
            }
        };
        let stack = stack_of(layer);
        Ok(Arc::new(Solved { tree: new.tree, stack, below: root.below.clone() }))
    }
}

/// Layers that a step may read besides those of its root: of stages and images that it copies from or mounts.
fn beside(root: &Solved, inputs: &[(u16, Role, Arc<Solved>)]) -> Vec<LayerId> {
    let others = inputs.iter().filter(|(_, role, _)| *role != Role::Root);
    let layers: BTreeSet<LayerId> = others.flat_map(|(.., solved)| solved.stack.iter().copied()).collect();
    layers.into_iter().filter(|layer| !root.stack.contains(layer)).collect()
}

/// `waiting for pid 12, which has been at this step for 3s: build of me/app:1`.
fn waiting_for(holder: &LockHolder) -> String {
    let since = holder.held.map(|held| format!(" for {}s", held.as_secs())).unwrap_or_default();
    let build = match holder.description.as_str() {
        "" => String::new(),
        build => format!(": build of {build}"),
    };
    format!("waiting for pid {}, which has been at this step{since}{build}", holder.pid)
}
