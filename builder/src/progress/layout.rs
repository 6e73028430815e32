//! What a terminal shows, as text: no drawing here.
//!
//! ```text
//!  => CACHED [build 1/4] FROM docker.io/library/alpine        <- permanent, scrolls away
//!  => [build 2/4] WORKDIR /src                           0.1s
//! [+] Building 3.2s (5/9)                                     <- live, redrawn
//!  ⠹ [build 3/4] RUN make                                2.9s
//!  => => # cc -c main.c
//! ```
//!
//! Every line fits the width, the live part fits the height: steps first, then transfers, then logs.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use unicode_width::UnicodeWidthChar as _;

use super::event::{BuildEvent, Outcome, VertexId};
use super::lines::{LineSplitter, clean_text};
use super::plain::warning_words;
use super::transfers::Transfer;
use crate::report::human::{seconds, size_progress};

/// Lines of live output per running step.
const LOG_LINES: usize = 6;
/// Transfers shown per running step.
const TRANSFER_LINES: usize = 6;
const SPINNER: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];
const BAR_CELLS: usize = 20;

/// What a line is, for those who want colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tint {
    Plain,
    Dim,
    Good,
    Bad,
    Warn,
}

/// One line, printable, as wide as allowed or narrower.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) text: String,
    pub(crate) tint: Tint,
}

/// The state of a build as far as it is shown.
#[derive(Default)]
pub(crate) struct Board {
    began: Option<Instant>,
    running: BTreeMap<VertexId, Running>,
    /// Permanent lines not taken yet: text, right-hand text.
    permanent: Vec<(String, String, Tint)>,
    known: usize,
    finished: usize,
}

#[derive(Default)]
struct Running {
    name: String,
    started: Option<Instant>,
    stdout: LineSplitter,
    stderr: LineSplitter,
    log: VecDeque<String>,
    transfers: BTreeMap<String, Transfer>,
    notes: Vec<String>,
}

impl Running {
    fn log(&mut self, stderr: bool, bytes: &[u8]) {
        let splitter = if stderr { &mut self.stderr } else { &mut self.stdout };
        let log = &mut self.log;
        splitter.push(bytes, |line| {
            if log.len() == LOG_LINES {
                log.pop_front();
            }
            log.push_back(line);
        });
    }
}

impl Board {
    pub(crate) fn apply(&mut self, event: BuildEvent, now: Instant) {
        self.began.get_or_insert(now);
        match event {
            BuildEvent::Queued { id, name } => {
                self.known += 1;
                let name = clean_text(&name).into_owned();
                self.running.insert(id, Running { name, ..Running::default() });
            }
            BuildEvent::Started { id, at } => {
                self.began = self.began.map(|began| began.min(at));
                self.with(id, |running| running.started = Some(at));
            }
            BuildEvent::Finished { id, at, outcome } => self.finish_vertex(id, at, &outcome),
            BuildEvent::Note { id, text } => {
                self.with(id, |running| running.notes.push(clean_text(&text).into_owned()));
            }
            BuildEvent::Log { id, stream, bytes, .. } => {
                self.with(id, |running| running.log(stream == super::Stream::Stderr, &bytes));
            }
            BuildEvent::Transfer { id, item, done_bytes, total_bytes, elapsed, finished } => {
                self.with(id, |running| {
                    if finished {
                        running.transfers.remove(&item);
                    } else {
                        let transfer = Transfer { done_bytes, total_bytes, elapsed, finished };
                        running.transfers.insert(item, transfer);
                    }
                });
            }
            BuildEvent::Warning(diagnostic) => {
                self.permanent.push((
                    format!(" => {}", warning_words(&diagnostic)),
                    String::new(),
                    Tint::Warn,
                ));
            }
            BuildEvent::Remark(text) => {
                self.permanent.push((format!(" => {}", clean_text(&text)), String::new(), Tint::Plain));
            }
            BuildEvent::Failed(_) => {}
        }
    }

    fn with(&mut self, id: VertexId, change: impl FnOnce(&mut Running)) {
        if let Some(running) = self.running.get_mut(&id) {
            change(running);
        }
    }

    fn finish_vertex(&mut self, id: VertexId, at: Instant, outcome: &Outcome) {
        let Some(done) = self.running.remove(&id) else {
            return;
        };
        self.finished += 1;
        let took = seconds(at.saturating_duration_since(done.started.unwrap_or(at)));
        let name = done.name;
        let (left, right, tint) = match outcome {
            Outcome::Cached => (format!(" => CACHED {name}"), String::new(), Tint::Good),
            Outcome::Done => (format!(" => {name}"), took, Tint::Good),
            Outcome::Error(_) => (format!(" => ERROR {name}"), took, Tint::Bad),
            Outcome::Canceled => (format!(" => CANCELED {name}"), took, Tint::Warn),
        };
        self.permanent.push((left, right, tint));
        for note in done.notes {
            self.permanent.push((format!(" => => {note}"), String::new(), Tint::Dim));
        }
    }

    /// Lines that are final and were not taken before.
    pub(crate) fn take_permanent(&mut self, width: usize) -> Vec<Line> {
        let lines = self.permanent.drain(..);
        lines.map(|(left, right, tint)| Line { text: spread(&left, &right, width), tint }).collect()
    }

    /// `[+] Building 3.2s (5/9)`; ` FINISHED` once `ended`.
    pub(crate) fn header(&self, now: Instant, ended: bool, width: usize) -> String {
        let took = self.began.map_or(Duration::ZERO, |began| now.saturating_duration_since(began));
        let ended = if ended { " FINISHED" } else { "" };
        fit(&format!("[+] Building {} ({}/{}){ended}", seconds(took), self.finished, self.known), width)
    }

    /// The part that changes, at most `height` lines.
    pub(crate) fn live(&self, now: Instant, width: usize, height: usize) -> Vec<Line> {
        let mut lines = vec![Line { text: self.header(now, false, width), tint: Tint::Plain }];
        let steps: Vec<&Running> = self.running.values().filter(|step| step.started.is_some()).collect();
        let mut room = height.saturating_sub(1);
        let shown = steps.len().min(room);
        room -= shown;
        // Details are dealt in turn, so that one chatty step does not take all the room.
        let mut details: Vec<Vec<Line>> = vec![Vec::new(); shown];
        let mut queues: Vec<VecDeque<Line>> =
            steps[..shown].iter().map(|step| detail_lines(step, width)).collect();
        let mut counts = vec![0; shown];
        while room > 0 && queues.iter().zip(&counts).any(|(queue, count)| *count < queue.len()) {
            for (queue, count) in queues.iter().zip(&mut counts) {
                if room > 0 && *count < queue.len() {
                    *count += 1;
                    room -= 1;
                }
            }
        }
        for ((queue, count), detail) in queues.iter_mut().zip(counts).zip(&mut details) {
            // The newest are last: when room is short the oldest go.
            detail.extend(queue.drain(queue.len() - count..));
        }
        let frame = self.began.map_or(0, |began| now.saturating_duration_since(began).as_millis() / 100);
        let spinner = SPINNER[usize::try_from(frame % 10).unwrap_or(0)];
        for (step, detail) in steps.iter().zip(details) {
            let took = seconds(now.saturating_duration_since(step.started.unwrap_or(now)));
            let text = spread(&format!(" {spinner} {}", step.name), &took, width);
            lines.push(Line { text, tint: Tint::Plain });
            lines.extend(detail);
        }
        lines.truncate(height.max(1));
        lines
    }

    /// Ends what never ended, so that it shows as canceled.
    pub(crate) fn close(&mut self, now: Instant) {
        let begun: Vec<VertexId> =
            self.running.iter().filter(|(_, step)| step.started.is_some()).map(|(id, _)| *id).collect();
        for id in begun {
            self.finish_vertex(id, now, &Outcome::Canceled);
        }
    }
}

/// Notes, then output, then transfers: the last are the first to get room.
fn detail_lines(step: &Running, width: usize) -> VecDeque<Line> {
    let detail = |text: &str| Line { text: fit(&format!(" => => {text}"), width), tint: Tint::Dim };
    let mut lines = VecDeque::new();
    lines.extend(step.notes.iter().rev().take(1).map(|note| detail(note)));
    let partial = [step.stdout.partial(), step.stderr.partial()];
    let output: Vec<String> = step.log.iter().cloned().chain(partial.into_iter().flatten()).collect();
    let newest = &output[output.len().saturating_sub(LOG_LINES)..];
    lines.extend(newest.iter().map(|line| detail(&format!("# {}", line.replace('\t', "    ")))));
    for (item, transfer) in step.transfers.iter().take(TRANSFER_LINES) {
        let text = transfer_line(item, transfer, width);
        lines.push_back(Line { text, tint: Tint::Dim });
    }
    lines
}

/// ` => => sha256:0123456789ab [=====>    ] 3.15MB / 29.54MB  12.30MB/s, 3s left`
fn transfer_line(item: &str, transfer: &Transfer, width: usize) -> String {
    let item = clean_text(item);
    let item = match item.strip_prefix("sha256:") {
        Some(hex) => format!("sha256:{}", hex.chars().take(12).collect::<String>()),
        None => item.into_owned(),
    };
    let amount = match transfer.total_bytes {
        Some(total) => format!("{} / {}", size_progress(transfer.done_bytes), size_progress(total)),
        None => size_progress(transfer.done_bytes),
    };
    let pace = transfer.pace().map(|pace| format!("  {pace}")).unwrap_or_default();
    let bare = format!(" => => {item} {amount}{pace}");
    match transfer.total_bytes {
        // The bar is the first to go when a terminal is narrow.
        Some(total) if total > 0 && columns(&bare) + BAR_CELLS + 3 <= width => {
            let done = u128::from(transfer.done_bytes.min(total)) * BAR_CELLS as u128 / u128::from(total);
            let done = usize::try_from(done).unwrap_or(BAR_CELLS);
            let head = if done < BAR_CELLS { ">" } else { "" };
            let bar = format!("{:<BAR_CELLS$}", "=".repeat(done) + head);
            format!(" => => {item} [{bar}] {amount}{pace}")
        }
        _ => fit(&bare, width),
    }
}

/// `left` and `right` at the two ends of a line.
fn spread(left: &str, right: &str, width: usize) -> String {
    if right.is_empty() || width <= columns(right) + 8 {
        return fit(left, width);
    }
    let left = fit(left, width - columns(right) - 1);
    let gap = width - columns(right) - columns(&left);
    format!("{left}{}{right}", " ".repeat(gap))
}

/// The text cut to the width, with `…` where something is missing.
fn fit(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut used = 1;
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used > width {
            break;
        }
        out.push(c);
    }
    if width > 0 {
        out.push('…');
    }
    out
}

fn columns(text: &str) -> usize {
    // Character by character, as `fit` counts.
    text.chars().map(|c| c.width().unwrap_or(0)).sum()
}

#[cfg(test)]
mod tests;
