//! What the frontend has to say about a Dockerfile. No rendering here: the builder draws them.

use crate::span::{Lines, Span};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The build goes on.
    Warning,
    /// The build cannot go on.
    Error,
}

/// One message about one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Rule name for lints (`StageNameCasing`); `None` for plain errors.
    pub rule: Option<&'static str>,
    /// Severity.
    pub severity: Severity,
    /// One line, as Docker's users know it where Docker has the message; may include ` (did you mean X?)`.
    pub message: String,
    /// What to underline.
    pub span: Span,
    /// Physical lines of the instruction, for the excerpt.
    pub lines: Lines,
    /// Related places, each with a short text («first defined here»).
    pub related: Vec<(Span, String)>,
    /// How to fix it, when we know.
    pub help: Option<String>,
}

/// Most errors and most warnings of a file that are told: nobody reads more, and each is there several times while it is
/// passed on.
pub const TOLD_MAX: usize = 1_000;

/// Drops those of `severity` after the first [`TOLD_MAX`].
pub(crate) fn cut(found: &mut Vec<Diagnostic>, severity: Severity) {
    let mut left = TOLD_MAX;
    found.retain(|diagnostic| {
        let is_told = diagnostic.severity != severity || left > 0;
        left -= usize::from(is_told && diagnostic.severity == severity);
        is_told
    });
}
