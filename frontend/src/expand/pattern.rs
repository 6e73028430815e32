//! The small patterns of `${v#p}`, `${v%p}` and `${v/p/r}`: `*` any run, `?` one character, no brackets.
//!
//! Matching walks all positions of the pattern at once, so a step costs at most the pattern's length and nothing
//! backtracks. What is left to an adversary, length times length, is bounded by the caller's step budget.

use super::{ExpandError, RESULT_BYTES_MAX};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Char(char),
    One,
    Run,
}

/// A parsed pattern.
#[derive(Debug)]
pub(super) struct Pattern {
    tokens: Vec<Token>,
}

impl Pattern {
    pub(super) fn parse(text: &str, escape: char) -> Result<Self, ExpandError> {
        let mut tokens = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '*' if tokens.last() == Some(&Token::Run) => continue,
                '*' => Token::Run,
                '?' => Token::One,
                _ if c == escape => match chars.next() {
                    Some(next) if matches!(next, '*' | '?' | '}' | '/') || next == escape => {
                        Token::Char(next)
                    }
                    _ => return Err(ExpandError::Pattern(text.to_owned())),
                },
                other => Token::Char(other),
            });
        }
        Ok(Self { tokens })
    }

    pub(super) fn strip_prefix(
        &self,
        value: &str,
        greedy: bool,
        steps: &mut usize,
    ) -> Result<String, ExpandError> {
        let chars: Vec<char> = value.chars().collect();
        let cut = self.match_len(&self.tokens, chars.iter().copied(), greedy, steps)?.unwrap_or(0);
        Ok(chars[cut..].iter().collect())
    }

    pub(super) fn strip_suffix(
        &self,
        value: &str,
        greedy: bool,
        steps: &mut usize,
    ) -> Result<String, ExpandError> {
        let chars: Vec<char> = value.chars().collect();
        let backwards: Vec<Token> = self.tokens.iter().rev().copied().collect();
        let cut = self.match_len(&backwards, chars.iter().rev().copied(), greedy, steps)?.unwrap_or(0);
        Ok(chars[..chars.len() - cut].iter().collect())
    }

    pub(super) fn replace(
        &self,
        value: &str,
        replacement: &str,
        all: bool,
        steps: &mut usize,
    ) -> Result<String, ExpandError> {
        let chars: Vec<char> = value.chars().collect();
        let mut out = String::with_capacity(value.len());
        let mut at = 0;
        loop {
            let hit = self.match_len(&self.tokens, chars[at..].iter().copied(), true, steps)?;
            match hit {
                // An empty match counts only where nothing else can: on an empty value.
                Some(len) if len > 0 || chars.is_empty() => {
                    out.push_str(replacement);
                    at += len;
                    if !all || chars.is_empty() {
                        break;
                    }
                }
                _ => {
                    if let Some(c) = chars.get(at) {
                        out.push(*c);
                    }
                    at += 1;
                }
            }
            if out.len() > RESULT_BYTES_MAX {
                return Err(ExpandError::TooLarge);
            }
            if at >= chars.len() {
                break;
            }
        }
        out.extend(chars.get(at..).unwrap_or_default());
        Ok(out)
    }

    /// Length in characters of the shortest or longest start of `chars` that matches.
    fn match_len(
        &self,
        tokens: &[Token],
        chars: impl Iterator<Item = char>,
        greedy: bool,
        steps: &mut usize,
    ) -> Result<Option<usize>, ExpandError> {
        let end = tokens.len();
        let mut live = vec![false; end + 1];
        live[0] = true;
        skip_runs(tokens, &mut live);
        let mut best = live[end].then_some(0);
        for (index, c) in chars.enumerate() {
            if best.is_some() && !greedy {
                break;
            }
            *steps = steps.checked_sub(end + 1).ok_or(ExpandError::TooSlow)?;
            let mut next = vec![false; end + 1];
            let mut any = false;
            for (position, token) in tokens.iter().enumerate().filter(|(position, _)| live[*position]) {
                let target = match token {
                    Token::Run => position,
                    Token::One => position + 1,
                    Token::Char(wanted) if *wanted == c => position + 1,
                    Token::Char(_) => continue,
                };
                next[target] = true;
                any = true;
            }
            if !any {
                break;
            }
            skip_runs(tokens, &mut next);
            live = next;
            if live[end] {
                best = Some(index + 1);
            }
        }
        Ok(best)
    }
}

/// A run may match nothing.
fn skip_runs(tokens: &[Token], live: &mut [bool]) {
    for (position, token) in tokens.iter().enumerate() {
        if live[position] && *token == Token::Run {
            live[position + 1] = true;
        }
    }
}
