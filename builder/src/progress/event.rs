//! What happens during a build, as one closed enum on one channel.
//!
//! Producers never wait for a consumer and never fail because of one; consumers (terminal, plain lines, JSON, the
//! test recorder) turn events into text. Times are taken by the producer.

use std::time::{Duration, Instant};

use rbuild_frontend::diagnostic::Diagnostic;

use crate::report::Report;

/// Number of a vertex, from 1, unique in one build, in order of first appearance to the consumer.
pub type VertexId = u32;

/// How a vertex ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Its result was in the cache.
    Cached,
    /// It was executed.
    Done,
    /// It failed; the text is the one-line reason.
    Error(String),
    /// It was stopped because something else failed or the user asked.
    Canceled,
}

/// Which output of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One thing that happened.
#[derive(Debug, Clone)]
pub enum BuildEvent {
    /// A vertex is known and will be shown (`[internal] load build definition`, `[build 2/4] RUN make`,
    /// `exporting to image`, `pushing …`).
    Queued {
        /// Its number.
        id: VertexId,
        /// Its plain-progress name.
        name: String,
    },
    /// Work on it began.
    Started {
        /// Which.
        id: VertexId,
        /// When.
        at: Instant,
    },
    /// Work on it ended.
    Finished {
        /// Which.
        id: VertexId,
        /// When.
        at: Instant,
        /// How.
        outcome: Outcome,
    },
    /// One sentence beside the vertex: why it ran or what it waits for.
    Note {
        /// Which.
        id: VertexId,
        /// The sentence.
        text: String,
    },
    /// Raw output bytes of a RUN step, any length, not split at lines, hostile (escape sequences, invalid UTF-8).
    Log {
        /// Which.
        id: VertexId,
        /// When.
        at: Instant,
        /// stdout or stderr.
        stream: Stream,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Bytes moved for one item (blob, context) of a vertex. Sent at most every 50 ms per item and once at its end.
    Transfer {
        /// Which vertex.
        id: VertexId,
        /// What, e.g. `sha256:…` or `transferring context`.
        item: String,
        /// So far.
        done_bytes: u64,
        /// Whole size, when known.
        total_bytes: Option<u64>,
        /// Time since the item began.
        elapsed: Duration,
        /// True for the item's last event.
        finished: bool,
    },
    /// A lint or other warning of the Dockerfile.
    Warning(Box<Diagnostic>),
    /// A build-wide remark (chosen isolation, network sharing, offline reuse of a tag), printed once.
    Remark(String),
    /// The build failed. Only machines are told here: people read the report after the display has ended.
    Failed(Box<Report>),
}
