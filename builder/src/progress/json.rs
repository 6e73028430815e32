//! Progress for machines: one JSON object per line on standard error.
//!
//! The objects are this module's own types, so the builder's events may change without breaking readers. The first
//! line is `{"event":"begin","version":1}`; [`JSON_VERSION`] rises when a field changes its meaning or goes away.
//! Readers ignore events and fields they do not know. Times are milliseconds since the first event.

use std::io::Write;
use std::time::{Duration, Instant};

use base64::Engine as _;
use rbuild_frontend::diagnostic::{Diagnostic, Severity};
use serde::Serialize;

use super::event::{BuildEvent, Outcome, Stream, VertexId};
use super::{Consumer, Output};
use crate::report::{Kind, Report};

/// Version of the lines' format.
pub const JSON_VERSION: u32 = 1;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
#[non_exhaustive]
pub enum JsonEvent {
    /// The first line.
    Begin {
        /// [`JSON_VERSION`].
        version: u32,
    },
    /// A vertex is known.
    Queued {
        /// Its number, from 1.
        vertex: VertexId,
        /// Its plain-progress name.
        name: String,
    },
    /// Work on it began.
    Started {
        /// Which.
        vertex: VertexId,
        /// When.
        time_ms: u64,
    },
    /// Work on it ended.
    Finished {
        /// Which.
        vertex: VertexId,
        /// When.
        time_ms: u64,
        /// `cached`, `done`, `error` or `canceled`.
        outcome: &'static str,
        /// Why, for `error`.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A sentence beside a vertex.
    Note {
        /// Which.
        vertex: VertexId,
        /// The sentence.
        text: String,
    },
    /// Raw output of a step.
    Log {
        /// Which.
        vertex: VertexId,
        /// When.
        time_ms: u64,
        /// 1 for standard output, 2 for standard error.
        stream: u8,
        /// The bytes in base64, not split at lines.
        data: String,
    },
    /// Bytes moved.
    Transfer {
        /// Which vertex.
        vertex: VertexId,
        /// What.
        item: String,
        /// Bytes so far.
        done_bytes: u64,
        /// Whole size in bytes, when known.
        #[serde(skip_serializing_if = "Option::is_none")]
        total_bytes: Option<u64>,
        /// Time since the item began.
        elapsed_ms: u64,
        /// True for the item's last line.
        finished: bool,
    },
    /// What is wrong with a place of the Dockerfile.
    Warning {
        /// Rule name, for lints.
        #[serde(skip_serializing_if = "Option::is_none")]
        rule: Option<&'static str>,
        /// `warning` or `error`.
        severity: &'static str,
        /// One line.
        message: String,
        /// First line it is about, from 1.
        first_line: u32,
        /// Last line it is about.
        last_line: u32,
        /// First byte it is about.
        start_byte: usize,
        /// One past the last byte.
        end_byte: usize,
        /// How to fix it.
        #[serde(skip_serializing_if = "Option::is_none")]
        help: Option<String>,
    },
    /// A sentence about the whole build.
    Remark {
        /// The sentence.
        text: String,
    },
    /// The last line of a build that failed. Errors of the Dockerfile come before it, each a `warning` of severity
    /// `error`.
    Failed {
        /// Whose fault: `usage`, `dockerfile`, `build`, `registry`, `store`, `host`, `exhausted`, `internal` or
        /// `interrupted`.
        kind: &'static str,
        /// What happened, one line.
        message: String,
        /// Why, outermost first.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        causes: Vec<String>,
        /// What to do about it.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        hints: Vec<String>,
        /// The Dockerfile, when one was read and a place in it is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        file: Option<String>,
        /// First line of it that the failure is about, from 1.
        #[serde(skip_serializing_if = "Option::is_none")]
        first_line: Option<u32>,
        /// Last line of it.
        #[serde(skip_serializing_if = "Option::is_none")]
        last_line: Option<u32>,
    },
}

/// Writes JSON lines.
pub(crate) struct Json<W: Write> {
    output: Output<W>,
    began: Option<Instant>,
}

impl<W: Write> Json<W> {
    pub(crate) fn new(to: W) -> Self {
        let mut json = Self { output: Output::new(to), began: None };
        json.line(&JsonEvent::Begin { version: JSON_VERSION });
        json
    }

    fn line(&mut self, event: &JsonEvent) {
        // Strings and numbers always serialise; a failure here would only lose the line.
        if let Ok(text) = serde_json::to_string(event) {
            self.output.line(&text);
        }
    }

    fn time_ms(&mut self, at: Instant) -> u64 {
        let began = *self.began.get_or_insert(at);
        millis(at.saturating_duration_since(began))
    }

    fn mirror(&mut self, event: BuildEvent) -> JsonEvent {
        match event {
            BuildEvent::Failed(report) => {
                for diagnostic in report.diagnostics.iter().flat_map(|(_, found)| found) {
                    self.line(&warning(diagnostic.clone()));
                }
                failed(*report)
            }
            BuildEvent::Queued { id, name } => JsonEvent::Queued { vertex: id, name },
            BuildEvent::Started { id, at } => JsonEvent::Started { vertex: id, time_ms: self.time_ms(at) },
            BuildEvent::Finished { id, at, outcome } => {
                let (outcome, reason) = match outcome {
                    Outcome::Cached => ("cached", None),
                    Outcome::Done => ("done", None),
                    Outcome::Error(reason) => ("error", Some(reason)),
                    Outcome::Canceled => ("canceled", None),
                };
                JsonEvent::Finished { vertex: id, time_ms: self.time_ms(at), outcome, reason }
            }
            BuildEvent::Note { id, text } => JsonEvent::Note { vertex: id, text },
            BuildEvent::Log { id, at, stream, bytes } => JsonEvent::Log {
                vertex: id,
                time_ms: self.time_ms(at),
                stream: if stream == Stream::Stdout { 1 } else { 2 },
                data: base64::engine::general_purpose::STANDARD.encode(bytes),
            },
            BuildEvent::Transfer { id, item, done_bytes, total_bytes, elapsed, finished } => {
                let elapsed_ms = millis(elapsed);
                JsonEvent::Transfer { vertex: id, item, done_bytes, total_bytes, elapsed_ms, finished }
            }
            BuildEvent::Warning(diagnostic) => warning(*diagnostic),
            BuildEvent::Remark(text) => JsonEvent::Remark { text },
        }
    }
}

fn warning(diagnostic: Diagnostic) -> JsonEvent {
    JsonEvent::Warning {
        rule: diagnostic.rule,
        severity: if diagnostic.severity == Severity::Error { "error" } else { "warning" },
        message: diagnostic.message,
        first_line: diagnostic.lines.first,
        last_line: diagnostic.lines.last,
        start_byte: diagnostic.span.start,
        end_byte: diagnostic.span.end,
        help: diagnostic.help,
    }
}

fn failed(report: Report) -> JsonEvent {
    let lines = report.excerpt.as_ref().map(|excerpt| excerpt.lines);
    let of_excerpt = report.excerpt.map(|excerpt| excerpt.file.name);
    JsonEvent::Failed {
        kind: match report.kind {
            Kind::Usage | Kind::Name | Kind::Template => "usage",
            Kind::Dockerfile => "dockerfile",
            Kind::Build => "build",
            Kind::Registry => "registry",
            Kind::Store => "store",
            Kind::Host => "host",
            Kind::Exhausted => "exhausted",
            Kind::Internal => "internal",
            Kind::Interrupted => "interrupted",
        },
        message: report.message,
        causes: report.causes,
        hints: report.hints,
        file: of_excerpt.or(report.diagnostics.map(|(file, _)| file.name)),
        first_line: lines.map(|lines| lines.first),
        last_line: lines.map(|lines| lines.last),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl<W: Write> Consumer for Json<W> {
    fn event(&mut self, event: BuildEvent) {
        let mirror = self.mirror(event);
        self.line(&mirror);
    }

    fn tick(&mut self, _now: Instant) {
        self.output.flush();
    }

    fn finish(&mut self, _now: Instant) {
        self.output.flush();
    }
}

#[cfg(test)]
mod tests {
    use rbuild_frontend::span::{Lines, Span};

    use super::*;
    use crate::report::SourceFile;

    #[test]
    fn every_event_is_one_line() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut json = Json::new(Vec::new());
        let outcomes =
            [Outcome::Cached, Outcome::Done, Outcome::Error("exit code: 1\n".into()), Outcome::Canceled];
        let mut events = vec![
            BuildEvent::Remark("user namespace".into()),
            BuildEvent::Queued { id: 1, name: "[1/1] RUN \u{1b}[2J".into() },
            BuildEvent::Started { id: 1, at: at(0) },
            BuildEvent::Note { id: 1, text: "first run".into() },
            BuildEvent::Log { id: 1, at: at(12), stream: Stream::Stderr, bytes: b"\xff\n\x1b".to_vec() },
            BuildEvent::Transfer {
                id: 1,
                item: "x".into(),
                done_bytes: 1,
                total_bytes: None,
                elapsed: Duration::from_millis(7),
                finished: true,
            },
            BuildEvent::Warning(Box::new(Diagnostic {
                rule: Some("UndefinedVar"),
                severity: Severity::Warning,
                message: "Usage of undefined variable '$x'".into(),
                span: Span { start: 3, end: 5 },
                lines: Lines { first: 2, last: 2 },
                related: vec![],
                help: None,
            })),
        ];
        events.extend(outcomes.map(|outcome| BuildEvent::Finished { id: 1, at: at(1500), outcome }));
        let file = SourceFile { name: "Dockerfile".into(), bytes: (*b"FROM scratch\nFOO\n").into() };
        let lines = Lines { first: 2, last: 2 };
        let wrong = Diagnostic {
            rule: None,
            severity: Severity::Error,
            message: "unknown instruction: FOO".into(),
            span: Span { start: 13, end: 16 },
            lines,
            related: vec![],
            help: None,
        };
        events.push(BuildEvent::Failed(Box::new(Report::dockerfile(file.clone(), vec![wrong]))));
        let step = Report::new(Kind::Build, "exit code: 7").hint("read it").excerpt(file, lines);
        events.push(BuildEvent::Failed(Box::new(step)));
        for event in events {
            json.event(event);
        }
        json.finish(start);
        insta::assert_snapshot!(String::from_utf8(json.output.to.unwrap()).unwrap());
    }
}
