//! Durations as Go writes them.

/// Parses `1m30s`, `1.5h` or `-500ms` to nanoseconds. The error has the words of Go's `time.ParseDuration`.
///
/// # Errors
///
/// When the text is no duration, or one that does not fit.
pub fn parse_duration(text: &str) -> Result<i64, String> {
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
            assert_eq!(parse_duration(text), Ok(nanos), "{text}");
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
            assert!(parse_duration(text).is_err_and(|error| error.contains(words)), "{text}");
        }
    }
}
