//! Errors to text and exit status: the only place where either is decided.
//!
//! A [`Report`] is plain data: what kind of failure, what happened, why, what to do. [`Report::render`] draws it, with
//! the Dockerfile's lines in Docker's layout, or with carets on a terminal where a diagnostic has a byte span.

mod counted;
mod diagnostics;
mod excerpt;
pub mod human;
mod render;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::sync::Arc;

use rbuild_frontend::diagnostic::Diagnostic;
use rbuild_frontend::span::Lines;

use crate::cli::{Problem, UsageError};

pub use counted::counted;
pub use diagnostics::{findings, github_annotations, warnings};
pub use render::Style;

/// Whose fault it is, which decides the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The command line.
    Usage,
    /// A name that no image can have. As with docker, an ordinary failure and no wrong usage.
    Name,
    /// The template of `--format`.
    Template,
    /// The Dockerfile's text.
    Dockerfile,
    /// A step of the build.
    Build,
    /// A registry or the way to it.
    Registry,
    /// The local store.
    Store,
    /// What this machine allows.
    Host,
    /// Disk, memory or another resource is used up.
    Exhausted,
    /// rbuild itself.
    Internal,
    /// The user stopped it.
    Interrupted,
}

impl Kind {
    /// The process's exit status, as buildx and the docker CLI have them.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Name | Self::Dockerfile | Self::Build | Self::Registry | Self::Store | Self::Host => 1,
            Self::Template => 64,
            Self::Internal => 100,
            Self::Exhausted => 102,
            Self::Usage => 125,
            Self::Interrupted => 130,
        }
    }
}

/// A text file shown in an error, cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// As the user named it, e.g. `Dockerfile.dev`.
    pub name: String,
    /// Its raw bytes: spans count in these.
    pub bytes: Arc<[u8]>,
}

/// Lines of a file an error is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    /// The file.
    pub file: SourceFile,
    /// The marked lines.
    pub lines: Lines,
}

/// The end of a failed step's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepLog {
    /// The step's plain-progress name, e.g. `[build 2/4] RUN make`.
    pub step: String,
    /// Raw bytes, stdout and stderr in order of arrival; the last 100 lines are shown.
    pub tail: Vec<u8>,
}

/// One failure, ready to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What kind.
    pub kind: Kind,
    /// What happened, one line.
    pub message: String,
    /// Why, outermost first. Those the message already ends with are not shown twice.
    pub causes: Vec<String>,
    /// What to do about it.
    pub hints: Vec<String>,
    /// The Dockerfile lines it is about.
    pub excerpt: Option<Excerpt>,
    /// What the failed step printed.
    pub step_log: Option<StepLog>,
    /// The Dockerfile's errors, when those are the failure: shown instead of `message`.
    pub diagnostics: Option<(SourceFile, Vec<Diagnostic>)>,
    /// The command whose `--help` helps.
    pub command: Option<String>,
}

impl Report {
    /// A failure with a message alone.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            causes: Vec::new(),
            hints: Vec::new(),
            excerpt: None,
            step_log: None,
            diagnostics: None,
            command: None,
        }
    }

    /// A failure from an error and its sources.
    pub fn from_error(kind: Kind, error: &dyn Error) -> Self {
        let mut report = Self::new(kind, error.to_string());
        let mut source = error.source();
        while let Some(cause) = source {
            report.causes.push(cause.to_string());
            source = cause.source();
        }
        report
    }

    /// The Dockerfile is wrong. `diagnostics` may hold warnings too; they are listed after the errors.
    pub fn dockerfile(file: SourceFile, diagnostics: Vec<Diagnostic>) -> Self {
        let message = format!("{} has errors", file.name);
        Self { diagnostics: Some((file, diagnostics)), ..Self::new(Kind::Dockerfile, message) }
    }

    /// Adds something to do.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Adds the Dockerfile lines.
    pub fn excerpt(mut self, file: SourceFile, lines: Lines) -> Self {
        self.excerpt = Some(Excerpt { file, lines });
        self
    }

    /// Adds what the step printed.
    pub fn step_log(mut self, step: impl Into<String>, tail: Vec<u8>) -> Self {
        self.step_log = Some(StepLog { step: step.into(), tail });
        self
    }

    /// The process's exit status.
    pub fn exit_code(&self) -> u8 {
        self.kind.exit_code()
    }

    /// The whole text for standard error, each line ended. Everything from outside is made safe to print.
    pub fn render(&self, style: Style) -> String {
        render::render(self, style)
    }
}

impl From<&UsageError> for Report {
    fn from(error: &UsageError) -> Self {
        let is_name = matches!(
            error.problem,
            Problem::Tag { .. } | Problem::TagWithDigest { .. } | Problem::Image { .. }
        );
        let mut report = Self::from_error(if is_name { Kind::Name } else { Kind::Usage }, error);
        // `UsageError` shows its problem's text: the problem's own source is the first real cause.
        let mut source = error.problem.source();
        report.causes.clear();
        while let Some(cause) = source {
            report.causes.push(cause.to_string());
            source = cause.source();
        }
        report.hints.extend(error.problem.hint());
        let unsupported = matches!(error.problem, Problem::FlagNotYet { .. } | Problem::ValueNotYet { .. });
        report.command = (!unsupported && !is_name).then(|| error.command.clone());
        report
    }
}
