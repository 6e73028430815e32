//! Where the bytes of a plan's files are.
//!
//! Nearly all files of a layer come from below a directory or two. So a plan has rules, and says from which path on
//! which one counts; it holds nothing for each file.

use std::num::NonZeroU32;

use super::{FileSource, Sources};
use crate::layer::{FieldReader, put_number, put_path};
use crate::path::{RelPath, compare};
use crate::tree::{below, strip};

/// Where the bytes of some files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In the source of the instruction.
    Source(Moved),
    /// In the directory of an unpacked archive, among those of all archives.
    Archive(Moved),
    /// In the plan: a heredoc.
    Inline(Vec<u8>),
    /// In whichever pack has the content.
    Packed,
}

/// A file, or all below a directory, that has another path in a source than in the layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    to: RelPath,
    from: RelPath,
}

impl Moved {
    /// From a path of the source to one of the layer. What the paths end in alike is left out: files taken one by one
    /// then have one rule.
    pub fn new(mut from: RelPath, mut to: RelPath) -> Self {
        while let (Some(from_parent), Some(to_parent)) = (from.parent(), to.parent())
            && from.name() == to.name()
        {
            (from, to) = (from_parent, to_parent);
        }
        Self { to, from }
    }

    fn source_of(&self, path: &RelPath) -> Option<RelPath> {
        Some(below(&self.from, &strip(path, &self.to)?))
    }
}

/// Number of a rule, from one on. Four bytes even where there may be none: a plan in the making has one for each path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Rule(NonZeroU32);

impl Rule {
    /// The rule of this number.
    pub(super) fn of_number(number: u64) -> Option<Self> {
        u32::try_from(number).ok().and_then(NonZeroU32::new).map(Self)
    }

    /// From one on.
    pub(super) fn number(self) -> u64 {
        self.0.get().into()
    }
}

/// The origins of all files of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origins {
    rules: Vec<Origin>,
    starts: Starts,
}

/// From which path on which rule counts, up to the next one here. Files of two sources may take turns in a directory, so
/// paths are held as what they do not share with the one before; every so many, one is whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Starts {
    /// ```text
    /// start = shared-prefix suffix  rule
    /// ```
    bytes: Vec<u8>,
    /// Where those with a whole path are.
    whole: Vec<usize>,
    len: usize,
    last: Option<(Vec<u8>, Rule)>,
}

/// One path in so many is whole.
const WHOLE_ONE_IN: usize = 32;

impl Starts {
    /// The rule counts from this path on, which comes after all others.
    fn push(&mut self, path: &RelPath, rule: Rule) {
        let before = match &self.last {
            Some((_, last)) if *last == rule => return,
            Some((before, _)) if !self.len.is_multiple_of(WHOLE_ONE_IN) => before.as_slice(),
            _ => {
                self.whole.push(self.bytes.len());
                &[]
            }
        };
        put_path(&mut self.bytes, before, path.as_bytes());
        put_number(&mut self.bytes, rule.number());
        self.last = Some((path.as_bytes().to_vec(), rule));
        self.len += 1;
    }

    /// The rule that counts at this path.
    fn rule_at(&self, path: &RelPath) -> Option<Rule> {
        let begins_before = |at: &usize| {
            let (mut first, mut reader) = (Vec::new(), FieldReader::new(&self.bytes, *at));
            reader.path(&mut first).is_ok() && compare(&first, path.as_bytes()).is_le()
        };
        let at = self.whole[..self.whole.partition_point(begins_before)].last()?;
        let (mut start, mut found) = (Vec::new(), None);
        let mut reader = FieldReader::new(&self.bytes, *at);
        for _ in 0..WHOLE_ONE_IN {
            if reader.path(&mut start).is_err() || compare(&start, path.as_bytes()).is_gt() {
                break;
            }
            found = Rule::of_number(reader.number().ok()?);
        }
        found
    }
}

impl Origins {
    /// One for all files.
    pub fn all(origin: Origin) -> Self {
        let mut origins = Self::default();
        let rule = origins.rule(origin);
        origins.push(&RelPath::root(), rule);
        origins
    }

    /// Where the file at `path` is, which must be one of the plan's.
    pub fn of(&self, path: &RelPath) -> Option<&Origin> {
        self.rules.get(self.starts.rule_at(path)?.0.get() as usize - 1)
    }

    /// The number of a rule, which is a new one unless it was the last one too.
    pub(super) fn rule(&mut self, origin: Origin) -> Rule {
        if self.rules.last() != Some(&origin) {
            self.rules.push(origin);
        }
        let number = u32::try_from(self.rules.len()).ok().and_then(NonZeroU32::new);
        Rule(number.expect("there is one, and four billion would fill hundreds of gigabytes"))
    }

    /// Says where the file at `path` is, which comes after all others.
    pub(super) fn push(&mut self, path: &RelPath, rule: Rule) {
        self.starts.push(path, rule);
    }
}

/// Where one file is read from.
pub(super) enum Found<'a> {
    File(&'a dyn FileSource, RelPath),
    Bytes(&'a [u8]),
    Packed,
}

impl<'a> Sources<'a> {
    /// Where the file at `path` is read from; `None` when its source was not given.
    pub(super) fn find(&self, origins: &'a Origins, path: &RelPath) -> Option<Found<'a>> {
        let (source, moved) = match origins.of(path)? {
            Origin::Source(moved) => (self.main?, moved),
            Origin::Archive(moved) => (self.archives?, moved),
            Origin::Inline(bytes) => return Some(Found::Bytes(bytes)),
            Origin::Packed => return Some(Found::Packed),
        };
        Some(Found::File(source, moved.source_of(path)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::testing::path;

    fn moved(from: &str, to: &str) -> Moved {
        Moved::new(path(from), path(to))
    }

    #[test]
    fn a_moved_file_is_found_below_where_it_came_from() {
        for (from, to, at, source) in [
            ("", "", "a/b", Some("a/b")),
            ("", "app", "app/a", Some("a")),
            ("src", "", "a", Some("src/a")),
            ("src", "app/src", "app/src/a", Some("src/a")),
            ("x/f", "y/g", "y/g", Some("x/f")),
            ("x/f", "f", "f", Some("x/f")),
            ("src", "app", "apple/a", None),
        ] {
            assert_eq!(moved(from, to).source_of(&path(at)), source.map(path), "{from} to {to}: {at}");
        }
        assert_eq!(moved("x/a/f", "y/a/f"), moved("x/b", "y/b"), "one rule for what is taken one by one");
    }

    #[test]
    fn a_rule_counts_up_to_the_next_one() {
        let mut origins = Origins::default();
        let one = origins.rule(Origin::Source(moved("x", "")));
        assert_eq!(origins.rule(Origin::Source(moved("x", ""))), one);
        let two = origins.rule(Origin::Packed);
        for (at, rule) in [("b", one), ("b/c", one), ("b.c", two), ("d", one), ("e", one)] {
            origins.push(&path(at), rule);
        }
        assert_eq!(origins.starts.len, 3);
        assert_eq!(origins.of(&path("a")), None);
        assert_eq!(origins.of(&path("b.c")), Some(&Origin::Packed));
        for at in ["b", "b/c", "d", "e"] {
            assert_eq!(origins.of(&path(at)), Some(&Origin::Source(moved("x", ""))), "{at}");
        }
    }

    #[test]
    fn rules_that_take_turns_are_found_in_little() {
        let mut origins = Origins::default();
        let rules = [Origin::Packed, Origin::Inline(vec![1])];
        let numbers = rules.clone().map(|rule| origins.rule(rule));
        let at = |at: usize| path(&format!("some/dir/file-{at:05}"));
        for place in 0..1000 {
            origins.push(&at(2 * place), numbers[place % 2]);
        }
        assert!(origins.starts.bytes.len() < 10_000, "{}", origins.starts.bytes.len());
        for place in 0..1000 {
            for between in [2 * place, 2 * place + 1] {
                assert_eq!(origins.of(&at(between)), Some(&rules[place % 2]), "{between}");
            }
        }
        assert_eq!(origins.of(&path("some/dir")), None);
    }
}
