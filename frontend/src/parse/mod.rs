//! Dockerfile text to AST.
//!
//! Three passes: physical lines are joined to logical ones (`lines`), a pest grammar cuts each into keyword, flags
//! and words (`grammar`), and one function per instruction gives them a type (`instruction`). Positions travel
//! along in a source map, so every span is in the original bytes. An error ends its instruction, never the file:
//! one run reports them all.

use std::sync::Arc;

use crate::ast::{Dockerfile, Instruction};
use crate::diagnostic::{self, Diagnostic, Severity};
use crate::lint;
use crate::source::Source;
use crate::span::{Lines, Span};

mod arguments;
pub(crate) mod device;
mod directives;
mod duration;
mod flags;
mod grammar;
mod heredoc;
mod instruction;
mod lines;
pub(crate) mod mount;

pub(crate) use directives::{check_options, foreign_syntax};
pub(crate) use lines::Logical;

/// The keywords of the language, upper case, for suggestions.
pub(crate) const KEYWORDS: [&str; 18] = [
    "FROM",
    "RUN",
    "COPY",
    "ADD",
    "WORKDIR",
    "ENV",
    "ARG",
    "LABEL",
    "EXPOSE",
    "USER",
    "VOLUME",
    "CMD",
    "ENTRYPOINT",
    "SHELL",
    "STOPSIGNAL",
    "HEALTHCHECK",
    "ONBUILD",
    "MAINTAINER",
];

/// Help for files without a stage.
const FIRST_LINE: &str = "name the image to start from, for example FROM debian:12";

/// What [`parse`] found out.
#[derive(Debug, Clone)]
pub struct Parsed {
    /// The file.
    pub source: Arc<Source>,
    /// Every instruction that could be read. Shared with who lowers it: a long file is not copied.
    pub ast: Arc<Dockerfile>,
    /// The first [`diagnostic::TOLD_MAX`] errors and all lints, by place. Lints that `# check=` switches off are still here:
    /// [`crate::lower::Lowering::diagnostics`] has all of these, filtered, and those found later.
    pub diagnostics: Vec<Diagnostic>,
}

impl Parsed {
    /// True when a build cannot go on.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|d| d.severity == Severity::Error)
    }
}

/// What is wrong with one place of an instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Issue {
    pub(crate) message: String,
    pub(crate) span: Span,
    pub(crate) help: Option<String>,
    /// Other places that explain it.
    pub(crate) related: Vec<(Span, String)>,
}

impl Issue {
    pub(crate) fn new(message: impl Into<String>, span: Span) -> Self {
        Self { message: message.into(), span, help: None, related: Vec::new() }
    }

    /// Points at another place of the file.
    pub(crate) fn with_related(mut self, span: Span, text: impl Into<String>) -> Self {
        self.related.push((span, text.into()));
        self
    }

    pub(crate) fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// Reads a Dockerfile. Never fails: what is wrong is in [`Parsed::diagnostics`].
pub fn parse(bytes: &[u8]) -> Parsed {
    let source = Arc::new(Source::new(bytes));
    let mut diagnostics = Vec::new();
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(error) => {
            let at = error.valid_up_to();
            let span = Span { start: at, end: (at + 1).min(bytes.len()) };
            let issue = Issue::new(format!("dockerfile is not valid UTF-8 at byte {at}"), span)
                .with_help("save the file in the encoding UTF-8");
            diagnostics.push(at_lines(issue, source.lines_of(span)));
            replace_invalid(bytes)
        }
    };
    let end = Span { start: 0, end: bytes.len().min(source.line_span(1).map_or(0, |s| s.end)) };
    if bytes.is_empty() {
        let issue = Issue::new("the Dockerfile cannot be empty", end).with_help(FIRST_LINE);
        diagnostics.push(at_lines(issue, source.lines_of(end)));
    }

    let mut pre = lines::scan(&text, &source);
    diagnostics.append(&mut pre.diagnostics);
    let mut instructions = Vec::new();
    let had_lines = !pre.logical.is_empty();
    for line in &pre.logical {
        match instruction::read(line, pre.escape) {
            Ok(instruction) => instructions.push(instruction),
            Err(issue) => diagnostics.push(positioned(issue, line.lines)),
        }
    }
    if !bytes.is_empty() && !had_lines && diagnostics.is_empty() {
        let issue = Issue::new("file with no instructions", end).with_help(FIRST_LINE);
        diagnostics.push(at_lines(issue, source.lines_of(end)));
    }
    let ast = Dockerfile { escape: pre.escape, directives: pre.directives, check: pre.check, instructions };
    if had_lines && diagnostics.iter().all(|d| d.severity != Severity::Error) {
        check_order(&ast.instructions, &mut diagnostics);
    }
    lint::syntactic(&ast, &pre.logical, &mut diagnostics);
    diagnostics.sort_by_key(|d| (d.span.start, d.severity));
    diagnostic::cut(&mut diagnostics, Severity::Error);
    Parsed { source, ast: Arc::new(ast), diagnostics }
}

/// Reads the text of an ONBUILD trigger as the instructions it is. Spans are positions in `text`.
pub(crate) fn parse_trigger(text: &str, escape: char) -> Result<Vec<Instruction>, Issue> {
    let source = Source::new(text.as_bytes());
    let pre = lines::scan_body(text, &source, escape);
    if let Some(first) = pre.diagnostics.into_iter().find(|d| d.severity == Severity::Error) {
        return Err(Issue::new(first.message, first.span));
    }
    pre.logical.iter().map(|line| instruction::read(line, escape)).collect()
}

/// True when a command line is a heredoc marker and nothing else.
pub(crate) fn is_lone_marker(text: &str) -> bool {
    heredoc::marker(text).is_some()
}

/// Why an instruction of this keyword cannot be an ONBUILD trigger.
pub(crate) fn forbidden_trigger(keyword: &str) -> Option<String> {
    instruction::forbidden_trigger(keyword)
}

/// Instructions before the first FROM may only be ARG.
fn check_order(instructions: &[Instruction], diagnostics: &mut Vec<Diagnostic>) {
    use crate::ast::InstructionKind::{Arg, From};
    let first_from = instructions.iter().position(|i| matches!(i.kind, From(_)));
    let before = &instructions[..first_from.unwrap_or(instructions.len())];
    if let Some(stray) = before.iter().find(|i| !matches!(i.kind, Arg(_))) {
        let issue = Issue::new("no build stage in current context", stray.span)
            .with_help("start the stage with a FROM instruction; only ARG may come before it");
        diagnostics.push(positioned(issue, stray.lines));
    } else if first_from.is_none()
        && let Some(last) = instructions.last()
    {
        let issue = Issue::new("dockerfile contains no stages to build", last.span).with_help(FIRST_LINE);
        diagnostics.push(at_lines(issue, last.lines));
    }
}

/// An error with Docker's line prefix.
fn positioned(issue: Issue, lines: Lines) -> Diagnostic {
    let message = format!("dockerfile parse error on line {}: {}", lines.first, issue.message);
    at_lines(Issue { message, ..issue }, lines)
}

fn at_lines(issue: Issue, lines: Lines) -> Diagnostic {
    Diagnostic {
        rule: None,
        severity: Severity::Error,
        message: issue.message,
        span: issue.span,
        lines,
        related: issue.related,
        help: issue.help,
    }
}

/// Every byte that is no UTF-8 becomes `?`, so that offsets stay what they were.
fn replace_invalid(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(std::iter::repeat_n('?', chunk.invalid().len()));
    }
    text
}

#[cfg(test)]
mod tests;
