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
    let mut total: f64 = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = &rest[..letters];
        rest = &rest[letters..];
        let scale = match unit {
            "" => return Err(format!("time: missing unit in duration {text:?}")),
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return Err(format!("time: unknown unit {unit:?} in duration {text:?}")),
        };
        total += number * scale;
    }
    if !total.is_finite() || total >= i64::MAX as f64 {
        return Err(invalid());
    }
    let nanos = total.round() as i64;
    Ok(if negative { -nanos } else { nanos })
}
