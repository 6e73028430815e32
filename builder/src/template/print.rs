//! Values as Go's `%v` prints them.

use std::fmt::Write;

use serde_json::Value;

use super::Shape;
use super::eval::Val;

/// The value as `{{.}}` shows it.
pub(super) fn print(value: &Val<'_>) -> String {
    if value.data.is_null() && *value.shape == Shape::Any {
        return "<no value>".to_owned();
    }
    sprint(value)
}

/// The value as `print` and `printf "%v"` show it.
pub(super) fn sprint(value: &Val<'_>) -> String {
    let mut out = String::new();
    write(&mut out, &value.data, value.shape);
    out
}

fn write(out: &mut String, value: &Value, shape: &'static Shape) {
    match value {
        Value::Null => out.push_str(match shape {
            Shape::Any | Shape::Struct(_) => "<nil>",
            Shape::Text => "",
            Shape::Number => "0",
            Shape::Duration => "0s",
            Shape::Bool => "false",
            Shape::List(_) => "[]",
            Shape::Map(_) => "map[]",
        }),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Number(number) => {
            let ns = number.as_i64().filter(|_| *shape == Shape::Duration);
            match ns {
                Some(ns) => out.push_str(&duration(ns)),
                None => drop(write!(out, "{number}")),
            }
        }
        Value::String(text) => out.push_str(text),
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(' ');
                }
                write(out, item, shape.element());
            }
            out.push(']');
        }
        Value::Object(map) => match shape {
            Shape::Struct(fields) => {
                out.push('{');
                for (at, (name, shape)) in fields.iter().enumerate() {
                    if at > 0 {
                        out.push(' ');
                    }
                    write(out, map.get(*name).unwrap_or(&Value::Null), shape);
                }
                out.push('}');
            }
            _ => {
                let mut keys: Vec<_> = map.iter().collect();
                keys.sort_by_key(|(key, _)| *key);
                out.push_str("map[");
                for (at, (key, item)) in keys.into_iter().enumerate() {
                    if at > 0 {
                        out.push(' ');
                    }
                    let _ = write!(out, "{key}:");
                    write(out, item, shape.element());
                }
                out.push(']');
            }
        },
    }
}

/// Go's `time.Duration`: `1h0m5s`, `1.5ms`.
fn duration(ns: i64) -> String {
    let sign = if ns < 0 { "-" } else { "" };
    let ns = ns.unsigned_abs();
    let decimal = |whole: u64, unit: u64, digits: usize| {
        let text = format!("{whole}.{:0digits$}", ns % unit);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    let text = match ns {
        0 => "0s".to_owned(),
        1..1_000 => format!("{ns}ns"),
        1_000..1_000_000 => decimal(ns / 1_000, 1_000, 3) + "µs",
        1_000_000..1_000_000_000 => decimal(ns / 1_000_000, 1_000_000, 6) + "ms",
        _ => {
            let seconds = ns / 1_000_000_000;
            let rest = decimal(seconds % 60, 1_000_000_000, 9) + "s";
            match (seconds / 3600, seconds / 60 % 60) {
                (0, 0) => rest,
                (0, minutes) => format!("{minutes}m{rest}"),
                (hours, minutes) => format!("{hours}h{minutes}m{rest}"),
            }
        }
    };
    sign.to_owned() + &text
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn durations_print_as_go_prints_them() {
        for (ns, text) in [
            (0, "0s"),
            (17, "17ns"),
            (1_500, "1.5µs"),
            (20_000_000, "20ms"),
            (5_000_000_000, "5s"),
            (90_250_000_000, "1m30.25s"),
            (3_605_000_000_000, "1h0m5s"),
            (-1_000_000, "-1ms"),
            (i64::MIN, "-2562047h47m16.854775808s"),
        ] {
            assert_eq!(duration(ns), text);
        }
    }
}
