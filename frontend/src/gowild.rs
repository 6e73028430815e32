//! Go's `path.Match` for one path component: how COPY and ADD select sources.

/// A pattern Go refuses: an unclosed or empty bracket, or a lone backslash at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("syntax error in pattern")]
pub struct BadPattern;

/// True when `pattern` has an unescaped `*`, `?` or `[`; without one it is a plain name and must exist.
pub fn has_wildcard(pattern: &[u8]) -> bool {
    let mut bytes = pattern.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                bytes.next();
            }
            b'*' | b'?' | b'[' => return true,
            _ => {}
        }
    }
    false
}

/// Matches `name`, a whole component without `/`. Takes at most `pattern.len() * name.len()` steps: only the latest
/// `*` is ever retried.
///
/// `*` any run, `?` one character, `[a-z]` and `[^a-z]` classes, `\c` the character c. `**` is just `*`. Bytes that
/// are no UTF-8 count as one character each. A bad pattern is an error whatever the name.
pub fn match_component(pattern: &[u8], name: &[u8]) -> Result<bool, BadPattern> {
    let mut rest = pattern;
    while !rest.is_empty() {
        rest = next_token(rest)?.1;
    }
    let (mut at_pattern, mut at_name) = (pattern, name);
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        if at_pattern.is_empty() && at_name.is_empty() {
            return Ok(true);
        }
        if !at_pattern.is_empty() {
            let (token, after) = next_token(at_pattern)?;
            if matches!(token, Token::Star) {
                retry = Some((after, at_name));
                at_pattern = after;
                continue;
            }
            if let Some((c, name_after)) = next_char(at_name)
                && token.accepts(c)
            {
                (at_pattern, at_name) = (after, name_after);
                continue;
            }
        }
        let Some((pattern_after, name_from)) = retry else { return Ok(false) };
        let Some((_, name_after)) = next_char(name_from) else { return Ok(false) };
        retry = Some((pattern_after, name_after));
        (at_pattern, at_name) = (pattern_after, name_after);
    }
}

#[derive(Debug, Clone, Copy)]
enum Token<'a> {
    Star,
    Any,
    Char(u32),
    /// Negated, and the ranges' text.
    Class(bool, &'a [u8]),
}

impl Token<'_> {
    fn accepts(&self, c: u32) -> bool {
        match *self {
            Self::Star => false,
            Self::Any => c != u32::from(b'/'),
            Self::Char(wanted) => wanted == c,
            Self::Class(negated, mut ranges) => {
                let mut inside = false;
                // The class was checked when it was cut out, so reading it again cannot fail.
                while let Ok((low, high, rest)) = next_range(ranges) {
                    inside |= low <= c && c <= high;
                    ranges = rest;
                    if ranges.is_empty() {
                        break;
                    }
                }
                inside != negated
            }
        }
    }
}

fn next_token(pattern: &[u8]) -> Result<(Token<'_>, &[u8]), BadPattern> {
    match pattern {
        [b'*', rest @ ..] => Ok((Token::Star, rest)),
        [b'?', rest @ ..] => Ok((Token::Any, rest)),
        [b'[', rest @ ..] => {
            let (negated, start) = match rest {
                [b'^', rest @ ..] => (true, rest),
                _ => (false, rest),
            };
            let mut rest = start;
            loop {
                rest = next_range(rest)?.2;
                if let [b']', after @ ..] = rest {
                    return Ok((Token::Class(negated, &start[..start.len() - rest.len()]), after));
                }
            }
        }
        [b'\\', rest @ ..] => {
            let (c, rest) = next_char(rest).ok_or(BadPattern)?;
            Ok((Token::Char(c), rest))
        }
        _ => {
            let (c, rest) = next_char(pattern).ok_or(BadPattern)?;
            Ok((Token::Char(c), rest))
        }
    }
}

/// One `lo` or `lo-hi` of a class.
fn next_range(text: &[u8]) -> Result<(u32, u32, &[u8]), BadPattern> {
    let (low, rest) = class_char(text)?;
    match rest {
        [b'-', rest @ ..] => {
            let (high, rest) = class_char(rest)?;
            Ok((low, high, rest))
        }
        _ => Ok((low, low, rest)),
    }
}

fn class_char(text: &[u8]) -> Result<(u32, &[u8]), BadPattern> {
    let text = match text {
        [] | [b'-', ..] | [b']', ..] => return Err(BadPattern),
        [b'\\', rest @ ..] => rest,
        _ => text,
    };
    next_char(text).ok_or(BadPattern)
}

/// The next character; a byte that is no UTF-8 counts as one outside Unicode, so that it matches only itself.
fn next_char(text: &[u8]) -> Option<(u32, &[u8])> {
    let first = *text.first()?;
    if first < 0x80 {
        return Some((u32::from(first), &text[1..]));
    }
    let head = &text[..text.len().min(4)];
    let valid = match std::str::from_utf8(head) {
        Ok(valid) => valid,
        Err(error) => std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default(),
    };
    match valid.chars().next() {
        Some(c) => Some((u32::from(c), &text[c.len_utf8()..])),
        None => Some((0x11_0000 + u32::from(first), &text[1..])),
    }
}

#[cfg(test)]
mod tests;
