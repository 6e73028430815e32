//! Diagnostics of the Dockerfile as text.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use rbuild_frontend::diagnostic::{Diagnostic, Severity};
use rbuild_frontend::lint::rules::{self, RuleKind};
use rbuild_frontend::span::Span;

use super::{Excerpt, SourceFile, Style, counted, excerpt};
use crate::progress::lines::clean_text;

/// Source larger than this is not drawn with carets.
const SNIPPET_BYTES: usize = 1 << 20;

/// Draws one diagnostic's place: carets on a terminal, Docker's excerpt elsewhere.
pub(super) fn place(diagnostic: &Diagnostic, file: &SourceFile, style: Style) -> String {
    // A span of nothing at the start stands for «no place»: a target that does not exist, say.
    if diagnostic.span == Span::default() {
        return String::new();
    }
    match std::str::from_utf8(&file.bytes) {
        Ok(source) if style.snippets && source.len() <= SNIPPET_BYTES => {
            snippet(diagnostic, &file.name, source, style)
        }
        _ => {
            let excerpt = Excerpt { file: file.clone(), lines: diagnostic.lines };
            excerpt::render(&excerpt)
        }
    }
}

fn snippet(diagnostic: &Diagnostic, name: &str, source: &str, style: Style) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let message = clean_text(&diagnostic.message);
    let name = clean_text(name);
    let related: Vec<(Range<usize>, _)> =
        diagnostic.related.iter().map(|(span, text)| (range(*span, source), clean_text(text))).collect();
    let title = level.primary_title(message);
    let title = match diagnostic.rule {
        Some(rule) => title.id(rule),
        None => title,
    };
    let mut shown = Snippet::source(source)
        .path(name)
        .annotation(AnnotationKind::Primary.span(range(diagnostic.span, source)));
    for (range, text) in related {
        shown = shown.annotation(AnnotationKind::Context.span(range).label(text));
    }
    let mut groups = vec![title.element(shown)];
    if let Some(help) = &diagnostic.help {
        groups.push(Group::with_title(Level::HELP.secondary_title(clean_text(help))));
    }
    let renderer = if style.color { Renderer::styled() } else { Renderer::plain() };
    let mut text = renderer.term_width(style.width.max(40)).render(&groups);
    text.push('\n');
    text
}

/// The span as a range the renderer accepts, whatever the span says.
fn range(span: Span, source: &str) -> Range<usize> {
    let boundary = |mut at: usize| {
        at = at.min(source.len());
        while !source.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let start = boundary(span.start);
    start..boundary(span.end).max(start)
}

/// The line that names the error. Parse errors say `dockerfile parse error on line 3: …` themselves.
pub(super) fn sentence(diagnostic: &Diagnostic) -> String {
    let message = clean_text(&diagnostic.message);
    let rule = diagnostic.rule.map(|rule| format!("{rule}: ")).unwrap_or_default();
    format!("{rule}{message}")
}

/// The list of warnings that ends a build; empty when there are none. Drawn out with their places when `expand`.
pub fn warnings(diagnostics: &[Diagnostic], file: &SourceFile, expand: bool, style: Style) -> String {
    let found: Vec<&Diagnostic> =
        diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Warning).collect();
    if found.is_empty() {
        return String::new();
    }
    let how = if expand { "" } else { " (use --debug to expand)" };
    let mut text = format!("\n {} found{how}:\n", counted(found.len(), "warning", "warnings"));
    for diagnostic in &found {
        let rule = diagnostic.rule.map(|rule| format!("{rule}: ")).unwrap_or_default();
        let message = clean_text(&diagnostic.message);
        text.push_str(&format!(" - {rule}{message} (line {})\n", diagnostic.lines.first));
        if expand {
            text.push_str(&place(diagnostic, file, style));
        }
    }
    if style.github {
        let all: Vec<Diagnostic> = found.into_iter().cloned().collect();
        text.push_str(&github_annotations(&all, file));
    }
    text
}

/// What a check found, each with its place, why it matters and how to mend it.
pub fn findings(diagnostics: &[Diagnostic], file: &SourceFile, style: Style) -> String {
    let mut text = String::new();
    for diagnostic in diagnostics {
        let rule = diagnostic.rule.and_then(rules::find);
        let title = match rule {
            Some(rule) if rule.kind == RuleKind::Advice => format!("ADVICE: {}", rule.name),
            Some(rule) => format!("WARNING: {}", rule.name),
            None => "WARNING".to_owned(),
        };
        text.push_str(&format!("\n{title}\n{}\n", clean_text(&diagnostic.message)));
        text.push_str(&place(diagnostic, file, style));
        if let Some(rule) = rule {
            text.push_str(&format!("why: {}\n", rule.why));
        }
        let fix = diagnostic.help.as_deref().or(rule.map(|rule| rule.fix));
        // Carets show the help of a diagnostic themselves.
        if let Some(fix) = fix.filter(|_| diagnostic.help.is_none() || !style.snippets) {
            text.push_str(&format!("instead: {}\n", clean_text(fix)));
        }
    }
    if style.github {
        text.push_str(&github_annotations(diagnostics, file));
    }
    text
}

/// Workflow commands that put the diagnostics beside the Dockerfile's lines in a pull request.
pub fn github_annotations(diagnostics: &[Diagnostic], file: &SourceFile) -> String {
    let mut text = String::new();
    for diagnostic in diagnostics {
        let level = match diagnostic.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let title = diagnostic.rule.unwrap_or(match diagnostic.severity {
            Severity::Error => "Dockerfile error",
            Severity::Warning => "Dockerfile warning",
        });
        let lines = (diagnostic.lines.first, diagnostic.lines.last);
        text.push_str(&github_line(level, &file.name, lines, title, &diagnostic.message));
    }
    text
}

/// One workflow command.
pub(super) fn github_line(
    level: &str,
    file: &str,
    (first, last): (u32, u32),
    title: &str,
    message: &str,
) -> String {
    let data = |text: &str| {
        let text = text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
        clean_text(&text).into_owned()
    };
    let property = |text: &str| data(text).replace(':', "%3A").replace(',', "%2C");
    let (file, title) = (property(file), property(title));
    format!("::{level} file={file},line={first},endLine={last},title={title}::{}\n", data(message))
}
