//! What stages start from and copy from: which stages are needed, which images and contexts.

use std::str::FromStr;

use rbuild_oci::{Platform, Reference};

use crate::ast::{InstructionKind, Spanned};
use crate::expand;
use crate::lint;
use crate::parse::Issue;
use crate::span::{Lines, Span};
use crate::stage::{StageError, sources_of};
use crate::suggest;

use super::pass::{DIAGNOSTICS_MAX, Pass, normalise};
use super::{ImageRequest, NamedContext};

/// What a stage starts from.
#[derive(Debug, Clone)]
pub(super) enum Base {
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

impl<'a> Pass<'a> {
    /// Finds the stages that are needed and what they start from.
    pub(super) fn reach(&mut self, roots: impl Iterator<Item = usize>) {
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
                for source in sources_of(instruction) {
                    let found = match &source.mounted_at {
                        None => self.source_of(&source.name, index, source.span, instruction.lines),
                        target => self.mount_source(
                            &source.name,
                            target.as_deref(),
                            index,
                            source.span,
                            instruction.lines,
                        ),
                    };
                    match found {
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
    }

    /// Of stages that are not needed only impossible indexes are errors.
    pub(super) fn check_unreached(&mut self) {
        for stage in self.stages.all.clone() {
            if self.reached.contains(&stage.index) {
                continue;
            }
            for instruction in stage.body {
                for source in sources_of(instruction) {
                    let found = self.stages.copy_source(&source.name, stage.index);
                    if let Err(error @ StageError::InvalidIndex(_)) = found {
                        self.report_at(Issue::new(error.to_string(), source.span), instruction.lines);
                    }
                }
            }
        }
    }

    /// The named context that replaces a whole stage.
    pub(super) fn own_context(&self, stage: usize) -> Option<(&'a str, &'a NamedContext)> {
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
                    return Err(self.undeclared(text, Issue::new(message, text.span)));
                }
                Platform::from_str(&value).map_err(|error| Issue::new(error.to_string(), text.span))?
            }
        };
        if let Some((name, context)) = self.own_context(index) {
            return Ok(self.context_base(name, context, platform, span, lines));
        }
        let image = &stage.from.image;
        self.default_image(index);
        let text = self.expand_global(image, stage.instruction)?;
        if text.is_empty() {
            let message = format!("base name ({}) should not be blank", image.value);
            return Err(self.undeclared(image, Issue::new(message, image.span)));
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
            let issue = self.undeclared(image, Issue::new(message, image.span));
            return Err(match error.hint(&text) {
                Some(help) => issue.with_help(help),
                None => issue,
            });
        }
        if self.options.advice {
            self.latest(index, &text);
        }
        let named_context = None;
        Ok(Base::Image(ImageRequest { reference: text, named_context, platform, span: image.span, lines }))
    }

    /// Advice about images whose tag moves.
    fn latest(&mut self, index: usize, text: &str) {
        let stage = self.stages.all[index];
        let moves = Reference::from_str(text)
            .is_ok_and(|image| image.digest().is_none() && image.tag().is_none_or(|tag| tag == "latest"));
        if moves {
            let message = format!("The base image {text} has no version: it changes when its maker says so");
            let (lines, rules) = (stage.instruction.lines, &stage.instruction.skip_rules);
            let found = lint::finding("LatestBaseImage", message, stage.from.image.span, lines, rules);
            self.out.diagnostics.extend(found);
        }
    }

    /// With the defaults of ARGs alone the line should name an image, too.
    fn default_image(&mut self, index: usize) {
        let stage = self.stages.all[index];
        let image = &stage.from.image;
        let expansion = expand::word(&image.value, self.ast.escape, &self.global_defaults);
        let Ok(expansion) = expansion else { return };
        // A variable that is not declared has a rule of its own.
        if !image.value.contains('$') || !expansion.unset.iter().all(|n| self.global_declared.contains(n)) {
            return;
        }
        if expansion.text.is_empty() || Reference::from_str(&expansion.text).is_err() {
            let message =
                format!("Default value for ARG {} results in empty or invalid base image name", image.value);
            let (lines, rules) = (stage.instruction.lines, &stage.instruction.skip_rules);
            self.out.diagnostics.extend(lint::finding(
                "InvalidDefaultArgInFrom",
                message,
                image.span,
                lines,
                rules,
            ));
        }
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
            NamedContext::Local | NamedContext::Archive => Base::Local(name.to_owned()),
            NamedContext::Image(reference) if reference == "scratch" => Base::Scratch,
            NamedContext::Image(_) | NamedContext::OciLayout => {
                let (reference, named_context) = (name.to_owned(), Some(name.to_owned()));
                Base::Image(ImageRequest { reference, named_context, platform, span, lines })
            }
        }
    }

    /// The context of that name: one for just this platform first, then by name, then by what the name means as a
    /// reference.
    pub(super) fn named_context(
        &self,
        name: &str,
        platform: &Platform,
    ) -> Option<(&'a str, &'a NamedContext)> {
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

    /// What `--mount=from=name` means in a stage.
    pub(super) fn mount_source(
        &self,
        name: &str,
        target: Option<&str>,
        stage: usize,
        span: Span,
        lines: Lines,
    ) -> Result<Source, Issue> {
        match self.stages.copy_source(name, stage) {
            Err(StageError::Later { later, .. }) => {
                let target = target.unwrap_or_default().to_owned();
                Err(Issue::new(StageError::LaterMount { later, target }.to_string(), span))
            }
            _ => self.source_of(name, stage, span, lines),
        }
    }

    /// A wrong reference to a stage, with the stages that explain it.
    fn explained(&self, error: &StageError, name: &str, stage: usize, span: Span) -> Issue {
        let issue = Issue::new(error.to_string(), span);
        let place = |index: usize| self.stages.all[index].instruction.span;
        match error {
            StageError::InvalidIndex(_) => {
                let last = self.stages.all.len() - 1;
                issue.with_help(format!("stages count from 0; the last one of this file is {last}"))
            }
            StageError::Later { later, current } => {
                let found = self.stages.all.iter().find(|stage| stage.label() == *later);
                let issue = match found {
                    Some(later) => issue.with_related(place(later.index), "it is defined here"),
                    None => issue,
                };
                issue.with_help(format!("move stage {later} above stage {current}"))
            }
            StageError::Circular(label) => {
                let issue = issue.with_related(place(stage), format!("stage {label} begins here"));
                match self.stages.all.iter().find(|other| other.label().eq_ignore_ascii_case(name)) {
                    Some(other) if other.index != stage => {
                        let text = format!("stage {} needs {label} itself", other.label());
                        issue.with_related(place(other.index), text)
                    }
                    _ => issue,
                }
            }
            StageError::LaterMount { .. } | StageError::UnknownTarget { .. } | StageError::None => issue,
        }
    }

    /// What to say about the variables of a FROM line that has no good value.
    fn undeclared(&self, text: &Spanned<String>, issue: Issue) -> Issue {
        let Ok(expansion) = expand::word(&text.value, self.ast.escape, &self.global) else { return issue };
        let Some(name) = expansion.unset.first() else { return issue };
        let declared = self.stages.global.iter().find_map(|instruction| match &instruction.kind {
            InstructionKind::Arg(args) => args.iter().find(|arg| arg.name.value == *name),
            _ => None,
        });
        match declared {
            Some(arg) => issue
                .with_related(arg.name.span, format!("{name} has no value here"))
                .with_help(format!("give it a default, or a value with --build-arg {name}=VALUE")),
            None => {
                let near = suggest::nearest(name, self.global_declared.iter().map(String::as_str));
                let hint = near.map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
                issue.with_help(format!(
                    "{name} is not declared: FROM sees only an ARG above the first FROM{hint}"
                ))
            }
        }
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
        if let Some(index) = found.map_err(|error| self.explained(&error, name, stage, span))? {
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
}
