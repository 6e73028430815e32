//! A build from request to result, top to bottom.

mod contexts;
mod lowering;
mod outcome;

pub(crate) use contexts::{MainContext, main_context, path_of};
pub(crate) use lowering::lower_options;
pub use outcome::{BuildOutcome, Described, Source};

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use rbuild_frontend::diagnostic::{Diagnostic, Severity};
use rbuild_frontend::graph::{BuildGraph, Network, Op};
use rbuild_frontend::lower::{LowerOptions, Lowering};
use rbuild_frontend::parse::parse;
use rbuild_oci::Platform;
use rbuild_registry::Client;
use rbuild_sandbox::{Isolation, Rung};
use tokio::sync::Semaphore;

use contexts::{remark_on_received, scan_contexts};
use lowering::{Sources, lower};

use crate::assemble::emit::Emissions;
use crate::assemble::passing::Passing;
use crate::assemble::provenance::{Facts, Invocation};
use crate::assemble::said::{Searched, predicates, unkept};
use crate::assemble::{self, BuiltImage};
use crate::cancel::Cancel;
use crate::cli::{self, BuildRequest, ExplainFormat, ShellAt};
use crate::debug::{Slot, choose};
use crate::devices::Devices;
use crate::error::{BuildError, StepFailure, one_line};
use crate::explain::{self, Decision, Explainer};
use crate::export::{
    self,
    ahead::Ahead,
    files::Files,
    outputs::{self, Outputs},
};
use crate::host::Host;
use crate::isolation;
use crate::mounts::Materialised;
use crate::mounts::secret::Secrets;
use crate::mounts::ssh::Agents;
use crate::ops::cgroup::Groups;
use crate::ops::emulation::Emulators;
use crate::ops::leaving::Leaving;
use crate::ops::network::StepNetwork;
use crate::ops::{self, ExecEnv, blocking};
use crate::progress::{Events, Outcome, VertexId};
use crate::resolve::{self, Resolver};
use crate::solve::pin;
use crate::solve::plan;
use crate::solve::run::Solver;
use crate::timestamp;

/// The steps in order: name, and what became of each.
fn decisions(graph: &BuildGraph, explainer: &Explainer) -> Vec<(String, Decision)> {
    let is_step = |op: &Op| matches!(op, Op::Run(_) | Op::Copy(_) | Op::Workdir(_));
    let nodes = graph.dag.node_indices().filter(|node| is_step(&graph.dag[*node].op));
    nodes.map(|node| (graph.dag[node].step.name.clone(), explainer.decision(node))).collect()
}

/// Builds. `source` is filled as soon as the Dockerfile is read, so that a report can draw it whatever happens later.
/// On failure nothing is tagged and nothing unfinished stays in the store.
pub async fn build(
    request: &BuildRequest,
    host: &Host,
    events: &Events,
    cancel: &Cancel,
    source: &mut Source,
) -> Result<BuildOutcome, BuildError> {
    let (started, started_ns) = (Instant::now(), timestamp::unix_ns());
    outputs::check(request)?;
    let registry = Client::new(host.settings.registry.clone())?;
    let env = Arc::new(exec_env(request, host, events, cancel, registry.clone(), &source.failed_step)?);
    let (found, main) = main_context(request, &env).await?;
    let parsed = parse(&found.bytes);
    source.dockerfile = Some(found);
    let found = if parsed.has_errors() { parsed.diagnostics.as_slice() } else { &[] };
    diagnostics(found, events)?;

    let named = request.named_contexts.iter().cloned().collect::<BTreeMap<_, _>>();
    let resolver =
        Resolver::new(host.store.clone(), registry.clone(), named, request.control.pull, events.clone());
    let options = LowerOptions {
        context: main.facts()?,
        context_has_owners: matches!(main, MainContext::Received { has_owners: true, .. }),
        ..lower_options(request)
    };
    let is_multi = options.is_multi_platform();
    let sources = Sources { request, main: &main, options: options.clone(), env: &env };
    let mut lowering = Lowering::new(&parsed, options);
    let (mut graph, images) = lower(&mut lowering, &parsed, &resolver, &sources).await?;
    resolve::remark_on_quotas(&registry, events);
    let warnings = diagnostics(lowering.diagnostics(), events)?;
    if let Some(epoch) = lowering.source_date_epoch() {
        let _ = env.epoch.set(epoch);
    }
    let unused = lowering.unused_build_args();
    if !unused.is_empty() {
        events.remark(format!("[Warning] One or more build-args [{}] were not consumed", unused.join(" ")));
    }

    if request.build_args.get("BUILDKIT_INLINE_CACHE").is_some_and(|value| value == "1" || value == "true") {
        events.remark("[Warning] BUILDKIT_INLINE_CACHE: no cache is put into images yet");
    }

    let entered = match &request.shell {
        Some(ShellAt::Before(which)) => Some(choose::retarget(&mut graph, which)?),
        Some(ShellAt::FirstFailure) | None => None,
    };
    let (contexts, pinned, mut indexing) = scan_contexts(request, &graph, &main, &env).await?;
    let fetched = pin::pin(&mut graph, &env, !request.control.no_cache).await?;
    let graph = Arc::new(graph);
    let plan = plan::plan(&graph, &contexts, &fetched, &host.store, &request.control, entered)
        .map_err(|e| BuildError::Step(Box::new(e)))?;
    if !plan.needed.is_empty() {
        remark_on_received(&graph, &contexts, events);
    }
    isolation::announce(&plan, host, events);
    for stage in plan.reuse.unknown_stages(&graph) {
        events.remark(format!(
            "[Warning] --no-cache-filter={stage}: nothing that is built has a stage of that name"
        ));
    }
    remark_on_network(&graph, &plan, &env);
    ops::run::prepare(&env, plan.needed.iter().map(|node| &graph.dag[*node].op));
    // Where everything is cached the push itself says as soon what a question beforehand would.
    let executes = plan.needed.iter().any(|node| matches!(graph.dag[*node].op, Op::Run(_) | Op::Copy(_)));
    if executes {
        check_destinations(request, &env, &registry, cancel).await?;
    }
    let is_step = |op: &Op| matches!(op, Op::Run(_) | Op::Copy(_) | Op::Workdir(_));
    let steps = graph.dag.node_weights().filter(|node| is_step(&node.op)).count();
    let explainer = Arc::new(Explainer::new(host.store.clone(), Arc::clone(&graph), env.lease.id(), request));
    let main_files = contexts.clone();
    let solver = Solver::new(
        Arc::clone(&graph),
        plan,
        contexts,
        images,
        Arc::clone(&env),
        Arc::clone(&explainer),
        request.results.attestations.sbom.is_some()
            || request.results.outputs.iter().any(outputs::wants_files),
    );
    let solver = Arc::new(solver);
    let ahead = Ahead::start(&request.results, &env, &registry, &graph, &solver, executes);
    let solved = Arc::clone(&solver).solve().await;
    if request.control.explain == Some(ExplainFormat::Json) {
        source.decisions = decisions(&graph, &explainer);
    }
    let solved = match solved {
        Ok(solved) => solved,
        Err(error) => {
            ahead.stop().await;
            return Err(isolation::explained(error, host));
        }
    };
    indexing.end()?;
    ahead.emitted().await;
    let executed = solver.executed();
    let invocation = explain::build_id(env.lease.id());

    let results = &request.results;
    let exporting = events.vertex("exporting to image");
    events.started(exporting);
    let wants = |rewrite: bool| {
        let mut packings = results.outputs.iter().filter_map(outputs::packing);
        packings.any(|packing| outputs::rewrites(results, packing) == rewrite)
    };
    let assemble_all = async |rewrite: bool| {
        let targets = if wants(rewrite) { graph.targets.as_slice() } else { &[] };
        let assembled = targets.iter().zip(&solved).map(|(target, solved)| {
            let base = target.base.and_then(|node| solver.image(node));
            assemble::assemble(&env, &graph, target, solved, base, rewrite)
        });
        futures_util::future::try_join_all(assembled).await
    };
    let rewritten = ended(events, exporting, assemble_all(true).await)?;
    let plain = ended(events, exporting, assemble_all(false).await)?;
    let assembled = if rewritten.is_empty() { &plain } else { &rewritten };
    let dockerfile = source.dockerfile.as_ref().expect("it was read");
    let facts = Facts {
        request,
        graph: &graph,
        dockerfile,
        context: main.pinned(),
        named: &pinned,
        network: env.network.resolve(Network::Default),
        invocation: env.source_date_epoch().is_none().then(|| Invocation {
            id: invocation.clone(),
            started_ns,
            finished_ns: timestamp::unix_ns(),
        }),
    };
    let said = match results.attestations.is_empty() {
        true => Vec::new(),
        false => {
            let scanned = graph.targets.iter().zip(&solved).map(|(target, solved)| {
                let more = target.scans.iter().filter_map(|scan| {
                    let files = match &graph.dag[scan.node].op {
                        Op::Context(context) => Searched::Context(Arc::clone(main_files.get(&context.name)?)),
                        _ => Searched::State(solver.known(scan.node)?),
                    };
                    Some((scan.name.clone(), files))
                });
                (Arc::clone(solved), more.collect())
            });
            let scanned: Vec<_> = scanned.collect();
            let said = predicates(&env, &facts, &scanned, assembled, &results.attestations).await;
            ended(events, exporting, said)?
        }
    };
    let provenance = match results.metadata_file {
        Some(_) => {
            let made = facts.for_metadata(&env.store.scratch());
            ended(events, exporting, made.map_err(|source| unkept("provenance", source)))?
        }
        None => Vec::new(),
    };
    let mut files = Vec::new();
    if results.outputs.iter().any(outputs::wants_files) {
        for (at, (target, solved)) in graph.targets.iter().zip(&solved).enumerate() {
            let (env, solved, platform) =
                (Arc::clone(&env), Arc::clone(solved), target.config.platform.clone());
            let said = said.get(at).cloned().unwrap_or_default();
            let listed = blocking(move || Files::of(&env, &solved, platform, &said)).await;
            files.push(ended(events, exporting, listed.map_err(BuildError::from))?);
        }
    }
    let outputs = Outputs {
        results,
        env: &env,
        registry: &registry,
        engine: &host.settings.engine,
        rewritten: &rewritten,
        plain: &plain,
        said: &said,
        files: &Arc::new(files),
        ahead: &ahead,
        is_multi,
    };
    let written = outputs.write(cancel).await;
    match &written {
        Ok(_) => drop(ahead),
        Err(_) => ahead.stop().await,
    }
    // Nobody reads it any more: the sync need not write back what only passed through.
    env.passing.end();
    let set = ended(events, exporting, written)?;
    // The image that names in the store stand for: as the first output has it that makes one.
    let first = results.outputs.iter().find_map(outputs::packing);
    let built =
        if first.is_none_or(|packing| outputs::rewrites(results, packing)) { &rewritten } else { &plain };
    if cancel.reason().is_some() {
        events.finished(exporting, Outcome::Canceled);
        return Err(BuildError::Canceled);
    }
    let names = outputs::store_names(results, set.as_deref());
    if !built.is_empty() {
        let tagged =
            export::store::tag(&host.store, &env.lease, &names, built, set.as_deref(), &Platform::host());
        ended(events, exporting, tagged)?;
    }
    for image in built {
        events.note(exporting, format!("writing image {}", image.id));
    }
    for name in &names {
        events.note(exporting, format!("naming to {name}"));
    }
    events.finished(exporting, Outcome::Done);
    Ok(BuildOutcome {
        names: outputs::all_names(results),
        images: built.iter().map(|image| (image.config.platform.clone(), image.id)).collect(),
        document: set.as_deref().map(Described::of),
        size: built.iter().map(BuiltImage::size).sum(),
        pushed: outputs::pushed_names(results),
        written: outputs::written_paths(results),
        isolation: host.rung(),
        steps,
        cached: steps.saturating_sub(executed),
        verified: solver.verified(),
        provenance,
        invocation,
        warnings,
        elapsed: started.elapsed(),
    })
}

/// What ops need, for this request.
pub(crate) fn exec_env(
    request: &BuildRequest,
    host: &Host,
    events: &Events,
    cancel: &Cancel,
    registry: Client,
    failed_step: &Slot,
) -> Result<ExecEnv, BuildError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if request.shell.is_some() && host.rung() == Rung::Chroot {
        events.remark("there is no shell in a step with --isolation=chroot: it takes a mounted step");
    }
    Ok(ExecEnv {
        store: host.store.clone(),
        lease: host.store.lease()?,
        registry,
        git: host.settings.git.clone().with_ssh(&request.steps.agents),
        events: events.clone(),
        cancel: cancel.clone(),
        overlay: host.overlay,
        rung: host.rung(),
        is_chroot_forced: host.settings.isolation == Isolation::ForcedChroot,
        run_slots: Arc::new(Semaphore::new(request.jobs.map_or((2 * cores).max(8), NonZeroUsize::get))),
        disk_slots: ops::disk_slots(),
        unpack_slots: ops::unpack_slots(),
        fetch_slots: ops::fetch_slots(),
        steps: request.steps.clone(),
        secrets: Secrets::new(&request.steps.secrets).map_err(StepFailure::from)?,
        agents: Agents::new(&request.steps.agents).map_err(StepFailure::from)?,
        devices: Devices::new(&request.steps),
        groups: Groups::default(),
        materialised: Materialised::default(),
        emissions: Emissions::default(),
        passing: Passing::new(outputs::only_pushes(&request.results)),
        emulators: Emulators::default(),
        network: Arc::new(StepNetwork::new(match request.network {
            cli::Network::Default => Network::Default,
            cli::Network::None => Network::None,
            cli::Network::Host => Network::Host,
        })),
        epoch: OnceLock::new(),
        wanted_compression: outputs::wanted_compression(&request.results),
        with_dir: Mutex::default(),
        mount_points: OnceLock::new(),
        leaving: Leaving::default(),
        failed_step: request.shell.is_some().then(|| failed_step.clone()),
    })
}

/// Sends warnings on, and fails when there are errors.
fn diagnostics(found: &[Diagnostic], events: &Events) -> Result<Vec<Diagnostic>, BuildError> {
    let (errors, warnings): (Vec<_>, Vec<_>) =
        found.iter().cloned().partition(|diagnostic| diagnostic.severity == Severity::Error);
    for warning in &warnings {
        events.warning(warning.clone());
    }
    if errors.is_empty() { Ok(warnings) } else { Err(BuildError::Dockerfile(errors)) }
}

fn remark_on_network(graph: &BuildGraph, plan: &plan::Plan, env: &ExecEnv) {
    let runs_on_host = |node: &petgraph::graph::NodeIndex| match &graph.dag[*node].op {
        Op::Run(run) => env.network.resolve(run.network) == Network::Host,
        _ => false,
    };
    if plan.needed.iter().any(runs_on_host) {
        env.events.remark("RUN steps share the host's network (--network=none cuts it off)");
    }
}

/// Asks every registry that the image goes to whether it may.
async fn check_destinations(
    request: &BuildRequest,
    env: &ExecEnv,
    registry: &Client,
    cancel: &Cancel,
) -> Result<(), BuildError> {
    let names = outputs::pushed_names(&request.results);
    if names.is_empty() {
        return Ok(());
    }
    let id = env.events.vertex("[auth] checking push permission");
    env.events.started(id);
    let checked = tokio::select! {
        checked = export::preflight::preflight(registry, &names) => checked,
        () = cancel.cancelled() => Err(BuildError::Canceled),
    };
    ended(&env.events, id, checked)?;
    env.events.finished(id, Outcome::Done);
    Ok(())
}

/// Ends a vertex when its work failed.
pub(crate) fn ended<T>(
    events: &Events,
    id: VertexId,
    result: Result<T, BuildError>,
) -> Result<T, BuildError> {
    if let Err(error) = &result {
        let outcome = match error {
            BuildError::Canceled => Outcome::Canceled,
            error => Outcome::Error(one_line(error)),
        };
        events.finished(id, outcome);
    }
    result
}
