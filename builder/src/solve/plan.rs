//! Keys for all nodes and the part of the graph that must be solved.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use petgraph::graph::NodeIndex;
use rbuild_cache::scratch::Scratch;
use rbuild_cache::store::{Key, Store};
use rbuild_cache::tree::SpilledNodeStore;
use rbuild_frontend::graph::{BuildGraph, CopyOp, CopySource, Op, Role};

use crate::cli::CacheControl;
use crate::context::{ScannedContext, absent};
use crate::error::{StepError, StepFailure};
use crate::mounts::Mounted;
use crate::ops::select::{Selection, select_sources};
use crate::solve::Solved;
use crate::solve::keys::{self, InputDigest};
use crate::solve::mounted::mounted;
use crate::solve::pin::Fetched;
use crate::solve::reuse::ReuseRules;

/// A selection of more bytes is made again when its step is executed.
const SELECTED_BYTES: u64 = 4 << 10;

/// Contexts by name, the main one under `None`.
pub type Contexts = BTreeMap<Option<String>, Arc<ScannedContext>>;

/// What has to be done for a build.
#[derive(Debug)]
pub struct Plan {
    /// Nodes to solve, inputs before consumers.
    pub needed: Vec<NodeIndex>,
    /// Nodes whose result is known by definition key.
    pub hits: HashMap<NodeIndex, Arc<Solved>>,
    /// Nodes below a hit that were never looked at, in topological order.
    pub covered: Vec<NodeIndex>,
    /// Definition key of every node but contexts.
    pub def_keys: HashMap<NodeIndex, Key>,
    /// What each COPY from a context selects.
    pub selections: HashMap<NodeIndex, Arc<Selection>>,
    /// New nodes of all selections.
    pub pruned: Arc<SpilledNodeStore>,
    /// What of a context a RUN mounts, by the slot of the input.
    pub mounted: HashMap<(NodeIndex, u16), Arc<Mounted>>,
    /// Which steps may take a result from the cache.
    pub reuse: ReuseRules,
    /// A RUN in which somebody wants a shell before it runs: never taken from the cache, and never run.
    pub entered: Option<NodeIndex>,
}

/// Plans `graph`. `control` says which steps may be taken by definition; images always are, and so are `fetched`, the
/// leaves that are there already.
///
/// Fails with the first COPY or mount whose context source does not exist: nothing has run by then.
pub fn plan(
    graph: &BuildGraph,
    contexts: &Contexts,
    fetched: &Fetched,
    store: &Store,
    control: &CacheControl,
    entered: Option<NodeIndex>,
) -> Result<Plan, StepError> {
    let order = petgraph::algo::toposort(&graph.dag, None).expect("the graph builder makes no cycles");
    let mut def_keys = HashMap::new();
    let (mut selections, scratch) = (HashMap::new(), store.scratch());
    let pruned = Arc::new(SpilledNodeStore::new(&scratch));
    let mut mounts = HashMap::new();
    for &node in &order {
        let op = &graph.dag[node].op;
        if matches!(op, Op::Context(_)) {
            continue;
        }
        let mut digests = Vec::new();
        for (input, producer) in graph.inputs(node) {
            let digest = match &graph.dag[producer].op {
                Op::Context(context) => {
                    let scanned =
                        contexts.get(&context.name).expect("every context of the graph was scanned");
                    let failed = |failure| StepError::new(&graph.dag[node].step, failure);
                    match (op, input.role) {
                        (Op::Run(run), Role::Mount(index)) => {
                            let mount = &run.mounts[usize::from(index)];
                            let mounted = Mounted::of(mount, &scanned.tree, scanned.nodes.as_ref(), &scratch);
                            let mounted =
                                mounted.map_err(|error| failed(absent::in_context(scanned, error)))?;
                            let digest = mounted.digest;
                            mounts.insert((node, input.slot), Arc::new(mounted));
                            digest
                        }
                        _ => {
                            let selection =
                                context_selection(op, scanned, &pruned, &scratch).map_err(failed)?;
                            let digest = selection.digest;
                            // Many steps may select much, and most of them are not executed.
                            if selection.selected.bytes() <= SELECTED_BYTES {
                                selections.insert(node, Arc::new(selection));
                            }
                            digest
                        }
                    }
                }
                _ => def_keys
                    .get(&producer)
                    .map(|key: &Key| key.digest)
                    .expect("inputs come first in topological order"),
            };
            digests.push(InputDigest { slot: input.slot, digest });
        }
        def_keys.insert(node, keys::def_key(op, &digests));
    }
    let mut plan = Plan {
        needed: Vec::new(),
        hits: HashMap::new(),
        covered: Vec::new(),
        def_keys,
        selections,
        pruned,
        mounted: mounts,
        reuse: ReuseRules::new(control, graph, &order),
        entered,
    };
    demand(graph, fetched, store, &order, &mut plan)?;
    Ok(plan)
}

/// Walks down from the targets, and from what else of the results is wanted; a hit is not entered.
fn demand(
    graph: &BuildGraph,
    fetched: &Fetched,
    store: &Store,
    order: &[NodeIndex],
    plan: &mut Plan,
) -> Result<(), StepError> {
    let mut seen = vec![false; graph.dag.node_count()];
    let scans = graph.targets.iter().flat_map(|target| &target.scans).map(|scan| scan.node);
    let scans = scans.filter(|node| !matches!(graph.dag[*node].op, Op::Context(_)));
    let mut work: Vec<NodeIndex> = graph.targets.iter().map(|target| target.node).chain(scans).collect();
    while let Some(node) = work.pop() {
        if std::mem::replace(&mut seen[node.index()], true) {
            continue;
        }
        if let Some(solved) = fetched.get(&node) {
            plan.hits.insert(node, Arc::clone(solved));
            continue;
        }
        let step = &graph.dag[node].step;
        let is_step = matches!(graph.dag[node].op, Op::Run(_) | Op::Copy(_) | Op::Workdir(_));
        let may_hit = is_step && plan.reuse.by_definition(node) && plan.entered != Some(node);
        if may_hit
            && let Some(solved) =
                by_definition(store, &plan.def_keys[&node]).map_err(|f| StepError::new(step, f))?
        {
            plan.hits.insert(node, Arc::new(solved));
            continue;
        }
        work.extend(graph.inputs(node).into_iter().map(|(_, producer)| producer));
    }
    for &node in order {
        let is_context = matches!(graph.dag[node].op, Op::Context(_));
        if is_context || plan.hits.contains_key(&node) {
            continue;
        }
        if seen[node.index()] { plan.needed.push(node) } else { plan.covered.push(node) }
    }
    Ok(())
}

fn by_definition(store: &Store, key: &Key) -> Result<Option<Solved>, StepFailure> {
    let Some(record) = store.result(key)? else { return Ok(None) };
    Ok(record.stack.map(|stack| Solved::whole(record.tree, stack)))
}

/// What a COPY selects from a context.
pub fn context_selection(
    op: &Op,
    scanned: &ScannedContext,
    pruned: &Arc<SpilledNodeStore>,
    scratch: &Scratch,
) -> Result<Selection, StepFailure> {
    let Op::Copy(copy) = op else { unreachable!("only COPY and mounts read contexts") };
    select_sources(copy, &scanned.tree, scanned.nodes.as_ref(), pruned, scratch)
        .map_err(|error| absent::in_context(scanned, error))
}

/// Patterns that the reachable steps select from context `name`: the union decides what must be hashed.
pub fn context_patterns<'a>(graph: &'a BuildGraph, name: &Option<String>) -> Vec<Cow<'a, str>> {
    let mut patterns = Vec::new();
    let is_it =
        |node: NodeIndex| matches!(&graph.dag[node].op, Op::Context(context) if context.name == *name);
    if graph.targets.iter().flat_map(|target| &target.scans).any(|scan| is_it(scan.node)) {
        // All of it is searched for packages.
        patterns.push(Cow::Borrowed(""));
    }
    for node in graph.dag.node_indices() {
        if let Op::Run(run) = &graph.dag[node].op {
            for (input, producer) in graph.inputs(node) {
                let Role::Mount(index) = input.role else { continue };
                if is_it(producer) {
                    patterns.push(Cow::Owned(literal(run.mounts[usize::from(index)].source())));
                }
            }
            continue;
        }
        let Op::Copy(CopyOp { sources, .. }) = &graph.dag[node].op else { continue };
        let reads = graph
            .inputs(node)
            .into_iter()
            .any(|(input, producer)| input.role == Role::Source && is_it(producer));
        if reads {
            patterns.extend(sources.iter().filter_map(|source| match source {
                CopySource::Path(path) => Some(Cow::Borrowed(path.as_str())),
                CopySource::Below { pivot, pattern } => Some(Cow::Owned(reach(pivot, pattern))),
                CopySource::Remote { .. } | CopySource::Inline { .. } => None,
            }));
        }
    }
    patterns
}

/// True when a single COPY is all that reads context `name`, and nothing will mount its layer or read its files: it will be
/// kept as packs.
pub fn is_packed_by_one(graph: &BuildGraph, name: &Option<String>) -> bool {
    let is_it =
        |node: NodeIndex| matches!(&graph.dag[node].op, Op::Context(context) if context.name == *name);
    let nodes: Vec<NodeIndex> = graph.dag.node_indices().collect();
    let reads = |node: &NodeIndex| graph.inputs(*node).into_iter().any(|(_, producer)| is_it(producer));
    let mut readers = nodes.iter().copied().filter(reads);
    let (Some(reader), None) = (readers.next(), readers.next()) else { return false };
    let is_scanned = graph.targets.iter().flat_map(|target| &target.scans).any(|scan| is_it(scan.node));
    matches!(graph.dag[reader].op, Op::Copy(_)) && !is_scanned && !mounted(graph, &nodes).contains(&reader)
}

/// The wildcard that matches just this path.
fn literal(path: &str) -> String {
    path.chars()
        .flat_map(|c| matches!(c, '*' | '?' | '[' | '\\').then_some('\\').into_iter().chain([c]))
        .collect()
}

/// A path or wildcard that covers all that `--parents` can select: up to where the ignore file's patterns begin to
/// match across slashes.
fn reach(pivot: &str, pattern: &str) -> String {
    let simple = pattern.split('/').take_while(|part| !part.contains("**") && !part.contains('['));
    std::iter::once(pivot).chain(simple).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::wanted::{Standing, Wanted};

    #[test]
    fn what_parents_can_select_is_wanted() {
        for (pivot, pattern, path, outside) in [
            ("", "x/a.txt", "x/a.txt", "y"),
            ("x", "y/*.txt", "x/y/a.txt", "x/z"),
            ("x", "**/a.txt", "x/y/z/a.txt", "y"),
            ("", "a[^b]c", "a/c", ""),
            ("x", "", "x/y", "y"),
        ] {
            let reach = reach(pivot, pattern);
            let wanted = Wanted::by([reach.as_str()]);
            let standing = wanted.standing(path.as_bytes());
            assert!(matches!(standing, Standing::Source | Standing::Inside), "{reach}: {standing:?}");
            assert!(
                outside.is_empty() || wanted.standing(outside.as_bytes()) == Standing::Outside,
                "{reach}"
            );
        }
    }
}
