use std::time::{Duration, Instant};

use rbuild_frontend::diagnostic::Severity;
use rbuild_frontend::span::{Lines, Span};

use super::*;
use crate::progress::Stream;

/// Events at milliseconds after the start.
struct Script {
    plain: Plain<Vec<u8>>,
    start: Instant,
}

impl Script {
    fn new() -> Self {
        let start = Instant::now();
        Self { plain: Plain::new(Vec::new(), start), start }
    }

    fn at(&self, millis: u64) -> Instant {
        self.start + Duration::from_millis(millis)
    }

    fn step(&mut self, id: VertexId, name: &str, millis: u64) {
        self.plain.event(BuildEvent::Queued { id, name: name.to_owned() });
        self.plain.event(BuildEvent::Started { id, at: self.at(millis) });
    }

    fn log(&mut self, id: VertexId, millis: u64, text: &[u8]) {
        let at = self.at(millis);
        self.plain.event(BuildEvent::Log { id, at, stream: Stream::Stdout, bytes: text.to_vec() });
    }

    fn end(&mut self, id: VertexId, millis: u64, outcome: Outcome) {
        self.plain.event(BuildEvent::Finished { id, at: self.at(millis), outcome });
    }

    fn text(mut self) -> String {
        let now = self.plain.now;
        self.plain.finish(now);
        String::from_utf8(self.plain.output.to.unwrap()).unwrap()
    }
}

#[test]
fn a_build_reads_as_numbered_paragraphs() {
    let mut script = Script::new();
    script.plain.event(BuildEvent::Remark("building with rbuild, user namespace".to_owned()));
    script.step(1, "[internal] load build definition from Dockerfile", 0);
    script.plain.event(BuildEvent::Transfer {
        id: 1,
        item: "transferring dockerfile:".to_owned(),
        done_bytes: 150,
        total_bytes: None,
        elapsed: Duration::from_millis(1),
        finished: true,
    });
    script.plain.event(BuildEvent::Warning(Box::new(Diagnostic {
        rule: Some("StageNameCasing"),
        severity: Severity::Warning,
        message: "Stage name 'Build' should be lowercase".to_owned(),
        span: Span::default(),
        lines: Lines { first: 3, last: 3 },
        related: Vec::new(),
        help: None,
    })));
    script.end(1, 4, Outcome::Done);
    script
        .plain
        .event(BuildEvent::Queued { id: 2, name: "[build 1/4] FROM docker.io/library/alpine".to_owned() });
    script.plain.event(BuildEvent::Started { id: 2, at: script.at(5) });
    script.plain.event(BuildEvent::Transfer {
        id: 2,
        item: "sha256:0123".to_owned(),
        done_bytes: 29_540_000,
        total_bytes: Some(29_540_000),
        elapsed: Duration::from_millis(400),
        finished: true,
    });
    script.end(2, 450, Outcome::Done);
    script.plain.event(BuildEvent::Queued { id: 3, name: "[build 2/4] WORKDIR /src".to_owned() });
    script.end(3, 460, Outcome::Cached);
    script.step(4, "[build 3/4] RUN make", 500);
    script.plain.event(BuildEvent::Note { id: 4, text: "runs because `main.c` changed".to_owned() });
    script.log(4, 713, b"first line\nsec");
    script.log(4, 800, b"ond\r\nhalf");
    let failure = "process \"/bin/sh -c make\" did not complete successfully: exit code: 2";
    script.end(4, 1700, Outcome::Error(failure.to_owned()));
    script.step(5, "[web 1/2] RUN true", 1700);
    script.end(5, 1701, Outcome::Canceled);
    insta::assert_snapshot!(script.text());
}

#[test]
fn parallel_steps_take_turns_instead_of_mixing() {
    let mut script = Script::new();
    script.step(1, "[a 1/1] RUN a", 0);
    script.step(2, "[b 1/1] RUN b", 0);
    for n in 0..4 {
        script.log(1, n * 100, format!("a{n}\n").as_bytes());
        script.log(2, n * 100 + 50, format!("b{n}\n").as_bytes());
    }
    // `a` is silent for half a second, so `b` gets the floor.
    script.log(2, 900, b"b4\n");
    script.log(1, 950, b"a4\n");
    script.end(2, 1000, Outcome::Done);
    script.end(1, 1100, Outcome::Done);
    insta::assert_snapshot!(script.text());
}

#[test]
fn a_step_that_never_stops_talking_does_not_starve_the_others() {
    let mut script = Script::new();
    script.step(1, "[a 1/1] RUN yes", 0);
    script.step(2, "[b 1/1] RUN b", 0);
    script.log(2, 10, b"b\n");
    for n in 1..70 {
        script.log(1, n * 100, b"y\n");
    }
    let text = script.text();
    let (before, after) = text.split_once("#1 ...\n\n#2 [b 1/1] RUN b\n#2 0.010 b\n").unwrap();
    assert!(before.lines().count() > 40 && after.lines().count() > 10, "{text}");
}

#[test]
fn a_failure_speaks_at_once() {
    let mut script = Script::new();
    script.step(1, "[a 1/1] RUN a", 0);
    script.log(1, 1, b"busy\n");
    script.step(2, "[b 1/1] RUN b", 1);
    script.end(2, 2, Outcome::Error("exit code: 1".to_owned()));
    script.log(1, 3, b"still busy\n");
    let text = script.text();
    let failure = text.find("#2 ERROR: exit code: 1").unwrap();
    assert!(failure < text.find("still busy").unwrap(), "{text}");
}

#[test]
fn hostile_names_reasons_and_output_stay_on_their_lines() {
    let mut script = Script::new();
    script.step(1, "[a 1/1] RUN \u{1b}[2J\n#9 DONE", 0);
    script.log(1, 1, b"\x1b]0;owned\x07ok \xff\n");
    script.end(1, 2, Outcome::Error("a\n#9 DONE\u{1b}[31m".to_owned()));
    let text = "#1 [a 1/1] RUN \\x0a#9 DONE\n#1 0.001 ok \u{fffd}\n#1 ERROR: a\n#1       #9 DONE\n\n";
    assert_eq!(script.text(), text);
}

#[test]
fn events_of_unknown_or_finished_vertices_change_nothing() {
    let mut script = Script::new();
    script.log(7, 0, b"who?\n");
    script.step(1, "x", 0);
    script.end(1, 0, Outcome::Done);
    script.log(1, 1, b"late\n");
    assert_eq!(script.text(), "#1 x\n#1 DONE 0.0s\n\n");
}

/// A flood behind somebody who waits longer and says little.
#[test]
fn a_flood_waits_for_nobody_who_is_quiet() {
    let mut script = Script::new();
    for id in 1..=3 {
        script.step(id, "x", 0);
    }
    script.log(1, 1, b"speaks\n");
    script.log(2, 2, b"quiet\n");
    for _ in 0..40 {
        script.log(3, 3, &[b'a'; 64 << 10]);
        assert!(script.waits() <= WAITING_BYTES);
    }
    assert!(!script.plain.vertices[&2].waiting.is_empty());
}

impl Script {
    /// Bytes that wait, counted.
    fn waits(&self) -> usize {
        self.plain.vertices.values().map(|vertex| vertex.waiting.text.len()).sum()
    }

    /// Whether the queue is what a look at every vertex finds, and bounded.
    fn check_queue(&self) {
        let vertices = &self.plain.vertices;
        let mut waiting: Vec<_> = vertices.iter().filter(|(_, vertex)| !vertex.waiting.is_empty()).collect();
        let queue = &self.plain.queue;
        waiting.sort_by_key(|(id, vertex)| (!vertex.failed, vertex.waiting.since, **id));
        assert!(waiting.iter().map(|(id, _)| **id).eq(queue.by_turn.iter().map(|(_, _, id)| *id)));
        waiting.sort_by_key(|(id, vertex)| (vertex.waiting.text.len(), **id));
        assert!(waiting.iter().map(|(id, _)| **id).eq(queue.by_bytes.iter().map(|(_, id)| *id)));
        assert_eq!(queue.bytes, self.waits());
        assert!(queue.bytes <= self.plain.waiting_bytes_max);
        assert!(waiting.iter().all(|(id, _)| self.plain.floor.is_some_and(|(speaker, _)| speaker != **id)));
    }
}

#[test]
fn whoever_speaks_when_every_line_is_printed_once_in_its_place_and_little_waits() {
    const STEPS: usize = 12;
    for seed in 1..=40_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let mut script = Script::new();
        script.plain.waiting_bytes_max = 600;
        let (mut now, mut model) = (0, vec![Vec::new(); STEPS]);
        for id in 1..=STEPS as VertexId {
            script.step(id, "x", 0);
        }
        for number in 0..300 {
            now += [0, 1, 40, 700, 6000][random(5) as usize] * random(2);
            let id = 1 + random(STEPS as u64) as VertexId;
            let lines = &mut model[id as usize - 1];
            let is_over = |lines: &Vec<String>| lines.last().is_some_and(|line| !line.contains("line"));
            match random(40) {
                0 => {
                    script.end(id, now, Outcome::Cached);
                    if !is_over(lines) {
                        lines.push(format!("#{id} CACHED"));
                    }
                }
                1 => {
                    script.end(id, now, Outcome::Error("no".to_owned()));
                    if !is_over(lines) {
                        lines.push(format!("#{id} ERROR: no"));
                    }
                }
                2 => {
                    script.plain.tick(script.at(now));
                }
                _ => {
                    let text = format!("line {number} {}", "x".repeat(random(200) as usize));
                    script.plain.event(BuildEvent::Note { id, text: text.clone() });
                    if !is_over(lines) {
                        lines.push(format!("#{id} {text}"));
                    }
                }
            }
            script.check_queue();
        }
        let text = script.text();
        for (at, lines) in model.iter().enumerate() {
            let number = format!("#{} ", at + 1);
            let is_said = |line: &&str| line.starts_with(&number) && !line.ends_with(" ...");
            let found: Vec<_> =
                text.lines().filter(is_said).filter(|line| *line != format!("{number}x")).collect();
            assert_eq!(found, *lines, "seed {seed}");
        }
    }
}

#[test]
fn empty_lines_take_room_as_well() {
    let mut script = Script::new();
    script.step(1, "one", 0);
    script.step(2, "two", 0);
    script.log(1, 1, b"speaks\n");
    script.log(2, 1, &vec![b'\n'; 1000]);
    assert!(!script.plain.vertices[&2].waiting.is_empty());
    for _ in 0..WAITING_BYTES / 1000 {
        script.log(2, 1, &vec![b'\n'; 1000]);
    }
    let waiting = &script.plain.vertices[&2].waiting;
    assert!(waiting.is_empty() && waiting.text.capacity() <= 2 * WAITING_BYTES);
}
