//! Physical lines to logical lines: directives, comments, continuations, here-documents.

use crate::ast::{CheckOptions, Directive, Heredoc, Spanned};
use crate::diagnostic::Diagnostic;
use crate::source::Source;
use crate::span::{Lines, Span};

use super::{Issue, at_lines, directives, heredoc, positioned};

/// Longest physical line, newline not counted (BuildKit's scanner buffer).
const LINE_BYTES_MAX: usize = 65_535;
/// Most instructions of a file. What is known of one takes up to 2 KiB, and a longer file is none that a person wrote.
pub(super) const INSTRUCTIONS_MAX: usize = 1 << 14;
/// Most bytes of a file, here-documents not counted: each of its words takes some fifty times what it has here.
pub(super) const TEXT_BYTES_MAX: usize = 512 << 10;

/// Text joined from several places, and the way back.
#[derive(Debug, Clone)]
pub(crate) struct Logical {
    /// The joined text, trimmed at both ends.
    pub(crate) text: String,
    /// `(offset in text, offset in file)` of each piece, ascending.
    pieces: Vec<(usize, usize)>,
    pub(crate) lines: Lines,
    pub(crate) span: Span,
    /// Line number of the last blank line inside a continuation.
    pub(crate) blank_inside: Option<u32>,
    /// Rules switched off by a comment directly above.
    pub(crate) skip_rules: Vec<String>,
    /// Other comment lines directly above.
    pub(crate) comments: Vec<String>,
    pub(crate) heredocs: Vec<Heredoc>,
}

impl Logical {
    /// Where the bytes `range` of the text stand in the file. Skipped comments in between are covered.
    pub(crate) fn span(&self, start: usize, end: usize) -> Span {
        let start_at = self.place(start);
        let end_at = if end > start { self.place(end - 1) + 1 } else { start_at };
        Span { start: start_at, end: end_at }
    }

    fn place(&self, offset: usize) -> usize {
        let index = self.pieces.partition_point(|(at, _)| *at <= offset).saturating_sub(1);
        self.pieces.get(index).map_or(self.span.start, |(at, file)| file + (offset - at))
    }
}

/// The result of the pre-pass.
#[derive(Debug)]
pub(crate) struct Scanned {
    pub(crate) escape: char,
    pub(crate) directives: Vec<Directive>,
    pub(crate) check: CheckOptions,
    pub(crate) logical: Vec<Logical>,
    pub(crate) diagnostics: Vec<Diagnostic>,
}

/// One physical line: text without CR and LF, and where it starts.
#[derive(Debug, Clone, Copy)]
struct Physical<'a> {
    text: &'a str,
    start: usize,
    number: u32,
}

struct Scanner<'a> {
    text: &'a str,
    source: &'a Source,
    next: u32,
    /// What [`TEXT_BYTES_MAX`] leaves.
    bytes_left: usize,
    out: Scanned,
}

/// Scans a file.
pub(crate) fn scan(text: &str, source: &Source) -> Scanned {
    let mut scanner = Scanner::new(text, source, '\\');
    scanner.directives();
    scanner.instructions();
    scanner.out
}

/// Scans a text in which no directives are possible.
pub(crate) fn scan_body(text: &str, source: &Source, escape: char) -> Scanned {
    let mut scanner = Scanner::new(text, source, escape);
    scanner.instructions();
    scanner.out
}

impl<'a> Scanner<'a> {
    fn new(text: &'a str, source: &'a Source, escape: char) -> Self {
        let out = Scanned {
            escape,
            directives: Vec::new(),
            check: CheckOptions::default(),
            logical: Vec::new(),
            diagnostics: Vec::new(),
        };
        Self { text, source, next: 1, bytes_left: TEXT_BYTES_MAX, out }
    }

    /// The raw next line with its newline, without moving on.
    fn peek_raw(&self) -> Option<(&'a str, usize)> {
        let span = self.source.line_span(self.next)?;
        let with_newline = (span.end + 1).min(self.text.len());
        Some((&self.text[span.start..with_newline], span.start))
    }

    fn peek(&self) -> Option<Physical<'a>> {
        let (raw, start) = self.peek_raw()?;
        let text = raw.trim_end_matches(['\r', '\n']);
        match text.strip_prefix('\u{FEFF}') {
            Some(rest) if start == 0 => Some(Physical { text: rest, start: 3, number: self.next }),
            _ => Some(Physical { text, start, number: self.next }),
        }
    }

    fn take(&mut self) -> Option<Physical<'a>> {
        let line = self.peek()?;
        let Some(left) = self.bytes_left.checked_sub(line.text.len() + 1) else {
            let message =
                format!("the Dockerfile has more than {} KiB of instructions", TEXT_BYTES_MAX >> 10);
            self.too_much(line, message, "put what is long into files of the context, and COPY or RUN them");
            return None;
        };
        self.bytes_left = left;
        self.next += 1;
        if line.text.len() > LINE_BYTES_MAX {
            let span = Span { start: line.start, end: line.start + line.text.len() };
            let message = format!("dockerfile line greater than max allowed size of {LINE_BYTES_MAX}");
            let lines = Lines { first: line.number, last: line.number };
            self.out.diagnostics.push(at_lines(Issue::new(message, span), lines));
        }
        Some(line)
    }

    /// Reports a limit at `line`, and reads no further.
    fn too_much(&mut self, line: Physical<'a>, message: String, help: &str) {
        let span = Span { start: line.start, end: line.start + line.text.len() };
        let lines = Lines { first: line.number, last: line.number };
        self.out.diagnostics.push(at_lines(Issue::new(message, span).with_help(help), lines));
        self.next = self.source.line_count() + 1;
    }

    fn directives(&mut self) {
        while let Some(line) = self.peek() {
            let Some(directive) = directives::read(line.text, line.start) else { return };
            let _ = self.take();
            let lines = Lines { first: line.number, last: line.number };
            if let Err(issue) = self.directive(directive) {
                self.out.diagnostics.push(positioned(issue, lines));
            }
        }
    }

    fn directive(&mut self, directive: Directive) -> Result<(), Issue> {
        let key = directive.key.value.as_str();
        let value = directive.value.clone();
        if self.out.directives.iter().any(|d| d.key.value == key) {
            let message = format!("only one {key} parser directive can be used");
            return Err(Issue::new(message, directive.key.span));
        }
        match key {
            "escape" => self.out.escape = directives::escape(&value)?,
            "check" => {
                self.out.check = directives::check_options(&value.value).map_err(|text| {
                    Issue::new(format!("failed to parse check options: {text}"), value.span)
                })?
            }
            _ => {}
        }
        self.out.directives.push(directive);
        Ok(())
    }

    fn instructions(&mut self) {
        let (mut skip_rules, mut comments) = (Vec::new(), Vec::new());
        while let Some(line) = self.take() {
            let body = line.text.trim_start();
            if body.is_empty() {
                skip_rules.clear();
                comments.clear();
            } else if let Some(comment) = body.strip_prefix('#') {
                match directives::rules_above(body) {
                    Some(rules) => skip_rules = rules,
                    None => {
                        skip_rules.clear();
                        comments.push(comment.trim().to_owned());
                    }
                }
            } else if self.out.logical.len() == INSTRUCTIONS_MAX {
                let message = format!("the Dockerfile has more than {INSTRUCTIONS_MAX} instructions");
                self.too_much(line, message, "split it into images that build on one another");
            } else {
                self.instruction(line, std::mem::take(&mut skip_rules), std::mem::take(&mut comments));
            }
        }
    }

    /// Joins the lines of one instruction that begins on `first`, and reads its here-documents.
    fn instruction(&mut self, first: Physical<'a>, skip_rules: Vec<String>, comments: Vec<String>) {
        let indent = first.text.len() - first.text.trim_start().len();
        let mut piece = Physical { text: &first.text[indent..], start: first.start + indent, ..first };
        let start = piece.start;
        let mut logical = Logical {
            text: String::new(),
            pieces: Vec::new(),
            lines: Lines { first: first.number, last: first.number },
            span: Span { start, end: start },
            blank_inside: None,
            skip_rules,
            comments,
            heredocs: Vec::new(),
        };
        loop {
            let (text, continues) = split_continuation(piece.text, self.out.escape);
            logical.pieces.push((logical.text.len(), piece.start));
            logical.text.push_str(text);
            logical.lines.last = piece.number;
            logical.span.end = piece.start + piece.text.trim_end().len();
            if !continues {
                break;
            }
            let Some(next) = self.continuation(&mut logical) else { break };
            piece = next;
        }
        let trimmed = logical.text.trim_end().len();
        logical.text.truncate(trimmed);
        match self.heredocs(&mut logical) {
            Ok(()) => self.out.logical.push(logical),
            Err(issue) => self.out.diagnostics.push(positioned(issue, logical.lines)),
        }
    }

    /// The next line of a continued instruction; comments and blank lines are passed over.
    fn continuation(&mut self, logical: &mut Logical) -> Option<Physical<'a>> {
        loop {
            let line = self.take()?;
            let body = line.text.trim_start();
            if body.is_empty() {
                logical.blank_inside = Some(line.number);
            } else if !body.starts_with('#') {
                return Some(line);
            }
            logical.lines.last = line.number;
        }
    }

    fn heredocs(&mut self, logical: &mut Logical) -> Result<(), Issue> {
        for marker in heredoc::markers(&logical.text, self.out.escape) {
            let name_span = logical.span(marker.start, marker.end);
            let body_start = self.peek_raw().map_or(self.text.len(), |(_, start)| start);
            let mut body_end = body_start;
            loop {
                let Some((raw, start)) = self.peek_raw() else {
                    logical.lines.last = self.source.line_count();
                    let issue = Issue::new("unterminated heredoc", name_span);
                    return Err(issue.with_help(format!("end it with a line that is only `{}`", marker.name)));
                };
                self.next += 1;
                let line = raw.trim_end_matches(['\r', '\n']);
                let line = if marker.chomp { line.trim_start_matches('\t') } else { line };
                if line == marker.name {
                    logical.span.end = start + raw.trim_end().len();
                    break;
                }
                body_end = start + raw.len();
            }
            logical.lines.last = self.next - 1;
            let body = self.text[body_start..body_end.max(body_start)].to_owned();
            logical.heredocs.push(Heredoc {
                name: Spanned::new(marker.name, name_span),
                expand: marker.expand,
                chomp: marker.chomp,
                body: Spanned::new(body, Span { start: body_start, end: body_end.max(body_start) }),
            });
        }
        Ok(())
    }
}

/// The line without its continuation mark, and whether it had one: the escape character, possibly followed by
/// blanks, and not right after another one. Runs are not counted: `a\\\` does not continue.
fn split_continuation(text: &str, escape: char) -> (&str, bool) {
    match text.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        Some(before) if !before.ends_with(escape) => (before, true),
        _ => (text, false),
    }
}
