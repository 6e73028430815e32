//! The pest parser and the few ways it is asked.

use pest::Parser as _;

/// Generated from `grammar/dockerfile.pest`.
#[derive(pest_derive::Parser)]
#[grammar = "grammar/dockerfile.pest"]
pub(super) struct Grammar;

/// A piece of a line and its byte offset in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    pub(super) text: &'a str,
    pub(super) at: usize,
}

impl<'a> Piece<'a> {
    pub(super) fn trimmed(self) -> Self {
        let cut = self.text.len() - self.text.trim_start().len();
        Self { text: self.text.trim(), at: self.at + cut }
    }

    pub(super) fn end(self) -> usize {
        self.at + self.text.len()
    }
}

/// Keyword and trimmed rest of a logical line.
pub(super) fn head(line: &str) -> Option<(Piece<'_>, Piece<'_>)> {
    let (parts, rest) = leading(Rule::instruction, Piece { text: line, at: 0 })?;
    Some((parts.into_iter().next()?, rest))
}

/// Flag words and the trimmed rest after them. `rest` is trimmed too: most lines have no flags, and show it at once.
pub(super) fn flags(rest: Piece<'_>, escape: char) -> Option<(Vec<Piece<'_>>, Piece<'_>)> {
    if !rest.text.starts_with("--") {
        return Some((Vec::new(), rest));
    }
    let rule = if escape == '`' { Rule::flags_bt } else { Rule::flags_bs };
    leading(rule, rest)
}

/// Words in which quotes and escapes protect blanks.
pub(super) fn quoted_words(rest: Piece<'_>, escape: char) -> Vec<Piece<'_>> {
    let rule = if escape == '`' { Rule::words_bt } else { Rule::words_bs };
    pieces(rule, rest).unwrap_or_default()
}

/// Words between blanks.
pub(super) fn plain_words(rest: Piece<'_>) -> Vec<Piece<'_>> {
    pieces(Rule::plain_words, rest).unwrap_or_default()
}

/// `KEY rest of the line`.
pub(super) fn legacy_pair(rest: Piece<'_>) -> Option<(Piece<'_>, Piece<'_>)> {
    let mut parts = pieces(Rule::legacy_pair, rest)?.into_iter();
    Some((parts.next()?, parts.next()?))
}

/// The string literals, quotes included, of a flat JSON array of strings.
pub(super) fn json_strings(rest: Piece<'_>) -> Option<Vec<Piece<'_>>> {
    if rest.text.starts_with('[') { pieces(Rule::json_strings, rest) } else { None }
}

/// Candidates for heredoc markers.
pub(super) fn shell_words(rest: Piece<'_>) -> Vec<Piece<'_>> {
    pieces(Rule::shell_words, rest).unwrap_or_default()
}

/// A heredoc marker: has `-`, and the word with its quotes.
pub(super) fn heredoc_marker(word: &str) -> Option<(bool, &str)> {
    let pair = Grammar::parse(Rule::heredoc_marker, word).ok()?.next()?;
    let (mut chomp, mut name) = (false, None);
    for part in pair.into_inner() {
        match part.as_rule() {
            Rule::heredoc_chomp => chomp = true,
            Rule::heredoc_word => name = Some(part.as_str()),
            _ => {}
        }
    }
    name.map(|name| (chomp, name))
}

/// The pieces of a rule that matches the beginning of a text, and the trimmed text after it.
fn leading(rule: Rule, input: Piece<'_>) -> Option<(Vec<Piece<'_>>, Piece<'_>)> {
    let pair = Grammar::parse(rule, input.text).ok()?.next()?;
    let end = pair.as_span().end();
    let rest = Piece { text: &input.text[end..], at: input.at + end }.trimmed();
    let parts = pair.into_inner();
    Some((parts.map(|p| Piece { text: p.as_str(), at: input.at + p.as_span().start() }).collect(), rest))
}

fn pieces(rule: Rule, input: Piece<'_>) -> Option<Vec<Piece<'_>>> {
    let pair = Grammar::parse(rule, input.text).ok()?.next()?;
    let parts = pair.into_inner().filter(|p| p.as_rule() != Rule::EOI);
    Some(parts.map(|p| Piece { text: p.as_str(), at: input.at + p.as_span().start() }).collect())
}
