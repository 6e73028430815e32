//! Parsing and lowering of long Dockerfiles: 10,000 lines with 200 stages should take less than 50 ms, and the time
//! should grow with the lines.
//!
//! `cargo bench -p rbuild-frontend --profile bench-fast`. Prints the best of several runs for each length, in CPU time
//! of the thread, which others on the machine disturb little; nothing is asserted: a machine has its moods.

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Duration;

use rbuild_frontend::lower::{LowerOptions, Lowering, Progress};
use rbuild_frontend::parse;
use rbuild_oci::Platform;

const LINES: [usize; 6] = [200, 500, 1_000, 2_000, 5_000, 10_000];
const LINES_PER_STAGE: usize = 50;
const RUNS: usize = 7;

/// Stages that build on one another and copy from one another, with a realistic mix of instructions.
fn dockerfile(lines: usize) -> String {
    let mut text = String::from("ARG VERSION=1.2.3\n");
    let stages = lines / LINES_PER_STAGE;
    for stage in 0..stages {
        let base = match stage {
            0 => "scratch".to_owned(),
            _ => format!("stage{}", stage / 2 + 1),
        };
        writeln!(text, "FROM {base} AS stage{}", stage + 1).expect("writes");
        for line in 1..LINES_PER_STAGE {
            match line % 10 {
                0 => writeln!(text, "# what comes next, line {line}"),
                1 => writeln!(text, "ARG VERSION"),
                2 => writeln!(text, "ENV VAR{line}=\"${{VERSION:-none}} and $PATH\" OTHER{line}=x"),
                3 => writeln!(text, "RUN apt-get update && apt-get install -y package{line} \\"),
                4 => writeln!(text, "    && rm -rf /var/lib/apt/lists/*"),
                5 => writeln!(text, "COPY --chown=1:2 src/a{line} src/b /dest{line}/"),
                6 if stage > 0 => writeln!(text, "COPY --from=stage{stage} /dest5 /from{line}"),
                6 | 7 => writeln!(text, "LABEL key{line}=\"value $VERSION\" other=1"),
                8 => writeln!(text, "WORKDIR /srv/${{VERSION}}/{line}"),
                _ => writeln!(text, "EXPOSE 80 443/tcp"),
            }
            .expect("writes");
        }
    }
    text
}

/// What this thread has spent on a processor.
fn cpu_time() -> Duration {
    let text =
        std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux with scheduler statistics");
    Duration::from_nanos(text.split(' ').next().and_then(|number| number.parse().ok()).expect("a number"))
}

/// The best time of one call. The kernel counts in ticks of some milliseconds, so `times` calls are measured together.
fn best(times: u32, mut work: impl FnMut()) -> Duration {
    let measure = |_| {
        let start = cpu_time();
        (0..times).for_each(|_| work());
        (cpu_time() - start) / times
    };
    (0..RUNS).map(measure).min().unwrap_or_default()
}

fn main() {
    println!("{:>8} {:>8} {:>12} {:>12} {:>14}", "lines", "stages", "parse", "and lower", "ns per line");
    for lines in LINES {
        let text = dockerfile(lines);
        let times = u32::try_from(20_000 / lines).unwrap_or(1);
        let parsing = best(times, || drop(black_box(parse(text.as_bytes()))));
        let whole = best(times, || {
            let parsed = parse(text.as_bytes());
            let mut lowering =
                Lowering::new(&parsed, LowerOptions::new(Platform::new("linux", "amd64", None)));
            let done = lowering.step();
            assert!(matches!(black_box(done), Progress::Done(_)), "{:?}", lowering.diagnostics().first());
        });
        let per_line = whole.as_nanos() / text.lines().count() as u128;
        println!("{lines:>8} {:>8} {parsing:>12.1?} {whole:>12.1?} {per_line:>14}", lines / LINES_PER_STAGE);
    }
}
