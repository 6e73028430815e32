//! One pattern: compiled, and matched by walking all its positions at once.

use super::{IgnoreError, Rule, clean};

/// A pattern and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    pub(super) negated: bool,
    /// 1-based line, and its text without blanks around it.
    pub(super) line: usize,
    pub(super) text: String,
    tokens: Vec<Token>,
    /// `**x` without a slash matches any path that ends in x.
    loose_suffix: bool,
    /// What a match begins with, in bytes and tokens; all of it when nothing in the pattern is special.
    prefix: String,
    prefix_tokens: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Char(char),
    /// `?`
    One,
    /// `*`
    Run,
    /// `**/`: nothing, or anything up to and with a slash. Two tokens wide: this one enters the loop.
    Components,
    /// `**` at the end.
    Everything,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

/// What is known of everything that a pattern matches.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// It is this path.
    Path(String),
    /// The last component is this.
    Is(String),
    /// The last component ends in this.
    EndsIn(String),
    /// The first component is this.
    Below(String),
    /// Nothing.
    Any,
}

impl Pattern {
    pub(super) fn new(body: &str, negated: bool, line: usize) -> Result<Self, IgnoreError> {
        let cleaned = clean(body);
        let pattern = match cleaned.strip_prefix('/') {
            Some(rest) if !rest.is_empty() => rest,
            _ => &cleaned,
        };
        let tokens =
            tokens(pattern).ok_or_else(|| IgnoreError::Syntax { line, pattern: pattern.to_owned() })?;
        let loose_suffix = tokens.first() == Some(&Token::Components)
            && !pattern.starts_with("**/")
            && tokens[1..].iter().all(|t| matches!(t, Token::Char(_)));
        let prefix: String = literal(&tokens).collect();
        let prefix_tokens = prefix.chars().count();
        let text = if negated { format!("!{body}") } else { body.to_owned() };
        Ok(Self { negated, line, text, tokens, loose_suffix, prefix, prefix_tokens })
    }

    /// As it stands in its file.
    pub(super) fn rule(&self) -> Rule<'_> {
        Rule { line: self.line, text: &self.text, negated: self.negated }
    }

    /// What names tell about a match, so that most patterns need not be tried on most paths.
    pub(super) fn name(&self) -> Name {
        if self.prefix_tokens == self.tokens.len() {
            return Name::Path(self.prefix.clone());
        }
        let starts_component = |at: usize| {
            at == 0 || self.tokens[at - 1] == Token::Char('/') || {
                let before = at.checked_sub(2).map(|at| &self.tokens[at]);
                self.tokens[at - 1] == Token::Components
                    && !self.loose_suffix
                    && matches!(before, None | Some(Token::Char('/')))
            }
        };
        let last =
            self.tokens.iter().rposition(|token| matches!(token, Token::Char('/') | Token::Components));
        let start = last.map_or(0, |at| at + 1);
        let tail = &self.tokens[start..];
        if starts_component(start) && !tail.is_empty() {
            let literal_tail: String = literal(tail).collect();
            if literal_tail.chars().count() == tail.len() {
                return Name::Is(literal_tail);
            }
            if tail[0] == Token::Run && tail.len() > 1 {
                let end: String = literal(&tail[1..]).collect();
                if end.chars().count() + 1 == tail.len() {
                    return Name::EndsIn(end);
                }
            }
        }
        match self.prefix.split_once('/') {
            Some((first, _)) => Name::Below(first.to_owned()),
            None => Name::Any,
        }
    }

    /// Matches the whole path.
    pub(super) fn matches(&self, path: &str) -> bool {
        let Some(rest) = path.strip_prefix(self.prefix.as_str()) else { return false };
        if self.prefix_tokens == self.tokens.len() {
            return rest.is_empty();
        }
        let mut live = self.start();
        let mut next = vec![false; live.len()];
        for c in rest.chars() {
            self.step(&live, c, &mut next);
            std::mem::swap(&mut live, &mut next);
            if !live.contains(&true) {
                return false;
            }
        }
        live.last() == Some(&true)
    }

    /// Could match something below `dir`.
    pub(super) fn reaches_below(&self, dir: &str) -> bool {
        let below = format!("{dir}/");
        let Some(rest) = below.strip_prefix(self.prefix.as_str()) else {
            return self.prefix.starts_with(&below);
        };
        let mut live = self.start();
        let mut next = vec![false; live.len()];
        for c in rest.chars() {
            self.step(&live, c, &mut next);
            std::mem::swap(&mut live, &mut next);
        }
        live.contains(&true)
    }

    /// Positions behind the prefix: `2 * i` before token i, `2 * i + 1` inside the loop of token i.
    fn start(&self) -> Vec<bool> {
        let mut live = vec![false; 2 * self.tokens.len() + 1];
        live[2 * self.prefix_tokens] = true;
        self.close(&mut live);
        live
    }

    /// Follows what needs no character.
    fn close(&self, live: &mut [bool]) {
        for (index, token) in self.tokens.iter().enumerate().skip(self.prefix_tokens) {
            if live[2 * index] {
                match token {
                    Token::Run | Token::Everything => live[2 * index + 2] = true,
                    Token::Components => {
                        live[2 * index + 1] = true;
                        live[2 * index + 2] = true;
                    }
                    _ => {}
                }
            }
        }
    }

    fn step(&self, live: &[bool], c: char, next: &mut [bool]) {
        next.fill(false);
        for (index, token) in self.tokens.iter().enumerate().skip(self.prefix_tokens) {
            let (here, inside) = (live[2 * index], live[2 * index + 1]);
            let after = 2 * index + 2;
            match token {
                Token::Char(wanted) if here && *wanted == c => next[after] = true,
                Token::One if here && c != '/' => next[after] = true,
                Token::Run if here && c != '/' => next[2 * index] = true,
                Token::Everything if here => next[2 * index] = true,
                Token::Components if inside => {
                    next[2 * index + 1] = true;
                    if c == '/' || self.loose_suffix {
                        next[after] = true;
                    }
                }
                Token::Class { negated, ranges }
                    if here && ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated =>
                {
                    next[after] = true;
                }
                _ => {}
            }
        }
        self.close(next);
    }
}

/// The plain characters that tokens begin with.
fn literal(tokens: &[Token]) -> impl Iterator<Item = char> {
    tokens.iter().map_while(|token| if let Token::Char(c) = token { Some(*c) } else { None })
}

/// Compiles a cleaned pattern; `None` when Go's `filepath.Match`, with which Docker checks it, calls it bad.
fn tokens(pattern: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' if chars.peek() == Some(&'*') => {
                chars.next();
                if chars.peek() == Some(&'/') {
                    chars.next();
                }
                if chars.peek().is_none() { Token::Everything } else { Token::Components }
            }
            '*' => Token::Run,
            '?' => Token::One,
            '\\' => Token::Char(chars.next()?),
            '[' => {
                let negated = chars.next_if_eq(&'^').is_some();
                let mut ranges = Vec::new();
                loop {
                    let low = class_char(&mut chars)?;
                    let high = if chars.next_if_eq(&'-').is_some() { class_char(&mut chars)? } else { low };
                    ranges.push((low, high));
                    if chars.next_if_eq(&']').is_some() {
                        break;
                    }
                }
                Token::Class { negated, ranges }
            }
            other => Token::Char(other),
        });
    }
    Some(tokens)
}

fn class_char(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<char> {
    match chars.next()? {
        '-' | ']' => None,
        '\\' => chars.next(),
        c => Some(c),
    }
}
