//! One lowering pass: which stages, from which bases, instruction after instruction.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::str::FromStr;

use petgraph::graph::NodeIndex;
use rbuild_oci::{ImageConfig, Platform, Reference};

use crate::ast::{Dockerfile, Instruction, InstructionKind, Spanned};
use crate::diagnostic::{Diagnostic, Severity};
use crate::expand::{self, Expansion};
use crate::graph::{BuildGraph, ContextOp, CopyOp, CopySource, ImageOp, Op, Role, Step, Target};
use crate::lint;
use crate::parse::{Issue, forbidden_trigger, parse_trigger};
use crate::span::{Lines, Span};
use crate::stage::{StageError, Stages, copy_from};
use crate::suggest;

use super::history::go_quote;
use super::nodes::Nodes;
use super::state::State;
use super::{
    ImageKey, ImageRequest, LowerOptions, NamedContext, Provided, ResolvedImage, environment, nowhere,
    unsupported,
};

/// Bytes that all values, environments and histories of one pass may take together. Doubling ENV lines and long
/// chains of stages would otherwise take memory without bound.
const BYTES_MAX: usize = 64 << 20;

/// Most variables that are searched for a suggestion.
const SUGGESTED_FROM_MAX: usize = 256;

/// Errors after which a pass looks no further.
const DIAGNOSTICS_MAX: usize = 1_000;

/// What a pass found out.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) graph: Option<BuildGraph>,
    pub(super) needs: Vec<ImageRequest>,
    /// Stages that triggers refer to and that were not lowered.
    pub(super) wanted: BTreeSet<usize>,
    /// ARG names of triggers.
    pub(super) declared: BTreeSet<String>,
    pub(super) diagnostics: Vec<Diagnostic>,
}

/// What a stage starts from.
#[derive(Debug, Clone)]
enum Base {
    Scratch,
    Stage(usize),
    Image(ImageRequest),
    Local(String),
}

/// What `--from` means.
#[derive(Debug, Clone)]
pub(super) enum Source {
    Stage(usize),
    Image(ImageRequest),
    Local(String),
    Scratch,
}

/// A stage being lowered.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) state: State,
    pub(super) stage: usize,
    label: String,
    /// Prefix of progress names: empty, or the stage's name and a blank.
    prefix: String,
    steps_total: usize,
    steps_done: usize,
    /// Set while triggers run: where the FROM line is.
    trigger: Option<(Span, Lines)>,
    lines: Lines,
    skip_rules: Vec<String>,
    /// Where CMD, ENTRYPOINT and HEALTHCHECK were seen in this stage.
    pub(super) seen: HashMap<&'static str, (Span, Lines)>,
}

impl Work {
    /// The progress entry of the next counted instruction.
    pub(super) fn next_step(&mut self, instruction: &Instruction) -> Step {
        let keyword = instruction.keyword.value.to_ascii_uppercase();
        let rest = instruction.text.get(instruction.keyword.value.len()..).unwrap_or_default();
        let onbuild = if self.trigger.is_some() { "ONBUILD " } else { "" };
        self.named_step(&format!("{onbuild}{keyword}{rest}"))
    }

    fn named_step(&mut self, text: &str) -> Step {
        self.steps_done += 1;
        let width = self.steps_total.to_string().len();
        let name = format!("[{}{:>width$}/{}] {text}", self.prefix, self.steps_done, self.steps_total);
        let lines = self.trigger.map_or(self.lines, |(_, lines)| lines);
        Step { name, stage: self.label.clone(), lines: Some(lines) }
    }
}

pub(super) struct Pass<'a> {
    pub(super) ast: &'a Dockerfile,
    pub(super) options: &'a LowerOptions,
    images: &'a BTreeMap<ImageKey, Provided>,
    pub(super) stages: Stages<'a>,
    pub(super) nodes: Nodes,
    /// Lowered stages; `None` when not reached or not possible yet.
    pub(super) states: Vec<Option<State>>,
    bases: Vec<Option<Base>>,
    reached: BTreeSet<usize>,
    /// Global ARGs with values, the built-in ones included.
    pub(super) global: HashMap<String, String>,
    global_declared: BTreeSet<String>,
    /// Named contexts by normalised reference.
    contexts: BTreeMap<String, &'a str>,
    needs: BTreeMap<ImageKey, ImageRequest>,
    out: Outcome,
    bytes_left: usize,
}

pub(super) fn run(
    ast: &Dockerfile,
    options: &LowerOptions,
    images: &BTreeMap<ImageKey, Provided>,
    extra_stages: &BTreeSet<usize>,
) -> Outcome {
    let stages = Stages::of(ast);
    let count = stages.all.len();
    let normalised = options.named_contexts.keys().filter_map(|name| Some((normalise(name)?, name.as_str())));
    let mut pass = Pass {
        ast,
        options,
        images,
        nodes: Nodes::default(),
        states: (0..count).map(|_| None).collect(),
        bases: (0..count).map(|_| None).collect(),
        reached: BTreeSet::new(),
        global: HashMap::new(),
        global_declared: BTreeSet::new(),
        contexts: normalised.collect(),
        needs: BTreeMap::new(),
        out: Outcome {
            graph: None,
            needs: Vec::new(),
            wanted: BTreeSet::new(),
            declared: BTreeSet::new(),
            diagnostics: Vec::new(),
        },
        bytes_left: BYTES_MAX,
        stages,
    };
    match pass.stages.target(options.target.as_deref()) {
        Ok(target) => pass.all(target, extra_stages),
        Err(error) => pass.out.diagnostics.push(nowhere(error.to_string())),
    }
    pass.out.needs = pass.needs.into_values().collect();
    pass.out
}

fn normalise(name: &str) -> Option<String> {
    Some(Reference::from_str(name).ok()?.with_default_tag().to_string())
}

impl<'a> Pass<'a> {
    fn all(&mut self, target: usize, extra_stages: &BTreeSet<usize>) {
        self.globals();
        self.reach(std::iter::once(target).chain(extra_stages.iter().copied()));
        self.check_unreached();
        for stage in self.reached.clone() {
            self.stage(stage);
        }
        if self.needs.is_empty()
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
            };
            let dag = std::mem::take(&mut self.nodes).dag;
            self.out.graph = Some(BuildGraph { dag, targets: vec![target] });
        }
    }

    pub(super) fn target_platform(&self) -> &'a Platform {
        self.options.target_platform.as_ref().unwrap_or(&self.options.build_platform)
    }

    /// ARGs before the first FROM, over the built-in ones.
    fn globals(&mut self) {
        let last = self.stages.all.last().and_then(|stage| stage.from.name.as_ref());
        let stage = self.options.target.clone().or_else(|| last.map(|name| name.value.to_lowercase()));
        self.global = environment::platform_args(&self.options.build_platform, self.target_platform());
        self.global.insert("TARGETSTAGE".to_owned(), stage.unwrap_or_else(|| "default".to_owned()));
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
    }

    fn expand_global(&mut self, text: &Spanned<String>, instruction: &Instruction) -> Result<String, Issue> {
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

    /// Finds the stages that are needed and what they start from.
    fn reach(&mut self, roots: impl Iterator<Item = usize>) {
        let mut open: Vec<usize> = roots.collect();
        while let Some(index) = open.pop() {
            if !self.reached.insert(index) {
                continue;
            }
            let stage = self.stages.all[index];
            match self.base_of(index) {
                Ok(base) => {
                    if let Base::Stage(needed) = &base {
                        open.push(*needed);
                    }
                    let replaced = self.own_context(index).is_some();
                    self.bases[index] = Some(base);
                    if replaced {
                        continue;
                    }
                }
                Err(issue) => self.report_at(issue, stage.instruction.lines),
            }
            for instruction in stage.body {
                if self.out.diagnostics.len() > DIAGNOSTICS_MAX {
                    return;
                }
                for issue in unsupported::in_instruction(instruction) {
                    self.report_at(issue, instruction.lines);
                }
                let Some(from) = copy_from(instruction) else { continue };
                match self.source_of(&from.value, index, from.span, instruction.lines) {
                    Ok(Source::Stage(needed)) => open.push(needed),
                    Ok(Source::Image(request)) => {
                        let _ = self.image(&request);
                    }
                    Ok(_) => {}
                    Err(issue) => self.report_at(issue, instruction.lines),
                }
            }
        }
    }

    /// Of stages that are not needed only impossible indexes are errors.
    fn check_unreached(&mut self) {
        for stage in self.stages.all.clone() {
            if self.reached.contains(&stage.index) {
                continue;
            }
            for instruction in stage.body {
                let Some(from) = copy_from(instruction) else { continue };
                let found = self.stages.copy_source(&from.value, stage.index);
                if let Err(error @ StageError::InvalidIndex(_)) = found {
                    self.report_at(Issue::new(error.to_string(), from.span), instruction.lines);
                }
            }
        }
    }

    /// The named context that replaces a whole stage.
    fn own_context(&self, stage: usize) -> Option<(&'a str, &'a NamedContext)> {
        let name = self.stages.all[stage].from.name.as_ref()?;
        let lower = name.value.to_lowercase();
        let found = self.options.named_contexts.iter().find(|(key, _)| key.to_lowercase() == lower);
        found.map(|(key, context)| (key.as_str(), context))
    }

    fn base_of(&mut self, index: usize) -> Result<Base, Issue> {
        let stage = self.stages.all[index];
        let (span, lines) = (stage.instruction.span, stage.instruction.lines);
        let platform = match &stage.from.platform {
            None => self.target_platform().clone(),
            Some(text) => {
                let value = self.expand_global(text, stage.instruction)?;
                if value.is_empty() {
                    let message = format!("empty platform value from expression {}", text.value);
                    return Err(Issue::new(message, text.span));
                }
                Platform::from_str(&value).map_err(|error| Issue::new(error.to_string(), text.span))?
            }
        };
        if let Some((name, context)) = self.own_context(index) {
            return Ok(self.context_base(name, context, platform, span, lines));
        }
        let image = &stage.from.image;
        let text = self.expand_global(image, stage.instruction)?;
        if text.is_empty() {
            return Err(Issue::new(format!("base name ({}) should not be blank", image.value), image.span));
        }
        if let Some(earlier) = self.stages.earlier(&text, index) {
            return Ok(Base::Stage(earlier));
        }
        if text == "scratch" {
            return Ok(Base::Scratch);
        }
        if let Some((name, context)) = self.named_context(&text, &platform) {
            return Ok(self.context_base(name, context, platform, span, lines));
        }
        if let Err(error) = Reference::from_str(&text) {
            let message = format!("failed to parse stage name {text:?}: {error}");
            return Err(Issue::new(message, image.span));
        }
        let named_context = None;
        Ok(Base::Image(ImageRequest { reference: text, named_context, platform, span: image.span, lines }))
    }

    fn context_base(
        &self,
        name: &str,
        context: &NamedContext,
        platform: Platform,
        span: Span,
        lines: Lines,
    ) -> Base {
        match context {
            NamedContext::Local => Base::Local(name.to_owned()),
            NamedContext::Image(reference) if reference == "scratch" => Base::Scratch,
            NamedContext::Image(_) | NamedContext::OciLayout => {
                let (reference, named_context) = (name.to_owned(), Some(name.to_owned()));
                Base::Image(ImageRequest { reference, named_context, platform, span, lines })
            }
        }
    }

    /// The context of that name: one for just this platform first, then by name, then by what the name means as a
    /// reference.
    fn named_context(&self, name: &str, platform: &Platform) -> Option<(&'a str, &'a NamedContext)> {
        let contexts = &self.options.named_contexts;
        if contexts.is_empty() {
            return None;
        }
        if let Some((key, context)) = contexts.get_key_value(&format!("{name}::{platform}")) {
            return Some((key, context));
        }
        if let Some((key, context)) = contexts.get_key_value(name) {
            return Some((key, context));
        }
        let key = *self.contexts.get(&normalise(name)?)?;
        contexts.get(key).map(|context| (key, context))
    }

    /// What `--from=name` means in a stage.
    pub(super) fn source_of(
        &self,
        name: &str,
        stage: usize,
        span: Span,
        lines: Lines,
    ) -> Result<Source, Issue> {
        if name.contains('$') {
            let message = "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround";
            return Err(Issue::new(message, span));
        }
        let found = self.stages.copy_source(name, stage);
        if let Some(index) = found.map_err(|error| Issue::new(error.to_string(), span))? {
            return Ok(Source::Stage(index));
        }
        let platform = self.target_platform().clone();
        if let Some((key, context)) = self.named_context(name, &platform) {
            return Ok(match self.context_base(key, context, platform, span, lines) {
                Base::Local(name) => Source::Local(name),
                Base::Image(request) => Source::Image(request),
                _ => Source::Scratch,
            });
        }
        if name == "scratch" {
            return Ok(Source::Scratch);
        }
        if let Err(error) = Reference::from_str(name) {
            let hint = suggest::hint(name, self.stages.names());
            return Err(Issue::new(format!("invalid --from={name}: {error}{hint}"), span));
        }
        let (reference, named_context) = (name.to_owned(), None);
        Ok(Source::Image(ImageRequest { reference, named_context, platform, span, lines }))
    }

    /// The pinned image, or `None` after noting that it is needed.
    pub(super) fn image(&mut self, request: &ImageRequest) -> Option<&'a Provided> {
        let key = (request.reference.clone(), request.named_context.clone(), request.platform.clone());
        let found = self.images.get(&key);
        if found.is_none() {
            self.needs.entry(key).or_insert_with(|| request.clone());
        }
        found
    }

    pub(super) fn image_node(&mut self, image: &ResolvedImage, platform: &Platform, step: Step) -> NodeIndex {
        let op = ImageOp {
            reference: image.reference.clone(),
            manifest: image.manifest,
            platform: platform.clone(),
        };
        self.nodes.add(Op::Image(op), &[], step)
    }

    pub(super) fn context_node(&mut self, name: Option<&str>) -> NodeIndex {
        let text = match name {
            None => "[internal] load build context".to_owned(),
            Some(name) => format!("[context {name}] load from client"),
        };
        let step = Step { name: text, stage: String::new(), lines: None };
        self.nodes.add(Op::Context(ContextOp { name: name.map(str::to_owned) }), &[], step)
    }

    pub(super) fn scratch_node(&mut self) -> NodeIndex {
        let step = Step { name: "[internal] empty root".to_owned(), stage: String::new(), lines: None };
        self.nodes.add(Op::Scratch, &[], step)
    }

    /// Lowers a stage, if its base is known.
    fn stage(&mut self, index: usize) {
        let stage = self.stages.all[index];
        let Some(base) = self.bases[index].clone() else { return };
        let label = stage.label();
        let prefix = if self.stages.all.len() == 1 { String::new() } else { format!("{label} ") };
        let from_lines = stage.instruction.lines;
        let mut image = None;
        let mut state = match &base {
            Base::Scratch => {
                let platform = self.target_platform().clone();
                let mut config = ImageConfig::empty(platform.clone());
                config.config.working_dir = "/".to_owned();
                State::new(config, platform, self.scratch_node())
            }
            Base::Local(name) => self.local_state(name, &label, from_lines),
            Base::Stage(needed) => {
                let Some(state) = &self.states[*needed] else { return };
                let (weight, mut state) = (state.weight, state.clone());
                if let Err(issue) = self.charge(weight, stage.instruction.span) {
                    self.report_at(issue, from_lines);
                    return;
                }
                state.cmd_set = false;
                state
            }
            Base::Image(request) => {
                let Some(Provided { image: found, weight }) = self.image(request) else { return };
                if let Err(issue) = self.charge(*weight, stage.instruction.span) {
                    self.report_at(issue, from_lines);
                    return;
                }
                image = Some((found, request.platform.clone()));
                let mut config = found.config.clone();
                if !config.platform.satisfies(&request.platform) {
                    let message = format!(
                        "Base image {} was pulled with platform \"{}\", expected \"{}\" for current build",
                        request.reference, config.platform, request.platform
                    );
                    let rules = &stage.instruction.skip_rules;
                    let found = lint::finding(
                        "InvalidBaseImagePlatform",
                        message,
                        stage.from.image.span,
                        from_lines,
                        rules,
                    );
                    self.out.diagnostics.extend(found);
                }
                if self.options.target_platform.is_some() {
                    config.platform = self.target_platform().clone();
                }
                if config.rootfs.diff_ids.is_empty() && config.config.working_dir.is_empty() {
                    config.config.working_dir = "/".to_owned();
                }
                // The node follows when the stage's number of steps is known.
                let mut state = State::new(config, request.platform.clone(), NodeIndex::end());
                state.weight += weight;
                state
            }
        };
        state.ensure_path();
        let triggers = self.triggers(&std::mem::take(&mut state.config.config.on_build), index);
        let body: &[Instruction] = if self.own_context(index).is_some() { &[] } else { stage.body };
        let counted = triggers.iter().chain(body).filter(|instruction| is_counted(instruction)).count();
        let mut work = Work {
            state,
            stage: index,
            label,
            prefix,
            steps_total: counted + usize::from(image.is_some()),
            steps_done: 0,
            trigger: None,
            lines: from_lines,
            skip_rules: Vec::new(),
            seen: HashMap::new(),
        };
        if let Some((found, platform)) = image {
            let step = work.named_step(&format!("FROM {}", found.reference));
            work.state.node = self.image_node(found, &platform, step);
            work.state.base = Some(work.state.node);
        }
        work.trigger = Some((stage.instruction.span, from_lines));
        for instruction in &triggers {
            self.instruction(&mut work, instruction);
        }
        work.trigger = None;
        for instruction in body {
            self.instruction(&mut work, instruction);
        }
        self.states[index] = Some(work.state);
    }

    /// A directory as base: one layer with all its files on nothing.
    fn local_state(&mut self, name: &str, label: &str, lines: Lines) -> State {
        let (root, source) = (self.scratch_node(), self.context_node(Some(name)));
        let op = CopyOp {
            sources: vec![CopySource::Path(String::new())],
            dest: "/".to_owned(),
            chown: None,
            chmod: None,
            from_context: true,
            unpack: false,
        };
        let step =
            Step { name: format!("[context {name}] COPY . /"), stage: label.to_owned(), lines: Some(lines) };
        let node = self.nodes.add(Op::Copy(op), &[(Role::Root, root), (Role::Source, source)], step);
        let platform = self.target_platform().clone();
        let mut state = State::new(ImageConfig::empty(platform.clone()), platform, node);
        state.config.config.working_dir = "/".to_owned();
        state.layers.push(node);
        state.log("COPY . / # buildkit".to_owned(), false);
        state
    }

    /// Parses a base's ONBUILD triggers and notes which stages and images they bring in.
    fn triggers(&mut self, texts: &[String], stage: usize) -> Vec<Instruction> {
        let from = self.stages.all[stage].instruction;
        let mut instructions = Vec::new();
        for text in texts {
            let parsed = parse_trigger(text, self.ast.escape).and_then(|parsed| {
                let forbidden = parsed.iter().find_map(|i| forbidden_trigger(&i.keyword.value));
                forbidden.map_or(Ok(parsed), |message| Err(Issue::new(message, from.span)))
            });
            match parsed {
                Ok(mut parsed) => instructions.append(&mut parsed),
                Err(issue) => {
                    let message = format!("cannot run trigger `ONBUILD {text}`: {}", issue.message);
                    self.report_at(Issue::new(message, from.span), from.lines);
                }
            }
        }
        for instruction in &instructions {
            if let InstructionKind::Arg(args) = &instruction.kind {
                self.out.declared.extend(args.iter().map(|arg| arg.name.value.clone()));
            }
            for issue in unsupported::in_instruction(instruction) {
                self.report_at(Issue { span: from.span, ..issue }, from.lines);
            }
            if let Some(source) = copy_from(instruction)
                && let Ok(Source::Stage(needed)) = self.source_of(&source.value, stage, from.span, from.lines)
                && !self.reached.contains(&needed)
            {
                self.out.wanted.insert(needed);
            }
        }
        instructions
    }

    fn instruction(&mut self, work: &mut Work, instruction: &Instruction) {
        use InstructionKind as Kind;
        work.lines = instruction.lines;
        work.skip_rules.clone_from(&instruction.skip_rules);
        let done = match &instruction.kind {
            Kind::Run(run) => self.run(work, instruction, run),
            Kind::Copy(copy) => self.copy(work, instruction, copy),
            Kind::Add(add) => self.add(work, instruction, add),
            Kind::Workdir(path) => self.workdir(work, instruction, path),
            Kind::Env(pairs) => self.env(work, pairs),
            Kind::Arg(declarations) => self.arg(work, declarations),
            Kind::Label(pairs) => self.label(work, pairs),
            Kind::From(_) => Ok(()),
            other => self.metadata(work, instruction, other),
        };
        if let Err(issue) = done {
            self.report(work, issue);
        }
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
            None => Err(Issue::new(format!("the Dockerfile expands to more than {BYTES_MAX} bytes"), span)),
        }
    }

    pub(super) fn warn(&mut self, work: &Work, rule: &'static str, message: impl Into<String>, span: Span) {
        let (span, lines) = work.trigger.unwrap_or((span, work.lines));
        self.out.diagnostics.extend(lint::finding(rule, message, span, lines, &work.skip_rules));
    }

    /// Reports a rule about an earlier place of the same stage.
    pub(super) fn warn_earlier(&mut self, rule: &'static str, message: String, place: (Span, Lines)) {
        self.out.diagnostics.extend(lint::finding(rule, message, place.0, place.1, &[]));
    }

    fn report(&mut self, work: &Work, issue: Issue) {
        let (span, lines) = work.trigger.unwrap_or((issue.span, work.lines));
        self.report_at(Issue { span, ..issue }, lines);
    }

    fn report_at(&mut self, issue: Issue, lines: Lines) {
        self.out.diagnostics.push(Diagnostic {
            rule: None,
            severity: Severity::Error,
            message: issue.message,
            span: issue.span,
            lines,
            related: Vec::new(),
            help: issue.help,
        });
    }
}

/// Instructions that make a progress entry.
fn is_counted(instruction: &Instruction) -> bool {
    use InstructionKind::{Add, Copy, Run, Workdir};
    matches!(instruction.kind, Run(_) | Copy(_) | Add(_) | Workdir(_))
}

pub(super) fn failed(text: &Spanned<String>, error: &expand::ExpandError) -> Issue {
    let shown: String = text.value.chars().take(200).collect();
    Issue::new(format!("failed to process {}: {error}", go_quote(&shown)), text.span)
}
