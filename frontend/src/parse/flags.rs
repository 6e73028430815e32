//! Flags of an instruction: which exist, what they take.

use crate::ast::Spanned;
use crate::span::Span;
use crate::suggest;

use super::Issue;
use super::grammar::Piece;
use super::lines::Logical;

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// One value.
    Text,
    /// A value each time.
    List,
    /// Nothing, `true` or `false`.
    Bool,
}

/// Flags of one instruction after validation.
#[derive(Debug, Default)]
pub(super) struct Flags {
    found: Vec<(&'static str, Spanned<String>)>,
}

impl Flags {
    /// Checks `words` against the flags that exist.
    pub(super) fn read(
        words: &[Piece<'_>],
        known: &[(&'static str, Takes)],
        line: &Logical,
        escape: char,
    ) -> Result<Self, Issue> {
        let mut flags = Self::default();
        for word in words {
            let span = line.span(word.at, word.end());
            let text = unquote(word.text, escape);
            let body = text.strip_prefix("--").unwrap_or(&text);
            let (name, value) = match body.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (body, None),
            };
            let Some((name, takes)) = known.iter().find(|(k, _)| *k == name) else {
                let hint = suggest::hint(name, known.iter().map(|(k, _)| *k));
                let issue = Issue::new(format!("unknown flag: --{name}{hint}"), span);
                let names: Vec<String> = known.iter().map(|(known, _)| format!("--{known}")).collect();
                return Err(match names.is_empty() {
                    true => issue.with_help("a bare -- ends the flags: what comes after it is an argument"),
                    false => issue.with_help(format!("its flags are {}", names.join(", "))),
                });
            };
            if *takes != Takes::List && flags.found.iter().any(|(found, _)| found == name) {
                return Err(Issue::new(format!("duplicate flag specified: --{name}"), span));
            }
            flags.found.push((name, Spanned::new(checked(name, value, *takes, span)?, span)));
        }
        Ok(flags)
    }

    pub(super) fn text(&self, name: &str) -> Option<Spanned<String>> {
        self.found.iter().find(|(found, _)| *found == name).map(|(_, value)| value.clone())
    }

    pub(super) fn bool(&self, name: &str) -> Option<Spanned<bool>> {
        self.text(name).map(|value| Spanned::new(value.value == "true", value.span))
    }

    pub(super) fn list(&self, name: &str) -> Vec<Spanned<String>> {
        self.found.iter().filter(|(found, _)| *found == name).map(|(_, value)| value.clone()).collect()
    }
}

fn checked(name: &str, value: Option<&str>, takes: Takes, span: Span) -> Result<String, Issue> {
    let missing = || Issue::new(format!("missing a value on flag: --{name}"), span);
    match (takes, value) {
        (Takes::Bool, None) => Ok("true".to_owned()),
        (Takes::Bool, Some("")) | (_, None) => Err(missing()),
        (Takes::Bool, Some(value)) => match value.to_ascii_lowercase().as_str() {
            lower @ ("true" | "false") => Ok(lower.to_owned()),
            _ => Err(Issue::new(format!("expecting boolean value for flag --{name}, not: {value}"), span)),
        },
        (_, Some(value)) => Ok(value.to_owned()),
    }
}

/// Removes quotes; the escape character takes the next one as it is, also inside quotes.
fn unquote(word: &str, escape: char) -> String {
    let mut out = String::with_capacity(word.len());
    let mut quote = None;
    let mut chars = word.chars();
    while let Some(c) = chars.next() {
        match quote {
            _ if c == escape => out.extend(chars.next()),
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => out.push(c),
        }
    }
    out
}
