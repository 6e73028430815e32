//! The words of one transfer, and when a plain log repeats them.

use std::time::Duration;

use crate::report::human::{seconds, size_progress};

/// Time between two plain lines of one running item.
const INTERVAL: Duration = Duration::from_secs(5);
/// A shorter wait suffices when the item moved by a twentieth.
const SHORT_INTERVAL: Duration = Duration::from_secs(1);

/// Where an item stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Transfer {
    pub(crate) done_bytes: u64,
    pub(crate) total_bytes: Option<u64>,
    pub(crate) elapsed: Duration,
    pub(crate) finished: bool,
}

impl Transfer {
    /// `3.15MB / 29.54MB 0.4s done`, and while it runs `3.15MB / 29.54MB 0.4s 7.88MB/s, 3s left`; times under 50 ms are
    /// not worth a word.
    pub(crate) fn words(&self) -> String {
        let mut text = match self.total_bytes {
            Some(total) if total > 0 => {
                format!("{} / {}", size_progress(self.done_bytes), size_progress(total))
            }
            _ => size_progress(self.done_bytes),
        };
        if self.elapsed > Duration::from_millis(50) {
            text.push(' ');
            text.push_str(&seconds(self.elapsed));
        }
        if self.finished {
            text.push_str(" done");
        } else if let Some(pace) = self.pace() {
            text.push(' ');
            text.push_str(&pace);
        }
        text
    }

    /// `7.88MB/s, 3s left`; nothing while that is a guess.
    pub(crate) fn pace(&self) -> Option<String> {
        let speed = self.speed().filter(|speed| *speed > 0)?;
        let left = self.remaining().map(|left| format!(", {} left", clock(left)));
        Some(format!("{}/s{}", size_progress(speed), left.unwrap_or_default()))
    }

    /// Time until its end at the mean speed so far.
    fn remaining(&self) -> Option<Duration> {
        let left =
            self.total_bytes?.checked_sub(self.done_bytes).filter(|left| *left > 0 && !self.finished)?;
        Some(Duration::from_secs(left.div_ceil(self.speed()?.max(1))))
    }

    /// Whether a plain log says it again, given what it said last.
    pub(crate) fn worth_a_line(&self, last: Option<&Self>) -> bool {
        if self.finished {
            return true;
        }
        let (since, moved) = match last {
            Some(last) => {
                (self.elapsed.saturating_sub(last.elapsed), self.done_bytes.saturating_sub(last.done_bytes))
            }
            None => (self.elapsed, self.done_bytes),
        };
        since >= INTERVAL
            || since >= SHORT_INTERVAL && self.total_bytes.is_some_and(|total| moved >= total / 20)
    }

    /// Mean bytes per second so far.
    fn speed(&self) -> Option<u64> {
        let millis = u64::try_from(self.elapsed.as_millis()).ok().filter(|millis| *millis >= 100)?;
        Some(self.done_bytes.saturating_mul(1000) / millis)
    }
}

/// `42s`, `3m07s`, `2h05m`: an estimate needs no more.
fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transfer(done_bytes: u64, total_bytes: Option<u64>, millis: u64, finished: bool) -> Transfer {
        Transfer { done_bytes, total_bytes, elapsed: Duration::from_millis(millis), finished }
    }

    #[test]
    fn words_are_those_scripts_grep_for() {
        assert_eq!(transfer(3_150_000, Some(29_540_000), 400, true).words(), "3.15MB / 29.54MB 0.4s done");
        assert_eq!(transfer(2, None, 3, true).words(), "2B done");
        assert_eq!(transfer(0, Some(0), 0, true).words(), "0B done");
    }

    #[test]
    fn a_running_item_says_its_speed_and_what_is_left() {
        let words = |done, total, millis| transfer(done, total, millis, false).words();
        assert_eq!(words(3_000_000, Some(30_000_000), 1000), "3.00MB / 30.00MB 1.0s 3.00MB/s, 9s left");
        assert_eq!(words(1_000_000, Some(188_000_000), 1000), "1.00MB / 188.00MB 1.0s 1.00MB/s, 3m07s left");
        assert_eq!(words(1000, Some(7_501_000), 1000), "1.00kB / 7.50MB 1.0s 1.00kB/s, 2h05m left");
        assert_eq!(words(2000, None, 500), "2.00kB 0.5s 4.00kB/s");
        assert_eq!(words(0, Some(10), 5000), "0B / 10B 5.0s", "no speed, no guess");
        assert_eq!(words(10, Some(10), 500), "10B / 10B 0.5s 20B/s", "all is sent, the answer is not there");
    }

    #[test]
    fn a_slow_item_is_repeated_rarely_and_its_end_always() {
        let first = transfer(0, Some(1000), 10, false);
        assert!(!first.worth_a_line(None));
        assert!(transfer(60, Some(1000), 1500, false).worth_a_line(None));
        assert!(!transfer(40, Some(1000), 1500, false).worth_a_line(Some(&first)));
        assert!(transfer(40, Some(1000), 5100, false).worth_a_line(Some(&first)));
        assert!(transfer(1000, Some(1000), 11, true).worth_a_line(Some(&first)));
    }

    #[test]
    fn speed_needs_some_time_to_mean_anything() {
        assert_eq!(transfer(1000, None, 500, false).speed(), Some(2000));
        assert_eq!(transfer(1000, None, 20, false).speed(), None);
        assert!(transfer(u64::MAX, None, 500, false).speed().is_some());
    }
}
