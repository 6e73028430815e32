//! YAML as far as CDI documents use it: one document of mappings, sequences and scalars. No anchors, so no expansion.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

const DEPTH_MAX: usize = 32;

/// The same as JSON. The error has the line.
pub(super) fn to_json(text: &str) -> Result<Value, String> {
    let mut events = Events(Parser::new_from_str(text));
    let mut value = Value::Null;
    let mut documents = 0;
    loop {
        match events.next()? {
            Event::StreamEnd => return Ok(value),
            Event::DocumentStart(_) if documents == 1 => return Err("more than one document".to_owned()),
            Event::DocumentStart(_) => {
                documents = 1;
                let first = events.next()?;
                value = events.value(first, 0)?;
            }
            _ => {}
        }
    }
}

struct Events<'a>(Parser<'a, saphyr_parser::StrInput<'a>>);

impl<'a> Events<'a> {
    fn next(&mut self) -> Result<Event<'a>, String> {
        match self.0.next_event() {
            Some(Ok((event, _))) => Ok(event),
            Some(Err(error)) => Err(format!("line {}: {}", error.marker().line(), error.info())),
            None => Ok(Event::StreamEnd),
        }
    }

    fn value(&mut self, event: Event<'a>, depth: usize) -> Result<Value, String> {
        if depth > DEPTH_MAX {
            return Err(format!("more than {DEPTH_MAX} levels"));
        }
        match event {
            Event::Scalar(text, ScalarStyle::Plain, _, None) => Ok(plain(&text)),
            Event::Scalar(text, _, _, _) => Ok(Value::String(text.into_owned())),
            Event::SequenceStart(..) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        Event::SequenceEnd => return Ok(Value::Array(items)),
                        item => items.push(self.value(item, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(..) => {
                let mut members = Map::new();
                loop {
                    let key = match self.next()? {
                        Event::MappingEnd => return Ok(Value::Object(members)),
                        Event::Scalar(key, ..) => key.into_owned(),
                        _ => return Err("a key that is no text".to_owned()),
                    };
                    let next = self.next()?;
                    let value = self.value(next, depth + 1)?;
                    if members.contains_key(&key) {
                        return Err(format!("key `{key}` twice"));
                    }
                    members.insert(key, value);
                }
            }
            Event::Alias(_) => Err("anchors and aliases are not supported".to_owned()),
            _ => Err("a value is missing".to_owned()),
        }
    }
}

/// What an unquoted scalar is. Whole numbers may be octal or hexadecimal, as Go's reader takes them; other numbers are
/// text, as nothing in a document is one.
fn plain(text: &str) -> Value {
    let number = |digits: &str, radix| u64::from_str_radix(digits, radix).ok();
    let parsed = match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ if text.starts_with('+') => None,
        _ => match (text.strip_prefix("0x"), text.strip_prefix("0o"), text.strip_prefix('0')) {
            (Some(digits), ..) => number(digits, 16),
            (_, Some(digits), _) => number(digits, 8),
            (.., Some(digits)) if !digits.is_empty() => number(digits, 8),
            _ => number(text, 10),
        },
    };
    match (parsed, text.parse::<i64>()) {
        (Some(number), _) => Value::from(number),
        (None, Ok(number)) if text.starts_with('-') => Value::from(number),
        _ => Value::String(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn documents_become_json() {
        let text = "---\n# c\nkind: a/b\nlist:\n- x: 0666\n  y: \"0666\"\n- [1, -1, 0x10, 1.5, ~]\nflag: true\ntext: |\n  two\n  lines\n";
        let wanted = json!({
            "kind": "a/b",
            "list": [{"x": 0o666, "y": "0666"}, [1, -1, 16, "1.5", null]],
            "flag": true,
            "text": "two\nlines\n",
        });
        assert_eq!(to_json(text), Ok(wanted));
        assert_eq!(to_json(""), Ok(Value::Null));
        assert_eq!(to_json("{\"a\": [1]}"), Ok(json!({"a": [1]})));
    }

    #[test]
    fn what_expands_or_does_not_end_is_refused() {
        for (text, says) in [
            ("a: &x [1]\nb: *x\n", "anchors and aliases are not supported"),
            ("a: 1\na: 2\n", "key `a` twice"),
            ("a: 1\n---\nb: 2\n", "more than one document"),
            ("[a]: 1\n", "a key that is no text"),
            (&"[".repeat(100), "more than 32 levels"),
            ("a: [1\n", "line"),
            ("a: \"\n", "line"),
        ] {
            let error = to_json(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
