//! Numbered lines, in the form BuildKit's plain progress has and scripts grep for.
//!
//! ```text
//! #5 [build 2/4] RUN make
//! #5 0.213 first line
//! #5 ...
//!
//! #6 [web 1/2] RUN …
//! ```
//!
//! One vertex has the floor at a time, so that parallel steps read as paragraphs and not as a shuffle. It keeps the
//! floor while it speaks; another gets it when the speaker ends, falls silent, has kept it waiting too long, or when too
//! much waits: nobody else bounds what has come this far.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write;
use std::mem::take;
use std::time::{Duration, Instant};

use rbuild_frontend::diagnostic::Diagnostic;

use super::event::{BuildEvent, Outcome, VertexId};
use super::lines::{LineSplitter, clean_lines, clean_text};
use super::transfers::Transfer;
use super::{Consumer, Output};
use crate::report::human::seconds;

/// The speaker may be silent this long before another gets the floor.
const SILENCE: Duration = Duration::from_millis(500);
/// Nobody waits longer than this.
const PATIENCE: Duration = Duration::from_secs(5);
/// Nor do all together wait with more text than this.
const WAITING_BYTES: usize = 256 << 10;

/// Writes plain progress.
pub(crate) struct Plain<W: Write> {
    output: Output<W>,
    vertices: BTreeMap<VertexId, Vertex>,
    queue: Queue,
    /// Most bytes that wait.
    waiting_bytes_max: usize,
    /// Who has the floor, and since when it has been silent.
    floor: Option<(VertexId, Instant)>,
    now: Instant,
    remarks: Vec<String>,
    /// Warnings are said beside the vertex that read the Dockerfile.
    definition: Option<VertexId>,
}

#[derive(Default)]
struct Vertex {
    name: String,
    started: Option<Instant>,
    stdout: LineSplitter,
    stderr: LineSplitter,
    /// Time of the first byte of the line each stream has begun.
    line_began: [Option<Instant>; 2],
    transfers: BTreeMap<String, Transfer>,
    waiting: Waiting,
    finished: bool,
    failed: bool,
}

/// Lines not printed yet.
#[derive(Default)]
struct Waiting {
    /// One after the other, each with its end: nothing else is held of them.
    text: String,
    /// Since when the first waits.
    since: Option<Instant>,
}

impl Waiting {
    fn push(&mut self, now: Instant, line: &str) {
        self.since.get_or_insert(now);
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// A line that a step wrote.
    fn push_log(&mut self, now: Instant, when: Instant, began: Instant, line: &str) {
        let seconds = when.saturating_duration_since(began).as_secs_f64();
        // A string takes everything.
        let _ = write!(self.text, "{seconds:.3} ");
        self.push(now, line);
    }

    fn is_empty(&self) -> bool {
        self.text.is_empty()
    }
}

/// Who waits with something to say. Each change of a [`Vertex`] that may change this is made in [`Plain::with`].
#[derive(Default)]
struct Queue {
    by_turn: BTreeSet<Turn>,
    by_bytes: BTreeSet<(usize, VertexId)>,
    bytes: usize,
}

/// Who speaks before whom: who failed, then who has waited longer.
type Turn = (bool, Option<Instant>, VertexId);

impl Queue {
    fn enter(&mut self, id: VertexId, vertex: &Vertex) {
        if !vertex.waiting.is_empty() {
            self.by_turn.insert(vertex.turn(id));
            self.by_bytes.insert((vertex.waiting.text.len(), id));
            self.bytes += vertex.waiting.text.len();
        }
    }

    fn leave(&mut self, id: VertexId, vertex: &Vertex) {
        if !vertex.waiting.is_empty() {
            self.by_turn.remove(&vertex.turn(id));
            self.by_bytes.remove(&(vertex.waiting.text.len(), id));
            self.bytes -= vertex.waiting.text.len();
        }
    }

    fn first(&self) -> Option<VertexId> {
        self.by_turn.first().map(|(_, _, id)| *id)
    }
}

impl Vertex {
    fn turn(&self, id: VertexId) -> Turn {
        (!self.failed, self.waiting.since, id)
    }

    fn say(&mut self, now: Instant, text: &str) {
        self.waiting.push(now, text);
    }

    fn log(&mut self, at: Instant, stderr: bool, bytes: &[u8]) {
        let began = self.started.unwrap_or(at);
        let splitter = if stderr { &mut self.stderr } else { &mut self.stdout };
        let line_began = &mut self.line_began[usize::from(stderr)];
        splitter.push(bytes, |line| {
            let when = line_began.take().unwrap_or(at);
            self.waiting.push_log(at, when, began, &line);
        });
        // Whether a line is under way shows in the next call: the first byte's time is then this one's at the latest.
        if !bytes.ends_with(b"\n") {
            line_began.get_or_insert(at);
        }
    }

    fn end_lines(&mut self, at: Instant) {
        let began = self.started.unwrap_or(at);
        for (index, splitter) in [&mut self.stdout, &mut self.stderr].into_iter().enumerate() {
            if let Some(line) = splitter.finish() {
                let when = self.line_began[index].take().unwrap_or(at);
                self.waiting.push_log(at, when, began, &line);
            }
        }
    }
}

impl<W: Write> Plain<W> {
    /// Writes to `to`; `now` is the time until the first event says otherwise.
    pub(crate) fn new(to: W, now: Instant) -> Self {
        Self {
            output: Output::new(to),
            vertices: BTreeMap::new(),
            queue: Queue::default(),
            waiting_bytes_max: WAITING_BYTES,
            floor: None,
            now,
            remarks: Vec::new(),
            definition: None,
        }
    }

    /// Gives the floor to whom it belongs and prints what they have to say.
    fn speak(&mut self) {
        self.print_remarks();
        loop {
            if let Some((id, _)) = self.floor {
                self.print_waiting(id);
            }
            match self.next_speaker() {
                Some(id) => self.take_floor(id),
                None => break,
            }
        }
    }

    /// Who takes the floor from its speaker now, if anybody does. The speaker has nothing left to say.
    fn next_speaker(&self) -> Option<VertexId> {
        let first = self.queue.first()?;
        let Some((_, silent_since)) = self.floor else {
            return Some(first);
        };
        let vertex = &self.vertices[&first];
        if !vertex.failed && self.queue.bytes > self.waiting_bytes_max {
            return self.queue.by_bytes.last().map(|(_, id)| *id);
        }
        let since = |then: Instant| self.now.saturating_duration_since(then);
        let waited = vertex.waiting.since.map_or(Duration::ZERO, since);
        (vertex.failed || waited >= PATIENCE || since(silent_since) >= SILENCE).then_some(first)
    }

    fn take_floor(&mut self, id: VertexId) {
        if let Some((speaker, _)) = self.floor.take() {
            self.output.line(&format!("#{speaker} ..."));
            self.output.line("");
        }
        if let Some(vertex) = self.vertices.get(&id) {
            self.output.line(&format!("#{id} {}", vertex.name));
        }
        self.floor = Some((id, self.now));
    }

    fn print_waiting(&mut self, id: VertexId) {
        let Some(vertex) = self.vertices.get_mut(&id) else {
            return;
        };
        if !vertex.waiting.is_empty() {
            self.floor = Some((id, self.now));
        }
        self.queue.leave(id, vertex);
        for line in take(&mut vertex.waiting).text.split_terminator('\n') {
            if line.is_empty() {
                self.output.line(&format!("#{id}"));
            } else {
                self.output.line(&format!("#{id} {line}"));
            }
        }
        if vertex.finished {
            // Nothing follows: late events of this number are dropped.
            self.vertices.remove(&id);
            self.output.line("");
            self.floor = None;
        }
    }

    fn print_remarks(&mut self) {
        if self.remarks.is_empty() {
            return;
        }
        if let Some((speaker, _)) = self.floor.take() {
            self.output.line(&format!("#{speaker} ..."));
            self.output.line("");
        }
        for remark in self.remarks.drain(..) {
            self.output.line(&format!("#0 {remark}"));
        }
        self.output.line("");
    }

    fn with(&mut self, id: VertexId, change: impl FnOnce(&mut Vertex, Instant)) {
        let now = self.now;
        if let Some(vertex) = self.vertices.get_mut(&id)
            && !vertex.finished
        {
            self.queue.leave(id, vertex);
            change(vertex, now);
            self.queue.enter(id, vertex);
        }
    }

    fn finished(&mut self, id: VertexId, at: Instant, outcome: &Outcome) {
        self.with(id, |vertex, now| {
            vertex.end_lines(at);
            let took = at.saturating_duration_since(vertex.started.unwrap_or(at));
            let text = match outcome {
                Outcome::Cached => "CACHED".to_owned(),
                Outcome::Done => format!("DONE {}", seconds(took)),
                Outcome::Error(reason) => format!("ERROR: {}", clean_lines(reason)),
                Outcome::Canceled => "CANCELED".to_owned(),
            };
            vertex.failed = matches!(outcome, Outcome::Error(_));
            vertex.finished = true;
            for line in text.lines() {
                vertex.say(now, line);
            }
        });
    }
}

impl<W: Write> Consumer for Plain<W> {
    fn event(&mut self, event: BuildEvent) {
        match event {
            BuildEvent::Queued { id, name } => {
                if name.starts_with("[internal] load build definition") {
                    self.definition = Some(id);
                }
                let vertex = Vertex { name: clean_text(&name).into_owned(), ..Vertex::default() };
                if let Some(former) = self.vertices.insert(id, vertex) {
                    self.queue.leave(id, &former);
                }
            }
            BuildEvent::Started { id, at } => {
                self.now = self.now.max(at);
                self.with(id, |vertex, _| vertex.started = Some(at));
                // The header at once when the floor is free: people see what runs before it prints anything.
                if self.floor.is_none() && self.vertices.contains_key(&id) {
                    self.speak();
                    if self.floor.is_none() {
                        self.take_floor(id);
                    }
                }
            }
            BuildEvent::Finished { id, at, outcome } => {
                self.now = self.now.max(at);
                self.finished(id, at, &outcome);
            }
            BuildEvent::Note { id, text } => {
                self.with(id, |vertex, now| vertex.say(now, &clean_text(&text)));
            }
            BuildEvent::Log { id, at, stream, bytes } => {
                self.now = self.now.max(at);
                self.with(id, |vertex, _| vertex.log(at, stream == super::Stream::Stderr, &bytes));
            }
            BuildEvent::Transfer { id, item, done_bytes, total_bytes, elapsed, finished } => {
                let transfer = Transfer { done_bytes, total_bytes, elapsed, finished };
                self.with(id, |vertex, now| {
                    if transfer.worth_a_line(vertex.transfers.get(&item)) {
                        vertex.say(now, &format!("{} {}", clean_text(&item), transfer.words()));
                        if finished {
                            vertex.transfers.remove(&item);
                        } else {
                            vertex.transfers.insert(item, transfer);
                        }
                    }
                });
            }
            BuildEvent::Warning(diagnostic) => match self.definition {
                Some(id) if self.vertices.get(&id).is_some_and(|vertex| !vertex.finished) => {
                    self.with(id, |vertex, now| vertex.say(now, &warning_words(&diagnostic)));
                }
                // That vertex is done or never was: a paragraph of its own, as for a remark.
                _ => self.remarks.push(warning_words(&diagnostic)),
            },
            BuildEvent::Remark(text) => self.remarks.push(clean_text(&text).into_owned()),
            BuildEvent::Failed(_) => {}
        }
        self.speak();
    }

    fn tick(&mut self, now: Instant) {
        self.now = self.now.max(now);
        self.speak();
        self.output.flush();
    }

    fn tick_every(&self) -> Option<Duration> {
        self.queue.first().map(|_| Duration::from_millis(100))
    }

    fn finish(&mut self, now: Instant) {
        self.now = self.now.max(now);
        for (id, vertex) in &mut self.vertices {
            self.queue.leave(*id, vertex);
            vertex.end_lines(now);
            self.queue.enter(*id, vertex);
        }
        self.speak();
        while let Some(id) = self.queue.first() {
            self.take_floor(id);
            self.print_waiting(id);
        }
        self.output.flush();
    }
}

/// `WARN: StageNameCasing: text (line N)`.
pub(crate) fn warning_words(diagnostic: &Diagnostic) -> String {
    let rule = diagnostic.rule.map(|rule| format!("{rule}: ")).unwrap_or_default();
    format!("WARN: {rule}{} (line {})", clean_text(&diagnostic.message), diagnostic.lines.first)
}

#[cfg(test)]
mod tests;
