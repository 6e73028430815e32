//! COPY, ADD, WORKDIR.

use crate::ast::{AddInstruction, CopyInstruction, Instruction, SourceWord, Spanned};
use crate::dockerignore::{Ignore, IgnoreError, clean};
use crate::expand;
use crate::graph::{Chown, CopyOp, CopySource, Op, Role, Step, WorkdirOp};
use crate::parse::Issue;
use crate::remote::{Remote, without_credentials};
use crate::span::Span;

use rbuild_oci::FileMode;

use super::bases::Source;
use super::pass::{Pass, failed};
use super::remotes::{Remotes, not_for_copy};
use super::stages::Work;

/// What COPY and ADD have in common.
struct Transfer<'i> {
    keyword: &'static str,
    from: Option<&'i Spanned<String>>,
    chown: Option<&'i Spanned<String>>,
    chmod: Option<&'i Spanned<String>>,
    link: bool,
    parents: bool,
    unpack: bool,
    exclude: &'i [Spanned<String>],
    /// What ADD alone has; `None` for COPY.
    add: Option<&'i AddInstruction>,
    sources: &'i [SourceWord],
    dest: &'i Spanned<String>,
}

impl Pass<'_> {
    pub(super) fn copy(
        &mut self,
        work: &mut Work,
        instruction: &Instruction,
        copy: &CopyInstruction,
    ) -> Result<(), Issue> {
        let step = work.next_step(instruction);
        let transfer = Transfer {
            keyword: "COPY",
            from: copy.from.as_ref(),
            chown: copy.chown.as_ref(),
            chmod: copy.chmod.as_ref(),
            link: is_set(copy.link.as_ref()),
            parents: is_set(copy.parents.as_ref()),
            unpack: false,
            exclude: &copy.exclude,
            add: None,
            sources: &copy.sources,
            dest: &copy.dest,
        };
        self.transfer(work, step, &transfer)
    }

    pub(super) fn add(
        &mut self,
        work: &mut Work,
        instruction: &Instruction,
        add: &AddInstruction,
    ) -> Result<(), Issue> {
        let step = work.next_step(instruction);
        let transfer = Transfer {
            keyword: "ADD",
            from: None,
            chown: add.chown.as_ref(),
            chmod: add.chmod.as_ref(),
            link: is_set(add.link.as_ref()),
            parents: false,
            unpack: add.unpack.as_ref().is_none_or(|flag| flag.value),
            exclude: &add.exclude,
            add: Some(add),
            sources: &add.sources,
            dest: &add.dest,
        };
        self.transfer(work, step, &transfer)
    }

    fn transfer(&mut self, work: &mut Work, step: Step, transfer: &Transfer<'_>) -> Result<(), Issue> {
        let keyword = transfer.keyword;
        let chown = self.optional(work, transfer.chown)?;
        let chmod_text = self.optional(work, transfer.chmod)?;
        let chmod = match (&chmod_text, transfer.chmod) {
            (Some(text), Some(flag)) => {
                let mode = text.parse::<FileMode>();
                Some(mode.map_err(|error| Issue::new(error.to_string(), flag.span))?)
            }
            _ => None,
        };
        let exclude = excluded(transfer.exclude)?;
        let (mut paths, mut inline, mut shown) = (Vec::new(), Vec::new(), Vec::new());
        let mut remotes = Remotes::new(self.checksum(work, transfer)?, self.options.entitlements.ssh);
        for source in transfer.sources {
            match source {
                SourceWord::Path(word) => {
                    let text = self.expand(work, word).map_err(|issue| unquoted(keyword, word, issue))?;
                    let remote = Remote::parse(&text);
                    if let Some(remote) = remote.map_err(|error| Issue::new(error.to_string(), word.span))? {
                        let add = transfer.add.ok_or_else(|| not_for_copy(&remote, word.span))?;
                        paths.push(remotes.add(remote, add, word.span)?);
                        // Unlike docker: an image goes to more people than the password in it was meant for.
                        shown.push(without_credentials(&text));
                        continue;
                    }
                    if transfer.from.is_none() {
                        self.ignored(work, keyword, &text, word.span);
                    }
                    paths.push(match transfer.parents {
                        true => kept_path(&text, word.span)?,
                        false => CopySource::Path(source_path(&text)),
                    });
                    shown.push(text);
                }
                SourceWord::Inline(heredoc) => {
                    let mut content = heredoc.text();
                    if heredoc.expand {
                        let expansion = expand::heredoc(&content, &work.state);
                        let expansion = expansion.map_err(|error| failed(&heredoc.name, &error))?;
                        self.undefined(work, &expansion.unset, heredoc.body.span);
                        content = expansion.text;
                    }
                    self.charge(content.len(), heredoc.name.span)?;
                    inline.push(CopySource::Inline { name: heredoc.name.value.clone(), content });
                }
            }
        }
        // Docker's history shows the markers after the paths.
        shown.extend(inline.iter().filter_map(|source| match source {
            CopySource::Inline { name, .. } => Some(format!("<<{name}")),
            CopySource::Path(_) | CopySource::Below { .. } | CopySource::Remote { .. } => None,
        }));
        let is_alone = transfer.sources.len() == 1;
        remotes.check(is_alone, transfer.add)?;
        let dest = self.expand(work, transfer.dest)?;
        let mut absolute = destination(work.state.workdir(), &dest);
        if transfer.parents && !absolute.ends_with('/') {
            absolute.push('/');
        }
        if paths.len() + inline.len() > 1 && !absolute.ends_with('/') {
            let message = format!(
                "{keyword} with several sources and the destination {dest:?}: unless it is a directory, later files overwrite earlier ones"
            );
            self.warn(work, "MultipleSourcesToFile", message, transfer.dest.span);
        }

        let mut inputs = vec![(Role::Root, work.state.node)];
        let mut from_context = transfer.from.is_none() && !self.options.context_has_owners;
        if paths.iter().any(|source| !matches!(source, CopySource::Remote { .. })) {
            let source = match transfer.from {
                None => self.context_node(None),
                Some(from) => {
                    let (span, lines) = work.place(from.span);
                    let found = self.source_of(&from.value, work.stage, span, lines)?;
                    from_context = matches!(&found, Source::Local(name) if !self.has_owners(name));
                    match self.source_node(work, found) {
                        Some(node) => node,
                        // Its image or stage is not known yet: this pass will not be the last.
                        None => return Ok(()),
                    }
                }
            };
            inputs.push((Role::Source, source));
        }
        let first = inputs.len();
        for source in &mut paths {
            if let CopySource::Remote { slot, .. } = source {
                *slot += u16::try_from(first).expect("a root and a source");
            }
        }
        for (op, name) in remotes.ops {
            let step = Step { name, stage: work.label.clone(), lines: Some(work.place(Span::default()).1) };
            inputs.push((Role::Added, self.out.nodes.add(op, &[], step)));
        }
        paths.append(&mut inline);
        let mut created_by = keyword.to_owned();
        if transfer.parents {
            created_by.push_str(" --parents");
        }
        for (flag, value) in [("chown", &chown), ("chmod", &chmod_text)] {
            if let Some(value) = value {
                created_by.push_str(&format!(" --{flag}={value}"));
            }
        }
        created_by.push_str(&format!(" {} {dest} # buildkit", shown.join(" ")));
        let op = CopyOp {
            sources: paths,
            dest: absolute,
            chown: chown.map(|text| Chown { text }),
            chmod,
            from_context,
            unpack: transfer.unpack,
            link: transfer.link,
            exclude,
        };
        work.state.node = self.out.nodes.add(Op::Copy(op), &inputs, step);
        work.state.layers.push(work.state.node);
        work.state.log(created_by, false);
        Ok(())
    }

    /// `--checksum`, expanded; empty is absent.
    fn checksum(&mut self, work: &Work, transfer: &Transfer<'_>) -> Result<Option<Spanned<String>>, Issue> {
        let Some(flag) = transfer.add.and_then(|add| add.checksum.as_ref()) else { return Ok(None) };
        let text = self.optional(work, Some(flag))?;
        Ok(text.map(|value| Spanned { value, span: flag.span }))
    }

    /// A source that the ignore file takes away. Says nothing when a negation may bring it back.
    fn ignored(&mut self, work: &Work, keyword: &str, text: &str, span: Span) {
        let Some(facts) = self.options.context.as_ref().filter(|facts| !facts.ignore.has_negation()) else {
            return;
        };
        let path = source_path(text);
        // The whole context is gone only when everything is; any name does to find out.
        let probe = if path.is_empty() { "\u{1}" } else { &path };
        if facts.ignore.matches(probe) {
            let message = format!("Attempting to {keyword} file {text:?} that is excluded by .dockerignore");
            self.warn(work, "CopyIgnoredFile", message, span);
        }
    }

    pub(super) fn source_node(&mut self, work: &Work, source: Source) -> Option<petgraph::graph::NodeIndex> {
        match source {
            Source::Stage(index) => self.states[index].as_ref().map(|state| state.node),
            Source::Local(name) => Some(self.context_node(Some(&name))),
            Source::Scratch => Some(self.scratch_node()),
            Source::Image(request) => {
                let image = &self.image(&request)?.image;
                let stage = self.stages.all[work.stage].label();
                let name = format!("FROM {}", image.reference);
                let step = Step { name, stage, lines: Some(request.lines) };
                Some(self.image_node(image, &request.platform, step))
            }
        }
    }

    /// A flag's text after expansion; empty is absent.
    fn optional(&mut self, work: &Work, flag: Option<&Spanned<String>>) -> Result<Option<String>, Issue> {
        match flag {
            None => Ok(None),
            Some(flag) => Ok(Some(self.expand(work, flag)?).filter(|text| !text.is_empty())),
        }
    }

    pub(super) fn workdir(
        &mut self,
        work: &mut Work,
        instruction: &Instruction,
        path: &Spanned<String>,
    ) -> Result<(), Issue> {
        let step = work.next_step(instruction);
        let text = self.expand(work, path)?;
        if !work.state.workdir_set && !text.is_empty() && !text.starts_with('/') {
            let message =
                format!("Relative workdir {text:?} can have unexpected results if the base image changes");
            self.warn(work, "WorkdirRelativePath", message, path.span);
        }
        work.state.workdir_set = true;
        let joined = match text.starts_with('/') {
            true => text,
            false => format!("{}/{text}", work.state.workdir()),
        };
        let absolute = clean(&joined);
        work.state.config.config.working_dir.clone_from(&absolute);
        let is_root = absolute == "/";
        work.state.log(format!("WORKDIR {absolute}"), is_root);
        if !is_root {
            let op = WorkdirOp { path: absolute, user: work.state.config.config.user.clone() };
            work.state.node = self.out.nodes.add(Op::Workdir(op), &[(Role::Root, work.state.node)], step);
            work.state.layers.push(work.state.node);
        }
        Ok(())
    }
}

fn is_set(flag: Option<&Spanned<bool>>) -> bool {
    flag.is_some_and(|flag| flag.value)
}

/// `--exclude` patterns, which are not expanded, checked.
fn excluded(patterns: &[Spanned<String>]) -> Result<Vec<String>, Issue> {
    for pattern in patterns {
        Ignore::excluding([pattern.value.as_str()]).map_err(|error| bad_pattern(&error, pattern.span))?;
    }
    Ok(patterns.iter().map(|pattern| pattern.value.clone()).collect())
}

fn bad_pattern(error: &IgnoreError, span: Span) -> Issue {
    let message = match error {
        IgnoreError::LoneNegation { .. } => "illegal exclusion pattern: \"!\"".to_owned(),
        IgnoreError::Syntax { pattern, .. } => format!("syntax error in pattern `{pattern}`"),
        IgnoreError::TooMany => error.to_string(),
    };
    Issue::new(message, span)
}

/// A source of `--parents`: what is before the first `/./` is not kept.
fn kept_path(text: &str, span: Span) -> Result<CopySource, Issue> {
    let (pivot, pattern) = text.split_once("/./").unwrap_or(("", text));
    let pattern = source_path(pattern);
    Ignore::all_but(&pattern).map_err(|error| bad_pattern(&error, span))?;
    Ok(CopySource::Below { pivot: source_path(pivot), pattern })
}

/// A source as the graph wants it: cleaned at the root, so that `..` cannot climb; empty for all of it.
fn source_path(text: &str) -> String {
    clean(&format!("/{text}")).trim_start_matches('/').to_owned()
}

/// The destination: absolute, cleaned, with a final slash when a directory is meant.
fn destination(workdir: &str, dest: &str) -> String {
    let is_dir = dest.is_empty() || dest.ends_with('/') || dest == "." || dest.ends_with("/.");
    let joined = if dest.starts_with('/') { dest.to_owned() } else { format!("{workdir}/{dest}") };
    let mut absolute = clean(&joined);
    if is_dir && !absolute.ends_with('/') {
        absolute.push('/');
    }
    absolute
}

/// COPY and ADD split before quotes are looked at, which surprises people.
fn unquoted(keyword: &str, word: &Spanned<String>, issue: Issue) -> Issue {
    match word.value.starts_with(['"', '\'']) {
        true => issue.with_help(format!(
            "quotes do not keep blanks together in {keyword}; its JSON form does: {keyword} [\"a b\", \"/dest\"]"
        )),
        false => issue,
    }
}
