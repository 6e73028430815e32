//! Durations as HEALTHCHECK takes them.

use rbuild_oci::parse_duration;

/// Smallest duration other than zero that Docker accepts: one millisecond.
const NANOS_MIN: i64 = 1_000_000;

/// Parses the value of `--name` to nanoseconds. Zero means «not set».
pub(super) fn parse(name: &str, text: &str) -> Result<i64, String> {
    let nanos = parse_duration(text)?;
    match nanos {
        0 => Ok(0),
        n if n < 0 => Err(format!("interval {name:?} cannot be negative")),
        n if n < NANOS_MIN => Err(format!("interval {name:?} cannot be less than 1ms")),
        n => Ok(n),
    }
}
