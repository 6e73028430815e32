//! Sizes and durations in Docker's words.

use std::time::Duration;

const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];

/// A size with 3 significant digits, as `docker images` prints it: `29.5MB`.
pub fn size(bytes: u64) -> String {
    significant(bytes, 3)
}

/// A size with 4 significant digits, as `docker system df` and `prune` print it: `1.235GB`.
pub fn size_precise(bytes: u64) -> String {
    significant(bytes, 4)
}

/// A size with 2 decimals, as progress lines print it: `29.54MB`, `2B`.
pub fn size_progress(bytes: u64) -> String {
    let (mut value, mut unit) = scale(bytes);
    if unit > 0 && value >= 999.995 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1000.0, unit + 1);
    }
    if unit == 0 { format!("{bytes}B") } else { format!("{value:.2}{}", UNITS[unit]) }
}

#[expect(clippy::cast_precision_loss, reason = "a few significant digits are printed")]
fn scale(bytes: u64) -> (f64, usize) {
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    (value, unit)
}

fn significant(bytes: u64, digits: usize) -> String {
    let (mut value, mut unit) = scale(bytes);
    let decimals = |value: f64| {
        let whole = if value >= 100.0 {
            3
        } else if value >= 10.0 {
            2
        } else {
            1
        };
        digits.saturating_sub(whole)
    };
    let mut text = format!("{value:.*}", decimals(value));
    // 999.9 with 3 digits rounds to 1000: the next unit says it better (Go prints `1e+03kB`).
    if text.starts_with("1000") && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1000.0, unit + 1);
        text = format!("{value:.*}", decimals(value));
    }
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    text + UNITS[unit]
}

/// Seconds with one decimal: `1.2s`.
pub fn seconds(duration: Duration) -> String {
    format!("{:.1}s", duration.as_secs_f64())
}

/// A rough duration, as `docker images` prints ages (without ` ago`): `About an hour`.
pub fn duration(duration: Duration) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let seconds = duration.as_secs();
    // go-units rounds hours to the nearest and truncates the rest.
    let hours = (seconds + HOUR / 2) / HOUR;
    let days = hours / 24;
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..MINUTE => format!("{seconds} seconds"),
        _ if seconds / MINUTE == 1 => "About a minute".to_owned(),
        _ if seconds < HOUR => format!("{} minutes", seconds / MINUTE),
        _ if hours == 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{days} days"),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", days / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", days / 30),
        _ => format!("{} years", seconds / DAY / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_digits_docker_prints() {
        let cases: [(u64, &str, &str, &str); 11] = [
            (0, "0B", "0B", "0B"),
            (2, "2B", "2B", "2B"),
            (999, "999B", "999B", "999B"),
            (1000, "1kB", "1kB", "1.00kB"),
            (1234, "1.23kB", "1.234kB", "1.23kB"),
            (12_345, "12.3kB", "12.35kB", "12.35kB"),
            (999_949, "1MB", "999.9kB", "999.95kB"),
            (999_999, "1MB", "1MB", "1.00MB"),
            (29_541_000, "29.5MB", "29.54MB", "29.54MB"),
            (1_234_567_890, "1.23GB", "1.235GB", "1.23GB"),
            (u64::MAX, "18.4EB", "18.45EB", "18.45EB"),
        ];
        for (bytes, three, four, progress) in cases {
            assert_eq!(
                (size(bytes).as_str(), size_precise(bytes).as_str(), size_progress(bytes).as_str()),
                (three, four, progress)
            );
        }
    }

    #[test]
    fn durations_have_docker_s_words() {
        let cases = [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (2 * 3600, "2 hours"),
            (47 * 3600, "47 hours"),
            (48 * 3600, "2 days"),
            (13 * 86400, "13 days"),
            (14 * 86400, "2 weeks"),
            (60 * 86400, "2 months"),
            (729 * 86400, "24 months"),
            (730 * 86400, "2 years"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(Duration::from_secs(seconds)), text, "{seconds}");
        }
    }
}
