//! A build from request to result, top to bottom.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rbuild_frontend::diagnostic::{Diagnostic, Severity};
use rbuild_frontend::dockerignore::Ignore;
use rbuild_frontend::graph::{BuildGraph, Network, Op};
use rbuild_frontend::lint::ContextFacts;
use rbuild_frontend::lower::{
    EpochOf, ImageRequest, LowerOptions, Lowering, NamedContext, Progress, ResolvedImage,
};
use rbuild_frontend::parse::{Parsed, parse};
use rbuild_frontend::stage::Stages;
use rbuild_frontend::suggest::nearest;
use rbuild_oci::{Digest, Platform, Reference};
use rbuild_registry::Client;
use rbuild_sandbox::{Isolation, Rung};
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::assemble::emit::Emissions;
use crate::assemble::index::ImageSet;
use crate::assemble::provenance::{Facts, Invocation};
use crate::assemble::said::{Searched, predicates};
use crate::assemble::{self, BuiltImage};
use crate::cancel::Cancel;
use crate::cli::{self, BuildRequest, ContextArg, DockerfileArg, ExplainFormat, NamedContextArg, ShellAt};
use crate::context::files::{self, FoundDockerfile};
use crate::context::remote::Pinned;
use crate::context::scan::scan;
use crate::context::wanted::Wanted;
use crate::context::{ScannedContext, epoch, remarks, remote, stdin};
use crate::debug::{Slot, choose};
use crate::error::{BuildError, StepFailure, one_line};
use crate::explain::record::Record;
use crate::explain::{self, Explainer};
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
use crate::ops::network::StepNetwork;
use crate::ops::{ExecEnv, blocking};
use crate::progress::{Events, Outcome, VertexId};
use crate::resolve::{self, BaseImage, BaseImages, ResolveError, Resolver};
use crate::solve::pin;
use crate::solve::plan::{self, Contexts};
use crate::solve::run::Solver;
use crate::timestamp;

/// What a build gave.
#[derive(Debug, Clone)]
pub struct BuildOutcome {
    /// Names it got.
    pub names: Vec<Reference>,
    /// Platform and id (digest of the config) of every image, in the order asked for.
    pub images: Vec<(Platform, Digest)>,
    /// The manifest or index, when an exporter made one.
    pub document: Option<Described>,
    /// Uncompressed size of all layers of all images.
    pub size: u64,
    /// Names it was pushed under.
    pub pushed: Vec<Reference>,
    /// Files and directories written.
    pub written: Vec<String>,
    /// How its RUN steps were isolated, or would have been.
    pub isolation: Rung,
    /// Steps that make layers.
    pub steps: usize,
    /// Those that were not executed.
    pub cached: usize,
    /// Cached results whose steps were executed again, and how many of them differ.
    pub verified: (usize, usize),
    /// How each image was made, when the metadata file is to say.
    pub provenance: Vec<(Platform, Value)>,
    /// Which build this was.
    pub invocation: String,
    /// Warnings of the Dockerfile.
    pub warnings: Vec<Diagnostic>,
    /// Wall time.
    pub elapsed: Duration,
}

impl BuildOutcome {
    /// What identifies the result: the image's id; of several images the index's digest.
    pub fn id(&self) -> Option<Digest> {
        match (self.images.as_slice(), &self.document) {
            ([(_, id)], _) => Some(*id),
            (_, document) => document.as_ref().map(|document| document.digest),
        }
    }
}

/// The document that the names of a result stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Its media type.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length.
    pub size: u64,
    /// Annotations of its descriptor.
    pub annotations: BTreeMap<String, String>,
    /// The platform of a single image.
    pub platform: Option<Platform>,
}

impl Described {
    fn of(set: &ImageSet) -> Self {
        let root = set.root();
        Self {
            media_type: root.media_type.to_owned(),
            digest: root.digest,
            size: root.bytes.len() as u64,
            annotations: set.described_by(),
            platform: root.platform.cloned(),
        }
    }
}

/// The steps in order: name, and why it was executed; `None` for one that was not.
fn decisions(graph: &BuildGraph, explainer: &Explainer) -> Vec<(String, Option<Arc<Record>>)> {
    let records = explainer.records();
    let is_step = |op: &Op| matches!(op, Op::Run(_) | Op::Copy(_) | Op::Workdir(_));
    let nodes = graph.dag.node_indices().filter(|node| is_step(&graph.dag[*node].op));
    nodes.map(|node| (graph.dag[node].step.name.clone(), records.get(&node).cloned())).collect()
}

/// What is known of a build also when it fails: the Dockerfile as far as it was read, and what was decided.
#[derive(Debug, Default)]
pub struct Source {
    /// What was read; `None` until then.
    pub dockerfile: Option<FoundDockerfile>,
    /// The step that failed, when a shell in it was asked for.
    pub failed_step: Slot,
    /// Steps and why they were executed, for `--explain=json`.
    pub decisions: Vec<(String, Option<Arc<Record>>)>,
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

    let entered = match &request.shell {
        Some(ShellAt::Before(which)) => Some(choose::retarget(&mut graph, which)?),
        Some(ShellAt::FirstFailure) | None => None,
    };
    let (contexts, pinned) = scan_contexts(request, &graph, &main, &env).await?;
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
        Some(_) => facts.for_metadata(),
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
    if written.is_err() {
        ahead.stop().await;
    }
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
        git: host.settings.git.clone(),
        events: events.clone(),
        cancel: cancel.clone(),
        overlay: host.overlay,
        rung: host.rung(),
        is_chroot_forced: host.settings.isolation == Isolation::ForcedChroot,
        run_slots: Arc::new(Semaphore::new(request.jobs.map_or((2 * cores).max(8), NonZeroUsize::get))),
        disk_slots: Arc::new(Semaphore::new(cores.max(2))),
        steps: request.steps.clone(),
        secrets: Secrets::new(&request.steps.secrets).map_err(StepFailure::from)?,
        agents: Agents::new(&request.steps.agents).map_err(StepFailure::from)?,
        groups: Groups::default(),
        materialised: Materialised::default(),
        emissions: Emissions::default(),
        network: StepNetwork::new(match request.network {
            cli::Network::Default => Network::Default,
            cli::Network::None => Network::None,
            cli::Network::Host => Network::Host,
        }),
        epoch: OnceLock::new(),
        wanted_compression: outputs::wanted_compression(&request.results),
        mount_points: OnceLock::new(),
        failed_step: request.shell.is_some().then(|| failed_step.clone()),
    })
}

/// What the frontend is told of the command line.
pub(crate) fn lower_options(request: &BuildRequest) -> LowerOptions {
    let named = |arg: &NamedContextArg| match arg {
        NamedContextArg::Dir(_) | NamedContextArg::Git(_) => NamedContext::Local,
        NamedContextArg::Http(_) => NamedContext::Archive,
        NamedContextArg::Image(None) => NamedContext::Image("scratch".to_owned()),
        NamedContextArg::Image(Some(reference)) => NamedContext::Image(reference.to_string()),
        NamedContextArg::OciLayout { .. } => NamedContext::OciLayout,
    };
    LowerOptions {
        target: request.target.clone(),
        build_args: request.build_args.clone(),
        labels: request.labels.clone().into_iter().collect(),
        target_platforms: request.platforms.clone(),
        named_contexts: request.named_contexts.iter().map(|(name, arg)| (name.clone(), named(arg))).collect(),
        network: match request.network {
            cli::Network::Default => Network::Default,
            cli::Network::None => Network::None,
            cli::Network::Host => Network::Host,
        },
        entitlements: request.steps.entitlements,
        host_names: request.steps.hosts.iter().map(|(name, _)| name.clone()).collect(),
        lists_packages: request.results.attestations.sbom.is_some(),
        ..LowerOptions::new(Platform::host())
    }
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

/// What the time of a source is asked of.
struct Sources<'a> {
    request: &'a BuildRequest,
    main: &'a MainContext,
    options: LowerOptions,
    env: &'a Arc<ExecEnv>,
}

impl Sources<'_> {
    async fn time_of(&self, of: &EpochOf, parsed: &Parsed) -> Result<i64, BuildError> {
        let main = match self.main {
            MainContext::Dir { .. } => None,
            MainContext::Received { context, .. } => Some(context.as_ref()),
        };
        epoch::time_of(of, main, self.request, parsed, &self.options, self.env).await
    }
}

/// Lowers until no more base images are wanted; all images of a round are resolved at the same time.
async fn lower(
    lowering: &mut Lowering,
    parsed: &Parsed,
    resolver: &Resolver,
    sources: &Sources<'_>,
) -> Result<(BuildGraph, BaseImages), BuildError> {
    let events = &sources.env.events;
    let mut images = BaseImages::new();
    loop {
        match lowering.step() {
            Progress::Failed => return Err(BuildError::Dockerfile(lowering.diagnostics().to_vec())),
            Progress::Done(graph) => return Ok((*graph, images)),
            Progress::NeedEpoch(of) => lowering.provide_epoch(sources.time_of(&of, parsed).await?),
            Progress::Need(requests) => {
                let round = requests.iter().map(|request| resolve(resolver, request, events));
                for (request, image) in requests.iter().zip(futures_util::future::join_all(round).await) {
                    let image = image.map_err(|source| BuildError::Base {
                        reference: shown(&request.reference),
                        lines: Some(request.lines),
                        stages: possible_stages(parsed, request),
                        source,
                    })?;
                    lowering.provide(
                        request,
                        ResolvedImage {
                            reference: image.reference.clone(),
                            manifest: image.identity,
                            config: image.config.clone(),
                        },
                    );
                    images.insert(image.identity, Arc::new(image));
                }
            }
        }
    }
}

async fn resolve(
    resolver: &Resolver,
    request: &ImageRequest,
    events: &Events,
) -> Result<BaseImage, ResolveError> {
    let id = events.vertex(format!("[internal] load metadata for {}", shown(&request.reference)));
    events.started(id);
    let result =
        resolver.resolve(&request.reference, request.named_context.as_deref(), &request.platform).await;
    events.finished(
        id,
        result.as_ref().map_or_else(|error| Outcome::Error(one_line(error)), |_| Outcome::Done),
    );
    result
}

/// The full reference of what was written, or that itself when it is none.
fn shown(reference: &str) -> String {
    let parsed = reference.parse::<Reference>().map(|r| r.with_default_tag().to_string());
    parsed.unwrap_or_else(|_| reference.to_owned())
}

/// Names of earlier stages that the name of an image may stand for, misspelt: all of them for `--from`, a near one for
/// FROM.
fn possible_stages(parsed: &Parsed, request: &ImageRequest) -> Vec<String> {
    let stages: Vec<_> =
        Stages::of(&parsed.ast).all.iter().map(|stage| (stage.label(), stage.instruction.lines)).collect();
    let is_from = stages.iter().any(|(_, lines)| *lines == request.lines);
    if is_from {
        // Most names in FROM are images: only one that is nearly a stage's deserves the question.
        let earlier = stages.iter().filter(|(_, lines)| lines.first < request.lines.first);
        let near = nearest(&request.reference, earlier.map(|(name, _)| name.as_str()));
        return near.map(str::to_owned).into_iter().collect();
    }
    let earlier = stages.into_iter().filter(|(_, lines)| lines.first < request.lines.first);
    let mut names: Vec<String> = earlier.map(|(name, _)| name).collect();
    names.pop();
    names
}

/// Where the main context's files are.
pub(crate) enum MainContext {
    /// A directory, scanned when something reads it; and the Dockerfile, when it is a file.
    Dir { path: PathBuf, dockerfile: Option<PathBuf> },
    /// What came through standard input, or was fetched: then it says which state of what it is.
    Received { context: Arc<ScannedContext>, has_owners: bool, pinned: Option<Pinned> },
}

impl MainContext {
    /// What lint rules want to know of it.
    pub(crate) fn facts(&self) -> Result<Option<ContextFacts>, BuildError> {
        match self {
            Self::Dir { path, dockerfile } => files::facts(path, dockerfile.as_deref()).map(Some),
            Self::Received { .. } => Ok(None),
        }
    }

    fn pinned(&self) -> Option<&Pinned> {
        match self {
            Self::Received { pinned, .. } => pinned.as_ref(),
            Self::Dir { .. } => None,
        }
    }
}

/// The path of `-f`, when it is one.
pub(crate) fn path_of(dockerfile: Option<&DockerfileArg>) -> Option<&Path> {
    match dockerfile {
        Some(DockerfileArg::Path(path)) => Some(path),
        Some(DockerfileArg::Stdin | DockerfileArg::Http(_)) | None => None,
    }
}

/// Reads the Dockerfile, and with it whatever context comes through standard input or must be fetched.
pub(crate) async fn main_context(
    request: &BuildRequest,
    env: &Arc<ExecEnv>,
) -> Result<(FoundDockerfile, MainContext), BuildError> {
    let keep_git_dir = request.build_args.get("BUILDKIT_CONTEXT_KEEP_GIT_DIR").is_some_and(|v| v == "1");
    let use_cache = !request.control.no_cache;
    let fetched = match (&request.context, &request.dockerfile) {
        (ContextArg::Git(source), _) => remote::git(env, source, keep_git_dir, use_cache).await.map(Some)?,
        (ContextArg::Http(source), _) => remote::http(env, source, use_cache).await.map(Some)?,
        (ContextArg::Local(_) | ContextArg::Stdin, Some(DockerfileArg::Http(_))) => None,
        (ContextArg::Local(_) | ContextArg::Stdin, _) => return local_context(request, env).await,
    };
    let dockerfile = match (&request.dockerfile, &request.context) {
        (Some(DockerfileArg::Http(source)), _) => Some(remote::dockerfile(env, source, use_cache).await?),
        (Some(DockerfileArg::Stdin), _) => {
            let switch = Arc::clone(env);
            let read = move || files::from_stdin(&mut stdin::Watched(&switch.cancel));
            let read = tokio::task::spawn_blocking(read).await;
            Some(read.unwrap_or_else(|join| std::panic::resume_unwind(join.into_panic()))?)
        }
        (Some(DockerfileArg::Path(_)) | None, _) => None,
    };
    match (fetched, &request.context) {
        (Some(fetched), _) => {
            let found = fetched.dockerfile(dockerfile, path_of(request.dockerfile.as_ref()))?;
            let (context, has_owners) = (Arc::new(fetched.context), fetched.has_owners);
            Ok((found, MainContext::Received { context, has_owners, pinned: Some(fetched.pinned) }))
        }
        (None, ContextArg::Local(path)) => {
            files::require_dir(path)?;
            let found = dockerfile.expect("a context that is here has another Dockerfile elsewhere");
            Ok((found, MainContext::Dir { path: path.clone(), dockerfile: None }))
        }
        (None, _) => Err(BuildError::Stdin(stdin::StdinError::TwoDockerfiles)),
    }
}

/// The same for what is here.
async fn local_context(
    request: &BuildRequest,
    env: &Arc<ExecEnv>,
) -> Result<(FoundDockerfile, MainContext), BuildError> {
    let uses_stdin = request.context == ContextArg::Stdin || request.dockerfile == Some(DockerfileArg::Stdin);
    let id = env.events.vertex("[internal] load build definition from Dockerfile");
    env.events.started(id);
    let (context, dockerfile, of) = (request.context.clone(), request.dockerfile.clone(), Arc::clone(env));
    let read = move || match &context {
        ContextArg::Local(path) => {
            let found = files::dockerfile(path, dockerfile.as_ref(), &mut stdin::Watched(&of.cancel))?;
            let main = MainContext::Dir { path: path.clone(), dockerfile: found.path.clone() };
            Ok((found, main))
        }
        ContextArg::Stdin => {
            let path = path_of(dockerfile.as_ref());
            let got = stdin::receive(stdin::Watched(&of.cancel), &of.lease, of.overlay, path)?;
            let (context, has_owners) = (Arc::new(got.context), got.has_owners);
            Ok((got.dockerfile, MainContext::Received { context, has_owners, pinned: None }))
        }
        ContextArg::Git(_) | ContextArg::Http(_) => unreachable!("fetched by the caller"),
    };
    // Away from the thread that hears signals: standard input may be a pipe that nobody writes to.
    let result = match uses_stdin {
        true => tokio::task::spawn_blocking(read).await,
        false => Ok(read()),
    };
    let result = result.unwrap_or_else(|join| std::panic::resume_unwind(join.into_panic()));
    let result = ended(&env.events, id, result)?;
    env.events.finished(id, Outcome::Done);
    Ok(result)
}

/// Scans or fetches every context that the graph reads. Gives what was fetched by name, too.
async fn scan_contexts(
    request: &BuildRequest,
    graph: &BuildGraph,
    main: &MainContext,
    env: &Arc<ExecEnv>,
) -> Result<(Contexts, BTreeMap<String, Pinned>), BuildError> {
    let events = &env.events;
    let (mut contexts, mut pinned) = (Contexts::new(), BTreeMap::new());
    for node in graph.dag.node_weights() {
        let Op::Context(context) = &node.op else { continue };
        let (dir, ignore): (&Path, Ignore) = match &context.name {
            None => match main {
                MainContext::Dir { path, dockerfile } => (path, files::ignore(path, dockerfile.as_deref())?),
                MainContext::Received { context: received, .. } => {
                    contexts.insert(None, Arc::clone(received));
                    continue;
                }
            },
            Some(name) => {
                let arg = request.named_contexts.iter().find(|(known, _)| known == name).map(|(_, arg)| arg);
                let use_cache = !request.control.no_cache;
                let fetched = match arg {
                    Some(NamedContextArg::Dir(dir)) => Err((dir.as_path(), files::ignore(dir, None)?)),
                    Some(NamedContextArg::Git(source)) => {
                        Ok(remote::git(env, source, false, use_cache).await?)
                    }
                    Some(NamedContextArg::Http(source)) => Ok(remote::archive(env, source, use_cache).await?),
                    Some(NamedContextArg::Image(_) | NamedContextArg::OciLayout { .. }) | None => continue,
                };
                match fetched {
                    Err(local) => local,
                    Ok(fetched) => {
                        pinned.insert(name.clone(), fetched.pinned);
                        contexts.insert(context.name.clone(), Arc::new(fetched.context));
                        continue;
                    }
                }
            }
        };
        let title = match &context.name {
            None => "[internal] load build context".to_owned(),
            Some(name) => format!("[context {name}] load from client"),
        };
        let scanned = vertex(events, &title, || -> Result<_, BuildError> {
            let path = dir.canonicalize().map_err(|_| BuildError::NoContext(dir.to_owned()))?;
            let identity = *blake3::hash(path.as_os_str().as_encoded_bytes()).as_bytes();
            let index = env.store.fingerprints(&identity)?;
            let patterns = plan::context_patterns(graph, &context.name);
            let wanted = Wanted::by(patterns.iter().map(AsRef::as_ref));
            let mut scanned = scan(dir, &ignore, &wanted, index)?;
            if let Some(moment) = scanned.scanned.filter(|_| scanned.seen.differ()) {
                env.store.put_fingerprints(&env.lease, &identity, moment, &scanned.seen)?;
            }
            scanned.identity = Some(identity);
            Ok(scanned)
        })?;
        for skipped in &scanned.skipped {
            events.remark(skipped.clone());
        }
        for remark in remarks::remarks(&scanned, ".dockerignore") {
            events.remark(remark);
        }
        contexts.insert(context.name.clone(), Arc::new(scanned));
    }
    Ok((contexts, pinned))
}

/// Warns about contexts that came whole. Those that were scanned had their say then.
fn remark_on_received(graph: &BuildGraph, contexts: &Contexts, events: &Events) {
    for (name, context) in contexts.iter().filter(|(_, context)| context.identity.is_none()) {
        let patterns = plan::context_patterns(graph, name);
        let wanted = Wanted::by(patterns.iter().map(AsRef::as_ref));
        for remark in remarks::of_received(context, &wanted) {
            events.remark(remark);
        }
    }
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

/// Runs short work under a vertex of its own.
fn vertex<T>(
    events: &Events,
    name: &str,
    work: impl FnOnce() -> Result<T, BuildError>,
) -> Result<T, BuildError> {
    let id = events.vertex(name);
    events.started(id);
    let result = ended(events, id, work())?;
    events.finished(id, Outcome::Done);
    Ok(result)
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
