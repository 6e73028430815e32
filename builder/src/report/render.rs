//! The order and the words of a whole report.

use rbuild_frontend::diagnostic::Severity;

use super::{Kind, Report, StepLog, diagnostics, excerpt};
use crate::progress::lines::{LineSplitter, clean_lines, clean_text};

/// Lines of a failed step's output that are repeated.
const LOG_LINES: usize = 100;

/// How a report is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Use colours. They repeat what the words say.
    pub color: bool,
    /// Columns of the terminal.
    pub width: usize,
    /// Draw diagnostics with carets; otherwise in Docker's layout, which scripts know.
    pub snippets: bool,
    /// Add workflow commands for GitHub Actions.
    pub github: bool,
}

impl Style {
    /// For files and pipes.
    pub const PLAIN: Self = Self { color: false, width: 80, snippets: false, github: false };

    /// For standard error as it is; workflow commands when `GITHUB_ACTIONS` is `true`.
    pub fn stderr(env: &crate::cli::Env) -> Self {
        let display = crate::progress::Display::stderr(env);
        let size =
            if display.terminal { rustix::termios::tcgetwinsize(std::io::stderr()).ok() } else { None };
        Self {
            color: display.color,
            width: size.map(|size| usize::from(size.ws_col)).filter(|width| *width > 0).unwrap_or(80),
            snippets: display.terminal,
            github: env.var("GITHUB_ACTIONS").as_deref() == Some("true"),
        }
    }
}

pub(super) fn render(report: &Report, style: Style) -> String {
    let mut text = String::new();
    if report.kind == Kind::Usage {
        text.push_str(&format!("{}\n", sentence(report)));
    } else {
        text.push_str(&report.step_log.as_ref().map(step_log).unwrap_or_default());
        text.push_str(&report.excerpt.as_ref().map(excerpt::render).unwrap_or_default());
        if style.github
            && let Some(found) = &report.excerpt
        {
            let lines = (found.lines.first, found.lines.last);
            text.push_str(&diagnostics::github_line(
                "error",
                &found.file.name,
                lines,
                "Build failed",
                &sentence(report),
            ));
        }
        match &report.diagnostics {
            Some(_) => text.push_str(&dockerfile_errors(report, style)),
            None => {
                let solve = report.kind == Kind::Build || report.excerpt.is_some();
                text.push_str(&error_line(&sentence(report), solve, style));
            }
        }
    }
    for hint in &report.hints {
        text.push_str(&format!("hint: {}\n", clean_lines(hint)));
    }
    if let Some(command) = &report.command {
        text.push_str(&format!("See '{command} --help'.\n"));
    }
    if report.kind == Kind::Internal {
        text.push_str("hint: this is a fault in rbuild, not in your Dockerfile; please report it with the lines above\n");
    }
    text
}

/// Every error with its place, then one last line per error; warnings after them.
fn dockerfile_errors(report: &Report, style: Style) -> String {
    let Some((file, found)) = &report.diagnostics else {
        return String::new();
    };
    let mut text = String::new();
    let errors = || found.iter().filter(|diagnostic| diagnostic.severity == Severity::Error);
    for diagnostic in errors() {
        text.push_str(&diagnostics::place(diagnostic, file, style));
        if !style.snippets {
            // The carets carry their help themselves.
            if let Some(help) = &diagnostic.help {
                text.push_str(&format!("help: {}\n", clean_lines(help)));
            }
        }
    }
    text.push_str(&diagnostics::warnings(found, file, false, Style { github: false, ..style }));
    if style.github {
        text.push_str(&diagnostics::github_annotations(found, file));
    }
    for diagnostic in errors() {
        text.push_str(&error_line(&diagnostics::sentence(diagnostic), true, style));
    }
    if errors().next().is_none() {
        text.push_str(&error_line(&sentence(report), true, style));
    }
    text
}

fn error_line(sentence: &str, solve: bool, style: Style) -> String {
    let label = if style.color { "\u{1b}[1;31mERROR\u{1b}[0m" } else { "ERROR" };
    let solve = if solve { "failed to solve: " } else { "" };
    format!("{label}: {solve}{sentence}\n")
}

/// Message and causes in one line, as Docker has them; a cause the text already ends with is left out. What a cause has
/// beyond its first line is set in, as a place in a file is shown: no such line can pass for one of ours.
fn sentence(report: &Report) -> String {
    let mut text = clean_text(&report.message).into_owned();
    for cause in &report.causes {
        let cause = clean_lines(cause);
        if !cause.is_empty() && !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

fn step_log(log: &StepLog) -> String {
    let mut lines = std::collections::VecDeque::new();
    let mut splitter = LineSplitter::default();
    let keep = |line: String, lines: &mut std::collections::VecDeque<String>| {
        if lines.len() == LOG_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    };
    splitter.push(&log.tail, |line| keep(line, &mut lines));
    if let Some(line) = splitter.finish() {
        keep(line, &mut lines);
    }
    let mut text = format!("------\n > {}:\n", clean_text(&log.step));
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
    text.push_str("------\n");
    text
}
