//! A Dockerfile's bytes and where its lines are.

use crate::span::{Lines, Span};

/// The original bytes of a Dockerfile with an index of physical lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    bytes: Vec<u8>,
    /// Offset of the first byte of each line; never empty.
    starts: Vec<usize>,
}

impl Source {
    /// Indexes `bytes`.
    pub fn new(bytes: &[u8]) -> Self {
        let after_newlines = bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i + 1);
        let mut starts: Vec<usize> = std::iter::once(0).chain(after_newlines).collect();
        // A final newline ends the last line; it does not begin another.
        if starts.len() > 1 && starts.last() == Some(&bytes.len()) {
            starts.pop();
        }
        Self { bytes: bytes.to_vec(), starts }
    }

    /// The bytes as given, byte order mark and line ends included.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of physical lines; an empty file has one.
    pub fn line_count(&self) -> u32 {
        u32::try_from(self.starts.len()).unwrap_or(u32::MAX)
    }

    /// Bytes of the 1-based `line` without its newline; `None` past the end.
    pub fn line_span(&self, line: u32) -> Option<Span> {
        let index = usize::try_from(line).ok()?.checked_sub(1)?;
        let start = *self.starts.get(index)?;
        let mut end = self.starts.get(index + 1).copied().unwrap_or(self.bytes.len());
        if end > start && self.bytes[end - 1] == b'\n' {
            end -= 1;
        }
        Some(Span { start, end })
    }

    /// Text of the 1-based `line` for an excerpt: line end cut, invalid UTF-8 replaced.
    pub fn line_text(&self, line: u32) -> Option<String> {
        let span = self.line_span(line)?;
        let text = String::from_utf8_lossy(&self.bytes[span.range()]);
        Some(text.trim_end_matches('\r').to_owned())
    }

    /// The 1-based line that holds byte `offset`.
    pub fn line_of(&self, offset: usize) -> u32 {
        let index = self.starts.partition_point(|start| *start <= offset);
        u32::try_from(index.max(1)).unwrap_or(u32::MAX)
    }

    /// The physical lines a span touches.
    pub fn lines_of(&self, span: Span) -> Lines {
        let last = span.end.saturating_sub(1).max(span.start);
        Lines { first: self.line_of(span.start), last: self.line_of(last) }
    }
}
