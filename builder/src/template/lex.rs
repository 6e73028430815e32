//! Template text to pieces: plain text, and actions as tokens.

use super::limits::TEMPLATE_BYTES_MAX;
use super::{Place, SyntaxProblem, TemplateError};

/// A piece of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    Text(String),
    /// Tokens between the braces, and where they end.
    Action(Vec<Spanned>, Place),
}

/// A token and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Spanned {
    pub(super) token: Token,
    pub(super) at: Place,
    /// No blank before it: `.A.B` is one operand, `.A .B` are two.
    pub(super) joined: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    Dot,
    Field(String),
    /// `$name`; empty for `$`.
    Variable(String),
    Word(String),
    Text(String),
    Integer(i64),
    Float(f64),
    Open,
    Close,
    Pipe,
    Declare,
    Assign,
    Comma,
}

impl Token {
    /// As people would write it.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Dot => "`.`".to_owned(),
            Self::Field(name) => format!("`.{name}`"),
            Self::Variable(name) => format!("`${name}`"),
            Self::Word(name) => format!("`{name}`"),
            Self::Text(_) => "a string".to_owned(),
            Self::Integer(number) => format!("`{number}`"),
            Self::Float(number) => format!("`{number}`"),
            Self::Open => "`(`".to_owned(),
            Self::Close => "`)`".to_owned(),
            Self::Pipe => "`|`".to_owned(),
            Self::Declare => "`:=`".to_owned(),
            Self::Assign => "`=`".to_owned(),
            Self::Comma => "`,`".to_owned(),
        }
    }
}

struct Cursor<'a> {
    rest: &'a str,
    at: Place,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(bytes);
        for c in taken.chars() {
            if c == '\n' {
                self.at = Place { line: self.at.line + 1, column: 1 };
            } else {
                self.at.column += 1;
            }
        }
        self.rest = rest;
        taken
    }

    fn take_while(&mut self, keep: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !keep(c)).unwrap_or(self.rest.len());
        self.take(end)
    }

    fn eat(&mut self, text: &str) -> bool {
        let found = self.rest.starts_with(text);
        if found {
            self.take(text.len());
        }
        found
    }

    fn wrong<T>(&self, problem: SyntaxProblem) -> Result<T, TemplateError> {
        Err(TemplateError::Syntax { at: self.at, problem })
    }
}

/// Splits a template. Trim marks and comments are gone afterwards; `plain_text` makes text between actions what it means.
pub(super) fn lex(text: &str, plain_text: fn(&str) -> String) -> Result<Vec<Piece>, TemplateError> {
    let mut cursor = Cursor { rest: text, at: Place { line: 1, column: 1 } };
    if text.len() > TEMPLATE_BYTES_MAX {
        return cursor.wrong(SyntaxProblem::TooLong);
    }
    let mut pieces = Vec::new();
    let mut trims = false;
    loop {
        let end = cursor.rest.find("{{").unwrap_or(cursor.rest.len());
        let mut plain = cursor.take(end);
        if trims {
            plain = plain.trim_start_matches(is_space);
        }
        let at_end = cursor.rest.is_empty();
        let opened = cursor.at;
        cursor.eat("{{");
        // A mark is `-` with a blank: `{{-3}}` is a number.
        let marked = cursor.rest.strip_prefix('-').is_some_and(|rest| rest.starts_with(is_space));
        if !at_end && marked {
            plain = plain.trim_end_matches(is_space);
            cursor.take(1);
        }
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain_text(plain)));
        }
        if at_end {
            return Ok(pieces);
        }
        let (action, trimmed) = action(&mut cursor, opened)?;
        trims = trimmed;
        pieces.extend(action);
    }
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

/// Reads to the closing braces; the flag says whether they trim what follows.
fn action(cursor: &mut Cursor<'_>, opened: Place) -> Result<(Option<Piece>, bool), TemplateError> {
    let unclosed = |problem| Err(TemplateError::Syntax { at: opened, problem });
    let mut tokens = Vec::new();
    let mut blank = !cursor.take_while(is_space).is_empty();
    if cursor.eat("/*") {
        let Some(end) = cursor.rest.find("*/") else { return unclosed(SyntaxProblem::UnclosedComment) };
        cursor.take(end + 2);
        cursor.take_while(is_space);
        let trims = cursor.eat("-");
        return if cursor.eat("}}") { Ok((None, trims)) } else { unclosed(SyntaxProblem::UnclosedComment) };
    }
    loop {
        blank |= !cursor.take_while(is_space).is_empty();
        let at = cursor.at;
        if cursor.eat("}}") {
            return Ok((Some(Piece::Action(tokens, at)), false));
        }
        if blank && cursor.eat("-}}") {
            return Ok((Some(Piece::Action(tokens, at)), true));
        }
        if cursor.rest.is_empty() {
            return unclosed(SyntaxProblem::UnclosedAction);
        }
        tokens.push(Spanned { token: token(cursor)?, at, joined: !blank });
        blank = false;
    }
}

fn token(cursor: &mut Cursor<'_>) -> Result<Token, TemplateError> {
    let mut chars = cursor.rest.chars();
    let first = chars.next().unwrap_or_default();
    let second = chars.next().unwrap_or_default();
    let is_word = |c: char| c == '_' || c.is_alphanumeric();
    Ok(match first {
        '.' if is_word(second) && !second.is_ascii_digit() => {
            cursor.take(1);
            Token::Field(cursor.take_while(is_word).to_owned())
        }
        '.' if !second.is_ascii_digit() => {
            cursor.take(1);
            Token::Dot
        }
        '$' => {
            cursor.take(1);
            Token::Variable(cursor.take_while(is_word).to_owned())
        }
        '"' => quoted(cursor)?,
        '`' => {
            let Some(end) = cursor.rest[1..].find('`') else {
                return cursor.wrong(SyntaxProblem::UnclosedString);
            };
            let text = cursor.take(end + 2);
            Token::Text(text[1..=end].to_owned())
        }
        '\'' => character(cursor)?,
        '(' | ')' | '|' | ',' | '=' => {
            cursor.take(1);
            match first {
                '(' => Token::Open,
                ')' => Token::Close,
                '|' => Token::Pipe,
                ',' => Token::Comma,
                _ => Token::Assign,
            }
        }
        ':' if second == '=' => {
            cursor.take(2);
            Token::Declare
        }
        _ if first.is_ascii_digit() || (matches!(first, '+' | '-' | '.') && second.is_ascii_digit()) => {
            number(cursor)?
        }
        _ if is_word(first) => Token::Word(cursor.take_while(is_word).to_owned()),
        _ => return cursor.wrong(SyntaxProblem::Character(first)),
    })
}

fn number(cursor: &mut Cursor<'_>) -> Result<Token, TemplateError> {
    let at = cursor.at;
    let sign = if cursor.rest.starts_with(['+', '-']) { cursor.take(1) } else { "" };
    let digits = cursor.take_while(|c| c.is_alphanumeric() || matches!(c, '.' | '_'));
    let text = format!("{sign}{}", digits.replace('_', ""));
    let integer = match text.trim_start_matches(['+', '-']).strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(&format!("{}{hex}", if sign == "-" { "-" } else { "" }), 16).ok(),
        None => text.parse().ok(),
    };
    let is_float = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    match (integer, text.parse::<f64>()) {
        (Some(integer), _) => Ok(Token::Integer(integer)),
        (None, Ok(float)) if is_float && float.is_finite() => Ok(Token::Float(float)),
        _ => Err(TemplateError::Syntax { at, problem: SyntaxProblem::Number(format!("{sign}{digits}")) }),
    }
}

fn quoted(cursor: &mut Cursor<'_>) -> Result<Token, TemplateError> {
    let opened = cursor.at;
    cursor.take(1);
    let mut text = String::new();
    loop {
        match cursor.rest.chars().next() {
            None | Some('\n') => {
                return Err(TemplateError::Syntax { at: opened, problem: SyntaxProblem::UnclosedString });
            }
            Some('"') => {
                cursor.take(1);
                return Ok(Token::Text(text));
            }
            Some('\\') => text.push(escape(cursor, '"')?),
            Some(c) => {
                cursor.take(c.len_utf8());
                text.push(c);
            }
        }
    }
}

fn character(cursor: &mut Cursor<'_>) -> Result<Token, TemplateError> {
    let opened = cursor.at;
    let unclosed = || TemplateError::Syntax { at: opened, problem: SyntaxProblem::UnclosedString };
    cursor.take(1);
    let c = match cursor.rest.chars().next() {
        None | Some('\'' | '\n') => return Err(unclosed()),
        Some('\\') => escape(cursor, '\'')?,
        Some(c) => {
            cursor.take(c.len_utf8());
            c
        }
    };
    if cursor.eat("'") { Ok(Token::Integer(i64::from(u32::from(c)))) } else { Err(unclosed()) }
}

/// One escape of Go's interpreted strings.
fn escape(cursor: &mut Cursor<'_>, quote: char) -> Result<char, TemplateError> {
    let rest = cursor.rest;
    let code = |from: usize, count: usize| {
        let digits = rest.get(from..from + count)?;
        char::from_u32(u32::from_str_radix(digits, 16).ok()?).map(|c| (c, from + count))
    };
    let found = match rest[1..].chars().next() {
        Some('n') => Some(('\n', 2)),
        Some('t') => Some(('\t', 2)),
        Some('r') => Some(('\r', 2)),
        Some('a') => Some(('\x07', 2)),
        Some('b') => Some(('\x08', 2)),
        Some('f') => Some(('\x0c', 2)),
        Some('v') => Some(('\x0b', 2)),
        Some('\\') => Some(('\\', 2)),
        Some(c) if c == quote => Some((quote, 2)),
        Some('x') => code(2, 2),
        Some('u') => code(2, 4),
        Some('U') => code(2, 8),
        _ => None,
    };
    match found {
        Some((c, bytes)) => {
            cursor.take(bytes);
            Ok(c)
        }
        None => cursor.wrong(SyntaxProblem::Escape),
    }
}
