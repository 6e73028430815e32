//! Parser directives: `# syntax=`, `# escape=`, `# check=`.

use pest::Parser as _;

use crate::ast::{CheckOptions, Directive, Spanned};
use crate::span::Span;

use super::Issue;
use super::grammar::{Grammar, Rule};

/// The known directive on a line that starts at byte `start` of the file.
pub(super) fn read(line: &str, start: usize) -> Option<Directive> {
    let pair = Grammar::parse(Rule::directive, line).ok()?.next()?;
    let mut parts = pair.into_inner();
    let (key, value) = (parts.next()?.as_span(), parts.next()?.as_span());
    let lower = key.as_str().to_ascii_lowercase();
    if !matches!(lower.as_str(), "syntax" | "escape" | "check") {
        return None;
    }
    let trimmed = value.as_str().trim_end();
    let at = |from: usize, len: usize| Span { start: start + from, end: start + from + len };
    Some(Directive {
        key: Spanned::new(lower, at(key.start(), key.as_str().len())),
        value: Spanned::new(trimmed.to_owned(), at(value.start(), trimmed.len())),
    })
}

/// The escape character a directive asks for.
pub(super) fn escape(value: &Spanned<String>) -> Result<char, Issue> {
    match value.value.as_str() {
        "\\" => Ok('\\'),
        "`" => Ok('`'),
        other => {
            let message = format!("invalid escape token '{other}' does not match ` or \\");
            Err(Issue::new(message, value.span))
        }
    }
}

/// A warning for syntax images other than Docker's, whose language is the one that is built in.
pub(crate) fn foreign_syntax(value: &str) -> Option<String> {
    let reference = value.split_whitespace().next().unwrap_or_default();
    let known = ["docker/dockerfile", "docker.io/docker/dockerfile", "moby/dockerfile"];
    if reference.is_empty() || known.iter().any(|name| reference.starts_with(name)) {
        return None;
    }
    Some(format!("syntax image `{reference}` is not used: the built-in Dockerfile frontend reads this file"))
}

/// Parses `skip=A,B;error=true`. The error is the text after `failed to parse check options: `.
pub(crate) fn check_options(value: &str) -> Result<CheckOptions, String> {
    let mut options = CheckOptions::default();
    let parts: Vec<&str> = value.split(';').collect();
    if parts.len() > 3 {
        return Err(format!("invalid check option {value:?}"));
    }
    for part in parts.into_iter().map(str::trim).filter(|p| !p.is_empty()) {
        let invalid = || format!("invalid check option {part:?}");
        let (key, value) = part.split_once('=').ok_or_else(invalid)?;
        match key.trim() {
            "skip" => names(value, &mut options.skip, &mut options.skip_all),
            "experimental" => names(value, &mut options.experimental, &mut options.experimental_all),
            "error" => {
                options.error = match value.trim().to_ascii_lowercase().as_str() {
                    "true" | "1" | "t" => true,
                    "false" | "0" | "f" => false,
                    _ => return Err(invalid()),
                }
            }
            _ => return Err(invalid()),
        }
    }
    Ok(options)
}

/// Rules that `# check=skip=A,B remark` above an instruction switches off; `None` for other comments.
pub(super) fn rules_above(comment: &str) -> Option<Vec<String>> {
    let directive = read(comment, 0).filter(|d| d.key.value == "check")?;
    let value = directive.value.value.split_whitespace().next().unwrap_or_default();
    let mut options = check_options(value).unwrap_or_default();
    if options.skip_all {
        options.skip = vec!["all".to_owned()];
    }
    Some(options.skip)
}

fn names(value: &str, skip: &mut Vec<String>, all: &mut bool) {
    for name in value.split(',').map(str::trim).filter(|n| !n.is_empty()) {
        match name.eq_ignore_ascii_case("all") {
            true => *all = true,
            false => skip.push(name.to_owned()),
        }
    }
}
