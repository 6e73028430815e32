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
