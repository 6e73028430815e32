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
            Shape::Bool => "false",
            Shape::List(_) => "[]",
            Shape::Map(_) => "map[]",
        }),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Number(number) => {
            let _ = write!(out, "{number}");
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
