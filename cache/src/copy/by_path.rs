//! What is said of some paths in any order, and asked for in the order of paths.

use std::cmp::Ordering;
use std::io;

use crate::layer::ListingError;
use crate::path::{RelPath, compare};
use crate::scratch::Scratch;
use crate::sorter::{Sorted, Sorter};

type Order = fn(&[u8], &[u8]) -> Ordering;

/// Takes what is said.
///
/// ```text
/// record = path 0 said
/// ```
pub(super) struct ByPath(Sorter<Order>);

impl ByPath {
    /// Nothing so far; much goes to a file of `scratch`.
    pub(super) fn new(scratch: &Scratch) -> Self {
        Self(Sorter::new(scratch.clone(), |a, b| compare(split(a).0, split(b).0)))
    }

    /// Says something of a path, besides what was said of it before; it is given in parts that follow each other.
    pub(super) fn say<const PARTS: usize>(
        &mut self,
        path: &RelPath,
        said: [&[u8]; PARTS],
    ) -> Result<(), ListingError> {
        // No path has a zero byte.
        let mut parts = vec![path.as_bytes(), b"\0"];
        parts.extend(said);
        self.0.push(&parts).map_err(|source| ListingError { doing: "write", source })
    }

    /// All that was said.
    pub(super) fn in_order(self) -> Result<InOrder, ListingError> {
        let mut said = InOrder { sorted: self.0.sorted().map_err(unread)?, next: None };
        said.advance().map_err(unread)?;
        Ok(said)
    }
}

/// Gives what was said of one path after the other.
pub(super) struct InOrder {
    sorted: Sorted<Order>,
    next: Option<Vec<u8>>,
}

impl InOrder {
    /// What was said of a path, if `is_wanted`: the first of that. The path comes after all that were asked for.
    pub(super) fn find(
        &mut self,
        path: &RelPath,
        is_wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<Option<&[u8]>, ListingError> {
        while let Some(record) = &self.next {
            let (at, said) = split(record);
            match compare(at, path.as_bytes()) {
                Ordering::Equal if is_wanted(said) => break,
                Ordering::Greater => return Ok(None),
                Ordering::Less | Ordering::Equal => self.advance().map_err(unread)?,
            }
        }
        Ok(self.next.as_ref().map(|record| split(record).1))
    }

    fn advance(&mut self) -> io::Result<()> {
        self.next = self.sorted.next()?.map(<[u8]>::to_vec);
        Ok(())
    }
}

fn split(record: &[u8]) -> (&[u8], &[u8]) {
    let at = record.iter().position(|byte| *byte == 0).unwrap_or(record.len());
    (&record[..at], record.get(at + 1..).unwrap_or_default())
}

fn unread(source: io::Error) -> ListingError {
    ListingError { doing: "read", source }
}
