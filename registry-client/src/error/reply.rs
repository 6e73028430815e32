//! The registry's own words in an error.

use std::fmt;

use serde::Deserialize;

use crate::limits::ERROR_TEXT_CHARS_MAX;

/// An error answer, reduced to what a person wants to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// `errors[].code`, upper case as sent (`MANIFEST_UNKNOWN`).
    pub codes: Vec<String>,
    /// `code: message` pairs, or the beginning of a body that is not the registry's JSON. Escaped.
    pub text: String,
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    errors: Vec<Item>,
    /// Token servers of several registries say `details` or `message` at the top instead.
    #[serde(default)]
    details: Option<String>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    error_description: Option<String>,
}

#[derive(Deserialize)]
struct Item {
    #[serde(default)]
    code: serde_json::Value,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    detail: serde_json::Value,
}

impl Reply {
    /// Reads an error body that was already cut to size. `secrets` are blotted out: a registry may reflect them.
    pub(crate) fn parse(status: u16, body: &[u8], secrets: &[&str]) -> Self {
        let (codes, text) = match serde_json::from_slice::<Body>(body) {
            Ok(body) if !body.errors.is_empty() => {
                let items: Vec<(String, String)> = body.errors.iter().take(16).map(Item::words).collect();
                let text = items.iter().map(|(_, words)| words.as_str()).collect::<Vec<_>>().join("; ");
                (items.into_iter().map(|(code, _)| code).collect(), text)
            }
            Ok(body) => {
                (Vec::new(), body.details.or(body.message).or(body.error_description).unwrap_or_default())
            }
            Err(_) => (Vec::new(), plain_text(&String::from_utf8_lossy(body))),
        };
        let blotted = secrets
            .iter()
            .filter(|secret| secret.len() >= 4)
            .fold(text, |text, secret| text.replace(*secret, "[redacted]"));
        Self { status, codes, text: escape(&blotted) }
    }

    /// True for a refusal to move a tag, in the words of ECR, Harbor and others.
    pub(crate) fn is_about_immutable_tags(&self) -> bool {
        let text = self.text.to_ascii_lowercase();
        text.contains("immutable") || text.contains("imagetagalreadyexists")
    }

    /// True for a refusal because a project holds as much as it may, in the words of Harbor and others.
    pub(crate) fn is_about_a_quota(&self) -> bool {
        let text = self.text.to_ascii_lowercase();
        text.contains("quota") || text.contains("exceed the configured upper limit")
    }

    /// True when the registry sent this error code.
    pub fn has_code(&self, code: &str) -> bool {
        self.codes.iter().any(|c| c.eq_ignore_ascii_case(code))
    }
}

impl Item {
    fn words(&self) -> (String, String) {
        let code = match &self.code {
            serde_json::Value::String(code) => escape(code),
            serde_json::Value::Null => String::new(),
            other => other.to_string(),
        };
        let message = self.message.as_deref().unwrap_or_default();
        let detail = match &self.detail {
            serde_json::Value::String(detail) if detail != message => format!(" ({detail})"),
            _ => String::new(),
        };
        let colon = if code.is_empty() || message.is_empty() { "" } else { ": " };
        let words = format!("{code}{colon}{message}{detail}");
        (code, words)
    }
}

/// HTML error pages of proxies say everything in their title, when they say anything.
fn plain_text(body: &str) -> String {
    let lower = body.to_ascii_lowercase();
    match (lower.find("<title>"), lower.find("</title>")) {
        (Some(start), Some(end)) if start + 7 <= end => body[start + 7..end].trim().to_owned(),
        _ => body.trim().to_owned(),
    }
}

/// Makes text from the network harmless on a terminal: control and direction-changing characters become visible
/// escapes, and what is longer than [`ERROR_TEXT_CHARS_MAX`] is cut.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::new();
    for (index, c) in text.chars().enumerate() {
        if index == ERROR_TEXT_CHARS_MAX {
            out.push('…');
            break;
        }
        let reorders =
            matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        match c {
            '\n' | '\t' => out.push(' '),
            '\r' => {}
            c if c.is_control() || reorders => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.status, self.text.as_str()) {
            (0, "") => Ok(()),
            (0, text) => write!(f, ": {text}"),
            (status, "") => write!(f, " (HTTP {status})"),
            (status, text) => write!(f, " (HTTP {status}): {text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registry_codes_and_messages_are_repeated_verbatim() {
        let body =
            br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"x"}},
            {"code":"DENIED","message":"no","detail":"why"}]}"#;
        let reply = Reply::parse(404, body, &[]);
        assert_eq!(reply.text, "MANIFEST_UNKNOWN: manifest unknown; DENIED: no (why)");
        assert!(reply.has_code("manifest_unknown"));
        assert_eq!(reply.to_string(), " (HTTP 404): MANIFEST_UNKNOWN: manifest unknown; DENIED: no (why)");
    }

    #[test]
    fn terminal_escapes_and_reflected_secrets_do_not_get_through() {
        let reply = Reply::parse(500, b"\x1b[31mred\x07 hunter2 \xe2\x80\xae", &["hunter2"]);
        assert_eq!(reply.text, "\\u{1b}[31mred\\u{7} [redacted] \\u{202e}");
    }

    #[test]
    fn html_pages_are_reduced_to_their_title_and_long_text_is_cut() {
        assert_eq!(Reply::parse(502, b"<html><TITLE>Bad Gateway</TITLE>..", &[]).text, "Bad Gateway");
        let long = "x".repeat(10_000);
        assert_eq!(Reply::parse(502, long.as_bytes(), &[]).text.chars().count(), ERROR_TEXT_CHARS_MAX + 1);
    }

    #[test]
    fn title_search_survives_letters_that_change_length_in_lower_case() {
        assert_eq!(Reply::parse(502, "İİİİ</title><title>é".as_bytes(), &[]).text, "İİİİ</title><title>é");
    }
}
