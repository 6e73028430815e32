//! Wildcards of one path component, as Go's `path.Match` has them.
//!
//! `*` any run, `?` any one, `[a-z]` and `[^x]` classes, `\c` the character itself. `**` is just `*`. Go matches
//! characters; so do `?` and classes here, with a byte that is not UTF-8 counting as one character.

/// A checked pattern for one component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<Token>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Literal(u32),
    AnyOne,
    AnyRun,
    Class { negated: bool, ranges: Vec<(u32, u32)> },
}

/// A malformed pattern: an unclosed or empty `[`, a range without end, a trailing `\`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("syntax error in pattern `{}`", String::from_utf8_lossy(.0))]
pub struct PatternError(pub Vec<u8>);

/// True when bytes hold `*`, `?` or `[` that no `\` escapes.
pub fn has_wildcard(bytes: &[u8]) -> bool {
    let mut bytes = bytes.iter();
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

impl Pattern {
    /// Checks and takes a pattern.
    pub fn new(pattern: &[u8]) -> Result<Self, PatternError> {
        let error = || PatternError(pattern.to_vec());
        let mut tokens = Vec::new();
        let mut chars = chars(pattern).peekable();
        while let Some(char) = chars.next() {
            let token = match u8::try_from(char) {
                Ok(b'*') if tokens.last() == Some(&Token::AnyRun) => continue,
                Ok(b'*') => Token::AnyRun,
                Ok(b'?') => Token::AnyOne,
                Ok(b'[') => class(&mut chars).ok_or_else(error)?,
                Ok(b'\\') => Token::Literal(chars.next().ok_or_else(error)?),
                _ => Token::Literal(char),
            };
            tokens.push(token);
        }
        Ok(Self(tokens))
    }

    /// Matches a whole name. Takes at most `pattern × name` steps.
    pub fn matches(&self, name: &[u8]) -> bool {
        let name: Vec<u32> = chars(name).collect();
        let (mut at, mut token) = (0, 0);
        // After the last `*`: its token and where its run ends for now. A later `*` makes earlier ones settled.
        let mut retry: Option<(usize, usize)> = None;
        loop {
            match self.0.get(token) {
                Some(Token::AnyRun) => {
                    token += 1;
                    retry = Some((token, at));
                    continue;
                }
                Some(one) if at < name.len() && one.takes(name[at]) => {
                    (at, token) = (at + 1, token + 1);
                    continue;
                }
                None if at == name.len() => return true,
                _ => {}
            }
            match &mut retry {
                Some((after, end)) if *end < name.len() => {
                    *end += 1;
                    (token, at) = (*after, *end);
                }
                _ => return false,
            }
        }
    }
}

impl Token {
    fn takes(&self, char: u32) -> bool {
        match self {
            Self::Literal(literal) => *literal == char,
            Self::AnyOne => true,
            Self::AnyRun => false,
            Self::Class { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&char)) != *negated
            }
        }
    }
}

/// The rest of a class after `[`, `None` when it is malformed.
fn class(chars: &mut std::iter::Peekable<impl Iterator<Item = u32>>) -> Option<Token> {
    let is = |char: Option<&u32>, byte: u8| char == Some(&u32::from(byte));
    let negated = is(chars.peek(), b'^');
    if negated {
        chars.next();
    }
    let mut ranges = Vec::new();
    // As in Go, the first member may not be `]`: an empty class is malformed.
    while ranges.is_empty() || !is(chars.peek(), b']') {
        let low = member(chars)?;
        let high = if is(chars.peek(), b'-') {
            chars.next();
            member(chars)?
        } else {
            low
        };
        ranges.push((low, high));
    }
    chars.next();
    Some(Token::Class { negated, ranges })
}

fn member(chars: &mut impl Iterator<Item = u32>) -> Option<u32> {
    match chars.next()? {
        char if char == u32::from(b'-') || char == u32::from(b']') => None,
        char if char == u32::from(b'\\') => chars.next(),
        char => Some(char),
    }
}

/// Characters as numbers; a byte that is not UTF-8 gets one above all of Unicode.
fn chars(bytes: &[u8]) -> impl Iterator<Item = u32> {
    const NOT_UTF8: u32 = 0x0011_0000;
    bytes.utf8_chunks().flat_map(|chunk| {
        let valid = chunk.valid().chars().map(u32::from);
        valid.chain(chunk.invalid().iter().map(|byte| NOT_UTF8 + u32::from(*byte)))
    })
}
