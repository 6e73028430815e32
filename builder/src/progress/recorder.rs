//! A consumer that remembers, for tests.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::Consumer;
use super::bus::{self, ConsumerHandle, Events};
use super::event::BuildEvent;

/// What was said, in order. Complete after [`ConsumerHandle::finish`].
#[derive(Debug, Clone, Default)]
pub struct Recorder {
    events: Arc<Mutex<Vec<BuildEvent>>>,
}

impl Recorder {
    /// The events so far; the recorder is empty afterwards.
    pub fn take(&self) -> Vec<BuildEvent> {
        std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Consumer for Recorder {
    fn event(&mut self, event: BuildEvent) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    fn finish(&mut self, _now: Instant) {}
}

/// Opens a channel whose events are remembered instead of shown.
pub fn record() -> (Events, ConsumerHandle, Recorder) {
    let recorder = Recorder::default();
    let consumer = recorder.clone();
    let (events, handle) = bus::open(move || Box::new(consumer));
    (events, handle, recorder)
}
