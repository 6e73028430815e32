//! Showing a build while it runs.
//!
//! Producers hold an [`Events`] handle; one consumer thread turns what they say into text on standard error. The
//! thread begins with the first event, so a command that says nothing costs nothing, and ends in
//! [`ConsumerHandle::finish`]. A consumer cannot fail the build: write errors end its output, nothing else.

mod bus;
pub mod event;
mod json;
mod layout;
pub(crate) mod lines;
mod plain;
mod recorder;
pub mod summary;
mod transfers;
mod tty;

use std::io::{IsTerminal as _, Write};
use std::str::FromStr;
use std::time::{Duration, Instant};

pub use bus::{ConsumerHandle, Events, TransferMeter};
pub use event::{BuildEvent, Outcome, Stream, VertexId};
pub use json::{JSON_VERSION, JsonEvent};
pub use recorder::{Recorder, record};

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// [`Mode::Tty`] on a terminal, [`Mode::Plain`] elsewhere.
    #[default]
    Auto,
    /// Numbered lines.
    Plain,
    /// A live view. Falls back to [`Mode::Plain`] when standard error is no terminal.
    Tty,
    /// Nothing.
    Quiet,
    /// Nothing.
    None,
    /// One JSON object per line, as [`JsonEvent`] documents.
    RawJson,
}

/// A text that names no mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a progress mode")]
pub struct ModeError(String);

impl FromStr for Mode {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Self, ModeError> {
        Ok(match text {
            "auto" | "" => Self::Auto,
            "plain" => Self::Plain,
            "tty" => Self::Tty,
            "quiet" => Self::Quiet,
            "none" => Self::None,
            "rawjson" => Self::RawJson,
            other => return Err(ModeError(other.to_owned())),
        })
    }
}

/// What the terminal can do, decided once by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Display {
    /// Standard error is a terminal.
    pub terminal: bool,
    /// Colours are wanted.
    pub color: bool,
}

impl Display {
    /// Standard error as it is: colours on a terminal unless `NO_COLOR` is set or `TERM` is `dumb`.
    pub fn stderr(env: &crate::cli::Env) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let dumb = env.var("TERM").is_some_and(|term| term == "dumb");
        Self { terminal: terminal && !dumb, color: terminal && !dumb && env.non_empty("NO_COLOR").is_none() }
    }
}

/// Opens the channel of one build, to be shown on standard error.
pub fn start(mode: Mode, display: Display) -> (Events, ConsumerHandle) {
    match mode {
        Mode::Quiet | Mode::None => bus::silent(),
        Mode::RawJson => bus::open(|| Box::new(json::Json::new(std::io::stderr()))),
        Mode::Auto | Mode::Tty if display.terminal => {
            bus::open(move || Box::new(tty::Tty::new(display.color)))
        }
        Mode::Plain | Mode::Auto | Mode::Tty => {
            bus::open(|| Box::new(plain::Plain::new(std::io::stderr(), Instant::now())))
        }
    }
}

/// Turns events into something. Runs on the consumer thread alone.
pub(crate) trait Consumer {
    /// Takes one event.
    fn event(&mut self, event: BuildEvent);

    /// Called after each batch of events, and when [`Self::tick_every`] has passed without one.
    fn tick(&mut self, _now: Instant) {}

    /// How long it may stay unasked while nothing happens; `None` means for ever.
    fn tick_every(&self) -> Option<Duration> {
        None
    }

    /// Called once, after the last event.
    fn finish(&mut self, now: Instant);
}

/// A writer that goes quiet after its first error (a closed pipe must not stop a build), one write per batch.
pub(crate) struct Output<W: Write> {
    to: Option<W>,
    buffer: Vec<u8>,
}

impl<W: Write> Output<W> {
    pub(crate) fn new(to: W) -> Self {
        Self { to: Some(to), buffer: Vec::new() }
    }

    pub(crate) fn line(&mut self, text: &str) {
        self.buffer.extend_from_slice(text.as_bytes());
        self.buffer.push(b'\n');
        if self.buffer.len() > 1 << 16 {
            self.flush();
        }
    }

    pub(crate) fn flush(&mut self) {
        if let Some(to) = &mut self.to
            && !self.buffer.is_empty()
            && to.write_all(&self.buffer).and_then(|()| to.flush()).is_err()
        {
            self.to = None;
        }
        self.buffer.clear();
    }
}
