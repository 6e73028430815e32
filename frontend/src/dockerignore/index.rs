//! Which patterns are worth trying on a path: with thousands of them, a few.

use std::collections::HashMap;

use super::pattern::{Name, Pattern};

/// Patterns by what names tell about their matches; numbers ascend in every list.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    by_path: HashMap<String, Vec<usize>>,
    by_name: HashMap<String, Vec<usize>>,
    by_end: HashMap<String, Vec<usize>>,
    /// Lengths of the keys of `by_end` in bytes, ascending.
    end_bytes: Vec<usize>,
    by_first: HashMap<String, Vec<usize>>,
    rest: Vec<usize>,
}

impl Index {
    pub(super) fn new(patterns: &[Pattern]) -> Self {
        let mut index = Self::default();
        for (at, pattern) in patterns.iter().enumerate() {
            match pattern.name() {
                Name::Path(path) => index.by_path.entry(path).or_default().push(at),
                Name::Is(name) => index.by_name.entry(name).or_default().push(at),
                Name::EndsIn(end) => index.by_end.entry(end).or_default().push(at),
                Name::Below(first) => index.by_first.entry(first).or_default().push(at),
                Name::Any => index.rest.push(at),
            }
        }
        index.end_bytes = index.by_end.keys().map(String::len).collect();
        index.end_bytes.sort_unstable();
        index.end_bytes.dedup();
        index
    }

    /// Hands over the lists that can have a match of `path`.
    pub(super) fn candidates(&self, path: &str, mut list: impl FnMut(&[usize])) {
        if let Some(found) = self.by_path.get(path) {
            list(found);
        }
        let name = path.rsplit('/').next().unwrap_or(path);
        if let Some(found) = self.by_name.get(name) {
            list(found);
        }
        for bytes in self.end_bytes.iter().take_while(|bytes| **bytes <= name.len()) {
            let end = name.get(name.len() - bytes..);
            if let Some(found) = end.and_then(|end| self.by_end.get(end)) {
                list(found);
            }
        }
        if !self.by_first.is_empty()
            && let Some(found) = self.by_first.get(path.split('/').next().unwrap_or(path))
        {
            list(found);
        }
        list(&self.rest);
    }
}
