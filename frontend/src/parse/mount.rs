//! `RUN --mount`: the grammar of its fields. Which keys a type takes and what values mean is for lowering.

use crate::ast::Spanned;
use crate::suggest;

use super::Issue;

const TYPES: [&str; 5] = ["bind", "cache", "tmpfs", "secret", "ssh"];
const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "src",
    "target",
    "dst",
    "destination",
    "readonly",
    "ro",
    "readwrite",
    "rw",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "env",
];
/// Keys that may stand alone.
const SWITCHES: [&str; 5] = ["readonly", "ro", "readwrite", "rw", "required"];

/// One option of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    /// Lower-case.
    pub(crate) key: String,
    /// What stands after the equals sign.
    pub(crate) value: Option<String>,
}

/// The options of a mount, in order.
pub(crate) fn fields(text: &str) -> impl Iterator<Item = Field> {
    split(text).into_iter().map(|field| match field.split_once('=') {
        Some((key, value)) => Field { key: key.to_lowercase(), value: Some(value.to_owned()) },
        None => Field { key: field.to_lowercase(), value: None },
    })
}

/// The last value of an option, which any of `names` spells; a bare option has an empty one.
pub(crate) fn option(text: &str, names: &[&str]) -> Option<String> {
    let found = fields(text).filter(|field| names.contains(&field.key.as_str())).last();
    found.map(|field| field.value.unwrap_or_default())
}

/// What to say about a type that there is not.
pub(crate) fn unsupported_type(kind: &str) -> String {
    let hint = suggest::hint(kind, TYPES);
    format!("unsupported mount type {kind:?}{hint}")
}

/// Checks field names, the type and `from`.
pub(super) fn check(mount: &Spanned<String>) -> Result<(), Issue> {
    let wrong = |message: String| Err(Issue::new(message, mount.span));
    for field in split(&mount.value) {
        let (name, value) = match field.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (field.as_str(), None),
        };
        let key = name.to_lowercase();
        match value {
            None if SWITCHES.contains(&key.as_str()) => {}
            None => return wrong(format!("invalid field '{field}' must be a key=value pair")),
            Some(_) if !KEYS.contains(&key.as_str()) => {
                let hint = suggest::hint(&key, KEYS);
                return wrong(format!("unexpected key '{key}' in '{field}'{hint}"));
            }
            Some(kind)
                if key == "type" && !kind.contains('$') && !TYPES.contains(&kind.to_lowercase().as_str()) =>
            {
                return wrong(unsupported_type(kind));
            }
            Some(from) if key == "from" && from.contains('$') => {
                let message = "'from' doesn't support variable expansion, define alias stage instead";
                return wrong(message.to_owned());
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Splits at commas; a field in double quotes may hold some, and `""` is a quote (CSV).
pub(super) fn split(text: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let Some(field) = fields.last_mut() else { break };
        match c {
            '"' if !quoted && field.is_empty() => quoted = true,
            '"' if quoted && chars.next_if_eq(&'"').is_some() => field.push('"'),
            '"' if quoted => quoted = false,
            ',' if !quoted => fields.push(String::new()),
            _ => field.push(c),
        }
    }
    fields
}

/// `strconv.ParseBool`.
pub(crate) fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}
