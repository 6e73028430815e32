//! From the syntax tree to the graph, with what registries and sources say in between.

use std::sync::Arc;

use rbuild_frontend::graph::{BuildGraph, Network};
use rbuild_frontend::lower::{
    EpochOf, ImageRequest, LowerOptions, Lowering, NamedContext, Progress, ResolvedImage,
};
use rbuild_frontend::parse::Parsed;
use rbuild_frontend::stage::Stages;
use rbuild_frontend::suggest::nearest;
use rbuild_oci::{Platform, Reference};

use super::contexts::MainContext;
use crate::cli::{self, BuildRequest, NamedContextArg};
use crate::context::epoch;
use crate::error::{BuildError, one_line};
use crate::ops::ExecEnv;
use crate::progress::{Events, Outcome};
use crate::resolve::{BaseImage, BaseImages, ResolveError, Resolver};

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

/// What the time of a source is asked of.
pub(super) struct Sources<'a> {
    pub(super) request: &'a BuildRequest,
    pub(super) main: &'a MainContext,
    pub(super) options: LowerOptions,
    pub(super) env: &'a Arc<ExecEnv>,
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
pub(super) async fn lower(
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
