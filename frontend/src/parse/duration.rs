//! Go durations (`1m30s`, `1.5h`) as HEALTHCHECK takes them.

/// Smallest duration other than zero that Docker accepts: one millisecond.
const NANOS_MIN: i64 = 1_000_000;

/// Parses the value of `--name` to nanoseconds. Zero means «not set».
pub(super) fn parse(name: &str, text: &str) -> Result<i64, String> {
    let nanos = go_duration(text)?;
    match nanos {
        0 => Ok(0),
        n if n < 0 => Err(format!("interval {name:?} cannot be negative")),
        n if n < NANOS_MIN => Err(format!("interval {name:?} cannot be less than 1ms")),
        n => Ok(n),
    }
}

fn go_duration(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let letters = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        rest = after;
        let scale: u64 = match unit {
            "" => return Err(format!("time: missing unit in duration {text:?}")),
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(format!("time: unknown unit {unit:?} in duration {text:?}")),
        };
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
        // More digits than this say less than a nanosecond.
        let fraction = &fraction[..fraction.len().min(18)];
        let part: u64 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| invalid())? };
        let part = (part as f64 * (scale as f64 / 10_f64.powi(fraction.len() as i32))) as u64;
        let nanos = whole.checked_mul(scale).and_then(|nanos| nanos.checked_add(part));
        total = nanos.and_then(|nanos| total.checked_add(nanos)).ok_or_else(invalid)?;
    }
    let nanos = i64::try_from(total).map_err(|_| invalid())?;
    Ok(if negative { -nanos } else { nanos })
}

/// The digits that a text begins with, and what follows them.
fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_go_s_to_the_nanosecond() {
        for (text, nanos) in [
            ("1m30s", 90_000_000_000),
            ("1.5h", 5_400_000_000_000),
            (".5s", 500_000_000),
            ("5.s", 5_000_000_000),
            ("3757236311303708021ns", 3_757_236_311_303_708_021),
            ("1h1ns", 3_600_000_000_001),
            ("0", 0),
            ("0.000000001s", 1),
            ("-1s", -1_000_000_000),
        ] {
            assert_eq!(go_duration(text), Ok(nanos), "{text}");
        }
        for (text, words) in [
            ("", "invalid duration"),
            (".s", "invalid duration"),
            ("5", "missing unit"),
            ("1.5.5s", "missing unit"),
            ("5x", "unknown unit \"x\""),
            ("9223372036854775808ns", "invalid duration"),
            ("99999999999999999999h", "invalid duration"),
        ] {
            assert!(go_duration(text).is_err_and(|error| error.contains(words)), "{text}");
        }
    }
}
