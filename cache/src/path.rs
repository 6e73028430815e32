//! Paths inside a tree, as bytes.

use std::fmt;

/// A relative path below a tree's root: components joined by `/`, no empty, `.` or `..` component, no NUL, no
/// leading or trailing `/`. The empty path is the root itself. Bytes, not UTF-8.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct RelPath(Vec<u8>);

/// Why bytes are not a [`RelPath`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not a clean relative path", String::from_utf8_lossy(.0))]
pub struct RelPathError(pub Vec<u8>);

impl RelPath {
    /// The root.
    pub const fn root() -> Self {
        Self(Vec::new())
    }

    /// Checks bytes that must already be clean.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, RelPathError> {
        let bytes = bytes.into();
        if is_clean(&bytes) { Ok(Self(bytes)) } else { Err(RelPathError(bytes)) }
    }

    /// Takes bytes that were found to be clean before.
    pub(crate) fn of_clean(bytes: Vec<u8>) -> Self {
        debug_assert!(is_clean(&bytes));
        Self(bytes)
    }

    /// Cleans a path as a container sees it: leading `/` dropped, `.` and empty components dropped, `..` goes up and
    /// stops at the root.
    pub fn clamp(bytes: &[u8]) -> Self {
        let mut parts: Vec<&[u8]> = Vec::new();
        for part in bytes.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    parts.pop();
                }
                part => parts.push(part),
            }
        }
        Self(parts.join(&b'/'))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// True for the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Components, outermost first.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/').filter(|c| !c.is_empty())
    }

    /// Path of `name` in this directory.
    pub fn join(&self, name: &[u8]) -> Self {
        debug_assert!(!name.is_empty());
        if self.0.is_empty() {
            return Self(name.to_vec());
        }
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.len());
        bytes.extend_from_slice(&self.0);
        bytes.push(b'/');
        bytes.extend_from_slice(name);
        Self(bytes)
    }

    /// Its first component, and its path below that; `None` for the root.
    pub fn split_first(&self) -> Option<(&[u8], Self)> {
        match self.0.iter().position(|b| *b == b'/') {
            Some(at) => Some((&self.0[..at], Self(self.0[at + 1..].to_vec()))),
            None if self.0.is_empty() => None,
            None => Some((&self.0, Self::root())),
        }
    }

    /// Directory that holds it, `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        match self.0.iter().rposition(|b| *b == b'/') {
            Some(at) => Some(Self(self.0[..at].to_vec())),
            None if self.0.is_empty() => None,
            None => Some(Self::root()),
        }
    }

    /// True when `dir` is the directory that holds it.
    pub fn is_in(&self, dir: &Self) -> bool {
        match self.0.iter().rposition(|b| *b == b'/') {
            Some(at) => self.0[..at] == dir.0,
            None => dir.is_root() && !self.is_root(),
        }
    }

    /// Last component, empty for the root.
    pub fn name(&self) -> &[u8] {
        match self.0.iter().rposition(|b| *b == b'/') {
            Some(at) => &self.0[at + 1..],
            None => &self.0,
        }
    }
}

/// Orders by components, so a directory comes right before what is below it (`a` < `a/b` < `a.b`).
impl Ord for RelPath {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        compare(&self.0, &other.0)
    }
}

/// True for the bytes of a [`RelPath`].
pub(crate) fn is_clean(bytes: &[u8]) -> bool {
    bytes.is_empty()
        || bytes.split(|b| *b == b'/').all(|c| !matches!(c, b"" | b"." | b"..") && !c.contains(&0))
}

/// [`RelPath`]'s order on the bytes of clean paths.
pub fn compare(a: &[u8], b: &[u8]) -> std::cmp::Ordering {
    // A `/` sorts before every other byte, and a path holds no zero byte. Long common prefixes are the usual case where
    // paths are sorted, so they are skipped eight bytes at a time.
    const BLOCK: usize = 8;
    let shared = a.chunks_exact(BLOCK).zip(b.chunks_exact(BLOCK)).take_while(|(a, b)| a == b).count() * BLOCK;
    let key = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    a[shared..].iter().map(key).cmp(b[shared..].iter().map(key))
}

impl PartialOrd for RelPath {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn order_is_that_of_the_components(a in "([a-c.]{1,3}/){0,40}[a-c.]{1,2}", b in "([a-c.]{1,3}/){0,40}[a-c.]{1,2}") {
            let (a, b) = (RelPath::clamp(a.as_bytes()), RelPath::clamp(b.as_bytes()));
            prop_assert_eq!(a.cmp(&b), a.components().cmp(b.components()));
        }
    }
}
