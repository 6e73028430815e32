//! Places in a Dockerfile.

use std::ops::Range;

/// Byte range in the Dockerfile's original bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

impl Span {
    /// A span from a range.
    pub const fn new(range: Range<usize>) -> Self {
        Self { start: range.start, end: range.end }
    }

    /// The range.
    pub const fn range(self) -> Range<usize> {
        self.start..self.end
    }
}

/// 1-based inclusive range of physical lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lines {
    /// First line.
    pub first: u32,
    /// Last line.
    pub last: u32,
}
