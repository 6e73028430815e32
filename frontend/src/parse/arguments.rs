//! Shapes of arguments that several instructions share.

use std::collections::{HashMap, HashSet};

use crate::ast::{ArgDeclaration, Command, Heredoc, KeyValue, SourceWord, Spanned};

use super::grammar::{self, Piece};
use super::lines::Logical;
use super::{Issue, KEYWORDS, heredoc};

pub(super) fn spanned(line: &Logical, piece: Piece<'_>) -> Spanned<String> {
    Spanned::new(piece.text.to_owned(), line.span(piece.at, piece.end()))
}

/// The JSON form, `None` when the text is not one. A valid array of anything but strings is an error.
pub(super) fn json(line: &Logical, rest: Piece<'_>) -> Result<Option<Vec<Spanned<String>>>, Issue> {
    if !rest.text.starts_with('[') {
        return Ok(None);
    }
    if let Some(strings) = grammar::json_strings(rest) {
        let decoded = strings.into_iter().map(|literal| {
            let value = decode(literal.text);
            Spanned::new(value, line.span(literal.at, literal.end()))
        });
        return Ok(Some(decoded.collect()));
    }
    // Only to tell an array of other things from text that merely starts with a bracket; serde_json bounds depth.
    match serde_json::from_str::<Vec<serde_json::Value>>(rest.text) {
        Ok(_) => {
            let message = "when using JSON array syntax, arrays must be comprised of strings only";
            let issue = Issue::new(message, line.span(rest.at, rest.end()));
            Err(issue.with_help("put every element in double quotes"))
        }
        Err(_) => Ok(None),
    }
}

/// Decodes a string literal that the grammar has accepted. Lone surrogates become U+FFFD, as in Go.
fn decode(literal: &str) -> String {
    let body = &literal[1..literal.len() - 1];
    let mut units: Vec<u16> = Vec::new();
    let mut out = String::with_capacity(body.len());
    let mut chars = body.chars();
    while let Some(c) = chars.next() {
        let plain = match c {
            '\\' => match chars.next() {
                Some('u') => {
                    let hex: String = chars.by_ref().take(4).collect();
                    units.push(u16::from_str_radix(&hex, 16).unwrap_or(0xFFFD));
                    continue;
                }
                Some('b') => '\u{8}',
                Some('f') => '\u{C}',
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                Some(other) => other,
                None => '\\',
            },
            other => other,
        };
        out.push_str(&String::from_utf16_lossy(&units));
        units.clear();
        out.push(plain);
    }
    out.push_str(&String::from_utf16_lossy(&units));
    out
}

/// JSON form or text for the shell.
pub(super) fn command(line: &Logical, rest: Piece<'_>) -> Result<Command, Issue> {
    Ok(match json(line, rest)? {
        Some(argv) => Command::Exec(argv),
        None => Command::Shell(spanned(line, rest)),
    })
}

/// JSON form or words between blanks.
pub(super) fn words(line: &Logical, rest: Piece<'_>) -> Result<Vec<Spanned<String>>, Issue> {
    Ok(match json(line, rest)? {
        Some(words) => words,
        None => grammar::plain_words(rest).into_iter().map(|w| spanned(line, w)).collect(),
    })
}

/// Sources and destination of COPY and ADD.
pub(super) fn copy_words(
    keyword: &str,
    line: &Logical,
    rest: Piece<'_>,
) -> Result<(Vec<SourceWord>, Spanned<String>), Issue> {
    let mut words = words(line, rest)?;
    let whole = line.span(rest.at, rest.end());
    let dest = words.pop().ok_or_else(|| {
        let message = format!("{keyword} requires at least two arguments, but no arguments were provided. Source could not be determined");
        Issue::new(message, line.span)
    })?;
    if words.is_empty() {
        let message = format!(
            "{keyword} requires at least two arguments, but only one was provided. Destination could not be determined"
        );
        let help = format!("name where it goes, for example {keyword} {} ./", words_of(&dest.value));
        return Err(Issue::new(message, whole).with_help(help));
    }
    if !line.heredocs.is_empty() && heredoc::marker(&dest.value).is_some() {
        let message = format!("{keyword} cannot accept a heredoc as a destination");
        return Err(Issue::new(message, dest.span).with_help("the destination is the last word: <<EOF /path"));
    }
    // Of two bodies with one name the last wins, and there is one file: bodies are never multiplied.
    let last: HashMap<&str, &Heredoc> = line.heredocs.iter().map(|h| (h.name.value.as_str(), h)).collect();
    let mut seen = HashSet::new();
    let mut sources = Vec::with_capacity(words.len());
    for word in words {
        let marker = if last.is_empty() { None } else { heredoc::marker(&word.value) };
        match marker.and_then(|marker| last.get(marker.name.as_str()).copied()) {
            Some(heredoc) if seen.insert(heredoc.name.value.as_str()) => {
                sources.push(SourceWord::Inline(heredoc.clone()));
            }
            Some(_) => {}
            None => sources.push(SourceWord::Path(word)),
        }
    }
    Ok((sources, dest))
}

/// `k=v …`, or the old form `KEY rest` (then the flag is true).
pub(super) fn key_values(
    keyword: &str,
    line: &Logical,
    rest: Piece<'_>,
    escape: char,
) -> Result<Vec<KeyValue>, Issue> {
    let words = grammar::quoted_words(rest, escape);
    let whole = line.span(rest.at, rest.end());
    let Some(first) = words.first() else {
        return Err(Issue::new(format!("{keyword} requires at least one argument"), line.span));
    };
    let pairs = if first.text.contains('=') {
        words.into_iter().map(|word| pair(keyword, line, word)).collect::<Result<Vec<_>, _>>()?
    } else {
        let Some((key, value)) = grammar::legacy_pair(rest) else {
            let help = format!("write {keyword} {}=value", words_of(first.text));
            return Err(Issue::new(format!("{keyword} must have two arguments"), whole).with_help(help));
        };
        vec![KeyValue { key: spanned(line, key), value: spanned(line, value), legacy: true }]
    };
    match pairs.iter().find(|pair| pair.key.value.is_empty()) {
        Some(blank) => Err(Issue::new(format!("{keyword} names can not be blank"), blank.value.span)),
        None => Ok(pairs),
    }
}

/// The beginning of a word, for a help line.
fn words_of(text: &str) -> String {
    text.chars().take(40).collect()
}

fn pair(keyword: &str, line: &Logical, word: Piece<'_>) -> Result<KeyValue, Issue> {
    let Some(equals) = word.text.find('=') else {
        let message =
            format!("Syntax error - can't find = in {:?}. Must be of the form: name=value", word.text);
        let issue = Issue::new(message, line.span(word.at, word.end()));
        return Err(if KEYWORDS.contains(&word.text) {
            issue.with_help(format!(
                "the line above ends in the escape character, so {} is a word of {keyword}, not an instruction",
                word.text
            ))
        } else {
            issue.with_help("put a value with blanks in quotes: name=\"some value\"")
        });
    };
    let key = Piece { text: &word.text[..equals], at: word.at };
    let value = Piece { text: &word.text[equals + 1..], at: word.at + equals + 1 };
    Ok(KeyValue { key: spanned(line, key), value: spanned(line, value), legacy: false })
}

/// `NAME` and `NAME=default` words of ARG.
pub(super) fn declarations(
    line: &Logical,
    rest: Piece<'_>,
    escape: char,
) -> Result<Vec<ArgDeclaration>, Issue> {
    let words = grammar::quoted_words(rest, escape);
    if words.is_empty() {
        return Err(Issue::new("ARG requires at least one argument", line.span));
    }
    words
        .into_iter()
        .map(|word| {
            let equals = word.text.find('=');
            let name = Piece { text: &word.text[..equals.unwrap_or(word.text.len())], at: word.at };
            if name.text.is_empty() {
                return Err(Issue::new("ARG names can not be blank", line.span(word.at, word.end())));
            }
            let default = equals.map(|at| Piece { text: &word.text[at + 1..], at: word.at + at + 1 });
            Ok(ArgDeclaration { name: spanned(line, name), default: default.map(|d| spanned(line, d)) })
        })
        .collect()
}

/// The rest of the line as the one argument.
pub(super) fn one(keyword: &str, line: &Logical, rest: Piece<'_>) -> Result<Spanned<String>, Issue> {
    if rest.text.is_empty() {
        return Err(Issue::new(format!("{keyword} requires exactly one argument"), line.span));
    }
    Ok(spanned(line, rest))
}
