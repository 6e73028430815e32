//! One lowering pass: which stages, from which bases, instruction after instruction.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::str::FromStr;

use petgraph::graph::NodeIndex;
use rbuild_oci::{Platform, Reference};

use crate::ast::{Dockerfile, Instruction, InstructionKind, Spanned};
use crate::diagnostic::{Diagnostic, Severity};
use crate::expand::{self, Expansion};
use crate::graph::{ContextOp, ImageOp, Op, Scan, Step, Target};
use crate::lint;
use crate::parse::Issue;
use crate::span::{Lines, Span};
use crate::stage::Stages;
use crate::suggest;

use super::bases::Base;
use super::environment::Searches;
use super::history::go_quote;
use super::nodes::Nodes;
use super::stages::Work;
use super::state::State;
use super::{
    EPOCH, EpochOf, ImageKey, ImageRequest, LowerOptions, NamedContext, Provided, ResolvedImage, environment,
    nowhere,
};

/// Bytes that all values, environments and histories of one pass may take together. Doubling ENV lines and long
/// chains of stages would otherwise take memory without bound.
const BYTES_MAX: usize = 16 << 20;

/// Most variables that are searched for a suggestion.
const SUGGESTED_FROM_MAX: usize = 256;

/// Errors after which a pass looks no further.
pub(super) const DIAGNOSTICS_MAX: usize = 1_000;

/// What the passes found out, one after the other.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Nodes of all passes.
    pub(super) nodes: Nodes,
    /// One for each pass that had all it needs.
    pub(super) targets: Vec<Target>,
    pub(super) needs: BTreeMap<ImageKey, ImageRequest>,
    /// Stages that triggers refer to and that were not lowered.
    pub(super) wanted: BTreeSet<usize>,
    pub(super) source_date_epoch: Option<i64>,
    /// Whose time that is, when it is not known yet.
    pub(super) epoch_of: Option<EpochOf>,
    /// ARG names of triggers.
    pub(super) declared: BTreeSet<String>,
    pub(super) diagnostics: Vec<Diagnostic>,
}

pub(super) struct Pass<'a> {
    pub(super) ast: &'a Dockerfile,
    pub(super) options: &'a LowerOptions,
    pub(super) images: &'a BTreeMap<ImageKey, Provided>,
    pub(super) stages: Stages<'a>,
    /// What this pass is for, when it was asked for.
    pub(super) platform: Option<&'a Platform>,
    /// Lowered stages; `None` when not reached or not possible yet.
    pub(super) states: Vec<Option<State>>,
    /// What each has searched for packages.
    pub(super) searches: Vec<Searches>,
    pub(super) bases: Vec<Option<Base>>,
    pub(super) reached: BTreeSet<usize>,
    /// Global ARGs with values, the built-in ones included.
    pub(super) global: HashMap<String, String>,
    /// The same without what the command line says.
    pub(super) global_defaults: HashMap<String, String>,
    pub(super) global_declared: BTreeSet<String>,
    /// Named contexts by normalised reference.
    pub(super) contexts: BTreeMap<String, &'a str>,
    /// An image that is not here yet was met in this pass.
    lacks_images: bool,
    pub(super) out: Outcome,
    bytes_left: usize,
    /// The budget is used up, which is said once: nothing after it is looked at.
    pub(super) is_exhausted: bool,
}

/// Lowers for one platform and adds what comes out to `out`.
pub(super) fn run(
    ast: &Dockerfile,
    options: &LowerOptions,
    platform: Option<&Platform>,
    images: &BTreeMap<ImageKey, Provided>,
    extra_stages: &BTreeSet<usize>,
    out: Outcome,
) -> Outcome {
    let stages = Stages::of(ast);
    let count = stages.all.len();
    let normalised = options.named_contexts.keys().filter_map(|name| Some((normalise(name)?, name.as_str())));
    let mut pass = Pass {
        ast,
        options,
        images,
        platform,
        states: (0..count).map(|_| None).collect(),
        searches: vec![Searches::default(); count],
        bases: (0..count).map(|_| None).collect(),
        reached: BTreeSet::new(),
        global: HashMap::new(),
        global_defaults: HashMap::new(),
        global_declared: BTreeSet::new(),
        contexts: normalised.collect(),
        lacks_images: false,
        out,
        bytes_left: BYTES_MAX,
        is_exhausted: false,
        stages,
    };
    match pass.stages.target(options.target.as_deref()) {
        Ok(target) => pass.all(target, extra_stages),
        Err(error) => {
            let names: Vec<&str> = pass.stages.names().collect();
            let help =
                (!names.is_empty()).then(|| format!("stages of this Dockerfile: {}", names.join(", ")));
            pass.out.diagnostics.push(Diagnostic { help, ..nowhere(error.to_string()) });
        }
    }
    pass.out
}

pub(super) fn normalise(name: &str) -> Option<String> {
    Some(Reference::from_str(name).ok()?.with_default_tag().to_string())
}

impl<'a> Pass<'a> {
    fn all(&mut self, target: usize, extra_stages: &BTreeSet<usize>) {
        self.globals();
        let all = if self.options.all_stages { self.stages.all.len() } else { 0 };
        self.reach(std::iter::once(target).chain(extra_stages.iter().copied()).chain(0..all));
        self.check_unreached();
        for stage in self.reached.clone() {
            if !self.is_exhausted {
                self.stage(stage);
            }
        }
        let scans = if self.options.lists_packages { self.scans(target) } else { Vec::new() };
        if !self.lacks_images
            && let Some(state) = &self.states[target]
        {
            let mut config = state.finished_config();
            for (name, value) in &self.options.labels {
                config.config.labels.insert(name.clone(), value.clone());
            }
            let target = Target {
                node: state.node,
                stage: self.stages.all[target].label(),
                config,
                history: state.history.clone(),
                layers: state.layers.clone(),
                base: state.base,
                scans,
            };
            self.out.targets.push(target);
        }
    }

    /// What is searched for packages besides the result: stages that say so, and the context if one does.
    fn scans(&mut self, target: usize) -> Vec<Scan> {
        let mut scans = Vec::new();
        for (index, searches) in self.searches.iter().enumerate() {
            if let Some(state) = self.states[index].as_ref().filter(|_| searches.stage && index != target) {
                scans.push(Scan { name: self.stages.all[index].label(), node: state.node });
            }
        }
        if self.searches.iter().any(|searches| searches.context) {
            scans.push(Scan { name: "context".to_owned(), node: self.context_node(None) });
        }
        scans
    }

    pub(super) fn target_platform(&self) -> &'a Platform {
        self.platform.unwrap_or(&self.options.build_platform)
    }

    /// ARGs before the first FROM, over the built-in ones.
    fn globals(&mut self) {
        let last = self.stages.all.last().and_then(|stage| stage.from.name.as_ref());
        let stage = self.options.target.clone().or_else(|| last.map(|name| name.value.to_lowercase()));
        self.global = environment::platform_args(&self.options.build_platform, self.target_platform());
        self.global.insert("TARGETSTAGE".to_owned(), stage.unwrap_or_else(|| "default".to_owned()));
        self.global_defaults = self.global.clone();
        for (name, value) in &self.options.build_args {
            if environment::is_platform_arg(name) {
                self.global.insert(name.clone(), value.clone());
            }
        }
        let instructions: &'a [Instruction] = self.stages.global;
        for instruction in instructions {
            let InstructionKind::Arg(declarations) = &instruction.kind else { continue };
            for arg in declarations {
                self.global_declared.insert(arg.name.value.clone());
                if let Some(default) = &arg.default
                    && let Ok(expansion) =
                        expand::word(&default.value, self.ast.escape, &self.global_defaults)
                {
                    self.global_defaults.insert(arg.name.value.clone(), expansion.text);
                }
                let value = match (self.options.build_args.get(&arg.name.value), &arg.default) {
                    (Some(given), _) => given.clone(),
                    (None, Some(default)) => match self.expand_global(default, instruction) {
                        Ok(text) => text,
                        Err(issue) => {
                            self.report_at(issue, instruction.lines);
                            continue;
                        }
                    },
                    (None, None) => continue,
                };
                self.global.insert(arg.name.value.clone(), value);
            }
        }
        self.epoch(instructions);
    }

    fn epoch(&mut self, globals: &[Instruction]) {
        let text = self.options.build_args.get(EPOCH).or_else(|| self.global.get(EPOCH)).cloned();
        let Some(text) = text.filter(|text| !text.is_empty()) else { return };
        match text.parse::<i64>() {
            Ok(seconds) if seconds >= 0 => self.out.source_date_epoch = Some(seconds),
            Err(_) if self.epoch_of(&text).is_some() => self.out.epoch_of = self.epoch_of(&text),
            _ => {
                let declares = |instruction: &&Instruction| match &instruction.kind {
                    InstructionKind::Arg(args) => args.iter().any(|arg| arg.name.value == EPOCH),
                    _ => false,
                };
                let message = format!("invalid SOURCE_DATE_EPOCH: {text}");
                match globals.iter().rev().find(declares) {
                    Some(arg) => self.report_at(Issue::new(message, arg.span), arg.lines),
                    None => self.out.diagnostics.push(nowhere(message)),
                }
            }
        }
    }

    /// What a name in place of a time means: a context before a stage, as for FROM.
    fn epoch_of(&self, name: &str) -> Option<EpochOf> {
        if name == "context" {
            return Some(EpochOf::Context);
        }
        if let Some((key, _)) = self.named_context(name, self.target_platform()) {
            return Some(EpochOf::Named(key.to_owned()));
        }
        let is_stage = self.stages.names().any(|stage| stage.eq_ignore_ascii_case(name));
        is_stage.then(|| EpochOf::Stage(name.to_owned()))
    }

    pub(super) fn expand_global(
        &mut self,
        text: &Spanned<String>,
        instruction: &Instruction,
    ) -> Result<String, Issue> {
        let expansion = expand::word(&text.value, self.ast.escape, &self.global);
        let Expansion { text: value, unset } = expansion.map_err(|e| failed(text, &e))?;
        self.charge(value.len(), text.span)?;
        for name in unset.iter().filter(|name| !self.global_declared.contains(*name)) {
            let hint = suggest::hint(name, self.global_declared.iter().map(String::as_str));
            let message = format!("FROM argument '{name}' is not declared{hint}");
            let rules = &instruction.skip_rules;
            let found = lint::finding("UndefinedArgInFrom", message, text.span, instruction.lines, rules);
            self.out.diagnostics.extend(found);
        }
        Ok(value)
    }

    /// The pinned image, or `None` after noting that it is needed.
    pub(super) fn image(&mut self, request: &ImageRequest) -> Option<&'a Provided> {
        let key = (request.reference.clone(), request.named_context.clone(), request.platform.clone());
        let found = self.images.get(&key);
        if found.is_none() {
            self.lacks_images = true;
            self.out.needs.entry(key).or_insert_with(|| request.clone());
        }
        found
    }

    pub(super) fn image_node(&mut self, image: &ResolvedImage, platform: &Platform, step: Step) -> NodeIndex {
        let op = ImageOp {
            reference: image.reference.clone(),
            manifest: image.manifest,
            platform: platform.clone(),
        };
        self.out.nodes.add(Op::Image(op), &[], step)
    }

    pub(super) fn context_node(&mut self, name: Option<&str>) -> NodeIndex {
        let text = match name {
            None => "[internal] load build context".to_owned(),
            Some(name) => format!("[context {name}] load from client"),
        };
        let step = Step { name: text, stage: String::new(), lines: None };
        self.out.nodes.add(Op::Context(ContextOp { name: name.map(str::to_owned) }), &[], step)
    }

    /// True for a named context whose files have owners of their own.
    pub(super) fn has_owners(&self, context: &str) -> bool {
        matches!(self.options.named_contexts.get(context), Some(NamedContext::Archive))
    }

    pub(super) fn scratch_node(&mut self) -> NodeIndex {
        let step = Step { name: "[internal] empty root".to_owned(), stage: String::new(), lines: None };
        self.out.nodes.add(Op::Scratch, &[], step)
    }

    /// Expands a text in a stage's scope.
    pub(super) fn expand(&mut self, work: &Work, text: &Spanned<String>) -> Result<String, Issue> {
        let expansion = expand::word(&text.value, self.ast.escape, &work.state);
        let Expansion { text: value, unset } = expansion.map_err(|error| failed(text, &error))?;
        self.undefined(work, &unset, text.span);
        self.charge(value.len(), text.span)?;
        Ok(value)
    }

    pub(super) fn undefined(&mut self, work: &Work, unset: &BTreeSet<String>, span: Span) {
        if work.state.opaque {
            return;
        }
        for name in unset.iter().filter(|name| !work.state.args.contains(name)) {
            let hint = match work.state.effective.len() {
                0..=SUGGESTED_FROM_MAX => {
                    let known: BTreeSet<&str> = work.state.effective.keys().map(String::as_str).collect();
                    suggest::nearest(name, known)
                }
                _ => None,
            };
            let hint = hint.map(|known| format!(" (did you mean ${known}?)")).unwrap_or_default();
            self.warn(work, "UndefinedVar", format!("Usage of undefined variable '${name}'{hint}"), span);
        }
    }

    /// Takes from the memory budget.
    pub(super) fn charge(&mut self, bytes: usize, span: Span) -> Result<(), Issue> {
        match self.bytes_left.checked_sub(bytes) {
            Some(left) => {
                self.bytes_left = left;
                Ok(())
            }
            None => {
                self.is_exhausted = true;
                Err(Issue::new(format!("the Dockerfile expands to more than {BYTES_MAX} bytes"), span))
            }
        }
    }

    pub(super) fn warn(&mut self, work: &Work, rule: &'static str, message: impl Into<String>, span: Span) {
        let (span, lines) = work.place(span);
        self.out.diagnostics.extend(lint::finding(rule, message, span, lines, &work.skip_rules));
    }

    /// Reports a rule about an earlier place of the same stage.
    pub(super) fn warn_earlier(&mut self, rule: &'static str, message: String, place: (Span, Lines)) {
        self.out.diagnostics.extend(lint::finding(rule, message, place.0, place.1, &[]));
    }

    pub(super) fn report(&mut self, work: &Work, issue: Issue) {
        let (span, lines) = work.place(issue.span);
        self.report_at(Issue { span, ..issue }, lines);
    }

    pub(super) fn report_at(&mut self, issue: Issue, lines: Lines) {
        self.out.diagnostics.push(Diagnostic {
            rule: None,
            severity: Severity::Error,
            message: issue.message,
            span: issue.span,
            lines,
            related: issue.related,
            help: issue.help,
        });
    }
}

pub(super) fn failed(text: &Spanned<String>, error: &expand::ExpandError) -> Issue {
    let shown: String = text.value.chars().take(200).collect();
    let issue = Issue::new(format!("failed to process {}: {error}", go_quote(&shown)), text.span);
    match error {
        expand::ExpandError::SingleQuote | expand::ExpandError::DoubleQuote => issue
            .with_help("close the quote, or put the escape character before it when it is meant as it is"),
        expand::ExpandError::MissingBrace => issue.with_help("close the `${` with `}`"),
        expand::ExpandError::Modifier(_) => {
            issue.with_help("operators are :- - :+ + :? ? # ## % %% / and //")
        }
        expand::ExpandError::Required { name, .. } => {
            issue.with_help(format!("give it a value, for example with --build-arg {name}=VALUE"))
        }
        _ => issue,
    }
}
