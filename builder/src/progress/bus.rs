//! From many producers to one consumer.
//!
//! One queue keeps the order. Lifecycle events are never refused and never wait. Log chunks wait while more than
//! [`LOG_BYTES`] of them are under way, so a chatty RUN slows itself and nothing else. When the consumer is gone
//! nobody waits: events are dropped.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rbuild_frontend::diagnostic::Diagnostic;

use super::Consumer;
use super::event::{BuildEvent, Outcome, Stream, VertexId};
use crate::report::Report;

/// Log bytes under way before their producers wait.
const LOG_BYTES: usize = 1 << 20;

/// Least time between two transfer events of one item.
const TRANSFER_INTERVAL: Duration = Duration::from_millis(50);

type MakeConsumer = Box<dyn FnOnce() -> Box<dyn Consumer> + Send>;

/// Tells what happens. Cheap to clone; usable from tasks and threads. Nothing here fails.
#[derive(Clone)]
pub struct Events {
    shared: Arc<Shared>,
}

/// Ends the showing. Dropping it without [`Self::finish`] also waits for all to be drawn.
pub struct ConsumerHandle {
    shared: Arc<Shared>,
}

struct Shared {
    /// False when nobody listens: ids are still given.
    listening: bool,
    state: Mutex<State>,
    arrived: Condvar,
    taken: Condvar,
}

struct State {
    queue: VecDeque<BuildEvent>,
    log_bytes: usize,
    last_id: VertexId,
    closed: bool,
    consumer: Option<MakeConsumer>,
    thread: Option<JoinHandle<()>>,
}

/// A channel whose consumer is made on its own thread when the first event comes.
pub(crate) fn open<F>(consumer: F) -> (Events, ConsumerHandle)
where
    F: FnOnce() -> Box<dyn Consumer> + Send + 'static,
{
    pair(Some(Box::new(consumer)))
}

/// A channel nobody listens to.
pub(crate) fn silent() -> (Events, ConsumerHandle) {
    pair(None)
}

fn pair(consumer: Option<MakeConsumer>) -> (Events, ConsumerHandle) {
    let shared = Arc::new(Shared {
        listening: consumer.is_some(),
        state: Mutex::new(State {
            queue: VecDeque::new(),
            log_bytes: 0,
            last_id: 0,
            closed: false,
            consumer,
            thread: None,
        }),
        arrived: Condvar::new(),
        taken: Condvar::new(),
    });
    (Events { shared: shared.clone() }, ConsumerHandle { shared })
}

impl Shared {
    /// The state stays whole whatever panics while holding it: each change is one push or one field.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(self: &Arc<Self>, state: &mut State, event: BuildEvent) {
        if state.closed {
            return;
        }
        state.queue.push_back(event);
        if let Some(make) = state.consumer.take() {
            let shared = self.clone();
            let thread = std::thread::Builder::new().name("progress".to_owned());
            match thread.spawn(move || consume(&shared, make)) {
                Ok(thread) => state.thread = Some(thread),
                // No thread to be had: go on without showing.
                Err(_) => state.close(),
            }
        }
        self.arrived.notify_one();
    }
}

impl State {
    fn close(&mut self) {
        self.closed = true;
        self.queue.clear();
        self.log_bytes = 0;
    }
}

/// Releases waiting producers when the consumer ends, in whatever way.
struct CloseOnDrop<'a>(&'a Shared);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.state().close();
        self.0.taken.notify_all();
    }
}

fn consume(shared: &Shared, make: MakeConsumer) {
    let _close = CloseOnDrop(shared);
    let mut consumer = make();
    let mut batch = VecDeque::new();
    loop {
        let closed = {
            let mut state = shared.state();
            if state.queue.is_empty() && !state.closed {
                state = match consumer.tick_every() {
                    Some(wait) => {
                        let waited = shared.arrived.wait_timeout(state, wait);
                        waited.unwrap_or_else(PoisonError::into_inner).0
                    }
                    None => shared.arrived.wait(state).unwrap_or_else(PoisonError::into_inner),
                };
            }
            std::mem::swap(&mut batch, &mut state.queue);
            state.closed && batch.is_empty()
        };
        if closed {
            break;
        }
        for event in batch.drain(..) {
            let bytes = if let BuildEvent::Log { bytes, .. } = &event { bytes.len() } else { 0 };
            consumer.event(event);
            if bytes > 0 {
                let mut state = shared.state();
                state.log_bytes = state.log_bytes.saturating_sub(bytes);
                drop(state);
                shared.taken.notify_all();
            }
        }
        consumer.tick(Instant::now());
    }
    consumer.finish(Instant::now());
}

impl Events {
    /// A handle nobody listens to.
    pub fn silent() -> Self {
        silent().0
    }

    /// Sends an event made elsewhere. Log chunks wait for room, see [`Self::log`].
    pub fn send(&self, event: BuildEvent) {
        if !self.shared.listening {
            return;
        }
        let mut state = self.shared.state();
        if let BuildEvent::Log { bytes, .. } = &event {
            // A chunk larger than the room goes through once it is alone.
            while !state.closed && state.log_bytes > 0 && state.log_bytes + bytes.len() > LOG_BYTES {
                state = self.shared.taken.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if !state.closed {
                state.log_bytes += bytes.len();
            }
        }
        self.shared.push(&mut state, event);
    }

    /// Announces a vertex and gives it the next number, from 1.
    pub fn vertex(&self, name: impl Into<String>) -> VertexId {
        let mut state = self.shared.state();
        state.last_id += 1;
        let id = state.last_id;
        if self.shared.listening {
            self.shared.push(&mut state, BuildEvent::Queued { id, name: name.into() });
        }
        id
    }

    /// Work on a vertex begins now.
    pub fn started(&self, id: VertexId) {
        self.send(BuildEvent::Started { id, at: Instant::now() });
    }

    /// Work on a vertex ends now.
    pub fn finished(&self, id: VertexId, outcome: Outcome) {
        self.send(BuildEvent::Finished { id, at: Instant::now(), outcome });
    }

    /// Output of a step. Blocks the calling thread while 1 MiB of log is waiting to be shown.
    pub fn log(&self, id: VertexId, stream: Stream, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.send(BuildEvent::Log { id, at: Instant::now(), stream, bytes });
        }
    }

    /// Begins to report bytes moved for one item of a vertex.
    pub fn transfer(&self, id: VertexId, item: impl Into<String>, total_bytes: Option<u64>) -> TransferMeter {
        let now = Instant::now();
        let sent = Mutex::new(Sent { done_bytes: 0, next: now });
        TransferMeter { events: self.clone(), id, item: item.into(), total_bytes, began: now, sent }
    }

    /// Says one sentence beside a vertex.
    pub fn note(&self, id: VertexId, text: impl Into<String>) {
        self.send(BuildEvent::Note { id, text: text.into() });
    }

    /// Says one sentence about the whole build.
    pub fn remark(&self, text: impl Into<String>) {
        self.send(BuildEvent::Remark(text.into()));
    }

    /// Shows a warning about the Dockerfile.
    pub fn warning(&self, diagnostic: Diagnostic) {
        self.send(BuildEvent::Warning(Box::new(diagnostic)));
    }

    /// Says why the build failed. The last event.
    pub fn failed(&self, report: Report) {
        self.send(BuildEvent::Failed(Box::new(report)));
    }
}

impl ConsumerHandle {
    /// Waits until everything said so far is drawn and the terminal is left clean. Later events are dropped.
    pub fn finish(self) {
        drop(self);
    }
}

impl Drop for ConsumerHandle {
    fn drop(&mut self) {
        let thread = {
            let mut state = self.shared.state();
            state.closed = true;
            state.thread.take()
        };
        self.shared.arrived.notify_all();
        self.shared.taken.notify_all();
        if let Some(thread) = thread {
            // A consumer that panicked has nothing left to draw.
            let _ = thread.join();
        }
    }
}

/// Reports the bytes of one item, at most every 50 ms. Usable from several threads.
pub struct TransferMeter {
    events: Events,
    id: VertexId,
    item: String,
    total_bytes: Option<u64>,
    began: Instant,
    sent: Mutex<Sent>,
}

struct Sent {
    done_bytes: u64,
    next: Instant,
}

impl TransferMeter {
    /// Adds bytes moved.
    pub fn add(&self, bytes: u64) {
        self.update(|done| done.saturating_add(bytes));
    }

    /// Sets the bytes moved so far.
    pub fn set(&self, done_bytes: u64) {
        self.update(|_| done_bytes);
    }

    /// Reports the item complete.
    pub fn finish(self) {
        let done_bytes = self.sent.lock().unwrap_or_else(PoisonError::into_inner).done_bytes;
        self.send(done_bytes, true);
    }

    fn update(&self, change: impl FnOnce(u64) -> u64) {
        let now = Instant::now();
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent.done_bytes = change(sent.done_bytes);
        if now >= sent.next {
            sent.next = now + TRANSFER_INTERVAL;
            let done_bytes = sent.done_bytes;
            drop(sent);
            self.send(done_bytes, false);
        }
    }

    fn send(&self, done_bytes: u64, finished: bool) {
        self.events.send(BuildEvent::Transfer {
            id: self.id,
            item: self.item.clone(),
            done_bytes,
            total_bytes: self.total_bytes,
            elapsed: self.began.elapsed(),
            finished,
        });
    }
}

#[cfg(test)]
mod tests;
