//! Variable expansion: `$v`, `${v:-w}`, patterns, quotes, escapes.
//!
//! One pass, left to right; an operand is expanded once, where it stands, so work is linear in the word but for the
//! pattern operators, which have a step budget. Results have a size limit and `${…}` a nesting limit.

use std::collections::{BTreeMap, BTreeSet, HashMap};

mod pattern;

/// Deepest nesting of `${…${…}…}`.
pub const DEPTH_MAX: usize = 64;
/// Largest result of one word, in bytes.
pub const RESULT_BYTES_MAX: usize = 4 << 20;
/// Most steps the pattern operators of one word may take.
const PATTERN_STEPS_MAX: usize = 1 << 24;

/// Where values come from.
pub trait Variables {
    /// The value, `None` when unset.
    fn get(&self, name: &str) -> Option<&str>;
}

impl Variables for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<&str> {
        BTreeMap::get(self, name).map(String::as_str)
    }
}

impl Variables for HashMap<String, String> {
    fn get(&self, name: &str) -> Option<&str> {
        HashMap::get(self, name).map(String::as_str)
    }
}

/// Why a word cannot be expanded. The texts are those of BuildKit's users.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    /// `${}`, `${:x}`, `${{x}`.
    #[error("syntax error: bad substitution")]
    BadSubstitution,
    /// `${x` without end.
    #[error("syntax error: missing '}}'")]
    MissingBrace,
    /// `${x/p}` without the second slash.
    #[error("syntax error: missing '/' in ${{}}")]
    MissingSlash,
    /// An operator that does not exist.
    #[error("unsupported modifier ({0}) in substitution")]
    Modifier(String),
    /// `'` without end.
    #[error("unexpected end of statement while looking for matching single-quote")]
    SingleQuote,
    /// `"` without end.
    #[error("unexpected end of statement while looking for matching double-quote")]
    DoubleQuote,
    /// `${x:?message}`.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// What the Dockerfile says about it.
        message: String,
    },
    /// An escape that patterns do not have.
    #[error("invalid pattern `{0}` in substitution: only \\* \\? \\\\ \\}} \\/ may be escaped")]
    Pattern(String),
    /// Nested deeper than [`DEPTH_MAX`].
    #[error("substitution is nested deeper than {DEPTH_MAX} levels")]
    TooDeep,
    /// Larger than [`RESULT_BYTES_MAX`].
    #[error("expanded text is larger than {RESULT_BYTES_MAX} bytes")]
    TooLarge,
    /// Patterns that take too long.
    #[error("pattern substitution takes more than {PATTERN_STEPS_MAX} steps")]
    TooSlow,
}

/// An expanded text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expansion {
    /// The text, quotes removed.
    pub text: String,
    /// Names that were used plainly (`$x`, `${x}`) while unset.
    pub unset: BTreeSet<String>,
}

/// Expands one word; blanks in it or in values do not split it.
pub fn word(text: &str, escape: char, variables: &dyn Variables) -> Result<Expansion, ExpandError> {
    run(text, escape, variables, false, None).map(|(expansion, _)| expansion)
}

/// Expands and splits at blanks that are not quoted, those in values included (EXPOSE).
pub fn words(
    text: &str,
    escape: char,
    variables: &dyn Variables,
) -> Result<(Vec<String>, BTreeSet<String>), ExpandError> {
    let collected = Some(Words::default());
    run(text, escape, variables, false, collected).map(|(expansion, words)| (words, expansion.unset))
}

/// Expands the body of a here-document: quotes are plain text, `\c` is `c`, backslash-newline keeps the newline.
pub fn heredoc(text: &str, variables: &dyn Variables) -> Result<Expansion, ExpandError> {
    run(text, '\\', variables, true, None).map(|(expansion, _)| expansion)
}

fn run(
    text: &str,
    escape: char,
    variables: &dyn Variables,
    raw_quotes: bool,
    words: Option<Words>,
) -> Result<(Expansion, Vec<String>), ExpandError> {
    let mut expander = Expander {
        rest: text.chars(),
        escape,
        raw_quotes,
        variables,
        unset: BTreeSet::new(),
        words,
        depth: 0,
        steps: PATTERN_STEPS_MAX,
    };
    let mut out = String::with_capacity(text.len());
    expander.until(None, false, &mut out)?;
    let words = expander.words.map(Words::finish).unwrap_or_default();
    Ok((Expansion { text: out, unset: expander.unset }, words))
}

/// Collects words at nesting depth zero.
#[derive(Debug, Default)]
struct Words {
    done: Vec<String>,
    current: Option<String>,
}

impl Words {
    fn splitting(&mut self, text: &str) {
        for c in text.chars() {
            match c.is_whitespace() {
                true => self.done.extend(self.current.take()),
                false => self.current.get_or_insert_default().push(c),
            }
        }
    }

    fn whole(&mut self, text: &str) {
        self.current.get_or_insert_default().push_str(text);
    }

    fn finish(mut self) -> Vec<String> {
        self.done.extend(self.current.take());
        self.done
    }
}

struct Expander<'a> {
    rest: std::str::Chars<'a>,
    escape: char,
    raw_quotes: bool,
    variables: &'a dyn Variables,
    unset: BTreeSet<String>,
    /// Only when they are asked for.
    words: Option<Words>,
    depth: usize,
    steps: usize,
}

impl Expander<'_> {
    fn peek(&self) -> Option<char> {
        self.rest.clone().next()
    }

    fn eat(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.rest.next();
        }
        found
    }

    /// Expands up to `stop` (which is eaten) or the end. With `raw_escapes` an escape keeps its place before the next
    /// character, for patterns. False when `stop` was not found.
    fn until(
        &mut self,
        stop: Option<char>,
        raw_escapes: bool,
        out: &mut String,
    ) -> Result<bool, ExpandError> {
        while let Some(c) = self.peek() {
            if Some(c) == stop {
                self.rest.next();
                return Ok(true);
            }
            let from = out.len();
            let mut splits = false;
            match c {
                '\'' if !self.raw_quotes => self.single_quoted(out)?,
                '"' if !self.raw_quotes => self.double_quoted(out)?,
                '$' => {
                    self.dollar(out)?;
                    splits = true;
                }
                _ => {
                    self.rest.next();
                    splits = c != self.escape;
                    if c == self.escape {
                        if raw_escapes {
                            out.push(c);
                        }
                        out.extend(self.rest.next());
                    } else {
                        out.push(c);
                    }
                }
            }
            if self.depth == 0
                && let Some(words) = &mut self.words
            {
                match splits {
                    true => words.splitting(&out[from..]),
                    false => words.whole(&out[from..]),
                }
            }
            if out.len() > RESULT_BYTES_MAX {
                return Err(ExpandError::TooLarge);
            }
        }
        Ok(stop.is_none())
    }

    fn single_quoted(&mut self, out: &mut String) -> Result<(), ExpandError> {
        self.rest.next();
        loop {
            match self.rest.next() {
                None => return Err(ExpandError::SingleQuote),
                Some('\'') => return Ok(()),
                Some(c) => out.push(c),
            }
        }
    }

    fn double_quoted(&mut self, out: &mut String) -> Result<(), ExpandError> {
        self.rest.next();
        loop {
            match self.peek() {
                None => return Err(ExpandError::DoubleQuote),
                Some('"') => {
                    self.rest.next();
                    return Ok(());
                }
                Some('$') => self.dollar(out)?,
                Some(mut c) => {
                    self.rest.next();
                    if c == self.escape {
                        match self.peek() {
                            None => continue,
                            Some(next) if next == '"' || next == '$' || next == self.escape => {
                                self.rest.next();
                                c = next;
                            }
                            Some(_) => {}
                        }
                    }
                    out.push(c);
                }
            }
            if out.len() > RESULT_BYTES_MAX {
                return Err(ExpandError::TooLarge);
            }
        }
    }

    fn dollar(&mut self, out: &mut String) -> Result<(), ExpandError> {
        self.rest.next();
        if self.peek() == Some('{') {
            self.rest.next();
            self.depth += 1;
            if self.depth > DEPTH_MAX {
                return Err(ExpandError::TooDeep);
            }
            let value = self.braced()?;
            self.depth -= 1;
            return append(out, &value);
        }
        let name = self.name();
        if name.is_empty() {
            out.push('$');
            return Ok(());
        }
        let value = self.plain(&name);
        append(out, &value)
    }

    /// A name, a positional parameter (a run of digits) or a special one-character parameter; empty when there is
    /// none.
    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.peek() {
            Some(c) if c.is_numeric() => {
                while let Some(digit) = self.peek().filter(|c| c.is_numeric()) {
                    self.rest.next();
                    name.push(digit);
                }
                return name;
            }
            Some(c) if matches!(c, '@' | '*' | '#' | '?' | '-' | '$' | '!') => {
                self.rest.next();
                return c.to_string();
            }
            _ => {}
        }
        while let Some(c) = self.peek().filter(|c| c.is_alphanumeric() || *c == '_') {
            self.rest.next();
            name.push(c);
        }
        name
    }

    fn plain(&mut self, name: &str) -> String {
        match self.variables.get(name) {
            Some(value) => value.to_owned(),
            None => {
                if name.starts_with(|c: char| c.is_alphabetic() || c == '_') {
                    self.unset.insert(name.to_owned());
                }
                String::new()
            }
        }
    }

    /// The rest of `${…}` after the brace.
    fn braced(&mut self) -> Result<String, ExpandError> {
        match self.peek() {
            None => return Err(ExpandError::MissingBrace),
            Some('{' | '}' | ':') => return Err(ExpandError::BadSubstitution),
            Some(_) => {}
        }
        let name = self.name();
        let operator = self.rest.next().ok_or(ExpandError::MissingBrace)?;
        if name.is_empty() {
            return Err(ExpandError::BadSubstitution);
        }
        match operator {
            '}' => Ok(self.plain(&name)),
            ':' => {
                let operator = self.rest.next().ok_or(ExpandError::MissingBrace)?;
                match operator {
                    '-' | '+' | '?' => self.conditional(&name, operator, true),
                    other => Err(ExpandError::Modifier(format!(":{other}"))),
                }
            }
            '-' | '+' | '?' => self.conditional(&name, operator, false),
            '#' | '%' => self.strip(&name, operator),
            '/' => self.replace(&name),
            other => Err(ExpandError::Modifier(other.to_string())),
        }
    }

    fn operand(&mut self, stop: char, raw_escapes: bool) -> Result<Option<String>, ExpandError> {
        let mut text = String::new();
        match self.until(Some(stop), raw_escapes, &mut text) {
            Ok(true) => Ok(Some(text)),
            Ok(false) => Ok(None),
            Err(ExpandError::SingleQuote | ExpandError::DoubleQuote) if self.peek().is_none() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn conditional(
        &mut self,
        name: &str,
        operator: char,
        empty_is_unset: bool,
    ) -> Result<String, ExpandError> {
        let word = self.operand('}', false)?.ok_or(ExpandError::MissingBrace)?;
        let value = self.variables.get(name).filter(|value| !(empty_is_unset && value.is_empty()));
        match (operator, value) {
            ('+', Some(_)) => Ok(word),
            ('+', None) => Ok(String::new()),
            (_, Some(value)) => Ok(value.to_owned()),
            ('-', None) => Ok(word),
            (_, None) => {
                let default = match empty_is_unset {
                    true => "is not allowed to be empty",
                    false => "is not allowed to be unset",
                };
                let message = if word.is_empty() { default.to_owned() } else { word };
                Err(ExpandError::Required { name: name.to_owned(), message })
            }
        }
    }

    fn strip(&mut self, name: &str, operator: char) -> Result<String, ExpandError> {
        let greedy = self.eat(operator);
        let text = self.operand('}', true)?.ok_or(ExpandError::MissingBrace)?;
        let pattern = pattern::Pattern::parse(&text, self.escape)?;
        let value = self.plain(name);
        match operator {
            '#' => pattern.strip_prefix(&value, greedy, &mut self.steps),
            _ => pattern.strip_suffix(&value, greedy, &mut self.steps),
        }
    }

    fn replace(&mut self, name: &str) -> Result<String, ExpandError> {
        let all = self.eat('/');
        let text = self.operand('/', true)?.ok_or(ExpandError::MissingSlash)?;
        let replacement = self.operand('}', false)?.ok_or(ExpandError::MissingBrace)?;
        let pattern = pattern::Pattern::parse(&text, self.escape)?;
        let value = self.plain(name);
        pattern.replace(&value, &replacement, all, &mut self.steps)
    }
}

fn append(out: &mut String, value: &str) -> Result<(), ExpandError> {
    if out.len() + value.len() > RESULT_BYTES_MAX {
        return Err(ExpandError::TooLarge);
    }
    out.push_str(value);
    Ok(())
}

#[cfg(test)]
mod tests;
