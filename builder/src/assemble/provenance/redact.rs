//! What provenance must not tell.

use std::borrow::Cow;
use std::collections::BTreeMap;

use rbuild_frontend::lint::looks_secret;
use serde_json::Value;

/// Stands for a value that is not told.
pub(super) const MASK: &str = "xxxxx";
/// Shorter values are masked where they have their name, not wherever these characters are.
const BYTES_MIN: usize = 6;

/// Values that are masked wherever they appear: those of build arguments whose names look like a secret's.
#[derive(Debug, Default)]
pub(super) struct Redaction {
    values: Vec<String>,
}

impl Redaction {
    pub(super) fn of(build_args: &BTreeMap<String, String>) -> Self {
        let secret = build_args.iter().filter(|(name, value)| looks_secret(name) && value.len() >= BYTES_MIN);
        let mut values: Vec<String> = secret.map(|(_, value)| value.clone()).collect();
        // A longer one may hold a shorter one.
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        Self { values }
    }

    /// The text without secret values and without users and passwords in addresses.
    pub(super) fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = without_users(text);
        for value in &self.values {
            if text.contains(value.as_str()) {
                text = Cow::Owned(text.replace(value.as_str(), MASK));
            }
        }
        text
    }

    /// All texts of a document but the names in it.
    pub(super) fn apply(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                if let Cow::Owned(clean) = self.text(text) {
                    *text = clean;
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.apply(item)),
            Value::Object(map) => map.values_mut().for_each(|item| self.apply(item)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

/// The value of a variable, as far as its name lets it be told.
pub(super) fn value_of(name: &str, value: &str) -> String {
    if looks_secret(name) { MASK.to_owned() } else { value.to_owned() }
}

/// Takes `user:password@` out of every address in a text.
fn without_users(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + "://".len());
        let end = after.find(|c: char| c.is_whitespace() || "/?#\"'`\\<>".contains(c)).unwrap_or(after.len());
        let user = after[..end].rfind('@').map_or(0, |at| at + 1);
        out.push_str(before);
        rest = &after[user..];
    }
    if out.len() + rest.len() == text.len() {
        return Cow::Borrowed(text);
    }
    out.push_str(rest);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_in_addresses_go_and_nothing_else_does() {
        for (text, expected) in [
            ("no address", "no address"),
            ("https://host/a@b", "https://host/a@b"),
            ("https://u:p@host/a", "https://host/a"),
            ("curl 'https://u:p@w@host' http://t@h2?x=a@b", "curl 'https://host' http://h2?x=a@b"),
            ("://", "://"),
            ("a://@", "a://"),
        ] {
            assert_eq!(without_users(text), expected);
        }
    }

    #[test]
    fn secret_values_are_masked_wherever_they_are() {
        let args = [("NPM_TOKEN", "canary-value"), ("API_PASSWORD", "1"), ("VERSION", "1.2.3-long")];
        let args = args.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let redaction = Redaction::of(&args);
        let mut value = serde_json::json!({"a": ["x canary-value y", 1, null], "b": {"c": "1.2.3-long 1"}});
        redaction.apply(&mut value);
        assert_eq!(value, serde_json::json!({"a": ["x xxxxx y", 1, null], "b": {"c": "1.2.3-long 1"}}));
        assert_eq!(value_of("API_PASSWORD", "1"), MASK);
        assert_eq!(value_of("VERSION", "1"), "1");
    }
}
