//! What one run of the binary did, and what its plain progress says.

use std::fmt;
use std::time::Duration;

/// A finished run of `rbuild`.
#[derive(Debug, Clone)]
pub struct Run {
    /// The command line, for messages.
    pub command: String,
    /// Exit status, or `None` when a signal ended it.
    pub code: Option<i32>,
    /// Everything on standard output.
    pub stdout: String,
    /// Everything on standard error.
    pub stderr: String,
    /// Start to exit.
    pub wall: Duration,
}

/// How a step of the progress ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Taken from the cache.
    Cached,
    /// Executed.
    Done,
    /// Failed.
    Error,
    /// Stopped, or never ended.
    Unfinished,
}

/// One numbered step of the plain progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// `[builder 2/4] RUN make`.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
}

impl Run {
    /// Itself, when it exited with 0.
    ///
    /// # Panics
    ///
    /// With the whole output, when it did not.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.exits(0)
    }

    /// Itself, when it exited with `code`.
    ///
    /// # Panics
    ///
    /// With the whole output, when it did not.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "unexpected exit status\n{self}");
        self
    }

    /// Itself, when standard error contains every text.
    ///
    /// # Panics
    ///
    /// With the whole output, when a text is missing.
    #[track_caller]
    pub fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.stderr.contains(text), "stderr does not say `{text}`\n{self}");
        }
        self
    }

    /// The Dockerfile's steps (`[stage 2/4] …`, not `[internal] …`), in the order they were first named.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        let mut numbers: Vec<&str> = Vec::new();
        let mut steps: Vec<Step> = Vec::new();
        for line in self.stderr.lines() {
            let Some((number, text)) = line.strip_prefix('#').and_then(|rest| rest.split_once(' ')) else {
                continue;
            };
            let known = numbers.iter().position(|known| *known == number);
            match (known, outcome(text)) {
                (Some(index), Some(outcome)) => steps[index].outcome = outcome,
                (None, None) if is_step_name(text) => {
                    numbers.push(number);
                    steps.push(Step { name: text.to_owned(), outcome: Outcome::Unfinished });
                }
                _ => {}
            }
        }
        steps
    }

    /// Names of the steps that were executed. A `FROM` is no work: its pull is a transfer, not an execution.
    #[must_use]
    pub fn executed(&self) -> Vec<String> {
        self.steps()
            .into_iter()
            .filter(|step| step.outcome != Outcome::Cached && !step.name.contains("] FROM "))
            .map(|step| step.name)
            .collect()
    }

    /// Fails unless nothing was executed and something was taken from the cache.
    ///
    /// # Panics
    ///
    /// With the whole output, when a step was executed, or there was none.
    #[track_caller]
    pub fn assert_all_cached(&self) {
        assert!(!self.steps().is_empty(), "the progress shows no steps\n{self}");
        assert_eq!(self.executed(), Vec::<String>::new(), "steps were executed\n{self}");
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, code, stdout, stderr, wall } = self;
        writeln!(f, "$ {command}\nexit {code:?} after {:.2} s", wall.as_secs_f64())?;
        writeln!(f, "---- stdout\n{stdout}\n---- stderr\n{stderr}\n----")
    }
}

fn outcome(text: &str) -> Option<Outcome> {
    let word = text.split([' ', ':']).next().unwrap_or_default();
    match word {
        "CACHED" => Some(Outcome::Cached),
        "DONE" => Some(Outcome::Done),
        "ERROR" => Some(Outcome::Error),
        "CANCELED" => Some(Outcome::Unfinished),
        _ => None,
    }
}

/// `[2/4] RUN x` and `[builder 2/4] RUN x` are steps of the Dockerfile, `[internal] …` and `exporting …` are not.
fn is_step_name(text: &str) -> bool {
    let Some((label, _)) = text.strip_prefix('[').and_then(|rest| rest.split_once("] ")) else {
        return false;
    };
    let counts = label.rsplit(' ').next().unwrap_or_default();
    counts
        .split_once('/')
        .is_some_and(|(one, all)| [one, all].iter().all(|n| n.trim().parse::<u32>().is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stderr: &str) -> Run {
        let stderr = stderr.to_owned();
        Run { command: String::new(), code: Some(0), stdout: String::new(), stderr, wall: Duration::ZERO }
    }

    #[test]
    fn steps_are_read_from_plain_progress() {
        let steps = run("#1 [internal] load build definition from Dockerfile\n#1 DONE 0.0s\n\n\
                         #2 [1/3] FROM docker.io/library/busybox\n#2 DONE 0.1s\n\n\
                         #3 [2/3] COPY a b\n#3 CACHED\n\n\
                         #4 [web 3/3] RUN make\n#4 0.213 DONE is not the end\n#4 ...\n\n\
                         #4 [web 3/3] RUN make\n#4 DONE 1.2s\n#5 exporting to image\n#5 DONE 0.0s\n")
        .steps();
        let expected = [
            ("[1/3] FROM docker.io/library/busybox", Outcome::Done),
            ("[2/3] COPY a b", Outcome::Cached),
            ("[web 3/3] RUN make", Outcome::Done),
        ];
        assert_eq!(steps, expected.map(|(name, outcome)| Step { name: name.to_owned(), outcome }));
    }

    #[test]
    fn a_pull_is_not_an_execution_but_an_error_is() {
        let run = run("#1 [1/2] FROM x\n#1 DONE 1.0s\n#2 [2/2] RUN false\n#2 ERROR: process \"x\"\n");
        assert_eq!(run.executed(), ["[2/2] RUN false"]);
    }
}
