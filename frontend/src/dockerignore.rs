//! Ignore files, with the semantics of Go's `patternmatcher` as Docker uses it: not those of gitignore.
//!
//! Patterns are anchored at the context root, a pattern that matches a directory covers all below it, and the last
//! line that matches decides. Matching walks all positions of a pattern at once; it is linear in pattern times path
//! and nothing backtracks.

use crate::gowild;

/// Why an ignore file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IgnoreError {
    /// A line that is only `!`.
    #[error("line {line}: illegal exclusion pattern: \"!\"")]
    LoneNegation {
        /// 1-based line.
        line: usize,
    },
    /// Unclosed bracket and the like.
    #[error("line {line}: syntax error in pattern `{pattern}`")]
    Syntax {
        /// 1-based line.
        line: usize,
        /// The pattern as cleaned.
        pattern: String,
    },
    /// More than [`Ignore::PATTERNS_MAX`] patterns.
    #[error("more than {} patterns", Ignore::PATTERNS_MAX)]
    TooMany,
}

/// A parsed ignore file.
#[derive(Debug, Clone, Default)]
pub struct Ignore {
    patterns: Vec<Pattern>,
}

#[derive(Debug, Clone)]
struct Pattern {
    negated: bool,
    tokens: Vec<Token>,
    /// `**x` without a slash matches any path that ends in x.
    loose_suffix: bool,
    /// The path, when nothing in the pattern is special.
    literal: Option<String>,
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

impl Ignore {
    /// Most patterns a file may have.
    pub const PATTERNS_MAX: usize = 10_000;

    /// Parses a file. Invalid UTF-8 is replaced.
    pub fn parse(bytes: &[u8]) -> Result<Self, IgnoreError> {
        let text = String::from_utf8_lossy(bytes);
        let text = text.strip_prefix('\u{FEFF}').unwrap_or(&text);
        let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#'));
        Self::from_lines(lines)
    }

    /// The patterns of `--exclude`: as in a file, but `#` is nothing special. An error's line is the pattern's number.
    pub fn excluding<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, IgnoreError> {
        Self::from_lines(patterns.into_iter().enumerate())
    }

    /// Excludes all but what `pattern` covers, and so matches like `COPY --parents`: the directories on the way to a
    /// match are excluded but [not to be skipped](Ignore::may_skip_dir). An empty pattern covers everything.
    pub fn all_but(pattern: &str) -> Result<Self, IgnoreError> {
        if pattern.is_empty() {
            return Ok(Self::default());
        }
        Ok(Self { patterns: vec![Pattern::new("**", false, 1)?, Pattern::new(pattern, true, 1)?] })
    }

    fn from_lines<'a>(lines: impl Iterator<Item = (usize, &'a str)>) -> Result<Self, IgnoreError> {
        let mut patterns = Vec::new();
        for (index, line) in lines {
            let number = index + 1;
            let line = line.trim();
            let (negated, body) = match line.strip_prefix('!') {
                Some(rest) => (true, rest.trim()),
                None => (false, line),
            };
            if body.is_empty() {
                if negated {
                    return Err(IgnoreError::LoneNegation { line: number });
                }
                continue;
            }
            if patterns.len() >= Self::PATTERNS_MAX {
                return Err(IgnoreError::TooMany);
            }
            patterns.push(Pattern::new(body, negated, number)?);
        }
        Ok(Self { patterns })
    }

    /// True when a pattern brings something back, so that no path says for all below it.
    pub fn has_negation(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.negated)
    }

    /// True when no pattern is there.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// True when the entry at `rel_path` (slash-separated, relative to the context root, no leading slash) is
    /// excluded. Also true for what lies below an excluded directory, unless a later negation brings it back.
    ///
    /// An excluded directory may hold entries that are not excluded; it then exists for their sake, with its own
    /// metadata and nothing else in it.
    pub fn matches(&self, rel_path: &str) -> bool {
        let mut excluded = false;
        for pattern in &self.patterns {
            if pattern.negated == excluded && pattern.covers(rel_path) {
                excluded = !pattern.negated;
            }
        }
        excluded
    }

    /// True when `dir` is excluded and no negation can bring back anything below it, so that a walk need not enter.
    pub fn may_skip_dir(&self, dir: &str) -> bool {
        if !self.matches(dir) {
            return false;
        }
        // A pattern that covers the directory covers everything below, so only later negations count.
        let last = self.patterns.iter().rposition(|p| !p.negated && p.covers(dir));
        let later = &self.patterns[last.map_or(0, |index| index + 1)..];
        !later.iter().any(|pattern| pattern.negated && pattern.reaches_below(dir))
    }
}

impl Pattern {
    fn new(body: &str, negated: bool, line: usize) -> Result<Self, IgnoreError> {
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
        let literal = tokens.iter().map(|t| if let Token::Char(c) = t { Some(*c) } else { None });
        let literal = literal.collect::<Option<String>>();
        Ok(Self { negated, tokens, loose_suffix, literal })
    }

    /// Matches the path or one of its parents.
    fn covers(&self, path: &str) -> bool {
        // Most patterns are plain paths, and most walks are long.
        if let Some(literal) = &self.literal {
            let rest = path.strip_prefix(literal.as_str());
            return rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        }
        let mut live = self.start();
        let mut next = vec![false; live.len()];
        for c in path.chars() {
            if c == '/' && self.accepts(&live) {
                return true;
            }
            self.step(&live, c, &mut next);
            std::mem::swap(&mut live, &mut next);
            if !live.contains(&true) {
                return false;
            }
        }
        self.accepts(&live)
    }

    /// Could match something below `dir`.
    fn reaches_below(&self, dir: &str) -> bool {
        let below = dir.chars().chain(std::iter::once('/'));
        let mut live = self.start();
        let mut next = vec![false; live.len()];
        for c in below {
            self.step(&live, c, &mut next);
            std::mem::swap(&mut live, &mut next);
        }
        live.contains(&true)
    }

    /// Positions: `2 * i` before token i, `2 * i + 1` inside the loop of token i.
    fn start(&self) -> Vec<bool> {
        let mut live = vec![false; 2 * self.tokens.len() + 1];
        live[0] = true;
        self.close(&mut live);
        live
    }

    fn accepts(&self, live: &[bool]) -> bool {
        live.last() == Some(&true)
    }

    /// Follows what needs no character.
    fn close(&self, live: &mut [bool]) {
        for (index, token) in self.tokens.iter().enumerate() {
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
        for (index, token) in self.tokens.iter().enumerate() {
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

/// Compiles a cleaned pattern; `None` when Go calls it bad.
fn tokens(pattern: &str) -> Option<Vec<Token>> {
    // Go validates with filepath.Match, component by component in effect: a bracket cannot span a slash check there
    // either, as the class syntax is the same.
    gowild::match_component(pattern.as_bytes(), b".").ok()?;
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
        '\\' => chars.next(),
        c => Some(c),
    }
}

/// Go's `path.Clean`: the shortest equal path; a relative path keeps leading `..`.
pub(crate) fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(last) if *last != ".." => {
                    parts.pop();
                }
                _ if rooted => {}
                _ => parts.push(".."),
            },
            other => parts.push(other),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

#[cfg(test)]
mod tests;
