//! One stage from its base to its last instruction, ONBUILD triggers included.

use std::collections::HashMap;

use petgraph::graph::NodeIndex;
use rbuild_oci::{ImageConfig, Platform};

use crate::ast::{Instruction, InstructionKind};
use crate::graph::{CopyOp, CopySource, Op, Role, Step};
use crate::lint;
use crate::parse::{Issue, forbidden_trigger, parse_trigger};
use crate::remote::without_credentials;
use crate::span::{Lines, Span};
use crate::stage::sources_of;

use super::bases::{Base, Source};
use super::environment::{SCAN_CONTEXT, SCAN_STAGE, Searches};
use super::pass::Pass;
use super::state::State;
use super::{LAYERS_MAX, Provided};

/// A stage being lowered.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) state: State,
    pub(super) stage: usize,
    pub(super) label: String,
    /// The stage's name in progress entries: empty for a lone stage.
    shown_label: String,
    /// Progress entries name the platform.
    shows_platform: bool,
    steps_total: usize,
    steps_done: usize,
    /// Set while triggers run: where the FROM line is.
    pub(super) trigger: Option<(Span, Lines)>,
    pub(super) lines: Lines,
    pub(super) skip_rules: Vec<String>,
    /// Where CMD, ENTRYPOINT and HEALTHCHECK were seen in this stage.
    pub(super) seen: HashMap<&'static str, (Span, Lines)>,
    /// What is searched for packages because of this stage.
    pub(super) searches: Searches,
}

impl Work {
    /// Where something is in the Dockerfile: what a trigger says is on the FROM line.
    pub(super) fn place(&self, span: Span) -> (Span, Lines) {
        self.trigger.unwrap_or((span, self.lines))
    }

    /// The progress entry of the next counted instruction.
    pub(super) fn next_step(&mut self, instruction: &Instruction) -> Step {
        let keyword = instruction.keyword.value.to_ascii_uppercase();
        let mut rest = instruction.text.get(instruction.keyword.value.len()..).unwrap_or_default().to_owned();
        if keyword == "ADD" && rest.contains("://") {
            // Progress goes into logs that more people read than the Dockerfile.
            rest = rest.split(' ').map(without_credentials).collect::<Vec<_>>().join(" ");
        }
        let onbuild = if self.trigger.is_some() { "ONBUILD " } else { "" };
        self.named_step(&format!("{onbuild}{keyword}{rest}"))
    }

    fn named_step(&mut self, text: &str) -> Step {
        self.steps_done += 1;
        let width = self.steps_total.to_string().len();
        let platform = if self.shows_platform { shown_platform(&self.state) } else { String::new() };
        let words =
            [platform.as_str(), self.shown_label.as_str()].into_iter().filter(|word| !word.is_empty());
        let prefix: String = words.map(|word| format!("{word} ")).collect();
        let name = format!("[{prefix}{:>width$}/{}] {text}", self.steps_done, self.steps_total);
        let lines = self.trigger.map_or(self.lines, |(_, lines)| lines);
        Step { name, stage: self.label.clone(), lines: Some(lines) }
    }
}

impl Pass<'_> {
    /// Lowers a stage, if its base is known.
    pub(super) fn stage(&mut self, index: usize) {
        let stage = self.stages.all[index];
        let Some(base) = self.bases[index].clone() else { return };
        let label = stage.label();
        let shown_label = if self.stages.all.len() == 1 { String::new() } else { label.clone() };
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
                let Some(Provided { image: found, weight, opaque }) = self.image(request) else { return };
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
                if self.platform.is_some() {
                    config.platform = self.target_platform().clone();
                }
                if config.rootfs.diff_ids.is_empty() && config.config.working_dir.is_empty() {
                    config.config.working_dir = "/".to_owned();
                }
                // The node follows when the stage's number of steps is known.
                let mut state = State::new(config, request.platform.clone(), NodeIndex::end());
                state.weight += weight;
                state.opaque = *opaque;
                state
            }
        };
        state.ensure_path();
        if self.options.advice && self.own_context(index).is_none() {
            lint::advice::stage(stage.body, self.options.context.as_ref(), &mut self.out.diagnostics);
        }
        let triggers = self.triggers(&std::mem::take(&mut state.config.config.on_build), index);
        let body: &[Instruction] = if self.own_context(index).is_some() { &[] } else { stage.body };
        let counted = triggers.iter().chain(body).filter(|instruction| is_counted(instruction)).count();
        let mut work = Work {
            state,
            stage: index,
            label,
            shown_label,
            shows_platform: self.options.is_multi_platform(),
            steps_total: counted + usize::from(image.is_some()),
            steps_done: 0,
            trigger: None,
            lines: from_lines,
            skip_rules: Vec::new(),
            seen: HashMap::new(),
            searches: Searches::default(),
        };
        for name in [SCAN_CONTEXT, SCAN_STAGE] {
            work.searches.set(name, self.global.get(name).map(String::as_str), &work.label);
        }
        if let Some((found, platform)) = image {
            let step = work.named_step(&format!("FROM {}", found.reference));
            work.state.node = self.image_node(found, &platform, step);
            work.state.base = Some(work.state.node);
        }
        work.trigger = Some((stage.instruction.span, from_lines));
        for instruction in &triggers {
            self.instruction(&mut work, instruction);
            if self.is_exhausted {
                return;
            }
        }
        work.trigger = None;
        for instruction in body {
            self.instruction(&mut work, instruction);
            if self.is_exhausted {
                return;
            }
        }
        self.searches[index] = work.searches;
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
            from_context: !self.has_owners(name),
            unpack: false,
            link: false,
            exclude: Vec::new(),
        };
        let step =
            Step { name: format!("[context {name}] COPY . /"), stage: label.to_owned(), lines: Some(lines) };
        let node = self.out.nodes.add(Op::Copy(op), &[(Role::Root, root), (Role::Source, source)], step);
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
            // About as much as is known of an instruction: a config may have more of them than a Dockerfile.
            if let Err(issue) = self.charge(1024 + text.len(), from.span) {
                self.report_at(issue, from.lines);
                return Vec::new();
            }
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
            for source in sources_of(instruction) {
                if let Ok(Source::Stage(needed)) = self.source_of(&source.name, stage, from.span, from.lines)
                    && !self.reached.contains(&needed)
                {
                    self.out.wanted.insert(needed);
                }
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
        if let Err(issue) = done.and_then(|()| self.limit_layers(work, instruction.span)) {
            self.report(work, issue);
        }
    }

    /// Refuses what nothing could be run on, before anything is done for it.
    fn limit_layers(&mut self, work: &Work, span: Span) -> Result<(), Issue> {
        let (below, own) = (work.state.config.rootfs.diff_ids.len(), work.state.layers.len());
        if own == 0 || below + own <= LAYERS_MAX {
            return Ok(());
        }
        self.is_exhausted = true;
        let message =
            format!("the stage has more than {LAYERS_MAX} layers, which is the most that Linux mounts");
        let help = "join RUN steps with `&&`, name several sources in one COPY, or begin a stage that copies what \
                    this one made (COPY --from)";
        Err(Issue { help: Some(help.to_owned()), ..Issue::new(message, span) })
    }
}

/// The platform that a stage's steps run on, and the target's architecture after an arrow when that is another and the
/// stage asked for it by an ARG so far.
fn shown_platform(state: &State) -> String {
    let given = |name: &str| state.args.contains(name).then(|| state.effective.get(name)).flatten();
    let (on, mut target) = (&state.platform, state.platform.clone());
    if let Some(Ok(platform)) = given("TARGETPLATFORM").map(|text| text.parse()) {
        target = platform;
    } else if let Some(architecture) = given("TARGETARCH") {
        let os = given("TARGETOS").map_or(on.os.as_str(), String::as_str);
        target = Platform::new(os, architecture, given("TARGETVARIANT").map(String::as_str));
    }
    let variant = target.variant.as_ref().map(|variant| format!("/{variant}")).unwrap_or_default();
    if target.os != on.os {
        format!("{on}->{target}")
    } else if target != *on {
        format!("{on}->{}{variant}", target.architecture)
    } else {
        on.to_string()
    }
}

/// Instructions that make a progress entry.
fn is_counted(instruction: &Instruction) -> bool {
    use InstructionKind::{Add, Copy, Run, Workdir};
    matches!(instruction.kind, Run(_) | Copy(_) | Add(_) | Workdir(_))
}
