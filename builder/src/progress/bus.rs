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
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    struct Gate {
        open: mpsc::Receiver<()>,
        seen: mpsc::Sender<String>,
    }

    impl Consumer for Gate {
        fn event(&mut self, event: BuildEvent) {
            if let BuildEvent::Log { .. } = event {
                let _ = self.open.recv();
            }
            let _ = self.seen.send(format!("{event:?}").chars().take(6).collect());
        }

        fn finish(&mut self, _now: Instant) {
            let _ = self.seen.send("end".to_owned());
        }
    }

    #[test]
    fn log_producers_wait_for_room_while_lifecycle_events_pass() {
        let (gate, opened) = mpsc::channel();
        let (seen, results) = mpsc::channel();
        let (events, handle) = open(move || Box::new(Gate { open: opened, seen }));
        let id = events.vertex("step");
        let (progress, steps) = mpsc::channel();
        let producer = std::thread::spawn({
            let events = events.clone();
            move || {
                for n in 0..3 {
                    events.log(id, Stream::Stdout, vec![b'x'; LOG_BYTES * 2 / 3]);
                    let _ = progress.send(n);
                }
            }
        });
        assert_eq!(steps.recv_timeout(Duration::from_secs(10)), Ok(0));
        assert!(steps.recv_timeout(Duration::from_millis(50)).is_err(), "the second chunk must wait");
        events.finished(id, Outcome::Done);
        for _ in 0..3 {
            gate.send(()).unwrap();
        }
        producer.join().unwrap();
        handle.finish();
        let seen: Vec<String> = results.try_iter().collect();
        assert_eq!(seen, ["Queued", "Log { ", "Finish", "Log { ", "Log { ", "end"]);
    }

    struct Panics;

    impl Consumer for Panics {
        fn event(&mut self, _event: BuildEvent) {
            panic!("consumer panics on purpose");
        }

        fn finish(&mut self, _now: Instant) {}
    }

    #[test]
    fn a_consumer_that_dies_stops_nobody() {
        let (events, handle) = open(|| Box::new(Panics));
        let id = events.vertex("step");
        for _ in 0..8 {
            events.log(id, Stream::Stderr, vec![b'x'; LOG_BYTES]);
        }
        handle.finish();
        events.started(id);
    }

    #[test]
    fn without_events_no_consumer_is_made() {
        let (_events, handle) = open(|| panic!("must not be made"));
        assert!(handle.shared.state().thread.is_none());
        handle.finish();
    }

    #[test]
    fn a_silent_channel_still_numbers_vertices() {
        let events = Events::silent();
        assert_eq!((events.vertex("a"), events.vertex("b")), (1, 2));
        events.log(1, Stream::Stdout, vec![0; LOG_BYTES * 3]);
    }

    #[test]
    fn everything_said_before_the_end_arrives_in_each_producer_s_order() {
        let (events, handle, recorder) = crate::progress::record();
        let threads: Vec<_> = (0..4)
            .map(|n| {
                let events = events.clone();
                std::thread::spawn(move || {
                    let id = events.vertex(format!("step {n}"));
                    events.started(id);
                    for line in 0..100 {
                        events.log(id, Stream::Stdout, format!("{line}\n").into_bytes());
                    }
                    events.finished(id, Outcome::Done);
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        handle.finish();
        events.remark("too late");
        let seen = recorder.take();
        assert_eq!(seen.len(), 4 * 103);
        let queued: Vec<VertexId> = seen
            .iter()
            .filter_map(|event| if let BuildEvent::Queued { id, .. } = event { Some(*id) } else { None })
            .collect();
        assert_eq!(queued, [1, 2, 3, 4], "numbers follow the order of appearance");
        for id in queued {
            let logs: Vec<u8> = seen
                .iter()
                .filter_map(|event| match event {
                    BuildEvent::Log { id: of, bytes, .. } if *of == id => Some(bytes.clone()),
                    _ => None,
                })
                .flatten()
                .collect();
            let expected: String = (0..100).map(|line| format!("{line}\n")).collect();
            assert_eq!(logs, expected.into_bytes());
        }
    }

    #[test]
    fn transfers_are_reported_rarely_and_completely() {
        let (events, handle, recorder) = crate::progress::record();
        let id = events.vertex("pull");
        let meter = events.transfer(id, "sha256:x", Some(100_000));
        for _ in 0..100_000 {
            meter.add(1);
        }
        meter.finish();
        handle.finish();
        let seen = recorder.take();
        // One per 50 ms at most; the loop takes far less than the five seconds a hundred events would need.
        assert!(seen.len() < 100, "{}", seen.len());
        let last = seen.last().unwrap();
        assert!(
            matches!(
                last,
                BuildEvent::Transfer { done_bytes: 100_000, total_bytes: Some(100_000), finished: true, .. }
            ),
            "{last:?}"
        );
    }
}
