//! AST to [`BuildGraph`], without I/O.
//!
//! Lowering needs the configs of base images, and ONBUILD triggers in them can need more. So it is a loop that the
//! caller drives:
//!
//! ```text
//! loop { match lowering.step() {
//!     Need(requests) => for each: resolve, lowering.provide(request, image)
//!     NeedEpoch(of)  => lowering.provide_epoch(when that was made)
//!     Done(graph) | Failed => leave, after showing lowering.diagnostics()
//! } }
//! ```
//!
//! A step lowers everything anew from the images provided so far. That costs microseconds per instruction, happens
//! once more than the longest chain of discoveries, and leaves no half-lowered state to reason about.
//!
//! Only stages that the target reaches are lowered. Metadata instructions shape config and history and make no node.
//! What this version cannot do is an error at its line, never ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rbuild_oci::{Digest, ImageConfig, Platform, Reference};

use crate::ast::{CheckOptions, Dockerfile, InstructionKind};
use crate::diagnostic::{self, Diagnostic, Severity};
use crate::graph::{BuildGraph, Network};
use crate::lint::{self, ContextFacts};
use crate::parse::{Parsed, check_options, foreign_syntax};
use crate::span::{Lines, Span};

mod bases;
mod environment;
mod files;
mod history;
mod metadata;
mod mounts;
mod nodes;
mod pass;
mod ports;
mod remotes;
mod run;
mod signal;
mod stages;
mod state;

/// Build-args that steer the builder and need no ARG.
const CONTROL_ARGS: [&str; 11] = [
    "BUILDKIT_SYNTAX",
    "BUILDKIT_DOCKERFILE_CHECK",
    "BUILDKIT_CACHE_MOUNT_NS",
    "BUILDKIT_MULTI_PLATFORM",
    "BUILDKIT_SANDBOX_HOSTNAME",
    "BUILDKIT_CONTEXT_KEEP_GIT_DIR",
    "BUILDKIT_INLINE_CACHE",
    "BUILDKIT_BUILD_NAME",
    "BUILDKIT_SBOM_SCAN_CONTEXT",
    "BUILDKIT_SBOM_SCAN_STAGE",
    EPOCH,
];

/// The build-arg that dates everything.
pub const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// Layers that an image may have: as many as Linux mounts as one overlay (`OVL_MAX_STACK`). Docker's engine takes 127 and
/// says so when all steps are done.
pub const LAYERS_MAX: usize = 500;

/// What the caller wants built.
#[derive(Debug, Clone)]
pub struct LowerOptions {
    /// `--target`: stage name in any case, or index.
    pub target: Option<String>,
    /// `--build-arg`.
    pub build_args: BTreeMap<String, String>,
    /// `--label`, in order; they beat the Dockerfile's.
    pub labels: Vec<(String, String)>,
    /// `--platform`, when given: one target each, in this order.
    pub target_platforms: Vec<Platform>,
    /// What the build machine is; what is built for when nothing is asked for.
    pub build_platform: Platform,
    /// `--build-context`.
    pub named_contexts: BTreeMap<String, NamedContext>,
    /// What is known about the main context; `None` keeps the rules about it silent.
    pub context: Option<ContextFacts>,
    /// The main context has owners of its own, as a tar has; otherwise its files count as root's.
    pub context_has_owners: bool,
    /// Lower all stages, so that rules are checked in those that the target does not reach too.
    pub all_stages: bool,
    /// Give advice ([`lint::rules::RuleKind::Advice`]).
    pub advice: bool,
    /// `--network`: of RUN steps that do not say.
    pub network: Network,
    /// `--allow`: what the Dockerfile may ask for.
    pub entitlements: Entitlements,
    /// Names given with `--add-host`, in order.
    pub host_names: Vec<String>,
    /// Packages are to be listed: [`crate::graph::Target::scans`] says of what besides the result.
    pub lists_packages: bool,
}

/// What a Dockerfile may ask for beyond a confined step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Entitlements {
    /// `RUN --network=host`.
    pub host_network: bool,
    /// `RUN --security=insecure`.
    pub insecure: bool,
    /// ADD of repositories over ssh, with the keys of who builds: given with `--ssh`.
    pub ssh: bool,
}

impl LowerOptions {
    /// Options with nothing asked for.
    pub fn new(build_platform: Platform) -> Self {
        Self {
            target: None,
            build_args: BTreeMap::new(),
            labels: Vec::new(),
            target_platforms: Vec::new(),
            build_platform,
            named_contexts: BTreeMap::new(),
            context: None,
            context_has_owners: false,
            all_stages: false,
            advice: false,
            network: Network::Default,
            entitlements: Entitlements::default(),
            host_names: Vec::new(),
            lists_packages: false,
        }
    }
}

impl LowerOptions {
    /// True when the result is an image for each of several platforms, or shall look as if it were
    /// (`BUILDKIT_MULTI_PLATFORM`).
    pub fn is_multi_platform(&self) -> bool {
        let asked = self.build_args.get("BUILDKIT_MULTI_PLATFORM").map(String::as_str);
        self.target_platforms.len() > 1 || matches!(asked, Some("1" | "t" | "T" | "true" | "TRUE" | "True"))
    }
}

/// What a named context is. Image and layout are resolved by the caller through [`ImageRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedContext {
    /// A directory, or a repository: files count as root's.
    Local,
    /// An archive, whose files have owners of their own.
    Archive,
    /// An image reference.
    Image(String),
    /// An OCI layout.
    OciLayout,
}

/// An image that lowering needs pinned.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageRequest {
    /// Reference as written, after expansion; or the named context's name.
    pub reference: String,
    /// The named context that stands for the image.
    pub named_context: Option<String>,
    /// Platform wanted.
    pub platform: Platform,
    /// Who wants it first.
    pub span: Span,
    /// Lines of that.
    pub lines: Lines,
}

/// A pinned image.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedImage {
    /// Normalised reference, for people.
    pub reference: String,
    /// Digest of the image manifest, never of an index.
    pub manifest: Digest,
    /// The image's config.
    pub config: ImageConfig,
}

/// Whose time `SOURCE_DATE_EPOCH` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EpochOf {
    /// The main context's (`context`).
    Context,
    /// A named context's, by its name as given.
    Named(String),
    /// A stage's, which is made of what ADD fetches and nothing else.
    Stage(String),
}

/// Where lowering stands.
#[derive(Debug)]
pub enum Progress {
    /// These images first, at least one.
    Need(Vec<ImageRequest>),
    /// First when this was made: see [`Lowering::provide_epoch`].
    NeedEpoch(EpochOf),
    /// The graph.
    Done(Box<BuildGraph>),
    /// Errors are in [`Lowering::diagnostics`].
    Failed,
}

/// What identifies an image apart from who asks.
type ImageKey = (String, Option<String>, Platform);

/// An image that was provided.
#[derive(Debug)]
struct Provided {
    image: ResolvedImage,
    /// Size of its config document: what each stage that starts from it copies.
    weight: usize,
    /// Its config is not known: what it may set counts as set.
    opaque: bool,
}

/// A lowering in progress.
#[derive(Debug)]
pub struct Lowering {
    ast: Arc<Dockerfile>,
    options: LowerOptions,
    images: BTreeMap<ImageKey, Provided>,
    /// Stages that only ONBUILD triggers want.
    extra_stages: BTreeSet<usize>,
    declared: BTreeSet<String>,
    source_date_epoch: Option<i64>,
    from_parse: Vec<Diagnostic>,
    diagnostics: Vec<Diagnostic>,
}

impl Lowering {
    /// Starts; nothing is looked at yet.
    pub fn new(parsed: &Parsed, options: LowerOptions) -> Self {
        let mut diagnostics = parsed.diagnostics.clone();
        diagnostics.extend(syntax_warning(parsed, &options));
        Self {
            ast: Arc::clone(&parsed.ast),
            options,
            images: BTreeMap::new(),
            extra_stages: BTreeSet::new(),
            declared: BTreeSet::new(),
            source_date_epoch: None,
            from_parse: diagnostics.clone(),
            diagnostics,
        }
    }

    /// Lowers as far as the images provided allow.
    pub fn step(&mut self) -> Progress {
        let check = match self.check_options() {
            Ok(check) => check,
            Err(diagnostic) => {
                self.diagnostics = self.from_parse.clone();
                self.diagnostics.push(diagnostic);
                return Progress::Failed;
            }
        };
        self.diagnostics = self.from_parse.clone();
        self.diagnostics.retain(|d| !lint::is_skipped(d, &check));
        if self.has_errors() {
            return Progress::Failed;
        }
        loop {
            let mut outcome = self.all_platforms();
            self.declared.append(&mut outcome.declared);
            self.source_date_epoch = outcome.source_date_epoch;
            // A trigger that wants a stage which was not known to be reachable: lower again with it.
            let wanted_before = self.extra_stages.len();
            self.extra_stages.append(&mut outcome.wanted);
            if self.extra_stages.len() > wanted_before {
                continue;
            }
            self.diagnostics.append(&mut outcome.diagnostics);
            self.diagnostics.retain(|d| !lint::is_skipped(d, &check));
            self.diagnostics.sort_by_key(|d| (d.span.start, d.severity));
            self.diagnostics.dedup();
            diagnostic::cut(&mut self.diagnostics, Severity::Warning);
            if self.has_errors() {
                return Progress::Failed;
            }
            if let Some(of) = outcome.epoch_of {
                return Progress::NeedEpoch(of);
            }
            if !outcome.needs.is_empty() {
                return Progress::Need(outcome.needs.into_values().collect());
            }
            if check.error && self.lint_violations() {
                return Progress::Failed;
            }
            if outcome.targets.len() != self.options.target_platforms.len().max(1) {
                return Progress::Failed;
            }
            return Progress::Done(Box::new(BuildGraph { dag: outcome.nodes.dag, targets: outcome.targets }));
        }
    }

    /// Answers a request. Providing an image that nobody asked for changes nothing.
    pub fn provide(&mut self, request: &ImageRequest, image: ResolvedImage) {
        let key = (request.reference.clone(), request.named_context.clone(), request.platform.clone());
        let weight = image.config.to_json().len();
        self.images.insert(key, Provided { image, weight, opaque: false });
    }

    /// Answers [`Progress::NeedEpoch`] in seconds: as if that had been given as the build-arg.
    pub fn provide_epoch(&mut self, seconds: i64) {
        self.options.build_args.insert(EPOCH.to_owned(), seconds.max(0).to_string());
    }

    /// Answers a request without knowing the image: nothing of its config or triggers is taken, and rules that would
    /// need them stay silent. The graph is good for looking at, not for building.
    pub fn provide_opaque(&mut self, request: &ImageRequest) {
        let key = (request.reference.clone(), request.named_context.clone(), request.platform.clone());
        let reference = request.reference.parse::<Reference>();
        let reference =
            reference.map_or_else(|_| request.reference.clone(), |r| r.with_default_tag().to_string());
        let manifest = Digest::of(format!("opaque {reference} {}", request.platform).as_bytes());
        let image =
            ResolvedImage { reference, manifest, config: ImageConfig::empty(request.platform.clone()) };
        self.images.insert(key, Provided { image, weight: 0, opaque: true });
    }

    /// What was found so far, the parser's findings included, without the rules that are switched off: the first
    /// [`diagnostic::TOLD_MAX`] warnings of a file that could be lowered.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    /// The time that everything is dated with, in seconds: the build-arg `SOURCE_DATE_EPOCH`, else the default of an ARG
    /// of that name before the first FROM. Known when lowering is done.
    pub fn source_date_epoch(&self) -> Option<i64> {
        self.source_date_epoch
    }

    /// Build-args that no ARG declares, sorted.
    pub fn unused_build_args(&self) -> Vec<String> {
        let declares = |name: &str| {
            self.declared.contains(name)
                || self.ast.instructions.iter().any(|instruction| match &instruction.kind {
                    InstructionKind::Arg(args) => args.iter().any(|arg| arg.name.value == name),
                    _ => false,
                })
        };
        let is_used = |name: &str| {
            CONTROL_ARGS.contains(&name)
                || environment::is_proxy(name)
                || environment::is_platform_arg(name)
                || declares(name)
        };
        self.options.build_args.keys().filter(|name| !is_used(name)).cloned().collect()
    }

    /// One pass for each platform, over one graph: what is equal for several is one node.
    fn all_platforms(&self) -> pass::Outcome {
        let platforms = &self.options.target_platforms;
        let mut passes = platforms.iter().map(Some).collect::<Vec<_>>();
        if passes.is_empty() {
            passes.push(None);
        }
        let mut outcome = pass::Outcome::default();
        for platform in passes {
            outcome =
                pass::run(&self.ast, &self.options, platform, &self.images, &self.extra_stages, outcome);
        }
        outcome
    }

    fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|d| d.severity == Severity::Error)
    }

    /// The `check` directive, or the build-arg that replaces it.
    fn check_options(&self) -> Result<CheckOptions, Diagnostic> {
        let Some(value) = self.options.build_args.get("BUILDKIT_DOCKERFILE_CHECK") else {
            return Ok(self.ast.check.clone());
        };
        check_options(value)
            .map_err(|text| nowhere(format!("failed to parse BUILDKIT_DOCKERFILE_CHECK: {text}")))
    }

    fn lint_violations(&mut self) -> bool {
        let rules: BTreeSet<&str> =
            self.diagnostics.iter().filter_map(|d| d.rule).filter(|rule| lint::is_violation(rule)).collect();
        if rules.is_empty() {
            return false;
        }
        let names = rules.into_iter().collect::<Vec<_>>().join(", ");
        self.diagnostics.push(nowhere(format!("lint violation found for rules: {names}")));
        true
    }
}

/// A warning for a frontend image that is not Docker's: the build-arg `BUILDKIT_SYNTAX` names it, else the directive.
fn syntax_warning(parsed: &Parsed, options: &LowerOptions) -> Option<Diagnostic> {
    if let Some(value) = options.build_args.get("BUILDKIT_SYNTAX") {
        let message = foreign_syntax(value)?;
        return Some(Diagnostic { severity: Severity::Warning, ..nowhere(message) });
    }
    let value = &parsed.ast.directives.iter().find(|directive| directive.key.value == "syntax")?.value;
    let message = foreign_syntax(&value.value)?;
    let lines = parsed.source.lines_of(value.span);
    Some(Diagnostic { severity: Severity::Warning, span: value.span, lines, ..nowhere(message) })
}

/// An error about no place in particular.
fn nowhere(message: String) -> Diagnostic {
    Diagnostic {
        rule: None,
        severity: Severity::Error,
        message,
        span: Span::default(),
        lines: Lines { first: 1, last: 1 },
        related: Vec::new(),
        help: None,
    }
}

#[cfg(test)]
mod tests;
