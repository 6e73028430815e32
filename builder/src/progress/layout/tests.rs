use std::time::{Duration, Instant};

use super::*;
use crate::progress::Stream;

struct Scene {
    board: Board,
    start: Instant,
}

impl Scene {
    fn new() -> Self {
        Self { board: Board::default(), start: Instant::now() }
    }

    fn at(&self, millis: u64) -> Instant {
        self.start + Duration::from_millis(millis)
    }

    fn apply(&mut self, event: BuildEvent) {
        self.board.apply(event, self.start);
    }

    fn step(&mut self, id: VertexId, name: &str, millis: u64) {
        self.apply(BuildEvent::Queued { id, name: name.into() });
        self.apply(BuildEvent::Started { id, at: self.at(millis) });
    }

    fn log(&mut self, id: VertexId, text: &str) {
        let at = self.start;
        self.apply(BuildEvent::Log { id, at, stream: Stream::Stdout, bytes: text.into() });
    }

    fn live(&self, millis: u64, width: usize, height: usize) -> Vec<String> {
        self.board.live(self.at(millis), width, height).into_iter().map(|line| line.text).collect()
    }
}

fn busy() -> Scene {
    let mut scene = Scene::new();
    scene.apply(BuildEvent::Queued { id: 1, name: "[build 1/4] FROM docker.io/library/alpine".into() });
    scene.apply(BuildEvent::Finished { id: 1, at: scene.at(0), outcome: Outcome::Cached });
    scene.step(2, "[build 2/4] WORKDIR /src", 0);
    scene.apply(BuildEvent::Note { id: 2, text: "runs because its base changed".into() });
    scene.apply(BuildEvent::Finished { id: 2, at: scene.at(120), outcome: Outcome::Done });
    scene.step(3, "[build 3/4] RUN make", 300);
    for n in 0..9 {
        scene.log(3, &format!("\x1b[31mcc\x1b[0m -c file{n}.c\n"));
    }
    scene.step(4, "[web 1/2] FROM docker.io/library/nginx", 300);
    for (n, total) in [(1, Some(29_540_000)), (2, None)] {
        scene.apply(BuildEvent::Transfer {
            id: 4,
            item: format!("sha256:{}", n.to_string().repeat(64)),
            done_bytes: 3_150_000,
            total_bytes: total,
            elapsed: Duration::from_millis(500),
            finished: false,
        });
    }
    scene.apply(BuildEvent::Queued { id: 5, name: "[web 2/2] COPY --from=build /src /".into() });
    scene
}

#[test]
fn running_and_finished_steps_look_as_docker_s_users_know_them() {
    let mut scene = busy();
    let permanent: Vec<String> = scene.board.take_permanent(72).into_iter().map(|line| line.text).collect();
    let live = scene.live(3200, 72, 30);
    insta::assert_snapshot!(format!("{}\n{}", permanent.join("\n"), live.join("\n")));
    assert!(scene.board.take_permanent(72).is_empty());
}

#[test]
fn no_line_is_wider_and_no_view_higher_than_the_terminal() {
    let mut scene = busy();
    scene.step(6, "[宽 1/1] RUN 你好你好你好你好你好你好你好你好你好你好", 0);
    scene.log(6, "tabs\there and 你好你好你好你好你好你好你好你好你好\n");
    for width in 1..100 {
        for height in [1, 2, 3, 7, 40] {
            let live = scene.live(3200, width, height);
            assert!(live.len() <= height);
            for line in live {
                assert!(columns(&line) <= width, "{width}: {line}");
                assert!(!line.contains(['\u{1b}', '\n', '\t']));
            }
        }
    }
}

#[test]
fn every_running_step_keeps_its_line_when_room_is_short() {
    let live = busy().live(3200, 72, 3);
    assert!(live[1].contains("RUN make") && live[2].contains("nginx"), "{live:?}");
    let more = busy().live(3200, 72, 5);
    assert!(more.iter().any(|line| line.contains("file8.c")), "the newest line wins: {more:?}");
}

#[test]
fn what_never_ended_was_canceled_and_what_never_began_is_not_mentioned() {
    let mut scene = busy();
    scene.board.take_permanent(80);
    scene.board.close(scene.at(4000));
    let lines: Vec<String> = scene.board.take_permanent(80).into_iter().map(|line| line.text).collect();
    assert_eq!(lines.len(), 2);
    assert!(
        lines.iter().all(|line| line.starts_with(" => CANCELED [") && line.ends_with(" 3.7s")),
        "{lines:?}"
    );
    assert_eq!(scene.board.header(scene.at(4000), true, 80), "[+] Building 4.0s (4/5) FINISHED");
}

#[test]
fn a_progress_bar_without_line_end_is_seen_moving() {
    let mut scene = Scene::new();
    scene.step(1, "[1/1] RUN wget", 0);
    scene.log(1, "start\n10%\r20%\r");
    assert_eq!(scene.live(0, 80, 9)[2..], [" => => # start", " => => # 20%"]);
    scene.log(1, "30%");
    assert_eq!(scene.live(0, 80, 9)[2..], [" => => # start", " => => # 30%"]);
}
